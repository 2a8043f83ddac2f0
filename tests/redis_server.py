"""A real Redis or Valkey server for tests, as a process of its own, and servers that only look like one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis

from motes.errors import EngineError
from motes.gateway.quotas import Counter
from motes.gateway.shared_address import Address
from motes.gateway.shared_counters import SharedCounters

PROGRAM = os.environ.get("MOTES_REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
PATIENCE = 60.0
"""Seconds after which a test gives up."""
COUNTER = Counter("a/particles_per_day", 0.0, 20_000)

needs_server = pytest.mark.skipif(
    PROGRAM is None, reason="neither redis-server nor valkey-server is installed: make setup-redis, as root on Debian"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Server:
    """A server that keeps nothing on the disk, with a port and a socket of its own.

    Args:
        settings: further settings of its command line, such as `requirepass`.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port, self.socket = free_port(), folder / "socket"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        given = {"bind": "127.0.0.1", "port": str(self.port), "unixsocket": str(self.socket), "save": "",
                 "dir": str(folder), **settings}  # fmt: skip
        self._command = [PROGRAM, *(word for name, value in given.items() for word in (f"--{name}", *value.split(" ")))]
        self._password = settings.get("requirepass")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < end, "the server does not start"
            assert self.process.poll() is None, "the server has ended"
            with contextlib.suppress(redis.ConnectionError), self.client() as client:
                client.ping()
                return
            time.sleep(0.02)

    def kill(self) -> None:
        """As the system does it when there is no memory left: kill -9."""
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        path = str(self.socket)
        with redis.Redis(unix_socket_path=path, password=self._password, decode_responses=True) as client:
            yield client

    def stored(self) -> list[str]:
        """All keys but that of the check whether the server can be used."""
        with self.client() as client:
            return sorted(key for key in client.scan_iter() if "probe" not in key)

    def calls(self, command: str) -> int:
        with self.client() as client:
            return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


@contextlib.contextmanager
def running(folder: Path, **settings: str) -> Iterator[Server]:
    server = Server(folder, **settings)
    try:
        yield server
    finally:
        server.kill()


class Mute:
    """Accepts connections and never answers, except with what it says at once.

    Attributes:
        accepted: the number of its connections.
    """

    def __init__(self, says: bytes = b"") -> None:
        self._listener, self._says = socket.create_server(("127.0.0.1", 0)), says
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    @property
    def accepted(self) -> int:
        return len(self._connections)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.sendall(self._says)
                self._connections.append(connection)
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        pass

    def __enter__(self) -> Mute:
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in (self._listener, *self._connections):
            each.close()


class Slow(Mute):
    """Answers each command after some seconds, to EVAL with the value 7. It serves one connection at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        super().__init__()

    def _serve(self, connection: socket.socket) -> None:
        while received := connection.recv(10_000):
            for command in received.split(b"\n*"):
                time.sleep(self._seconds)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b"*1\r\n$1\r\n7\r\n" if b"EVAL" in command else b"+OK\r\n")


def counters_of(url: str) -> SharedCounters:
    return SharedCounters(Address.parse(url, may_have_password=True))


def run(url: str, test: Callable[[SharedCounters], Awaitable[None]]) -> None:
    """A test of counters of a server; afterwards the connections are closed."""

    async def main() -> None:
        counters = counters_of(url)
        try:
            await asyncio.wait_for(test(counters), PATIENCE)
        finally:
            await counters.aclose()

    asyncio.run(main())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def refusal(url: str) -> str:
    """Why a server cannot be used. Additions go on without it."""
    reasons = []

    async def test(shared: SharedCounters) -> None:
        with pytest.raises(EngineError) as caught:
            await shared.probe()
        reasons.append(str(caught.value))
        assert await shared.add({COUNTER: 2.0}, 0.0) == [2.0]
        assert not shared.is_up

    run(url, test)
    return reasons[0]
