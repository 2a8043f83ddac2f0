"""A check that the upstream models of the virtual models can be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from motes.errors import MotesError
from motes.gateway.answering import Served
from motes.protocols import LanguageModelTraits

PATIENCE, MAX_AGE = 5.0, 1.0
"""Seconds that an upstream model has to answer, and seconds for which its answer is reused, so that frequent checks of
the gateway do not all reach the upstream models."""


class Readiness:
    """Checks each upstream model once, for all virtual models that use it."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = models
        self._check: asyncio.Task[dict[str, list[str]]] | None = None  # the current or latest one
        self._expires = 0.0

    async def missing(self) -> dict[str, list[str]]:
        """The roles of the unreachable upstream models, by the virtual model that cannot answer because of them."""
        now = asyncio.get_running_loop().time()
        if self._check is None or (self._check.done() and now >= self._expires):
            self._check = asyncio.create_task(self._find_missing())
        return await asyncio.shield(self._check)

    async def _find_missing(self) -> dict[str, list[str]]:
        upstreams = {name: served.needed for name, served in self._models.items()}
        distinct = {id(model): model for roles in upstreams.values() for model in roles.values()}
        is_ready = dict(zip(distinct, await asyncio.gather(*map(_is_ready, distinct.values())), strict=True))
        self._expires = asyncio.get_running_loop().time() + MAX_AGE
        missing = {
            name: [role for role, model in roles.items() if not is_ready[id(model)]]
            for name, roles in upstreams.items()
        }
        return {name: roles for name, roles in missing.items() if roles}


async def _is_ready(upstream: object) -> bool:
    ready = LanguageModelTraits(upstream).ready  # reward models have the same trait
    if ready is None:  # the model is in this process
        return True
    try:
        async with asyncio.timeout(PATIENCE):
            await ready()
    except (MotesError, TimeoutError):
        return False
    return True
