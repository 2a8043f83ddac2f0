"""OpenAI's responses and Anthropic's messages, for tests of both: how each asks, and where it has what was said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2


@dataclass(frozen=True)
class Format:
    """One of the formats.

    Attributes:
        question: the field with the conversation.
        needed: other fields that every request has.
        limit, thoughts: what it calls the limit on tokens, and the conversation in errors.
        heartbeat: the first line of one.
    """

    path: str
    question: str
    needed: tuple[tuple[str, Any], ...]
    limit: str
    heartbeat: str

    def body(self, question: str, **fields: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": question}]
        return {"model": "story", self.question: turns, "seed": 5, **dict(self.needed), **fields}

    def ask(
        self, client: httpx2.Client, question: str, headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx2.Response:
        return client.post(self.path, json=self.body(question, **fields), headers=headers or {})

    def said(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        """The parts of an answer: their kinds, and their texts."""
        if self is MESSAGES:
            return [(block["type"], block["thinking" if "thinking" in block else "text"]) for block in body["content"]]
        parts = [(item["type"], part) for item in body["output"] for part in item.get("content") or item["summary"]]
        return [(kind, part["text"]) for kind, part in parts]

    def error(self, response: httpx2.Response, status: int) -> tuple[str, str]:
        """The type of an error and its text with the field at fault, once its form has been checked."""
        assert response.status_code == status, response.text
        body = response.json()
        if self is MESSAGES:
            assert set(body) == {"type", "error", "request_id"}
            assert body["type"] == "error"
            assert body["request_id"] == response.headers["request-id"]
            assert set(body["error"]) == {"type", "message"}
            return body["error"]["type"], body["error"]["message"]
        assert set(body) == {"error"}
        error = body["error"]
        assert set(error) == {"message", "type", "param", "code"}
        named = error["message"] if error["message"].startswith(str(error["param"])) else None
        return error["type"], named or f"{error['param']}: {error['message']}"


RESPONSES = Format("/v1/responses", "input", (), "max_output_tokens", ": the particles are at work")
MESSAGES = Format("/v1/messages", "messages", (("max_tokens", 500),), "max_tokens", "event: ping")
FORMATS = {"responses": RESPONSES, "messages": MESSAGES}


def events(text: str) -> Iterator[dict[str, Any]]:
    """The events of a stream; each has its type as its name, too."""
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n") if not block.startswith(":") else ("", "")
        if data:
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            yield event
