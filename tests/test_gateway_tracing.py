"""Traces of the gateway, with OpenTelemetry's own exporter for tests, which is the process's from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import gateways
import motes
import worlds
from formats import FORMATS
from motes.tasks import TASKS
from motes.transport import Client

TASK = TASKS["arithmetic"]()
QUESTION = TASK.problems(limit=6)[5].question
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config()) as client:
        yield client


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(autouse=True)
def clean(spans):
    spans.clear()


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_every_endpoint_for_answers_has_traces(client, spans, format):
    assert format.ask(client, QUESTION).status_code == 200
    while len(done := {span.name for span in spans.get_finished_spans()}) < 3:
        pass
    assert done == {f"POST {format.path}", "wait for room", "run"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_wait_its_run_and_every_round(client, spans, stream):
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = {"model": "story", "messages": [{"role": "user", "content": QUESTION}], "seed": 1}
    response = client.post(CHAT, json={**body, "stream": stream}, headers={"traceparent": caller})
    assert response.status_code == 200
    while len(done := {span.name: span for span in spans.get_finished_spans()}) < 3:
        pass
    request, wait, run = done[f"POST {CHAT}"], done["wait for room"], done["run"]
    assert f"{request.context.trace_id:032x}" == caller.split("-")[1]
    assert request.parent.span_id == int(caller.split("-")[2], 16)
    assert wait.parent.span_id == run.parent.span_id == request.context.span_id
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["motes.request"] == response.headers["x-request-id"]
    result = motes.solve(
        QUESTION, lm=worlds.language_model(), reward=worlds.reward_model(), method=motes.ParticleFilter(8), seed=1,
        task=TASK,
    )  # fmt: skip
    assert [event.attributes["motes.ess"] for event in run.events] == [record.ess for record in result.records]
    assert run.attributes["gen_ai.usage.output_tokens"] == result.usage.generated_tokens
    assert run.attributes["motes.method"] == "pf"
    told = " ".join(str(span.attributes) + str([e.attributes for e in span.events]) for span in done.values())
    assert "boxed" not in told, "nothing of what was said"


def test_a_failure_is_noted(spans):
    told = gateways.config(models={"story": {**gateways.MODEL, "lm": "worlds:failing"}})
    with gateways.gateway(told) as client:
        body = {"model": "story", "messages": [{"role": "user", "content": QUESTION}]}
        assert client.post(CHAT, json=body).status_code == 502
    (run,) = [span for span in spans.get_finished_spans() if span.name == "run"]
    assert run.status.status_code is trace.StatusCode.ERROR


def test_servers_are_asked_in_the_runs_name(spans):
    """So that one which makes traces itself is seen in the same one."""
    seen = []

    async def server(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("traceparent"))
        return httpx2.Response(200, json={})

    connection = Client("http://server/v1", transport=httpx2.MockTransport(server))
    with trace.get_tracer("test").start_as_current_span("outer") as span:
        asyncio.run(connection.get("models"))
    asyncio.run(connection.get("models"))
    assert seen[0].split("-")[1] == f"{span.get_span_context().trace_id:032x}"
    assert seen[1] is None
