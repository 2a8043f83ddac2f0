"""Whether what the virtual models stand on can be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from motes.errors import MotesError
from motes.gateway.answering import Served
from motes.protocols import LanguageModelTraits

PATIENCE, FRESH = 5.0, 1.0
"""Seconds that an upstream has to answer, and that an answer is good for: whoever asks often asks the gateway only."""


class Readiness:
    """Asks every upstream once for all the models that stand on it."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = models
        self._asking: asyncio.Task[dict[str, list[str]]] | None = None
        self._until = 0.0

    async def missing(self) -> dict[str, list[str]]:
        """For each virtual model that cannot answer, which of its models are out of reach."""
        now = asyncio.get_running_loop().time()
        if self._asking is None or (self._asking.done() and now >= self._until):
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> dict[str, list[str]]:
        stands_on = {
            name: {"language model": model.lm, "reward model": model.reward, "outcome reward": model.outcome_reward}
            for name, model in self._models.items()
        }
        upstreams = {id(one): one for roles in stands_on.values() for one in roles.values() if one is not None}
        found = dict(zip(upstreams, await asyncio.gather(*map(_reached, upstreams.values())), strict=True))
        self._until = asyncio.get_running_loop().time() + FRESH
        missing = {
            name: [role for role, one in roles.items() if one is not None and not found[id(one)]]
            for name, roles in stands_on.items()
        }
        return {name: roles for name, roles in missing.items() if roles}


async def _reached(upstream: object) -> bool:
    ready = LanguageModelTraits.of(upstream).ready  # as reward models have it
    if ready is None:  # it is in this process
        return True
    try:
        await asyncio.wait_for(ready(), PATIENCE)
    except (MotesError, TimeoutError):
        return False
    return True
