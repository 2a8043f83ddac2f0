"""The gateway's HTTP server: uvicorn, with bounded connections and a drain at the end.

The gateway accepts connections by itself, since asyncio accepts all that wait at once, and at the limit on open files
logs thousands of lines a second. docs/gateway-operations.md says why uvicorn and not another server.

SIGTERM and SIGINT begin the drain, a second one ends it. During the drain the server still accepts connections, so that
probes and clients learn that it is closing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from motes.errors import MotesError
from motes.gateway.connections import Connection, Connections

log = logging.getLogger(__name__)

BACKLOG, ACCEPTED_AT_ONCE = 2048, 32
"""Connections that wait to be accepted, and those that are accepted before the event loop does something else."""
PAUSE = 0.1
"""Seconds until the next attempt to accept a connection if the process cannot open another file."""
SWEEP = 5
"""The limits of connections are enforced every so many ticks of uvicorn's, which are tenths of a second."""
WARNING_SECONDS = 60.0
"""There is at most one warning about refused connections in this time."""
PATIENCE, TICK = 1.0, 0.1
"""Seconds for the last responses to be sent, and until a second signal is noticed."""


class Server(uvicorn.Server):
    """Serves the gateway's application on sockets that listen already.

    Args:
        app: what `motes.gateway.app.application` returns.
        reload: called on SIGHUP, one call at a time; if it raises, the gateway goes on. Without it, SIGHUP begins the
            drain.
    """

    def __init__(self, app: FastAPI, *, reload: Callable[[], Awaitable[None]] | None = None) -> None:
        config = uvicorn.Config(
            app, http="h11", ws="none", log_config=None, log_level="error", access_log=False,
            proxy_headers=False,
            timeout_keep_alive=24 * 60 * 60, timeout_graceful_shutdown=int(PATIENCE),
        )  # fmt: skip
        super().__init__(config)
        self._gateway, self._reload = app.state.gateway, reload
        self._connections = Connections(lambda: self._gateway.config.limits, raise_limit_on_files())
        self._gateway.metrics.connections.set_function(lambda: len(self._connections))
        self._background: set[asyncio.Task[Any]] = set()
        self._drain_task: asyncio.Task[None] | None = None
        self._closes = 0
        self._reload_task: asyncio.Task[None] | None = None
        self._reload_again = False
        self._next_warning, self._refused_before = 0.0, 0

    def close(self) -> None:
        """Begin the drain, after which the server stops. The second call ends the drain at once. Call it in the event
        loop's thread."""
        self._closes += 1
        if self._drain_task is None:
            self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        drain = self._gateway.drain
        log.info("closing: requests in flight have %g s", drain.seconds)
        self._connections.closing = True
        await drain.begin()
        await self._wait_for_responses(drain.seconds, closes=1)
        self._connections.end_bodies()
        await self._wait_for_responses(drain.remaining + PATIENCE, closes=1)
        if self._closes > 1:
            log.warning("closing at once")
            drain.shorten(0.0, PATIENCE)
            await self._wait_for_responses(2 * PATIENCE, closes=2)
        self.should_exit = True

    async def _wait_for_responses(self, patience: float, closes: int) -> None:
        """Wait for the requests of this moment, for at most `patience` seconds, while there are no more than `closes`
        calls of `close`."""
        clock = asyncio.get_running_loop().time
        until, pending = clock() + patience, set(self.server_state.tasks)
        while pending and self._closes <= closes and (remaining := until - clock()) > 0:
            _, pending = await asyncio.wait(pending, timeout=min(remaining, TICK))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in the event loop. Unlike uvicorn's, a handled signal does not end the process afterwards: its
        exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.close, signal.SIGINT: self.close, signal.SIGHUP: self._begin_reload}
        for number, handle in handlers.items():
            loop.add_signal_handler(number, handle)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _begin_reload(self) -> None:
        if self._reload is None:
            self.close()
        elif self._drain_task is None:
            self._reload_again = True
            if self._reload_task is None or self._reload_task.done():
                self._reload_task = asyncio.get_running_loop().create_task(self._reload_all())

    async def _reload_all(self) -> None:
        while self._reload_again and self._reload is not None:
            self._reload_again = False
            try:
                await self._reload()
            except MotesError as error:
                log.error("the configuration stays as it was: %s", error)
            except Exception:
                log.exception("the configuration stays as it was")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # starts the application, and accepts nothing
        if (bound := self._connections.bound) < (wanted := self._gateway.config.limits.connections):
            log.warning("%d connections at most, not %d: raise the limit on open files (ulimit -n)", bound, wanted)
        for listener in sockets or ():
            listener.setblocking(False)
            listener.listen(BACKLOG)
            self._listen(listener)

    def _listen(self, listener: socket.socket) -> None:
        if not self.should_exit:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # above all, no further file can be opened
                self._pause(listener, error)
                return
            client.setblocking(False)
            connection = self._connections.admit(self.config, self.server_state, self.lifespan.state)
            if connection is None:
                client.close()
                continue
            task = asyncio.get_running_loop().create_task(self._connect(client, connection))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _connect(self, client: socket.socket, connection: Connection) -> None:
        try:
            # asyncio sets it only for listeners that it has made. Without it, the body of a response waits for the
            # client's system to confirm the head, which takes 40 ms.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client)
        except OSError:  # the client has left
            client.close()
            self._connections.forget(connection)

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Accept nothing for a moment. A silent connection, which is closed meanwhile, frees a file."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(PAUSE, self._listen, listener)
        self._connections.make_room()
        self._warn("no connection can be accepted: %s", error.strerror)

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP == 0:
            self._connections.enforce()
            if refused := self._connections.refused - self._refused_before:
                self._gateway.metrics.refused.inc(refused)
                self._refused_before += refused
                self._warn("all %d connections are busy: new ones are refused", self._connections.bound)
        return await super().on_tick(counter)

    def _warn(self, message: str, *arguments: object) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_warning:
            self._next_warning = now + WARNING_SECONDS
            log.warning(message, *arguments)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.should_exit = True
        for listener in sockets or ():
            asyncio.get_running_loop().remove_reader(listener)
        await self._connections.close(PATIENCE)
        await super().shutdown(sockets)
        log.info("closed")


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Before the server starts, SIGTERM ends the process with exit code 0. A container's first process ignores it
    otherwise, and waits for its models until it is killed."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def raise_limit_on_files() -> int:
    """Raise the process's limit on open files as far as it may, and return it."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return most if soft == resource.RLIM_INFINITY else soft
