"""Several servers before the gateway, and servers that are not there when it starts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import gateways
import motes
import worlds
from motes import api
from motes.errors import ConfigurationError, EngineError, RewardError, UnreachableError
from motes.gateway import unopened
from motes.gateway.answering import OPENERS, open_models, open_the_rest
from motes.gateway.config import Config, parse_config
from motes.gateway.fallback import is_of_reward_model
from motes.gateway.unopened import Unopened
from motes.gateway.wire import ChatRequest, MotesOptions
from motes.models.fleet import Fleet

CHAT = "/v1/chat/completions"
THERE, ABSENT = "http://127.0.0.1:1/v1#there", "http://127.0.0.1:2/v1#absent"


class Watched(motes.FunctionReward):
    """A reward model that keeps the observers of its requests, and the number of its calls."""

    def __init__(self) -> None:
        super().__init__(lambda problem, text: 0.5)
        self.observers: list[Any] = []
        self.calls = 0

    def watch_requests(self, observer: Any) -> None:
        self.observers.append(observer)

    async def score(self, trajectories: Any) -> Any:
        self.calls += 1
        return await super().score(trajectories)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The addresses at which nothing answers; at others there is the story model."""
    missing = {ABSENT}

    def open_lm(spec: Any, **options: Any) -> Any:
        if isinstance(spec, str) and spec.partition("?")[0] in missing:
            raise UnreachableError(f"nothing answers at {spec}")
        return worlds.language_model() if isinstance(spec, str) and spec.startswith("http") else original(spec)

    def open_reward(spec: str) -> Any:
        if spec in missing:
            raise UnreachableError(f"nothing answers at {spec}")
        return Watched() if spec.startswith("http") else api.reward_model(spec)

    original = api.language_model
    openers = {"lm": open_lm, "reward": open_reward, "outcome_reward": open_reward}
    monkeypatch.setattr("motes.gateway.answering.OPENERS", {**OPENERS, **openers})
    monkeypatch.setattr(unopened, "PAUSE", 0.01)
    return missing


def config(**lms: Any) -> Config:
    return gateways.config(models={name: {**gateways.MODEL, "lm": lm} for name, lm in lms.items()})


def ask(client: Any, model: str, **fields: Any) -> Any:
    return client.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": "2 + 2?"}], **fields})


def test_it_starts_though_a_server_of_one_model_is_absent(absent: set[str]):
    told = config(one=THERE, other=ABSENT)
    with pytest.raises(EngineError, match=r"models\.other\.lm: nothing answers"):
        open_models(told)
    models = open_models(told, needs_all=False)
    assert isinstance(models["other"].lm, Unopened)
    with gateways.gateway(told, models) as client:
        assert ask(client, "one").status_code == 200
        for model, fields in (("other", {}), ("other", {"stream": True}), ("other:4", {})):
            response = ask(client, model, **fields)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "busy")
            assert int(response.headers["retry-after"]) >= 1
        assert client.get("/ready").json()["missing"] == {"other": ["language model"]}
        assert "absent" not in response.text
        absent.clear()
        while ask(client, "other").status_code != 200:
            pass
        assert client.get("/v1/models").status_code == 200


def test_it_does_not_start_without_any_complete_model_or_with_a_fault(absent: set[str]):
    with pytest.raises(EngineError, match="nothing answers"):
        open_models(config(one=ABSENT, other=ABSENT), needs_all=False)
    faulty = gateways.config(models={"one": {**gateways.MODEL, "lm": "nowhere:model"}, "other": gateways.MODEL})
    with pytest.raises(ConfigurationError):
        open_models(faulty, needs_all=False)


def test_a_list_is_a_fleet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "motes.models.served.HTTPLanguageModel.open", lambda path, **connection: worlds.language_model()
    )
    told = config(story=[THERE, ABSENT])
    models = open_models(told)
    assert isinstance(models["story"].lm, Fleet)
    with gateways.gateway(told, models) as client:
        assert ask(client, "story").status_code == 200


@pytest.mark.parametrize(
    ("lm", "complaint"),
    [([], "at least 1"), (["tiny", THERE], "a list names servers"), ([3], "string"), ([" "], "blank")],
)
def test_lists_that_cannot_work(lm: Any, complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        parse_config(Config, {"models": {"story": {**gateways.MODEL, "lm": lm}}}, "motes.toml")


def test_opening_again_ends_when_all_are_there():
    asyncio.run(asyncio.wait_for(open_the_rest({}, lambda: None), 10))


REWARD = "http://127.0.0.1:3#prm"


def rewarded(**changes: Any) -> Config:
    return gateways.config(models={"story": {**gateways.MODEL, "reward": REWARD, **changes}})


@contextlib.contextmanager
def late(told: Config) -> Iterator[Any]:
    """A gateway that starts though servers are absent."""
    with gateways.gateway(told, open_models(told, needs_all=False)) as client:
        yield client


@pytest.mark.parametrize(("choice", "particles"), [("majority", 8), ("sample", 1)])
@pytest.mark.parametrize("role", ["reward model", "outcome reward"])
def test_a_reward_model_that_is_late_is_done_without_and_used_later(
    role: str, choice: str, particles: int, absent: set[str]
):
    """Even if no other virtual model is complete."""
    absent.add(REWARD)
    field, method = ("reward", "pf:ess_threshold=1") if role == "reward model" else ("outcome_reward", "bon")
    rewards = {"reward": "worlds:reward_model", field: REWARD}
    told = rewarded(**rewards, without_reward=choice, method=method)
    with late(told) as client:
        for model in ("story", "story:8"):
            response = ask(client, model, seed=1)
            body = response.json()
            assert (response.status_code, response.headers["x-motes-fallback"]) == (200, "no reward model")
            assert (body["motes"]["method"], body["motes"]["particles"]) == ("majority", particles)
        assert '"fallback":true' in ask(client, "story", stream=True).text
        assert client.get("/ready").json() == {"status": "ready", "missing": {}}, "it answers without"
        registry = client.gateway.metrics.registry
        assert registry.get_sample_value("motes_fallbacks_total", {"model": "story"}) == 3
        absent.clear()
        while "x-motes-fallback" in (response := ask(client, "story")).headers:
            pass
        assert (response.status_code, response.json()["motes"]["fallback"]) == (200, False)
        assert response.json()["motes"]["method"] == method
        reward = getattr(client.gateway.models["story"], field)
        assert reward.calls
        (observe,) = reward.observers
        observe("ok", 0.5)
        labels = {"model": "story", "role": role, "outcome": "ok"}
        assert registry.get_sample_value("motes_upstream_attempts_total", labels) == 1


class Counting(worlds.StoryLanguageModel):
    """Counts its steps."""

    steps = 0

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
        self.steps += len(trajectories)
        return await super().extend(trajectories, sampling, seeds)


def test_a_fallback_for_a_missing_model_costs_no_more_than_its_own_run(absent: set[str]):
    absent.add(REWARD)
    told, lm = rewarded(without_reward="majority", method="bon"), Counting()
    models = {name: dataclasses.replace(served, lm=lm) for name, served in open_models(told, needs_all=False).items()}
    with gateways.gateway(told, models) as client:
        assert ask(client, "story", seed=1).json()["motes"]["fallback"] is True
        steps, lm.steps = lm.steps, 0
        plain = ask(client, "story", seed=1, motes={"method": "majority"})
        assert plain.json()["motes"]["fallback"] is False
        assert "x-motes-fallback" not in plain.headers
        assert lm.steps == steps


def test_a_vote_needs_no_reward_model(absent: set[str]):
    absent.add(REWARD)
    told = rewarded(without_reward="sample", outcome_reward=REWARD, methods=["majority"])
    with late(told) as client:
        for fields in ({}, {"stream": True}):
            assert '"fallback":false' in ask(client, "story", motes={"method": "majority"}, **fields).text
            assert '"fallback":true' in ask(client, "story", **fields).text


def test_a_method_without_a_reward_model_falls_back_from_its_outcome_reward(absent: set[str]):
    absent.add(REWARD)
    told = rewarded(without_reward="majority", reward=None, outcome_reward=REWARD, method="majority", methods=[])
    (served,) = open_models(told, needs_all=False).values()
    body = {"model": "story", "messages": [{"role": "user", "content": "2 + 2?"}]}
    parsed = served.parse(ChatRequest.model_validate(body), MotesOptions(), strict=False)
    power = dataclasses.replace(parsed, method=motes.PowerFilter(8))
    with pytest.raises(EngineError, match="not open yet") as caught:
        asyncio.run(power.run())
    assert is_of_reward_model(caught.value)
    other = power.without_reward(0.0)
    assert other is not None
    assert asyncio.run(other.run()).texts()
    assert other.without_reward(0.0) is None


def test_without_a_fallback_a_late_reward_model_is_an_error_until_it_is_there(absent: set[str]):
    absent.add(REWARD)
    models = {"story": {**gateways.MODEL, "reward": REWARD}, "other": gateways.MODEL}
    with late(gateways.config(models=models)) as client:
        for fields in ({}, {"stream": True}):
            response = ask(client, "story", **fields)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "busy")
        absent.clear()
        while ask(client, "story").status_code != 200:
            pass
        assert client.gateway.models["story"].reward.calls


def test_a_fallback_needs_a_language_model(absent: set[str]):
    absent.add(REWARD)
    told = rewarded(without_reward="majority", lm=ABSENT)
    with pytest.raises(EngineError, match="nothing answers"):
        open_models(told, needs_all=False)
    models = {"story": told.models["story"].model_dump(exclude_unset=True), "other": gateways.MODEL}
    with late(gateways.config(models=models)) as client:
        assert ask(client, "story").status_code == 503
        absent.discard(ABSENT)
        while (response := ask(client, "story")).status_code != 200:
            pass
        assert response.json()["motes"]["fallback"] is True, "the models are opened one by one"


def test_a_reward_model_that_is_shared_counts_for_the_first_and_is_checked_once(absent: set[str]):
    told = gateways.config(
        models={name: {**gateways.MODEL, "reward": REWARD, "without_reward": "majority"} for name in "ab"}
    )
    models = open_models(told)
    with gateways.gateway(told, models) as client:
        assert models["a"].reward is models["b"].reward
        assert len(models["a"].reward.observers) == 1
        assert ask(client, "b").status_code == 200


def test_a_model_is_opened_though_another_one_never_is(monkeypatch: pytest.MonkeyPatch, caplog: Any):
    """One attempt hangs, another one fails for a reason of the user's code; the log has each reason once."""
    monkeypatch.setattr(unopened, "PAUSE", 0.0)
    hangs, reasons = threading.Event(), [UnreachableError("down"), ZeroDivisionError(), ZeroDivisionError()]

    def hang() -> None:
        hangs.wait()

    def open() -> str:
        if reasons:
            raise reasons.pop(0)
        return "the model"

    async def test() -> None:
        (served,) = open_models(gateways.config()).values()
        one, other = (Unopened(work, name, UnreachableError("down")) for work, name in ((hang, "one"), (open, "other")))
        models = {"story": dataclasses.replace(served, reward=one, outcome_reward=other)}
        opened = asyncio.Event()
        opening = asyncio.create_task(open_the_rest(models, opened.set))
        await asyncio.wait_for(opened.wait(), 60)
        assert (models["story"].reward, models["story"].outcome_reward) == (one, "the model")
        hangs.set()
        await opening
        assert not models["story"].missing
        assert caplog.messages == ["other cannot be opened: ZeroDivisionError", "other is open", "one is open"]

    with caplog.at_level("INFO", "motes"):
        asyncio.run(test())


def test_errors_of_a_missing_model_do_not_pile_up():
    """One that is raised again and again would keep the frames of all requests."""
    model = Unopened(lambda: None, "models.story.reward", UnreachableError("down"))
    first, second = model.absence(), model.absence()
    assert first is not second
    for _ in range(3):
        with pytest.raises(EngineError, match=r"models\.story\.reward is not open yet"):
            asyncio.run(model.ready())
    assert model.error.__traceback__ is None


class Broken(motes.FunctionReward):
    """A reward model that fails after so many calls."""

    def __init__(self, error: Exception, calls: int = 0) -> None:
        super().__init__(lambda problem, text: 0.5)
        self.error, self.calls = error, calls

    async def score(self, trajectories: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        return await super().score(trajectories)


@contextlib.contextmanager
def broken(without_reward: str, error: Exception, calls: int = 0, **settings: Any) -> Iterator[Any]:
    model = {**gateways.MODEL, "without_reward": without_reward, **settings}
    told = gateways.config(models={"story": model})
    models = {
        name: dataclasses.replace(served, reward=Broken(error, calls)) for name, served in open_models(told).items()
    }
    with gateways.gateway(told, models) as client:
        yield client


@pytest.mark.parametrize("error", [RewardError("down"), UnreachableError("http://10.0.0.1 is down")])
@pytest.mark.parametrize(("choice", "particles"), [("majority", 8), ("sample", 1)])
def test_without_its_reward_model_it_answers_if_it_may(choice: str, particles: int, error: Exception):
    with broken(choice, error) as client:
        response = ask(client, "story")
        body = response.json()
        assert (response.status_code, response.headers["x-motes-fallback"]) == (200, "no reward model")
        chosen = (body["motes"]["method"], body["motes"]["particles"], body["motes"]["fallback"])
        assert chosen == ("majority", particles, True)
        assert body["usage"]["completion_tokens"]
        text = ask(client, "story", stream=True).text
        assert '"fallback":true' in text
        assert text.endswith("data: [DONE]\n\n")
        registry = client.gateway.metrics.registry
        assert registry.get_sample_value("motes_fallbacks_total", {"model": "story"}) == 2
        plain = ask(client, "story", motes={"method": "majority"})
        assert plain.json()["motes"]["fallback"] is False
        assert "x-motes-fallback" not in plain.headers


class Refusing(Watched):
    """A reward model that can score no answer."""

    async def score(self, trajectories: Any) -> Any:
        return [motes.core.Failure(RewardError("refused")) for _ in trajectories]


def test_it_answers_without_a_reward_model_that_refuses_each_answer():
    with broken("majority", RewardError("unused")) as client:
        served = client.gateway.models["story"]
        client.gateway.models["story"] = dataclasses.replace(served, reward=Refusing())
        assert ask(client, "story").json()["motes"]["fallback"] is True


def test_otherwise_it_is_an_error():
    with broken("error", RewardError("down")) as client:
        response = ask(client, "story")
        assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream")


def test_an_error_of_the_language_model_is_one():
    with broken("majority", RewardError("down")) as client:
        served = client.gateway.models["story"]
        client.gateway.models["story"] = dataclasses.replace(served, lm=Failing())
        assert ask(client, "story").status_code == 502


class Failing(worlds.StoryLanguageModel):
    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
        raise EngineError("the language model is down")


def test_a_stream_that_has_begun_ends_with_the_error():
    """What was sent may not be in the other answer."""
    with broken("majority", RewardError("down"), calls=1, particles=1, methods=[]) as client:
        text = ask(client, "story", stream=True, seed=3).text
        assert '"code":"upstream"' in text
        assert '"fallback":true' not in text
    with broken("majority", RewardError("down"), calls=1, particles=1, methods=[]) as client:
        assert ask(client, "story", seed=3).json()["motes"]["fallback"] is True
