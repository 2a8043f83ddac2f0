"""Streams of events: server-sent events, or a line of JSON for each event.

httpx2's own reader of server-sent events does not serve here, because servers differ: it requires their content type,
reads neither a byte-order mark nor lines of JSON, and drops an event without a blank line behind it.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from motes.errors import BadResponseError
from motes.transport.bodies import too_large
from motes.transport.failures import load_json, parse_response, reports_error

DONE = "[DONE]"
OVERHEAD = 64
"""Bytes that a string takes besides its characters."""


class EventReader:
    """Reads the data of events from the bytes of a stream, wherever these are cut.

    A line that is no field, such as one that begins with a brace, is an event of its own. Comments and fields other
    than `data` are ignored, except for the event name "error": the data of such an event get the form of OpenAI's
    errors.

    Attributes:
        size: of the event that has begun and of the line that has not ended, about the bytes of memory that they take.
    """

    def __init__(self) -> None:
        # `str.splitlines` and httpx2 also end lines at other characters, such as U+2028, which texts contain.
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._line: list[str] = []  # pieces of a line that has not ended
        self._data: list[str] = []
        self._is_error = False
        self._line_size = self._data_size = 0

    def read(self, piece: bytes, *, last: bool = False) -> list[str]:
        """The data of the events that end in this piece; with the last piece, also of an event that has only begun."""
        text = self._decoder.decode(piece, last) + ("\n\n" if last else "")
        *lines, rest = text.split("\n")
        if lines:
            lines[0] = "".join([*self._line, lines[0]])
            self._line.clear()
            self._line_size = 0
        self._line.append(rest)
        self._line_size += len(rest) + OVERHEAD
        return [data for line in lines if (data := self._read_line(line))]

    @property
    def size(self) -> int:
        return self._line_size + self._data_size

    def _read_line(self, line: str) -> str:
        """The data of the event that the line ends; "" if it ends none."""
        name, _, value = line.partition(":")
        if not line:
            data, is_error = "\n".join(self._data), self._is_error
            self._data, self._data_size, self._is_error = [], 0, False
            return _as_error(data) if data and is_error else data
        if name == "data":
            self._data.append(value.removeprefix(" "))
            self._data_size += len(value) + OVERHEAD
        elif name == "event":
            self._is_error = value.strip() == "error"
        elif not re.fullmatch(r"[\w-]*", name):
            return line
        return ""


def _as_error(data: str) -> str:
    """The data of an event of the name "error", in OpenAI's form."""
    try:
        error = load_json(data)
    except ValueError:
        error = data
    return data if reports_error(error) else json.dumps({"error": error or "it does not say why"})


class Events(AsyncIterator[dict[str, Any]]):
    """The events of a stream.

    It reads the stream to the last byte, even behind the server's `[DONE]`: otherwise no other request could use the
    connection.

    Args:
        url: of the server, for messages.
        pieces: the stream.
        max_bytes: of one event, and of one line.

    Attributes:
        is_complete: whether the server has sent `[DONE]`.

    Raises:
        BadResponseError: an event is not a JSON object, or reports an error.
        TooLargeError: an event is larger than `max_bytes`.
        ContextLengthError: it reports that the context is full.
    """

    def __init__(self, url: str, pieces: AsyncIterator[bytes], max_bytes: int) -> None:
        self.is_complete = False
        self._url = url
        self._max_bytes = max_bytes
        self._events = self._read(pieces)

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._events)

    async def _read(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        reader = EventReader()
        async for piece in pieces:
            for event in self._parse(reader.read(piece)):
                yield event
            self._check_size(reader.size)
        for event in self._parse(reader.read(b"", last=True)):
            yield event

    def _parse(self, texts: list[str]) -> Iterator[dict[str, Any]]:
        for text in map(str.strip, texts):
            if text == DONE:
                self.is_complete = True
            if self.is_complete or not text:
                continue
            self._check_size(len(text))
            event = parse_response(text, self._url, "an event")
            if isinstance(event, dict):
                yield event
            elif event is not None:  # null is sent to keep the connection alive
                raise BadResponseError(
                    f"{self._url} sent an event that is not an object ({text[:80]!r}): "
                    "is it an OpenAI-compatible server?"
                )

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise too_large(self._url, "an event", self._max_bytes)
