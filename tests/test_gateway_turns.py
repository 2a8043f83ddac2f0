"""Tools, structured output and log-probabilities: answers that are whole turns of the assistant."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx2
import pytest

import gateways
import motes
import worlds
from motes.core import Usage
from motes.errors import RejectedError, UnknownFormError
from motes.gateway.answering import open_models
from motes.gateway.schemas import Schema, canonical_json, check_schema
from motes.models.served.engines import PROFILES
from motes.models.served.model import HTTPLanguageModel
from motes.models.served.probe import Capabilities
from motes.models.served.turns import ToolCall, Turn, read_turn
from motes.models.served.wires import Chat
from motes.transport import Address, Client

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
AS_PERSON = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}


def call(name: str, **arguments: Any) -> Turn:
    return turn(calls=[(name, json.dumps(arguments))])


def turn(
    content: str = "", *, calls: Sequence[tuple[str, str]] = (), thoughts: str = "", end: str = "eos", **more: Any
) -> Turn:
    calls_made = tuple(ToolCall(name, arguments) for name, arguments in calls)
    usage = Usage(generated_tokens=10, prefill_tokens=20, prefill_tokens_cached=5)
    return Turn(content, thoughts, calls_made, end, usage, **more)  # type: ignore[arg-type]


class Turns(worlds.StoryLanguageModel):
    """Returns these turns, one after the other; an exception in their place is raised."""

    def __init__(self, *turns: Turn | Exception) -> None:
        super().__init__()
        self.turns, self.bodies = list(turns), []

    async def draw_turn(self, fields: Mapping[str, Any], sampling: motes.Sampling, seed: int) -> Turn:
        drawn = self.turns[len(self.bodies) % len(self.turns)]
        self.bodies.append((fields, sampling, seed))
        if isinstance(drawn, Exception):
            raise drawn
        return drawn


class Liking(motes.FunctionReward):
    """Scores turns by a word that they contain."""

    def __init__(self, scores: Mapping[str, float]) -> None:
        super().__init__(
            lambda problem, text: next((s for word, s in scores.items() if word in text), 0.1), outcome=False
        )


@contextlib.contextmanager
def drawing(
    *turns: Turn | Exception, reward: Any = None, strict: bool = False, **settings: Any
) -> Iterator[tuple[httpx2.Client, Turns]]:
    lm = Turns(*turns)
    model = {
        **gateways.MODEL,
        "method": "majority",
        "methods": ["pf", "wbon", "bon"],
        "particles": len(turns),
        **settings,
    }
    config = gateways.config(models={"story": model}, strict=strict)
    changes = {"lm": lm} | ({} if reward is None else {"reward": reward})
    models = {name: dataclasses.replace(served, **changes) for name, served in open_models(config).items()}
    with gateways.gateway(config, models) as client:
        yield client, lm


def ask(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post(CHAT, json={"model": "story", "messages": [USER], "seed": 1, **fields})


def message(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"]


def called(response: httpx2.Response) -> list[tuple[str, Any]]:
    calls = message(response)["tool_calls"]
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


PARIS, ROME = call("weather", city="Paris"), call("weather", city="Rome")


def test_tool_calls_are_compared_by_meaning_and_chosen_by_vote():
    spelled = turn(calls=[("weather", '{ "unit":"C",  "city":"Paris" }')])
    other_order = call("weather", city="Paris", unit="C")
    with drawing(ROME, ROME, spelled, other_order, other_order) as (client, lm):
        response = ask(client, tools=[WEATHER])
        body = response.json()
        assert called(response) == [("weather", {"city": "Paris", "unit": "C"})]
        (choice,) = body["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
        (made,) = choice["message"]["tool_calls"]
        assert (made["type"], made["id"][:5]) == ("function", "call_")
        assert body["motes"]["confidence"] == pytest.approx(0.6)
        assert [round(entry["mass"], 6) for entry in body["motes"]["posterior"]] == [0.6, 0.4]
        assert body["motes"]["answer"] == '[{"arguments":{"city":"Paris","unit":"C"},"name":"weather"}]'
        assert body["usage"]["completion_tokens"] == 50
        fields, sampling, _ = lm.bodies[0]
        assert fields == {"messages": [USER], "tools": [WEATHER]}
        assert (sampling.delimiter, sampling.max_tokens, sampling.temperature) == (None, None, 0.8)
        assert len({seed for _, _, seed in lm.bodies}) == 5


def test_calls_that_cannot_be_made_do_not_vote():
    wrong = [
        call("weather", town="Paris"), call("weather", city=3), call("weather", city="Rome", unit="K"), call("other"),
        turn(calls=[("weather", '{"city": "Par')]), turn(calls=[("weather", "[]")]), turn(calls=[("weather", "NaN")]),
        turn(calls=[("weather", "")]), turn(calls=[("weather", '{"city": "Rome"}')], end="length"),
        turn(calls=[("weather", "[" * 100_000)]),
    ]  # fmt: skip
    with drawing(*wrong, PARIS) as (client, _):
        assert called(ask(client, tools=[WEATHER])) == [("weather", {"city": "Paris"})]
    with drawing(*wrong) as (client, _):
        response = ask(client, tools=[WEATHER])
        assert (response.status_code, response.json()["error"]["code"]) == (502, "invalid_output")
        stream = ask(client, tools=[WEATHER], stream=True)
        assert '"code":"invalid_output"' in stream.text
        assert stream.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("fields", [{"tools": [WEATHER]}, {"logprobs": True}])
def test_the_models_rule_reads_and_compares_texts(fields: dict[str, Any]):
    texts = ("It is 1,000 m.", "1000", "So 1000.0", "9", "9")
    with drawing(*map(turn, texts), turn("It is 12", end="length"), rule="last-number") as (client, _):
        body = ask(client, **fields).json()["motes"]
        masses = {entry["answer"]: entry["mass"] for entry in body["posterior"]}
        assert body["answer"] == "1,000"
        assert masses["1,000"] == pytest.approx(1.5 * masses["9"], abs=1e-5), "they are one number"
        assert "12" not in masses, "more digits may be missing"


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (None, "text"), ("auto", "text"), ("none", "text"), ("required", "weather"),
        ({"type": "function", "function": {"name": "time"}}, "time"),
        ({"type": "function", "function": {"name": "weather"}}, "weather"),
    ],
)  # fmt: skip
def test_tool_choice(choice: Any, chosen: str):
    turns = [turn("It is sunny."), turn("Sunny!"), turn("I think it is sunny."), PARIS, PARIS, call("time")]
    with drawing(*turns) as (client, lm):
        response = ask(client, tools=[WEATHER, TIME], tool_choice=choice)
        if chosen == "text":  # texts without a stated answer are one answer: no call
            assert message(response)["content"] in ("It is sunny.", "Sunny!", "I think it is sunny.")
            assert "tool_calls" not in message(response)
        else:
            assert called(response)[0][0] == chosen
        assert lm.bodies[0][0].get("tool_choice") == choice


def test_several_calls_in_one_turn():
    both = turn(calls=[("weather", '{"city": "Paris"}'), ("time", "{}")])
    swapped = turn(calls=[("time", ""), ("weather", '{"city": "Paris"}')])
    with drawing(both, swapped, PARIS) as (client, _):
        assert [name for name, _ in called(ask(client, tools=[WEATHER, TIME]))] == ["weather", "time"]
        assert [name for name, _ in called(ask(client, tools=[WEATHER, TIME], parallel_tool_calls=False))] == [
            "weather"
        ]


def test_calls_are_compared_by_name_or_without_some_arguments():
    turns = [
        call("time"),
        call("time"),
        call("weather", city="Paris"),
        call("weather", city="Rome"),
        call("weather", city="Rome"),
    ]
    with drawing(*turns, call("time"), tool_vote="name") as (client, _):
        assert called(ask(client, tools=[TIME]))[0][0] == "time"
    with drawing(*turns, tool_vote="name") as (client, _):
        body = ask(client, tools=[WEATHER, TIME])
        assert called(body) == [("weather", {"city": "Rome"})], "the arguments that most of these calls have"
        assert body.json()["motes"]["confidence"] == pytest.approx(0.6)
    units = [call("weather", city="Paris", unit="C"), call("weather", city="Paris", unit="F"), ROME]
    with drawing(ROME, *units[:2], tool_ignore=["unit"]) as (client, _):
        body = ask(client, tools=[WEATHER]).json()
        assert body["motes"]["answer"] == '[{"arguments":{"city":"Paris"},"name":"weather"}]'


@pytest.mark.parametrize("method", ["wbon", "bon", "pf"])
def test_a_reward_model_chooses(method: str):
    with drawing(ROME, ROME, PARIS, reward=Liking({"Paris": 0.95})) as (client, _):
        body = ask(client, tools=[WEATHER], motes={"method": method})
        assert called(body) == [("weather", {"city": "Paris"})]
        assert body.json()["motes"]["method"] == method


JSONS = [
    '{"name": "Ada", "age": 36}',
    '{"age": 36.0, "name": "Ada"}',
    '{"name": "Ada", "age": "36"}',
    "Ada, 36",
    '{"name": "Bob", "age": 1}',
]


@pytest.mark.parametrize("history", [[], [PARIS, "21 C"]], ids=["a question", "a call's result"])
def test_turns_are_refined_by_a_message_more(history: list[Any]):
    """The conversation reaches the model whole, tools and all, and then the prompt of the refinement."""
    messages: list[dict[str, Any]] = [USER]
    if history:
        made = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [made]},
            {"role": "tool", "tool_call_id": "c1", "content": "21 C"},
        ]
    reward = Liking({"Rome": 0.9, "Paris": 0.2})
    with drawing(PARIS, PARIS, ROME, ROME, reward=reward, method="refine:rounds=1", methods=[]) as (client, lm):
        answer = ask(client, tools=[WEATHER], messages=messages)
        assert called(answer) == [("weather", {"city": "Rome"})]
    sent = [fields["messages"] for fields, _, _ in lm.bodies]
    assert sent[0] == sent[1]
    assert len(sent[0]) == len(messages)
    for refining in sent[2:]:
        assert refining[:-1] == sent[0]
        assert refining[-1]["role"] == "user"
        assert '"Paris"' in refining[-1]["content"].partition("<solution>")[2]
        assert "Check each step" in refining[-1]["content"]
    assert all(fields["tools"] for fields, _, _ in lm.bodies)


def test_json_of_a_schema():
    with drawing(*[turn(text) for text in (*JSONS[2:], "Ada, 36", *JSONS[:2])]) as (client, lm):
        response = ask(client, response_format=AS_PERSON)
        assert json.loads(message(response)["content"]) == {"name": "Ada", "age": 36}
        assert response.json()["motes"]["answer"] == '{"age":36,"name":"Ada"}'
        assert lm.bodies[0][0]["response_format"] == AS_PERSON
    with drawing(*[turn(text) for text in JSONS[2:4]]) as (client, _):
        assert ask(client, response_format=AS_PERSON).json()["error"]["code"] == "invalid_output"


def test_any_json_object():
    with drawing(turn("[1]"), turn("3"), turn('{"a": 1'), turn('{"a": 1}', end="length"), turn('{"b": 2}')) as (
        client,
        _,
    ):
        assert message(ask(client, response_format={"type": "json_object"}))["content"] == '{"b": 2}'
    with drawing(turn("[1]")) as (client, _):
        assert message(ask(client, response_format={"type": "text"}))["content"] != "[1]", "no turns are needed"


def test_a_conversation_with_tools_reaches_the_model_whole():
    made = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."}, USER,
        {"role": "assistant", "content": None, "tool_calls": [{**made, "index": 0}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]  # fmt: skip
    with drawing(turn("It is sunny in Paris.")) as (client, lm):
        response = ask(client, messages=messages)
        assert message(response)["content"] == "It is sunny in Paris."
        assert response.headers["x-motes-ignored"] == "messages.tool_calls.index"
        assert lm.bodies[0][0]["messages"] == [
            {"role": "system", "content": "Be brief."}, USER,
            {"role": "assistant", "content": "", "tool_calls": [made]},
            {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        ]  # fmt: skip
    for bad in (
        [{"role": "tool", "content": "sunny"}], [{**USER, "tool_call_id": "call_1"}], [{**USER, "tool_calls": [made]}],
        [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}, USER],
    ):  # fmt: skip
        with drawing(turn("x")) as (client, _):
            assert ask(client, messages=bad).status_code == 400


LOGPROBS = {"content": [{"token": "4", "logprob": -0.25, "bytes": [52], "top_logprobs": []}], "refusal": None}


def test_log_probabilities_of_the_chosen_answer():
    four = turn(r"\boxed{4}", logprobs=LOGPROBS)
    assert four.logprob == -0.25
    with drawing(turn(r"\boxed{5}"), four, four) as (client, lm):
        response = ask(client, logprobs=True, top_logprobs=2)
        (choice,) = response.json()["choices"]
        assert (choice["message"]["content"], choice["logprobs"]) == (r"\boxed{4}", LOGPROBS)
        assert (lm.bodies[0][0]["logprobs"], lm.bodies[0][0]["top_logprobs"]) == (True, 2)
        ignored = ask(client, logprobs=True, motes={"method": "pf"})
        assert ignored.headers["x-motes-ignored"] == "logprobs", "the filter's steps have none"
    with drawing(four, strict=True) as (client, _):
        assert ask(client, logprobs=True, motes={"method": "pf"}).json()["error"]["param"] == "logprobs"


@pytest.mark.parametrize("n", [1, 2])
def test_streams_of_turns(n: int):
    with drawing(PARIS, PARIS, turn("sunny", thoughts="Look out.")) as (client, _):
        lines = ask(client, tools=[WEATHER], stream=True, n=n).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [(c["index"], c["delta"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"]]
        calls = [delta["tool_calls"] for _, delta, _ in deltas if "tool_calls" in delta]
        ((made,),) = calls
        assert (made["index"], made["function"]) == (0, {"name": "weather", "arguments": '{"city": "Paris"}'})
        assert [(index, end) for index, _, end in deltas if end] == [(0, "tool_calls"), (1, "stop")][:n]
        said = "".join(delta.get("content") or "" for index, delta, _ in deltas if index == 1)
        thought = "".join(delta.get("reasoning_content", "") for index, delta, _ in deltas if index == 1)
        assert (said, thought) == (("sunny", "Look out.") if n == 2 else ("", ""))
        assert "tool_call>" not in "".join(lines)


def test_tags_in_json_are_text_in_streams_too():
    said = '{"a":"<think>hm</think>"}'
    with drawing(turn(said)) as (client, _):
        lines = ask(client, response_format={"type": "json_object"}, stream=True).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == said
        assert not any("reasoning_content" in delta for delta in deltas)


def test_thoughts_of_turns():
    with drawing(turn("sunny", thoughts="Look out.")) as (client, _):
        assert message(ask(client, tools=[WEATHER]))["reasoning_content"] == "Look out."
    with drawing(turn("sunny", thoughts="Look out."), reasoning="text") as (client, _):
        assert message(ask(client, tools=[WEATHER]))["content"] == "<think>\nLook out.\n</think>\n\nsunny"


def test_turns_that_fail():
    with drawing(RefusingError(), PARIS) as (client, _):
        body = ask(client, tools=[WEATHER])
        assert called(body) == [("weather", {"city": "Paris"})]
        assert body.json()["motes"]["dropped"] == 1
    with drawing(RefusingError()) as (client, _):
        assert ask(client, tools=[WEATHER]).json()["error"]["code"] == "upstream"


class RefusingError(RejectedError):
    def __init__(self) -> None:
        super().__init__("http://10.0.0.1 refuses tools")


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"tools": [WEATHER]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": [USER, {"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), FIELDS, ids=[param for _, param in FIELDS])
def test_a_model_of_texts_says_that_it_cannot(fields: dict[str, Any], param: str):
    with gateways.gateway(gateways.config()) as client:
        told = ask(client, **fields).json()["error"]
        assert (told["param"], told["code"]) == (param, "unsupported")


BAD_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}
BAD_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [BAD_TOOL]}, "tools.0.function.parameters"),
        ({"response_format": BAD_FORMAT}, "response_format.json_schema.schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"messages": [USER, {"role": "user"}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "tool_call_id": "x", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
    ],
)  # fmt: skip
def test_requests_that_cannot_work(fields: dict[str, Any], param: str):
    with drawing(PARIS) as (client, lm):
        response = ask(client, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert error["message"].startswith(f"{param}: ")
        assert not lm.bodies


CONVERSATION = [USER, {"role": "assistant", "tool_calls": [
    {"id": "x", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
]}, {"role": "tool", "tool_call_id": "x", "content": "sunny"}]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "names"),
    [
        (CHAT, {"tool_choice": "auto"}, "tool_choice"),
        (CHAT, {"tool_choice": "none", "parallel_tool_calls": True, "tools": []}, "tool_choice, parallel_tool_calls"),
        (CHAT, {"messages": CONVERSATION, "tool_choice": "none", "parallel_tool_calls": False},
         "tool_choice, parallel_tool_calls"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"response_format": {"type": "text", "json_schema": {"name": "x", "schema": PERSON}}},
         "response_format.json_schema"),
        (CHAT, {"motes": {"progress": True}}, "motes.progress"),
        ("/v1/completions", {"motes": {"progress": "particles"}}, "motes.progress"),
        ("/v1/messages", {"max_tokens": 9, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
         "tool_choice, tool_choice.disable_parallel_tool_use"),
        ("/v1/messages", {"max_tokens": 9, "thinking": {"type": "disabled", "budget_tokens": 9}},
         "thinking.budget_tokens"),
        ("/v1/responses", {"tool_choice": "auto", "parallel_tool_calls": True},
         "tool_choice, parallel_tool_calls"),
        ("/v1/responses", {"text": {"format": {"type": "text", "schema": PERSON}}},
         "text.format.schema"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [False, True])
def test_fields_without_the_one_that_they_belong_to_are_named(
    path: str, fields: dict[str, Any], names: str, strict: bool
):
    with drawing(turn("x"), strict=strict) as (client, lm):
        question = {"/v1/responses": {"input": "x"}, "/v1/completions": {"prompt": "x"}}.get(path, {"messages": [USER]})
        response = client.post(path, json={"model": "story", "seed": 1, **question, **fields})
        if strict:
            assert response.status_code == 400, response.text
            assert f"{names.split(', ')[0]}: this has no effect" in response.text
        else:
            assert (response.status_code, response.headers.get("x-motes-ignored")) == (200, names)
            assert all(set(body) == {"messages"} for body, _, _ in lm.bodies)


def test_fields_with_the_one_that_they_belong_to_are_honoured():
    for strict in (False, True):
        with drawing(PARIS, strict=strict) as (client, lm):
            fields = {"tool_choice": "auto", "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2}
            response = ask(client, tools=[WEATHER], stream=True, motes={"progress": True}, **fields)
            assert (response.status_code, "x-motes-ignored" in response.headers) == (200, False)
            assert lm.bodies[0][0] == {"messages": [USER], "tools": [WEATHER], **fields}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
def test_numbers_that_are_no_json_mean_nothing(path: str, number: str):
    arguments = f'{{"city": "Rome", "x": {number}}}'
    tool = {"name": "f", "parameters": {}}
    tools = {
        CHAT: [{"type": "function", "function": tool}], "/v1/responses": [{"type": "function", **tool}],
        "/v1/messages": [{"name": "f", "input_schema": {}}],
    }[path]  # fmt: skip
    body = {"model": "story", "tools": tools, "seed": 1, "max_tokens": 9}
    body |= {"input": "x", "max_tokens": None} if path == "/v1/responses" else {"messages": [USER]}
    wrong = turn(calls=[("f", arguments)])
    with drawing(wrong, wrong, turn(calls=[("f", '{"city": "Paris"}')])) as (client, _):
        for stream in (False, True):
            response = client.post(path, json={**body, "stream": stream})
            assert response.status_code == 200, response.text
            assert "Paris" in response.text
            assert "Rome" not in response.text
    with drawing(turn(arguments)) as (client, _):
        response = ask(client, response_format={"type": "json_object"})
        assert (response.status_code, response.json()["error"]["code"]) == (502, "invalid_output")


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
def test_halves_of_surrogate_pairs_in_calls_are_replaced(path: str):
    tools = {
        CHAT: [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "/v1/responses": [{"type": "function", "name": "f", "parameters": {}}],
        "/v1/messages": [{"name": "f", "input_schema": {}}],
    }[path]
    body = {"model": "story", "tools": tools, "seed": 1}
    body |= {"input": "x"} if path == "/v1/responses" else {"messages": [USER], "max_tokens": 9}
    with drawing(turn(calls=[("f", r'{"x": "\ud83d"}')])) as (client, _):
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.json()["motes"]["answer"] == '[{"arguments":{"x":"\N{REPLACEMENT CHARACTER}"},"name":"f"}]'


@pytest.mark.parametrize("arguments", ["{}", "NaN", "{"])
def test_calls_of_tools_that_nobody_offered_are_left_out(arguments: str):
    """A conversation that had tools goes on without them."""
    with drawing(turn("It is sunny.", calls=[("weather", arguments)])) as (client, _):
        response = ask(client, messages=CONVERSATION)
        assert (message(response)["content"], "tool_calls" in message(response)) == ("It is sunny.", False)
        assert response.json()["choices"][0]["finish_reason"] == "stop"
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "weather", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "sunny"}]},
        ]
        response = client.post("/v1/messages", json={"model": "story", "max_tokens": 9, "messages": turns})
        assert [block["type"] for block in response.json()["content"]] == ["text"]


def test_a_strict_gateway_takes_its_own_answers_back():
    with drawing(PARIS, strict=True) as (client, lm):
        said = message(ask(client, tools=[WEATHER]))
        assert said["content"] is None
        result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "sunny"}
        assert ask(client, tools=[WEATHER], messages=[USER, said, result]).status_code == 200
        assert lm.bodies[-1][0]["messages"][1]["content"] == ""


# Schemas.

DOUBLING = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(60)}

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
AGAIN = {
    f"a{i}": {"dependentSchemas": {name: {"$ref": f"#/$defs/a{i + 1}"} for name in "ab"}} for i in range(40)
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "value", "accepted"),
    [
        (PERSON, {"name": "x", "age": 1}, True),
        (PERSON, {"name": "x", "age": 1.0}, True),
        (PERSON, {"name": "x"}, False),
        ({}, None, True),
        ({"$defs": {"x": {"type": "integer"}}, "items": {"$ref": "#/$defs/x"}}, [1, 2], True),
        ({"$defs": {"x": {"type": "integer"}}, "items": {"$ref": "#/$defs/x"}}, [1, "2"], False),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, 1, False),
        ({"$defs": {**DOUBLING, "a60": {"type": "integer"}}, "$ref": "#/$defs/a0"}, 1, False),
        ({"$ref": "http://127.0.0.1:1/schema"}, 1, False),
        ({"$ref": "#/$defs/missing"}, 1, False),
        ({"type": "string", "pattern": "(a+)+b"}, "a" * 50, True),
        ({"patternProperties": {"(a+)+b": False}}, {"a" * 50: 1}, True),
        ({"patternProperties": {"(a+)+b": {}}, "additionalProperties": False}, {"a" * 50: 1}, True),
        ({"patternProperties": {"(a+)+b": {}}, "unevaluatedProperties": False}, {"a" * 50: 1}, True),
        ({"patternProperties": {"(": {}}, "additionalProperties": False}, {"a": 1}, True),
        ({"pattern": "a{99999999999999999999}"}, "a", True),
        ({"additionalProperties": False}, {"a": 1}, False),
        ({"unevaluatedProperties": False}, {"a": 1}, False),
        ({"properties": {"a": {"$schema": DRAFT_7, "pattern": "(a+)+b"}}}, {"a": "a" * 50}, True),
        ({"$defs": {**{n: {"$schema": DRAFT_7, **s} for n, s in DOUBLING.items()}, "a60": {}}, "$ref": "#/$defs/a0"},
         1, False),
        ({"$defs": {**AGAIN, "a40": {}}, "unevaluatedProperties": False, "$ref": "#/$defs/a0"},
         {"a": 1, "b": 2}, False),
        ({"$defs": {"x": {"$anchor": "x"}, **{str(i): {"$id": f"http://x/{i}"} for i in range(2000)}},
          "items": {"$ref": "#x"}}, [1] * 9000, True),
        ({"uniqueItems": True}, [{"a": i} for i in range(10_000)], True),
        ({"uniqueItems": True}, [{"a": 1}, {"a": 1.0}], False),
        ({"uniqueItems": True}, [1, True, "1", [1]], True),
        ({"uniqueItems": False}, [1, 1], True),
        ({"allOf": [{"uniqueItems": True}] * 2000}, [{"a": i} for i in range(4000)], False),
        ({"items": {"enum": [[str(i)] for i in range(2000)]}}, [["1999"]] * 20_000, False),
        ({"anyOf": [{"type": "string"}] * 2000}, {"a": list(range(50_000))}, False),
        ({"multipleOf": 0.1}, 10**400, False),
        ({"multipleOf": 0.1}, math.nan, False),
        ({"multipleOf": 1.5}, math.inf, False),
        ({"$id": "http://[", "properties": {"a": {"$ref": "#/x"}}}, {"a": 1}, False),
        ({"items": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
         [{"a": i} for i in range(2000)], True),
    ],
)  # fmt: skip
def test_schemas_are_checked_within_bounds(schema: Any, value: Any, accepted: bool):
    check_schema(schema)
    assert Schema(schema).accepts(value) == accepted


def test_a_schema_that_is_none_is_found_out_at_once():
    with pytest.raises(ValueError, match="this is no JSON schema"):
        check_schema({"type": [{"a": i} for i in range(20_000)]})


@pytest.mark.parametrize("place", ["tools", "response_format", "both"])
def test_the_schemas_of_a_request_are_bounded_together(monkeypatch: pytest.MonkeyPatch, place: str):
    monkeypatch.setattr("motes.gateway.wire.check_schema", lambda _: pytest.fail("a schema was checked"))
    half = {"properties": {str(i): {"type": "string", "title": "x"} for i in range(900)}}  # more than 2,500 values
    schema = half if place == "both" else {"allOf": [half, half]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    described = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    fields = {"tools": [tool], "response_format": described}
    fields = fields if place == "both" else {place: fields[place]}
    with drawing(PARIS) as (client, _):
        response = ask(client, **fields)
        assert response.status_code == 400
        assert "at most 5,000 values together" in response.json()["error"]["message"]


def test_schemas_are_checked_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch):
    threads = []
    monkeypatch.setattr("motes.gateway.wire.check_schema", lambda _: threads.append(threading.current_thread().name))
    wide = {"properties": {str(i): {"type": "string"} for i in range(200)}}
    with drawing(PARIS) as (client, _):
        tool = {"type": "function", "function": {"name": "weather", "parameters": wide}}
        assert ask(client, tools=[tool]).status_code == 200
    assert threads == ["motes-slow-work"]


def test_json_with_the_same_meaning_has_one_form():
    assert canonical_json({"b": [1.0, {"d": 1, "c": None}], "a": "é"}) == '{"a":"é","b":[1,{"c":null,"d":1}]}'
    assert canonical_json([True, 1]) != canonical_json([1, True])
    assert canonical_json(1e300) != canonical_json(2e300)


# What servers send.

WIRE = Chat(Address("http://localhost:1/v1"), "m", PROFILES["vllm"])


def response(**fields: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    return {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop", **fields}], "usage": usage}


def test_a_servers_turn_is_read():
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    read = read_turn(response(message={"content": None, "reasoning_content": "hm", "tool_calls": calls}), WIRE)
    assert (read.content, read.thoughts, read.tool_calls, read.end) == ("", "hm", (ToolCall("f", "{}"),), "eos")
    assert read.usage == Usage(generated_tokens=4, prefill_tokens=6, prefill_tokens_cached=3)
    assert read_turn(response(finish_reason="length"), WIRE).end == "length"
    assert read_turn(response(logprobs=LOGPROBS), WIRE).logprob == -0.25
    missing = {"content": [*LOGPROBS["content"], {"token": "4", "logprob": None}]}  # type: ignore[misc]
    assert read_turn(response(logprobs=missing), WIRE).logprob is None


@pytest.mark.parametrize(
    ("fields", "thoughts", "content"),
    [
        ({"content": "<think>\nhm\n</think>\n\nfour"}, "hm", "four"),
        ({"content": "hm</think>four"}, "hm", "four"),  # opened by the chat template
        ({"content": "[THINK]hm[/THINK]four"}, "hm", "four"),
        ({"content": "<think>hm</think>four", "reasoning_content": "so"}, "so\n\nhm", "four"),
        ({"content": ' {"a": "<think>hm</think>"}'}, "", ' {"a": "<think>hm</think>"}'),
        ({"content": '["</think>"]'}, "", '["</think>"]'),
        ({"content": " four\n"}, "", " four\n"),
    ],
)
def test_thoughts_in_the_content_of_a_turn_are_told_apart(fields: Any, thoughts: str, content: str):
    read = read_turn(response(message=fields), WIRE)
    assert (read.thoughts, read.content) == (thoughts, content)


@pytest.mark.parametrize(
    "body",
    [
        {}, [], None, {"choices": []}, {"choices": [{}]}, {"choices": [{}, {}]}, response(message=None),
        response(message=3), response(message={"tool_calls": [{}]}), response(message={"tool_calls": 3}),
        response(message={"tool_calls": [{"function": {"name": "f"}}]}), response(message={"content": 3}),
        response(message={"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}),
        response(finish_reason="because"),
    ],
)  # fmt: skip
def test_turns_in_no_known_form(body: Any):
    with pytest.raises(UnknownFormError):
        read_turn(body, WIRE)


@pytest.mark.parametrize(
    "usage", [None, 3, [], {"prompt_tokens": -1}, {"completion_tokens": math.nan, "prompt_tokens": "9"}]
)
def test_a_servers_bad_usage_is_an_estimate(usage: Any):
    body = {**response(message={"content": "x" * 40}), "usage": usage}
    assert read_turn(body, WIRE).usage.generated_tokens == 10


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp", "openai", "sglang"])
def test_a_served_model_draws_turns(engine: str):
    bodies = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/v1/chat/completions"
        bodies.append(json.loads(request.content))
        if len(bodies) == 1:
            return httpx2.Response(500, json={"error": "busy"})
        return httpx2.Response(200, json=response(message={"content": "4"}))

    async def no_pause(_: float) -> None:
        pass

    address = Address("http://localhost:1/v1")
    client = Client(address.base, transport=httpx2.MockTransport(answer), sleep=no_pause)
    server = {"version": None, "models": ("m",), "model": "m", "context_length": None, "route": "chat"}
    lm = HTTPLanguageModel(client, address, Capabilities(engine=engine, seeds=engine != "openai", **server))
    sampling = motes.Sampling(temperature=0.5, max_tokens=7, stop="END")
    drawn = asyncio.run(lm.draw_turn({"messages": [USER], "tools": [WEATHER]}, sampling, 3))
    assert (drawn.content, drawn.usage.generated_tokens) == ("4", 4)
    assert bodies[0] == bodies[1]
    body = bodies[0]
    limit = "max_completion_tokens" if engine == "openai" else "max_tokens"
    assert (body["model"], body["messages"], body["tools"], body[limit]) == ("m", [USER], [WEATHER], 7)
    assert (body["temperature"], body["stop"], body.get("seed")) == (0.5, ["END"], None if engine == "openai" else 3)
