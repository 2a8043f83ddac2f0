"""What servers send for models that are passed through, made fit for clients: names, addresses, errors, usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from motes.core import Usage
from motes.gateway.errors import RelayedError
from motes.text import json_line, parse_json
from motes.transport import value_at
from motes.transport.failures import whole_number_of

ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]*://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\[[0-9a-f:]*:[0-9a-f:]*\](?::\d+)?"
)
MAX_MESSAGE = 1000
PASSED_HEADERS = ("content-type", "retry-after")
HEADER = re.compile(r"[ -~]{1,200}")


@dataclass(frozen=True)
class Names:
    """The names that are changed.

    Attributes:
        here: the model's name in the gateway.
        there: its name on the server.
        host: the server's.
    """

    here: str
    there: str
    host: str

    def set_in(self, value: Any) -> None:
        """Write the model's name here in a JSON response, or in an event."""
        for part in _parts(value):
            if part.get("model") == self.there:
                part["model"] = self.here

    def clean(self, text: str) -> str:
        """A text of the server, without addresses, and with the model's name here."""
        text = re.sub(rf"(?<![\w./-]){re.escape(self.there)}(?![\w/-])", lambda _: self.here, text)
        text = ADDRESS.sub("(an address)", text)
        return re.sub(rf"(?<![\w.-]){re.escape(self.host)}(?![\w-])", "(a host)", text)[:MAX_MESSAGE]

    def error(self, value: Any, status: int, retry_after: str | None = None) -> RelayedError:
        """The error that a JSON value of the server reports, in whichever form."""
        inner = value_at(value, ("error",))
        fields = next((each for each in (inner, value) if isinstance(each, dict)), {})
        cleaned = {name: self.clean(text) for name, text in fields.items() if isinstance(text, str)}
        message = cleaned.get("message") or (self.clean(inner) if isinstance(inner, str) else "")
        code = cleaned.get("code", fields.get("code"))
        fields = {"param": cleaned.get("param"), "type": cleaned.get("type"), "code": code}
        return RelayedError(message or f"the model answered {status}", status, fields, retry_after)


def _parts(value: Any) -> list[dict[str, Any]]:
    """Where a response or an event has its model and its usage: itself in chats, and an object within it in events of
    OpenAI's responses and Anthropic's messages."""
    places = (value, value_at(value, ("response",)), value_at(value, ("message",)))
    return [part for part in places if isinstance(part, dict)]


def reports_error(value: Any) -> bool:
    """Whether a JSON value is the report of an error. OpenAI's responses have a field `error`, too."""
    return isinstance(value, dict) and bool(value.get("error")) and not value.keys() & {"id", "choices", "response"}


def counts_of(value: Any) -> dict[str, int]:
    """The numbers of tokens, by kind, in the usage of a JSON response or event of any API, without those that it
    lacks."""
    usage: dict[str, Any] = next((part["usage"] for part in _parts(value) if isinstance(part.get("usage"), dict)), {})

    def number(*path: str) -> int:
        return whole_number_of(value_at(usage, path)) or 0

    prompt = number("prompt_tokens") or number("input_tokens")
    cached = number("prompt_tokens_details", "cached_tokens") or number("input_tokens_details", "cached_tokens")
    details = ("completion_tokens_details", "output_tokens_details")
    counts = {
        "generated": number("completion_tokens") or number("output_tokens"),
        "thought": sum(number(each, name) for each in details for name in ("reasoning_tokens", "thinking_tokens")),
        # Anthropic counts those of the cache apart.
        "prefill": prompt - min(cached, prompt) + number("cache_creation_input_tokens"),
        "cached": min(cached, prompt) + number("cache_read_input_tokens"),
    }
    return {kind: count for kind, count in counts.items() if count}


def usage_of(counts: Mapping[str, int]) -> Usage:
    prefill = counts.get("prefill", 0)
    return Usage(
        generated_tokens=counts.get("generated", 0),
        thought_tokens=counts.get("thought", 0),
        prefill_tokens=prefill,
        prefill_tokens_cached=counts.get("cached", 0),
        computed_prefill_tokens=prefill,
    )


def passed_json(content: bytes, names: Names) -> tuple[bytes, dict[str, int]]:
    """A JSON response as the client gets it, and the numbers of tokens in its usage. Raises a RelayedError if it
    reports one."""
    try:
        value = parse_json(content)
    except ValueError:
        return content, {}
    if reports_error(value):
        raise names.error(value, 502)
    names.set_in(value)
    return json_line(value).encode(), counts_of(value)


def media_type(headers: Mapping[str, str]) -> str:
    return str(headers.get("content-type", "")).partition(";")[0].strip().lower()


def passed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    found = {name: headers.get(name, "") for name in PASSED_HEADERS}
    return {name: value for name, value in found.items() if HEADER.fullmatch(value)}
