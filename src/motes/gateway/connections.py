"""The connections of clients: limits of time for each, and a bound on their number.

uvicorn has a limit for connections between two requests alone, and none on their number that /health survives. Here
every connection is in one of five phases, each with its limit:

    silent      no part of a request has arrived since the last response         limits.idle
    head        a part of a request's head has arrived                           limits.head
    body        the head is complete, the body is not                            limits.body
    work        the gateway works on the response                                the request's own deadline
    unread      the client does not read what the gateway sends                  limits.idle

At the bound, a new connection takes the place of the one that has been silent for longest, or of one whose head has
not arrived. If all are busy, it is an extra connection: a probe is answered, any other request refused with a 503.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import h11
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from motes.gateway.config import Limits
from motes.gateway.errors import CLIENT_CLOSED_REQUEST, BusyError, response_to_error

Phase = Literal["silent", "head", "body", "work", "unread"]

PROBES = frozenset({"/health", "/ready", "/metrics"})
EXTRA = 64
"""Number of connections beyond the bound that are answered; further ones are closed at once."""
READ_AT_LEAST = 2**16
"""Bytes that a client has to read of a long response within `limits.idle`."""
EXTRA_SECONDS = 2.0
"""The longest time limit of an extra connection, so that a few clients cannot hold them all."""
SEARCH_SECONDS = 0.1
"""After a search for silent connections that found few, the time until the next one: it looks at all connections."""


class Connections:
    """All open connections.

    Args:
        limits: returns the current limits.
        files: number of files that the process may open. At most half of them are connections of clients; the others
            are for upstream servers.

    Attributes:
        closing: whether each connection ends with its next response.
        refused: number of connections refused so far.
    """

    def __init__(self, limits: Callable[[], Limits], files: int) -> None:
        self.limits, self.closing, self.refused = limits, False, 0
        self._files = files
        self._open: dict[Connection, None] = {}
        self._spare: deque[tuple[Connection, object]] = deque()  # connections that others may replace
        self._next_search = 0.0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def bound(self) -> int:
        return max(1, min(self.limits().connections, self._files // 2 - EXTRA))

    def admit(self, config: Config, state: ServerState, app_state: dict[str, Any]) -> Connection | None:
        """The protocol of a new connection; None if there is no room for it."""
        extra = len(self) >= self.bound and not self.make_room()
        if extra:
            self.refused += 1
            if len(self) >= self.bound + EXTRA:
                return None
        connection = Connection(config, state, app_state, self, extra)
        self._open[connection] = None
        return connection

    def make_room(self) -> bool:
        """Close the connection that has been silent for longest; if none is silent, the one whose head has been
        incomplete for longest. Returns whether there was one."""
        now = asyncio.get_running_loop().time()
        if not self._spare and now >= self._next_search:
            spare = [c for c in self._open if not c.extra and c.observe(now) in ("silent", "head")]
            spare.sort(key=lambda connection: (connection.observe(now) == "head", connection.since))
            self._spare = deque((connection, connection.state) for connection in spare)
            if len(spare) < EXTRA:
                self._next_search = now + SEARCH_SECONDS
        while self._spare:
            connection, state = self._spare.popleft()
            connection.observe(now)
            if connection.state == state and connection in self._open:
                connection.close()
                return True
        return False

    def enforce(self) -> None:
        """End the connections whose time is up."""
        now, limits = asyncio.get_running_loop().time(), self.limits()
        for connection in list(self._open):
            connection.enforce(now, limits)

    def end_bodies(self) -> None:
        """Respond to all requests whose bodies are still being sent."""
        for connection in list(self._open):
            connection.end_body()

    async def close(self, patience: float) -> None:
        """Close all connections; abort those whose clients have not read everything after `patience` seconds."""
        loop = asyncio.get_running_loop()
        for connection in list(self._open):
            connection.close()
        until = loop.time() + patience
        while self._open and loop.time() < until:
            await asyncio.sleep(0.01)
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # to let them go

    def forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)


class Connection(H11Protocol):
    """One connection.

    Attributes:
        extra: whether it is beyond the bound.
        state: the phase, the request, and marks of what the client has read. It changes when there is progress.
        since: time at which the state was first observed.
    """

    def __init__(
        self, config: Config, state: ServerState, app_state: dict[str, Any], connections: Connections, extra: bool
    ) -> None:
        super().__init__(config, state, app_state)
        self.app = self._respond
        self.extra, self.since = extra, self.loop.time()
        self.state: tuple[Phase, object, int, int] = ("silent", None, 0, 0)
        self._all, self._resumed = connections, 0
        self._is_ended = self._is_broken = False
        self._late: object = None  # the request whose body took too long

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_ended:  # before it was set up
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_broken = self._is_broken or exc is not None
        super().connection_lost(exc)
        self._all.forget(self)

    def resume_writing(self) -> None:
        self._resumed += 1
        super().resume_writing()

    def observe(self, now: float) -> Phase:
        """The current phase. `state` and `since` follow it."""
        unsent = 0 if self.transport is None else self.transport.get_write_buffer_size()
        state = (self._phase(), self.cycle, self._resumed, unsent // READ_AT_LEAST)
        if state != self.state:
            self.state, self.since = state, now
        return state[0]

    def _phase(self) -> Phase:
        if self.transport is None:  # it is being set up
            return "silent"
        responded = self.cycle is None or self.cycle.response_complete
        if self.flow.write_paused or self.transport.is_closing():
            return "unread"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if not responded:
            return "work"
        if self.transport.get_write_buffer_size():
            return "unread"
        return "head" if self.conn.trailing_data[0] else "silent"

    def enforce(self, now: float, limits: Limits) -> None:
        """End the connection if its time is up."""
        phase = self.observe(now)
        if phase == "work":
            return
        seconds = {"silent": limits.idle, "head": limits.head, "body": limits.body, "unread": limits.idle}[phase]
        if now - self.since < (min(seconds, EXTRA_SECONDS) if self.extra else seconds):
            return
        if phase == "head":
            self._send_timeout(f"the request's head was not complete within {seconds:g} s")
        elif phase == "body" and not self.cycle.response_started and not self.extra:
            self.end_body()
        elif phase == "silent":
            self.close()
        else:
            self.abort()

    def end_body(self) -> None:
        """Let the application, which waits for the rest of the body, respond without it."""
        if self._phase() == "body":
            self._late = self.cycle
            self.cycle.message_event.set()

    def close(self) -> None:
        self._is_ended = True
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        self._is_ended = self._is_broken = True
        if self.transport is not None:
            self.transport.abort()

    def _send_timeout(self, message: str) -> None:
        """Send a 408 in place of a response by the application, which has no request."""
        _, body, _ = response_to_error(HTTPException(408, message), "")
        response = JSONResponse(body, 408, {"Connection": "close"})
        lines = [b"HTTP/1.1 408 Request Timeout", *(b": ".join(header) for header in response.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"", response.body]))
        self.close()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, within the limits of this connection. A response that the client did not get whole is
        logged as such."""
        cycle = self.cycle

        async def receive_in_time() -> Message:
            message = await receive()
            if self._late is cycle and self._all.closing:
                raise HTTPException(503, "shutting down", {"Retry-After": "1"})
            if self._late is cycle:
                reason = f"the body was not complete within {self._all.limits().body:g} s"
                raise HTTPException(408, reason, {"Connection": "close"})
            return message

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start" and (self.extra or self._all.closing):
                headers = [header for header in message["headers"] if header[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)
            await self.flow.drain()  # until the client has read most of it
            is_lost = cycle.disconnected or self._is_broken
            if is_lost and message.get("body") and (entry := scope.get("motes")) is not None:
                entry.status = CLIENT_CLOSED_REQUEST

        is_refused = self.extra and scope["path"] not in PROBES
        app: Any = _refuse if is_refused else self.config.loaded_app
        await app(scope, receive_in_time, send_and_note)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Say that there are too many connections, after the body: a client that is still sending might not read it."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] != "http.disconnect":
        status, body, headers = response_to_error(BusyError("too many connections", 1.0, unavailable=True), "")
        await JSONResponse(body, status, headers)(scope, receive, send)
