"""Several servers before the gateway, and servers that are not there when it starts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

import gateways
import motes
import worlds
from motes import api
from motes.errors import ConfigurationError, EngineError, RewardError, UnreachableError
from motes.gateway import unopened
from motes.gateway.answering import OPENERS, Unopened, open_models, watched
from motes.gateway.config import Config, parse_config
from motes.models.fleet import Fleet

CHAT = "/v1/chat/completions"
THERE, ABSENT = "http://127.0.0.1:1/v1#there", "http://127.0.0.1:2/v1#absent"


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The addresses at which nothing answers; at others there is the story model."""
    missing = {ABSENT}

    def open_lm(spec: Any, **options: Any) -> Any:
        if isinstance(spec, str) and spec.partition("?")[0] in missing:
            raise UnreachableError(f"nothing answers at {spec}")
        return worlds.language_model() if isinstance(spec, str) and spec.startswith("http") else original(spec)

    original = api.language_model
    monkeypatch.setattr("motes.gateway.answering.OPENERS", {**OPENERS, "lm": open_lm})
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
    asyncio.run(asyncio.wait_for(unopened.open_the_rest({}, lambda: None), 10))


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
        name: dataclasses.replace(served, **watched(served.settings, {"reward": Broken(error, calls)}))
        for name, served in open_models(told).items()
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
