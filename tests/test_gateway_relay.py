"""Models without a method: requests are passed through to their server, and its responses back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

import gateways
from motes.errors import ConfigurationError
from motes.gateway.admission import Caller
from motes.gateway.answering import open_models
from motes.gateway.config import Config, Key, parse_config
from motes.gateway.draining import Drain
from motes.gateway.errors import BusyError
from motes.gateway.forms import MAX_FORMS, MAX_FORMS_OF_ONE, Forms
from motes.gateway.relay import Relay, Upstream, open_relay
from motes.gateway.relayed import Names
from motes.transport import Address

CHAT = "/v1/chat/completions"
UPSTREAM = "http://10.0.0.1:8000/v1#meta/Llama-3"
OTHER = "http://10.0.0.2:8000/v1#other/name"
BODY = {"model": "raw", "messages": [{"role": "user", "content": "?"}], "guided_regex": "[ab]", "logit_bias": {"5": 1}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
ANSWER = {
    "id": "x",
    "model": "meta/Llama-3",
    "choices": [{"message": {"content": 'the "model" is meta/Llama-3'}}],
    "usage": USAGE,
}

JSON = {"content-type": "application/json"}
Handler = Callable[[httpx2.Request], httpx2.Response]


class Pieces(httpx2.AsyncByteStream):
    """A body in pieces, which may break off."""

    def __init__(self, *pieces: bytes | Exception | asyncio.Event) -> None:
        self.pieces, self.closed = pieces, threading.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                continue
            yield piece

    async def aclose(self) -> None:
        self.closed.set()


@contextlib.contextmanager
def relaying(handler: Handler, *others: str, deadline: float = 5, **changes: Any) -> Iterator[httpx2.Client]:
    """A gateway with a model that is passed through to a server, or to several, and one with a method."""
    specs = (UPSTREAM, *others)
    models = {"story": gateways.MODEL, "raw": {"lm": list(specs), "method": "none", "deadline": deadline}}
    config = gateways.config(models=models, **changes)
    served = dict(open_models(config))
    addresses = [Address.parse(spec) for spec in specs]
    upstreams = [Upstream(address, address.model or "", "the-key") for address in addresses]
    relay = Relay("raw", upstreams, httpx2.MockTransport(handler))
    served["raw"] = dataclasses.replace(served["raw"], lm=relay)
    with gateways.gateway(config, served) as client:
        yield client


def answering(response: httpx2.Response, requests: list[httpx2.Request] | None = None) -> Handler:
    def handle(request: httpx2.Request) -> httpx2.Response:
        if requests is not None:
            requests.append(request)
        return response

    return handle


def assert_counted(client: httpx2.Client, endpoint: str, status: int) -> None:
    """One request was counted, which happens a moment after its client has the response."""
    labels = {"endpoint": endpoint, "model": "raw", "caller": "anyone", "status": str(status)}
    while (count := client.gateway.metrics.registry.get_sample_value("motes_requests_total", labels)) is None:
        pass
    assert count == 1


@pytest.mark.parametrize(
    "path", ["chat/completions", "completions", "embeddings", "images/generations", "rerank", "a/b"]
)
def test_every_endpoint_is_passed_through(path: str):
    requests: list[httpx2.Request] = []
    with relaying(answering(httpx2.Response(200, json=ANSWER), requests)) as client:
        response = client.post(f"/v1/{path}?x=1", json=BODY, headers={"Authorization": "Bearer of the client"})
        assert response.status_code == 200
        assert response.json() == {**ANSWER, "model": "raw"}, "under its name here, and nothing else changes"
        (request,) = requests
        assert str(request.url) == f"http://10.0.0.1:8000/v1/{path}?x=1"
        assert json.loads(request.content) == {**BODY, "model": "meta/Llama-3"}
        assert request.headers["authorization"] == "Bearer the-key"
        endpoint = "/v1/…" if path in ("rerank", "a/b") else f"/v1/{path}"
        assert_counted(client, endpoint, 200)
        registry = client.gateway.metrics.registry
        assert registry.get_sample_value(
            "motes_tokens_total", {"model": "raw", "caller": "anyone", "role": "language model", "kind": "generated"}
        ) == 4  # fmt: skip
        assert client.gateway.gate.in_flight == 0


def test_models_with_a_method_have_no_other_endpoints():
    with relaying(answering(httpx2.Response(200, json=ANSWER))) as client:
        for model in ("story", "other", None, 3):
            assert client.post("/v1/embeddings", json={"model": model, "input": "x"}).status_code == 404
        assert client.post("/v1/embeddings", json=[1]).status_code == 404
        assert client.get("/v1/embeddings").status_code == 404
        assert client.post(CHAT, json={**BODY, "model": "story"}).json()["motes"]["particles"] == 8
        cards = {card["id"]: card["motes"] for card in client.get("/v1/models").json()["data"]}
        assert cards["raw"]["methods"] == []


def data_of(text: str) -> list[str]:
    """The data of the events of a stream."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_streams_are_passed_through(size: int):
    chunks = [
        {"model": "meta/Llama-3", "choices": [{"delta": {"content": text}}]} for text in ("a", "é", '"model":"x"')
    ]
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, {**chunks[0], "usage": USAGE}]] + [
        "data: [DONE]\n\n"
    ]
    content = "".join(events).encode()
    pieces = Pieces(*(content[i : i + size] for i in range(0, len(content), size)))
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=pieces)
    with relaying(answering(response)) as client:
        got = client.post(CHAT, json={**BODY, "stream": True})
        assert got.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line) for line in data_of(got.text)[:-1]]
        assert told == [{**chunk, "model": "raw"} for chunk in [*chunks, {**chunks[0], "usage": USAGE}]]
        assert data_of(got.text)[-1] == "[DONE]"
        assert got.text.count("\n\n") == len(events)
        assert client.gateway.metrics.registry.get_sample_value(
            "motes_tokens_total", {"model": "raw", "caller": "anyone", "role": "language model", "kind": "prefill"}
        ) == 6  # fmt: skip
        assert pieces.closed.wait(10)


def test_other_bodies_are_passed_through():
    audio = httpx2.Response(200, headers={"content-type": "audio/mpeg"}, stream=Pieces(b"\x00\xff", b"meta/Llama-3"))
    with relaying(answering(audio)) as client:
        response = client.post("/v1/audio/speech", json={"model": "raw", "input": "hello"})
        assert (response.content, response.headers["content-type"]) == (b"\x00\xffmeta/Llama-3", "audio/mpeg")


ERROR = {
    "error": {
        "message": "meta/Llama-3 at http://10.0.0.1:8000 (10.0.0.1:8000) takes at most 5 tokens",
        "type": "BadRequestError", "param": "max_tokens", "code": 400, "internal": "vllm-0.pod",
    }
}  # fmt: skip


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_errors_are_passed_through_without_addresses(status: int):
    headers = {"retry-after": "7", "x-internal": "vllm-0.pod"}
    with relaying(answering(httpx2.Response(status, json=ERROR, headers=headers))) as client:
        response = client.post(CHAT, json=BODY)
        assert (response.status_code, response.headers["retry-after"]) == (status, "7")
        told = response.json()["error"]
        assert (told["type"], told["param"], told["code"]) == ("BadRequestError", "max_tokens", 400)
        assert told["message"] == "raw at (an address) ((an address)) takes at most 5 tokens"
        assert "x-internal" not in response.headers
        assert "vllm-0" not in response.text


@pytest.mark.parametrize(
    "content", [b"", b"<html>10.0.0.1</html>", b"[1]", b'{"error": "busy"}', b'{"message": 3}', b"x" * 90_000]
)
def test_errors_in_other_forms(content: bytes):
    with relaying(answering(httpx2.Response(500, content=content))) as client:
        response = client.post(CHAT, json=BODY)
        assert response.status_code == 500
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def fail(error: Exception) -> Handler:
    def handle(request: httpx2.Request) -> httpx2.Response:
        raise error

    return handle


@pytest.mark.parametrize(
    "handler",
    [
        fail(httpx2.ConnectError("10.0.0.1 refused")), fail(httpx2.ReadTimeout("10.0.0.1")),
        answering(httpx2.Response(401, json=ERROR)), answering(httpx2.Response(403)),
        answering(httpx2.Response(200, headers=JSON, stream=Pieces(b"{", httpx2.ReadError("x")))),
        answering(httpx2.Response(500, stream=Pieces(b"x" * 200_000))),
    ],
)  # fmt: skip
def test_a_server_that_fails_is_a_bad_gateway(handler: Handler):
    with relaying(handler) as client:
        response = client.post(CHAT, json=BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream")
        assert "10.0.0.1" not in response.text
        assert client.gateway.gate.in_flight == 0


def test_a_stream_that_breaks_off_ends_with_an_error():
    pieces = Pieces(b'data: {"a": 1}\n\nda', httpx2.ReadError("10.0.0.1"))
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=pieces)
    with relaying(answering(response)) as client:
        text = client.post(CHAT, json=BODY).text
        assert text.startswith('data: {"a": 1}\n\n')
        assert '"code":"upstream"' in text
        assert text.endswith("data: [DONE]\n\n")
        assert_counted(client, CHAT, 502)


def test_a_client_that_leaves_ends_the_servers_work():
    pieces = Pieces(b'data: {"a": 1}\n\n', asyncio.Event())
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=pieces)
    with relaying(answering(response)) as client:
        with client.stream("POST", CHAT, json=BODY) as stream:
            next(stream.iter_lines())
        assert pieces.closed.wait(10)
        while client.gateway.gate.in_flight:
            pass


def attempts(client: httpx2.Client) -> dict[str, int]:
    """Attempts of requests by outcome, which are counted a moment after a client has the response."""
    registry, outcomes = client.gateway.metrics.registry, ("ok", "429", "500", "connection", "timeout", "cancelled")
    labels = {"model": "raw", "role": "language model"}
    values = {o: registry.get_sample_value("motes_upstream_attempts_total", {**labels, "outcome": o}) for o in outcomes}
    return {outcome: int(value) for outcome, value in values.items() if value}


def test_attempts_are_counted_by_their_outcome():
    responses = [httpx2.Response(200, json=ANSWER), httpx2.Response(500, json=ERROR), httpx2.Response(400, json=ERROR)]
    with relaying(lambda request: responses.pop(0)) as client:
        statuses = [client.post(CHAT, json=BODY).status_code for _ in range(3)]
        assert statuses == [200, 500, 400]
        assert attempts(client) == {"ok": 1, "500": 1}
        failures = client.gateway.metrics.registry.get_sample_value("motes_upstream_errors_total", {"model": "raw"})
        assert failures == 1, "a client's mistake is no failure of the server"


@pytest.mark.parametrize(
    "failure", [httpx2.ConnectError("x"), httpx2.ReadTimeout("x"), 429, 500, 503], ids=lambda failure: str(failure)
)
def test_another_server_answers_where_one_fails(failure: Exception | int):
    hosts: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        hosts.append(request.url.host)
        model = json.loads(request.content)["model"]
        assert model == {"10.0.0.1": "meta/Llama-3", "10.0.0.2": "other/name"}[request.url.host]
        if request.url.host == "10.0.0.1":
            if isinstance(failure, Exception):
                raise failure
            return httpx2.Response(failure, json=ERROR)
        return httpx2.Response(200, json={**ANSWER, "model": model})

    with relaying(handle, OTHER) as client:
        assert client.post(CHAT, json=BODY).json()["model"] == "raw"
        assert hosts == ["10.0.0.1", "10.0.0.2"]
        assert client.post(CHAT, json=BODY).status_code == 200
        is_down = isinstance(failure, Exception)
        assert hosts[2:] == (["10.0.0.2"] if is_down else ["10.0.0.1", "10.0.0.2"]), "a server that is down is last"
        assert client.gateway.models["raw"].lm.upstreams[0].in_flight == 0


def test_a_clients_mistake_is_not_sent_to_every_server():
    hosts: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        hosts.append(request.url.host)
        return httpx2.Response(400, json=ERROR)

    with relaying(handle, OTHER) as client:
        assert client.post(CHAT, json=BODY).status_code == 400
        assert hosts == ["10.0.0.1"]


def test_where_all_servers_fail_the_last_error_counts():
    with relaying(fail(httpx2.ConnectError("10.0.0.1")), OTHER) as client:
        assert client.post(CHAT, json=BODY).status_code == 502
        assert attempts(client) == {"connection": 2}


def test_the_server_with_the_fewest_requests_in_flight_is_taken():
    hosts: list[str] = []
    stalled = Pieces(b'data: {"a": 1}\n\n', asyncio.Event())

    def handle(request: httpx2.Request) -> httpx2.Response:
        hosts.append(request.url.host)
        if len(hosts) == 1:
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=stalled)
        return httpx2.Response(200, json=ANSWER)

    with relaying(handle, OTHER) as client, client.stream("POST", CHAT, json=BODY) as stream:
        lines = stream.iter_lines()
        next(lines)
        for _ in range(3):
            assert client.post(CHAT, json=BODY).status_code == 200
        assert hosts == ["10.0.0.1"] + ["10.0.0.2"] * 3


NESTED = {
    "responses": [
        {"type": "response.created", "response": {"usage": None}},
        {
            "type": "response.completed",
            "response": {
                "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 4}
            },
        },
    ],
    "messages": [
        {
            "type": "message_start",
            "message": {"usage": {"input_tokens": 6, "cache_read_input_tokens": 3, "output_tokens": 1}},
        },
        {"type": "message_delta", "usage": {"output_tokens": 4}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("api", NESTED)
def test_the_usage_of_every_api_counts(api: str):
    content = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in NESTED[api])
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=content.encode())
    with relaying(answering(response)) as client:
        got = client.post(f"/v1/{api}", json={**BODY, "stream": True}).text
        assert [json.loads(data) for data in data_of(got)] == NESTED[api]
        for kind, count in (("generated", 4), ("prefill", 6)):
            labels = {"model": "raw", "caller": "anyone", "role": "language model", "kind": kind}
            assert client.gateway.metrics.registry.get_sample_value("motes_tokens_total", labels) == count


@pytest.mark.parametrize(("api", "name"), [("chat/completions", ""), ("responses", "error"), ("messages", "error")])
def test_errors_have_the_form_of_the_api(api: str, name: str):
    responses = [
        httpx2.Response(400, json=ERROR),
        httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, stream=Pieces(b"data: {}\n\n", httpx2.ReadError("x"))
        ),
    ]
    with relaying(lambda request: responses.pop(0)) as client:
        told = client.post(f"/v1/{api}", json=BODY).json()
        assert (told.get("type") == "error") is (api == "messages")
        assert "raw at (an address)" in told["error"]["message"]
        text = client.post(f"/v1/{api}", json=BODY).text
        assert (f"event: {name}\n" in text) is bool(name)
        last = [line for line in text.splitlines() if line.startswith("data: {")][-1]
        assert "a model behind this one failed" in json.dumps(json.loads(last.removeprefix("data: ")))
        assert ("[DONE]" in text) is (api == "chat/completions")


UPLOAD = {"file": ("a.wav", b"RIFF\x00\xff" * 300_000, "audio/wav")}


STREAM = {"content-type": "text/event-stream"}


def streaming(*events: Any, end: bytes = b"data: [DONE]\n\n") -> httpx2.Response:
    content = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events) + end
    return httpx2.Response(200, headers=STREAM, content=content)


DELTA = {"model": "meta/Llama-3", "choices": [{"delta": {"content": "a"}}]}
LAST = {"model": "meta/Llama-3", "choices": [], "usage": USAGE}


def generated(client: httpx2.Client) -> float | None:
    labels = {"model": "raw", "caller": "anyone", "role": "language model", "kind": "generated"}
    return client.gateway.metrics.registry.get_sample_value("motes_tokens_total", labels)


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}, {"x": 1}])
def test_the_usage_of_a_stream_is_asked_for_and_hidden_if_the_client_did_not(options: Any):
    requests: list[httpx2.Request] = []
    fields = {} if options is None else {"stream_options": options}
    with relaying(answering(streaming(DELTA, DELTA, LAST), requests)) as client:
        got = data_of(client.post(CHAT, json={**BODY, "stream": True, **fields}).text)
        asked = json.loads(requests[0].content)["stream_options"]
        assert asked == {**(options or {}), "include_usage": True}
        is_wanted = bool(options and options.get("include_usage"))
        assert any("usage" in data for data in got) is is_wanted
        assert len(got) == 3 + is_wanted
        assert generated(client) == USAGE["completion_tokens"]


def test_a_stream_without_usage_costs_a_token_for_each_delta():
    with relaying(answering(streaming(DELTA, DELTA, DELTA))) as client:
        client.post("/v1/other", json={**BODY, "stream": True})
        assert generated(client) == 3


@pytest.mark.parametrize("status", [204, 205])
def test_responses_without_a_body(status: int):
    with relaying(answering(httpx2.Response(status))) as client:
        response = client.post("/v1/x", json=BODY)
        assert (response.status_code, response.content) == (status, b"")


@pytest.mark.parametrize(
    "response",
    [
        httpx2.Response(307, headers={"location": "http://internal-host/"}), httpx2.Response(302, text="internal-host"),
        httpx2.Response(600), httpx2.Response(101),
        httpx2.Response(200, headers={**JSON, "content-encoding": "gzip"}, stream=Pieces(b"internal-host")),
        httpx2.Response(500, headers={**JSON, "content-encoding": "gzip"}, stream=Pieces(b"internal-host")),
    ],
    ids=lambda response: str(response.status_code),
)  # fmt: skip
def test_responses_that_cannot_be_passed_on(response: httpx2.Response):
    with relaying(answering(response)) as client:
        got = client.post(CHAT, json=BODY)
        assert (got.status_code, got.json()["error"]["code"]) == (502, "upstream")
        assert "internal" not in got.text


def test_odd_headers_and_deep_json_do_no_harm():
    deep, odd = b"[" * 3000 + b"]" * 3000, (b"retry-after", "ключ".encode())
    responses = [
        httpx2.Response(200, headers=[(b"content-type", b"application/json"), odd], content=deep),
        httpx2.Response(200, headers=[(b"content-type", "text/ключ".encode())], content=b"x"),
        httpx2.Response(500, headers=[odd], content=deep),
        httpx2.Response(200, headers=STREAM, content=b"data: " + deep + b'"model"\n\ndata: {"usage"\n\n'),
    ]  # fmt: skip
    with relaying(lambda request: responses.pop(0)) as client:
        statuses = [client.post(CHAT, json=BODY).status_code for _ in range(4)]
        assert statuses == [200, 200, 500, 200]


def test_a_body_that_breaks_off_ends_the_connection():
    pieces = Pieces(b"sound", httpx2.ReadError("x"))
    speech = httpx2.Response(200, headers={"content-type": "audio/mpeg"}, stream=pieces)
    with relaying(answering(speech)) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post("/v1/audio/speech", json={"model": "raw"})
        assert_counted(client, "/v1/…", 502)
        assert attempts(client) == {"connection": 1}
        assert client.gateway.metrics.registry.get_sample_value("motes_upstream_errors_total", {"model": "raw"}) == 1


@pytest.mark.parametrize("api", ["chat/completions", "responses", "messages"])
@pytest.mark.parametrize(
    "form", [{"error": {"message": "meta/Llama-3 at http://10.0.0.1:8000 failed"}}, {"error": "10.0.0.1"}]
)
def test_an_error_in_a_stream_or_in_a_200_is_one(api: str, form: Any):
    responses = [streaming(DELTA, form, DELTA), httpx2.Response(200, json=form)]
    with relaying(lambda request: responses.pop(0)) as client:
        text = client.post(f"/v1/{api}", json=BODY).text
        assert "10.0.0.1" not in text
        assert "(an address)" in text
        assert text.count('"delta"') == 1, "the error ends the stream"
        response = client.post(f"/v1/{api}", json=BODY)
        assert (response.status_code, "10.0.0.1" in response.text) == (502, False)
        assert attempts(client) == {}


def test_errors_are_cleaned_in_every_field():
    error = {"message": "x", "param": "http://10.0.0.1:8000", "type": "meta/Llama-3", "code": "at 10.0.0.1:8000"}
    with relaying(answering(httpx2.Response(400, json={"error": error}))) as client:
        told = client.post(CHAT, json=BODY).json()["error"]
        assert told == {"message": "x", "param": "(an address)", "type": "raw", "code": "at (an address)"}


def test_a_name_is_changed_where_it_is_a_name():
    names = Names("raw", "m", "api")
    assert (
        names.clean("maximum of m at api: /v1/m, m-2, apis, (m)")
        == "maximum of raw at (a host): /v1/m, m-2, apis, (raw)"
    )
    value = {"input": {"model": "m"}, "model": "m", "response": {"model": "m"}, "message": {"model": "other"}}
    names.set_in(value)
    assert value == {
        "input": {"model": "m"},
        "model": "raw",
        "response": {"model": "raw"},
        "message": {"model": "other"},
    }


def test_queries_are_passed_on_whole():
    requests: list[httpx2.Request] = []
    with relaying(answering(httpx2.Response(200, json=ANSWER), requests)) as client:
        client.post("/v1/x?a=1&a=2&b=%20%26", json=BODY)
        assert requests[0].url.params.multi_items() == [("a", "1"), ("a", "2"), ("b", " &")]


def test_options_have_no_effect_and_are_named():
    requests: list[httpx2.Request] = []
    with relaying(answering(httpx2.Response(200, json=ANSWER), requests)) as client:
        body = {**BODY, "motes": {"particles": 4}}
        response = client.post(CHAT, json=body, headers={"X-Motes-Particles": "4"})
        assert response.headers["x-motes-ignored"] == "X-Motes-Particles, motes"
        assert "motes" not in json.loads(requests[0].content)
        assert client.post(CHAT, json={**BODY, "model": "raw:4"}).status_code == 404
        assert client.post("/v1/embeddings", json={**BODY, "model": "raw:4"}).status_code == 404
        (card,) = [card for card in client.get("/v1/models").json()["data"] if card["id"] == "raw"]
        assert card["motes"] == {"methods": [], "deadline": 5}


def hanging(*hosts: str) -> Handler:
    async def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.host in hosts:
            await asyncio.Event().wait()
        return httpx2.Response(200, json=ANSWER)

    return handle


def test_ready_does_not_wait_for_every_server():
    with relaying(hanging("10.0.0.1"), OTHER) as client:
        assert client.get("/ready").status_code == 200


def test_the_deadline_is_one_for_all_attempts():
    with relaying(hanging("10.0.0.1", "10.0.0.2"), OTHER, deadline=0.2) as client:
        response = client.post(CHAT, json=BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline")
        assert attempts(client) == {"timeout": 1}
        assert client.gateway.gate.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_that_closes_ends_what_it_passes_through(stream: bool):
    begun: queue.Queue[asyncio.AbstractEventLoop] = queue.Queue()
    pieces = Pieces(b'data: {"a": 1}\n\n', asyncio.Event())

    async def handle(request: httpx2.Request) -> httpx2.Response:
        begun.put(asyncio.get_running_loop())
        if not stream:
            await asyncio.Event().wait()
        return httpx2.Response(200, headers=STREAM, stream=pieces)

    async def close(drain: Drain) -> None:
        await drain.begin()
        drain.shorten(0.0, 0.0)

    with relaying(handle, deadline=60) as client, ThreadPoolExecutor() as pool:
        asking = pool.submit(client.post, CHAT, json=BODY)
        asyncio.run_coroutine_threadsafe(close(client.gateway.drain), begun.get(timeout=10)).result(10)
        response = asking.result(30)
        if stream:
            assert "shutting down" in response.text
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert response.status_code == 503
        assert_counted(client, CHAT, 503)


def test_one_caller_cannot_keep_others_from_uploading():
    """Forms are counted before they are read."""
    forms, one, other = Forms(), Caller("one", 64), Caller("other", 2)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_FORMS_OF_ONE):
            stack.enter_context(forms.counted(one))
        with pytest.raises(BusyError), forms.counted(one):
            pass
        for _ in range(2):
            stack.enter_context(forms.counted(other))
        with pytest.raises(BusyError), forms.counted(other):
            pass
    callers = [Caller(str(i), 64) for i in range(5)]
    with contextlib.ExitStack() as stack:
        for i in range(MAX_FORMS):
            stack.enter_context(forms.counted(callers[i % 4]))
        with pytest.raises(BusyError), forms.counted(callers[4]):
            pass
    with forms.counted(one):
        pass


def test_the_log_tells_when_a_server_is_down_and_back(caplog: pytest.LogCaptureFixture):
    down = True

    def handle(request: httpx2.Request) -> httpx2.Response:
        if down and request.url.host == "10.0.0.1":
            raise httpx2.ConnectError("x")
        return httpx2.Response(200, json=ANSWER)

    with relaying(handle, OTHER) as client, caplog.at_level("INFO", "motes.gateway.relay"):
        upstream = client.gateway.models["raw"].lm.upstreams[0]
        for _ in range(3):
            client.post(CHAT, json=BODY)
            upstream.down_until = 0.0
        down = False
        client.post(CHAT, json=BODY)
    told = [(record.levelname, "10.0.0.1" in record.message) for record in caplog.records if "relay" in record.name]
    assert told == [("WARNING", True), ("INFO", True)]


def test_a_wait_and_a_first_text_are_measured():
    with relaying(answering(streaming(DELTA))) as client:
        client.post(CHAT, json={**BODY, "stream": True})
        assert_counted(client, CHAT, 200)
        registry = client.gateway.metrics.registry
        for name in ("motes_wait_seconds_count", "motes_first_text_seconds_count"):
            assert registry.get_sample_value(name, {"model": "raw"}) == 1


def test_forms_are_passed_through():
    """More than a JSON body may have, and more than memory keeps."""
    seen: list[tuple[str, bytes]] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append((request.headers["content-type"], await request.aread()))
        return httpx2.Response(200, json={"text": "hello"})

    fields = {"model": "raw", "timestamp_granularities[]": ["word", "segment"], "prompt": "é"}
    with relaying(handle) as client:
        response = client.post("/v1/audio/transcriptions", data=fields, files=UPLOAD)
        assert response.json() == {"text": "hello"}
        ((kind, content),) = seen
        assert kind.startswith("multipart/form-data; boundary=")
        assert UPLOAD["file"][1] in content
        for text in ('filename="a.wav"', "audio/wav", "meta/Llama-3", "é", "word", "segment"):
            assert text.encode() in content
        assert b'name="model"\r\n\r\nmeta/Llama-3\r\n' in content
        assert_counted(client, "/v1/…", 200)


def test_a_form_is_sent_to_the_next_server_whole():
    sizes: list[int] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        sizes.append(len(await request.aread()))
        return httpx2.Response(503 if len(sizes) == 1 else 200, json={"text": "hello"})

    with relaying(handle, OTHER) as client:
        assert client.post("/v1/audio/transcriptions", data={"model": "raw"}, files=UPLOAD).status_code == 200
    assert min(sizes) > len(UPLOAD["file"][1])


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "story"}, 415),
        ({}, 400),
        ({"model": "nope"}, 404),
        ({"model": "raw:4"}, 404),
        ({"model": "raw", **{str(i): "x" for i in range(80)}}, 400),
        ({"model": "raw", "prompt": "x" * 200_000}, 400),
    ],
)  # fmt: skip
def test_forms_that_are_refused(fields: dict[str, str], status: int):
    with relaying(answering(httpx2.Response(200, json={}))) as client:
        assert client.post("/v1/audio/transcriptions", data=fields, files=UPLOAD).status_code == status


def test_a_form_that_is_too_large_or_none():
    form = {"content-type": "multipart/form-data; boundary=x"}
    with relaying(answering(httpx2.Response(200, json={})), limits={"upload_bytes": 100_000}) as client:
        assert client.post("/v1/audio/transcriptions", data={"model": "raw"}, files=UPLOAD).status_code == 413
        for content in (b"", b"--y", b"--x\r\n\r\n"):
            assert client.post("/v1/audio/transcriptions", content=content, headers=form).status_code in (400, 415)
        assert client.post(CHAT, content=b"{}", headers={"content-type": "multipart/form-data"}).status_code == 400
        assert client.post("/v1/audio/transcriptions", data={"model": "raw"}, files={"file": b"x"}).status_code == 200


def test_a_page_of_another_origin_may_not_send_forms():
    """A browser lets any page send a form. With keys, the page would need one."""
    page = {"origin": "http://evil.example"}
    with relaying(answering(httpx2.Response(200, json={}))) as client:
        send = lambda **options: client.post("/v1/audio/transcriptions", data={"model": "raw"}, files=UPLOAD, **options)  # noqa: E731
        assert send(headers=page).status_code == 403
        assert send().status_code == 200
    with relaying(answering(httpx2.Response(200, json={})), cors=["http://evil.example"]) as client:
        assert client.post("/v1/a", data={"model": "raw"}, files=UPLOAD, headers=page).status_code == 200


def test_keys_limit_it_as_others():
    secret, key = Key.make("one")
    entry = key.model_copy(update={"requests_per_minute": 1}).model_dump()
    with relaying(answering(httpx2.Response(200, json=ANSWER)), keys=[entry]) as client:
        assert client.post("/v1/embeddings", json=BODY).status_code == 401
        client.headers["authorization"] = f"Bearer {secret}"
        assert client.post("/v1/embeddings", json=BODY).status_code == 200
        assert client.post("/v1/embeddings", json=BODY).status_code == 429


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"lm": "tiny"}, "its lm is an address"),
        ({"lm": [UPSTREAM, "tiny"]}, "a list names servers of one model"),
        ({"lm": UPSTREAM, "reward": "tiny"}, "needs no reward model"),
        ({"lm": UPSTREAM, "methods": ["majority"]}, "excludes other methods"),
    ],
)
def test_configurations_that_cannot_work(model: dict[str, Any], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        parse_config(Config, {"models": {"raw": {**model, "method": "none"}}}, "motes.toml")


def test_specs_that_cannot_work(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigurationError, match="needs its name on the server"):
        open_relay("raw", "http://10.0.0.1/v1")
    with pytest.raises(ConfigurationError, match="has no option 'attempts'"):
        open_relay("raw", f"{UPSTREAM}?attempts=3")
    monkeypatch.setenv("OTHER_KEY", "abc")
    (upstream,) = open_relay("raw", f"{UPSTREAM}?api_key_env=OTHER_KEY").upstreams
    assert upstream.headers == {"Authorization": "Bearer abc"}
    assert len(open_relay("raw", (UPSTREAM, OTHER)).upstreams) == 2
