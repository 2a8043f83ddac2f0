"""The gateway and the servers behind it: their faults are counted one by one, and a busy one is reported as busy."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import engines
import gateways
import worlds
from engines import VLLM
from motes.errors import EngineError, NoParticlesError, ServerError
from motes.gateway.answering import open_models
from motes.gateway.config import Config
from motes.gateway.errors import response_to_error
from motes.models.served import HTTPLanguageModel
from motes.rewards.calibration import CalibratedReward
from motes.rewards.judge import Judge

CHAT = "/v1/chat/completions"
MODEL = {**gateways.MODEL, "sampling": {"max_steps": 4, "max_step_tokens": 8}, "task": None}


def over(lm: Any, **changes: Any) -> AbstractContextManager[httpx2.Client]:
    """A gateway over a language model, with a reward model of its own process."""
    told = Config.model_validate({"models": {"story": {**MODEL, **changes}}})
    return gateways.gateway(
        told, {name: dataclasses.replace(model, lm=lm) for name, model in open_models(told).items()}
    )


def ask(client: httpx2.Client, number: int = 0, **fields: Any) -> httpx2.Response:
    messages = [{"role": "user", "content": f"What is {number}?"}]
    return client.post(CHAT, json={"model": "story", "messages": messages, "seed": number, **fields})


def metrics(client: httpx2.Client, name: str, label: str | None = None) -> Counter[Any]:
    """The samples of a metric that are not zero, by a label or by all, in the order of their names."""
    found: Counter[Any] = Counter()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.value:
                found[sample.labels[label] if label else tuple(sample.labels.values())] += int(sample.value)
    return found


def served(fails: Callable[[str, dict[str, Any]], Any], **options: Any) -> HTTPLanguageModel:
    """A language model behind a server that fails when it is used."""
    engine = VLLM()
    lm = asyncio.run(engines.connect(engine, **options))
    engine.fails = fails
    return lm


# --------------------------------------------------------------------------------------------------------------- counts


class Faults:
    """Fails a share of the requests for tokens, each in one of the ways below, and counts what it does.

    Attributes:
        outcomes: of attempts.
        lost: requests of which all three attempts failed.
    """

    def __init__(self, share: float) -> None:
        self.share, self.chance = share, random.Random(3)
        self.outcomes: Counter[str] = Counter()
        self.lost = 0
        self._failed: Counter[str] = Counter()

    def __call__(self, path: str, body: dict[str, Any]) -> httpx2.Response | None:
        if not path.endswith("/completions") or self.chance.random() > self.share:
            self.outcomes["ok"] += 1
            return None
        fault = self.chance.choice(["500", "429", "503", "connection", "timeout", "bad_response"])
        self.outcomes[fault] += 1
        self._failed[json.dumps(body)] += 1
        self.lost += self._failed[json.dumps(body)] == 3
        if fault == "connection":
            raise httpx2.ReadError("reset")
        if fault == "timeout":
            raise httpx2.ReadTimeout("silent")
        if fault == "bad_response":
            return httpx2.Response(200, content=b"<html>")
        return httpx2.Response(int(fault), json={"error": {"message": "out of order"}})


def test_each_fault_of_an_upstream_server_is_counted():
    faults = Faults(0.4)
    with over(served(faults)) as client:
        responses = [ask(client, i) for i in range(20)]
        assert {response.status_code for response in responses} == {200}
        assert metrics(client, "motes_upstream_attempts_total", "outcome") == faults.outcomes
        assert metrics(client, "motes_upstream_attempts_total", "role") == {"language model": faults.outcomes.total()}
        assert metrics(client, "motes_upstream_seconds_count")[("story", "language model")] == faults.outcomes["ok"]
        assert metrics(client, "motes_particles_dropped_total") == {("story",): faults.lost}
        assert metrics(client, "motes_upstream_errors_total") == {}
    assert min(faults.outcomes.values()) > 20
    assert faults.lost > 20


def test_particles_of_failed_runs_count_as_dropped():
    with over(served(Faults(1.0))) as client:
        assert ask(client).status_code in (502, 503)
        assert metrics(client, "motes_particles_dropped_total") == {("story",): 8}
        assert metrics(client, "motes_upstream_errors_total") == {("story",): 1}


@pytest.mark.parametrize("method", ["majority", "bon", "pg", "pf:ess_threshold=1"])
def test_dropped_particles_count_once_with_every_method(method: str):
    faults = Faults(0.5)
    with over(served(faults)) as client:
        for number in range(10):
            assert ask(client, number, motes={"method": method}).status_code in (200, 502, 503)
        assert metrics(client, "motes_particles_dropped_total") == {("story",): faults.lost}
    assert faults.lost > 5


def test_stragglers_and_requests_that_a_deadline_cancels_are_counted():
    """One request stalls. It is given up at half of the time, as there is not much else to compare it with."""
    answers = 0

    class Stalling(VLLM):
        async def __call__(self, request: httpx2.Request) -> httpx2.Response:
            nonlocal answers
            if request.url.path.endswith("/completions") and self.is_on:
                answers += 1
                if answers == 5 or self.stops:
                    await asyncio.sleep(60)
            return await super().__call__(request)

        is_on = stops = False

    engine = Stalling()
    lm = asyncio.run(engines.connect(engine))
    engine.is_on = True
    with over(lm) as client:
        assert ask(client, motes={"deadline": 4, "particles": 4}).json()["motes"]["stopped"] is None
        assert metrics(client, "motes_upstream_attempts_total", "outcome")["straggler"] == 1
        engine.stops = True
        assert ask(client, motes={"deadline": 0.5, "particles": 4}).status_code == 504
        assert metrics(client, "motes_upstream_attempts_total", "outcome")["cancelled"] == 4


class Watched:
    """A model that makes no requests, but lets them be watched."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.observers: list[Any] = []

    def watch_requests(self, observe: Any) -> None:
        self.observers.append(observe)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def test_attempts_count_for_the_model_and_its_role():
    """A model that several virtual models share counts for the first."""
    lm, reward = Watched(worlds.language_model()), Watched(worlds.reward_model())
    told = Config.model_validate({"models": {"a": MODEL, "b": MODEL}})
    models = open_models(told)
    models = {
        "a": dataclasses.replace(models["a"], lm=lm, reward=reward, outcome_reward=Watched(worlds.contrary())),
        "b": dataclasses.replace(models["b"], lm=lm, reward=Watched(worlds.reward_model())),
    }
    with gateways.gateway(told, models) as client:
        (count,) = lm.observers
        count("ok", 0.3)
        for name, served in models.items():
            (count,) = served.reward.observers
            count("429" if name == "a" else "straggler", 1.0)
        (count,) = models["a"].outcome_reward.observers
        count("ok", 70.0)
        assert metrics(client, "motes_upstream_attempts_total") == {
            ("a", "ok", "language model"): 1, ("a", "429", "reward model"): 1, ("b", "straggler", "reward model"): 1,
            ("a", "ok", "outcome reward"): 1,
        }  # fmt: skip
        assert metrics(client, "motes_upstream_seconds_count") == {
            ("a", "language model"): 1, ("a", "outcome reward"): 1
        }  # fmt: skip


def test_models_that_wrap_others_pass_the_observer_on():
    for wrap in (Judge, lambda lm: CalibratedReward.__new__(CalibratedReward)):
        inner = Watched(worlds.language_model())
        outer = wrap(inner)
        if not isinstance(outer, Judge):
            object.__setattr__(outer, "reward", inner)
        outer.watch_requests(print)
        assert inner.observers == [print]
    Judge(worlds.language_model()).watch_requests(print)


# ----------------------------------------------------------------------------------------------------------------- busy


def busy(status: int, retry_after: str | None = None) -> Callable[[str, Any], httpx2.Response | None]:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return lambda path, body: (
        httpx2.Response(status, headers=headers, json={"error": "slow down"}) if "completions" in path else None
    )


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("told", "expected"), [(None, "1"), ("7", "7"), ("0.2", "1"), ("9999", "9999"), ("inf", "1")])
def test_a_busy_upstream_server_is_reported_as_busy(status: int, told: str | None, expected: str):
    with over(served(busy(status, told))) as client:
        response = ask(client)
        assert (response.status_code, response.headers["retry-after"]) == (503, expected)
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "busy")
        assert "server.test" not in response.text
        assert '"code": "busy"' in ask(client, stream=True).text.replace('":"', '": "')


def test_any_other_failure_is_a_502():
    with over(served(busy(500))) as client:
        response = ask(client)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream")
        assert "retry-after" not in response.headers


def test_the_cause_decides():
    limited = ServerError("slow down")
    limited.status, limited.retry_after = 429, 3.0
    dropped = NoParticlesError("no particle is left")
    dropped.__cause__ = limited
    for error, status in ((limited, 503), (dropped, 503), (EngineError("?"), 502), (ServerError("?"), 502)):
        assert response_to_error(error, "")[0] == status


def test_a_nonsensical_usage_of_an_upstream_server_is_no_error_of_the_gateway():
    usages = [None, "x", -5, {"prompt_tokens": -5, "completion_tokens": -1}, {"prompt_tokens": "many"}, [[]]]

    class Miscounting(VLLM):
        usage: Any = None

        def v1_completions(self, body: dict[str, Any]) -> Any:
            return {**super().v1_completions(body), "usage": self.usage}

    engine = Miscounting()
    with over(asyncio.run(engines.connect(engine))) as client:
        for number, engine.usage in enumerate(usages):
            assert ask(client, number).status_code == 200
