"""The gateway's server: limits of time for connections, and a bound on their number.

The clients are plain sockets, as they do what no library does. No test depends on how fast the machine is: all limits
of time are lower bounds, or long enough for any machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
import uvicorn
from uvicorn.server import ServerState

import gateways
from gateway_process import CHAT, PATIENCE, Gateway, drip, error, is_closed, question, request, response, serving, until
from motes.gateway.connections import EXTRA, Connection, Connections
from motes.gateway.server import raise_limit_on_files


@pytest.fixture(scope="module")
def gateway(tmp_path_factory) -> Iterator[Gateway]:
    """One with little patience."""
    with serving(tmp_path_factory.mktemp("time"), head=1, body=1, idle=1) as gateway:
        yield gateway


def connections_of(files: int) -> tuple[Connections, tuple[uvicorn.Config, ServerState, dict[str, Any]]]:
    """Connections that are never set up, and the arguments of each."""
    config = uvicorn.Config(lambda *_: None)
    return Connections(gateways.config().limits.model_copy, files), (config, ServerState(), {})


class TestTime:
    """Every phase of a connection has a limit, except work on a response."""

    def test_a_head_that_does_not_end(self, gateway):
        with gateway.connect(b"GET /health HTTP/1.1\r\nX: ") as client:
            head, _, body = drip(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"connection: close" in head.lower()
        assert "head" in error(body)["message"]

    def test_a_second_head_that_does_not_end(self, gateway):
        with gateway.connect(request("GET", "/health")) as client:
            assert response(client)[0] == 200
            client.sendall(b"GET /he")
            assert drip(client).startswith(b"HTTP/1.1 408")

    @pytest.mark.parametrize("encoding", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
    def test_a_body_that_does_not_end(self, gateway, encoding):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        before = gateway.statuses()[408]
        with gateway.connect(head + encoding + b"\r\n\r\n" + (b"3e8\r\n" if b"chunked" in encoding else b"")) as client:
            head, _, body = drip(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert (error(body)["type"], "body" in error(body)["message"]) == ("invalid_request_error", True)
        until(lambda: gateway.statuses()[408] == before + 1)

    def test_a_body_that_nobody_reads(self, gateway):
        with gateway.connect(request("GET", "/health", b"12345")[:-2]) as client:
            assert response(client)[0] == 200
            assert is_closed(client)

    def test_a_client_that_says_nothing(self, gateway):
        with gateway.connect() as new, gateway.connect(request("GET", "/health")) as used:
            assert response(used)[0] == 200
            assert is_closed(new)
            assert is_closed(used)

    def test_a_client_that_does_not_read(self, gateway):
        """Its responses are more than what the buffers of two sockets hold."""
        with gateway.connect(buffer=4096) as client:
            client.settimeout(0.5)
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(20_000):
                    client.sendall(request("GET", "/openapi.json"))
            until(lambda: gateway.metric("motes_connections") == 1)

    @pytest.mark.parametrize("stream", [True, False])
    def test_an_answer_that_is_not_read_was_none(self, gateway, stream):
        before = gateway.statuses()
        with gateway.connect(question("at length", stream=stream), buffer=4096):
            until(lambda: sum((gateway.statuses() - before).values()) == 1)
        assert gateway.statuses() - before == {499: 1}
        body = gateway.ask(question("at length", stream=stream))[2]
        assert len(body) > 6_000_000
        until(lambda: gateway.statuses() - before == {499: 1, 200: 1})

    def test_a_client_that_reads_slowly_is_waited_for(self):
        transport = Mock(**{"is_closing.return_value": False})

        async def test() -> None:
            connections, create = connections_of(files=1024)
            (connection := connections.admit(*create)).connection_made(transport)
            connection.pause_writing()
            limits = gateways.config(limits={"idle": 10}).limits
            for second in range(100):
                transport.get_write_buffer_size.return_value = 100_000_000 - second * 20_000
                connection.enforce(connection.loop.time() + second, limits)
            assert not transport.abort.called
            for second in range(100, 112):  # nearly nothing
                transport.get_write_buffer_size.return_value -= 100
                connection.enforce(connection.loop.time() + second, limits)
            assert transport.abort.called

        asyncio.run(test())

    def test_work_on_a_response_is_none_of_these(self, gateway):
        status, _, body = gateway.ask(question("slowly, it takes longer than every limit"))
        assert (status, json.loads(body)["motes"]["answer"]) == (200, "4")

    def test_none_of_that_is_in_the_log_but_the_requests(self, gateway):
        for garbage in (
            b"\0\0\0\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n" * 20,
        ):
            with gateway.connect(garbage + request("GET", "/health", close=True)) as client:
                while client.recv(100_000):
                    pass
        assert all(line.get("endpoint") == CHAT for line in gateway.lines)


class TestBound:
    def test_silent_connections_make_room(self, tmp_path):
        """1,100 of them where 1,024 files may be open."""
        files, number = (1024, 1100) if raise_limit_on_files() > 2000 else (200, 220)
        with serving(tmp_path, files, idle=600, drain=1) as gateway, contextlib.ExitStack() as clients:
            stream = clients.enter_context(gateway.connect(question("partly", stream=True, motes={"deadline": 50})))
            assert stream.recv(4) == b"HTTP"
            used = clients.enter_context(gateway.connect(request("GET", "/health")))
            assert response(used)[0] == 200
            for _ in range(number):
                clients.enter_context(gateway.connect())
            for _ in range(3):
                assert gateway.get("/health")[0] == 200
                assert gateway.ask(question("now"))[0] == 200
            assert files // 4 < gateway.metric("motes_connections") < files // 2
            assert is_closed(used), "the first that was silent was the first to go"
            assert gateway.end() == 0
            assert b'"stopped":"deadline"' in b"".join(iter(lambda: stream.recv(100_000), b"")), "it was left alone"
            assert len(gateway.lines) < 20

    def test_where_all_are_busy_new_ones_are_refused(self, tmp_path):
        with serving(tmp_path, connections=3, drain=1) as gateway, contextlib.ExitStack() as clients:
            for how in ("partly", "never", "partly"):
                client = clients.enter_context(gateway.connect(question(how, stream=True, motes={"progress": True})))
                assert client.recv(4) == b"HTTP"
            whole = question("now")
            with gateway.connect(whole[:-5]) as refused:
                refused.settimeout(0.2)
                with pytest.raises(TimeoutError):  # a response now might be lost, as the client is not ready for it
                    refused.recv(1)
                refused.settimeout(PATIENCE)
                refused.sendall(whole[-5:])
                status, headers, body = response(refused)
            assert (status, error(body)["code"]) == (503, "busy")
            assert (headers["connection"], int(headers["retry-after"]) > 0) == ("close", True)
            for path in ("/health", "/ready", "/metrics"):
                status, headers, _ = gateway.get(path)
                assert (status, headers["connection"]) == (200, "close")
            assert gateway.get("/v1/models")[0] == 503
            silent = [clients.enter_context(gateway.connect()) for _ in range(200)]
            assert all(map(is_closed, silent)), "some at once, some after a moment to say what they want"
            assert gateway.get("/health")[0] == 200
            assert gateway.metric("motes_connections_refused_total") >= 200
            client.close()
            until(lambda: gateway.get("/v1/models")[0] == 200)
            assert sum("refused" in line["message"] for line in gateway.lines) == 1

    def test_heads_that_do_not_end_make_room_as_well(self, tmp_path):
        limits = {"connections": 4, "head": 600, "idle": 600, "drain": 1}
        with serving(tmp_path, **limits) as gateway, contextlib.ExitStack() as clients:
            started = [clients.enter_context(gateway.connect(b"GET /")) for _ in range(3)]
            busy = clients.enter_context(gateway.connect(question("never", stream=True)))
            assert busy.recv(4) == b"HTTP", "the heads have arrived as well"
            assert gateway.get("/v1/models")[0] == 200
            assert is_closed(started[0])

    def test_a_thousand_at_once_all_come_in(self):
        async def test() -> None:
            connections, create = connections_of(files=1024)
            admitted = [connections.admit(*create) for _ in range(1100)]
            assert not any(connection.extra for connection in admitted)

        asyncio.run(test())

    def test_extra_connections_are_few_and_make_no_room(self, monkeypatch):
        async def test() -> None:
            connections, create = connections_of(files=2 * EXTRA + 6)
            assert connections.bound == 3
            monkeypatch.setattr(Connection, "_phase", lambda self: "silent" if self.extra else "work")
            monkeypatch.setattr("motes.gateway.connections.SEARCH_SECONDS", 0.0)
            admitted = [connections.admit(*create) for _ in range(3 + EXTRA + 10)]
            assert [one and one.extra for one in admitted] == [False] * 3 + [True] * EXTRA + [None] * 10
            assert connections.refused == EXTRA + 10

        asyncio.run(test())

    def test_no_further_file(self, tmp_path):
        """The gateway can open three files more than it has, and its silent connections take them."""
        with serving(tmp_path, idle=600) as gateway, contextlib.ExitStack() as clients:
            assert gateway.get("/health")[0] == 200
            number = len(os.listdir(f"/proc/{gateway.process.pid}/fd")) + 3
            _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (number, hard))
            for _ in range(20):
                clients.enter_context(gateway.connect())
            assert gateway.get("/health")[0] == 200
            (line,) = gateway.lines
            assert "no connection can be accepted: Too many open files" in line["message"]


def test_the_parts_of_a_response_do_not_wait_for_each_other(monkeypatch):
    """A body after its head, an event of a stream after the one before."""
    at_once = []
    make = Connection.connection_made

    def note_and_make(self: Connection, transport: asyncio.Transport) -> None:
        at_once.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        make(self, transport)

    monkeypatch.setattr(Connection, "connection_made", note_and_make)
    with gateways.gateway(gateways.config()) as client:
        assert client.get("/health").status_code == 200
    assert at_once
    assert all(at_once)


def test_heads_of_everything_that_can_be_read(tmp_path):
    with serving(tmp_path) as gateway:
        for path in ("/health", "/ready", "/metrics", "/", "/v1/models", "/v1/models/endless", "/openapi.json"):
            with gateway.connect(request("HEAD", path) + request("GET", path, close=True)) as client:
                whole = b"".join(iter(lambda: client.recv(100_000), b""))
            first, second, body = re.split(rb"\r\n\r\n", whole, maxsplit=2)
            assert first.startswith(b"HTTP/1.1 200"), path
            assert second.startswith(b"HTTP/1.1 200"), "the first response has no body"
            if path != "/metrics":  # which has changed meanwhile
                assert f"content-length: {len(body)}".encode() in first
        with gateway.connect(request("HEAD", "/nothing", close=True)) as client:
            assert client.recv(100).startswith(b"HTTP/1.1 404")


def test_every_line_of_the_log_is_json():
    program = """
import asyncio, logging, warnings
from motes.gateway.logs import to_stream
to_stream()
logging.getLogger("motes.gateway.app").info("ours")
logging.getLogger("uvicorn.error").error("Exception in ASGI application\\n", exc_info=ValueError("in it"))
logging.getLogger("another.library").warning("a warning")
logging.getLogger("another.library").info("too much")
warnings.warn("a warning of Python's")

async def main():
    asyncio.get_running_loop().call_exception_handler({"message": "the loop's"})

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"].partition(":")[0] for line in told][:3] == [
        "ours", "Exception in ASGI application", "a warning",
    ]  # fmt: skip
    assert len(told) == 5
    assert told[1]["traceback"].endswith("ValueError"), "and not what it says, which may quote a conversation"


def test_requests_of_a_client_library_are_served(tmp_path):
    with serving(tmp_path) as gateway, httpx2.Client(base_url=f"http://127.0.0.1:{gateway.port}") as client:
        body = {"model": "endless", "messages": [{"role": "user", "content": "now"}]}
        for _ in range(3):
            assert client.post(CHAT, json=body).json()["motes"]["answer"] == "4"
        assert gateway.metric("motes_connections") == 2, "the library keeps its connection"
