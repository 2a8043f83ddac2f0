"""Requests as clients send them: every field is honoured or named."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from motes.gateway.wire import ChatRequest, CompletionRequest

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}


def chat(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({**ASK, **fields})


def test_a_conversation_of_parts():
    request = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]},
            {"role": "assistant", "content": "4", "tool_calls": None, "refusal": None, "annotations": []},
            {"role": "user", "content": "And 3 + 3?"},
        ]
    )
    assert request.turns() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
    ]


def test_what_is_honoured():
    request = chat(
        max_completion_tokens=9, temperature=0.5, top_p=0.9, n=3, seed=7, stop=["a", "b"], stream=True,
        stream_options={"include_usage": True}, motes={"method": "pf", "particles": 8, "deadline": 2, "progress": True},
    )  # fmt: skip
    assert (request.token_limit, request.stops, request.n, request.seed) == (9, ("a", "b"), 3, 7)
    assert (request.motes.particles, request.motes.deadline, request.motes.progress) == (8, 2.0, True)
    assert (chat(max_tokens=5).token_limit, chat(stop="x").stops, chat().stops) == (5, ("x",), ())


NAN, INF = float("nan"), float("inf")
NOTHING = {
    "frequency_penalty": [0, 0.0], "presence_penalty": [0], "logit_bias": [{}], "logprobs": [False],
    "top_logprobs": [0],
    "tools": [[]], "tool_choice": ["none", "auto"], "functions": [[]], "function_call": ["none"],
    "response_format": [{"type": "text"}], "store": [False], "modalities": [["text"]],
}  # fmt: skip
SOMETHING = {
    "frequency_penalty": [0.1, True, "0"], "presence_penalty": [-1], "logit_bias": [{"5": 1}], "logprobs": [0, "yes"],
    "top_logprobs": [21, -1, False], "tools": [[{"type": "function"}], [{"type": "web_search"}], "f", [{}] * 200,
              [{"type": "function", "function": {"name": "f"}}] * 2,
              [{"type": "function", "function": {"name": "f", "parameters": 3}}]],
    "tool_choice": ["sometimes", {"type": "function"}, {"type": "allowed_tools"}],
    "functions": [[{"name": "f"}]], "function_call": ["auto"],
    "response_format": [{"type": "json_schema"}, {"type": "grammar"}, {"type": "json_schema", "json_schema": {}}, 3],
    "store": [True], "modalities": [["audio"]], "audio": [{"voice": "x"}],
    "prediction": [{"type": "content"}], "reasoning_effort": [3], "web_search_options": [{}], "unheard_of": [1],
    "best_of": [2], "motes": [{"particels": 3}, {"particles": 0}, {"deadline": 0}, {"lm": "http://elsewhere"},
              {"particles": True}, {"particles": "8"}, {"deadline": "3"}, {"deadline": NAN}, {"progress": 1},
              {"progress": "yes"}, {"method": 1}, None, "pf"],
    "n": [0, True, "2"], "temperature": [-1, 2.1, "hot", "0.5", True, NAN, INF, 10**400],
    "top_p": [0, 1.1, True, NAN], "max_tokens": [0, True, "5", 5.5, [5], INF],
    "max_completion_tokens": [-1, True], "stop": [[""], ["a", "b", "c", "d", "e"], [1], [None], 1, {}],
    "seed": ["x", 1.5, "1", True, NAN], "model": ["", None, 1, ["tiny"]], "stream": ["perhaps", "yes", 1],
    "stream_options": [{"include_usage": True}, True], "parallel_tool_calls": ["no", 0], "user": [5],
    "metadata": [{"a": 1}, []],
    "messages": [
        [], None, "hello", [{"role": "user"}], [{"role": "user", "content": " "}], [{"role": "tool", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "x", "name": "bob"}], ["x"], {"role": "user", "content": "x"},
        [{"role": "user", "content": None}], [{"role": "user", "content": 5}], [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        [{"role": "assistant", "content": "x", "tool_calls": [{}]}, {"role": "user", "content": "x"}],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in NOTHING.items() for v in [None, *values]])
def test_what_asks_for_nothing_is_taken(field, value):
    chat(**{field: value})


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in SOMETHING.items() for v in values])
def test_what_cannot_be_honoured_is_named(field, value):
    with pytest.raises(ValidationError) as caught:
        chat(**{field: value})
    assert {fault["loc"][0] for fault in caught.value.errors()} == {field}


def test_whole_numbers_may_be_written_with_a_point():
    request = chat(max_tokens=5.0, n=2.0, seed=7.0, motes={"particles": 8.0})
    found = (request.max_tokens, request.n, request.seed, request.motes.particles)
    assert found == (5, 2, 7, 8)
    assert all(type(number) is int for number in found)


def test_who_sends_none_of_several_things_is_told_all_of_them():
    for fields, place, words in [
        ({"stop": 5}, ("stop",), "a text or a list of texts"),
        ({"motes": {"progress": "yes"}}, ("motes", "progress"), 'true, false or "particles"'),
        ({"messages": [{"role": "user", "content": 5}]}, ("messages", 0, "content"), "a text, or a list of"),
    ]:
        with pytest.raises(ValidationError) as caught:
            chat(**fields)
        (fault,) = caught.value.errors()
        assert fault["loc"] == place
        assert words in fault["msg"]


def test_what_is_nested_without_end_is_refused():
    deep: list[object] = []
    for _ in range(2000):
        deep = [deep]
    for field in ("logit_bias", "messages", "unheard_of"):
        with pytest.raises(ValidationError, match="it is nested too deeply"):
            chat(**{field: deep})


def test_what_is_asked_of_clients_is_told_in_the_schema():
    known = ChatRequest.model_json_schema()["properties"]
    assert known["max_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
    assert known["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert [kind["type"] for kind in known["stop"]["anyOf"]] == ["string", "array", "null"]


def test_two_limits_that_differ():
    assert chat(max_tokens=5, max_completion_tokens=5).token_limit == 5
    with pytest.raises(ValidationError, match="differs from max_tokens: send only one"):
        chat(max_tokens=5, max_completion_tokens=6)


def test_a_completion_is_a_turn():
    ask = {"model": "tiny", "prompt": "What is 2 + 2?"}
    turn = [{"role": "user", "content": "What is 2 + 2?"}]
    assert CompletionRequest.model_validate(ask).turns() == turn
    assert (
        CompletionRequest.model_validate({**ask, "prompt": [ask["prompt"]], "best_of": 1, "echo": False}).turns()
        == turn
    )
    for field, value in {"prompt": ["a", "b"], "logprobs": 0, "echo": True, "suffix": "x", "best_of": 2}.items():
        with pytest.raises(ValidationError) as caught:
            CompletionRequest.model_validate({**ask, field: value})
        assert {fault["loc"][0] for fault in caught.value.errors()} == {field}
    for prompt in ([1, 2, 3], [[1, 2]], "", []):
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate({**ask, "prompt": prompt})
