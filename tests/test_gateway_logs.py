"""What the gateway logs about a request, and the metrics of processes and times."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import gateways
import motes
from motes.errors import ConfigurationError
from motes.gateway.config import Config
from motes.gateway.keys import digest

CHAT = "/v1/chat/completions"
BODY = {"model": "story", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "motes.gateway.logs")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    key = {"name": "team-a", "sha256": digest("secret")}
    with gateways.gateway(gateways.config(keys=[key])) as client:
        client.headers["authorization"] = "Bearer secret"
        yield client


def entries(caplog: pytest.LogCaptureFixture, number: int = 1) -> list[dict[str, Any]]:
    """The fields of the lines about requests. A request is logged a moment after its client has the response."""
    deadline = time.monotonic() + 60
    while len(found := [record for record in caplog.records if record.name == "motes.gateway.logs"]) < number:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return [record.fields for record in found]


def test_an_answer(client, caplog):
    answer = client.post(CHAT, json={**BODY, "motes": {"method": "pf:ess_threshold=1", "particles": 4}})
    usage = answer.json()["motes"]["usage"]
    (told,) = entries(caplog)
    assert told["seconds"] > 0
    assert {name: value for name, value in told.items() if name != "seconds"} == {
        "request": answer.headers["x-request-id"], "endpoint": CHAT, "client": "127.0.0.1", "model": "story",
        "caller": "team-a", "method": "pf:ess_threshold=1", "particles": 4, "stream": False, "status": 200,
        "error": None, "fallback": False, "stopped": None, "generated_tokens": usage["generated_tokens"],
        "prefill_tokens": usage["prefill_tokens"], "reward_tokens": usage["reward_tokens"], "first_text": None,
    }  # fmt: skip
    assert usage["generated_tokens"] > 0


def test_a_stream(client, caplog):
    events = client.post(CHAT, json={**BODY, "stream": True}).text
    assert "[DONE]" in events
    (told,) = entries(caplog)
    assert (told["stream"], told["method"], told["status"], told["error"]) == (True, "pf", 200, None)
    assert 0 < told["first_text"] <= told["seconds"]
    assert told["generated_tokens"] > 0


def test_errors_have_their_codes(client, caplog):
    requests = [
        ({"model": "other"}, {}, 404, "model_not_found"),
        ({"n": 99}, {}, 400, "invalid_request_error"),
        ({}, {"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"motes": {"method": "pff"}}, {}, 400, "invalid_request_error"),
    ]
    for fields, headers, status, _ in requests:
        assert client.post(CHAT, json={**BODY, **fields}, headers=headers).status_code == status
    told = entries(caplog, len(requests))
    assert [(entry["status"], entry["error"]) for entry in told] == [(status, code) for *_, status, code in requests]
    assert [entry["caller"] for entry in told] == ["team-a", "team-a", "", "team-a"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails(stream, caplog):
    lm = gateways.Stepwise(fails=True)
    lm._free.set()
    with gateways.over(lm) as client:
        client.post(CHAT, json={**BODY, "stream": stream})
        (told,) = entries(caplog)
    assert (told["status"], told["error"], told["stream"]) == (500, "server_error", stream)
    assert told["generated_tokens"] > 0, "of the first step"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(stream, caplog):
    lm = gateways.Stepwise()
    with gateways.over(lm) as client:
        with pytest.raises(httpx2.ReadTimeout):
            client.post(CHAT, json={**BODY, "stream": stream}, timeout=0.5)
        (told,) = entries(caplog)
    assert (told["status"], told["error"]) == (499, "client_disconnected")


def test_a_run_that_is_cut_short(caplog):
    with gateways.over(gateways.Stepwise()) as client:
        client.post(CHAT, json={**BODY, "motes": {"deadline": 0.2}})
        (told,) = entries(caplog)
    assert told["stopped"] == "deadline"


@pytest.mark.parametrize("name", ["abc", "2f6b-41", "a" * 128, "with blanks within", "~!@#$%^&*()", "req_1"])
def test_the_clients_id_is_kept(client, caplog, name):
    answer = client.post(CHAT, json=BODY, headers={"X-Request-ID": name})
    assert answer.headers["x-request-id"] == name
    assert entries(caplog)[0]["request"] == name
    assert client.get("/health", headers={"X-Request-ID": name}).headers["x-request-id"] == name


@pytest.mark.parametrize("name", [b"", b"a" * 129, "é".encode(), b"a\tb", b"a\xff"])
def test_an_id_that_cannot_be_logged_is_replaced(client, caplog, name):
    answer = client.post(CHAT, json=BODY, headers={"X-Request-ID": name})
    assert re.fullmatch("req_[0-9a-f]{24}", answer.headers["x-request-id"])
    assert entries(caplog)[0]["request"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        ([], "1.2.3.4", "127.0.0.1"),
        (["10.0.0.0/8"], "1.2.3.4", "127.0.0.1"),
        (["127.0.0.1"], "", "127.0.0.1"),
        (["127.0.0.1"], "1.2.3.4", "1.2.3.4"),
        (["127.0.0.0/8"], "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (["127.0.0.1", "10.0.0.0/8"], "6.6.6.6, 1.2.3.4, 10.1.1.1", "1.2.3.4"),
        (["127.0.0.1"], "2001:db8::1", "2001:db8::1"),
        (["127.0.0.1"], "x" * 500, "x" * 63 + "…"),
    ],
)
def test_the_address_of_a_client_behind_proxies(trusted, forwarded, address, caplog):
    with gateways.gateway(gateways.config(trusted_proxies=trusted)) as client:
        client.post(CHAT, json=BODY, headers={"X-Forwarded-For": forwarded})
    assert entries(caplog)[0]["client"] == address


@pytest.mark.parametrize("proxies", [["*"], ["proxy.example"], ["10.0.0.1/8"], ["300.0.0.1"], [""], "10.0.0.1", [1]])
def test_proxies_are_addresses(proxies):
    with pytest.raises(ConfigurationError, match="trusted_proxies"):
        Config.bundled(trusted_proxies=proxies)


def samples(client: httpx2.Client) -> dict[tuple[str, str], float]:
    """The values of /metrics, by name and model."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, sample.labels.get("model", "")): sample.value for family in families for sample in family.samples
    }


def test_metrics_of_times():
    """Of streams the time to the first text; of refusals none."""
    with gateways.gateway(gateways.config()) as client:
        client.post(CHAT, json=BODY)
        assert ("motes_first_text_seconds_count", "story") not in samples(client)
        for _ in range(2):
            client.post(CHAT, json={**BODY, "stream": True})
        client.post(CHAT, json={**BODY, "n": 99})
        deadline = time.monotonic() + 60
        while (told := samples(client)).get(("motes_request_seconds_count", "story")) != 3:
            assert time.monotonic() < deadline
        assert told["motes_first_text_seconds_count", "story"] == 2
        assert 0 < told["motes_first_text_seconds_sum", "story"] < told["motes_request_seconds_sum", "story"]


def test_metrics_of_the_process(client):
    text = client.get("/metrics").text
    assert f'motes_build_info{{version="{motes.__version__}"}} 1.0' in text
    told = samples(client)
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total", "python_info"):
        assert math.isfinite(told[name, ""])
        assert told[name, ""] > 0
    assert "python_gc_collections_total" in text
