"""What servers refuse: tokens that they have no room for, and one prompt among others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

import motes
from engines import TGI, VLLM, Closed, OpenAICompatible, Tokenizer, connect, encode, render
from motes import Problem, Sampling, Step, Trajectory
from motes.core import Failure
from motes.errors import ContextLengthError
from motes.transport.refusals import Limits, is_about_context, is_about_length, limits

ROOT = Trajectory(Problem("How many?"))
SENTENCES: dict[str, tuple[str, Limits]] = {
    "vLLM, before 0.10": (
        "This model's maximum context length is 2048 tokens. However, you requested 2500 tokens (1500 in the messages, "
        "1000 in the completion). Please reduce the length of the messages or completion.",
        Limits(context=2048, prompt=1500),
    ),
    "vLLM 0.10": (
        "'max_tokens' or 'max_completion_tokens' is too large: 1000. This model's maximum context length is 2048 "
        "tokens and your request has 1500 input tokens (1000 > 2048 - 1500).",
        Limits(context=2048, prompt=1500),
    ),
    "vLLM 0.12": (
        "This model's maximum context length is 2048 tokens. However, you requested 1000 output tokens and your prompt "
        "contains at least 1500 input tokens, for a total of at least 2500 tokens.",
        Limits(context=2048, prompt=1500),
    ),
    "vLLM, the prompt alone": (
        "The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make sure that "
        "`max_model_len` is no smaller than the number of text tokens.",
        Limits(context=2048, prompt=3000),
    ),
    "SGLang": (
        "Requested token count exceeds the model's maximum context length of 2048 tokens. You requested a total of "
        "42460 tokens: 1500 tokens from the input messages and 40960 tokens for the completion.",
        Limits(context=2048, prompt=1500),
    ),
    "SGLang, the prompt alone": (
        "The input (3000 tokens) is longer than the model's context length (2048 tokens).",
        Limits(context=2048, prompt=3000),
    ),
    "SGLang, cut": (
        "Input length (3000 tokens) exceeds the maximum allowed length (2042 tokens). Use a shorter input.",
        Limits(context=2042, prompt=3000),
    ),
    "TGI": (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1200 `inputs` tokens and "
        "1024 `max_new_tokens`",
        Limits(context=2048, prompt=1200),
    ),
    "TGI, the prompt alone": (
        "Input validation error: `inputs` must have less than 2047 tokens. Given: 3000",
        Limits(context=2047, prompt=3000),
    ),
    "llama.cpp": (
        "request (3000 tokens) exceeds the available context size (2048 tokens), try increasing it",
        Limits(context=2048, prompt=3000),
    ),
    "llama.cpp, before": (
        "the request exceeds the available context size. try increasing the context size or enable context shift",
        Limits(),
    ),
    "Ollama": ("input length exceeds the context length", Limits()),
    "LM Studio": (
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context "
        "length of only 4096 tokens, which is not enough.",
        Limits(context=4096, prompt=5000),
    ),
    "OpenAI": (
        "This model's maximum context length is 4097 tokens, however you requested 5000 tokens (1000 in your prompt; "
        "4000 for the completion). Please reduce your prompt; or completion length.",
        Limits(context=4097, prompt=1000),
    ),
    "OpenAI, messages": (
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. Please "
        "reduce the length of the messages.",
        Limits(context=8192, prompt=9000),
    ),
    "OpenAI, responses": (
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
        Limits(context=272000, prompt=300000),
    ),
    "OpenAI, the answer alone": (
        "max_tokens is too large: 40960. This model supports at most 16384 completion tokens, whereas you provided "
        "40960.",
        Limits(most=16384),
    ),
    "Mistral": (
        "Prompt contains 65673 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        Limits(context=32768, prompt=65673),
    ),
    "LiteLLM": (
        "litellm.ContextWindowExceededError: AnthropicException - prompt is too long: 208310 tokens > 200000 maximum",
        Limits(context=200000, prompt=208310),
    ),
    "Anthropic": (
        "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length or "
        "`max_tokens` and try again",
        Limits(context=200000, prompt=188240),
    ),
    "Anthropic, the answer alone": (
        "max_tokens: 40960 > 8192, which is the maximum allowed number of output tokens for claude-3-5-sonnet-20241022",
        Limits(most=8192),
    ),
    "Groq": (
        "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the "
        "`context_window` for this model",
        Limits(most=8192),
    ),
    "DeepSeek": ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", Limits(most=8192)),
    "DashScope": ("<400> InvalidParameter: Range of max_tokens should be [1, 8192]", Limits(most=8192)),
    "Gemini": (
        "Unable to submit request because it has a maxOutputTokens value of 40960 but the supported range is from 1 "
        "(inclusive) to 8193 (exclusive).",
        Limits(most=8192),
    ),
    "Gemini, the prompt": (
        "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).",
        Limits(context=1048576, prompt=1100000),
    ),
    "OpenRouter": (
        "This endpoint's maximum context length is 131072 tokens. However, you requested about 140000 tokens (100000 "
        "of text input, 40000 in the output). Please reduce the length of either one",
        Limits(context=131072, prompt=100000),
    ),
    "Cerebras": (
        "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
        Limits(context=8192, prompt=9000),
    ),
    "Bedrock": (
        "The maximum tokens you requested exceeds the model limit of 8192. Try again with a maximum tokens value that "
        "is lower than 8192.",
        Limits(most=8192),
    ),
    "TabbyAPI": ("Prompt length 5000 is greater than max_seq_len 4096", Limits(context=4096, prompt=5000)),
}  # fmt: skip


@pytest.mark.parametrize("server", SENTENCES)
def test_what_servers_say_of_their_limits_is_read(server: str):
    sentence, told = SENTENCES[server]
    assert limits(sentence) == told
    assert limits(sentence).room == told.room
    assert is_about_context(sentence) or told.most is not None
    assert is_about_context(sentence) or is_about_length(sentence)


@pytest.mark.parametrize(
    "sentence", ["token id 99999 is out of vocabulary", "bad words", "top_k is unknown", "the engine has 3 slots"]
)
def test_what_is_not_about_length(sentence: str):
    assert limits(sentence) == Limits()
    assert not is_about_length(sentence)
    assert not is_about_context(sentence)


def refusing(context: int, message: str, status: int = 400) -> Callable[[str, Any], httpx2.Response | None]:
    """As a server does that counts prompt and answer together."""

    def fails(path: str, body: dict[str, Any]) -> httpx2.Response | None:
        if "messages" not in body:
            return None
        have = sum(len(encode(turn["content"])) for turn in body["messages"])
        if have + body["max_tokens"] <= context:
            return None
        return httpx2.Response(status, json={"error": {"message": message.format(have=have, context=context)}})

    return fails


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize(
    "message",
    [
        "no room in the context window",
        "max_tokens is not to our liking",
        "maximum context length is {context} tokens, {have} in the messages",
        "this model's context length is smaller than a prompt of seventy",
    ],
)
def test_no_answer_ends_early_because_a_sentence_is_not_understood(message: str, status: int):
    """Step by step to the context's end, whatever the server says."""

    async def main() -> None:
        engine = OpenAICompatible()
        lm = await connect(engine)
        engine.fails = refusing(100, message, status)
        trajectory, sampling = ROOT, Sampling(temperature=0.9, max_step_tokens=64, delimiter=None)
        for seed in range(99):
            outcomes = await lm.extend([trajectory], sampling, [seed])
            step = outcomes[0]
            if not isinstance(step, Step) or (step.end == "length" and not step.text):
                break
            trajectory = trajectory.extend(Step(step.text, "step"))
        have = sum(len(encode(text)) for text in ("How many?", trajectory.text))
        assert have >= 99, "not a token more would have been granted"

    asyncio.run(main())


def test_a_question_that_does_not_fit_fails_by_itself():
    async def main() -> None:
        engine = OpenAICompatible()
        lm = await connect(engine)
        engine.fails = refusing(60, "no room in the context window")
        long = Trajectory(Problem("How many? " * 20))
        with pytest.raises(ContextLengthError):
            await lm.extend([long], Sampling(), [0])
        good, failed = await lm.extend([ROOT, long], Sampling(temperature=0.9, max_step_tokens=9), [0, 1])
        assert isinstance(good, Step)
        assert isinstance(failed, Failure)
        assert isinstance(failed.error, ContextLengthError)

    asyncio.run(main())


def test_a_limit_on_answers_is_learnt():
    async def main() -> None:
        engine = Closed()
        lm = await connect(engine, base="https://api.openai.com/v1#tiny")
        engine.fails = lambda path, body: (
            engine.refused("the valid range of max_tokens is [1, 100]")
            if body.get("max_completion_tokens", 0) > 100
            else None
        )
        for _ in range(2):
            await motes.asolve("How many?", lm=lm, reward=None, method=motes.Greedy())
        assert [body["max_completion_tokens"] for body in engine.asked] == [40960, 100, 100]

    asyncio.run(main())


@pytest.mark.parametrize("make", [lambda **o: connect(TGI(**o)), lambda **o: connect(TGI(**o), vocabulary=Tokenizer())])
def test_the_length_of_a_text_is_known_where_it_matters(make: Any):
    """To the last token of the context, without a refusal."""

    async def main() -> None:
        prompt = encode(render([dict(message) for message in ROOT.problem.messages]))
        lm = await make(context=len(prompt) + 30)
        engine = lm.client._transport.handler
        trajectory, sampling = ROOT, Sampling(temperature=0.9, max_step_tokens=16, delimiter=None)
        for seed in range(99):
            (step,) = await lm.extend([trajectory], sampling, [seed])
            assert isinstance(step, Step)
            if step.end == "length" and not step.text:
                break
            trajectory = trajectory.extend(Step(step.text, "step"))
        assert len(encode(trajectory.text)) == 30
        assert all(isinstance(body["inputs"], str) for body in engine.asked)
        wanted = [len(encode(body["inputs"])) + body["parameters"]["max_new_tokens"] for body in engine.asked]
        assert max(wanted) <= engine.context
        with pytest.raises(ContextLengthError, match="shorten the question"):
            await lm.extend([Trajectory(Problem("How many? " * 40))], sampling, [0])

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------- merged requests


def poisoned(refusal: Callable[[], httpx2.Response]) -> Callable[[str, Any], httpx2.Response | None]:
    (poison, *_) = encode("~~~")

    def fails(path: str, body: dict[str, Any]) -> httpx2.Response | None:
        if not path.endswith("/completions"):
            return None
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        return refusal() if any(poison in prompt for prompt in prompts) else None

    return fails


REFUSALS: dict[str, Callable[[], httpx2.Response]] = {
    "400": lambda: httpx2.Response(400, json={"error": {"message": "token id 99999 is out of vocabulary"}}),
    "500": lambda: httpx2.Response(500, json={"error": {"message": "list index out of range"}}),
    "no choices": lambda: httpx2.Response(200, json={"choices": []}),
    "too long": lambda: httpx2.Response(400, json={"error": {"message": SENTENCES["SGLang, the prompt alone"][0]}}),
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize(("seeds", "temperature"), [("none", 0.8), ("none", 0.0), (None, 0.0), ("group", 0.8)])
def test_a_prompt_that_is_refused_fails_by_itself(refusal: str, seeds: Any, temperature: float):
    """In one call and in many, beside prompts of other runs, with several answers to each."""
    questions = ["a good one", "a bad one ~~~", "another", "and one more", "a bad ~~~", "a last"]
    trajectories = [Trajectory(Problem(question)) for question in questions for _ in range(2)]

    async def main(at_once: bool) -> list[Any]:
        lm = await connect(VLLM(), seeds=seeds)
        lm.client._transport.handler.fails = poisoned(REFUSALS[refusal])  # type: ignore[union-attr]
        sampling = Sampling(temperature=temperature)
        if at_once:
            return list(await lm.extend(trajectories, sampling, range(12)))
        calls = (lm.extend([trajectory], sampling, [i]) for i, trajectory in enumerate(trajectories))
        return [
            Failure(outcome) if isinstance(outcome, ContextLengthError) else outcome[0]  # type: ignore[index]
            for outcome in await asyncio.gather(*calls, return_exceptions=True)
        ]

    for at_once in (True, False):
        outcomes = asyncio.run(main(at_once))
        assert [isinstance(outcome, Failure) for outcome in outcomes] == [
            "~~~" in q for q in questions for _ in range(2)
        ]


def test_a_refused_prompt_is_found_by_halves():
    async def main() -> None:
        engine = VLLM()
        lm = await connect(engine, seeds="none")
        engine.fails = poisoned(REFUSALS["400"])
        questions = [f"What is {i}?" + "~~~" * (i == 5) for i in range(64)]
        outcomes = await lm.extend([Trajectory(Problem(q)) for q in questions], Sampling(), range(64))
        assert sum(isinstance(outcome, Failure) for outcome in outcomes) == 1
        assert len(engine.asked) == 1 + 2 * 6

    asyncio.run(main())


def test_a_server_that_is_down_is_not_asked_for_each_prompt():
    async def main() -> None:
        engine = VLLM()
        lm = await connect(engine, seeds="none")
        engine.fails = lambda path, body: httpx2.Response(503) if "completions" in path else None
        outcomes = await lm.extend([Trajectory(Problem(f"{i}?")) for i in range(8)], Sampling(), range(8))
        assert all(isinstance(outcome, Failure) for outcome in outcomes)
        assert len(engine.asked) == 3

    asyncio.run(main())
