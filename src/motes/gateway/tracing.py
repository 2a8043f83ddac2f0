"""OpenTelemetry traces: for each request a span for its wait and one for its run, with an event for every round.

FastAPI makes the request's span. OpenTelemetry's environment variables say where spans are sent, if anywhere. Requests
to the servers behind the gateway carry the run's trace (the header `traceparent`, see `motes.transport`): a server that
makes traces itself, as vLLM does, adds its spans to the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

from motes import __version__
from motes.core import Record, Result
from motes.errors import MissingExtraError

try:
    from opentelemetry import trace
except ImportError as error:
    raise MissingExtraError("the gateway", "serve") from error


def settings(*paths: str) -> Any:
    """For FastAPI: requests to these paths alone have traces, which hold nothing of what was said."""

    def exclude(scope: MutableMapping[str, Any]) -> bool:
        return scope.get("path") not in paths

    own = {"metrics": False, "logs": False, "operation_spans": False}
    return {"auto_configure": True, "exclude": exclude, **own}


def span(name: str) -> AbstractContextManager[Any]:
    """A part of the request that is going on; an error that ends it is noted."""
    return trace.get_tracer("motes", __version__).start_as_current_span(name)


def note(attributes: Mapping[str, str | float | None]) -> None:
    """Of the part that is going on."""
    known = {name: value for name, value in attributes.items() if value is not None and value != ""}
    trace.get_current_span().set_attributes(known)


def note_round(record: Record) -> None:
    """An event of the run that is going on."""
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
    """What the run that is going on came to; nothing of what was said."""
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
    """The id of the trace that is going on, for logs."""
    context = trace.get_current_span().get_span_context()
    return {"trace": f"{context.trace_id:032x}"} if context.is_valid else {}
