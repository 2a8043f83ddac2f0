"""A gateway that really listens, for tests: its server in a thread of its own, on a port that the system chooses."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator, Mapping

import httpx2

import motes
import worlds
from motes.gateway.answering import Served, open_models
from motes.gateway.app import application
from motes.gateway.config import Config
from motes.gateway.reloading import ConfigFile
from motes.gateway.server import Server

MODEL = {
    "lm": "worlds:language_model", "reward": "worlds:reward_model", "task": "arithmetic", "particles": 8,
    "max_particles": 32, "methods": ["majority", "bon", "pg", "pf:ess_threshold=1"], "max_deadline": 100,
}  # fmt: skip


def config(**changes: object) -> Config:
    return Config.model_validate({"models": {"story": MODEL}, **changes})


class Stepwise(worlds.StoryLanguageModel):
    """The first step of an answer is free, the second waits to be let go; and it may fail then."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails, self._free = fails, asyncio.Event()
        self.waits, self.cancelled = threading.Event(), threading.Event()

    def let_go(self) -> None:
        """From another thread, once it waits."""
        assert self.waits.wait(10)
        self.loop.call_soon_threadsafe(self._free.set)

    async def extend(self, trajectories, sampling, seeds):
        self.loop = asyncio.get_running_loop()
        if trajectories[0].depth:
            self.waits.set()
            try:
                await self._free.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            if self.fails:
                raise RuntimeError("the password is 1234")
        return await super().extend(trajectories, sampling, seeds)


class Thinking(worlds.StoryLanguageModel):
    """Thinks in a step of its own before it answers 0 or 1."""

    async def extend(self, trajectories, sampling, seeds):
        return [
            motes.Step(f"</think>\n\n\\boxed{{{seed % 2}}}", "eos") if trajectory.depth
            else motes.Step("<think>\nThat is easy.\n\n", "step")
            for trajectory, seed in zip(trajectories, seeds, strict=True)
        ]  # fmt: skip


class Cut(worlds.StoryLanguageModel):
    """Is cut off by a limit on tokens."""

    async def extend(self, trajectories, sampling, seeds):
        return [motes.Step("I count about", "length") for _ in trajectories]


def over(
    lm: worlds.StoryLanguageModel, told: Config | None = None, file: ConfigFile | None = None, **changes: object
) -> contextlib.AbstractContextManager[httpx2.Client]:
    """A gateway over another language model."""
    told = config(**changes) if told is None else told
    return gateway(told, {name: dataclasses.replace(model, lm=lm) for name, model in open_models(told).items()}, file)


@contextlib.contextmanager
def gateway(
    told: Config, models: Mapping[str, Served] | None = None, file: ConfigFile | None = None
) -> Iterator[httpx2.Client]:
    """A client of a gateway of that configuration."""
    app = application(told, open_models(told) if models is None else models, file)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(app)
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
