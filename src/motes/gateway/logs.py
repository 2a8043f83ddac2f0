"""Logs as JSON Lines. For a request they contain the caller, the model and the outcome, never its texts or a key."""

from __future__ import annotations

import dataclasses
import logging
import re
import secrets
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from motes.core import Usage
from motes.text import json_line

log = logging.getLogger(__name__)


REQUEST_ID = re.compile(r"[!-~]([ -~]{0,126}[!-~])?")
"""A request's id that a client may choose: up to 128 printable ASCII characters."""


@dataclass
class RequestLog:
    """A request's entry in logs and metrics, filled in while the request is handled.

    Attributes:
        request: the request's id in logs and in the header X-Request-ID: the client's, or a new one.
        client: the address of the client.
        method: the spec of the method of the run.
        status: of the response, or of the error that ended its stream; None before the response starts.
        error: the code of the error; None: there is none.
        fallback: whether the reward model failed, and the answer came without it.
        stopped: the limit that cut the run short, see `motes.Result`.
        usage: the tokens of the run, as far as they are counted.
        first_text: seconds from the request's arrival until a stream sends its first text; None: it sent none.
        seconds: from the request's arrival to its end.
        began: the time of the arrival, by `time.perf_counter`.
    """

    request: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    endpoint: str = ""
    client: str = ""
    model: str = ""
    caller: str = ""
    method: str = ""
    particles: int = 0
    stream: bool = False
    status: int | None = None
    error: str | None = None
    fallback: bool = False
    stopped: str | None = None
    usage: Usage = Usage()  # noqa: RUF009 (frozen)
    first_text: float | None = None
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def note_text(self) -> None:
        """Note that a stream sends text now."""
        if self.first_text is None:
            self.first_text = time.perf_counter() - self.began

    def note_error(self, body: Mapping[str, Any]) -> None:
        """Note the error that a body in OpenAI's format reports."""
        self.error = body["error"]["code"] or body["error"]["type"]

    def write(self, more: Mapping[str, str]) -> None:
        """Log the entry, with further fields."""
        usage = self.usage
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        del fields["usage"], fields["began"]
        fields |= {
            "generated_tokens": usage.generated_tokens,
            "prefill_tokens": usage.prefill_tokens,
            "reward_tokens": usage.reward_tokens,
            "first_text": None if self.first_text is None else round(self.first_text, 4),
            "seconds": round(self.seconds, 4),
            **more,
        }
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
