"""A gateway that really listens, for tests: uvicorn in a thread of its own, on a port that the system chooses."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

import httpx2
import uvicorn

from motes.gateway.answering import Served, open_models
from motes.gateway.app import application
from motes.gateway.config import Config

MODEL = {
    "lm": "worlds:language_model", "reward": "worlds:reward_model", "task": "arithmetic", "particles": 8,
    "max_particles": 32, "methods": ["majority", "bon", "pg", "pf:ess_threshold=1"], "max_deadline": 100,
}  # fmt: skip


def config(**changes: object) -> Config:
    return Config.model_validate({"models": {"story": MODEL}, **changes})


@contextlib.contextmanager
def gateway(told: Config, models: Mapping[str, Served] | None = None) -> Iterator[httpx2.Client]:
    """A client of a gateway of that configuration."""
    app = application(told, open_models(told) if models is None else models)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx2.Client(base_url=address, timeout=60) as client:
            client.gateway = app.state.gateway
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
