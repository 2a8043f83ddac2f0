"""What OpenAI's responses and Anthropic's messages share: the core, its limits, and what happens to every request."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

import gateways
import worlds
from formats import FORMATS, MESSAGES, RESPONSES, Format, events
from gateways import Stepwise
from motes.gateway import bodies
from motes.gateway.config import Key
from motes.tasks import TASKS
from test_gateway_entrance import QUOTING, Failing, logged

QUESTION = TASKS["arithmetic"]().problems(limit=12)[-1].question
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    model = {**gateways.MODEL, "efforts": {"low": 2, "high": 32}, "max_tokens": 4096}
    with gateways.gateway(gateways.config(models={"story": model})) as client:
        yield client


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config(strict=True)) as client:
        yield client


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def format(request: pytest.FixtureRequest) -> Format:
    return request.param


def chat(client: httpx2.Client, question: str = QUESTION, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return client.post(CHAT, json={"model": "story", "messages": messages, "seed": 5, **fields}).json()


def text(format: Format, body: dict[str, Any]) -> str:
    return "".join(text for kind, text in format.said(body) if kind in ("message", "text"))


def ended(lines: io.StringIO) -> list[tuple[str, int]]:
    """The requests that the log has: their endpoints and statuses."""
    entries = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [(entry["endpoint"], entry["status"]) for entry in entries if "status" in entry]


# One core.


def test_the_answer_is_that_of_a_chat(client, format: Format):
    expected = chat(client)
    body = format.ask(client, QUESTION).json()
    assert text(format, body) == expected["choices"][0]["message"]["content"]
    assert body["motes"] == expected["motes"]
    assert body["model"] == "story"
    usage = body["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (
        expected["usage"]["prompt_tokens"], expected["usage"]["completion_tokens"],
    )  # fmt: skip


@pytest.mark.parametrize("method", ["pf", "majority", "pg"])
def test_a_stream_comes_to_the_same_answer(client, format: Format, method: str):
    own = {"motes": {"method": method}}
    whole = format.ask(client, QUESTION, **own).json()
    streamed = list(events(format.ask(client, QUESTION, stream=True, **own).text))
    pieces = [event["delta"] for event in streamed if "delta" in event]
    said = "".join(piece if isinstance(piece, str) else piece.get("text", "") for piece in pieces)
    assert said == text(format, whole)
    last = streamed[-1]["response"] if format is RESPONSES else streamed[-2]
    assert (last["motes"], last["usage"]) == (whole["motes"], whole["usage"])


@pytest.mark.parametrize(
    ("fields", "headers", "chosen"),
    [
        ({}, {}, ("pf", 8)),
        ({"motes": {"particles": 4, "method": "majority"}}, {}, ("majority", 4)),
        ({"model": "story:bon-16"}, {}, ("bon", 16)),
        ({}, {"X-Motes-Particles": "3"}, ("pf", 3)),
    ],
)
def test_options_work_as_for_a_chat(client, format: Format, fields: dict[str, Any], headers: dict[str, str], chosen):
    told = format.ask(client, QUESTION, headers, **fields).json()
    assert (told["motes"]["method"], told["motes"]["particles"]) == chosen
    assert told["model"] == fields.get("model", "story")


EFFORTS: list[tuple[Format, dict[str, Any], int, str | None]] = [
    (RESPONSES, {"reasoning": {"effort": "low"}}, 2, None),
    (RESPONSES, {"reasoning": {"effort": "high", "summary": "auto"}}, 32, None),
    (RESPONSES, {"reasoning": {"effort": "medium"}}, 8, "reasoning.effort"),
    (MESSAGES, {"output_config": {"effort": "low"}}, 2, None),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 4096}}, 2, None),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 16385}}, 32, None),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 16384}}, 8, "thinking"),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1}, "output_config": {"effort": "high"}}, 32, None),
    (MESSAGES, {"thinking": {"type": "adaptive"}}, 8, None),
    (MESSAGES, {"thinking": {"type": "disabled"}}, 8, None),
]


@pytest.mark.parametrize(("format", "fields", "particles", "ignored"), EFFORTS, ids=range(len(EFFORTS)))
def test_efforts_choose_a_budget(client, format: Format, fields: dict[str, Any], particles: int, ignored: str | None):
    response = format.ask(client, QUESTION, **fields)
    assert response.json()["motes"]["particles"] == particles
    assert response.headers.get("x-motes-ignored") == ignored


# Limits.

TURN = {"role": "user", "content": "x"}
LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"motes": {"particles": 64}}, "motes.particles: at most 32 particles, not 64"),
    ({"motes": {"particles": 1_234_567}}, "motes.particles: at most 32 particles, not 1,234,567"),
    ({"motes": {"deadline": 1_234_567}}, "motes.deadline: at most 100 seconds, not 1,234,567"),
    ({"motes": {"particels": 3}}, "motes.particels: there is no such field"),
    ({"motes": {"method": "beam"}}, "motes.method: story answers by"),
    ({"LIMIT": 5000}, "LIMIT: at most 4,096 tokens, not 5,000"),
    ({"LIMIT": 0}, "LIMIT: Input should be greater than or equal to 1"),
    ({"temperature": 2.5}, "temperature: Input should be less than or equal to 2"),
    ({"QUESTION": [TURN] * 257}, "QUESTION: at most 256 messages"),
    ({"QUESTION": []}, "QUESTION: Input should have at least 1 item"),
    ({"QUESTION": [TURN, {"role": "assistant", "content": "x"}]}, "QUESTION: the last message must be the user's"),
    ({"QUESTION": [{"role": "user", "content": " "}]}, "QUESTION: the last message must be the user's"),
    ({"QUESTION": [TURN, {"role": "dog", "content": "x"}]}, "QUESTION.1.role: Input should be"),
    ({"QUESTION": [{"role": "user", "content": 5}]}, "QUESTION.0.content: Input should be a valid list"),
    ({"QUESTION": [{"role": "user", "content": [5]}]}, "QUESTION.0.content.0: Input should be a JSON object"),
    ({"QUESTION": [{"role": "user", "content": [{"type": "image"}]}]}, "QUESTION.0.content.0: its type should be one"),
    ({"QUESTION": [5]}, "QUESTION.0: Input should be a"),
    ({"model": "x" * 257}, "model: String should have at most 256"),
    ({"STOP": ["x"] * 5}, "STOP: at most four texts"),
    ({"STOP": ["x" * 257]}, "STOP: at most 256 characters"),
    ({"tools": [{"name": "x"}]}, "tools.0."),
    ({"metadata": [[] for _ in range(50_000)]}, "None: the body has too many values"),
]


@pytest.mark.parametrize(("fields", "complaint"), LIMITS, ids=range(len(LIMITS)))
def test_limits_have_the_formats_own_names(client, format: Format, fields: dict[str, Any], complaint: str):
    names = {
        "LIMIT": format.limit,
        "QUESTION": format.question,
        "STOP": "stop_sequences" if format is MESSAGES else "stop",
    }
    for general, own in names.items():
        complaint = complaint.replace(general, own)
    for stream in (False, True):
        response = format.ask(
            client, QUESTION, stream=stream, **{names.get(name, name): fields[name] for name in fields}
        )
        kind, message = format.error(response, 400)
        assert kind == "invalid_request_error"
        assert complaint.removeprefix("None: ") in message


def test_a_conversation_of_many_messages_is_allowed(client, format: Format):
    turns = [TURN, {"role": "assistant", "content": "x"}] * 127 + [TURN]
    assert format.ask(client, QUESTION, **{format.question: turns}).status_code == 200


def test_other_errors_have_the_formats_own_form(client, format: Format):
    kind, message = format.error(format.ask(client, QUESTION, model="other"), 404)
    assert kind == ("not_found_error" if format is MESSAGES else "invalid_request_error")
    assert "there is no model 'other'" in message
    assert format.error(client.get(format.path), 405)[0] == "invalid_request_error"
    assert "no such endpoint" in format.error(client.post(f"{format.path}/x", json={}), 404)[1]
    assert format.error(client.post(format.path, content=b"{"), 400)
    assert (
        "not JSON"
        in format.error(client.post(format.path, content=b"{", headers={"Content-Type": "application/json"}), 400)[1]
    )
    assert client.post("/v1/messagesx", json={}).json()["error"]["param"] is None, "the path of nobody: OpenAI's form"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", QUOTING)
def test_failures_of_models_have_the_formats_own_form(format: Format, kind: str, stream: bool):
    status, name = (400, "invalid_request_error") if kind in ("context", "configuration") else (502, "api_error")
    if kind in ("bug", "group"):
        status = 500
    if format is RESPONSES and status >= 500:
        name = "server_error"
    with logged() as lines, gateways.over(Failing(QUOTING[kind])) as client:
        response = format.ask(client, QUESTION, stream=stream)
    if stream:
        assert response.status_code == 200
        *_, last = events(response.text)
        assert last["type"] == "error"
        assert last["error"]["type"] == name
        message = last["error"]["message"]
    else:
        found, message = format.error(response, status)
        assert found == name
    if kind == "context":
        assert message.startswith("messages: the conversation is too long" if format is MESSAGES else "")
        assert stream or message.startswith(format.question)
    assert "Wenceslas" not in response.text + lines.getvalue()
    assert ended(lines) == [(format.path, status)]


class Silent(worlds.StoryLanguageModel):
    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
        await asyncio.Event().wait()


def test_a_deadline_before_any_answer(format: Format):
    with gateways.over(Silent()) as client:
        kind, message = format.error(format.ask(client, QUESTION, motes={"deadline": 0.1}), 504)
    assert kind == ("timeout_error" if format is MESSAGES else "server_error")
    assert "no answer was ready" in message


# Leniency.


def test_what_only_tunes_an_answer_is_left_out_and_named(client, strict, format: Format):
    fields: dict[str, Any] = {"unheard_of": 1}
    fields |= (
        {"top_k": 5} if format is MESSAGES else {"store": True, "truncation": "auto", "text": {"verbosity": "low"}}
    )
    response = format.ask(client, QUESTION, **fields)
    assert response.status_code == 200, response.text
    names = ["top_k"] if format is MESSAGES else ["store", "truncation", "text.verbosity"]
    assert response.headers["x-motes-ignored"].split(", ") == ["unheard_of", *names]
    for name in fields:
        assert format.ask(strict, QUESTION, **{name: fields[name]}).status_code == 400
    nested = [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]
    turns = [{"role": "user", "content": nested}]
    response = format.ask(client, QUESTION, **{format.question: turns})
    assert response.headers["x-motes-ignored"] == f"{format.question}.content.cache_control"
    assert format.ask(strict, QUESTION, **{format.question: turns}).status_code == 400


def test_null_is_nothing(client, format: Format):
    schemas = client.get("/openapi.json").json()["paths"][format.path]["post"]["requestBody"]["content"]
    fields = schemas["application/json"]["schema"]["properties"]
    assert len(fields) > 15
    for name in fields:
        if name not in ("model", format.question, "max_tokens"):
            response = format.ask(client, QUESTION, **{name: None})
            assert response.status_code == 200, response.text
            assert "x-motes-ignored" not in response.headers


def test_labels_have_no_effect(client, strict, format: Format):
    labels: dict[str, Any] = {"metadata": {"user_id": "x"}, "service_tier": "auto"}
    for gateway in (client, strict):
        response = format.ask(gateway, QUESTION, **labels)
        assert response.status_code == 200
        assert "x-motes-ignored" not in response.headers


# What happens to every request.


def test_without_a_key_no_body_is_read(monkeypatch: pytest.MonkeyPatch, format: Format):
    def refuse(*_: object) -> None:
        raise AssertionError("the body is parsed")

    secret, key = Key.make("one")
    with gateways.gateway(gateways.config(keys=[key.model_dump()])) as client:
        for headers in ({"X-API-Key": secret}, {"Authorization": f"Bearer {secret}"}):
            assert format.ask(client, QUESTION, headers).status_code == 200
        monkeypatch.setattr(bodies, "parse_body", refuse)
        for headers in ({}, {"X-API-Key": "nonsense"}, {"X-API-Key": ""}, {"Authorization": "Bearer nonsense"}):
            kind, message = format.error(format.ask(client, QUESTION, headers), 401)
            assert kind == "authentication_error"
            assert "key" in message
        both = {"Authorization": "Bearer nonsense", "X-API-Key": secret}
        assert format.ask(client, QUESTION, both).status_code == 401, "the first header decides"
        with logged():
            assert format.ask(client, QUESTION, {"X-API-Key": secret}).status_code == 500, "now it is"


def test_requests_are_counted_and_logged(format: Format):
    with logged() as lines, gateways.gateway(gateways.config()) as client:
        format.ask(client, QUESTION)
        format.ask(client, QUESTION, model="other")
        text = client.get("/metrics").text
    for model, status in (("story", 200), ("", 404)):
        labels = f'caller="anyone",endpoint="{format.path}",model="{model}",status="{status}"'
        assert f"motes_requests_total{{{labels}}} 1.0" in text
    assert ended(lines) == [(format.path, 200), (format.path, 404)]


def test_a_stream_that_has_nothing_to_say_lives(format: Format):
    lm = Stepwise()
    body = format.body(QUESTION, stream=True, motes={"particles": 2})
    with (
        gateways.over(lm, limits={"heartbeat": 0.01}) as client,
        client.stream("POST", format.path, json=body) as response,
    ):
        lines = response.iter_lines()
        while next(lines) != format.heartbeat:
            pass
        lm.let_go()
        assert '"type":"' in [line for line in lines if line][-1]


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_cancels_the_work_at_once(format: Format, stream: bool):
    lm = Stepwise()
    body = format.body(QUESTION, stream=stream, motes={"particles": 2})
    with gateways.over(lm, limits={"heartbeat": 0.01}) as client:
        if stream:
            with client.stream("POST", format.path, json=body) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("event: ")
                assert lm.waits.wait(10)
        else:
            with pytest.raises(httpx2.TimeoutException):
                client.post(format.path, json=body, timeout=0.5)
        assert lm.cancelled.wait(10)
        while 'status="499"' not in client.get("/metrics").text:
            pass


def test_a_stream_tells_of_its_particles_if_asked(client, format: Format):
    told = list(events(format.ask(client, QUESTION, stream=True, motes={"progress": "particles"}).text))
    kind = "motes" if format is MESSAGES else "response.motes"
    states = [event["motes"] for event in told if event["type"] == kind]
    assert [list(state) for state in states] == [["progress"]] * (len(states) - 1) + [["final"]]
    assert len(states) > 2
    assert states[0]["progress"]["particles"] == 8
    silent = list(events(format.ask(client, QUESTION, stream=True).text))
    assert kind not in {event["type"] for event in silent}


# Thoughts.


@pytest.mark.parametrize("method", ["pf", "majority"])
def test_thoughts_have_a_place_of_their_own(format: Format, method: str):
    kinds = {"responses": ["reasoning", "message"], "messages": ["thinking", "text"]}
    with gateways.over(gateways.Thinking()) as client:
        said = format.said(format.ask(client, QUESTION, motes={"method": method}).json())
        assert [kind for kind, _ in said] == kinds[format.path.split("/")[-1]]
        assert said[0][1] == "That is easy."
        assert said[1][1] in (r"\boxed{0}", r"\boxed{1}")
    with gateways.over(gateways.Thinking(), models={"story": {**gateways.MODEL, "reasoning": "text"}}) as client:
        ((kind, text),) = format.said(format.ask(client, QUESTION, motes={"method": method}).json())
        assert kind == kinds[format.path.split("/")[-1]][1]
        assert text.startswith("<think>\nThat is easy.\n\n</think>\n\n\\boxed{")


def test_what_the_gateway_says_can_be_sent_back(format: Format):
    with gateways.over(gateways.Thinking()) as client:
        body = format.ask(client, QUESTION).json()
        answer = body["output"] if format is RESPONSES else [{"role": "assistant", "content": body["content"]}]
        first, again = ({"role": "user", "content": QUESTION} for _ in range(2))
        response = format.ask(client, QUESTION, **{format.question: [first, *answer, again]})
        assert response.status_code == 200, response.text
        left_out = "input.reasoning" if format is RESPONSES else "messages.content.thinking"
        assert response.headers["x-motes-ignored"] == left_out
    with gateways.over(gateways.Thinking(), strict=True) as client:
        response = format.ask(client, QUESTION, **{format.question: [first, *answer, again]})
        assert format.error(response, 400)[1] == f"{left_out}: this has no effect: leave it out"
