"""What happens to every request before its body is read: its id, its host, its caller, and the bound on its body."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from motes.gateway import tracing
from motes.gateway.endpoints import error_response
from motes.gateway.errors import CLIENT_CLOSED_REQUEST, RefusedError, response_to_error
from motes.gateway.forms import is_form
from motes.gateway.logs import REQUEST_ID, RequestLog
from motes.text import shortened

PROTECTED = "/v1/"
"""The beginning of paths that need a key, whether they exist or not."""
PROBES = ("/health", "/ready")
"""Paths that are answered under any host: they say nothing about models or callers."""


class Entrance:
    """The outermost layer of the gateway: an ASGI middleware.

    It gives every request an id. It refuses requests to unknown hosts and requests without a known key, without reading
    their bodies, and bodies that are too large, without reading them to the end; the server drops the rest. It counts
    and logs each request for an answer when it ends, with success or not.

    Args:
        authenticate: the caller of a request with these headers, which `scope["motes.caller"]` then holds. Raises
            RefusedError if there is none.
        hosts: the known hosts; None: any host.
        max_bytes: maximum size of a body.
        max_upload_bytes: maximum size of a form.
        counted: paths of requests that are counted and logged; so is every request to a model.
        count: counts a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticate: Callable[[Headers], Any],
        hosts: Collection[str] | None,
        max_bytes: int,
        max_upload_bytes: int,
        counted: Collection[str],
        count: Callable[[RequestLog], None],
    ) -> None:
        self._app, self._authenticate, self._hosts = app, authenticate, hosts
        self._max_bytes, self._max_upload_bytes = max_bytes, max_upload_bytes
        self._counted, self._count = counted, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = 0
        entry = scope["motes"] = _entry_of(scope)
        is_upload = is_form(Headers(scope=scope).get("content-type", ""))
        max_bytes = self._max_upload_bytes if is_upload else self._max_bytes

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > max_bytes:
                raise HTTPException(413, f"the body is larger than {max_bytes:,} bytes")
            return message

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                tracing.note(
                    {"motes.request": entry.request, "motes.caller": entry.caller, "gen_ai.request.model": entry.model}
                )
                names = (b"x-request-id", b"request-id")  # OpenAI's and Anthropic's
                headers = [*message["headers"], *((name, entry.request.encode()) for name in names)]
                if entry.fallback:
                    headers.append((b"x-motes-fallback", b"no reward model"))
                if ignored := scope.get("motes.ignored"):
                    headers.append((b"x-motes-ignored", header_list(ignored)))
                if "motes.caller" in scope:
                    state = await scope["motes.caller"][0].quotas.headers()
                    headers += [(name.encode(), value.encode()) for name, value in state.items()]
                message = {**message, "headers": headers}
            await send(message)

        try:
            try:
                self._check(scope)
            except RefusedError as refusal:
                await _respond_to_error(refusal, entry, scope["path"], send_with_id)
            else:
                await self._app(scope, receive_within_limit, send_with_id)
        except Exception as error:  # an unexpected one
            if entry.status is None:  # respond here, so that the connection stays open
                await _respond_to_error(error, entry, scope["path"], send_with_id)
            else:
                entry.status, body, _ = response_to_error(error, entry.request)
                entry.note_error(body)
                raise
        finally:
            if entry.endpoint in self._counted or entry.model:
                entry.status, entry.seconds = entry.status or 500, time.perf_counter() - entry.began
                if entry.status == CLIENT_CLOSED_REQUEST:
                    entry.error = "client_disconnected"
                self._count(entry)
                entry.write(tracing.identity())

    def _check(self, scope: Scope) -> None:
        """Find out who sends a request.

        Raises:
            RefusedError: its host is not known, or its key is missing or not known.
        """
        headers, path = Headers(scope=scope), scope["path"]
        if self._hosts is not None and path not in PROBES and not is_known_host(headers.get("host", ""), self._hosts):
            raise RefusedError(
                "this gateway has no keys and answers only under the names of this machine: use http://127.0.0.1, or "
                "add the name to `hosts` in its configuration",
                status=403,
                code="unknown_host",
            )
        if path.startswith(PROTECTED):
            scope["motes.caller"] = self._authenticate(headers)


def _entry_of(scope: Scope) -> RequestLog:
    """The log entry of a request, with the id that the client gave it, if that can be logged."""
    client = scope.get("client") or ("",)
    entry = RequestLog(endpoint=scope["path"], client=shortened(str(client[0]), 64))
    request_id = Headers(scope=scope).get("x-request-id", "").strip()
    if REQUEST_ID.fullmatch(request_id):
        entry.request = request_id
    return entry


async def _respond_to_error(
    error: Exception, entry: RequestLog, path: str, send: Callable[[Message], Awaitable[None]]
) -> None:
    response = error_response(error, entry, path)

    async def receive_nothing() -> Message:
        return {"type": "http.disconnect"}

    await response({"type": "http"}, receive_nothing, send)


def header_list(names: Sequence[str]) -> bytes:
    """The names of fields as the value of a header: at most 20, and what a header cannot hold as "?"."""
    listed = [re.sub(r"[^!-+\--~]", "?", shortened(name, 64)) for name in names[:20]]
    return ", ".join(listed + ["..."] * (len(names) > 20)).encode()


def is_known_host(header: str, hosts: Collection[str]) -> bool:
    """Whether the header `Host` names this machine itself, or one of `hosts`. A page of another site whose name an
    attacker has pointed at this machine (DNS rebinding) sends its own name."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        name = name.rstrip(".")
        return name == "localhost" or name.endswith(".localhost") or name in {host.lower() for host in hosts}
