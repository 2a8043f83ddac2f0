"""OpenAI's responses: their published shapes, event by event, and the `openai` package, unmodified."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

import gateways
from formats import RESPONSES, events
from gateways import Stepwise
from motes.gateway.bodies import validate
from motes.gateway.endpoints.responses import ResponseWriter, reply_body
from motes.gateway.endpoints.responses_request import ResponsesRequest, to_request
from motes.gateway.replies import Answer, Reply
from motes.tasks import TASKS
from test_gateway_turns import LOGPROBS, PARIS, PERSON, WEATHER, drawing, turn

QUESTION = TASKS["arithmetic"]().problems(limit=12)[-1].question
EVENT = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", **WEATHER["function"]}
MESSAGE_PART = {"type": "output_text", "annotations": [], "logprobs": []}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config()) as client:
        yield client


@pytest.fixture
def client(http: httpx2.Client) -> Iterator[openai.OpenAI]:
    with openai_of(http) as client:
        yield client


def openai_of(http: httpx2.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return RESPONSES.ask(http, QUESTION, **fields)


def streamed(http: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each of which has its published shape."""
    found = list(events(ask(http, stream=True, **fields).text))
    for event in found:
        EVENT.validate_python(event, strict=False)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


# What a client gets.


def test_a_response_has_the_published_shape(http):
    body = ask(http, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=900).json()
    response = Response.model_validate(body)
    assert (response.object, response.status, response.error) == ("response", "completed", None)
    assert response.output_text
    assert (response.instructions, response.metadata, response.temperature) == ("Be brief.", {"a": "b"}, 0.5)
    assert (response.max_output_tokens, response.store, response.previous_response_id) == (900, False, None)
    (item,) = body["output"]
    assert (item["type"], item["role"], item["status"], item["id"][:4]) == ("message", "assistant", "completed", "msg_")
    assert item["content"] == [{**MESSAGE_PART, "text": response.output_text}]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_stream_has_the_published_events(http):
    created, in_progress, added, part_added, *deltas, done, part_done, item_done, completed = streamed(http)
    assert [created["type"], in_progress["type"]] == ["response.created", "response.in_progress"]
    assert created["response"] == in_progress["response"]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert added["type"] == "response.output_item.added"
    name, place = added["item"]["id"], {"output_index": 0, "content_index": 0}
    assert added["item"] == {
        "id": name, "type": "message", "role": "assistant", "status": "in_progress", "content": [],
    }  # fmt: skip
    assert len(deltas) > 1, "text comes before the end"
    for event in (part_added, *deltas, done, part_done):
        assert {key: event[key] for key in ("item_id", *place)} == {"item_id": name, **place}
    assert {event["type"] for event in deltas} == {"response.output_text.delta"}
    text = "".join(event["delta"] for event in deltas)
    assert (part_added["type"], part_added["part"]) == ("response.content_part.added", {**MESSAGE_PART, "text": ""})
    assert (done["type"], done["text"]) == ("response.output_text.done", text)
    assert (part_done["type"], part_done["part"]) == ("response.content_part.done", {**MESSAGE_PART, "text": text})
    assert item_done["type"] == "response.output_item.done"
    assert item_done["item"] == {**added["item"], "status": "completed", "content": [part_done["part"]]}
    response = completed["response"]
    assert (completed["type"], response["id"]) == ("response.completed", created["response"]["id"])
    assert response["output"] == [item_done["item"]]


@pytest.mark.parametrize("summary", [None, "auto"])
def test_thoughts_are_reasoning_items(summary: str | None):
    """In their content, as OpenAI has those of open models; in their summary, if the request asks for one."""
    kind, place = ("reasoning_text", "content") if summary is None else ("summary_text", "summary")
    part = "response.content_part" if summary is None else "response.reasoning_summary_part"
    text = "response.reasoning_text" if summary is None else "response.reasoning_summary_text"
    fields = {} if summary is None else {"reasoning": {"summary": summary}}
    with gateways.over(gateways.Thinking()) as http:
        found = streamed(http, **fields)
        body = ask(http, **fields).json()
    Response.model_validate(body)
    item = body["output"][0]
    assert (item["type"], item[place]) == ("reasoning", [{"type": kind, "text": "That is easy."}])
    kinds = [event["type"] for event in found if event.get("output_index") == 0]
    assert kinds == [
        "response.output_item.added", f"{part}.added", f"{text}.delta", f"{text}.done", f"{part}.done",
        "response.output_item.done",
    ]  # fmt: skip
    items = found[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    assert items[0][place] == item[place]


def reply(answer: Answer) -> Reply:
    return Reply([answer], 1, 0, 1, {})


def written(*pieces: tuple[str, bool], answer: Answer) -> list[dict[str, Any]]:
    writer = ResponseWriter(ResponsesRequest.model_validate({"model": "m", "input": "?"}), None)  # type: ignore[arg-type]
    text = writer.opening() + b"".join(writer.text(0, piece, in_thought=thought) for piece, thought in pieces)
    return list(events((text + writer.ending(reply(answer))).decode()))


def test_thoughts_and_texts_in_turns_are_items_of_their_own():
    pieces = [("a", False), ("b", True), ("c", False), ("d", False), ("e", True)]
    found = written(*pieces, answer=Answer("", "acd", "b\n\ne"))
    items = [(item["type"], item["content"][0]["text"]) for item in found[-1]["response"]["output"]]
    assert items == [("message", "a"), ("reasoning", "b"), ("message", "cd"), ("reasoning", "e")]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]
    assert [event["output_index"] for event in found if event["type"] == "response.output_item.added"] == [0, 1, 2, 3]


@pytest.mark.parametrize("pieces", [[], [("b", True)]])
def test_there_is_always_a_message(pieces: list[tuple[str, bool]]):
    item = written(*pieces, answer=Answer("", "", ""))[-1]["response"]["output"][-1]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")
    body = ResponsesRequest.model_validate({"model": "m", "input": "?"})
    (item,) = reply_body(body, None, reply(Answer("", "")))["output"]  # type: ignore[arg-type]
    assert item["content"][0]["text"] == ""


def test_an_answer_that_was_cut_off_is_incomplete():
    with gateways.over(gateways.Cut()) as http:
        body, found = ask(http).json(), streamed(http)
    for response in (body, found[-1]["response"]):
        assert response["status"] == response["output"][-1]["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["completed_at"] is None
    assert found[-1]["type"] == "response.incomplete"
    assert found[-2]["item"]["status"] == "incomplete"


# What a client asks.

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "stores no responses: send the whole conversation"),
    ({"conversation": "conv_1"}, "conversation", "stores no responses"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "stores no responses"),
    ({"background": True}, "background", "not supported"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "not supported"),
    ({"moderation": {"model": "x"}}, "moderation", "not supported"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "item 0 is a reference"),
    ({"input": [{"type": "web_search_call"}]}, "input.0", "not 'web_search_call'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0", "not"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0", "not 'input_file'"),
    ({"input": 5}, "input", "valid list"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
    ({"tools": [TOOL]}, "tools", "returns text only"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "or a function by its name"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format", "returns text only"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "needs a `schema`"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "Input should be"),
]


@pytest.mark.parametrize(("fields", "param", "complaint"), REFUSED, ids=range(len(REFUSED)))
def test_what_would_change_the_answer_is_refused(http, fields: dict[str, Any], param: str, complaint: str):
    response = ask(http, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert complaint in error["message"]


NEUTRAL: dict[str, Any] = {
    "background": False, "store": False, "truncation": "disabled", "tools": [], "include": [],
    "text": {"format": {"type": "text"}}, "stream_options": None, "top_logprobs": 0,
}  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
def test_what_requests_nothing_is_accepted(strict: bool):
    with gateways.gateway(gateways.config(strict=strict)) as http:
        response = ask(http, **NEUTRAL)
        assert response.status_code == 200, response.text
        assert "x-motes-ignored" not in response.headers


def test_what_is_included_only_where_a_server_has_it(http):
    response = ask(http, include=["reasoning.encrypted_content"], top_logprobs=3, max_tool_calls=3)
    assert response.headers["x-motes-ignored"] == "max_tool_calls, top_logprobs, include"


def request(**fields: Any) -> tuple[dict[str, Any], list[str]]:
    """The fields of the chat request that a body makes, and those that are ignored."""
    _, asked, ignored = validate({"model": "m", "input": "?", **fields}, ResponsesRequest, to_request, False)
    return asked.model_dump(exclude_unset=True, exclude_none=True, by_alias=True), ignored


CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Paris"}'}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
USER, ASSISTANT = {"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}
INPUTS: list[tuple[Any, list[dict[str, Any]]]] = [
    ("2 + 2?", [{"role": "user", "content": "2 + 2?"}]),
    ([{"type": "message", **USER, "id": "x", "status": "completed"}], [USER]),
    ([{"role": "developer", "content": "x"}, USER], [{"role": "developer", "content": "x"}, USER]),
    ([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]}],
     [{"role": "user", "content": "ab"}]),
    ([USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
     [USER, {"role": "assistant", "content": "no"}, USER]),
    ([USER, {"type": "reasoning", "id": "rs_1", "summary": []}, {"id": "m", "type": "message", **ASSISTANT}, USER],
     [USER, ASSISTANT, USER]),
    ([USER, CALL, OUTPUT],
     [USER, {"role": "assistant", "content": "", "tool_calls": [CHAT_CALL]},
      {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]),
    ([USER, ASSISTANT, CALL, {**CALL, "call_id": "c2"}, OUTPUT, {**OUTPUT, "call_id": "c2"}],
     [USER, {**ASSISTANT, "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]},
      {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
      {"role": "tool", "tool_call_id": "c2", "content": "sunny"}]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "turns"), INPUTS, ids=range(len(INPUTS)))
def test_input_becomes_turns(given: Any, turns: list[dict[str, Any]]):
    fields, _ = request(input=given)
    assert fields["messages"] == turns
    fields, _ = request(input=given, instructions="Be kind.")
    assert fields["messages"] == [{"role": "system", "content": "Be kind."}, *turns]


def test_fields_become_those_of_a_chat():
    schema = {"type": "object", "properties": {"x": {"default": None}}}
    fields, ignored = request(
        tools=[{"type": "function", "name": "f", "parameters": schema, "strict": None, "description": "d"}],
        tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False, max_output_tokens=5,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}, stop="x", user="me",
        include=["message.output_text.logprobs"], top_logprobs=2, reasoning={"effort": "low"}, temperature=0,
        stream=True,
    )  # fmt: skip
    assert ignored == []
    assert fields == {
        "model": "m", "messages": [USER], "max_completion_tokens": 5, "parallel_tool_calls": False, "stop": "x",
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}}, "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "reasoning_effort": "low", "temperature": 0.0, "stream": True, "user": "me", "motes": fields["motes"],
    }  # fmt: skip


# Tools and structured output.


def test_tool_calls_are_items():
    with drawing(PARIS, PARIS, turn("x")) as (http, lm):
        body = ask(http, tools=[TOOL]).json()
        found = streamed(http, tools=[TOOL])
        assert lm.bodies[0][0]["tools"] == [WEATHER]
        (item,) = body["output"]
        assert (item["type"], item["name"], item["status"]) == ("function_call", "weather", "completed")
        assert json.loads(item["arguments"]) == {"city": "Paris"}
        assert item["call_id"].startswith("call_")
        assert body["tools"][0]["name"] == "weather"
        kinds = [event["type"].removeprefix("response.") for event in found]
        assert kinds == [
            "created", "in_progress", "output_item.added", "function_call_arguments.delta",
            "function_call_arguments.done", "output_item.done", "completed",
        ]  # fmt: skip
        assert found[3]["delta"] == found[4]["arguments"] == found[5]["item"]["arguments"] == '{"city": "Paris"}'
        result = {**OUTPUT, "call_id": item["call_id"]}
        assert ask(http, input=[USER, item, result], tools=[TOOL]).status_code == 200
        assert [message["role"] for message in lm.bodies[-1][0]["messages"]] == ["user", "assistant", "tool"]
        wrong = {**TOOL, "parameters": {"type": "thing"}}
        error = ask(http, tools=[wrong]).json()["error"]
        assert error["param"] == "tools.0.parameters"
        assert error["message"].startswith("tools.0.parameters: this is no JSON schema")
        assert ask(http, tools=[TOOL, {**TOOL, "name": ""}]).json()["error"]["param"] == "tools.1.name"


def test_log_probabilities_are_in_the_message():
    with drawing(turn(r"\boxed{4}", logprobs=LOGPROBS)) as (http, _):
        fields = {"include": ["message.output_text.logprobs"]}
        body, found = ask(http, **fields).json(), streamed(http, **fields)
        assert body["output"][0]["content"][0]["logprobs"] == LOGPROBS["content"]
        assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == LOGPROBS["content"]
        response = ask(http, **fields, motes={"method": "pf"})
        assert response.headers["x-motes-ignored"] == "include"


# The `openai` package.


def test_the_package(client):
    answer = client.responses.create(model="story", input=QUESTION, extra_body={"seed": 5, "motes": {"particles": 4}})
    assert answer.output_text.endswith("}.")
    assert answer.motes["particles"] == 4
    with client.responses.stream(model="story", input=QUESTION, extra_body={"seed": 5}) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert said == final.output_text == client.responses.create(
        model="story", input=QUESTION, extra_body={"seed": 5}
    ).output_text  # fmt: skip
    history = [{"role": "user", "content": QUESTION}, *final.output, {"role": "user", "content": QUESTION}]
    assert client.responses.create(model="story", input=history).output_text
    plain = list(client.responses.create(model="story", input=QUESTION, stream=True))
    assert (plain[0].type, plain[-1].type) == ("response.created", "response.completed")


def test_the_package_at_once(http):
    async def test() -> None:
        async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.responses.create(model="story", input=QUESTION, extra_body={"seed": i}) for i in range(8))
            )
            assert all(answer.output_text for answer in answers)
            async with client.responses.stream(model="story", input=QUESTION) as stream:
                assert [event async for event in stream][-1].type == "response.completed"

    asyncio.run(test())


def test_errors_are_the_packages_own(client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.responses.create(model="other", input="?")
    with pytest.raises(openai.BadRequestError, match="stores no responses") as caught:
        client.responses.create(model="story", input="?", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_a_failure_within_a_stream_is_told_in_it():
    lm = Stepwise(fails=True)
    with gateways.over(lm) as http, openai_of(http) as client:
        stream = client.responses.create(model="story", input=QUESTION, stream=True)
        assert next(stream).type == "response.created"
        lm.let_go()
        with pytest.raises(openai.APIError, match="internal error: see") as caught:
            list(stream)
        assert "1234" not in str(caught.value)


def test_the_packages_own_structures():
    class Person(BaseModel):
        name: str
        age: int

    ada = turn('{"name": "Ada", "age": 36}')
    with drawing(ada) as (http, lm), openai_of(http) as client:
        parsed = client.responses.parse(model="story", input="Who?", text_format=Person)
        assert parsed.output_parsed == Person(name="Ada", age=36)
        sent = lm.bodies[0][0]["response_format"]["json_schema"]
        assert (sent["name"], sent["strict"], sent["schema"]["required"]) == ("Person", True, PERSON["required"])
        tool = openai.pydantic_function_tool(Person)["function"]
    with drawing(turn(calls=[("Person", '{"name": "Ada", "age": 36}')])) as (http, _), openai_of(http) as client:
        answer = client.responses.create(model="story", input="Who?", tools=[{"type": "function", **tool}])
        assert [(item.type, item.name) for item in answer.output] == [("function_call", "Person")]
