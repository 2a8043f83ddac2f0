"""Bounded bodies of responses: they are read in pieces, and not beyond a limit, compressed or not.

httpx2 decompresses in pieces of 1 MB, so that a small body cannot become a large piece.
"""

from __future__ import annotations

from contextlib import aclosing

import httpx2

from motes.errors import TooLargeError

BYTES_OF_ERROR = 1 << 16
"""How much of the body of an error is read: messages are short."""

BYTES_PER_TOKEN = 512
"""Of a response with one token, in every format: its text, its id and its log-probability, and their names."""


async def read_body(response: httpx2.Response, max_bytes: int) -> bytes:
    """The whole body. Raises TooLargeError if it is larger than `max_bytes`, decompressed."""
    body = await read_beginning(response, max_bytes + 1)
    if len(body) > max_bytes:
        raise too_large(str(response.url), "a response", max_bytes)
    return body


async def read_beginning(response: httpx2.Response, max_bytes: int) -> bytes:
    """The first `max_bytes` of the body, decompressed; the rest is not read."""
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as pieces:
        async for piece in pieces:
            body += piece[: max_bytes - len(body)]
            if len(body) == max_bytes:
                break
    return bytes(body)


def too_large(url: str, kind: str, max_bytes: int) -> TooLargeError:
    """The error for a response, or an event of a stream, of more than `max_bytes`."""
    return TooLargeError(
        f"{url} sent {kind} of more than {max_bytes:,} bytes: look into its log. If it should be that large, raise "
        "max_response_bytes"
    )
