"""The gateway's server as a process: limits of time for connections, a bound on their number, and its end.

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
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

import gateways
from motes.gateway.admission import Admission
from motes.gateway.answering import open_models
from motes.gateway.app import application
from motes.gateway.draining import LATE, Drain
from motes.gateway.errors import BusyError
from motes.gateway.server import Server, raise_limit_on_files
from virtual_time import timed

CHAT = "/v1/chat/completions"
PATIENCE = 60.0
"""Seconds after which a test gives up."""
CONFIG = """
[models.endless]
lm = "endless:language_model"
method = "majority"
particles = 2
deadline = 50

[limits]
{limits}
"""


@dataclass
class Gateway:
    """A process."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log. The first line says where the gateway listens."""
        return [json.loads(line) for line in self.log.read_text().splitlines()[1:]]

    def statuses(self) -> Counter[int]:
        """Those of the requests for answers in the log."""
        return Counter(line["status"] for line in self.lines if line.get("endpoint") == CHAT)

    def connect(self, sent: bytes = b"", buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", self.port))
        client.sendall(sent)
        return client

    def ask(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """The response on a connection of its own."""
        with self.connect(sent) as client:
            return response(client)

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask(request("GET", path, close=True))

    def metric(self, name: str) -> float:
        return float(re.search(rf"^{name} (\S+)$", self.get("/metrics")[2].decode(), re.MULTILINE)[1])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def serving(folder: Path, files: int | None = None, **limits: float) -> Iterator[Gateway]:
    """A gateway of the endless model that may open so many files."""
    (folder / "motes.toml").write_text(CONFIG.format(limits="\n".join(f"{k} = {v}" for k, v in limits.items())))
    log = folder / "log"
    command = [sys.executable, "-m", "motes", "serve", "--port", "0", "--config", str(folder / "motes.toml")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    limit = None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream, env=environment, preexec_fn=limit)
    try:
        until(lambda: re.search(r":(\d+)/v1\n", log.read_text()), process)
        yield Gateway(process, log, int(re.search(r":(\d+)/v1\n", log.read_text())[1]))
    finally:
        process.kill()
        process.wait()


def until(holds: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never held"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.02)


def request(method: str, path: str, body: bytes = b"", *, close: bool = False) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}"] if body else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def question(how: str, **fields: object) -> bytes:
    """A request for an answer; `how` says how its run goes, see endless.py."""
    body = {"model": "endless", "messages": [{"role": "user", "content": how}], **fields}
    return request("POST", CHAT, json.dumps(body).encode())


def response(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of one response."""
    stream = client.makefile("rb")
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    if "content-length" in headers:
        return status, headers, stream.read(int(headers["content-length"]))
    body = b""
    while (line := stream.readline()) and (size := int(line, 16)):
        body += stream.read(size)
        stream.readline()
    return status, headers, body


def events(body: bytes) -> list[Any]:
    """The events of a stream, comments left out; the last one is [DONE]."""
    told = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: ")]
    assert told[-1] == "[DONE]"
    return [json.loads(one) for one in told[:-1]]


def error(body: bytes) -> dict[str, Any]:
    return json.loads(body)["error"]


def is_closed(client: socket.socket) -> bool:
    """Whether the other side closes the connection without another byte."""
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


def drip(client: socket.socket) -> bytes:
    """Send byte after byte until the connection is closed, and return what was received."""
    end, received = time.monotonic() + PATIENCE, b""
    client.settimeout(0.1)
    while time.monotonic() < end:
        try:
            if not received:
                client.send(b"x")
            if (new := client.recv(10_000)) == b"":
                return received
            received += new
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return received
    raise AssertionError("the connection stays open")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory) -> Iterator[Gateway]:
    """One with little patience."""
    with serving(tmp_path_factory.mktemp("time"), head=1, body=1, idle=1) as gateway:
        yield gateway


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
            status, headers, body = gateway.ask(question("now", padding="x" * 200_000))
            assert (status, error(body)["code"]) == (503, "busy")
            assert (headers["connection"], int(headers["retry-after"]) > 0) == ("close", True)
            for path in ("/health", "/ready", "/metrics"):
                status, headers, _ = gateway.get(path)
                assert (status, headers["connection"]) == (200, "close")
            assert gateway.get("/v1/models")[0] == 503
            silent = [clients.enter_context(gateway.connect()) for _ in range(200)]
            assert is_closed(silent[-1]), "there is no room for it at all"
            assert all(map(is_closed, silent)), "the others have a short time to say what they want"
            assert gateway.get("/health")[0] == 200
            assert gateway.metric("motes_connections_refused_total") >= 200
            client.close()
            until(lambda: gateway.get("/v1/models")[0] == 200)
            assert sum("refused" in line["message"] for line in gateway.lines) == 1

    def test_heads_that_do_not_end_make_room_as_well(self, tmp_path):
        with serving(tmp_path, connections=3, head=600, idle=600) as gateway, contextlib.ExitStack() as clients:
            started = [clients.enter_context(gateway.connect(b"GET /")) for _ in range(3)]
            assert gateway.get("/v1/models")[0] == 200
            assert is_closed(started[0])

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


class TestEnd:
    def test_everything_in_flight_ends_well(self, tmp_path):
        with contextlib.ExitStack() as stack:
            gateway, pool = stack.enter_context(serving(tmp_path, particles=8, drain=4)), ThreadPoolExecutor(8)
            inside = [
                pool.submit(gateway.ask, question(how, stream=stream))
                for how in ("partly", "never")
                for stream in (False, True)
            ]
            until(lambda: gateway.metric("motes_particles_in_flight") == 8)
            waiting = [pool.submit(gateway.ask, question("now", stream=stream)) for stream in (False, True)]
            until(lambda: gateway.metric("motes_requests_waiting") == 2)
            kept = stack.enter_context(gateway.connect(request("GET", "/health")))
            assert response(kept)[0] == 200
            stack.enter_context(gateway.connect(question("now")[:-5]))
            # 1) at once
            gateway.process.send_signal(signal.SIGTERM)
            for future in waiting:
                status, headers, body = future.result()
                assert (status, error(body)["code"], headers["connection"]) == (503, "busy", "close")
                assert int(headers["retry-after"]) > 0
            # 2) while the others end
            status, headers, body = gateway.get("/ready")
            assert (status, json.loads(body), headers["connection"]) == (
                503,
                {"status": "closing", "missing": {}},
                "close",
            )
            assert gateway.get("/health")[0] == 200
            kept.sendall(question("now"))
            status, headers, _ = response(kept)
            assert (status, headers["connection"], "retry-after" in headers) == (503, "close", True)
            assert not any(future.done() for future in inside), "the drain is not over"
            # 3) at the end
            partly, partly_stream, never, never_stream = (future.result() for future in inside)
            told = json.loads(partly[2])
            assert (partly[0], told["motes"]["answer"], told["motes"]["stopped"]) == (200, "4", "deadline")
            told = events(partly_stream[2])
            assert "".join(one["choices"][0]["delta"].get("content", "") for one in told).endswith("boxed{4}.")
            assert told[-1]["motes"]["stopped"] == "deadline"
            assert (never[0], error(never[2])["code"], int(never[1]["retry-after"]) > 0) == (503, "busy", True)
            assert events(never_stream[2])[-1]["error"]["code"] == "busy"
            assert gateway.process.wait(PATIENCE) == 0
            assert gateway.statuses() == {200: 2, 503: 6}, "the log says what the clients got"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_nothing_in_flight(self, tmp_path, number):
        with serving(tmp_path, drain=3000, idle=600) as gateway, gateway.connect() as silent:
            assert gateway.get("/health")[0] == 200
            assert gateway.end(number) == 0
            assert is_closed(silent)
            assert [line["message"] for line in gateway.lines] == ["closing: requests in flight have 3000 s", "closed"]

    def test_a_body_that_is_still_sent_is_answered(self, tmp_path):
        with serving(tmp_path, drain=1) as gateway, gateway.connect(question("now")[:-5]) as client:
            assert gateway.get("/health")[0] == 200
            gateway.process.send_signal(signal.SIGTERM)
            status, headers, _ = response(client)
            assert (status, int(headers["retry-after"]) > 0, headers["connection"]) == (503, True, "close")
            assert gateway.process.wait(PATIENCE) == 0
            assert gateway.statuses() == {503: 1}

    def test_a_second_signal_ends_it_at_once(self, tmp_path):
        with serving(tmp_path, drain=3000) as gateway, ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(gateway.ask, question(how, stream=stream, motes={"deadline": 50}))
                for how in ("partly", "never")
                for stream in (False, True)
            ]
            until(lambda: gateway.metric("motes_particles_in_flight") == 8)
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: gateway.get("/ready")[0] == 503)
            assert gateway.end() == 0
            partly, partly_stream, never, never_stream = (future.result() for future in asked)
            assert json.loads(partly[2])["motes"]["stopped"] == "deadline"
            assert events(partly_stream[2])[-1]["motes"]["stopped"] == "deadline"
            assert never[0] == 503
            assert events(never_stream[2])[-1]["error"]["code"] == "busy"
            assert gateway.statuses() == {200: 2, 503: 2}

    def test_a_client_that_stopped_reading_does_not_delay_it(self, tmp_path):
        with serving(tmp_path, drain=1, idle=600) as gateway, gateway.connect(buffer=4096) as client:
            client.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                for _ in range(20_000):
                    client.sendall(request("GET", "/openapi.json"))
            assert gateway.end() == 0


class TestDrain:
    """The end of runs, by a clock of its own."""

    @staticmethod
    async def run(work: Callable[..., Any], drain: Drain, seconds: float = 100.0) -> Any:
        class Request:
            deadline = seconds

            async def run(self, observe, on_progress, limits):
                return await work(limits)

        return await drain.run(Request())

    @pytest.mark.parametrize("begun_before", [True, False])
    def test_a_run_that_does_not_end_is_cancelled(self, begun_before):
        async def deaf(limits):
            await asyncio.sleep(10_000.0)

        async def test() -> None:
            drain = Drain(Admission(8, 8), 30.0)
            if begun_before:
                await drain.begin()
            task = asyncio.create_task(self.run(deaf, drain))
            await asyncio.sleep(0)
            await drain.begin()
            with pytest.raises(BusyError) as caught:
                await task
            assert caught.value.closing

        assert timed(test)[1] == 30.0 + LATE

    def test_deadlines_are_shortened_and_never_lengthened(self):
        async def until_deadline(limits) -> float:
            with contextlib.suppress(TimeoutError):
                async with limits.timeout():
                    await asyncio.sleep(10_000.0)
            raise KeyError(asyncio.get_running_loop().time())

        async def test() -> list[float]:
            drain = Drain(Admission(8, 8), 30.0)
            tasks = [asyncio.create_task(self.run(until_deadline, drain, seconds)) for seconds in (10.0, 100.0)]
            await asyncio.sleep(5.0)
            await drain.begin()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            return [error.args[0] for error in ended]

        assert timed(test)[0] == [10.0, 35.0]

    def test_a_timeout_of_the_run_itself_stays_one(self):
        async def fails(limits):
            raise TimeoutError("a model's own")

        async def test() -> None:
            drain = Drain(Admission(8, 8), 30.0)
            with pytest.raises(TimeoutError, match="own"):
                await self.run(fails, drain)

        timed(test)


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


class TestReload:
    """SIGHUP in this process."""

    @staticmethod
    def serve(reload: Callable[[], Any], test: Callable[[], Any]) -> None:
        """Run a test beside a server, which a SIGTERM ends."""
        config = gateways.config()

        async def run() -> None:
            server = Server(application(config, open_models(config)), reload=reload)
            with socket.create_server(("127.0.0.1", 0)) as listener:
                task = asyncio.create_task(server.serve(sockets=[listener]))
                while not server.started:
                    await asyncio.sleep(0.01)
                await test()
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(task, PATIENCE)

        asyncio.run(run())

    def test_one_at_a_time(self):
        begun, at_once, free = [], [], asyncio.Event()

        async def reload() -> None:
            begun.append(1)
            at_once.append(1)
            assert len(at_once) == 1
            await free.wait()
            at_once.pop()

        async def test() -> None:
            for _ in range(5):
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0.05)
            assert len(begun) == 1
            free.set()
            while len(begun) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert len(begun) == 2, "four signals during a reload are one"

        self.serve(reload, test)

    def test_a_failure_changes_nothing(self, caplog):
        tried = []

        async def reload() -> None:
            tried.append(1)
            raise ValueError("the file is gone")

        async def test() -> None:
            for number in (1, 2):
                os.kill(os.getpid(), signal.SIGHUP)
                while len(tried) < number:
                    await asyncio.sleep(0.01)

        self.serve(reload, test)
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
            "the configuration stays as it was"
        ] * 2


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
