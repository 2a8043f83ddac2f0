"""Logs as JSON Lines. For a request they contain the caller, the model and the outcome, never its texts or a key."""

from __future__ import annotations

import logging
import secrets
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from motes.text import json_line

log = logging.getLogger(__name__)


@dataclass
class RequestLog:
    """A request's entry in logs and metrics, filled in while the request is handled.

    Attributes:
        request: the request's id in logs and in the header X-Request-ID.
        status: of the response, or of the error that ended its stream; None before the response starts.
        seconds: from the request's arrival to its end.
    """

    request: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    endpoint: str = ""
    model: str = ""
    caller: str = ""
    particles: int = 0
    status: int | None = None
    seconds: float = 0.0

    def write(self, more: Mapping[str, str]) -> None:
        """Log the entry, with further fields."""
        fields = {**asdict(self), "seconds": round(self.seconds, 4), **more}
        log.info("%s %d", self.endpoint, self.status, extra={"fields": fields})


class JSONLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, message, the record's `fields`, and its traceback, which has
    the places in the code and the type of the error, but not its text: that may quote a conversation."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage().rstrip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json_line(entry)

    def formatException(self, exc_info: Any) -> str:  # noqa: N802 (the name in `logging`)
        kind, _, places = exc_info
        return "".join([*traceback.format_tb(places), getattr(kind, "__name__", "")])


def to_stream() -> None:
    """Write all logs to standard error, from now on: those of motes, and the warnings of its libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines())
    logging.getLogger().addHandler(handler)
    logging.getLogger("motes").setLevel(logging.INFO)
    logging.captureWarnings(True)
