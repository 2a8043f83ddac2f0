"""Requests as clients send them: what a gateway that is not strict makes of them, and where else options may stand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest

import gateways
import motes
import worlds
from motes.errors import ConfigurationError
from motes.gateway.config import Config, parse_config
from motes.gateway.leniency import leave_out
from motes.gateway.thoughts import ThoughtSplitter
from motes.gateway.wire import ChatRequest, CompletionRequest
from motes.tasks import TASKS
from motes.thoughts import split

QUESTION = TASKS["arithmetic"]().problems(limit=12)[5].question
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": QUESTION}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    model = {**gateways.MODEL, "efforts": {"low": 2, "high": 32}}
    with gateways.gateway(gateways.config(models={"story": model, "a:b": model})) as client:
        yield client


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config(strict=True)) as client:
        yield client


def ask(client: httpx2.Client, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    body = {"model": "story", "messages": [USER], "seed": 3, **fields}
    return client.post(CHAT, json=body, headers=headers or {})


IGNORED: list[tuple[dict[str, Any], str]] = [
    ({"unheard_of": 1}, "unheard_of"),
    ({"web_search_options": {}, "verbosity": "low"}, "web_search_options, verbosity"),
    ({"frequency_penalty": 0.5, "presence_penalty": -1}, "frequency_penalty, presence_penalty"),
    ({"logit_bias": {"5": 1}, "store": True, "prediction": {"type": "content"}}, "logit_bias, store, prediction"),
    ({"messages": [{**USER, "name": "bob"}]}, "messages.name"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?", "cache_control": {}}]}]},
     "messages.content.cache_control"),
    ({"stream_options": {"unheard_of": 1}, "stream": True}, "stream_options.unheard_of"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "names"), IGNORED, ids=[names for _, names in IGNORED])
def test_what_only_tunes_an_answer_is_left_out_and_named(client, strict, fields: dict[str, Any], names: str):
    response = ask(client, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["x-motes-ignored"] == names
    assert ask(strict, **fields).status_code == 400


def test_names_that_no_header_can_hold(client):
    fields = {"späße": 1, "a b": 2, "c\r\nd": 3, "x" * 100: 4, **{f"field{i}": i for i in range(30)}}
    header = ask(client, **fields).headers["x-motes-ignored"]
    assert header.startswith(f"sp??e, a?b, c??d, {'x' * 63}?, field0, ")
    assert header.endswith("field15, ...")


def test_what_has_an_effect_is_not_ignored(client):
    assert "x-motes-ignored" not in ask(client, n=2, stop=["x"], user="me", metadata={"a": "b"}, logprobs=False).headers


CHANGING: list[dict[str, Any]] = [
    {"audio": {"voice": "x"}},
    {"modalities": ["audio"]},
    {"functions": [{"name": "f"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"motes": {"particels": 3}},
    {"n": 0},
    {"temperature": "hot"},
]


@pytest.mark.parametrize("fields", CHANGING, ids=[json.dumps(fields)[:40] for fields in CHANGING])
def test_what_would_change_the_answer_is_refused(client, fields: dict[str, Any]):
    assert ask(client, **fields).status_code == 400


NULLS = [name for name, field in ChatRequest.model_fields.items() if name not in ("model", "messages")]


@pytest.mark.parametrize("name", [*NULLS, "unheard_of"])
def test_null_is_nothing(client, name: str):
    response = ask(client, **{name: None})
    assert response.status_code == 200, response.text
    assert "x-motes-ignored" not in response.headers


def test_null_is_nothing_anywhere():
    body = {
        "model": "m",
        "messages": [{"role": "assistant", "content": None, "tool_calls": None}, {**USER, "name": None}],
        "motes": {"method": None, "particles": 3}, "stream_options": {"include_usage": None}, "stop": None,
    }  # fmt: skip
    for strict in (False, True):
        kept, ignored = leave_out(body, ChatRequest, strict=strict)
        assert ignored == []
        request = ChatRequest.model_validate({**kept, "stream": True})
        assert request.turns() == [{"role": "assistant", "content": ""}, USER]
        assert request.motes.particles == 3


def test_null_is_nothing_for_a_strict_gateway(strict):
    for fields in (
        dict.fromkeys(NULLS), {"motes": {"progress": None, "particles": None, "method": None}},
        {"messages": [USER, {"role": "assistant", "content": None}, USER]},
    ):  # fmt: skip
        assert ask(strict, **fields).status_code == 200
    assert ask(strict, unheard_of=None).json()["error"]["param"] == "unheard_of"


def test_progress_may_be_null(client):
    for progress in (None, False):
        response = ask(client, motes={"progress": progress})
        assert (response.status_code, "x-motes-ignored" in response.headers) == (200, False)
    for value in (None, 1):
        assert ask(client, motes={"progres": value}).json()["error"]["param"] == "motes.progres"


TURNS: list[tuple[dict[str, Any], str]] = [
    ({"content": "4", "reasoning_content": "2 + 2 is 4", "refusal": None, "parsed": {"x": 1}, "annotations": []}, "4"),
    ({"content": "4", "name": "bot", "audio": {"id": "a"}, "function_call": None, "tool_calls": []}, "4"),
    ({"content": None, "refusal": "I cannot say"}, "I cannot say"),
    ({"content": None}, ""),
    ({}, ""),
    ({"content": [{"type": "text", "text": "4", "annotations": [1]}]}, "4"),
]


@pytest.mark.parametrize(("turn", "text"), TURNS, ids=range(len(TURNS)))
def test_an_assistants_turn_is_taken_as_servers_send_it(client, turn: dict[str, Any], text: str):
    messages = [USER, {"role": "assistant", **turn}, USER]
    kept, _ = leave_out({"model": "m", "messages": messages}, ChatRequest)
    assert ChatRequest.model_validate(kept).turns()[1] == {"role": "assistant", "content": text}
    assert ask(client, messages=messages).status_code == 200


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_other_turns_have_a_content(client, strict, role: str):
    for content in ({}, {"content": None}):
        for gateway in (client, strict):
            response = ask(gateway, messages=[{"role": role, **content}, USER])
            assert response.status_code == 400
            assert "content" in response.json()["error"]["message"]


def test_completions_leave_out_as_well():
    kept, ignored = leave_out(
        {"model": "m", "prompt": "x", "best_of": 3, "echo": False, "suffix": None}, CompletionRequest
    )
    assert (ignored, kept) == (["best_of"], {"model": "m", "prompt": "x", "echo": False})


# Stop texts, and temperature 0.


class Recording(worlds.StoryLanguageModel):
    """Keeps the samplings that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.samplings: list[motes.Sampling] = []

    async def extend(self, trajectories: Any, sampling: motes.Sampling, seeds: Sequence[int]) -> Any:
        self.samplings.append(sampling)
        return await super().extend(trajectories, sampling, seeds)


@pytest.mark.parametrize("stop", ["\n\n", "\n\nQuestion:", ["END", "a\n\nb"]])
def test_a_stop_text_with_a_blank_line_ends_the_answer(strict, stop: str | list[str]):
    lm = Recording()
    with gateways.over(lm) as client:
        assert ask(client, stop=stop).status_code == 200
        assert ask(client, stop="END").status_code == 200
    whole, usual = lm.samplings[0], lm.samplings[-1]
    assert (whole.stops, whole.delimiter, whole.max_steps) == (
        (stop,) if isinstance(stop, str) else tuple(stop),
        None,
        1,
    )
    assert whole.max_step_tokens == usual.max_steps * usual.max_step_tokens
    assert (usual.stops, usual.delimiter) == (("END",), motes.Sampling().delimiter)
    assert ask(strict, stop=stop).json()["error"]["param"] == "stop"


def test_temperature_zero_gives_the_same_answer_to_the_same_question(client):
    def seed(**fields: Any) -> int:
        return ask(client, **{"seed": None, "temperature": 0, **fields}).json()["motes"]["seed"]

    first = seed()
    assert first == seed()
    others = [
        seed(messages=[{"role": "user", "content": "Something else?"}]), seed(model="a:b"), seed(top_p=0.5),
        seed(motes={"particles": 4}), seed(motes={"method": "majority"}), seed(temperature=0.5), seed(temperature=0.5),
    ]  # fmt: skip
    assert len({first, *others}) == 8
    assert seed(seed=5) == 5


# Options elsewhere.


@pytest.mark.parametrize(
    ("model", "headers", "own", "chosen"),
    [
        ("story", {}, {}, ("pf", 8)),
        ("story:16", {}, {}, ("pf", 16)),
        ("story:majority", {}, {}, ("majority", 8)),
        ("story:majority-4", {}, {}, ("majority", 4)),
        ("story:pf:ess_threshold=1-4", {}, {}, ("pf:ess_threshold=1", 4)),
        ("story:pf:ess_threshold=1", {}, {}, ("pf:ess_threshold=1", 8)),
        ("a:b", {}, {}, ("pf", 8)),
        ("a:b:bon-2", {}, {}, ("bon", 2)),
        ("story", {"X-Motes-Method": "bon", "X-Motes-Particles": "3"}, {}, ("bon", 3)),
        ("story:majority-4", {"x-motes-particles": "3"}, {}, ("majority", 3)),
        ("story:majority-4", {"X-Motes-Method": "bon"}, {"particles": 5}, ("bon", 5)),
        ("story", {"X-Motes-Deadline": "2.5"}, {}, ("pf", 8)),
    ],
)
def test_options_may_stand_in_the_models_name_and_in_headers(
    client, model: str, headers: dict, own: dict, chosen: tuple
):
    response = ask(client, model=model, headers=headers, motes=own)
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["motes"]["method"], body["motes"]["particles"]) == chosen
    assert body["model"] == model


@pytest.mark.parametrize(
    ("model", "headers", "status"),
    [
        ("story:64", {}, 400),
        ("story:0", {}, 400),
        ("story:beam-4", {}, 400),
        ("story:", {}, 404),
        ("other:pf-4", {}, 404),
        (":4", {}, 404),
        ("story", {"X-Motes-Particles": "many"}, 400),
        ("story", {"X-Motes-Particles": "0"}, 400),
        ("story", {"X-Motes-Particles": "9" * 400}, 400),
        ("story", {"X-Motes-Particles": "33"}, 400),
        ("story", {"X-Motes-Deadline": "nan"}, 400),
        ("story", {"X-Motes-Deadline": "101"}, 400),
        ("story", {"X-Motes-Deadline": "-1"}, 400),
        ("story", {"X-Motes-Method": "os:system"}, 400),
        ("story", {"X-Motes-Method": "x" * 300}, 400),
    ],
)
def test_options_elsewhere_have_the_same_limits(client, model: str, headers: dict[str, str], status: int):
    assert ask(client, model=model, headers=headers).status_code == status


def test_reasoning_effort_chooses_a_budget(client, strict):
    assert ask(client, reasoning_effort="low").json()["motes"]["particles"] == 2
    assert ask(client, reasoning_effort="high").json()["motes"]["particles"] == 32
    assert ask(client, reasoning_effort="high", motes={"particles": 4}).json()["motes"]["particles"] == 4
    response = ask(client, reasoning_effort="medium")
    assert (response.json()["motes"]["particles"], response.headers["x-motes-ignored"]) == (8, "reasoning_effort")
    told = ask(strict, reasoning_effort="low").json()["error"]
    assert (told["param"], told["message"]) == ("reasoning_effort", "story knows these efforts: none")
    model = {**gateways.MODEL, "efforts": {"high": 64}}
    with pytest.raises(ConfigurationError, match="efforts: high has 64 particles, more than 32"):
        parse_config(Config, {"models": {"story": model}}, "motes.toml")


# Pages of other origins.


def test_only_named_origins_may_use_the_gateway_from_a_page():
    page, other = "https://app.example", "https://evil.example"
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    with gateways.gateway(gateways.config(cors=[page])) as client:
        response = client.options(CHAT, headers={"Origin": page, **preflight})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, page)
        assert client.options(CHAT, headers={"Origin": other, **preflight}).status_code == 400
        answer = ask(client, headers={"Origin": page})
        assert answer.headers["access-control-allow-origin"] == page
        assert "access-control-allow-origin" not in ask(client, headers={"Origin": other}).headers
    with gateways.gateway(gateways.config()) as client:
        assert client.options(CHAT, headers={"Origin": page, **preflight}).status_code == 405
    with pytest.raises(ConfigurationError, match="lets every web page use a gateway without keys"):
        parse_config(Config, {"models": {"story": gateways.MODEL}, "cors": ["*"]}, "motes.toml")


# Thoughts.

SPLIT: list[tuple[str, str, str]] = [
    ("4", "", "4"),
    ("<think>2 + 2</think>4", "2 + 2", "4"),
    ("<think>\n2 + 2\n</think>\n\n4\n", "2 + 2", "4\n"),
    ("2 + 2</think>4", "2 + 2", "4"),
    ("<think>2 + 2", "2 + 2", ""),
    ("[THINK]a[/THINK]b", "a", "b"),
    ("a<think>b</think>c<think>d</think>e", "b\n\nd", "ace"),
    ("<think></think>4", "", "4"),
    ("<think>a<think>b</think>c", "a<think>b", "c"),
    ("1 < 2 and <thin air", "", "1 < 2 and <thin air"),
    ("  4", "", "  4"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "thoughts", "content"), SPLIT, ids=[text for text, _, _ in SPLIT])
def test_thoughts_are_separated(text: str, thoughts: str, content: str):
    assert split(text) == (thoughts, content)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("text", [text for text, _, _ in SPLIT if not text.startswith("2 + 2</")])
def test_thoughts_are_separated_piece_by_piece_as_in_one(text: str, size: int):
    splitter, said = ThoughtSplitter(), {True: "", False: ""}
    for start in range(0, len(text), size):
        for in_thought, part in splitter.feed(text[start : start + size]):
            assert part
            said[in_thought] += part
    for in_thought, part in splitter.feed("", is_last=True):
        said[in_thought] += part
    whole = {True: "", False: ""}
    for in_thought, part in ThoughtSplitter().feed(text, is_last=True):
        whole[in_thought] += part
    assert said == whole


@contextlib.contextmanager
def thinking(**settings: Any) -> Iterator[httpx2.Client]:
    with gateways.over(gateways.Thinking(), models={"story": {**gateways.MODEL, **settings}}) as client:
        yield client


def streamed(client: httpx2.Client, **fields: Any) -> dict[int, dict[str, str]]:
    """The texts of a stream's answers by field."""
    said: dict[int, dict[str, str]] = {}
    for line in ask(client, stream=True, **fields).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                for name, text in choice["delta"].items():
                    answer = said.setdefault(choice["index"], {})
                    answer[name] = answer.get(name, "") + text
    return said


@pytest.mark.parametrize("method", ["pf", "majority"])
def test_what_a_model_thinks_has_a_field_of_its_own(method: str):
    with thinking() as client:
        fields = {"n": 2, "motes": {"method": method}}
        choices = ask(client, **fields).json()["choices"]
        assert len(choices) == 2
        for choice in choices:
            message = choice["message"]
            assert message["reasoning_content"] == "That is easy."
            assert message["content"] in (r"\boxed{0}", r"\boxed{1}")
            said = streamed(client, **fields)[choice["index"]]
            assert said == {name: message[name] for name in ("role", "content", "reasoning_content")}
    with thinking(reasoning="text") as client:
        message = ask(client).json()["choices"][0]["message"]
        assert message["content"].startswith("<think>\nThat is easy.\n\n</think>\n\n\\boxed{")
        assert "reasoning_content" not in message
        assert streamed(client)[0]["content"] == message["content"]


def test_an_answer_without_thoughts_has_no_such_field(client):
    assert "reasoning_content" not in ask(client).json()["choices"][0]["message"]
    assert set(streamed(client)[0]) == {"role", "content"}
