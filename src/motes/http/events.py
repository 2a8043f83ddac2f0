"""Streams of events as servers send them: server-sent events, or a line of JSON for each.

`httpx2` has a reader of server-sent events, which demands their content type, knows no byte-order mark and no lines of
JSON, and drops an event that no blank line follows: servers differ in all of these.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from motes.errors import BadResponseError, MotesError
from motes.http.parsing import parsed, tells_of_error

LINE_END = re.compile(r"\r\n|\n|\r")
"""Nothing else ends a line: what `str.splitlines` splits at besides, U+2028 among them, stands in texts as it is."""

DONE = "[DONE]"


class EventReader:
    """Reads the data of events out of a stream's bytes, however these are cut.

    A line that is no field, one that begins with a brace above all, is an event by itself. Comments and fields other
    than `data` are left out, but for the name of an event that tells of an error: its data are put as OpenAI puts them.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []  # the pieces of a line that has not ended
        self._held = ""  # a carriage return at the end of a piece: a line feed may belong to it
        self._data: list[str] = []
        self._is_error = False

    def read(self, piece: bytes, *, last: bool = False) -> list[str]:
        """The data of the events that this piece completes; with the last piece, also of one that has only begun."""
        text = self._held + self._decoder.decode(piece, last)
        self._held = "\r" if text.endswith("\r") and not last else ""
        *ended, rest = LINE_END.split(text.removesuffix("\r") if self._held else text)
        events: list[str] = []
        for line in ended:
            self._read_line("".join([*self._line, line]), events)
            self._line.clear()
        self._line.append(rest)
        if last:
            self._read_line("".join(self._line), events)
            self._read_line("", events)
            self._line.clear()
        return events

    def _read_line(self, line: str, events: list[str]) -> None:
        if not line:
            if data := "\n".join(self._data):
                events.append(_as_error(data) if self._is_error else data)
            self._data.clear()
            self._is_error = False
        else:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif name == "event":
                self._is_error = value.strip() == "error"
            elif not re.fullmatch(r"[\w-]*", name):
                events.append(line)


def _as_error(data: str) -> str:
    """What an event tells of an error, under the name "error"."""
    try:
        told = parsed(data)
    except ValueError:
        told = data
    return data if tells_of_error(told) else json.dumps({"error": told or "it does not say why"})


class Events(AsyncIterator[dict[str, Any]]):
    """The events of a stream, up to its end.

    It is read to the last byte even when it has said that it is done: only then is its connection used again.

    Args:
        url: of the server, for messages.
        pieces: the stream.
        failure: makes an error of what an event says that tells of one.

    Attributes:
        is_complete: whether the server has said that nothing is to come.

    Raises:
        BadResponseError: an event is no JSON object, or tells of an error.
        ContextLengthError: it tells that the context is full.
    """

    def __init__(
        self, url: str, pieces: AsyncIterator[bytes], failure: Callable[[str, dict[str, Any]], MotesError]
    ) -> None:
        self.is_complete = False
        self._url = url
        self._failure = failure
        self._events = self._read(pieces)

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._events)

    async def _read(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        reader = EventReader()
        async for piece in pieces:
            for data in reader.read(piece):
                if (event := self._event(data)) is not None:
                    yield event
        for data in reader.read(b"", last=True):
            if (event := self._event(data)) is not None:
                yield event

    def _event(self, data: str) -> dict[str, Any] | None:
        text = data.strip()
        if text == DONE:
            self.is_complete = True
        if self.is_complete or not text:
            return None
        try:
            event = parsed(text)
        except ValueError as error:
            raise BadResponseError(
                f"{self._url} sent an event that is no JSON ({text[:80]!r}): is it an OpenAI-compatible server?"
            ) from error
        if event is None:  # sent to keep the connection alive
            return None
        if not isinstance(event, dict):
            raise BadResponseError(
                f"{self._url} sent an event that is no object ({text[:80]!r}): is it an OpenAI-compatible server?"
            )
        if tells_of_error(event):
            raise self._failure(self._url, event)
        return event
