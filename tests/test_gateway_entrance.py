"""What the gateway does before it reads a body, what it reads of one, and what nobody may learn from it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

import gateways
import worlds
from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    EngineError,
    NoParticlesError,
    RejectedError,
    RewardError,
    UnreachableError,
)
from motes.gateway import bodies, streaming
from motes.gateway.answering import open_models
from motes.gateway.app import application
from motes.gateway.bodies import MAX_VALUES
from motes.gateway.config import Key
from motes.gateway.entrance import is_known_host
from motes.gateway.logs import JSONLines, RequestLog
from motes.gateway.streaming import EventStream
from motes.gateway.wire import ChatRequest, MotesOptions

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}
MESSAGE = '{"role": "user", "content": "What is 2 + 2?"}'
MEGABYTE = 1_000_000


def flood(items: str, number: int) -> bytes:
    return ('{"model": "story", "messages": [' + ",".join([items] * number) + "]}").encode()


def with_field(field: str) -> bytes:
    return f'{{"model": "story", "messages": [{MESSAGE}], {field}}}'.encode()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config(strict=True)) as client:
        yield client


# Before the key.

FLOODS = {
    "empty messages": flood("{}", 333_000),
    "good messages": flood(MESSAGE, 20_000),
    "not JSON": b"{" * MEGABYTE,
    "too large": b" " * 3 * MEGABYTE,
    "nested": b'{"messages":' + b"[" * 400_000,
    "digits": with_field(f'"n": {"9" * 400_000}'),
    "fields": with_field(", ".join(f'"k{i}": 1' for i in range(80_000))),
    "nothing": b"",
}


@pytest.mark.parametrize("body", FLOODS.values(), ids=FLOODS)
def test_without_a_key_no_body_is_read(monkeypatch: pytest.MonkeyPatch, body: bytes):
    def refuse(*_: object) -> None:
        raise AssertionError("the body is parsed")

    monkeypatch.setattr(bodies, "parse_body", refuse)
    _, key = Key.make("one")
    with gateways.gateway(gateways.config(keys=[key.model_dump()])) as client:
        for path in (CHAT, COMPLETIONS, "/v1/models", "/v1/nothing", "/v1/"):
            for headers in ({}, JSON, {"Authorization": "Bearer nonsense", **JSON}):
                response = client.post(path, content=body, headers=headers)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.request("DELETE", CHAT, content=body).status_code == 401
        assert client.get("/health").status_code == 200


def test_a_client_that_waits_for_permission_is_answered_without_its_body():
    """`Expect: 100-continue`: it would send its body only when told to."""
    _, key = Key.make("one")
    with gateways.gateway(gateways.config(keys=[key.model_dump()])) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 401")


# What is read of a body.


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        (flood("{}", 333_000), None, "too many values"),
        (flood("{}", 30_000), "messages.0.role", "Field required"),
        (flood(MESSAGE, 300), "messages", "at most 256 messages"),
        (with_field('"metadata": {' + ", ".join(f'"k{i}": 1' for i in range(5000)) + "}"), None, "too many values"),
        (with_field(", ".join(f'"k{i}": 1' for i in range(900))), "k0", "no such field"),
        (with_field(f'"{"k" * 100_000}": 1'), f"{'k' * 99}…", "no such field"),
        (with_field('"stop": [' + ", ".join(['"x"'] * 40_000) + "]"), "stop", "at most four texts"),
        (with_field('"stop": [' + ", ".join(["1"] * 40_000) + "]"), "stop", "a text or a list of texts"),
        (with_field(f'"stop": "{"x" * 257}"'), "stop", "at most 256 characters"),
        (with_field(f'"motes": {{"method": "{"x" * 257}"}}'), "motes.method", "256 characters"),
        (with_field('"user": ' + "[" * 65 + "]" * 65), None, "nested too deeply"),
        (b'{"messages":' + b"[" * 400_000 + b"]" * 400_000, None, "nested too deeply"),
        (with_field('"logit_bias": {"5": NaN}'), None, "not finite: NaN"),
        (with_field('"metadata": {"x": [-1e400]}'), None, "not finite: -1e400"),
        (b"[1, 2]", "body", "a JSON object"),
        (b"", None, "not JSON"),
        (b"{", None, "not JSON"),
        (b'{"model": "\xff"}', None, "not JSON"),
    ],
    ids=range(18),
)
def test_a_body_is_bounded_and_its_first_fault_named(client, body: bytes, param: str | None, complaint: str):
    response = client.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    told = response.json()["error"]
    assert complaint in told["message"]
    assert len(told["message"]) < 300
    assert told["param"] == (None if param == "body" else param)


NUMBERS = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "seed", "frequency_penalty",
    "presence_penalty", "top_logprobs", "motes.particles", "motes.deadline",
)  # fmt: skip


@pytest.mark.parametrize(
    "number", ["9" * 400, "-" + "9" * 400, "1e400", "-1e400", "9" * 5000, "NaN", "Infinity", "1e30"]
)
@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_of_any_size_are_the_clients_mistake(client, field: str, number: str):
    name, _, inner = field.partition(".")
    value = f'{{"{inner}": {number}}}' if inner else number
    for path in (CHAT, COMPLETIONS):
        body = (
            with_field(f'"{name}": {value}')
            if path == CHAT
            else f'{{"model": "story", "prompt": "2 + 2?", "{name}": {value}}}'
        )
        response = client.post(path, content=body, headers=JSON)
        expected = {400} if (field, number) != ("seed", "1e30") else {200, 400}
        assert response.status_code in expected, response.text


def test_many_values_that_are_allowed(client):
    """The bounds are far above what clients send."""
    parts = ", ".join(['{"type": "text", "text": "x"}'] * (MAX_VALUES // 4))
    body = f'{{"model": "story", "messages": [{{"role": "user", "content": [{parts}]}}], "seed": {2**64 - 1}}}'
    assert client.post(CHAT, content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_pages_of_other_origins_cannot_send_what_needs_no_permission(client, media_type: str):
    response = client.post(CHAT, content=with_field('"n": 1'), headers={"Content-Type": media_type})
    assert (response.status_code, "application/json" in response.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"]
)
def test_types_that_are_json(client, media_type: str):
    response = client.post(CHAT, content=with_field('"n": 1'), headers={"Content-Type": media_type})
    assert response.status_code == 200


# Hosts.

HERE = ["localhost", "localhost:8080", "LOCALHOST", "127.0.0.1", "127.0.0.1:1", "127.8.8.8", "[::1]:80", "a.localhost"]
HERE += ["localhost.", "gateway.internal", "GATEWAY.internal:8080"]
ELSEWHERE = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "10.0.0.1",
    "",
    "[",
]
ELSEWHERE += ["evil.example@localhost.evil", "[::2]", "localhost@evil.example", "internal", "0.0.0.0"]


@pytest.mark.parametrize("host", [*HERE, *ELSEWHERE])
def test_only_names_of_this_machine_are_known(host: str):
    assert is_known_host(host, ["Gateway.Internal"]) == (host in HERE)


def test_without_keys_only_known_hosts_are_answered():
    """A page of evil.example whose name points at this machine could read every answer."""
    evil = {"Host": "evil.example"}
    with gateways.gateway(gateways.config(hosts=["gateway.internal"])) as client:
        for path in ("/", "/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert client.get(path, headers=evil).json()["error"]["code"] == "unknown_host"
        assert client.post(CHAT, content=with_field('"n": 1'), headers={**JSON, **evil}).status_code == 403
        for path in ("/health", "/ready"):
            assert client.get(path, headers=evil).status_code == 200
        assert client.get("/v1/models", headers={"Host": "gateway.internal"}).status_code == 200
    secret, key = Key.make("one")
    with gateways.gateway(gateways.config(keys=[key.model_dump()])) as client:
        headers = {**evil, "Authorization": f"Bearer {secret}"}
        assert client.get("/v1/models", headers=headers).status_code == 200, "with keys it has any name"


# What nobody may learn.

SECRET, PLACE = "my cat is called Wenceslas", "http://10.0.0.1:8000"


class Failing(worlds.StoryLanguageModel):
    def __init__(self, fail: Callable[[], Exception]) -> None:
        super().__init__()
        self.fail = fail

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
        try:
            raise ValueError(f"{SECRET} is not JSON")
        except ValueError as error:
            raise self.fail() from error


def rejected() -> Exception:
    error = RejectedError(f"{PLACE} refused the request: {SECRET}")
    error.status = 422
    return error


QUOTING = {
    "engine": lambda: EngineError(f"{PLACE} answered: {SECRET}"),
    "rejected": rejected,
    "reward": lambda: RewardError(f"{PLACE} cannot score {SECRET}"),
    "particles": lambda: NoParticlesError(f"none is left of {SECRET}"),
    "context": lambda: ContextLengthError(f"{PLACE}#Qwen: {SECRET} has 9,000 tokens"),
    "configuration": lambda: ConfigurationError(f"{PLACE} cannot sample so: {SECRET}"),
    "bug": lambda: KeyError(SECRET),
    "group": lambda: ExceptionGroup(SECRET, [ValueError(SECRET)]),
}


@contextlib.contextmanager
def logged() -> Iterator[io.StringIO]:
    """The lines that motes logs meanwhile."""
    lines = io.StringIO()
    handler, logger = logging.StreamHandler(lines), logging.getLogger("motes")
    handler.setFormatter(JSONLines())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", QUOTING)
def test_what_was_said_stays_between_client_and_model(kind: str, stream: bool):
    with logged() as lines, gateways.over(Failing(QUOTING[kind])) as client:
        messages = [{"role": "user", "content": SECRET}]
        response = client.post(CHAT, json={"model": "story", "messages": messages, "stream": stream})
        request_id = response.headers["x-request-id"]
    text = lines.getvalue()
    entries = [json.loads(line) for line in text.splitlines()]
    status = 400 if kind in ("context", "configuration") else 500 if kind in ("bug", "group") else 502
    assert [entry["status"] for entry in entries if "status" in entry] == [status]
    for word in ("Wenceslas", "is called"):
        assert word not in text, "in the log"
        assert word not in response.text, "in the response"
        assert not {"10.0.0.1", "Qwen", "EngineError", "KeyError"} & set(response.text.replace('"', " ").split())
    if kind != "context":
        (failure,) = [entry for entry in entries if "status" not in entry and "request" in entry]
        assert failure["request"] == request_id
        assert type(QUOTING[kind]()).__name__ in failure["message"]
        assert "ValueError" in failure["message"]
        assert ("status 422" in failure["message"]) == (kind == "rejected")
        assert ("traceback" in failure) == (kind in ("bug", "group"))


def test_an_operator_learns_which_server_cannot_be_reached():
    with logged() as lines, gateways.over(Failing(lambda: UnreachableError(f"nothing answers at {PLACE}"))) as client:
        response = client.post(CHAT, json={"model": "story", "messages": [{"role": "user", "content": "?"}]})
    assert response.status_code == 502
    assert PLACE not in response.text
    assert f"nothing answers at {PLACE}" in lines.getvalue()


# Streams that nobody reads, and errors while one is written. Without a server between, so that nothing is buffered.


class Wire:
    """An ASGI connection whose client sends one request, and reads as many messages as it likes."""

    def __init__(self, app: Any, body: bytes, *, reads: int = 1_000_000, fail: Exception | None = None) -> None:
        self.app, self.body, self.reads, self.fail = app, body, reads, fail
        self.sent: list[dict[str, Any]] = []
        self.stuck = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self.body is None:
            await asyncio.Event().wait()
        message, self.body = {"type": "http.request", "body": self.body, "more_body": False}, None
        return message

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.sent) >= self.reads:
            if self.fail is not None:
                raise self.fail
            self.stuck.set()
            await asyncio.Event().wait()
        self.sent.append(message)

    async def __call__(self) -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
            "headers": headers, "http_version": "1.1", "scheme": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip
        await self.app(scope, self.receive, self.send)


def streamed() -> tuple[Any, bytes]:
    config = gateways.config()
    body = {"model": "story", "messages": [{"role": "user", "content": "What is 2 + 2?"}], "stream": True}
    return application(config, open_models(config)), json.dumps(body).encode()


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
def test_a_stream_that_nobody_reads_gives_its_room_back_when_its_run_has_ended(reads: int):
    async def test() -> None:
        app, body = streamed()
        gate = app.state.gateway.gate
        wire = Wire(app, body, reads=reads)
        task = asyncio.create_task(wire())
        async with asyncio.timeout(30):
            await wire.stuck.wait()
            while gate.in_flight:
                await asyncio.sleep(0.001)
        assert not task.done(), "the stream itself is still there"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert app.state.gateway.anyone.present == 0

    asyncio.run(test())


@pytest.mark.parametrize(("fail", "status"), [(OSError("gone"), 499), (RuntimeError(SECRET), 500)])
def test_errors_while_a_stream_is_sent_are_logged_and_counted(fail: Exception, status: int):
    async def test() -> None:
        app, body = streamed()
        with logged() as lines, contextlib.suppress(RuntimeError):
            await Wire(app, body, reads=2, fail=fail)()
        entries = [json.loads(line) for line in lines.getvalue().splitlines()]
        assert [entry["status"] for entry in entries if "status" in entry] == [status]
        assert len(entries) == (1 if status == 499 else 2)
        registry = app.state.gateway.metrics.registry
        labels = {"endpoint": CHAT, "model": "story", "caller": "anyone", "status": str(status)}
        assert registry.get_sample_value("motes_requests_total", labels) == 1
        assert app.state.gateway.gate.in_flight == 0

    asyncio.run(test())


@pytest.mark.parametrize("ticks", range(-4, 5))
def test_a_client_that_leaves_as_a_round_ends_ends_its_stream(ticks: int):
    """`asyncio.wait_for` of Python 3.11 loses a cancellation that comes with the result."""

    async def test() -> None:
        ended = asyncio.Event()

        async def solve(*_: object) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        class Silent:
            heartbeat = b""

            def opening(self) -> bytes:
                return b""

        body = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]})
        config = gateways.config()
        request = open_models(config)["story"].parse(body, MotesOptions(), strict=True)
        entry = RequestLog()
        stream = EventStream(request, Silent(), solve, entry, 1000.0, contextlib.AsyncExitStack())  # type: ignore[arg-type]
        left = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        task = asyncio.create_task(stream({}, receive, send))
        while not stream._queue._getters:
            await asyncio.sleep(0)
        steps = [left.set, lambda: stream._keep_latest([])]
        for step in steps if ticks >= 0 else reversed(steps):
            step()
            for _ in range(abs(ticks)):
                await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.gather(task, return_exceptions=True)
        assert (ended.is_set(), entry.status) == (True, 499)

    asyncio.run(test())


def test_errors_while_a_stream_is_written_are_logged_and_counted(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(streaming.Narrator, "ending", fail)

    async def test() -> None:
        app, body = streamed()
        wire = Wire(app, body)
        with logged() as lines:
            await wire()
        text = b"".join(message.get("body", b"") for message in wire.sent).decode()
        assert text.endswith("data: [DONE]\n\n")
        assert '"error"' in text
        assert SECRET not in text + lines.getvalue()
        assert [entry.get("status") for entry in map(json.loads, lines.getvalue().splitlines())] == [None, 500]

    asyncio.run(test())
