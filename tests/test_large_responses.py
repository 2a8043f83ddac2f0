"""Responses that are larger than anything a request asks for, compressed or not: they are not read to their end."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from engines import VLLM, OpenAICompatible, Tokenizer, connect
from motes import Problem, Sampling, Trajectory
from motes.core import Failure
from motes.errors import BadResponseError, MotesError, RejectedError, ServerError, TooLargeError
from motes.transport import Client, Retries

MB = 1 << 20
BASE = "http://server.test/v1"


def bomb(beginning: bytes, middle: bytes, size: int = 1100 * MB) -> bytes:
    """A gzip of `beginning`, and `middle` until there are `size` bytes."""
    compress = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    head = compress.compress(beginning) + compress.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, a compressed block stands for itself, and can be repeated.
    block = compress.compress(middle * (MB // len(middle))) + compress.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // MB)


BOMBS = {
    "text": (b'{"choices": [{"text": "', b"a"),
    "blanks": (b"", b" "),
    "nested": (b"", b"["),
    "lists": (b"[", b"[],"),
    "numbers": (b"[", b"1e9,"),
    "zeros": (b"", b"\0"),
}


async def in_pieces(content: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


class Bomb:
    """Answers with a body in pieces, which it counts."""

    def __init__(self, content: bytes, status: int = 200, encoding: str = "gzip") -> None:
        self.content, self.status, self.encoding = content, status, encoding
        self.requests = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        headers = {"content-encoding": self.encoding, "content-type": "application/json"}
        return httpx2.Response(self.status, headers=headers, content=in_pieces(self.content))

    def client(self, **options: Any) -> Client:
        return Client(BASE, transport=httpx2.MockTransport(self), sleep=at_once, **options)


async def at_once(seconds: float) -> None:
    pass


class Memory:
    """The peak of memory in a context, and what is left at its end, in bytes."""

    def __enter__(self) -> Memory:
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(self, *exception: object) -> None:
        gc.collect()
        self.left, self.peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()


async def collect(events: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event async for event in events]


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_small_body_that_becomes_a_gigabyte_is_not_decompressed(kind: str, streamed: bool):
    """The error that is left holds nothing of the body."""
    server = Bomb(bomb(*BOMBS[kind]))
    assert len(server.content) < 4 * MB
    client = server.client()
    with Memory() as memory, pytest.raises(TooLargeError, match=r"more than 16,777,216 bytes.*max_response_bytes"):
        asyncio.run(client.stream("x", {}, collect) if streamed else client.post("x", {}))
    assert memory.peak < 150 * MB
    assert memory.left < MB
    assert server.requests == 2, "it is asked once more"


@pytest.mark.parametrize(("status", "error"), [(400, RejectedError), (500, ServerError)])
def test_of_an_error_only_the_beginning_is_read(status: int, error: type[MotesError]):
    server = Bomb(bomb(b"<h1>out of order ", b"a"), status)
    with Memory() as memory, pytest.raises(error, match="out of order aaa") as caught:
        asyncio.run(server.client(retries=Retries(attempts=3)).post("x", {}))
    assert type(caught.value) is error
    assert memory.peak < 8 * MB
    assert len(str(caught.value)) < 1000


def test_a_model_survives_a_bomb(monkeypatch: pytest.MonkeyPatch):
    """Every particle fails with the reason, and no failure keeps the response."""
    content = bomb(*BOMBS["lists"])
    large = json.dumps({"choices": [{"index": 0, "text": "a" * 8 * MB, "finish_reason": "stop"}] * 3})

    async def main() -> None:
        engine = VLLM()
        lm = await connect(engine)
        roots = [Trajectory(Problem(f"{i}?")) for i in range(4)]
        headers = {"content-encoding": "gzip"}
        for make in (
            lambda: httpx2.Response(200, headers=headers, content=in_pieces(content)),
            lambda: httpx2.Response(200, content=in_pieces(large.encode()[: 15 * MB])),  # not JSON
            lambda: httpx2.Response(200, content=in_pieces(large.encode()[: 15 * MB] + b'"}]}')),  # of another form
        ):
            engine.fails = lambda path, body, make=make: make() if path.endswith("/completions") else None
            with Memory() as memory:
                outcomes = await lm.extend(roots, Sampling(max_step_tokens=8), range(4))
                assert all(isinstance(outcome, Failure) for outcome in outcomes)
                assert all(isinstance(outcome.error, BadResponseError) for outcome in outcomes)
            assert memory.left < 2 * MB

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------------- the limit


def compressed(value: Any) -> bytes:
    return gzip.compress(json.dumps(value).encode())


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
def test_a_response_within_the_limit_is_read(encoding: str):
    value = {"fine": "ü" * 1000}
    plain = json.dumps(value).encode()
    content = {"gzip": gzip.compress(plain), "deflate": zlib.compress(plain), "identity": plain}[encoding]
    size = len(plain)
    assert asyncio.run(Bomb(content, encoding=encoding).client(max_response_bytes=size).post("x", {})) == value
    with pytest.raises(TooLargeError):
        asyncio.run(Bomb(content, encoding=encoding).client(max_response_bytes=size - 1).post("x", {}))


def test_a_request_for_many_tokens_may_have_a_large_response():
    value = {"fine": "a" * 100_000}
    server = Bomb(compressed(value))
    client = server.client(max_response_bytes=1000)
    assert asyncio.run(client.post("x", {}, num_tokens=200)) == value
    with pytest.raises(TooLargeError):
        asyncio.run(client.post("x", {}, num_tokens=100))


def test_the_limit_of_a_stream_is_that_of_an_event():
    events = b"".join(b'data: {"a": "%s"}\n\n' % (b"b" * 900) for _ in range(100))
    server = Bomb(gzip.compress(events))
    assert len(asyncio.run(server.client(max_response_bytes=1000).stream("x", {}, collect))) == 100
    with pytest.raises(TooLargeError, match="an event of more than 900 bytes"):
        asyncio.run(server.client(max_response_bytes=900).stream("x", {}, collect))


@pytest.mark.parametrize("line", [b"data: a\n", b"data:\n", b"data: " + b"a" * 5000 + b"\n"])
def test_an_event_of_many_lines_does_not_grow_for_ever(line: bytes):
    server = Bomb(bomb(b"", line, 100 * MB))
    with Memory() as memory, pytest.raises(TooLargeError):
        asyncio.run(server.client(max_response_bytes=MB, retries=Retries(attempts=1)).stream("x", {}, collect))
    assert memory.peak < 16 * MB


def test_an_answer_that_does_not_end_is_given_up():
    """A stream of pieces, each of which is small, from a server that ignores the limit on tokens."""

    def events() -> Iterator[bytes]:
        for i in range(5000):  # 5 MB: more than enough
            sent[0] = i
            yield b'data: {"choices": [{"index": 0, "text": "%s"}]}\n\n' % (b"ab" * 500)

    async def stream() -> AsyncIterator[bytes]:
        for event in events():
            yield event

    sent = [0]

    async def main() -> None:
        engine = OpenAICompatible()
        lm = await connect(engine, vocabulary=Tokenizer(), retries=Retries(attempts=8))
        engine.fails = lambda path, body: httpx2.Response(200, content=stream()) if body.get("stream") else None
        (outcome,) = await lm.extend([Trajectory(Problem("?"))], Sampling(max_step_tokens=8), [0])
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.error, TooLargeError)
        assert "does not obey the limit on tokens" in str(outcome.error)
        assert len(engine.asked) == 2

    asyncio.run(main())
    assert sent[0] < 1100
