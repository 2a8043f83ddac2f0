"""Whatever number, text or structure a server sends in the place of another one, a model returns a result or raises a
MotesError: both language models and reward models, when they are opened and when they are used."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engines
import reward_engines
from checkpoints import TAG
from engines import TGI, VLLM, LlamaCpp, Ollama, OpenAICompatible, SGLang, SGLangThatRenders, Tokenizer
from motes import Problem, Sampling, Step, Trajectory
from motes.core import Failure, Scores
from motes.errors import MotesError
from motes.gateway.metrics import KINDS
from motes.models.served import HTTPLanguageModel
from motes.models.served.wires import logprobs_of
from motes.rewards.served.model import ServedPRM
from nasty import VALUES, Nasty, nested
from prm_families import PUBLISHED
from reward_engines import LlamaCppNext, Served, SGLangNext, VLLMNext, VLLMPooling

LANGUAGE_MODELS: dict[str, tuple[type[engines.Engine], tuple[str, ...], dict[str, Any]]] = {
    "vllm": (VLLM, ("completions", "tokenize", "detokenize", "models", "version"), {}),
    "vllm, in groups": (VLLM, ("completions",), {"seeds": "group"}),
    "vllm, shared": (VLLM, ("completions",), {"seeds": "none"}),
    "llama.cpp": (LlamaCpp, ("completion", "props", "tokenize", "detokenize", "apply-template", "models"), {}),
    "llama.cpp, cut": (LlamaCpp, ("completion",), {"logprobs": True}),
    "sglang": (SGLangThatRenders, ("generate", "server_info", "tokenize", "models"), {}),
    "sglang, shared": (SGLangThatRenders, ("generate",), {"seeds": "none"}),
    "sglang, tokenizer": (SGLang, ("generate", "server_info"), {"vocabulary": Tokenizer()}),
    "tgi": (TGI, ("generate", "info", "tokenize", "chat_tokenize"), {}),
    "ollama": (Ollama, ("generate", "version", "models"), {"vocabulary": Tokenizer()}),
    "unknown": (OpenAICompatible, ("completions", "models"), {"vocabulary": Tokenizer()}),
    "chat": (OpenAICompatible, ("completions", "models"), {}),
}


class Strict(Nasty):
    """A server that refuses what the scripted one does not understand, such as tokens that it does not have."""

    async def __call__(self, request: Any) -> Any:
        try:
            return await super().__call__(request)
        except (LookupError, TypeError, ValueError, AssertionError) as error:
            return self.engine.refused(f"what is this? {error}")


def check_step(step: object) -> bool:
    """Check a step or failure. Returns whether the answer goes on."""
    assert isinstance(step, (Step, Failure))
    if isinstance(step, Failure):
        return False
    assert step.logprob is None or math.isfinite(math.exp(step.logprob))
    assert all(token >= 0 for token in step.token_ids)
    assert step.usage is None or all(count(step.usage) >= 0 for count in KINDS.values())
    return step.end == "step"


async def extend_twice(lm: HTTPLanguageModel) -> None:
    trajectory = Trajectory(Problem("What is 2+2?"))
    for seed in range(2):
        steps = await lm.extend([trajectory] * 2, Sampling(max_step_tokens=12), [seed, seed + 1])
        ended = [not check_step(step) for step in steps]
        if any(ended):
            break
        trajectory = trajectory.extend(steps[0])


@settings(max_examples=120)
@given(st.data())
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_with_a_nasty_server(name: str, data: st.DataObject):
    make, routes, options = LANGUAGE_MODELS[name]
    route, place, value = data.draw(st.sampled_from(routes)), data.draw(st.integers(0, 60)), data.draw(VALUES)
    server = Strict(make(), route, place, value, is_on=data.draw(st.booleans()))

    async def main() -> None:
        lm = await engines.connect(server, **options)  # type: ignore[arg-type]
        server.is_on = True
        await extend_twice(lm)

    with suppress(MotesError):
        asyncio.run(main())


# -------------------------------------------------------------------------------------------------------- reward models

REWARD_MODELS: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "pooling": ("qwen", lambda served: VLLMPooling(served, TAG), ("pooling", "models", "version", "detokenize")),
    "pooling, all tokens": ("qwen", VLLMPooling, ("pooling",)),
    "vllm": ("versaprm", VLLMNext, ("completions", "models")),
    "sglang": ("versaprm", SGLangNext, ("generate", "server_info")),
    "llama.cpp": ("versaprm", LlamaCppNext, ("completion", "props")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in ("qwen", "versaprm"):
        made[name] = tmp_path_factory.mktemp(name) / PUBLISHED[name].checkpoint
        made[name].mkdir()
        PUBLISHED[name].write(made[name])
    return made


def by_position(ids: tuple[int, ...]) -> list[float]:
    """Some score in [0.1, 0.9] for each token."""
    return [0.1 + 0.8 * ((token * 7919 + i) % 97) / 97 for i, token in enumerate(ids)]


async def score_two(prm: ServedPRM) -> int:
    """Score two partial answers, and check the outcomes. Returns how many have scores."""
    num_scored = 0
    root = Trajectory(Problem("How many?"))
    first = root.extend(Step("So 7+5=12 and Rosa has 12 pears.\n\n", "step"))
    second = first.extend(Step("The answer is \\boxed{12}.\n\n", "step"))
    prm.forget()
    for scores in (s for outcome in await asyncio.gather(prm.score([first]), prm.score([second])) for s in outcome):
        if isinstance(scores, Scores):
            assert all(0 <= score <= 1 for score in scores)
            assert min(scores.usage.reward_tokens, scores.usage.reward_tokens_cached) >= 0
            num_scored += 1
        else:
            assert isinstance(scores, Failure)
    return num_scored


@pytest.mark.parametrize("name", REWARD_MODELS)
def test_a_reward_model_with_a_nasty_server(name: str, folders: dict[str, Path]):
    family, make, routes = REWARD_MODELS[name]
    engine = make(Served(folders[family], family, by_position))
    tokenizer = str(folders[family])
    server = Nasty(engine, "", 0, None, is_on=False)
    prm = asyncio.run(reward_engines.connect(server, tokenizer=tokenizer))  # type: ignore[arg-type]
    outcomes = set()

    @settings(max_examples=150)
    @given(st.integers(0, 40), VALUES)
    def use(place: int, value: Any) -> None:
        server.route, server.place, server.value, server.is_on = routes[0], place, value, True
        try:
            asyncio.run(score_two(prm))
            outcomes.add("scores")
        except MotesError:
            outcomes.add("error")

    @settings(max_examples=40)
    @given(st.sampled_from(routes), st.integers(0, 40), VALUES)
    def open_model(route: str, place: int, value: Any) -> None:
        nasty = Nasty(engine, route, place, value)
        try:
            asyncio.run(reward_engines.connect(nasty, tokenizer=tokenizer))  # type: ignore[arg-type]
            outcomes.add("opened")
        except MotesError:
            outcomes.add("refused")

    use()
    open_model()
    assert outcomes >= {"scores", "opened", "refused"}


def test_log_probabilities_that_cannot_be_are_none():
    assert logprobs_of([-1, 0.001, -9999.0]) == (-1.0, 0.001, -9999.0)
    for wrong in (None, float("nan"), float("-inf"), float("inf"), 0.5, 1e308, -1e308):
        assert logprobs_of([-1.0, wrong]) == ()


# ---------------------------------------------------------------------------------------------------------------- usage

COUNTS = [
    None, "many", -1, -(10**30), 10**30, float("nan"), float("inf"), True, [], [3], {}, {"tokens": {"tokens": [1]}},
    nested(200),
]  # fmt: skip
USAGES = [
    *COUNTS,
    *(dict.fromkeys(("prompt_tokens", "completion_tokens", "prompt_tokens_details"), count) for count in COUNTS),
    *({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": count}} for count in COUNTS),
]


def with_usage(response: dict[str, Any], usage: Any) -> httpx2.Response:
    return httpx2.Response(200, content=json.dumps({**response, "usage": usage}))


def test_a_nonsensical_usage_changes_no_answer():
    class Miscounting(VLLM):
        usage: Any = None

        def v1_completions(self, body: dict[str, Any]) -> Any:
            return with_usage(super().v1_completions(body), self.usage)

    async def main() -> None:
        engine = Miscounting()
        lm = await engines.connect(engine)
        for engine.usage in USAGES:
            (step,) = await lm.extend([Trajectory(Problem("What?"))], Sampling(max_step_tokens=12), [1])
            check_step(step)
            assert isinstance(step, Step)
            texts.add(step.text)

    texts: set[str] = set()
    asyncio.run(main())
    assert len(texts) == 1


def test_a_nonsensical_count_of_cached_tokens_changes_no_score(folders: dict[str, Path]):
    class Miscounting(VLLMNext):
        usage: Any = None

        def v1_completions(self, body: dict[str, Any]) -> Any:
            return with_usage(super().v1_completions(body), self.usage)

    engine = Miscounting(Served(folders["versaprm"], "versaprm", by_position))
    prm = asyncio.run(reward_engines.connect(engine))
    for engine.usage in USAGES:
        assert asyncio.run(score_two(prm)) == 2
