"""The gateway's endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from motes import __version__
from motes.errors import MotesError
from motes.gateway import tracing
from motes.gateway.answering import Served
from motes.gateway.config import Config
from motes.gateway.endpoints import ENDPOINTS, error_response
from motes.gateway.endpoints.endpoint import Endpoint
from motes.gateway.entrance import Entrance
from motes.gateway.gateway import Gateway
from motes.gateway.logs import RequestLog
from motes.gateway.options import find_model
from motes.gateway.playground import html
from motes.gateway.relay import Relay
from motes.gateway.reloading import ConfigFile
from motes.gateway.replies import model_card
from motes.gateway.unopened import open_the_rest

PAGE_HEADERS = {"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""Forbid other pages to embed the page at `/`."""


def application(config: Config, models: Mapping[str, Served], file: ConfigFile | None = None) -> FastAPI:
    """The gateway as an ASGI application. With a file, it watches the file and replaces the keys and the
    limits when these change."""
    gateway = Gateway(config, models, file)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        watching = None if gateway.reloading is None else asyncio.create_task(gateway.reloading.watch())
        opening = asyncio.create_task(open_the_rest(gateway.models, lambda: gateway.metrics.watch(gateway.models)))
        async with contextlib.nullcontext() if gateway.shared is None else gateway.shared.watched():
            yield
            await gateway.drain.finish()
        for served in gateway.models.values():
            if isinstance(served.lm, Relay):
                await served.lm.aclose()
        tasks = [task for task in (watching, opening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(
        title="motes", version=__version__, lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None,
        telemetry=tracing.settings(*ENDPOINTS),
    )  # fmt: skip
    app.state.gateway = gateway
    app.add_middleware(
        Entrance,
        authenticate=gateway.caller,
        hosts=None if config.keys else (config.host, *config.hosts),
        max_bytes=config.limits.body_bytes,
        max_upload_bytes=config.limits.upload_bytes if config.takes_forms else config.limits.body_bytes,
        counted=ENDPOINTS,
        count=gateway.metrics.count_request,
    )

    if config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
            max_age=600,
        )
    if config.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(config.trusted_proxies))

    if config.playground:

        @app.get("/", include_in_schema=False)
        async def playground() -> Response:
            return HTMLResponse(html(), headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the gateway is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Whether all upstream models can be reached: 200, or 503 with the models that cannot, or while closing."""
        missing = {} if gateway.drain.begun else await gateway.readiness.missing()
        status = "closing" if gateway.drain.begun else "unready" if missing else "ready"
        return JSONResponse({"status": status, "missing": missing}, 200 if status == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus' format."""
        text = generate_latest(gateway.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models(http: HTTPRequest) -> dict[str, Any]:
        """The virtual models that this caller may use."""
        _, models = http.scope["motes.caller"]
        return {"object": "list", "data": [model_card(served, gateway.started_at) for served in models.values()]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str, http: HTTPRequest) -> dict[str, Any]:
        """One of the virtual models that this caller may use."""
        _, models = http.scope["motes.caller"]
        return model_card(find_model(models, model)[0], gateway.started_at)

    def answer_at(endpoint: Endpoint[Any]) -> None:
        @app.post(endpoint.path, summary=endpoint.summary)
        async def answer(http: HTTPRequest) -> Response:
            return await gateway.answer(http, endpoint)

    for endpoint in ENDPOINTS.values():
        answer_at(endpoint)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def others(path: str, http: HTTPRequest) -> Response:
        """Any other endpoint of a model without a method."""
        if http.method != "POST":
            allowed = "POST" if http.url.path in ENDPOINTS else "GET, HEAD" if path.split("/")[0] == "models" else None
            raise HTTPException(404) if allowed is None else HTTPException(405, headers={"Allow": allowed})
        return await gateway.answer(http, None)

    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    for kind in (MotesError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _respond_to_error)
    _describe_bodies(app.openapi(), {path: endpoint.kind for path, endpoint in ENDPOINTS.items()})
    return app


def _describe_bodies(description: dict[str, Any], kinds: Mapping[str, type[BaseModel]]) -> None:
    """Add the schemas of request bodies, by path, to an OpenAPI description: FastAPI does not see the bodies, which are
    read after the caller is known."""
    definitions = description.setdefault("components", {}).setdefault("schemas", {})
    for path, kind in kinds.items():
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions |= schema.pop("$defs", {})
        content = {"application/json": {"schema": schema}}
        description["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}


async def _respond_to_error(http: HTTPRequest, error: Exception) -> Response:
    entry: RequestLog = http.scope["motes"]
    return error_response(error, entry, http.url.path)
