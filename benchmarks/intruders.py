"""Clients that send nothing, or slowly, or too much, or do not read: beside the callers of crowd.py.

Each goes on until it is cancelled, and counts the requests that it has sent in `seen`, by the status of the response;
`LEFT` is that of a request without a whole response.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

from crowd import CHAT, EXPIRED_KEY, HANGS, KEY, LEFT, connected, message, question, read_response

T = TypeVar("T")
Seen = Counter[int]
Intruder = Callable[[], Coroutine[Any, Any, None]]

PAUSE = 0.5
"""Seconds until an intruder whose connection the gateway has closed comes again."""
ELEMENTS = 300_000
"""Messages of a body that is a flood; it has 0.9 MB."""
MAY_BE = (200, 401, 408, 413, 429)
"""Statuses of requests whose intruder has left."""


def intruders(port: int, seen: Seen) -> list[Intruder]:
    """All kinds of them, some hundred clients."""
    floods = [
        *(partial(flood, port, seen, small_requests(key), 401, pause=0.01) for key in KEYS for _ in range(2)),
        *(partial(flood, port, seen, large_requests(key), 401, pause=0.2) for key in KEYS),
        partial(flood, port, seen, too_large_requests(), 413, pause=0.2),
    ]
    return [
        *60 * [partial(say_nothing, port)],
        *10 * [partial(send_half_a_head, port)],
        *5 * [partial(drip_a_head, port)],
        *(partial(drip_a_body, port, seen, key) for key in (KEY, None) for _ in range(5)),
        *2 * [partial(read_nothing, port, seen)],
        *2 * [partial(read_slowly, port, seen)],
        *floods,
    ]


# Silence.


async def say_nothing(port: int) -> None:
    """Open a connection, and wait until the gateway closes it."""
    while True:
        async with connected(port) as (reader, _):
            await until_closed(reader)
        await asyncio.sleep(PAUSE)


async def send_half_a_head(port: int) -> None:
    while True:
        async with connected(port) as (reader, writer):
            writer.write(message("POST", CHAT, b"{}", KEY)[:60])
            await until_closed(reader)
        await asyncio.sleep(PAUSE)


async def drip_a_head(port: int) -> None:
    """Send a head byte after byte."""
    while True:
        async with connected(port) as (reader, writer):
            await drip(writer, message("POST", CHAT, b"", KEY, x_padding="x" * 1000), until_closed(reader))
        await asyncio.sleep(PAUSE)


async def drip_a_body(port: int, seen: Seen, key: str | None) -> None:
    """Send a body byte after byte. With a key, the gateway ends this by a 408; without, it does not wait for it."""
    head, body = message("POST", CHAT, b" " * 1000, key)[:-1000], b" " * 1000
    while True:
        async with connected(port) as (reader, writer):
            with count(seen, 401 if key is None else 408) as answered:
                writer.write(head)
                answered(await drip(writer, body, status_of(reader)))
        await asyncio.sleep(PAUSE)


async def drip(writer: asyncio.StreamWriter, data: bytes, answer: Awaitable[T]) -> T:
    """Send data byte after byte, slower than the gateway allows, until there is an answer."""
    task = asyncio.ensure_future(answer)
    try:
        for byte in data:
            writer.write(bytes([byte]))
            await asyncio.wait([task], timeout=0.05)
            if task.done():
                break
        return await task
    finally:
        task.cancel()


async def until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1000):
            pass


# Not reading.


async def read_nothing(port: int, seen: Seen) -> None:
    while True:
        async with unread_stream(port, seen):
            await asyncio.sleep(5.0)
        await asyncio.sleep(PAUSE)


async def read_slowly(port: int, seen: Seen) -> None:
    """Read a stream a few bytes at a time, until the gateway has enough of it."""
    loop = asyncio.get_running_loop()
    while True:
        async with unread_stream(port, seen) as client:
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(client, 16):
                    await asyncio.sleep(0.05)
        await asyncio.sleep(PAUSE)


@contextlib.asynccontextmanager
async def unread_stream(port: int, seen: Seen) -> AsyncIterator[socket.socket]:
    """A socket with a tiny buffer, to which the gateway sends a stream of 6 MB."""
    body = {"model": "long", "stream": True, "messages": [{"role": "user", "content": "at length"}]}
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        with count(seen):
            await loop.sock_sendall(client, message("POST", CHAT, json.dumps(body).encode(), KEY))
            yield client


# Floods.

KEYS = (None, "nonsense", EXPIRED_KEY)


def small_requests(key: str | None) -> Iterator[bytes]:
    """Requests with a wrong key, or without one; each wrong key is another."""
    body = json.dumps({"model": "words", "messages": [{"role": "user", "content": question(1)}]}).encode()
    for number in itertools.count():
        yield message("POST", CHAT, body, f"{key}-{number}" if key == "nonsense" else key)


def large_requests(key: str | None) -> Iterator[bytes]:
    """The same with hundreds of thousands of messages."""
    body = b'{"model": "words", "messages": [' + b",".join([b"{}"] * ELEMENTS) + b"]}"
    return itertools.repeat(message("POST", CHAT, body, key))


def too_large_requests() -> Iterator[bytes]:
    """Bodies of 3 MB with the right key, where 1 MB is allowed."""
    return itertools.repeat(message("POST", CHAT, b" " * 3_000_000, KEY))


async def flood(port: int, seen: Seen, requests: Iterator[bytes], status: int, pause: float) -> None:
    """Send request after request on one connection, each `pause` seconds after the response to the one before. A body
    that takes long on a busy machine gets a 408, which ends the connection."""
    while True:
        async with connected(port) as (reader, writer):
            latest = status
            while latest == status:
                with count(seen, status, 408) as answered:
                    writer.write(next(requests))
                    answered(latest := await status_of(reader))
                with contextlib.suppress(ConnectionError):
                    await writer.drain()  # the whole body is sent before the next request
                await asyncio.sleep(pause)


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of a response, once it is whole."""
    async with asyncio.timeout(HANGS):
        response = await read_response(reader)
        await response.body()
        return response.status


@contextlib.contextmanager
def count(seen: Seen, *expected: int) -> Iterator[Callable[[int], None]]:
    """Count a request that is sent within the context: by the status of its response, which has to be an expected one,
    or as left if there is none."""
    status = LEFT

    def answered(with_status: int) -> None:
        nonlocal status
        status = with_status
        assert status in expected, f"{status} is not in {expected}"

    try:
        yield answered
    finally:
        seen[status] += 1
