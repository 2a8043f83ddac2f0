"""Language models behind HTTP, against each engine's manners (scripted, see engines.py): what is asked, what is made of
the answers, what is found by probing, what becomes of faults."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import pytest

import engines
import motes
import test_served_answers as answers
import test_served_refusals as refusals
from engines import (
    TGI,
    VLLM,
    Closed,
    Draw,
    Engine,
    LlamaCpp,
    Ollama,
    OpenAICompatible,
    SGLang,
    SGLangThatRenders,
    Tokenizer,
    connect,
    draw,
    encode,
    render,
)
from failures import unwrapped
from motes import Majority, ParticleFilter, Problem, Sampling, Step, TabularReward, Trajectory, concurrency
from motes.conformance import acheck_language_model
from motes.errors import (
    BadResponseError,
    ConfigurationError,
    ContextLengthError,
    MissingExtraError,
    MotesError,
    NoParticlesError,
    ServerError,
    UnauthorizedError,
    UnknownNameError,
    UnreachableError,
)
from motes.models.served import Capabilities, HTTPLanguageModel, model, prompts, responses, wires
from motes.models.served.probe import LOGPROB_DRAWS
from motes.transport import Retries
from mutations import mutate

QUESTION = Problem("How many?", system="Be brief.")
PROMPT = encode(render([dict(message) for message in QUESTION.messages]))
LIMIT = 5
SAMPLING = Sampling(temperature=0.9, max_step_tokens=LIMIT)
ROOT = Trajectory(QUESTION)
WITH_IDS: dict[str, Callable[[], Coroutine[Any, Any, HTTPLanguageModel]]] = {
    "vllm": lambda **o: connect(VLLM(), **o),
    "llama.cpp": lambda **o: connect(LlamaCpp(), **o),
    "sglang": lambda **o: connect(SGLangThatRenders(), **o),
    "sglang, tokenizer": lambda **o: connect(SGLang(), vocabulary=Tokenizer(), **o),
}
WITH_TEXT = {
    "tgi": lambda **o: connect(TGI(), **o),
    "ollama, tokenizer": lambda **o: connect(Ollama(), vocabulary=Tokenizer(), **o),
}
WITHOUT_SEEDS = {
    "unknown, tokenizer": lambda **o: connect(OpenAICompatible(), vocabulary=Tokenizer(), **o),
    "unknown, chat": lambda **o: connect(OpenAICompatible(), **o),
    "transformers, tokenizer": lambda **o: connect(Transformers(), name="transformers", vocabulary=Tokenizer(), **o),
}
EVERY = WITH_IDS | WITH_TEXT | WITHOUT_SEEDS


class Transformers(OpenAICompatible):
    """Draws only where its own field says so, and begins a new message always."""

    fields = OpenAICompatible.fields - {"temperature", "top_p"} | {"generation_config"}
    continues = False

    def draw(self, ids: list[int], body: dict[str, Any], **rest: Any) -> Draw:
        told = json.loads(body["generation_config"])
        assert told["do_sample"] == ("temperature" in told)
        return super().draw(ids, {"temperature": told.get("temperature", 0.0)}, **rest)


async def extended(lm: HTTPLanguageModel, trajectories: Any, seeds: Any, sampling: Sampling = SAMPLING) -> list[Step]:
    return await lm.extend(trajectories, sampling, seeds)


def server(lm: HTTPLanguageModel) -> Any:
    """The scripted engine behind a model."""
    return lm.client._transport.handler


# ----------------------------------------------------------------------------------------------- the contract, executed


@pytest.mark.parametrize("name", WITH_IDS | WITH_TEXT)
@pytest.mark.parametrize("delimiter", ["\n\n", ";", ("\n\n", ";"), ("a", "e", "i", "o", "u", "\n\n")])
def test_the_contract_is_kept(name: str, delimiter: Any):
    async def main() -> None:
        lm = await (WITH_IDS | WITH_TEXT)[name]()
        await acheck_language_model(lm, sampling=Sampling(max_step_tokens=16, delimiter=delimiter))

    asyncio.run(main())


@pytest.mark.parametrize("name", WITHOUT_SEEDS)
def test_without_seeds_it_is_kept_at_temperature_0(name: str):
    async def main() -> None:
        lm = await WITHOUT_SEEDS[name]()
        await acheck_language_model(lm, sampling=Sampling(max_step_tokens=16, temperature=0.0))

    asyncio.run(main())


@pytest.mark.parametrize("seeds", ["group", "none"])
@pytest.mark.parametrize("name", ["vllm", "llama.cpp", "sglang"])
def test_grouped_particles_keep_what_is_left_of_it(name: str, seeds: Any):
    async def main() -> None:
        lm = await WITH_IDS[name](seeds=seeds)
        await acheck_language_model(lm, sampling=Sampling(max_step_tokens=16, temperature=0.0))

    asyncio.run(main())


# ------------------------------------------------------------------------------------ what is made of what was answered


def the_same(step: Step, drawn: Draw, *, by_tokens: bool = False) -> bool:
    end = {"eos": "eos", "stop": "step", "length": "step" if by_tokens else "length"}[drawn.end]
    return (step.text, step.end, list(step.token_ids)) == (drawn.text, end, drawn.ids)


@pytest.mark.parametrize("name", WITH_IDS)
@pytest.mark.parametrize("delimiter", ["\n\n", ";", (";", "\n\n", "so", "tw", "3"), None])
def test_steps_are_the_servers_own_tokens(name: str, delimiter: Any):
    """Whatever ended them; with the rest of the token that completed a delimiter; along three steps."""
    sampling = SAMPLING.replace(delimiter=delimiter)

    async def main() -> None:
        lm = await WITH_IDS[name](logprobs=True)
        population, ends = [ROOT] * 40, set()
        for t in range(3):
            seeds = [100 * t + i for i in range(len(population))]
            steps = await extended(lm, population, seeds, sampling)
            for trajectory, seed, step in zip(population, seeds, steps, strict=True):
                ids = PROMPT + [token for step in trajectory.steps for token in step.token_ids]
                drawn = draw(ids, limit=LIMIT, stops=list(sampling.delimiters), temperature=0.9, seed=seed)
                assert the_same(step, drawn, by_tokens=delimiter is None), (step, drawn)
                assert step.logprob == pytest.approx(sum(drawn.logprobs))
                assert step.proposal_logprob is None
                assert step.usage is not None
                assert step.usage.generated_tokens == len(drawn.ids)
                ends.add(step.end)
            population = [p.extend(s) for p, s in zip(population, steps, strict=True) if s.end != "eos"]
        assert ends >= {"eos", "step"}

    asyncio.run(main())


@pytest.mark.parametrize("name", WITH_TEXT | WITHOUT_SEEDS)
def test_steps_of_text_end_at_their_delimiter_and_for_the_right_reason(name: str):
    async def main() -> None:
        make = (WITH_TEXT | WITHOUT_SEEDS)[name]
        lm = await make(seeds="particle")
        population, ends = [ROOT] * 40, set()
        for t in range(3):
            seeds = [100 * t + i for i in range(len(population))]
            steps = await extended(lm, population, seeds)
            for trajectory, seed, step in zip(population, seeds, steps, strict=True):
                ids = encode(render([dict(m) for m in QUESTION.messages]) + trajectory.text)
                drawn = draw(ids, limit=LIMIT, stops=["\n\n"], temperature=0.9, seed=seed)
                text = drawn.text if name == "tgi" else drawn.kept  # whose tokens tell the rest
                assert (step.text, step.end) == (text, {"stop": "step"}.get(drawn.end, drawn.end))
                assert step.num_tokens == pytest.approx(len(drawn.ids), abs=0 if name == "tgi" else 1)
                ends.add(step.end)
            population = [p.extend(s) for p, s in zip(population, steps, strict=True) if s.end != "eos"]
        assert ends == {"eos", "length", "step"}

    asyncio.run(main())


def test_a_stream_is_left_at_the_delimiter():
    """Nothing is drawn for nothing, but for what is under way."""

    async def main() -> None:
        lm = await connect(Ollama(), vocabulary=Tokenizer())
        endless = SAMPLING.replace(max_step_tokens=400)
        steps = await extended(lm, [ROOT] * 20, range(20), endless)
        assert any(step.end == "step" for step in steps)
        ended = sum(step.end != "step" for step in steps)  # whose stream was read to the end
        assert server(lm).sent == sum(step.num_tokens for step in steps) + ended

    asyncio.run(main())


def test_text_made_elsewhere_is_continued():
    written = ROOT.extend(Step("so 3 \n\n", "step"))

    async def main() -> None:
        for name, make in WITH_IDS.items():
            lm = await make()
            (step,) = await extended(lm, [written], [5])
            drawn = draw(PROMPT + encode("so 3 \n\n"), limit=LIMIT, stops=["\n\n"], temperature=0.9, seed=5)
            assert the_same(step, drawn), name

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize("name", WITH_IDS | WITH_TEXT)
def test_every_field_is_sent(name: str):
    """What is left out, a server takes from the model's own defaults or its own."""
    sampling = Sampling(temperature=0.7, top_p=0.95, top_k=0 if name == "tgi" else 40, max_step_tokens=9)

    async def main() -> dict[str, Any]:
        lm = await (WITH_IDS | WITH_TEXT)[name]()
        await extended(lm, [ROOT], [2**62 + 12345], sampling)
        (body,) = server(lm).asked
        return {**body, **body.get("sampling_params", {}), **body.get("parameters", {}), **body.get("options", {})}

    body = asyncio.run(main())
    assert (body["temperature"], body["top_p"]) == (0.7, 0.95)
    assert body["top_k"] == (None if name == "tgi" else 40)
    assert 9 in (body.get("max_tokens"), body.get("n_predict"), body.get("max_new_tokens"), body.get("num_predict"))
    assert body.get("stop", ["\n\n"]) == ["\n\n"]
    if name != "tgi":
        assert body["min_p"] == 0.0
        assert {body[key] for key in ("repetition_penalty", "repeat_penalty") if key in body} == {1.0}
        assert (body["presence_penalty"], body["frequency_penalty"]) == (0.0, 0.0)
    seed = body.get("seed", body.get("sampling_seed"))
    limits = {"llama.cpp": 2**32 - 1, "sglang": 2**31, "sglang, tokenizer": 2**31, "ollama, tokenizer": 2**31}
    assert seed == (2**62 + 12345) % limits.get(name, 2**63)


def test_what_transformers_is_asked_for_stands_in_one_field():
    async def main() -> None:
        lm = await connect(Transformers(), name="transformers", vocabulary=Tokenizer())
        await extended(lm, [ROOT], [1], Sampling(temperature=0.7, top_k=40, min_p=0.1, top_p=0.9))
        await extended(lm, [ROOT], [1], Sampling(temperature=0.0))
        drawn, greedy = (json.loads(body["generation_config"]) for body in server(lm).asked)
        assert drawn == {
            "do_sample": True, "temperature": 0.7, "top_k": 40, "min_p": 0.1, "top_p": 0.9, "repetition_penalty": 1.0,
        }  # fmt: skip
        assert greedy == {"do_sample": False}

    asyncio.run(main())


def test_all_tokens_are_kept_where_that_is_wanted():
    async def main() -> None:
        for name, everything in (("vllm", -1), ("sglang", -1), ("llama.cpp", 0)):
            lm = await WITH_IDS[name]()
            await extended(lm, [ROOT], [1])
            (body,) = server(lm).asked
            assert (body | body.get("sampling_params", {}))["top_k"] == everything

    asyncio.run(main())


def test_what_a_server_cannot_do_is_refused_before_it_is_asked():
    async def main() -> None:
        lm = await connect(TGI())
        with pytest.raises(ConfigurationError, match="cannot sample with min_p"):
            await extended(lm, [ROOT], [1], Sampling(min_p=0.1))
        lm = await connect(OpenAICompatible())
        with pytest.raises(ConfigurationError, match="cannot sample with top_k"):
            await extended(lm, [ROOT], [1], Sampling(top_k=5))
        assert server(lm).requests == []

    asyncio.run(main())


def test_a_prompt_is_rendered_once():
    async def main() -> None:
        lm = await connect(VLLM())
        for _ in range(3):
            await extended(lm, [ROOT] * 4, range(4))
        assert [path for path, _ in server(lm).requests].count("/tokenize") == 1

    asyncio.run(main())


def forks(n: int = 3, copies: int = 4) -> list[Trajectory]:
    nodes = [ROOT.extend(Step(f"{i} ", "step", tuple(encode(f"{i} ")))) for i in range(n)]
    return [node for node in nodes for _ in range(copies)]


def test_each_particle_has_a_request_and_a_seed_of_its_own():
    async def main() -> None:
        lm = await connect(VLLM())
        assert lm.seeds == "particle"
        steps = await extended(lm, forks(), range(12))
        bodies = server(lm).asked
        assert sorted(body["seed"] for body in bodies) == list(range(12))
        assert all("n" not in body and isinstance(body["prompt"][0], int) for body in bodies)
        assert len({step.text for step in steps}) > 6

    asyncio.run(main())


@pytest.mark.parametrize("name", ["vllm", "llama.cpp"])
def test_particles_that_are_alike_can_be_one_prompt(name: str):
    async def main() -> None:
        lm = await WITH_IDS[name](seeds="group")
        calls = [lm.extend([fork], SAMPLING, [seed]) for seed, fork in enumerate(forks(), start=50)]
        first = [call[0] for call in await asyncio.gather(*calls)]
        bodies = server(lm).asked
        assert [body.get("n", body.get("n_cmpl")) for body in bodies] == [4] * 3
        assert [body["seed"] for body in bodies] == [50, 54, 58]
        again = await extended(lm, forks(), range(50, 62))
        assert first == again, "the same run with the same seeds, whether in one call or in many"
        assert len({step.text for step in first[:4]}) > 1
        spent = [step.usage for step in first if step.usage]
        assert sum(u.prefill_tokens + u.prefill_tokens_cached for u in spent) == 3 * (len(PROMPT) + 2)

    asyncio.run(main())


def test_no_more_answers_to_one_prompt_than_a_server_gives():
    async def main() -> None:
        lm = await connect(LlamaCpp(), seeds="group")
        await extended(lm, [ROOT] * 40, range(40))
        assert [(body["n_cmpl"], body["seed"]) for body in server(lm).asked[:2]] == [(16, 0), (16, 16)]
        assert server(lm).asked[2]["n_cmpl"] == 8
        alone = LlamaCpp(slots=1)
        lm = await connect(alone, seeds="group")
        assert lm.capabilities.choices == 1
        await extended(lm, [ROOT] * 3, range(3))
        assert all("n_cmpl" not in body for body in alone.asked)

    asyncio.run(main())


def test_particles_that_are_alike_are_asked_for_apart_where_one_seed_would_make_them_one():
    async def main() -> None:
        lm = await connect(SGLangThatRenders(), seeds="group")
        await extended(lm, forks(), range(12))
        assert sorted(body["sampling_params"]["sampling_seed"] for body in server(lm).asked) == list(range(12))
        lm = await connect(SGLangThatRenders(), seeds="none")
        await extended(lm, forks(), range(12))
        assert [body["sampling_params"]["n"] for body in server(lm).asked] == [4] * 3
        random = SGLangThatRenders()
        random.deterministic = False
        assert (await connect(random)).seeds == "none"

    asyncio.run(main())


def test_the_same_run_is_the_same_whatever_else_is_in_flight():
    async def main() -> None:
        lm = await connect(VLLM(), seeds="group")

        def run(seed: int) -> Any:
            return motes.asolve("How many?", lm=lm, reward=TabularReward({}), method=ParticleFilter(6), seed=seed)

        alone = [await run(seed) for seed in range(4)]
        together = await asyncio.gather(*(run(seed) for seed in range(4)))
        for first, second in zip(alone, together, strict=True):
            assert [t.text for t in first.trajectories] == [t.text for t in second.trajectories]

    asyncio.run(main())


def test_without_seeds_all_runs_travel_together():
    async def main() -> None:
        lm = await connect(VLLM(), seeds="none")
        others = [Trajectory(Problem(f"What is {i}?")) for i in range(5)]
        calls = [lm.extend([t], SAMPLING, [i]) for i, t in enumerate([*others, *forks()])]
        steps = [call[0] for call in await asyncio.gather(*calls)]
        one, four = sorted(server(lm).asked, key=lambda body: body.get("n", 1))
        assert (len(one["prompt"]), len(four["prompt"]), four["n"]) == (5, 3, 4)
        assert one["stream"]
        assert one["stream_interval"] > 1000
        assert not {"seed"} & (one.keys() | four.keys())
        assert len({step.text for step in steps}) > 8
        prompts = [len(encode(render([dict(m) for m in t.problem.messages]))) for t in others]
        spent = [step.usage for step in steps[:5] if step.usage]
        assert sum(u.prefill_tokens + u.prefill_tokens_cached for u in spent) == sum(prompts)
        assert sum(u.prefill_tokens_cached for u in spent) == 5

    asyncio.run(main())


def test_at_temperature_0_what_is_alike_is_drawn_once():
    async def main() -> None:
        lm = await connect(VLLM())
        steps = await extended(lm, forks(), range(12), SAMPLING.replace(temperature=0.0))
        (body,) = server(lm).asked
        assert len(body["prompt"]) == 3
        assert "seed" not in body
        assert [len({step.text for step in steps[i : i + 4]}) for i in (0, 4, 8)] == [1, 1, 1]
        spent = [step.usage.generated_tokens for step in steps if step.usage]
        assert spent[1:4] == [0, 0, 0]
        assert sum(spent) == sum(len(steps[i].token_ids) for i in (0, 4, 8))

    asyncio.run(main())


def test_an_answer_does_not_wait_for_the_slowest_of_its_request():
    class Slow(VLLM):
        async def stream(self, events: list[dict[str, Any]]) -> Any:
            for event in events:
                yield f"data: {json.dumps(event)}\n\n".encode()
                if event["choices"]:
                    await gate.wait()
            yield b"data: [DONE]\n\n"

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        lm = await connect(Slow(), seeds="none")
        tasks = [asyncio.ensure_future(lm.extend([t], SAMPLING, [0])) for t in (ROOT, Trajectory(Problem("Why?")))]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        gate.set()
        await asyncio.gather(*tasks)
        assert len(server(lm).asked) == 1

    gate: asyncio.Event = None  # type: ignore[assignment]
    asyncio.run(main())


def test_more_delimiters_than_a_server_takes_are_found_on_this_side():
    many = ("zz", "yy", "xx", "ww", "\n\n")

    async def main() -> None:
        for make in (lambda: connect(VLLM()), lambda: connect(TGI())):
            lm = await make()
            steps = await extended(lm, [ROOT] * 20, range(20), SAMPLING.replace(delimiter=many))
            assert all("stop" not in body and body["stream"] for body in server(lm).asked)
            for seed, step in enumerate(steps):
                drawn = draw(PROMPT, limit=LIMIT, stops=["\n\n"], temperature=0.9, seed=seed)
                assert step.end == {"stop": "step"}.get(drawn.end, drawn.end)
                if lm.capabilities.route == "ids":
                    assert the_same(step, drawn)
        lm = await connect(LlamaCpp())
        await extended(lm, [ROOT], [0], SAMPLING.replace(delimiter=many))
        assert server(lm).asked[0]["stop"] == list(many)

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------------- limits


def test_tokens_of_an_answer_are_limited():
    few = Sampling(temperature=0.9, max_step_tokens=5, max_tokens=7, delimiter=None)

    async def main() -> None:
        for name, make in (WITH_IDS | WITH_TEXT).items():
            lm = await make()
            seed = next(s for s in range(99) if len(draw(PROMPT, limit=5, stops=[], temperature=0.9, seed=s).ids) == 5)
            (first,) = await extended(lm, [ROOT], [seed], few)
            assert (first.num_tokens, first.end) == (5, "step"), name
            (second,) = await extended(lm, [ROOT.extend(first)], [2], few)
            assert second.num_tokens <= 2
            third = ROOT.extend(Step("x", "length", (1,) * 7))
            assert await extended(lm, [third], [3], few) == [Step("", "length")]

    asyncio.run(main())


@pytest.mark.parametrize("make", [VLLM, LlamaCpp, SGLangThatRenders])
def test_the_context_is_the_end(make: type[Engine]):
    async def main() -> None:
        lm = await connect(make(context=len(PROMPT) + 10))
        begun = ROOT.extend(Step("3 ", "step", (1,) * 8))
        assert all(len(step.token_ids) <= 2 for step in await extended(lm, [begun] * 5, range(5)))
        full = ROOT.extend(Step("3 ", "step", (1,) * 10))
        assert await extended(lm, [full], [0]) == [Step("", "length")]
        with pytest.raises(ContextLengthError, match="shorten the question"):
            await extended(lm, [Trajectory(Problem("How many? " * 20))], [0])
        assert len(server(lm).asked) == 5

    asyncio.run(main())


def test_a_context_that_is_not_told_is_found_out():
    def too_long(path: str, body: dict[str, Any]) -> httpx2.Response | None:
        if "messages" in body and body["max_tokens"] > 40:
            return engine.refused(
                "This model's maximum context length is 100 tokens. However, you requested 560 tokens (60 in the "
                "messages, 500 in the completion)."
            )
        if "messages" in body and len(body["messages"][-1]["content"]) > 60:
            return engine.refused("This model's maximum context length is 100 tokens.")
        return None

    async def main() -> None:
        lm = await connect(engine)
        engine.fails = too_long
        (step,) = await extended(lm, [ROOT], [1], Sampling(max_step_tokens=500))
        assert step.text
        assert [body["max_tokens"] for body in engine.asked] == [500, 40]
        begun = ROOT.extend(Step("x" * 80, "step"))
        assert await extended(lm, [begun], [1]) == [Step("", "length")]
        with pytest.raises(ContextLengthError, match="Shorten"):
            await extended(lm, [Trajectory(Problem("How? " * 20))], [1])

    engine = OpenAICompatible()
    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------- probing


def found(engine: Engine, **options: Any) -> Capabilities:
    return asyncio.run(connect(engine, **options)).capabilities


MOST = {"vllm": 1024, "llama.cpp": 16, "sglang": 1024, "openai": 128}
ABILITIES = ("token_ids", "tells_end", "seeds", "choices", "several_prompts", "logprobs", "cached_tokens")


@pytest.mark.parametrize(
    ("engine", "options", "name", "route", "rendering", "abilities"),
    [
        (VLLM(), {}, "vllm 0.33.0", "ids", "server", ABILITIES),
        (LlamaCpp(), {}, "llama.cpp b11549-abc", "ids", "server", set(ABILITIES) - {"several_prompts"}),
        (SGLangThatRenders(), {}, "sglang 0.5.23", "ids", "server", set(ABILITIES) - {"several_prompts"}),
        (
            SGLang(),
            {"vocabulary": Tokenizer()},
            "sglang 0.5.23",
            "ids",
            "tokenizer",
            set(ABILITIES) - {"several_prompts"},
        ),
        (TGI(), {}, "tgi 3.3.6", "text", "server", {"tells_end", "seeds", "logprobs"}),
        (Ollama(), {"vocabulary": Tokenizer()}, "ollama 0.20.1", "text", "tokenizer", {"seeds"}),
        (Ollama(), {}, "ollama 0.20.1", "chat", "messages", {"seeds"}),
        (OpenAICompatible(), {}, "unknown None", "chat", "messages", set()),
        (OpenAICompatible(), {"vocabulary": Tokenizer()}, "unknown None", "text", "tokenizer", set()),
        (Transformers(), {"name": "transformers"}, "transformers None", "answers", "messages", {"tells_end"}),
        (Closed(), {}, "unknown None", "answers", "messages", {"tells_end"}),
        (
            Closed(),
            {"base": "https://api.openai.com/v1#tiny"},
            "openai None",
            "answers",
            "messages",
            {"tells_end", "choices"},
        ),
    ],
)
def test_what_is_found(engine: Engine, options: Any, name: str, route: str, rendering: str, abilities: Any):
    capabilities = found(engine, **options)
    assert f"{capabilities.engine} {capabilities.version}" == name
    assert (capabilities.route, capabilities.rendering) == (route, rendering)
    there = {
        ability
        for ability in ABILITIES
        if getattr(capabilities, ability) not in (False, 1) or getattr(capabilities, ability) is True
    }
    assert there == set(abilities)
    assert capabilities.choices == (MOST[capabilities.engine] if "choices" in abilities else 1)
    known = engine.context if isinstance(engine, (VLLM, LlamaCpp, SGLang, TGI)) else None
    assert capabilities.context_length == known
    lost = [loss for _, there, loss in capabilities.findings() if not there]
    assert all(lost)
    assert capabilities.model in str(capabilities)


@pytest.mark.parametrize(("fragments", "there"), [(0, True), (1, True), (5, True), (1000, False)])
def test_log_probabilities_are_found_where_answers_begin_within_a_character(fragments: int, there: bool):
    """llama.cpp has none for a token that ends within a character; each model that likes emoji begins with one."""

    class Fragments(LlamaCpp):
        draws = 0

        def completion(self, body: dict[str, Any]) -> Any:
            response = super().completion(body)
            self.draws += "n_probs" in body
            if "n_probs" in body and self.draws <= fragments:
                for answer in response if isinstance(response, list) else [response]:
                    answer |= {"content": "\ufffd", "completion_probabilities": []}
            return response

    engine = Fragments()
    assert found(engine).logprobs is there
    assert engine.draws == min(fragments, LOGPROB_DRAWS) + 1


def test_a_server_without_log_probabilities_is_asked_once():
    class Silent(LlamaCpp):
        draws = 0

        def completion(self, body: dict[str, Any]) -> Any:
            self.draws += "n_probs" in body
            return super().completion({**body, "n_probs": 0})

    engine = Silent()
    assert not found(engine).logprobs
    assert engine.draws == 1


@pytest.mark.parametrize(
    ("entry", "length"),
    [
        ({"context_window": 8192}, 8192),  # Groq
        ({"context_length": 4096, "top_provider": None}, 4096),  # OpenRouter, Together
        ({"max_context_length": 32768, "loaded_context_length": 2048}, 2048),  # LM Studio
        ({"max_context_length": 32768}, 32768),
        ({"meta": {"n_ctx_train": 1024}}, 1024),  # llama.cpp without /props
        ({"meta": {"n_ctx_train": 1024, "n_ctx": 512}}, 512),
        ({"context_length": True, "max_model_len": "512", "meta": None}, None),
    ],
)
def test_lists_of_models_tell_the_context_in_several_words(entry: dict[str, Any], length: int | None):
    class Lists(OpenAICompatible):
        def v1_models(self, body: dict[str, Any]) -> Any:
            return {"data": [{**super().v1_models(body)["data"][0], **entry}]}

    assert found(Lists()).context_length == length


class OllamaThatTells(Ollama):
    def api_ps(self, body: dict[str, Any]) -> Any:
        loaded = [{"model": f"{self.model}:latest", "context_length": 300}] if self.asked else []
        return {"models": [{"name": "another", "context_length": 7}, *loaded]}


class LMStudio(OpenAICompatible):
    def api_v0_models(self, body: dict[str, Any]) -> Any:
        return {"data": [{"id": self.model, "max_context_length": 32768, "loaded_context_length": 300}]}


@pytest.mark.parametrize("engine", [OllamaThatTells, LMStudio])
def test_servers_that_load_on_demand_tell_the_context_then(engine: type[Engine]):
    assert found(engine(), vocabulary=Tokenizer()).context_length == 300


def test_an_older_sglang_is_known():
    class Older(SGLangThatRenders):
        server_info = None

        def get_server_info(self, body: dict[str, Any]) -> Any:
            return {**super().server_info(body), "version": "0.4.9"}

    capabilities = found(Older())
    assert (capabilities.engine, capabilities.version, capabilities.seeds) == ("sglang", "0.4.9", True)


def test_an_sglang_server_that_cannot_render_is_used_as_a_chat():
    class Chats(SGLang):
        def v1_chat_completions(self, body: dict[str, Any]) -> Any:
            assert body["messages"][-1]["role"] == "user" or body["continue_final_message"]
            return {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop", "matched_stop": 0}]}

    capabilities = found(Chats())
    assert (capabilities.route, capabilities.tells_end) == ("chat", True)
    assert "may come out empty" in capabilities.findings()[1][2]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"matched_stop": "\n\n", "finish_reason": "stop"}, "step"),
        ({"matched_stop": 7, "finish_reason": "stop"}, "eos"),
        ({"matched_stop": None, "finish_reason": "length"}, "length"),
    ],
)
def test_sglangs_chat_tells_what_ended_it(message: dict[str, Any], says: str):
    class Chats(SGLang):
        def v1_chat_completions(self, body: dict[str, Any]) -> Any:
            return {
                "choices": [{"index": 0, "message": {"content": "hi\n\n"}, **message}],
                "usage": {"completion_tokens": 3},
            }

    async def main() -> None:
        lm = await connect(Chats())
        (step,) = await extended(lm, [ROOT], [1])
        assert (step.text, step.end, step.num_tokens) == ("hi\n\n", says, 3)
        assert server(lm).asked[0]["no_stop_trim"] is True

    asyncio.run(main())


def test_nothing_is_drawn_to_know_that_openai_continues_nothing():
    engine = Closed()
    address = "https://api.openai.com/v1#tiny"

    async def main() -> None:
        lm = await connect(engine, base=address)
        assert engine.requests == []
        assert not lm.continues_prefixes

    before = len(engine.requests)
    asyncio.run(main())
    assert before == 0


def test_an_old_vllm_without_token_ids_is_read_by_its_text():
    class Old(VLLM):
        def choice(self, one: Draw, body: dict[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in super().choice(one, body).items() if k != "token_ids"}

    async def main() -> None:
        lm = await connect(Old())
        assert (lm.capabilities.route, lm.capabilities.token_ids) == ("ids", False)
        (step,) = await extended(lm, [ROOT], [3])
        drawn = draw(PROMPT, limit=LIMIT, stops=["\n\n"], temperature=0.9, seed=3)
        assert (step.text, step.token_ids, step.num_tokens) == (drawn.kept, (), len(drawn.ids))
        await extended(lm, [ROOT.extend(step)], [4])
        assert server(lm).asked[-1]["prompt"] == PROMPT + encode(drawn.kept)

    asyncio.run(main())


def test_usage_without_details_counts_every_prefix():
    class Silent(VLLM):
        cached = None

    async def main() -> None:
        lm = await connect(Silent())
        assert not lm.capabilities.cached_tokens
        (step,) = await extended(lm, [ROOT], [3])
        assert step.usage is not None
        assert (step.usage.prefill_tokens, step.usage.prefill_tokens_cached) == (len(PROMPT), 0)
        lm = await connect(VLLM())
        (step,) = await extended(lm, [ROOT], [3])
        assert step.usage is not None
        assert (step.usage.prefill_tokens, step.usage.prefill_tokens_cached) == (len(PROMPT) - 5, 5)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (httpx2.Response(401, json={"error": "no key"}), UnauthorizedError, "MOTES_API_KEY"),
        (httpx2.Response(404, text="nothing here"), ConfigurationError, "is the path right"),
        (httpx2.Response(200, text="<html>"), ConfigurationError, "lists no models"),
        (httpx2.Response(200, json=["a"]), ConfigurationError, "no list of models"),
        (httpx2.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]}), ConfigurationError, "choose one, as in .*#a"),
        (httpx2.Response(200, json={"data": []}), ConfigurationError, "choose one"),
        (httpx2.Response(503, text="loading"), ServerError, "loading"),
    ],
)
def test_what_cannot_be_opened(answer: httpx2.Response, error: type[Exception], says: str):
    engine = VLLM()
    engine.fails = lambda path, body: answer if path == "/v1/models" else None
    with pytest.raises(error, match=says):
        found(engine)


def test_a_model_that_is_not_there_is_named_and_so_are_the_others():
    with pytest.raises(UnknownNameError, match="'tini': did you mean 'tiny'"):
        found(VLLM(), base="http://server.test/v1#tini")
    assert found(Ollama(), base="http://server.test/v1#tiny").model == "tiny:latest"


def test_a_gateway_that_lists_no_models_is_believed():
    engine = OpenAICompatible()
    engine.fails = lambda path, body: httpx2.Response(404) if path == "/v1/models" else None
    assert found(engine, base="http://server.test/v1#gpt").model == "gpt"


def test_a_named_engine_that_fails_to_list_its_models_is_believed():
    engine = Transformers()
    engine.fails = lambda path, body: httpx2.Response(500) if path == "/v1/models" else None
    assert found(engine, name="transformers", base="http://server.test/v1#tiny").model == "tiny"
    with pytest.raises(ServerError):
        found(engine, name="transformers")


def test_an_engine_can_be_named():
    assert found(OpenAICompatible(), name="unknown").engine == "unknown"
    with pytest.raises(UnknownNameError, match="did you mean 'vllm'"):
        found(VLLM(), name="vlm")


def test_a_server_that_does_nothing_is_an_error():
    engine = OpenAICompatible()
    engine.fails = lambda path, body: httpx2.Response(500, text="broken") if path != "/v1/models" else None
    with pytest.raises(ServerError, match="broken"):
        found(engine)


# ----------------------------------------------------------------------------------------------- whole answers only


def test_a_closed_chat_writes_whole_answers():
    async def main() -> None:
        lm = await connect(Closed(), base="https://api.openai.com/v1#tiny")
        result = await motes.asolve("How many?", lm=lm, method=Majority(12), sampling=Sampling(max_step_tokens=20))
        assert result.answer in ("1", "2")
        bodies = server(lm).asked
        assert {body["max_completion_tokens"] for body in bodies} == {800}
        assert not any("stop" in body or "seed" in body or "max_tokens" in body for body in bodies)
        assert sum(body.get("n", 1) for body in bodies) == 12
        server(lm).requests.clear()
        for method in (ParticleFilter(4), motes.BeamSearch(4), motes.ParticleGibbs(2, 2)):
            with pytest.raises(ConfigurationError, match="writes whole answers only"):
                await motes.asolve("How many?", lm=lm, reward=TabularReward({}), method=method)
        with pytest.raises(ConfigurationError, match="cannot continue"):
            await extended(lm, forks(), range(12))
        assert server(lm).requests == []

    asyncio.run(main())


def test_a_limit_that_a_model_does_not_allow_is_lowered_once():
    def too_many(path: str, body: dict[str, Any]) -> httpx2.Response | None:
        if body.get("max_completion_tokens", 0) > 100:
            return engine.refused(
                "max_tokens is too large: 40960. This model supports at most 100 completion tokens, whereas you "
                "provided 40960."
            )
        return None

    async def main() -> None:
        lm = await connect(engine, base="https://api.openai.com/v1#tiny")
        engine.fails = too_many
        for _ in range(2):
            result = await motes.asolve("How many?", lm=lm, method=motes.Greedy())
            assert result.trajectories[0].text
        assert [body["max_completion_tokens"] for body in engine.asked] == [40960, 100, 100]

    engine = Closed()
    asyncio.run(main())


@pytest.mark.parametrize("field", ["temperature", "top_p", "presence_penalty", "n"])
def test_a_model_that_takes_fewer_fields_is_asked_without_them(field: str):
    """As OpenAI's reasoning models are: what is at its default can be left out, anything else cannot."""

    def fewer(path: str, body: dict[str, Any]) -> httpx2.Response | None:
        if field in body and "messages" in body:
            return engine.refused(f"Unsupported parameter: '{field}' is not supported with this model.")
        return None

    async def main() -> None:
        lm = await connect(engine, base="https://api.openai.com/v1#tiny")
        engine.fails = fewer
        plain = Sampling(temperature=1.0, max_step_tokens=20)
        result = await motes.asolve("How many?", lm=lm, method=Majority(6), sampling=plain)
        assert result.answer in ("1", "2")
        assert all(trajectory.finished != "failed" for trajectory in result.trajectories)
        before = len(engine.asked)
        await motes.asolve("How many?", lm=lm, method=Majority(6), sampling=plain)
        assert len(engine.asked) - before == (6 if field == "n" else 1), "it is remembered"
        if field in ("temperature", "top_p"):
            other = plain.replace(**{field: 0.5})
            lm = await connect(engine, base="https://api.openai.com/v1#tiny")
            with pytest.raises(NoParticlesError, match=f"Unsupported parameter: '{field}'"):
                await motes.asolve("How many?", lm=lm, method=Majority(6), sampling=other)

    engine = Closed()
    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------- faults


def failing(which: Callable[[dict[str, Any]], bool], answer: Callable[[], httpx2.Response]) -> VLLM:
    engine = VLLM()
    engine.fails = lambda path, body: answer() if path.endswith("/completions") and which(body) else None
    return engine


def raising(error: Exception) -> Callable[[], httpx2.Response]:
    def answer() -> httpx2.Response:
        raise error

    return answer


def broken_off() -> httpx2.Response:
    async def body() -> Any:
        yield b'data: {"choices": [{"ind'
        raise httpx2.ReadError("peer closed")

    return httpx2.Response(200, content=body())


PASSING: dict[str, Callable[[], httpx2.Response]] = {
    "500": lambda: httpx2.Response(500, json={"error": {"message": "out of memory"}}),
    "503": lambda: httpx2.Response(503),
    "429": lambda: httpx2.Response(429, headers={"retry-after": "1"}),
    "timeout": raising(httpx2.ReadTimeout("slow")),
    "dropped": raising(httpx2.RemoteProtocolError("server disconnected")),
    "dead": raising(httpx2.ConnectError("refused")),
    "broken off": broken_off,
    "truncated": lambda: httpx2.Response(200, content=b'{"choices": [{"te'),
    "HTML": lambda: httpx2.Response(200, text="<html>"),
}
FAULTS: dict[str, Callable[[], httpx2.Response]] = {
    **PASSING,
    "400": lambda: httpx2.Response(400, json={"error": {"message": "bad words"}}),
    "another schema": lambda: httpx2.Response(200, json={"answers": ["well"]}),
    "no choices": lambda: httpx2.Response(200, json={"choices": []}),
    "null": lambda: httpx2.Response(200, json=None),
    "no finish": lambda: httpx2.Response(200, json={"choices": [{"index": 0, "text": "a", "finish_reason": None}]}),
    "aborted": lambda: httpx2.Response(200, json={"choices": [{"index": 0, "text": "a", "finish_reason": "abort"}]}),
    "wrong types": lambda: httpx2.Response(200, json={"choices": [{"index": "x", "text": 5, "finish_reason": "stop"}]}),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_costs_another_attempt(name: str, fault: str):
    """Also of a server that dies and returns."""

    async def main() -> None:
        lm = await EVERY[name]()
        greedy = SAMPLING.replace(temperature=0.0)
        expected = await extended(lm, [ROOT], [1], greedy)
        faults = iter((PASSING[fault],) * 2)
        asked = len(server(lm).asked)
        draws = ("completions", "completion", "generate")
        server(lm).fails = lambda path, body: next(faults, lambda: None)() if path.rpartition("/")[2] in draws else None
        assert await extended(lm, [Trajectory(QUESTION)], [1], greedy) == expected
        assert len(server(lm).asked) == asked + 3

    asyncio.run(main())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_particle_whose_request_fails_for_good_is_dropped(fault: str):
    async def main() -> None:
        lm = await connect(VLLM())
        engine = server(lm)
        engine.fails = lambda path, body: (
            FAULTS[fault]() if path == "/v1/completions" and body["seed"] % 5 == 0 else None
        )
        outcomes = unwrapped(await extended(lm, [ROOT] * 10, range(10)))
        assert [isinstance(outcome, ServerError) for outcome in outcomes] == [i % 5 == 0 for i in range(10)]
        result = await motes.asolve("How many?", lm=lm, reward=TabularReward({}), method=ParticleFilter(16), seed=1)
        dropped = [error for record in result.records for error in record.failures.values()]
        assert dropped
        assert all(isinstance(error, ServerError) for error in dropped)
        engine.fails = lambda path, body: FAULTS[fault]() if path == "/v1/completions" else None
        with pytest.raises(NoParticlesError, match="no particle is left"):
            await motes.asolve("How many?", lm=lm, reward=TabularReward({}), method=ParticleFilter(4))

    asyncio.run(main())


def test_a_merged_request_that_fails_takes_its_particles_with_it_and_no_others():
    async def main() -> None:
        lm = await connect(VLLM(), seeds="none")
        server(lm).fails = lambda path, body: FAULTS["500"]() if body.get("n") == 4 else None
        outcomes = await extended(lm, [*forks(2, 4), ROOT], range(9))
        assert [isinstance(outcome, Step) for outcome in outcomes] == [False] * 8 + [True]

    asyncio.run(main())


def test_a_stream_that_breaks_off_is_asked_for_again_and_nobody_is_told_twice():
    class Breaks(VLLM):
        breaks = 2

        async def stream(self, events: list[dict[str, Any]]) -> Any:
            if self.breaks:
                self.breaks -= 1
                events = events[:2]
            for event in events:
                yield f"data: {json.dumps(event)}\n\n".encode()

    async def main() -> None:
        lm = await connect(Breaks(), seeds="group")
        steps = await extended(lm, forks(1, 6), range(6))
        assert len(server(lm).asked) == 3
        lm = await connect(VLLM(), seeds="group")
        assert steps == await extended(lm, forks(1, 6), range(6))

    asyncio.run(main())


def test_a_key_that_is_taken_back_ends_the_run():
    async def main() -> None:
        lm = await connect(VLLM())
        server(lm).fails = lambda path, body: httpx2.Response(401)
        with pytest.raises(UnauthorizedError):
            await motes.asolve("How many?", lm=lm, reward=TabularReward({}), method=ParticleFilter(4))

    asyncio.run(main())


def test_a_problem_that_cannot_be_rendered_does_not_stop_the_others():
    async def main() -> None:
        lm = await connect(VLLM())
        bad = Problem("Why?")
        server(lm).fails = lambda path, body: FAULTS["500"]() if "Why?" in json.dumps(body) else None
        good, failed = await asyncio.gather(
            extended(lm, [ROOT] * 3, range(3)), extended(lm, [Trajectory(bad)] * 2, range(2))
        )
        assert all(isinstance(step, Step) for step in good)
        assert all(isinstance(error, ServerError) for error in unwrapped(failed))
        server(lm).fails = lambda path, body: None
        assert len(await extended(lm, [Trajectory(bad)], [1])) == 1, "it is asked for again"

    asyncio.run(main())


@pytest.mark.parametrize("make", [TGI, LlamaCpp, SGLangThatRenders])
def test_other_formats_refuse_other_schemas(make: type[Engine]):
    async def main() -> None:
        for answer in (
            {"choices": []},
            [],
            {"content": 5},
            {"text": "a", "meta_info": {}},
            {"details": None},
            "x",
            [1],
        ):
            lm = await connect(make())
            engine = server(lm)
            engine.fails = lambda path, body, answer=answer: (
                httpx2.Response(200, json=answer) if path in ("/completion", "/generate") else None
            )
            (error,) = unwrapped(await extended(lm, [ROOT], [0]))
            assert isinstance(error, BadResponseError)

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------- cancellation


def test_a_cancelled_call_closes_its_requests_at_once():
    class Silent(VLLM):
        async def __call__(self, request: httpx2.Request) -> httpx2.Response:
            if self.waits and request.url.path == "/v1/completions":
                try:
                    asked.append(request)
                    await asyncio.Event().wait()
                finally:
                    closed.append(request)
            return await super().__call__(request)

        waits = False

    async def main(seeds: Any, expected: int) -> None:
        lm = await connect(Silent(), seeds=seeds)
        await extended(lm, [ROOT], [0])
        server(lm).waits = True
        tasks = [asyncio.ensure_future(extended(lm, [t], [1])) for t in (ROOT, ROOT, Trajectory(QUESTION))]
        while len(asked) < expected:
            await asyncio.sleep(0)
        tasks[0].cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(closed) == (1 if seeds == "particle" else 0), "others wait for it, too"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(closed) == len(asked)
        assert not lm._batcher._running

    asked: list[httpx2.Request] = []
    closed: list[httpx2.Request] = []
    for seeds, expected in (("particle", 3), ("group", 2)):
        asked.clear()
        closed.clear()
        asyncio.run(main(seeds, expected))


def test_a_deadline_interrupts_a_served_model():
    class Slow(VLLM):
        def v1_completions(self, body: dict[str, Any]) -> Any:
            count.append(1)
            return super().v1_completions(body)

        async def __call__(self, request: httpx2.Request) -> httpx2.Response:
            if len(count) > 8:
                await asyncio.Event().wait()
            return await super().__call__(request)

    count: list[int] = []

    async def main() -> motes.Result:
        lm = await connect(Slow())
        return await motes.asolve("?", lm=lm, reward=TabularReward({}), method=ParticleFilter(6), deadline=0.05)

    result = asyncio.run(main())
    assert result.stopped == "deadline"


# ------------------------------------------------------------------------------------------------------- the front door


def opened(behind: Engine, spec: str = "http://server.test/v1", **options: Any) -> HTTPLanguageModel:
    return HTTPLanguageModel.open(spec, transport=httpx2.MockTransport(behind), **options)


def test_a_model_is_opened_by_its_address(monkeypatch: pytest.MonkeyPatch):
    class Found(Exception):  # noqa: N818
        pass

    def open(path: str, **options: Any) -> Any:
        raise Found(path, options)

    monkeypatch.setattr(
        HTTPLanguageModel,
        "open",
        classmethod(lambda cls, path, *, seeds=None, logprobs=None: open(path, seeds=seeds, logprobs=logprobs)),
    )
    with pytest.raises(Found) as caught:
        motes.language_model("https://a.test/v1#Q/Q-1.5?seeds=group&logprobs=0")
    assert caught.value.args == ("https://a.test/v1#Q/Q-1.5", {"seeds": "group", "logprobs": 0})
    with pytest.raises(UnknownNameError, match="'seed': did you mean 'seeds'"):
        motes.language_model("https://a.test/v1#Q?seed=3")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "motes.models.served", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'motes\[http\]'"):
        motes.language_model("http://a.test/v1#m")


def test_opening_works_where_an_event_loop_runs_and_in_several_loops():
    lm = opened(VLLM())

    async def inside() -> HTTPLanguageModel:
        return opened(VLLM())

    for served in (lm, asyncio.run(inside())):
        answers = [motes.solve("How many?", lm=served, method=Majority(4), seed=2).answer for _ in range(2)]
        assert answers[0] == answers[1]


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch):
    sent: list[str | None] = []

    class Guarded(VLLM):
        async def __call__(self, request: httpx2.Request) -> httpx2.Response:
            sent.append(request.headers.get("authorization"))
            return await super().__call__(request)

    monkeypatch.setenv("MOTES_API_KEY", "from-env")
    monkeypatch.setenv("OTHER", "other")
    opened(Guarded())
    assert set(sent) == {"Bearer from-env"}
    sent.clear()
    opened(Guarded(), api_key_env="OTHER")
    assert set(sent) == {"Bearer other"}
    sent.clear()
    assert "given" not in repr(opened(Guarded(), api_key="given"))
    assert set(sent) == {"Bearer given"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": "particles"}, "did you mean 'particle'"),
        ({"attempts": 0}, "attempts must be more than 0"),
        ({"read_timeout": -1}, "read_timeout"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"tokenizer": "./nowhere/at/all"}, "no tokenizer at"),
        ({"engine": "tgii"}, "did you mean 'tgi'"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], says: str):
    with pytest.raises(ConfigurationError, match=says):
        opened(VLLM(), **options)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_tokenizer_that_is_damaged(content: str, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigurationError, match="no tokenizer at"):
        opened(VLLM(), tokenizer=str(tmp_path))


def test_nothing_there():
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    with pytest.raises(UnreachableError, match="start the server"):
        HTTPLanguageModel.open("http://server.test", transport=httpx2.MockTransport(refuse), attempts=1)


def test_a_value_can_be_shown():
    assert json.dumps(asdict(found(VLLM())))
    assert engines.VOCABULARY[0] == "<eos>"
    assert Retries().attempts == 8


# ----------------------------------------------------------------------------------------------------------- mutations

MUTATIONS: dict[str, tuple[Any, str, str, str]] = {
    "all particles have one seed": (model, "HTTPLanguageModel", "step.seed % self.profile.seed_below", "7"),
    "a large seed is sent as it is": (model, "HTTPLanguageModel", "step.seed % self.profile.seed_below", "step.seed"),
    "one seed draws answers that are alike": (model, "HTTPLanguageModel", "and self.profile.choices_differ", ""),
    "groups are as large as one likes": (model, "HTTPLanguageModel", "self.capabilities.choices if", "1024 if"),
    "runs are grouped together": (model, "HTTPLanguageModel", "id(step.trajectory)", "step.trajectory.text"),
    "greedy particles are paid for each": (
        model,
        "HTTPLanguageModel",
        "usage = Usage()  # sampled",
        "usage = usage  # sampled",
    ),
    "the answer's own limit is ignored": (model, "HTTPLanguageModel", "if sampling.max_tokens is not None:", "if 0:"),
    "the context is ignored": (model, "HTTPLanguageModel", "limit = min(limit, context - length)", "pass"),
    "too many delimiters are sent": (model, "HTTPLanguageModel", "num_texts > self.profile.max_stops", "False"),
    "who cannot tell is believed": (model, "HTTPLanguageModel", " or not self.capabilities.tells_end", ""),
    "the rest of a token is forgotten": (
        model,
        "HTTPLanguageModel",
        "and not (request.is_cut or self._wire.has_whole_tokens)",
        "and False",
    ),
    "any failure fails the run": (
        model,
        "HTTPLanguageModel",
        "and all(isinstance(error, ContextLengthError) for error in errors)",
        "",
    ),
    "a full context fails the particle": (
        model,
        "HTTPLanguageModel",
        "is_full and step.trajectory.depth",
        "False",
    ),
    "a lower limit is not learnt": (model, "HTTPLanguageModel", "self._max_answer_tokens = reported.most", "pass"),
    "the last token is guessed from one": (prompts, "Renderer", "for length in (2, len(ids)):", "for length in (1,):"),
    "steps are tokenised again": (prompts, "Renderer", "node.step.token_ids or ", ""),
    "prompts are rendered each time": (prompts, "Renderer", "if problem not in self._prompts:", "if True:"),
    "a delimiter in two pieces is missed": (
        responses,
        "Answer",
        "first_cut(before + self.text, sampling, seen)",
        "first_cut(self.text[seen - len(before) :], sampling)",
    ),
    "a stream is cut behind its piece": (
        responses,
        "Answer",
        "self.text[: cut.end - len(before)]",
        "self.text",
    ),
    "a refused prompt fails the others": (model, "HTTPLanguageModel", "self._start_call(request, half)", "raise"),
    "a sentence that is not understood ends the answer": (
        model,
        "HTTPLanguageModel",
        "return request.limit // 2",
        "return 0",
    ),
    "the prompt is counted where it was settled before": (responses, "Call", "and index in self.waiting:", "and True:"),
    "what broke off is not counted": (responses, "Call", "if i not in used", "if False"),
    "a reply that breaks off costs nothing": (
        responses,
        "Call",
        "self.wasted += Usage(failed_prefill_tokens=prompt",
        "Usage(failed_prefill_tokens=prompt",
    ),
    "a step of llama.cpp loses its delimiter's probability": (
        model,
        "HTTPLanguageModel",
        "too_many or loses_logprobs or not",
        "too_many or not",
    ),
    "cancelled requests go on": (concurrency, "Batcher", " " * 16 + "task.cancel()", " " * 16 + "pass"),
    "a cancelled call takes others with it": (concurrency, "Batcher", "if unsettled == 0 and", "if"),
    "penalties are left to the server": (wires, "Profile", "**self.neutral", ""),
    "every token is kept by 0": (
        wires,
        "Profile",
        'self.keep_all if name == "top_k" and not value else value',
        "value",
    ),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    mutate(monkeypatch, *MUTATIONS[mistake])
    with pytest.raises((AssertionError, pytest.fail.Exception, MotesError, TypeError)):
        every_check()


def every_check() -> None:
    for name in ("vllm", "llama.cpp", "sglang"):
        test_every_field_is_sent(name)
    test_all_tokens_are_kept_where_that_is_wanted()
    test_steps_are_the_servers_own_tokens("vllm", "\n\n")
    test_steps_are_the_servers_own_tokens("vllm", "; o")
    test_steps_are_the_servers_own_tokens("llama.cpp", "\n\n")
    refusals.test_a_prompt_that_is_refused_fails_by_itself("400", "none", 0.0)
    refusals.test_no_answer_ends_early_because_a_sentence_is_not_understood("no room in the context window", 400)
    answers.test_the_prompt_is_counted_once_and_what_broke_off_by_itself((2, 0), True)
    answers.test_what_an_answer_cost_that_cannot_be_used_is_known()
    test_steps_of_text_end_at_their_delimiter_and_for_the_right_reason("unknown, tokenizer")
    test_a_prompt_is_rendered_once()
    test_each_particle_has_a_request_and_a_seed_of_its_own()
    test_particles_that_are_alike_can_be_one_prompt("vllm")
    test_no_more_answers_to_one_prompt_than_a_server_gives()
    test_particles_that_are_alike_are_asked_for_apart_where_one_seed_would_make_them_one()
    test_the_same_run_is_the_same_whatever_else_is_in_flight()
    test_at_temperature_0_what_is_alike_is_drawn_once()
    test_more_delimiters_than_a_server_takes_are_found_on_this_side()
    test_tokens_of_an_answer_are_limited()
    test_the_context_is_the_end(VLLM)
    test_a_context_that_is_not_told_is_found_out()
    test_a_limit_that_a_model_does_not_allow_is_lowered_once()
    test_a_particle_whose_request_fails_for_good_is_dropped("500")
    test_a_cancelled_call_closes_its_requests_at_once()


def test_without_a_mistake_nothing_is_found(monkeypatch: pytest.MonkeyPatch):
    for module, name, passage, _ in MUTATIONS.values():
        mutate(monkeypatch, module, name, passage, passage)
    every_check()
