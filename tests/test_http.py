"""The HTTP client: what it tries again and how patiently, what it does not, what it says. No test waits on a clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Any

import httpx2
import pytest

from motes.errors import (
    BadResponseError,
    ConfigurationError,
    ContextLengthError,
    EngineError,
    MotesError,
    RejectedError,
    ServerError,
    UnauthorizedError,
    UnknownFormError,
    UnreachableError,
)
from motes.transport import Address, Client, Events, Retries, Timeouts
from motes.transport.events import EventReader
from virtual_time import timed

BASE = "http://server.test/v1"
NOW = 1_795_000_000.0


class Script:
    """Answers one thing after another; the last one for ever. An exception is raised, a function is called."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.requests: list[httpx2.Request] = []
        self.pauses: list[float] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer()
        if isinstance(answer, Awaitable):
            answer = await answer
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def client(self, **options: Any) -> Client:
        options = {"transport": httpx2.MockTransport(self), "sleep": self.sleep, "clock": lambda: NOW, **options}
        return Client(BASE, **options)


def failure(status: int, message: str = "no", **headers: str) -> Callable[[], httpx2.Response]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: httpx2.Response(status, json={"error": {"message": message}}, headers=headers)


def shown(error: BaseException) -> str:
    """An error as a traceback shows it, with what it came of, but without lines of source."""
    return "".join(
        line
        for part in traceback.TracebackException.from_exception(error, lookup_lines=False).format()
        for line in part.splitlines()
        if not line.startswith("    ")
    )


def post(script: Script, **options: Any) -> Any:
    return asyncio.run(script.client(**options).post("completions", {"prompt": "ü"}))


# ----------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("spec", "base", "root", "model"),
    [
        ("http://localhost:8000/v1#Qwen/Q-1.5B", "http://localhost:8000/v1", "http://localhost:8000", "Qwen/Q-1.5B"),
        ("http://localhost:8000", "http://localhost:8000/v1", "http://localhost:8000", None),
        ("https://a.test/openai/v1/", "https://a.test/openai/v1", "https://a.test/openai", None),
        ("https://a.test/api#m", "https://a.test/api", "https://a.test/api", "m"),
        ("http://[::1]:80/v1#m:latest", "http://[::1]:80/v1", "http://[::1]:80", "m:latest"),
    ],
)
def test_addresses(spec: str, base: str, root: str, model: str | None):
    address = Address.parse(spec)
    assert (address.base, address.root, address.model) == (base, root, model)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("http://", "names no host"),
        ("http:///v1#m", "names no host"),
        ("http://a b/v1", "names no host"),
        ("ftp://a.test/v1", "neither http:// nor https://"),
        ("http://[::1/v1", r"not an IPv6 address.*in brackets, http://\[::1\]:8000/v1"),
        ("http://[::g]/v1", "not an IPv6 address"),
        ("http://::1:8000/v1", "names no host.*in brackets"),
        ("http://fe80::1/v1", "its port is not a number from 1 to 65535.*in brackets"),
        ("http://a.test:99999/v1", "its port is not a number from 1 to 65535"),
        ("http://a.test:abc/v1#m", "its port"),
        ("http://a.test:-1", "its port"),
        ("http://a.test:0/v1", "its port"),
        ("http://a.test/v1?x=1#m", "options stand behind the model's name"),
        ("https://user:secret@a.test/v1", "put it into MOTES_API_KEY"),
        ("https://:secret@a.test:abc/v1", "put it into MOTES_API_KEY"),
        ("https://user:secret@[::1/v1", "not an IPv6 address"),
        ("https://user:se/cret@a.test/v1#m", "its port"),
        ("https://user:se#cret@a.test/v1#m", "its port"),
    ],
)
def test_what_is_no_address(spec: str, says: str):
    with pytest.raises(ConfigurationError, match=says) as caught:
        Address.parse(spec)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None, "what it says may hold a password"


@pytest.mark.parametrize("spec", ["HTTP://a.test/v1#M", " http://a.test/v1#M\n", "Http://a.test/v1/#M"])
def test_an_address_may_be_written_carelessly(spec: str):
    assert Address.parse(spec) == Address("http://a.test/v1", "M")


def test_an_address_is_well_formed():
    assert Address.parse("http://a.test/v\udcff#m\udcff") == Address("http://a.test/v\ufffd", "m\ufffd")


def test_a_key_of_digits_may_come_as_a_number():
    script = Script({"fine": 1})
    post(script, api_key=123456)
    assert script.requests[0].headers["authorization"] == "Bearer 123456"
    with pytest.raises(ConfigurationError, match="variable 5 is not set"):
        Address.parse("http://a.test").key(5)  # type: ignore[arg-type]


def test_keys_go_where_they_belong(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "for-openai")
    monkeypatch.delenv("MOTES_API_KEY", raising=False)
    local, openai = Address.parse("http://localhost:8000"), Address.parse("https://api.openai.com/v1#m")
    assert (local.key(), openai.key()) == (None, "for-openai")
    monkeypatch.setenv("MOTES_API_KEY", "mine")
    monkeypatch.setenv("OTHER", "another")
    assert (local.key(), openai.key(), local.key("OTHER")) == ("mine", "mine", "another")
    with pytest.raises(ConfigurationError, match="NOWHERE is not set"):
        local.key("NOWHERE")


@pytest.mark.parametrize("written", ["sk-abc\n", "\r\nsk-abc", " sk-abc\t", "sk-abc\r", "sk-abc"])
def test_what_stands_around_a_key_is_left_out(written: str, monkeypatch: pytest.MonkeyPatch):
    for variable in ("MOTES_API_KEY", "OTHER", "OPENAI_API_KEY"):
        monkeypatch.setenv(variable, written)
    local, openai = Address.parse("http://localhost:8000"), Address.parse("https://api.openai.com/v1#m")
    assert (local.key(), local.key("OTHER"), openai.key()) == ("sk-abc",) * 3
    monkeypatch.delenv("MOTES_API_KEY")
    assert (local.key(), openai.key()) == (None, "sk-abc")
    script = Script({"fine": 1})
    post(script, api_key=written)
    assert script.requests[0].headers["authorization"] == "Bearer sk-abc"


@pytest.mark.parametrize("written", ["", " ", "\n"])
def test_a_key_of_blanks_is_none(written: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOTES_API_KEY", written)
    local = Address.parse("http://localhost:8000")
    assert local.key() is None
    with pytest.raises(ConfigurationError, match="MOTES_API_KEY is not set"):
        local.key("MOTES_API_KEY")
    script = Script({"fine": 1})
    post(script, api_key=written)
    assert "authorization" not in script.requests[0].headers


@pytest.mark.parametrize(
    "written", ["sk-abc\nsk-def", "sk-schlüssel", "sk–abc", "sk-\udcff", "sk-abc\x01", "sk-abc sk-def"]
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(written: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOTES_API_KEY", written)
    for give in (Address.parse("http://localhost:8000").key, lambda: Client(BASE, api_key=written)):
        with pytest.raises(ConfigurationError, match=r"MOTES_API_KEY|api_key") as caught:
            give()
        assert written[:5] not in shown(caught.value)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ what is asked


def test_what_is_sent():
    script = Script({"fine": 1})
    assert post(script, api_key="secret") == {"fine": 1}
    (request,) = script.requests
    assert (request.method, str(request.url)) == ("POST", f"{BASE}/completions")
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.content) == {"prompt": "ü"}
    asyncio.run(script.client().get("http://server.test/version"))
    assert (script.requests[-1].method, str(script.requests[-1].url)) == ("GET", "http://server.test/version")
    assert "authorization" not in script.requests[-1].headers


def test_half_of_a_surrogate_pair_can_be_sent():
    """As in a model's name that a server reported so."""
    script = Script({"fine": 1})
    asyncio.run(script.client().post("completions", {"model": "m\ud83d"}))
    assert json.loads(script.requests[0].content) == {"model": "m?"}


# ------------------------------------------------------------------------------------------------------- trying again

BROKEN = [
    httpx2.ConnectError("refused"),
    httpx2.ConnectTimeout("slow"),
    httpx2.ReadTimeout("silent"),
    httpx2.WriteTimeout("stuck"),
    httpx2.ReadError("reset"),
    httpx2.RemoteProtocolError("peer closed connection without sending complete message body"),
    lambda: httpx2.Response(200, content=b'{"choices": [{"te'),
    lambda: httpx2.Response(200, content=b"<html>Bad day</html>"),
    lambda: httpx2.Response(200, content=b"no gzip", headers={"content-encoding": "gzip"}),
    *map(failure, (408, 409, 429, 500, 502, 503, 504, 529)),
]


@pytest.mark.parametrize("answer", BROKEN)
def test_what_may_pass_is_tried_again(answer: Any):
    script = Script(answer, answer, {"fine": 1})
    assert post(script) == {"fine": 1}
    assert len(script.requests) == 3
    assert len(script.pauses) == 2
    assert {request.content for request in script.requests} == {script.requests[0].content}


@pytest.mark.parametrize("answer", BROKEN)
def test_patience_ends(answer: Any):
    script = Script(answer)
    with pytest.raises(ServerError) as caught:
        post(script, retries=Retries(attempts=4))
    assert (len(script.requests), len(script.pauses)) == (4, 3)
    assert isinstance(caught.value, EngineError)
    assert "server.test" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (httpx2.ConnectError("refused"), UnreachableError, "start the server"),
        (httpx2.ConnectTimeout("slow"), UnreachableError, "did not connect within 10 s"),
        (httpx2.ReadTimeout("silent"), UnreachableError, "did not send anything for 300 s"),
        (httpx2.ReadError(""), UnreachableError, "broke off"),
        (lambda: httpx2.Response(200, content=b"<html>"), BadResponseError, "not JSON .*OpenAI-compatible"),
        (lambda: httpx2.Response(200, content=b"[" * 99_999), BadResponseError, "not JSON .*OpenAI-compatible"),
        (lambda: httpx2.Response(500, content=b"[" * 99_999), ServerError, r"500 Internal Server Error: \[\[\["),
        (failure(429, "too fast"), ServerError, "429 Too Many Requests: too fast.*max_concurrency"),
        (failure(500, "out of memory"), ServerError, "500 Internal Server Error: out of memory.*its log"),
    ],
)
def test_what_is_said_in_the_end(answer: Any, error: type[MotesError], says: str):
    with pytest.raises(error, match=says) as caught:
        post(Script(answer), retries=Retries(attempts=2))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (failure(401), UnauthorizedError, "put a key into MOTES_API_KEY"),
        (failure(403), UnauthorizedError, "wants an API key"),
        (failure(400, "top_k is unknown"), RejectedError, "400 Bad Request: top_k is unknown"),
        (failure(404, "no such route"), RejectedError, "no such route"),
        (failure(422, "Input validation error"), RejectedError, "Input validation"),
        (failure(307, location="https://b.test/v1"), RejectedError, "moved to https://b.test/v1"),
        (failure(400, "This model's maximum context length is 1024 tokens"), ContextLengthError, "Shorten"),
        (failure(400, "request (1100 tokens) exceeds the available context size"), ContextLengthError, "Shorten"),
        (failure(413, "inputs must be shorter: max_total_tokens"), ContextLengthError, "Shorten"),
    ],
)
def test_what_cannot_succeed_is_not_tried_again(answer: Any, error: type[MotesError], says: str):
    script = Script(answer)
    with pytest.raises(error, match=says):
        post(script)
    assert (len(script.requests), script.pauses) == (1, [])


def test_a_key_that_is_wrong_is_not_told():
    with pytest.raises(UnauthorizedError, match="the key it was given is not accepted") as caught:
        post(Script(failure(401)), api_key="very-secret")
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "b"}, "b"),
        ({"message": "c"}, "c"),
        ({"detail": [{"msg": "d"}]}, "d"),
        ({"error": {}}, "error"),
        ("plain", "plain"),
    ],
)
def test_a_reason_is_found_wherever_it_stands(body: Any, says: str):
    with pytest.raises(RejectedError, match=f"Bad Request: .*{says}"):
        post(Script(lambda: httpx2.Response(400, json=body)))
    with pytest.raises(RejectedError, match="nothing said"):
        post(Script(lambda: httpx2.Response(400)))


def test_pauses_grow_and_are_drawn():
    retries, rng = Retries(first=1.0, longest=8.0), random.Random(0)
    pauses = [[retries.pause(attempt, None, rng) for _ in range(2000)] for attempt in range(1, 7)]
    for drawn, most in zip(pauses, (1, 2, 4, 8, 8, 8), strict=True):
        assert 0 <= min(drawn) < 0.01 * most
        assert 0.99 * most < max(drawn) <= most
    assert min(retries.pause(1, 5.0, rng) for _ in range(100)) >= 5.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("1.5", 1.5), (formatdate(NOW + 30, usegmt=True), 30.0), (formatdate(NOW - 30), 0.0)],
)
def test_retry_after_is_honoured(header: str, seconds: float):
    script = Script(failure(429, retry_after=header), {"fine": 1})
    assert post(script, retries=Retries(first=0.0)) == {"fine": 1}
    assert script.pauses == [seconds]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"), [({"retry_after": "7"}, 7.0), ({"retry_after": "86400"}, 86400.0), ({}, None)]
)
def test_the_error_says_when_the_server_wants_the_next_request(status: int, header: Any, seconds: float | None):
    with pytest.raises(ServerError) as caught:
        post(Script(failure(status, **header)), retries=Retries(attempts=2))
    assert (caught.value.status, caught.value.retry_after) == (status, seconds)


@pytest.mark.parametrize("header", ["soon", "", "Wed, 99 Nov", "inf", "1e999", "nan", "-inf"])
def test_a_retry_after_that_says_nothing_is_none(header: str):
    script = Script(failure(503, retry_after=header), {"fine": 1})
    post(script, retries=Retries(first=0.0))
    assert script.pauses == [0.0]


def test_who_wants_to_be_left_alone_for_long_is():
    script = Script(failure(429, "come back tomorrow", retry_after="86400"))
    with pytest.raises(ServerError, match="tomorrow"):
        post(script)
    assert (len(script.requests), script.pauses) == (1, [])


@pytest.mark.parametrize("header", ["0", "7", "120", formatdate(NOW + 30, usegmt=True)])
@pytest.mark.parametrize("status", [429, 503])
def test_attempts_are_limited_where_the_server_says_when_to_come_back(status: int, header: str):
    seconds = 30.0 if header.endswith("GMT") else float(header)
    for attempts in (1, 4):
        script = Script(failure(status, retry_after=header))
        with pytest.raises(ServerError, match=f"answered {status}"):
            post(script, retries=Retries(attempts=attempts, first=0.0))
        assert (len(script.requests), script.pauses) == (attempts, [seconds] * (attempts - 1))


def test_all_attempts_together_have_a_time():
    async def silence() -> Any:
        await asyncio.sleep(10_000)

    async def main() -> None:
        client = Script(silence).client(timeouts=Timeouts(total=300))
        with pytest.raises(UnreachableError, match="within 300 s, all attempts together"):
            await client.post("completions", {})

    assert timed(main)[1] == pytest.approx(300)


def test_a_timeout_around_the_call_is_the_callers():
    async def silence() -> Any:
        await asyncio.sleep(10_000)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await Script(silence).client().post("completions", {})

    assert timed(main)[1] == pytest.approx(5)


def test_so_many_at_once():
    at_once, most = 0, 0

    async def answer() -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(1)
        at_once -= 1
        return {}

    async def main() -> None:
        client = Script(answer).client(max_concurrency=3)
        await asyncio.gather(*(client.post("x", {}) for _ in range(10)))

    assert timed(main)[1] == pytest.approx(4)
    assert most == 3
    with pytest.raises(ConfigurationError, match="max_concurrency"):
        Script().client(max_concurrency=0)


# ------------------------------------------------------------------------------------------------- what is observed


async def silent() -> Any:
    await asyncio.sleep(10_000)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"fine": 1}, "ok"),
        *((failure(status), str(status)) for status in (307, 400, 401, 404, 408, 429, 500, 503)),
        (failure(400, "This model's maximum context length is 1024 tokens"), "400"),
        (httpx2.ConnectError("refused"), "connection"),
        (httpx2.ReadError("reset"), "connection"),
        (httpx2.RemoteProtocolError("torn"), "connection"),
        (httpx2.ConnectTimeout("slow"), "timeout"),
        (httpx2.ReadTimeout("silent"), "timeout"),
        (silent, "timeout"),
        (lambda: httpx2.Response(200, content=b"<html>"), "bad_response"),
        (lambda: httpx2.Response(200, content=b"no gzip", headers={"content-encoding": "gzip"}), "bad_response"),
        ({"error": "overloaded"}, "bad_response"),
        ({"error": "the maximum context length is 7"}, "bad_response"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_each_attempt_is_observed_with_its_outcome_and_its_seconds(answer: Any, outcome: str, streamed: bool):
    """In virtual time; all attempts together have 100 seconds."""
    if streamed and outcome == "ok":
        answer = sse({"fine": 1})

    async def main() -> None:
        client = script.client(retries=Retries(attempts=3), timeouts=Timeouts(total=100))
        client.observe = lambda *attempt: observed.append(attempt)
        with contextlib.suppress(MotesError):
            await (client.stream("x", {}, collect) if streamed else client.post("x", {}))
        with contextlib.suppress(MotesError):
            await client.get("models")

    observed: list[tuple[str, float]] = []
    script = Script(answer)
    timed(main)
    num_gets = sum(request.method == "GET" for request in script.requests)
    assert num_gets
    seconds = pytest.approx(100 if answer is silent else 0)
    assert observed == [(outcome, seconds)] * (len(script.requests) - num_gets), "a GET is not observed"


def test_an_attempt_that_its_caller_cancels_is_observed():
    async def main() -> None:
        client = Script(silent).client()
        client.observe = lambda *attempt: observed.append(attempt)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await client.post("x", {})

    observed: list[tuple[str, float]] = []
    timed(main)
    assert observed == [("cancelled", pytest.approx(5))]


# ------------------------------------------------------------------------------------------------------------- streams


def sse(*events: Any) -> Callable[[], httpx2.Response]:
    lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    return lambda: httpx2.Response(200, content="\n\n".join(lines).encode())


async def collect(events: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event async for event in events]


def stream(script: Script, read: Any = collect) -> Any:
    return asyncio.run(script.client().stream("completions", {}, read))


def test_events_are_read_in_either_form():
    noise = (": ping", "event: message", "id: 7")
    assert stream(Script(sse(*noise, {"a": 1}, {"a": 2}, "data: [DONE]", {"a": 3}))) == [{"a": 1}, {"a": 2}]
    assert stream(Script(lambda: httpx2.Response(200, content=b'{"a": 1}\n{"a": 2}\n'))) == [{"a": 1}, {"a": 2}]


EVENTS = 'data: {"a": "one\u2028two\u2029three\u0085 \u000b\u000c\u001c é😀"}'
READ = [{"a": "one\u2028two\u2029three\u0085 \u000b\u000c\u001c é😀"}]


def pieces(content: bytes, *cuts: int) -> Callable[[], httpx2.Response]:
    async def body() -> AsyncIterator[bytes]:
        for start, end in zip((0, *cuts), (*cuts, len(content)), strict=True):
            yield content[start:end]

    return lambda: httpx2.Response(200, content=body())


@pytest.mark.parametrize(
    "content",
    [
        "{0}\n\n",
        "{0}\r\n\r\n",
        "{0}\r\r",
        "{0}",
        "{0}\n",
        "\ufeff{0}\n\n",
        ": ping\n\n{0}\n\n: pong\n\n",
        ":\nevent: message\nid: 7\nretry: 5\n{0}\n\n",
        "\n\n\n{0}\n\n\n\n",
        "{0}\n\ndata: [DONE]\n\n",
        '{0}\n\ndata:[DONE]\n\ndata: {{"b": 1}}\n\n',
        "unknown: field\ndata\n\n{0}\n\n",
    ],
)
def test_lines_end_where_the_standard_says(content: str):
    """At CR, LF or CRLF, wherever the stream is cut, within a character or a line end; nowhere else. (The text's own
    control characters stand in JSON as they are: this side is as lenient.)"""
    lenient = EVENTS.replace("\x0b", "\\u000b").replace("\x0c", "\\u000c").replace("\x1c", "\\u001c")
    for event in (lenient, lenient.replace("data: ", "data:")):
        raw = content.format(event).encode()
        assert stream(Script(pieces(raw, *range(1, len(raw))))) == READ
        whole = EventReader().read(raw, last=True)
        assert json.loads(whole[0]) == READ[0]
        for cut in range(1, len(raw)):
            reader = EventReader()
            assert reader.read(raw[:cut]) + reader.read(raw[cut:]) + reader.read(b"", last=True) == whole, (raw, cut)


def test_several_lines_of_data_are_one_event():
    raw = b'data: {"a":\ndata: [1,\ndata:2]}\n\ndata: {"b": 1}\n\n'
    for cut in range(1, len(raw)):
        assert stream(Script(pieces(raw, cut))) == [{"a": [1, 2]}, {"b": 1}]


def test_a_stream_says_whether_it_is_complete():
    async def read(events: Events) -> tuple[int, bool]:
        return len([event async for event in events]), events.is_complete

    assert stream(Script(sse({"a": 1}, "data: [DONE]")), read) == (1, True)
    assert stream(Script(sse({"a": 1})), read) == (1, False)


@pytest.mark.parametrize("error", ["overloaded", {"message": "overloaded", "code": 529}, {"message": "overloaded"}])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_in_an_answer_of_200_is_tried_again(error: Any, streamed: bool):
    ask = stream if streamed else post
    script = Script({"error": error}, {"error": error, "choices": []}, {"fine": 1})
    assert ask(script) == ([{"fine": 1}] if streamed else {"fine": 1})
    assert len(script.requests) == 3
    with pytest.raises(BadResponseError, match=r"overloaded.*its log"):
        ask(Script({"error": error}))
    assert ask(Script({"error": None, "fine": 1}))
    script = Script({"error": {"message": "This model's maximum context length is 1024 tokens", "code": 400}})
    with pytest.raises(ContextLengthError):
        ask(script)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "told",
    [
        'event: error\ndata: {"message": "overloaded", "code": 529}',
        'event: error\ndata: {"error": {"message": "overloaded"}}',
        "event:error\ndata: overloaded",
        'data: {"object": "error", "message": "overloaded", "code": 500}',
    ],
)
def test_an_error_in_a_stream_is_told_in_its_own_words(told: str):
    script = Script(sse({"a": 1}, told), sse({"a": 1}))
    assert stream(script) == [{"a": 1}]
    with pytest.raises(BadResponseError, match="failed while it answered: overloaded"):
        stream(Script(sse(told)))
    assert stream(Script(sse("event: message\ndata: {}", {"a": 1}))) == [{}, {"a": 1}]


def test_an_answer_of_another_form_is_asked_for_once_more():
    def read(answer: Any) -> str:
        if "fine" not in answer:
            raise UnknownFormError("not so")
        return str(answer["fine"])

    assert asyncio.run(Script({}, {"fine": 1}).client().post("x", {}, read=read)) == "1"
    script = Script({}, {}, {"fine": 1})
    with pytest.raises(UnknownFormError, match="not so"):
        asyncio.run(script.client().post("x", {}, read=read))
    assert len(script.requests) == 2
    script = Script({}, failure(503), {"fine": 1})
    assert asyncio.run(script.client().post("x", {}, read=read)) == "1", "a busy server is asked again as often as ever"


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_nested_too_deeply_is_no_json(streamed: bool):
    script = Script(lambda: httpx2.Response(200, content=b'{"a":' + b"[" * 100_000))
    with pytest.raises(BadResponseError, match="not JSON"):
        (stream if streamed else post)(script)
    with pytest.raises(RejectedError):
        post(Script(lambda: httpx2.Response(400, content=b"[" * 100_000)))


def test_an_event_of_nothing_is_left_out():
    assert stream(Script(sse("data: null", {"a": 1}))) == [{"a": 1}]


def test_what_a_reader_refuses_is_tried_again():
    def read(answer: Any) -> str:
        if "fine" not in answer:
            raise BadResponseError("not so")
        return str(answer["fine"])

    script = Script({}, {"fine": 1})
    assert asyncio.run(script.client().post("x", {}, read=read)) == "1"
    assert len(script.requests) == 2
    with pytest.raises(BadResponseError, match="not so"):
        asyncio.run(Script({}).client(retries=Retries(attempts=2)).post("x", {}, read=read))


KEY = "sk-very/secret-key"
ECHOES: dict[str, Any] = {
    "refused": lambda: httpx2.Response(400, json={"error": {"message": f"the key {KEY} is no good"}}),
    "not accepted": lambda: httpx2.Response(401, json={"error": f"Incorrect API key provided: {KEY}"}),
    "with slashes escaped": lambda: httpx2.Response(500, text=json.dumps({"x": KEY}).replace("/", r"\/")),
    "as text": lambda: httpx2.Response(503, text=f"Bearer {KEY}"),
    "cut": lambda: httpx2.Response(503, text="x" * 185 + KEY + "y"),
    "moved": lambda: httpx2.Response(307, headers={"location": f"https://b.test/?key={KEY}"}),
    "no JSON": lambda: httpx2.Response(200, text=f"<html>{KEY}"),
    "an error in an answer": {"error": KEY},
    "in what went wrong": httpx2.RemoteProtocolError(f"illegal header line: bytearray(b'{KEY}')"),
    "where nothing answers": httpx2.ConnectError(f"no {KEY}"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("echo", ECHOES)
def test_no_error_shows_the_key(echo: str, streamed: bool):
    client = Script(ECHOES[echo]).client(api_key=KEY, retries=Retries(attempts=2))
    call = client.stream("x", {}, collect) if streamed else client.post("x", {})
    with pytest.raises(MotesError) as caught:
        asyncio.run(call)  # type: ignore[arg-type]
    assert KEY[:8] not in shown(caught.value)
    assert "[API key]" in shown(caught.value)
    assert KEY not in repr(client) + repr(client._key)


def test_what_a_reader_says_does_not_show_the_key():
    def read(answer: Any) -> str:
        try:
            raise KeyError(answer["x"])
        except KeyError as error:
            raise BadResponseError(f"misread {answer}") from error

    with pytest.raises(BadResponseError, match="misread") as caught:
        asyncio.run(Script({"x": KEY}).client(api_key=KEY).post("x", {}, read=read, attempts=1))
    assert KEY[:8] not in shown(caught.value)


def test_a_short_key_is_hidden_where_it_stands_alone():
    with pytest.raises(RejectedError, match=r"Bad Request: all of it is \[API key\] \."):
        post(Script(failure(400, "all of it is a .")), api_key="a")


def test_a_key_that_stands_in_the_address_is_no_secret():
    with pytest.raises(RejectedError, match=r"server\.test.*a server says server"):
        post(Script(failure(400, "a server says server")), api_key="server")


@pytest.mark.parametrize("broken", ['data: {"a":', "data: [1]", {"error": {"message": "the engine died"}}])
def test_a_stream_that_breaks_off_is_read_again(broken: Any):
    script = Script(sse({"a": 1}, broken), sse({"a": 1}, {"a": 2}))
    assert stream(script) == [{"a": 1}, {"a": 2}]
    assert len(script.requests) == 2
    with pytest.raises(BadResponseError):
        stream(Script(sse(broken)))


# ------------------------------------------------------------------------------------------------- what stands between


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ALL_PROXY", "socks5://user:secret@127.0.0.1:9", "pip install socksio"),
        ("HTTP_PROXY", "socks5h://127.0.0.1:9", "pip install socksio"),
        ("all_proxy", "socks://user:secret@127.0.0.1:9", "write http://HOST:PORT"),
        ("http_proxy", "http://user:secret@proxy:port", "write http://HOST:PORT"),
        ("HTTP_PROXY", "http://[::1", "write http://HOST:PORT"),
        ("HTTP_PROXY", "ftp://proxy:1", "write http://HOST:PORT"),
    ],
)
def test_a_proxy_that_cannot_work(variable: str, value: str, says: str, environment: pytest.MonkeyPatch):
    environment.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"the proxy that the environment names.*{variable}.*{says}") as caught:
        asyncio.run(Client(BASE).post("x", {}))
    assert "secret" not in shown(caught.value)
    assert "\n" not in str(caught.value)


def test_a_proxy_where_nothing_answers_is_named(environment: pytest.MonkeyPatch):
    refused = Script(httpx2.ConnectError("refused"))
    with pytest.raises(UnreachableError, match=r"\(refused\)$"):
        post(refused)
    environment.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="proxy of HTTPS_PROXY: put the host into NO_PROXY"):
        post(refused)


def test_certificates_that_are_not_there(environment: pytest.MonkeyPatch):
    environment.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        asyncio.run(Client("https://server.test/v1").post("x", {}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attempts": "two"}, "attempts must be more than 0, a whole number, not 'two'"),
        ({"attempts": 1.5}, "attempts must be"),
        ({"attempts": "1.5"}, "attempts must be"),
        ({"attempts": float("inf")}, "attempts must be"),
        ({"attempts": True}, "attempts must be"),
        ({"max_concurrency": "1.5"}, "max_concurrency must be"),
        ({"max_concurrency": 0}, "max_concurrency must be"),
        ({"read_timeout": "long"}, "read_timeout must be more than 0, a number of seconds, not 'long'"),
        ({"read_timeout": None}, "read_timeout must be"),
        ({"total_timeout": float("nan")}, "total_timeout must be"),
        ({"connect_timeout": "inf"}, "connect_timeout must be"),
    ],
)
def test_options_that_are_no_numbers(options: Any, says: str):
    with pytest.raises(ConfigurationError, match=says):
        Client.open(Address(BASE), **options)


def test_options_may_come_as_text():
    client = Client.open(Address(BASE), read_timeout="1.5", attempts="2", max_concurrency="3")  # type: ignore[arg-type]
    assert (client.timeouts.read, client.retries.attempts, client.max_concurrency) == (1.5, 2, 3)


# ------------------------------------------------------------------------------------------------ over real connections


class Server:
    """A server on a real socket, whose answers are what `serve` writes."""

    def __init__(self, serve: Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.serve = serve
        self.count = 0
        self.connections = 0
        self.closed = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._request(reader):
                self.count += 1
                await self.serve(self.count, reader, writer)
                await writer.drain()
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.closed.set()
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := await reader.readline()):
                return False
            head += line
        length = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-len")), 0)
        await reader.readexactly(length)
        return True

    def client(self, **options: Any) -> Client:
        async def at_once(seconds: float) -> None:
            pass

        return Client(f"http://127.0.0.1:{self.port}/v1", **{"sleep": at_once, **options})


def full(body: bytes = b'{"fine": 1}', length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (length, body)


def test_a_connection_is_used_again_and_closed_with_its_loop():
    async def serve(count: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(full())

    async def main(client: Client | None = None) -> tuple[Client, int]:
        async with Server(serve) as server:
            client = server.client()
            for _ in range(5):
                assert await client.post("x", {}) == {"fine": 1}
            await client.aclose()
            await asyncio.wait_for(server.closed.wait(), 20)
            assert await client.post("x", {}) == {"fine": 1}, "it opens anew"
            await client.aclose()
            return client, server.connections

    _, connections = asyncio.run(main())
    assert connections == 2


def test_no_connection_outlives_its_loop():
    """Were one left open, its transport would warn when it is collected, and warnings are errors."""

    async def serve(count: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(full())

    async def main(clients: list[Client]) -> None:
        server = Server(serve)
        await server.start()
        clients += [server.client(), server.client()]
        for client in clients:
            assert await client.post("x", {}) == {"fine": 1}
        await clients[1].aclose()
        server._server.close()

    clients: list[Client] = []
    asyncio.run(main(clients))
    gc.collect()
    assert [len(client._pools) for client in clients] == [0, 0]


def test_a_client_may_be_dropped_while_its_loop_runs():
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        client = Script({"fine": 1}).client()
        assert await client.post("x", {}) == {"fine": 1}
        del client
        gc.collect()
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()

    errors: list[Any] = []
    asyncio.run(main())
    assert errors == []


@pytest.mark.parametrize(
    "broken",
    [
        full(length=500),
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"fin',
        b"HTTP/1.1 20",
        b"",
        b"what is this?\r\n\r\n",
    ],
)
def test_an_answer_that_breaks_off_half_way_is_asked_for_again(broken: bytes):
    async def serve(count: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(broken if count <= 2 else full())
        if count <= 2:
            writer.close()

    async def main() -> None:
        async with Server(serve) as server:
            client = server.client()
            assert await client.post("x", {}) == {"fine": 1}
            assert server.count == 3
            await client.aclose()

    asyncio.run(main())


def test_a_server_that_dies_and_returns():
    async def serve(count: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(full())
        if count == 1:  # it dies, its connections with it
            server._server.close()
            await writer.drain()
            writer.close()

    async def later(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            await server.start()

    async def main() -> None:
        nonlocal server
        server = Server(serve)
        await server.start()
        client = server.client(sleep=later)
        assert await client.post("x", {}) == {"fine": 1}
        assert await client.post("x", {}) == {"fine": 1}
        assert len(pauses) == 2
        await client.aclose()
        await server.stop()

    server: Server = None  # type: ignore[assignment]
    pauses: list[float] = []
    asyncio.run(main())


@pytest.mark.parametrize("streamed", [True, False])
def test_cancelling_closes_the_connection_at_once(streamed: bool):
    async def serve(count: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if streamed:
            writer.write(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{"a":1}\n\r\n')
        asked.set()
        assert await reader.read() == b"", "the other side has hung up"
        writer.close()

    async def main() -> None:
        nonlocal asked
        asked = asyncio.Event()
        async with Server(serve) as server:
            client = server.client()
            work = client.stream("x", {}, collect) if streamed else client.post("x", {})
            task = asyncio.ensure_future(work)
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.closed.wait(), 20)
            await client.aclose()

    asked: asyncio.Event = None  # type: ignore[assignment]
    asyncio.run(main())


def test_who_has_read_enough_of_a_stream_hangs_up():
    async def serve(count: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{"a":1}\n\r\n')
        await reader.read()
        writer.close()

    async def first(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
        return await anext(events)

    async def main() -> None:
        async with Server(serve) as server:
            client = server.client()
            assert await client.stream("x", {}, first) == {"a": 1}
            await asyncio.wait_for(server.closed.wait(), 20)
            await client.aclose()

    asyncio.run(main())
