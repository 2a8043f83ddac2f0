"""Reward models behind HTTP, against scripted servers over checkpoints of every family (reward_engines.py): scores are
those of the local reward model; what is asked for, what becomes of faults, how one is opened."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

import ggufs
import motes
from checkpoints import TAG
from engines import VLLM, Engine, LlamaCpp, Ollama, on_a_socket
from failures import unwrapped
from motes import ParticleFilter, Problem, Sampling, Step, Trajectory
from motes.cli import main as command_line
from motes.conformance import acheck_reward_model
from motes.core import Scores, Usage
from motes.errors import (
    BadResponseError,
    ConfigurationError,
    ContextLengthError,
    MotesError,
    RejectedError,
    ServerError,
    UnauthorizedError,
    UnknownNameError,
    UnreachableError,
)
from motes.rewards import reading
from motes.rewards.families import FAMILIES
from motes.rewards.prm import LocalPRM
from motes.rewards.served import model, routes
from motes.rewards.served.model import ServedPRM
from motes.vocabulary import Vocabulary
from mutations import mutate
from prm_families import PUBLISHED, mistral
from reward_engines import LlamaCppNext, OfRewards, OldVLLM, Served, SGLangNext, VLLMNext, VLLMPooling, connect

QUESTION = "Ben owns 7 pears. Rosa has 5 more pears than Ben. How many pears does Rosa have?"
STEPS = ("So 7+5=12 and Rosa has 12 pears.", "Rosa has 12 pears.\nThe answer is 12 - 7?", "The answer is \\boxed{12}.")
NEXT = {"vllm": VLLMNext, "sglang": SGLangNext, "llama.cpp": LlamaCppNext}
NEXT_FAMILIES = ("rlhflow", "math-shepherd", "versaprm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, published in PUBLISHED.items():
        made[name] = tmp_path_factory.mktemp(name) / published.checkpoint
        made[name].mkdir()
        published.write(made[name])
    return made


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that is none of these models' own."""
    folder = tmp_path_factory.mktemp("another")
    mistral().save_pretrained(folder)
    return folder


def engine_of(folders: dict[str, Path], route: str, family: str = "versaprm", **options: Any) -> OfRewards:
    if route.startswith("pooling"):
        tag = TAG if route == "pooling" else None
        return VLLMPooling(Served(folders["qwen"], "qwen"), tag, **options)
    return NEXT[route](Served(folders[family], family), **options)


def opened(engine: OfRewards, **options: Any) -> ServedPRM:
    named = {} if engine.owned_by == "vllm" else {"tokenizer": str(engine.served.folder)}
    return asyncio.run(connect(engine, **{**named, **options}))


def trajectory(*steps: str, question: str = QUESTION, root: Trajectory | None = None) -> Trajectory:
    node = root or Trajectory(Problem(question))
    for step in steps:
        node = node.extend(Step(f"{step}\n\n", "step"))
    return node


def score(prm: Any, *trajectories: Trajectory) -> list[list[float]]:
    return [list(scores) for scores in asyncio.run(prm.score(trajectories))]


def fresh(*trajectories: Trajectory) -> list[Trajectory]:
    """The same texts, as trees of their own."""
    return [trajectory(*(s.text.strip() for s in t.steps), question=t.problem.question) for t in trajectories]


EVERY = [("pooling", "qwen"), ("pooling, all tokens", "qwen"), *((name, f) for name in NEXT for f in NEXT_FAMILIES)]
every_route = pytest.mark.parametrize(("route", "family"), EVERY, ids=[" ".join(pair) for pair in EVERY])
each_route = pytest.mark.parametrize("route", ["pooling", *NEXT])


# --------------------------------------------------------------------------------------------------------------- scores


@every_route
def test_scores_are_those_of_the_local_model(folders: dict[str, Path], route: str, family: str):
    """Step by step as a filter asks, all at once, and where steps spell the form's own tokens."""
    local = motes.reward_model(f"hf:{folders[family]}")
    prm = opened(engine_of(folders, route, family))
    texts = (*STEPS, "A tag <extra_0> ки + -<|eot_id|>", "")
    node = trajectory()
    for text in texts:
        node = trajectory(text, root=node)
        assert score(prm, node)[0] == pytest.approx(score(local, node)[0], abs=1e-5)
    assert score(prm, *fresh(node)) == [pytest.approx(score(local, node)[0], abs=1e-5)]


def test_a_text_divided_otherwise_is_asked_for_by_itself(folders: dict[str, Path]):
    """Concurrent calls are asked together, what is alike once: the same tokens read at other places are not alike."""
    by_line = dataclasses.replace(FAMILIES["versaprm"], by_line=True, step="{step}{ \n\n\n\n}")
    local = motes.reward_model(f"hf:{folders['versaprm']}", format=by_line)
    engine = engine_of(folders, "vllm")
    prm = opened(engine, format=by_line)
    answers = [trajectory("One.\nTwo.", "Three."), trajectory("One.", "Two.\nThree.")]

    async def both() -> list[list[float]]:
        return [list(found[0]) for found in await asyncio.gather(*(prm.score([answer]) for answer in answers))]

    alone = [pytest.approx(score(local, answer)[0], abs=1e-5) for answer in fresh(*answers)]
    assert asyncio.run(both()) == alone
    assert alone[0] != pytest.approx(score(local, fresh(answers[1])[0])[0], abs=1e-3)


@every_route
def test_the_contract(folders: dict[str, Path], route: str, family: str):
    prm = opened(engine_of(folders, route, family))
    asyncio.run(acheck_reward_model(prm))


@each_route
def test_a_whole_prefix_is_one_step(folders: dict[str, Path], route: str):
    engine = engine_of(folders, route)
    local = motes.reward_model(f"hf:{engine.served.folder}", prefix="whole")
    prm = opened(engine, prefix="whole")
    assert score(prm, trajectory(*STEPS)) == [pytest.approx(score(local, trajectory(*STEPS))[0], abs=1e-5)]
    assert isinstance(local, LocalPRM)
    with pytest.raises(UnknownNameError, match="known are steps, whole"):
        opened(engine, prefix="hole")


def test_probabilities_that_are_all_but_none(folders: dict[str, Path]):
    """Neither token is among the first, and one of them is as good as impossible."""
    for p in (0.0, 1e-20, 0.5, 1.0):
        for route in NEXT:
            served = Served(folders["versaprm"], "versaprm", score=lambda ids, p=p: [p] * len(ids))
            named = {} if route == "vllm" else {"tokenizer": str(served.folder)}
            prm = asyncio.run(connect(NEXT[route](served), format="versaprm", self_test=False, **named))
            assert score(prm, trajectory("A step."))[0] == [pytest.approx(p, abs=1e-9)]


# -------------------------------------------------------------------------------------------------------- what is asked


def test_texts_are_sent_as_the_local_models_tokens(folders: dict[str, Path]):
    engine = engine_of(folders, "pooling")
    prm = opened(engine)
    node = trajectory(*STEPS[:2])
    score(prm, node)
    ids = [*prm.format.prompt(node.problem), *prm.format.step(STEPS[0], 1), *prm.format.step(STEPS[1], 2)]
    assert [body["input"] for body in engine.asked] == [[ids]]
    assert engine.asked[0]["model"] == "tiny"


@each_route
def test_only_new_steps_cost_requests(folders: dict[str, Path], route: str):
    engine = engine_of(folders, route)
    prm = opened(engine)
    node = trajectory()
    for n, text in enumerate(STEPS, start=1):
        node = trajectory(text, root=node)
        score(prm, node)
        score(prm, node, node.parent, node)
        assert len(engine.asked) == n, "a request for each step, and none for what is known"


def test_the_prefix_of_each_step_is_read_before_it(folders: dict[str, Path]):
    """So that the cache holds it."""
    for route in NEXT:
        engine = engine_of(folders, route)
        score(opened(engine), trajectory(*STEPS))
        prompts = [body.get("input_ids") or body["prompt"] for body in engine.asked]
        first, second, third = [prompt[0] if route == "vllm" else prompt for prompt in prompts]
        assert second[: len(first)] == first
        assert third[: len(second)] == second


@pytest.mark.parametrize("route", ["pooling", "vllm"])
def test_concurrent_calls_share_requests_and_what_is_alike_is_asked_once(folders: dict[str, Path], route: str):
    engine = engine_of(folders, route)
    prm = opened(engine)
    first = [trajectory(f"Rosa has {i % 70} pears.") for i in range(140)]
    deep = trajectory(*STEPS)

    async def main() -> list[Any]:
        return await asyncio.gather(*(prm.score([t]) for t in first), prm.score([deep, *fresh(deep)]))

    *shallow, pair = asyncio.run(main())
    sizes = sorted(len(body.get("input") or body["prompt"]) for body in engine.asked)
    assert sizes == ([7, 64] if route == "pooling" else [1, 1, 1, 6, 64]), "steps of a long one wait for nobody"
    assert [list(s[0]) for s in shallow] == score(opened(engine_of(folders, route)), *fresh(*first))
    local = motes.reward_model(f"hf:{engine.served.folder}")
    assert [s[0][0] for s in shallow[:5]] == [pytest.approx(s[0], abs=1e-5) for s in score(local, *first[:5])]
    assert list(pair[0]) == list(pair[1])
    assert [s[0].usage.reward_tokens > 0 for s in shallow] == [True] * 70 + [False] * 70, "who asks first pays"


@each_route
def test_what_was_scored_is_forgotten_with_the_trajectory(folders: dict[str, Path], route: str):
    prm = opened(engine_of(folders, route))
    node = trajectory(*STEPS)
    score(prm, node)
    assert len(prm._reader._scores) == 3
    del node
    gc.collect()
    assert len(prm._reader._scores) == 0


def test_usage_is_what_the_server_tells(folders: dict[str, Path]):
    def spent(route: str, **attributes: Any) -> tuple[Usage, int, int]:
        engine = engine_of(folders, route)
        vars(engine).update(attributes)
        prm = opened(engine)
        node = trajectory(*STEPS[:2])
        (scores,) = asyncio.run(prm.score([node]))
        assert isinstance(scores, Scores)
        prompt = len(prm.format.prompt(node.problem)) + len(prm.format.step(STEPS[0], 1))
        return scores.usage, prompt, prompt + len(prm.format.step(STEPS[1], 2))

    usage, _, whole = spent("pooling")
    assert usage == Usage(reward_tokens=whole)
    for route, cached in (("vllm", 5), ("sglang", 5), ("llama.cpp", 4)):
        usage, first, whole = spent(route)
        assert usage == Usage(reward_tokens=first + whole - 2 * cached, reward_tokens_cached=2 * cached)
    usage, first, whole = spent("vllm", cached=None)
    assert usage == Usage(reward_tokens=first + whole), "where it tells nothing all counts as computed"


def test_a_run_over_a_served_reward_model_is_that_over_the_local_one(folders: dict[str, Path]):
    results = []
    for reward in (motes.reward_model(f"hf:{folders['qwen']}"), opened(engine_of(folders, "pooling"))):
        sampling = Sampling(max_steps=4)
        results.append(
            motes.solve(QUESTION, lm="tiny", reward=reward, method=ParticleFilter(8), sampling=sampling, seed=1)
        )
    assert results[0].text == results[1].text
    assert results[0].log_evidence == pytest.approx(results[1].log_evidence, abs=1e-4)
    assert results[0].usage.reward_calls == results[1].usage.reward_calls


# --------------------------------------------------------------------------------------------------------------- faults


def broken_off() -> httpx2.Response:
    async def body() -> Any:
        yield b'{"data": [{"ind'
        raise httpx2.ReadError("peer closed")

    return httpx2.Response(200, content=body())


def raising(error: Exception) -> Callable[[], httpx2.Response]:
    def answer() -> httpx2.Response:
        raise error

    return answer


FAULTS: dict[str, tuple[Callable[[], httpx2.Response], type[MotesError]]] = {
    "429": (lambda: httpx2.Response(429, headers={"Retry-After": "1"}), ServerError),
    "500": (lambda: httpx2.Response(500, text="out of memory"), ServerError),
    "503": (lambda: httpx2.Response(503), ServerError),
    "timeout": (raising(httpx2.ReadTimeout("slow")), UnreachableError),
    "dropped": (raising(httpx2.RemoteProtocolError("server disconnected")), UnreachableError),
    "dead": (raising(httpx2.ConnectError("refused")), UnreachableError),
    "truncated": (lambda: httpx2.Response(200, content=b'{"data": [{"index"'), BadResponseError),
    "broken off": (broken_off, UnreachableError),
    "HTML": (lambda: httpx2.Response(200, text="<html>"), BadResponseError),
}


@each_route
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_another_attempt(folders: dict[str, Path], route: str, fault: str):
    """Also of a server that dies and returns."""
    engine = engine_of(folders, route)
    prm = opened(engine)
    expected = score(prm, trajectory(STEPS[0]))
    prm.forget()
    faults = iter((FAULTS[fault][0],) * 2)
    engine.fails = lambda path, body: next(faults, lambda: None)()
    assert score(prm, trajectory(STEPS[0])) == expected
    assert next(faults, None) is None


@each_route
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_fails_its_trajectory_alone(folders: dict[str, Path], route: str, fault: str):
    """The scores of others are kept, and what is not scored is asked for again next time."""
    engine = engine_of(folders, route)
    prm = opened(engine)
    answer, error = FAULTS[fault]
    well, ill = trajectory(STEPS[0]), trajectory(*STEPS[1:])
    mark = prm.format.step(STEPS[1], 1)

    def fails(path: str, body: dict[str, Any]) -> httpx2.Response | None:
        return answer() if any(str(mark)[1:-1] in str(ids) for ids in body.values()) else None

    async def main() -> list[Any]:
        return await asyncio.gather(prm.score([well]), prm.score([ill]))

    engine.fails = fails
    if route == "pooling":  # where both would travel in one request
        assert len(score(prm, well)[0]) == 1
    _, (failed,) = map(unwrapped, asyncio.run(main()))
    assert isinstance(failed, error)
    kept, why = unwrapped(asyncio.run(prm.score([well, ill])))
    assert len(kept) == 1
    assert isinstance(why, error)
    engine.fails = lambda path, body: None
    assert [len(scores) for scores in score(prm, well, ill)] == [1, 2]


WRONG: dict[str, tuple[Callable[[], httpx2.Response], type[MotesError], int]] = {
    "refused": (lambda: httpx2.Response(400, text="ill"), RejectedError, 1 + 3),
    "500": (lambda: httpx2.Response(500), ServerError, 3 + 2 + 3),
    "another form": (lambda: httpx2.Response(200, json={}), BadResponseError, 2 + 2 + 2 * 1),
    "429": (lambda: httpx2.Response(429), ServerError, 3),
}


@pytest.mark.parametrize("route", ["pooling", "vllm"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_one_text_does_not_take_others_with_it(folders: dict[str, Path], route: str, wrong: str):
    """But what is wrong with the server is not asked for once more for each of them."""
    engine = engine_of(folders, route)
    prm = opened(engine)
    answer, error, requests = WRONG[wrong]
    mark = str(prm.format.step(STEPS[1], 1))[1:-1]
    engine.fails = lambda path, body: answer() if mark in str(body) else None
    outcomes = unwrapped(asyncio.run(prm.score([trajectory(step) for step in STEPS])))
    failed = [isinstance(outcome, error) for outcome in outcomes]
    assert failed == ([True] * 3 if wrong == "429" else [False, True, False])
    assert len(engine.asked) == requests


@pytest.mark.parametrize("route", ["pooling", "vllm"])
def test_a_context_that_is_not_told_is_found_out(folders: dict[str, Path], route: str):
    engine = engine_of(folders, route)
    prm = opened(engine)
    prm._reader.context_length = None
    fits, over = unwrapped(asyncio.run(prm.score([trajectory(STEPS[0]), trajectory("So Rosa has 12 pears. " * 200)])))
    assert len(fits) == 1
    assert isinstance(over, ContextLengthError)
    assert "maximum context length is 512 tokens" in str(over)


@each_route
def test_what_does_not_fit_the_context_is_not_asked(folders: dict[str, Path], route: str):
    """Of which a drawn token takes one."""
    engine = engine_of(folders, route)
    prm = opened(engine)
    room = engine.context - (0 if route == "pooling" else 1)
    assert prm.context_length == room
    words = next(n for n in range(1, 999) if len(prm._reader.texts(Problem(QUESTION), ["so " * n])[0].ids) > room)
    fits, over = (trajectory("so " * n) for n in (words - 1, words))
    scores, why = unwrapped(asyncio.run(prm.score([fits, over])))
    assert len(scores) == 1
    assert isinstance(why, ContextLengthError)
    assert len(engine.asked) == 1
    with pytest.raises(ContextLengthError, match="has a context of"):
        score(prm, trajectory(STEPS[0], question=QUESTION * 40))


PROBABILITIES = {"data": [{"index": 0, "data": [[0.5, 0.5]]}]}
SCHEMAS: dict[str, list[Any]] = {
    "pooling": [
        {},
        [],
        None,
        {"data": []},
        {"data": [{"index": 0, "data": []}]},
        {"data": [{"index": 0, "data": [[0.5, 0.5]] * 3}]},
        {"data": [{"index": 0, "data": [0.5]}]},
        {"data": [{"index": 0, "data": [[0.5]]}]},
        {"data": [{"index": 0, "data": [[-2.0, 3.0]]}]},
        {"data": [{"index": 0, "data": [[0.9, 0.9]]}]},
        {"data": [{"index": 0, "data": [["a", "b"]]}]},
        {"data": [{"index": 0, "data": "AAAA"}]},
        {"data": PROBABILITIES["data"] * 2},
    ],
    "vllm": [
        {},
        [],
        {"choices": []},
        {"choices": [{"index": 0, "logprobs": None}]},
        {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"+": -1.0, "-": -2.0}]}}]},
        {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": -1.0}]}}]},
    ],
    "sglang": [
        {},
        {"meta_info": {}},
        {"meta_info": {"output_token_ids_logprobs": []}},
        {"meta_info": {"output_token_ids_logprobs": [[[-1.0, 1, None]]]}},
        [{"meta_info": {"output_token_ids_logprobs": [[]]}}],
    ],
    "llama.cpp": [
        {},
        {"completion_probabilities": []},
        {"completion_probabilities": [{"top_logprobs": []}]},
        {"completion_probabilities": [{"top_probs": [{"id": 1, "prob": 1.0}]}]},
    ],
}


@pytest.mark.parametrize(
    ("route", "answer"), [(route, answer) for route, answers in SCHEMAS.items() for answer in answers], ids=str
)
def test_an_answer_of_another_form(folders: dict[str, Path], route: str, answer: Any):
    engine = engine_of(folders, route)
    prm = opened(engine)
    engine.fails = lambda path, body: httpx2.Response(200, json=answer)
    (why,) = unwrapped(asyncio.run(prm.score([trajectory(STEPS[0])])))
    assert isinstance(why, BadResponseError)
    assert prm.route.url in str(why)


@pytest.mark.parametrize("route", SCHEMAS)
def test_an_answer_of_another_form_is_asked_for_once_more(folders: dict[str, Path], route: str):
    engine = engine_of(folders, route)
    prm = opened(engine)
    others = [httpx2.Response(200, json={})]
    engine.fails = lambda path, body: others.pop() if others else None
    (scores,) = asyncio.run(prm.score([trajectory(STEPS[0])]))
    assert [len(scores), others] == [1, []]


def test_numbers_that_are_none(folders: dict[str, Path]):
    engine = engine_of(folders, "vllm")
    prm = opened(engine)
    engine.served.score = lambda ids: [0.5] * len(ids)
    engine.served.logprobs = lambda ids: (float("-inf"), float("-inf"))  # type: ignore[method-assign]
    engine.fails = lambda path, body: httpx2.Response(
        200,
        content=b'{"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:%d": -Infinity, "token_id:%d": '
        b"-Infinity}]}}]}" % prm.format.words,
    )
    (why,) = unwrapped(asyncio.run(prm.score([trajectory(STEPS[0])])))
    assert "form that is not its own" in str(why)


def test_a_key_that_is_not_accepted_any_more_ends_the_run(folders: dict[str, Path]):
    engine = engine_of(folders, "pooling")
    prm = opened(engine)
    engine.fails = lambda path, body: httpx2.Response(401)
    with pytest.raises(UnauthorizedError, match="put a key into MOTES_API_KEY"):
        score(prm, trajectory(STEPS[0]))


def ill(ids: list[int]) -> bool:
    return sum(ids) % 3 == 1


def test_particles_that_cannot_be_scored_are_dropped(folders: dict[str, Path]):
    engine = engine_of(folders, "pooling")
    prm = opened(engine)
    # By what is asked, not by the order: whatever travels with an ill text is asked again without it.
    engine.fails = lambda path, body: httpx2.Response(400, text="ill") if any(map(ill, body["input"])) else None
    result = motes.solve(
        QUESTION, lm="tiny", reward=prm, method=ParticleFilter(8), sampling=Sampling(max_steps=4), seed=1
    )
    assert 0 < len(result.dropped) < 8
    assert {type(t.error).__name__ for t in result.dropped} == {"RejectedError"}


def test_a_cancelled_call_withdraws_its_requests(folders: dict[str, Path]):
    prm = opened(engine_of(folders, "pooling"))

    async def main() -> None:
        hangs = asyncio.Event()

        async def never(request: httpx2.Request) -> httpx2.Response:
            hangs.set()
            await asyncio.Event().wait()
            raise AssertionError

        prm.client._transport.handler = never
        call = asyncio.ensure_future(prm.score([trajectory(STEPS[0])]))
        await hangs.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while prm._batcher._running:
            await asyncio.sleep(0)

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- opening


def test_a_server_that_was_started_for_something_else(folders: dict[str, Path]):
    generates = VLLMNext(Served(folders["qwen"], "qwen"))
    with pytest.raises(ConfigurationError, match=r"start the server as `vllm serve MODEL --runner pooling`.* 404"):
        opened(generates)
    pools = VLLMPooling(Served(folders["versaprm"], "versaprm"))
    with pytest.raises(
        ConfigurationError, match=r"no scores of the family versaprm: start the server as `vllm serve M"
    ):
        opened(pools)


def test_a_server_that_gives_scores_at_another_tag_says_how_it_is_started(folders: dict[str, Path]):
    """As vLLM does for tokenizers whose tag is not that of Qwen's own."""
    with pytest.raises(
        BadResponseError, match=rf"gave 0 rows .* 1 tags: .* --pooler-config '.\"step_tag_id\": {TAG}.'"
    ):
        opened(VLLMPooling(Served(folders["qwen"], "qwen"), 151651))


def test_a_vllm_that_does_not_tell_chosen_tokens(folders: dict[str, Path]):
    with pytest.raises(BadResponseError, match=r"\(logprob_token_ids\): use a newer vLLM"):
        opened(OldVLLM(Served(folders["versaprm"], "versaprm")))


@each_route
def test_scores_that_do_not_vary_are_refused(folders: dict[str, Path], route: str):
    engine = engine_of(folders, route)
    engine.served.score = lambda ids: [0.50003] * len(ids)
    with pytest.raises(ConfigurationError, match=r"'tiny' scores everything 0\.50003, .*self_test=0 opens it"):
        opened(engine)
    assert score(opened(engine, self_test=False), trajectory(STEPS[0])) == [[pytest.approx(0.50003)]]


def test_the_family_is_found_or_asked_for(folders: dict[str, Path], tmp_path: Path):
    assert opened(engine_of(folders, "pooling")).format.family.name == "qwen", "by its architecture"
    assert opened(engine_of(folders, "vllm", "rlhflow")).format.family.name == "rlhflow", "by its name"
    mine = tmp_path / "mine"
    mine.mkdir()
    PUBLISHED["versaprm"].write(mine)
    engine = VLLMNext(Served(mine, "versaprm"))
    with pytest.raises(ConfigurationError, match=r"no reward model.*'tiny'.* '…#tiny\?format=NAME'; known are qwen"):
        opened(engine)
    assert opened(engine, format="versaprm").format.family.name == "versaprm"
    with pytest.raises(UnknownNameError, match="did you mean 'versaprm'"):
        opened(engine, format="versaprn")


@pytest.mark.parametrize("kind", [VLLM, LlamaCpp, Ollama])
def test_a_language_model_is_said_to_be_no_reward_model(kind: type[Engine], monkeypatch: pytest.MonkeyPatch):
    """Before anything is loaded by the name that the server states: the hub would be asked for it, in vain."""

    def refuse(path: str) -> None:
        raise AssertionError(f"{path} was asked for")

    monkeypatch.setattr(model, "checkpoint_config", refuse)
    monkeypatch.setattr(model.Vocabulary, "load", refuse)
    engine = kind()
    entry = {**engine.v1_models({})["data"][0], "root": "Qwen/Qwen2.5-Math-1.5B-Instruct"}
    engine.v1_models = lambda body: {"data": [entry]}  # type: ignore[method-assign]
    with on_a_socket(engine) as url:
        with pytest.raises(ConfigurationError, match=rf"'{url}' is no reward model.* generate text.*\?format=NAME"):
            motes.reward_model(url)
        if kind is VLLM:
            with pytest.raises(ConfigurationError, match=rf"'{url}' is served as no reward model: start the server as"):
                motes.reward_model(url, format="qwen")


@pytest.mark.parametrize("family", ["skywork", "qwen"])
def test_what_servers_cannot_score_is_refused(folders: dict[str, Path], family: str):
    engine = SGLangNext(Served(folders[family], family))
    able = {"skywork": "use hf:PATH_OR_NAME, on this machine", "qwen": "use vllm"}[family]
    with pytest.raises(ConfigurationError, match=f"no way is known to have sglang score .* {family}: {able}"):
        opened(engine)
    with pytest.raises(ConfigurationError, match="no way is known to have ollama score"):
        asyncio.run(connect(Ollama(), format="versaprm", tokenizer=str(folders["versaprm"])))


def test_the_gguf_file_that_llama_cpp_has_loaded(folders: dict[str, Path], tmp_path: Path):
    """If it is on this machine: its family by the name within, and its tokenizer."""
    path = ggufs.copied(
        ggufs.random_gguf(tmp_path), tmp_path / "x.gguf", {"general.name": "Llama3.1 8B PRM Deepseek Data"}
    )
    engine = engine_of(folders, "llama.cpp", "rlhflow")
    props = engine.props({})
    engine.props = lambda body: props | {"model_path": str(path)}  # type: ignore[method-assign]
    engine.detokenize = lambda body: {"content": Vocabulary.load(str(path)).decode(body["tokens"])}  # type: ignore[method-assign]
    prm = asyncio.run(connect(engine, self_test=False))
    assert prm.format.family.name == "rlhflow"
    assert prm.server.origin == str(path)
    assert prm.vocabulary.encode("1 a") == Vocabulary.load(str(path)).encode("1 a")


def test_the_tokenizer_is_the_models_own(folders: dict[str, Path]):
    engine = engine_of(folders, "llama.cpp")
    with pytest.raises(
        ConfigurationError, match=r"tokenizer of 'tiny' is wanted on this side: name it with tokenizer="
    ):
        asyncio.run(connect(engine, format="versaprm"))
    with pytest.raises(ConfigurationError, match=r"there is no tokenizer at '/nowhere' \(.*name it with tokenizer="):
        opened(engine, format="versaprm", tokenizer="/nowhere")
    moved = engine_of(folders, "vllm")
    moved.v1_models = lambda body: {"data": [{"id": "tiny", "owned_by": "vllm", "root": "/theirs"}]}  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="the server says that its model is '/theirs', and there is no"):
        opened(moved, format="versaprm")
    assert opened(moved, tokenizer=str(folders["versaprm"])).format.family.name == "versaprm"


def test_another_models_tokenizer_is_refused(folders: dict[str, Path], another: Path):
    for route in NEXT:
        with pytest.raises(ConfigurationError, match="the tokenizer on this side is not that of ServedPRM"):
            opened(engine_of(folders, route, "versaprm"), format="math-shepherd", tokenizer=str(another))


def test_options(folders: dict[str, Path]):
    with on_a_socket(engine_of(folders, "pooling")) as url:
        root = url.removesuffix("/v1")
        prm = motes.reward_model(f"{root}#tiny?prefix=whole&context_length=300&attempts=2&max_concurrency=3")
        assert isinstance(prm, ServedPRM)
        assert (prm.prefix, prm.context_length, prm.client.max_concurrency) == ("whole", 300, 3)
        assert prm.client.retries.attempts == 2
        assert len(score(prm, trajectory(*STEPS))[0]) == 3
        with pytest.raises(UnknownNameError, match="did you mean 'tokenizer'"):
            motes.reward_model(f"{root}?tokeniser=x")
        with pytest.raises(UnknownNameError, match="known are tiny"):
            motes.reward_model(f"{root}#tini")
        with pytest.raises(ConfigurationError, match="self_test is 0 or 1"):
            motes.reward_model(f"{root}?self_test=no")


# -------------------------------------------------------------------------------------------------- on the command line


def test_doctor_recognises_a_reward_server(folders: dict[str, Path], capsys: Any):
    for engine, says in (
        (engine_of(folders, "pooling"), ("of the family qwen", "/pooling", "no   reads new steps only")),
        (
            engine_of(folders, "vllm", "rlhflow"),
            ("of the family rlhflow", "/v1/completions", "yes  reads new steps only"),
        ),
    ):
        with on_a_socket(engine) as url:
            assert command_line(["doctor", f"{url}#tiny"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "vllm 0.33.0" in out
        assert "context  512 tokens" in out
        assert all(word in out for word in says)
        assert out.rstrip().endswith("keeps the contract of a reward model")


def test_doctor_takes_a_format_for_a_sign_of_a_reward_model(folders: dict[str, Path], capsys: Any):
    with on_a_socket(engine_of(folders, "llama.cpp")) as url:
        options = f"format=versaprm&tokenizer={folders['versaprm']}"
        assert command_line(["doctor", f"{url}#tiny?{options}", "--no-contract"]) == 0
        assert "of the family versaprm" in capsys.readouterr().out
    with on_a_socket(VLLM()) as url:
        assert not motes.api.serves_rewards(url)


def test_doctor_finds_a_server_whose_scores_depend_on_when_they_are_asked_for(folders: dict[str, Path], capsys: Any):
    engine = engine_of(folders, "pooling")
    times = iter(range(9999))
    engine.served.score = lambda ids: [(next(times) % 7) / 7] * len(ids)
    with on_a_socket(engine) as url:
        assert command_line(["doctor", url]) == 1
    assert "the contract of a reward model does not hold: " in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- tests that can fail

MUTATIONS: dict[str, tuple[Any, str, str, str]] = {
    "rows are taken from the first on": (
        routes,
        "Pooling",
        "tags.index(position)",
        "reading.positions.index(position)",
    ),
    "the other class is good": (routes, "Pooling", "return good", "return bad"),
    "rows of all tokens are counted by tags": (routes, "Pooling", "len(rows) == len(reading.ids)", "False"),
    "answers are taken as they come": (routes, "Pooling", 'in _in_order(response["data"]', 'in (response["data"]'),
    "choices are taken as they come": (
        routes,
        "Completions",
        'in _in_order(response["choices"]',
        'in (response["choices"]',
    ),
    "read a token before": (routes, "NextTokenRoute", "reading.positions[turn] + 1", "reading.positions[turn]"),
    "bad is good": (routes, "NextTokenRoute", "bad - good, 700.0", "good - bad, 700.0"),
    "what was spared is paid for": (routes, "NextTokenRoute", "len(prompt) - cached[i]", "len(prompt)"),
    "the likeliest tokens are what they are": (routes, "Completion", "[token, BIAS]", "[token, 0.0]"),
    "a text is asked for at once": (routes, "NextTokenRoute", "range(len(readings[0].positions))", "range(1)"),
    "what is alike is asked for twice": (
        model,
        "ServedPRM",
        "setdefault(reading.key,",
        "setdefault((id(reading),),",
    ),
    "one failure is that of all": (model, "ServedPRM", "len(groups) > 1 and", "False and"),
    "a key that is refused fails a particle": (
        model,
        "ServedPRM",
        "except (ContextLengthError, ServerError) as",
        "except (ContextLengthError, ServerError, ConfigurationError) as",
    ),
    "any tokenizer will do": (model, "ServedPRM", "if texts and", "if False and"),
    "what is known is asked again": (
        reading,
        "Reader",
        "if node not in self._scores and not self._recall(node, digest)",
        "if True",
    ),
    "equal texts are read twice": (reading, "Reader", "if key not in unread:", "if True:"),
    "what failed is not told": (reading, "Reader", "if failure is None:", "if True:"),
}


def every_check(folders: dict[str, Path], another: Path) -> None:
    for route, family in (("pooling", "qwen"), ("pooling, all tokens", "qwen"), *((name, "versaprm") for name in NEXT)):
        test_scores_are_those_of_the_local_model(folders, route, family)
    for route in ("pooling", "vllm"):
        test_concurrent_calls_share_requests_and_what_is_alike_is_asked_once(folders, route)
        test_what_is_wrong_with_one_text_does_not_take_others_with_it(folders, route, "refused")
        test_what_does_not_fit_the_context_is_not_asked(folders, route)
    test_only_new_steps_cost_requests(folders, "llama.cpp")
    test_usage_is_what_the_server_tells(folders)
    test_a_key_that_is_not_accepted_any_more_ends_the_run(folders)
    test_another_models_tokenizer_is_refused(folders, another)


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(folders: dict[str, Path], another: Path, mistake: str, monkeypatch: pytest.MonkeyPatch):
    mutate(monkeypatch, *MUTATIONS[mistake])
    with pytest.raises((AssertionError, pytest.fail.Exception, MotesError, ValueError, KeyError, TypeError)):
        every_check(folders, another)


def test_without_a_mistake_nothing_is_found(folders: dict[str, Path], another: Path, monkeypatch: pytest.MonkeyPatch):
    for module, name, passage, _ in MUTATIONS.values():
        mutate(monkeypatch, module, name, passage, passage)
    every_check(folders, another)
