"""OpenTelemetry traces: each request has a span for its wait and one for its run, with an event for every round.

FastAPI makes the request's span. OpenTelemetry's environment variables configure where spans are sent, if anywhere.
Requests to upstream servers carry the run's trace (the header `traceparent`, see `motes.transport`): a server that
traces requests itself, such as vLLM, adds its spans to the same trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

from motes import __version__
from motes.core import Record, Result


def settings(*paths: str) -> Any:
    """FastAPI's telemetry settings: only requests to these paths have traces, and traces contain no texts."""
    unused = {"metrics": False, "logs": False, "operation_spans": False}
    return {"auto_configure": True, "exclude": lambda scope: scope.get("path") not in paths, **unused}


@contextmanager
def span(name: str) -> Iterator[None]:
    """A new span of the current request. It has the type of an error that ends it, and not the error's text, which may
    quote a conversation."""
    tracer = trace.get_tracer("motes", __version__)
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as current:
        try:
            yield
        except Exception as error:
            current.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
            raise


def note(attributes: Mapping[str, str | float | None]) -> None:
    """Set attributes of the current span, except those without a value."""
    values = {name: value for name, value in attributes.items() if value is not None and value != ""}
    trace.get_current_span().set_attributes(values)


def note_round(record: Record) -> None:
    """Add an event for a round to the current span."""
    trace.get_current_span().add_event(
        "round",
        {
            "motes.ess": record.ess,
            "motes.particles": len(record.trajectories),
            "motes.resampled": record.resampled,
            "motes.finished": sum(t.finished is not None for t in record.trajectories),
            "motes.generated_tokens": record.usage.generated_tokens,
            "motes.reward_tokens": record.usage.reward_tokens,
            "motes.sweep": record.sweep,
            "motes.chain": record.chain,
        },
    )


def note_result(result: Result) -> None:
    """Set attributes of the current span to a run's result, without its texts."""
    note(
        {
            "motes.rounds": len(result.records),
            "motes.confidence": result.confidence,
            "motes.stopped": result.stopped,
            "motes.dropped": len(result.dropped),
            "motes.reward_tokens": result.usage.reward_tokens,
            "gen_ai.usage.output_tokens": result.usage.generated_tokens,
        }
    )


def identity() -> dict[str, str]:
    """The id of the current trace, for logs."""
    context = trace.get_current_span().get_span_context()
    return {"trace": f"{context.trace_id:032x}"} if context.is_valid else {}
