"""Logs as JSON, a line for each thing that happened; of requests who asked what for and how it ended, never what was
said, and no key."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from motes.text import json_line


class JSONLines(logging.Formatter):
    """A record as one line of JSON: time, level, message, whatever fields it was given, and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json_line(told)


def to_stream(stream: TextIO = sys.stderr) -> None:
    """Write what motes logs to a stream, from now on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    logger = logging.getLogger("motes")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
