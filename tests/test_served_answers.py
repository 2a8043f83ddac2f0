"""What servers answer, in every form that they give it: reasons, nulls, parts, thoughts, broken streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

import motes
from engines import VLLM, Ollama, OpenAICompatible, SGLangThatRenders, Tokenizer, connect
from motes import Majority, Problem, Sampling, Step, Trajectory, Usage
from motes.core import Failure
from motes.errors import BadResponseError, UnknownFormError
from motes.models.served.ends import BROKEN, CUT, ENDED, end_of
from motes.models.served.messages import Piece, Writer, pieces_of

ROOT = Trajectory(Problem("How many?"))
WHOLE = Sampling(delimiter=None, max_steps=1, max_step_tokens=60, max_tokens=50)
BOX = r"So \boxed{4}"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5}
THOUGHT = [{"type": "thinking", "thinking": [{"type": "text", "text": r"maybe \boxed{5}"}]}]


def answer(message: Any = BOX, finish: Any = "stop", **rest: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": message} if isinstance(message, (str, list)) else message
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE, **rest}


def without(reply: dict[str, Any], *names: str) -> dict[str, Any]:
    (choice,) = reply["choices"]
    return {**reply, "choices": [{name: value for name, value in choice.items() if name not in names}]}


class Scripted(OpenAICompatible):
    """A chat that, once it is opened, answers what it is told; the last thing for ever. A list is a stream."""

    continues = True
    completes = False
    script: tuple[Any, ...] = ()

    def v1_chat_completions(self, body: dict[str, Any]) -> Any:
        if not self.script:
            return super().v1_chat_completions(body)
        reply, *rest = self.script
        self.script = tuple(rest) or (reply,)
        return httpx2.Response(200, content=events(reply) if isinstance(reply, list) else json.dumps(reply))


def events(script: list[Any]) -> bytes:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in script]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


async def step(*script: Any, sampling: Sampling = WHOLE, attempts: int = 3) -> tuple[Step, Scripted]:
    engine = Scripted()
    lm = await connect(engine, retries=motes.transport.Retries(attempts=attempts))
    engine.script = script
    return await extended(lm, sampling), engine


async def extended(lm: Any, sampling: Sampling) -> Step:
    """Its step, or what it failed for, raised."""
    (outcome,) = await lm.extend([ROOT], sampling, [1])
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def drawn(*script: Any, **options: Any) -> Step:
    return asyncio.run(step(*script, **options))[0]


# ----------------------------------------------------------------------------------------------------- why it ended


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        *((reason, "eos") for reason in (None, "", "stop", "eos", "eos_token", "end_turn", "STOP", "stop_sequence")),
        *((reason, "eos") for reason in ("tool_calls", "function_call", "content_filter", "repetition", "refusal")),
        *((reason, "length") for reason in ("length", "max_tokens", "MAX_TOKENS", "model_length")),
    ],
)
def test_every_reason_is_read(reason: Any, end: str):
    assert end_of(reason, "URL") == end
    assert drawn(answer(finish=reason)).end == end
    said = [piece(BOX), piece(finish=reason), "[DONE]"]
    assert drawn(said, sampling=Sampling(max_step_tokens=50)).end == end


def test_reasons_are_of_one_kind_each():
    assert len(ENDED | CUT | BROKEN) == len(ENDED) + len(CUT) + len(BROKEN)
    assert all(reason == reason.lower() for reason in ENDED | CUT | BROKEN)


@pytest.mark.parametrize("reason", ["abort", "error", "cancelled", "network_error"])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_is_broken_off_is_asked_for_again(reason: str, streamed: bool):
    broken = [piece(BOX), piece(finish=reason), "[DONE]"] if streamed else answer(finish=reason)
    fine = [piece(BOX), piece(finish="stop"), "[DONE]"] if streamed else answer()
    sampling = Sampling(max_step_tokens=50) if streamed else WHOLE
    outcome, engine = asyncio.run(step(broken, fine, sampling=sampling))
    assert (outcome.text, outcome.end, len(engine.asked)) == (BOX, "eos", 2)
    with pytest.raises(BadResponseError, match=f"broke off an answer \\({reason}\\)"):
        drawn(broken, sampling=sampling)


@pytest.mark.parametrize("broken", [{"choices": []}, {"choices": None}, {"error": {"message": "overloaded"}}, {}])
def test_an_answer_without_any_is_asked_for_again(broken: Any):
    outcome, engine = asyncio.run(step(broken, broken, answer()))
    assert (outcome.text, len(engine.asked)) == (BOX, 3)


def test_a_reason_that_nobody_knows_is_told():
    with pytest.raises(UnknownFormError, match="for the reason 'fatigue', which motes does not know"):
        drawn(answer(finish="fatigue"))


@pytest.mark.parametrize("form", [answer(finish="fatigue"), answer(index=0, choices=[7]), answer({"content": 7})])
def test_what_cannot_be_understood_is_asked_for_once_more_only(form: Any):
    outcome, engine = asyncio.run(step(form, answer()))
    assert (outcome.text, len(engine.asked)) == (BOX, 2)

    async def asked() -> int:
        engine = Scripted()
        lm = await connect(engine, retries=motes.transport.Retries(attempts=8))
        engine.script = (form,)
        with pytest.raises(UnknownFormError):
            await extended(lm, WHOLE)
        return len(engine.asked)

    assert asyncio.run(asked()) == 2


def test_numbers_without_end_are_another_form():
    reply = answer()
    reply["choices"][0]["index"] = float("inf")
    with pytest.raises(UnknownFormError):
        drawn(reply)
    with pytest.raises(UnknownFormError):
        drawn([{"choices": [{"index": float("inf"), "delta": {}}]}], sampling=Sampling(max_step_tokens=50))


def test_without_a_reason_a_full_answer_was_cut():
    full = {"prompt_tokens": 7, "completion_tokens": 50}
    assert drawn(answer(finish=None, usage=full)).end == "length"
    assert drawn(answer(finish="stop", usage=full)).end == "eos"


def test_engines_that_always_give_a_reason_have_not_ended_without_one():
    async def main() -> None:
        lm = await connect(VLLM())
        null = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
        lm.client._transport.handler.fails = lambda path, body: (  # type: ignore[union-attr]
            httpx2.Response(200, json=null) if path == "/v1/completions" else None
        )
        await extended(lm, WHOLE)

    with pytest.raises(BadResponseError, match="did not bring an answer to its end"):
        asyncio.run(main())


# ------------------------------------------------------------------------------------------------ nulls, and less


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (without(answer(), "index"), BOX),
        (without(answer(), "finish_reason"), BOX),
        (answer({"content": None}), ""),
        (answer(None), ""),
        (without(answer(), "message"), ""),
        (answer({"content": None, "refusal": "I will not."}), "I will not."),
        (answer({"content": None, "tool_calls": [{"function": {"name": "f"}}]}, finish="tool_calls"), ""),
        (answer(BOX, choices=[{"message": BOX, "finish_reason": "stop"}]), BOX),
        (answer("ab\ud83d"), "ab\N{REPLACEMENT CHARACTER}"),
        (answer(logprobs=None), BOX),
    ],
)
def test_what_may_be_missing(reply: Any, text: str):
    outcome = drawn(reply)
    assert (outcome.text, outcome.end) == (text, "eos")


@pytest.mark.parametrize("usage", [None, {}, [], "much", {"prompt_tokens": None, "completion_tokens": None}])
def test_usage_that_says_nothing_is_estimated(usage: Any):
    outcome = drawn(answer(usage=usage))
    assert outcome.usage == Usage(generated_tokens=3, prefill_tokens=3)  # four characters to a token


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({}, 0),
        ({"prompt_tokens_details": None}, 0),
        ({"prompt_tokens_details": {"cached_tokens": None}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 3.0}}, 3),
        ({"prompt_cache_hit_tokens": 4}, 4),
    ],
)
def test_usage_is_read(details: Any, cached: int):
    for counts in (USAGE, {"prompt_tokens": 7.0, "completion_tokens": 5.0}):
        usage = drawn(answer(usage={**counts, **details})).usage
        assert usage == Usage(generated_tokens=5, prefill_tokens=7 - cached, prefill_tokens_cached=cached)


@pytest.mark.parametrize("reply", [answer(7), without(answer(finish=None), "message"), {"choices": ["well"]}])
def test_another_form_is_refused(reply: Any):
    if isinstance(reply["choices"][0], dict) and "message" in reply["choices"][0]:
        reply["choices"][0]["message"] = {"content": 7}
    with pytest.raises(BadResponseError, match="in a form that is not its own"):
        drawn(reply)


# --------------------------------------------------------------------------------------------------------- streams


def piece(text: Any = None, finish: Any = None, **delta: Any) -> dict[str, Any]:
    content = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": {**content, **delta}, "finish_reason": finish}]}


NOISE: list[Any] = [
    {"id": "x", "object": "ping"},
    {"choices": [], "prompt_filter_results": []},
    {"choices": None, "usage": None},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": None}},
    piece("", role="assistant"),
    piece(None, ""),
    {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
    {"choices": [{"index": 0}]},
]


@pytest.mark.parametrize(
    "last",
    [
        [piece(finish="stop")],
        [{"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}, "[DONE]"],
        [{"choices": [{"index": 0, "finish_reason": "stop"}]}],
        [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, "[DONE]"],
        [piece(None, None), "[DONE]"],
        [piece(None, ""), "[DONE]"],
        ["[DONE]"],
    ],
)
def test_events_that_add_nothing_are_left_out(last: list[Any]):
    said = [*NOISE, {"choices": [{"delta": {"content": "So "}}]}, *NOISE, piece(r"\boxed{4}", ""), *NOISE, *last]
    outcome = drawn(said, sampling=Sampling(max_step_tokens=50))
    assert (outcome.text, outcome.end) == (BOX, "eos")
    assert outcome.usage is not None
    assert outcome.usage.generated_tokens == 2
    assert outcome.usage.prefill_tokens == 7


def test_a_stream_that_just_ends_is_broken_off():
    said = [piece("So "), piece(r"\boxed{4}")]
    outcome, engine = asyncio.run(step(said, [*said, "[DONE]"], sampling=Sampling(max_step_tokens=50)))
    assert (outcome.text, len(engine.asked)) == (BOX, 2)
    with pytest.raises(BadResponseError, match="broke off 1 of 1 answers"):
        drawn(said, sampling=Sampling(max_step_tokens=50))
    with pytest.raises(BadResponseError, match="broke off"):
        drawn([{"choices": []}, "[DONE]"], sampling=Sampling(max_step_tokens=50))


def test_an_emoji_may_come_in_two_halves():
    assert drawn([piece("a\ud83d"), piece("\ude00b", "stop")], sampling=Sampling(max_step_tokens=50)).text == "a😀b"


# ----------------------------------------------------------------------------------------------- parts and thoughts

FORMS: list[tuple[Any, str]] = [
    ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
    ({"content": ["a", "b"]}, "ab"),
    ({"content": [*THOUGHT, {"type": "text", "text": BOX}]}, r"<think>maybe \boxed{5}</think>" + BOX),
    ({"content": THOUGHT}, r"<think>maybe \boxed{5}</think>"),
    ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": "a"}]}, "<think>hm</think>a"),
    ({"content": [{"type": "reasoning", "summary": [{"text": "hm"}]}, "a"]}, "<think>hm</think>a"),
    ({"content": [{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "a"}]}, "a"),
    ({"content": "a", "reasoning_content": "hm"}, "<think>hm</think>a"),
    ({"content": "a", "reasoning": "hm"}, "<think>hm</think>a"),
    ({"content": "a", "reasoning": "hm", "reasoning_content": "hm", "reasoning_details": []}, "<think>hm</think>a"),
    ({"content": "a", "reasoning": None, "reasoning_content": ""}, "a"),
    ({"content": "", "reasoning_content": r"I think \boxed{4}"}, r"<think>I think \boxed{4}</think>"),
    ({"content": [], "thinking": "hm"}, "<think>hm</think>"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "text"), FORMS)
def test_parts_are_read_and_thoughts_are_thoughts(message: Any, text: str):
    assert drawn(answer(message)).text == text
    said = [{"choices": [{"index": 0, "delta": message, "finish_reason": None}]}, piece(finish="stop")]
    assert drawn(said, sampling=Sampling(max_step_tokens=50)).text == text


def test_tags_open_and_close_once_in_a_stream():
    thoughts = [piece([{"type": "thinking", "thinking": [{"type": "text", "text": t}]}]) for t in ("maybe ", "5")]
    said = [
        piece("", role="assistant"),
        *thoughts,
        piece(""),
        piece(reasoning_content="?"),
        piece([]),
        piece("So "),
        piece("4"),
    ]
    assert (
        drawn([*said, piece(finish="stop")], sampling=Sampling(max_step_tokens=50)).text
        == "<think>maybe 5?</think>So 4"
    )
    again = [*said, piece(reasoning="hm"), piece("!", "stop")]
    assert drawn(again, sampling=Sampling(max_step_tokens=50)).text == "<think>maybe 5?</think>So 4<think>hm</think>!"


def test_a_thought_that_a_limit_cuts_stays_open():
    assert drawn(answer({"reasoning_content": "hm"}, finish="length")).text == "<think>hm"
    said = [piece(reasoning_content="hm"), piece(finish="length")]
    assert drawn(said, sampling=Sampling(max_step_tokens=50)).text == "<think>hm"


def test_a_thought_of_several_steps_is_one():
    async def main() -> None:
        engine = Scripted()
        lm = await connect(engine)
        sampling = Sampling(max_step_tokens=50)
        engine.script = ([piece(reasoning_content="one\n\n"), piece(reasoning_content="two")],)
        (first,) = await lm.extend([ROOT], sampling, [1])
        assert (first.text, first.end) == ("<think>one\n\n", "step")
        engine.script = ([piece(reasoning_content="two"), piece("So 4", "stop")],)
        (second,) = await lm.extend([ROOT.extend(first)], sampling, [1])
        assert second.text == "two</think>So 4"
        engine.script = ([piece("two</think>So 4", "stop")],)  # as a server does that reads no thoughts of a prefix
        (second,) = await lm.extend([ROOT.extend(first)], sampling, [1])
        assert second.text == "two</think>So 4"

    asyncio.run(main())


def test_what_is_boxed_in_a_thought_is_no_answer():
    async def main() -> None:
        engine = Scripted()
        lm = await connect(engine)
        engine.script = (answer(THOUGHT), answer([*THOUGHT, {"type": "text", "text": BOX}]))
        result = await motes.asolve("2+2?", lm=lm, reward=None, method=Majority(2), sampling=WHOLE)
        assert result.answers in ((None, "4"), ("4", None))

    asyncio.run(main())


def test_ollama_tells_thoughts_apart():
    class Thinks(Ollama):
        def api_generate(self, body: dict[str, Any]) -> Any:
            end = {"response": "4", "done": True, "done_reason": "stop", "eval_count": 3, "prompt_eval_count": 9}
            return {**end, "thinking": "hm"}

    async def main() -> Any:
        lm = await connect(Thinks(), vocabulary=Tokenizer())
        return (await lm.extend([ROOT], WHOLE, [1]))[0]

    assert asyncio.run(main()).text == "<think>hm</think>4"


def test_pieces_of_what_is_no_message():
    assert pieces_of(None) == ()
    assert Writer().write([Piece("a", True), Piece("b")]) == "<think>a</think>b"


# ------------------------------------------------------------------------------------------ what failed attempts cost


class Breaks(VLLM):
    """Breaks streams off: each after so many events."""

    breaks: tuple[int, ...] = ()
    reverse = False

    async def stream(self, events: list[dict[str, Any]]) -> Any:
        if self.breaks:
            most, *rest = self.breaks
            self.breaks = tuple(rest)
            events = events[:most]
        elif self.reverse:  # what ended first in the attempt before ends last
            events = [*events[-2::-1], events[-1]]
        for event in events:
            yield f"data: {json.dumps(event)}\n\n".encode()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("breaks", [(), (1,), (2, 0), (1, 3)])
def test_the_prompt_is_counted_once_and_what_broke_off_by_itself(breaks: tuple[int, ...], reverse: bool):
    async def main(breaks: tuple[int, ...]) -> tuple[Usage, int, list[int]]:
        engine = Breaks()
        lm = await connect(engine, seeds="group")
        engine.breaks, engine.reverse = breaks, reverse
        steps = await lm.extend([ROOT] * 6, Sampling(temperature=0.9, max_step_tokens=5), range(6))
        (body,) = {json.dumps(body) for body in engine.asked}
        prompt = len(json.loads(body)["prompt"])
        lengths = sorted(len(step.token_ids) for step in steps)
        return sum((step.usage for step in steps), Usage()), prompt, lengths

    usage, prompt, lengths = asyncio.run(main(breaks))
    assert usage.generated_tokens == sum(lengths)
    assert (usage.prefill_tokens, usage.prefill_tokens_cached) == (prompt - 5, 5)
    wasted = sum(sum(lengths[:most]) for most in breaks)  # drawn again each time, or not settled
    assert usage.failed_generated_tokens == wasted
    assert usage.failed_prefill_tokens == prompt * sum(most > 0 for most in breaks)


def test_a_stream_that_ends_before_its_usage_has_the_prompt_counted_on_this_side():
    async def main() -> None:
        engine = Breaks()
        lm = await connect(engine, seeds="group")
        engine.breaks = (6,)
        steps = await lm.extend([ROOT] * 6, Sampling(temperature=0.9, max_step_tokens=5), range(6))
        (body,) = engine.asked
        usage = sum((step.usage for step in steps), Usage())
        assert (usage.prefill_tokens, usage.prefill_tokens_cached) == (len(body["prompt"]), 0)
        assert usage.failed_generated_tokens == 0

    asyncio.run(main())


def test_what_an_answer_cost_that_cannot_be_used_is_known():
    outcome = drawn(answer(finish="abort"), answer())
    assert outcome.usage == Usage(
        generated_tokens=5, prefill_tokens=7, failed_generated_tokens=5, failed_prefill_tokens=7
    )

    class Aborts(SGLangThatRenders):
        aborts = 0

        def generate(self, body: dict[str, Any]) -> Any:
            told = super().generate(body)
            if self.aborts:
                self.aborts -= 1
                told["meta_info"]["finish_reason"] = {"type": "abort", "message": "out of memory"}
            return told

    async def main() -> None:
        engine = Aborts()
        lm = await connect(engine)
        engine.aborts = 1
        (step,) = await lm.extend([ROOT], WHOLE, [1])
        assert step.usage.generated_tokens == step.usage.failed_generated_tokens > 0
        assert step.usage.failed_prefill_tokens == step.usage.prefill_tokens + step.usage.prefill_tokens_cached

    asyncio.run(main())


def test_what_a_request_cost_that_failed_for_good_is_known():
    async def main() -> None:
        engine = Scripted()
        lm = await connect(engine)
        engine.script = (answer(finish="abort"),)
        (outcome,) = await lm.extend([ROOT], WHOLE, [1])
        assert outcome.usage == Usage(failed_generated_tokens=15, failed_prefill_tokens=21)
        with pytest.raises(motes.errors.NoParticlesError) as caught:
            await motes.asolve("2+2?", lm=lm, reward=None, method=Majority(2), sampling=WHOLE)
        assert caught.value.result.usage.failed_generated_tokens == 30
        breaks = Breaks()
        lm = await connect(breaks, seeds="group")
        breaks.breaks = (1, 2, 0)
        outcomes = await lm.extend([ROOT] * 6, Sampling(temperature=0.9, max_step_tokens=5), range(6))
        settled = [outcome for outcome in outcomes if isinstance(outcome, Step)]
        spent = sum((outcome.usage for outcome in outcomes), Usage())
        assert len(settled) == 2
        assert spent.generated_tokens == sum(len(step.token_ids) for step in settled)
        assert spent.failed_generated_tokens == min(len(step.token_ids) for step in settled)  # the first, drawn again
        assert spent.failed_prefill_tokens == 2 * len(breaks.asked[0]["prompt"])

    asyncio.run(main())


def test_usage_adds_up():
    assert Usage(generated_tokens=3) + Usage(failed_generated_tokens=2) == Usage(3, failed_generated_tokens=2)
