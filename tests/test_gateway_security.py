"""What docs/gateway-security.md says, where no other file tests it; and that the tests that it names exist."""

from __future__ import annotations

import ast
import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import gateways
from motes.gateway.config import Key
from snippets import ROOT
from test_gateway_entrance import logged
from test_gateway_relay import ANSWER, BODY, answering, relaying

CHAT = "/v1/chat/completions"
QUESTION = {"model": "story", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
PAGE = (ROOT / "docs" / "gateway-security.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config()) as client:
        yield client


def sent(client: httpx2.Client, request: bytes) -> tuple[int, str]:
    """The status and the body of the response to these bytes, which no library changes."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
        connection.sendall(request)
        whole = b"".join(iter(lambda: connection.recv(100_000), b"")).decode()
        head, _, body = whole.partition("\r\n\r\n")
        return int(head.split()[1]), body


# The page.


def names_of_tests(file: Path) -> set[str]:
    """The tests of a file, those of classes with the class's name: "TestTime::test_a_head"."""
    names = set()
    for item in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(item, ast.FunctionDef):
            names.add(item.name)
        if isinstance(item, ast.ClassDef):
            names |= {f"{item.name}::{method.name}" for method in item.body if isinstance(method, ast.FunctionDef)}
    return names


def test_every_test_that_the_page_names_exists():
    tables = PAGE.partition("## What it keeps out")[2].partition("## What it does not keep out")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| threat")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::([\w:]+)`", row)
        assert named, f"a row without a test: {row}"
        for file, name in named:
            assert name in names_of_tests(ROOT / "tests" / file), f"{file}::{name}"


# Who may ask for what.


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1%2fmodels", "/v1/../v1/models", "//v1/models", "/./v1/models", "/V1/models", "/v1"]
)
def test_no_way_of_writing_a_path_goes_round_the_key(path: str):
    secret, key = Key.make("one")
    with gateways.gateway(gateways.config(keys=[key.model_dump()])) as client:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        status, body = sent(client, f"{head}\r\n".encode())
        assert status in (401, 404)
        assert "story" not in body
        status, _ = sent(client, f"{head}Authorization: Bearer {secret}\r\n\r\n".encode())
        assert status == (200 if path in ("/v1/models", "/v1%2fmodels") else 404)


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json"])
def test_what_needs_no_key_names_no_model(path: str):
    _, key = Key.make("team-a")
    with gateways.gateway(gateways.config(keys=[key.model_dump()])) as client:
        response = client.get(path)
        assert response.status_code == 200
        assert not re.search("story|team-a|worlds", response.text)


def test_no_name_of_a_model_is_an_address(client):
    """Nor a file, a task or code: a request chooses among the names in the configuration, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        for name in (address, f"{address}#m", f"story:{address}", "worlds:language_model", "../story", "/etc/passwd"):
            response = client.post(CHAT, json={**QUESTION, "model": name})
            assert response.status_code in (400, 404), name
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("path", ["..", "../sleep", "a/../../sleep", "%2e%2e/sleep", "..%2fsleep", ".", "./a", "a/.."])
def test_a_request_that_is_passed_through_does_not_leave_the_servers_v1(path: str):
    requests: list[httpx2.Request] = []
    with relaying(answering(httpx2.Response(200, json=ANSWER), requests)) as client:
        for way in (path, path.replace(".", "%252e"), path.replace("/", "%5c"), path.replace("/", "//")):
            body = json.dumps(BODY)
            head = f"POST /v1/{way} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            rest = f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            status, told = sent(client, (head + rest).encode())
            assert (status, "no such endpoint" in json.loads(told)["error"]["message"]) == (404, True)
    assert requests == []


# What is read.


@pytest.mark.parametrize("header", [f"X: {'x' * 66_000}", "".join(f"X-{i}: {'x' * 50}\r\n" for i in range(1100))])
def test_a_head_is_bounded(client, header: str):
    status, _ = sent(client, f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{header}".encode())
    assert status == 400, "at once, although it has no end yet"


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 5\r\nContent-Length: 50",
        "Content-Length: -1",
        "Content-Length: 0x10",
        "Content-Length: 5\r\nContent-Length : 50",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip",
    ],
)
def test_a_body_has_one_length(client, headers: str):
    """A proxy might read another one, and take the rest of the body for a request."""
    status, _ = sent(client, f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\nhello".encode())
    assert status in (400, 501)


def test_a_compressed_body_is_not_decompressed(client):
    body = gzip.compress(json.dumps(QUESTION).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = client.post(CHAT, content=body, headers=headers)
    assert (response.status_code, "not JSON" in response.json()["error"]["message"]) == (400, True)


# What is written.


def test_no_key_is_logged():
    secret, key = Key.make("one")
    wrong = "motes-nonsense-of-a-stranger"
    with logged() as lines, gateways.gateway(gateways.config(keys=[key.model_dump()])) as client:
        for header, start in (("Authorization", "Bearer "), ("X-API-Key", "")):
            assert client.post(CHAT, json=QUESTION, headers={header: start + secret}).status_code == 200
            response = client.post(CHAT, json=QUESTION, headers={header: start + wrong})
            assert response.status_code == 401
            assert wrong not in response.text
        until = time.monotonic() + 30
        while (
            lines.getvalue().count('"status": 401') < 2 and time.monotonic() < until
        ):  # written a moment after the response
            pass
        text = lines.getvalue() + client.get("/metrics").text
    assert secret not in text
    assert wrong not in text
    assert text.count('"status": 401') == 2, "but the requests are"


def test_made_up_names_do_not_fill_metrics(client):
    """Each label of a metric has few values, whatever clients send."""
    lines = len(client.get("/metrics").text.splitlines())
    for number in range(30):
        client.post(CHAT, json={**QUESTION, "model": f"made-up-{number}"})
        client.post(f"/v1/made-up-{number}", json=QUESTION)
        client.get(f"/made-up-{number}")
        client.post(CHAT, json=QUESTION, headers={"X-Request-ID": f"made-up-{number}", "X-Motes-Method": "made-up"})
    text = client.get("/metrics").text
    assert "made-up" not in text
    assert len(text.splitlines()) < lines + 30
