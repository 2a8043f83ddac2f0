"""A gateway as a process of its own, over the models of endless.py, and plain sockets as its clients."""

from __future__ import annotations

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
def serving(folder: Path, files: int | None = None, more: str = "", **limits: float) -> Iterator[Gateway]:
    """A gateway of the endless model that may open so many files. Its configuration ends with `more`."""
    text = CONFIG.format(limits="\n".join(f"{k} = {v}" for k, v in limits.items()))
    (folder / "motes.toml").write_text(text + more)
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


def request(method: str, path: str, body: bytes = b"", *, close: bool = False, key: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Length: {len(body)}"] if body else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def question(how: str, key: str = "", **fields: object) -> bytes:
    """A request for an answer; `how` says how its run goes, see endless.py."""
    body = {"model": "endless", "messages": [{"role": "user", "content": how}], **fields}
    return request("POST", CHAT, json.dumps(body).encode(), key=key)


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
