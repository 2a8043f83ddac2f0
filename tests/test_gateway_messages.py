"""Anthropic's messages: their published shapes, event by event, and the `anthropic` package, unmodified."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

import gateways
import motes
import worlds
from formats import MESSAGES, events
from gateways import Stepwise
from motes.gateway.bodies import validate
from motes.gateway.config import Key
from motes.gateway.endpoints.messages import MessageWriter, reply_body
from motes.gateway.endpoints.messages_request import MessagesRequest, to_request
from motes.gateway.replies import Answer, Reply
from motes.tasks import TASKS
from test_gateway_turns import PARIS, WEATHER, drawing, turn

QUESTION = TASKS["arithmetic"]().problems(limit=12)[-1].question
EVENT = TypeAdapter(RawMessageStreamEvent)
SCHEMA = WEATHER["function"]["parameters"]
TOOL = {"name": "weather", "description": "The weather of a city.", "input_schema": SCHEMA}
TURNS = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config()) as client:
        yield client


@pytest.fixture
def client(http: httpx2.Client) -> Iterator[anthropic.Anthropic]:
    with anthropic_of(http) as client:
        yield client


def anthropic_of(http: httpx2.Client, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=str(http.base_url), api_key=key, max_retries=0)


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return MESSAGES.ask(http, QUESTION, **fields)


def streamed(http: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each of which has its published shape."""
    found = list(events(ask(http, stream=True, **fields).text))
    for event in found:
        EVENT.validate_python(event)
    return found


# What a client gets.


def test_a_message_has_the_published_shape(http):
    body = ask(http).json()
    message = Message.model_validate(body)
    assert (message.type, message.role, message.model) == ("message", "assistant", "story")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    ((kind, text),) = MESSAGES.said(body)
    assert (kind, bool(text)) == ("text", True)
    usage = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    assert usage.items() <= body["usage"].items()


def test_cached_tokens_are_counted_apart():
    reply = Reply([Answer("x", "x")], prompt_tokens=25, cached_tokens=5, completion_tokens=10, summary={})
    usage = reply_body(message_request(), None, reply)["usage"]  # type: ignore[arg-type]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (20, 5, 10)


def test_a_stream_has_the_published_events(http):
    start, block_start, *deltas, block_stop, delta, stop = streamed(http)
    whole = ask(http).json()
    assert start["type"] == "message_start"
    message = start["message"]
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], None, 0)
    assert block_start == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert len(deltas) > 1, "text comes before the end"
    assert {(event["type"], event["index"], event["delta"]["type"]) for event in deltas} == {
        ("content_block_delta", 0, "text_delta")
    }
    assert "".join(event["delta"]["text"] for event in deltas) == whole["content"][0]["text"]
    assert block_stop == {"type": "content_block_stop", "index": 0}
    assert (delta["type"], delta["delta"]) == ("message_delta", {"stop_reason": "end_turn", "stop_sequence": None})
    assert delta["usage"] == whole["usage"]
    assert stop == {"type": "message_stop"}


class Stopped(worlds.StoryLanguageModel):
    """Writes a text that ends at "END", of which its server tells nothing, the beginning, or more."""

    def __init__(self, overrun: str) -> None:
        super().__init__()
        self.overrun = overrun

    async def extend(self, trajectories, sampling, seeds):
        return [motes.Step("It is \\boxed{4}. ", "eos", overrun=self.overrun) for _ in trajectories]


@pytest.mark.parametrize(
    ("overrun", "fields", "expected"),
    [
        ("END", {"stop_sequences": ["x", "END"]}, ("stop_sequence", "END")),
        ("END and", {"stop_sequences": ["END"]}, ("stop_sequence", "END")),
        ("", {"stop_sequences": ["END"]}, ("end_turn", None)),
        ("EN", {"stop_sequences": ["END"]}, ("end_turn", None)),
        ("END", {}, ("end_turn", None)),
    ],
)
def test_the_text_that_ended_an_answer(overrun: str, fields: dict[str, Any], expected: tuple[str, str | None]):
    with gateways.over(Stopped(overrun)) as http:
        body = ask(http, **fields).json()
        assert (body["stop_reason"], body["stop_sequence"]) == expected
        *_, delta, _ = streamed(http, **fields)
        assert tuple(delta["delta"].values()) == expected


def test_thoughts_are_blocks():
    with gateways.over(gateways.Thinking()) as http:
        body, found = ask(http).json(), streamed(http)
    Message.model_validate(body)
    thinking = body["content"][0]
    assert (thinking["type"], thinking["thinking"], bool(thinking["signature"])) == ("thinking", "That is easy.", True)
    assert [event["type"] for event in found[1:5]] == [
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
    ]  # fmt: skip
    assert found[1]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert found[2]["delta"] == {"type": "thinking_delta", "thinking": "That is easy."}
    assert found[3]["delta"] == {"type": "signature_delta", "signature": thinking["signature"]}
    assert [event.get("index") for event in found[1:6]] == [0, 0, 0, 0, 1]


def written(*pieces: tuple[str, bool], answer: Answer) -> list[dict[str, Any]]:
    writer = MessageWriter(message_request(), None)  # type: ignore[arg-type]
    text = writer.opening() + b"".join(writer.text(0, piece, in_thought=thought) for piece, thought in pieces)
    return list(events((text + writer.ending(Reply([answer], 1, 0, 1, {}))).decode()))


def message_request() -> MessagesRequest:
    return MessagesRequest.model_validate({"model": "m", "max_tokens": 5, "messages": TURNS})


def test_thoughts_and_texts_in_turns_are_blocks_of_their_own():
    pieces = [("a", False), ("b", True), ("c", False), ("d", False), ("e", True)]
    found = written(*pieces, answer=Answer("", "acd", "b\n\ne"))
    started = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert started == ["text", "thinking", "text", "thinking"]
    assert [event["index"] for event in found if event["type"] == "content_block_stop"] == [0, 1, 2, 3]


@pytest.mark.parametrize("pieces", [[], [("b", True)]])
def test_there_is_always_a_text(pieces: list[tuple[str, bool]]):
    found = written(*pieces, answer=Answer("", "", ""))
    started = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert started == [*("thinking" for _ in pieces), "text"]
    body = reply_body(message_request(), None, Reply([Answer("", "")], 1, 0, 1, {}))  # type: ignore[arg-type]
    assert body["content"] == [{"type": "text", "text": ""}]


def test_an_answer_that_was_cut_off():
    with gateways.over(gateways.Cut()) as http:
        assert ask(http).json()["stop_reason"] == "max_tokens"
        assert streamed(http)[-2]["delta"]["stop_reason"] == "max_tokens"


# What a client asks.

IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens: Field required"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0: its type should be one of"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "not 'document'"),
    ({"messages": [*TURNS, {"role": "assistant", "content": "The answer is"}]}, "the last message must be"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [IMAGE]}]}]},
     "messages.0.content.0.content.0.type: Input should be 'text'"),
    ({"system": [IMAGE]}, "system.0.type"),
    ({"system": 5}, "system: Input should be a valid list"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type: Input should be 'custom'"),
    ({"tools": [TOOL]}, "tools: this model cannot call tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name: required"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config.format: this model cannot"),
    ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers: this is not supported"),
    ({"container": "c"}, "container: this is not supported"),
    ({"tool_choice": {"type": "any"}}, "tool_choice: \"required\" needs `tools`"),
    ({"thinking": {"type": "loud"}}, "thinking.type: Input should be"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "complaint"), REFUSED, ids=range(len(REFUSED)))
def test_what_would_change_the_answer_is_refused(http, fields: dict[str, Any], complaint: str):
    kind, message = MESSAGES.error(ask(http, **fields), 400)
    assert kind == "invalid_request_error"
    assert complaint in message


def test_headers_of_the_api_have_no_effect(http):
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x-2025-01-01"}
    assert MESSAGES.ask(http, QUESTION, headers).json()["content"] == ask(http).json()["content"]


def request(**fields: Any) -> tuple[dict[str, Any], list[str]]:
    """The fields of the chat request that a body makes, and those that are ignored."""
    body = {"model": "m", "max_tokens": 5, "messages": TURNS, **fields}
    _, asked, ignored = validate(body, MessagesRequest, to_request, False)
    return asked.model_dump(exclude_unset=True, exclude_none=True, by_alias=True), ignored


def text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


USER = {"role": "user", "content": "?"}
USE = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}
CHAT_RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
INPUTS: list[tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]] = [
    ([USER], [USER], []),
    ([{"role": "user", "content": [text("a"), text("b")]}], [{"role": "user", "content": "ab"}], []),
    ([{"role": "system", "content": "x"}, USER], [{"role": "system", "content": "x"}, USER], []),
    ([USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, text("4")]}, USER],
     [USER, {"role": "assistant", "content": "4"}, USER], ["messages.content.thinking"]),
    ([USER, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "t"}]}, USER],
     [USER, {"role": "assistant", "content": ""}, USER], ["messages.content.thinking"]),
    ([USER, {"role": "assistant", "content": [text("so:"), USE]}, {"role": "user", "content": [RESULT]}],
     [USER, {"role": "assistant", "content": "so:", "tool_calls": [CHAT_CALL]}, CHAT_RESULT], []),
    ([USER, {"role": "assistant", "content": [USE, {**USE, "id": "c2"}]},
      {"role": "user", "content": [text("and?"), RESULT, {**RESULT, "tool_use_id": "c2", "content": [text("r")]}]}],
     [USER, {"role": "assistant", "content": "", "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]},
      CHAT_RESULT, {"role": "tool", "tool_call_id": "c2", "content": "r"}, {"role": "user", "content": "and?"}], []),
    ([USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [{**RESULT, "is_error": True}]}],
     [USER, {"role": "assistant", "content": "", "tool_calls": [CHAT_CALL]}, CHAT_RESULT],
     ["messages.content.is_error"]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "turns", "ignored"), INPUTS, ids=range(len(INPUTS)))
def test_messages_become_turns(given: Any, turns: list[dict[str, Any]], ignored: list[str]):
    fields, left_out = request(messages=given)
    assert (fields["messages"], left_out) == (turns, ignored)
    assert request(messages=given, system="")[0]["messages"] == turns
    for system in ("Be kind.", [text("Be "), {**text("kind."), "cache_control": None}]):
        fields, _ = request(messages=given, system=system)
        assert fields["messages"] == [{"role": "system", "content": "Be kind."}, *turns]


CHOICES = [
    ({"type": "auto"}, "auto"), ({"type": "any"}, "required"), ({"type": "none"}, "none"),
    ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
def test_fields_become_those_of_a_chat(choice: dict[str, Any], expected: Any):
    schema = {"type": "object", "properties": {"x": {"default": None}}}
    fields, ignored = request(
        tools=[{"type": "custom", "name": "f", "input_schema": schema, "strict": None, "cache_control": {"type": "x"}}],
        tool_choice={**choice, "disable_parallel_tool_use": True}, stop_sequences=["x"], temperature=1, stream=True,
        output_config={"format": {"type": "json_schema", "schema": schema}}, metadata={"user_id": "me"}, top_p=0.5,
    )  # fmt: skip
    assert ignored == ["tools.cache_control"]
    assert fields == {
        "model": "m", "messages": TURNS, "max_completion_tokens": 5, "stop": ["x"], "temperature": 1.0, "top_p": 0.5,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], "tool_choice": expected,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "parallel_tool_calls": False, "stream": True, "motes": fields["motes"],
    }  # fmt: skip


# Tools.


def test_tool_calls_are_blocks():
    with drawing(PARIS, PARIS, turn("x")) as (http, lm):
        body, found = ask(http, tools=[TOOL]).json(), streamed(http, tools=[TOOL])
        assert lm.bodies[0][0]["tools"] == [WEATHER]
        Message.model_validate(body)
        assert body["stop_reason"] == found[-2]["delta"]["stop_reason"] == "tool_use"
        (block,) = body["content"]
        assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", {"city": "Paris"})
        start, delta, stop = found[1:-2]
        assert (start["content_block"]["type"], start["content_block"]["input"]) == ("tool_use", {})
        assert delta["delta"] == {"type": "input_json_delta", "partial_json": '{"city": "Paris"}'}
        assert (stop["type"], stop["index"]) == ("content_block_stop", 0)
        result = {"role": "user", "content": [{**RESULT, "tool_use_id": block["id"]}]}
        turns = [USER, {"role": "assistant", "content": [block]}, result]
        assert ask(http, messages=turns, tools=[TOOL]).status_code == 200
        assert [message["role"] for message in lm.bodies[-1][0]["messages"]] == ["user", "assistant", "tool"]
        _, message = MESSAGES.error(ask(http, tools=[{**TOOL, "input_schema": {"type": "thing"}}]), 400)
        assert message.startswith("tools.0.input_schema: this is no JSON schema")


# The `anthropic` package.


def test_the_package(client):
    fields: dict[str, Any] = {"model": "story", "max_tokens": 500, "messages": TURNS}
    own = {"seed": 5, "motes": {"particles": 4}}
    answer = client.messages.create(**fields, extra_body=own)
    assert answer.content[0].text.endswith("}.")
    assert answer.motes["particles"] == 4
    assert answer._request_id.startswith("req_")
    with client.messages.stream(**fields, extra_body=own) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == final.content[0].text == answer.content[0].text
    assert final.usage.output_tokens == answer.usage.output_tokens
    assert [event.type for event in client.messages.create(**fields, stream=True)][-1] == "message_stop"
    history = [*TURNS, {"role": "assistant", "content": final.content}, *TURNS]
    assert client.messages.create(**{**fields, "messages": history}).content
    assert client.beta.messages.create(**fields).content
    assert [model.id for model in client.models.list()] == ["story"]


def test_the_package_at_once(http):
    async def test() -> None:
        async with anthropic.AsyncAnthropic(base_url=str(http.base_url), api_key="none", max_retries=0) as client:
            asked = [client.messages.create(model="story", max_tokens=500, messages=TURNS) for _ in range(8)]
            assert all(answer.content[0].text for answer in await asyncio.gather(*asked))
            async with client.messages.stream(model="story", max_tokens=500, messages=TURNS) as stream:
                assert "".join([text async for text in stream.text_stream])

    asyncio.run(test())


def test_errors_are_the_packages_own(http, client):
    with pytest.raises(anthropic.NotFoundError, match="there is no model 'other'") as caught:
        client.messages.create(model="other", max_tokens=5, messages=TURNS)
    assert caught.value.request_id.startswith("req_")
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        client.messages.create(model="story", max_tokens=5, messages=TURNS, extra_body={"mcp_servers": [1]})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="story", messages=TURNS)


def test_a_key():
    secret, key = Key.make("one")
    with gateways.gateway(gateways.config(keys=[key.model_dump()])) as http:
        with pytest.raises(anthropic.AuthenticationError, match="not known"):
            anthropic_of(http, "wrong").messages.create(model="story", max_tokens=500, messages=TURNS)
        with anthropic_of(http, secret) as client:
            assert client.messages.create(model="story", max_tokens=500, messages=TURNS).content


def test_a_failure_within_a_stream_is_told_in_it():
    lm = Stepwise(fails=True)
    with gateways.over(lm) as http, anthropic_of(http) as client:
        stream = client.messages.create(model="story", max_tokens=500, messages=TURNS, stream=True)
        assert next(stream).type == "message_start"
        lm.let_go()
        with pytest.raises(anthropic.APIError, match="internal error: see") as caught:
            list(stream)
        assert "1234" not in str(caught.value)


def test_the_packages_own_structures():
    class Person(BaseModel):
        name: str
        age: int

    with drawing(turn('{"name": "Ada", "age": 36}')) as (http, lm), anthropic_of(http) as client:
        parsed = client.messages.parse(model="story", max_tokens=50, messages=TURNS, output_format=Person)
        assert parsed.parsed_output == Person(name="Ada", age=36)
        assert lm.bodies[0][0]["response_format"]["json_schema"]["schema"]["required"] == ["name", "age"]
    with drawing(PARIS) as (http, _), anthropic_of(http) as client:
        answer = client.messages.create(model="story", max_tokens=50, messages=TURNS, tools=[TOOL])
        assert [(block.type, block.input) for block in answer.content] == [("tool_use", {"city": "Paris"})]
        with client.messages.stream(model="story", max_tokens=50, messages=TURNS, tools=[TOOL]) as stream:
            assert json.loads(stream.get_final_message().content[0].to_json())["input"] == {"city": "Paris"}
