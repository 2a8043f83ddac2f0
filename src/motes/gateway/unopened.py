"""Models whose servers did not answer when the gateway started: they are opened as soon as the servers do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any

from motes.errors import MotesError
from motes.gateway.answering import OPENERS, Served, Unopened
from motes.gateway.errors import describe

log = logging.getLogger(__name__)

PAUSE = 5.0
"""Seconds between two attempts to open the models that are missing."""


async def open_the_rest(models: MutableMapping[str, Served], opened: Callable[[], None]) -> None:
    """Open the models that are missing, again and again, until all are there.

    Args:
        models: the virtual models, by name; each is replaced when its models are there.
        opened: called after each replacement.
    """
    while missing := {model for served in models.values() for model in served.unopened}:
        await asyncio.sleep(PAUSE)
        for model in missing:
            if (there := await _open(model)) is not None:
                for name, served in models.items():
                    found = {field: there for field in OPENERS if getattr(served, field) is model}
                    models[name] = replace(served, **found)
                opened()


async def _open(model: Unopened) -> Any:
    """The model; None: its server still does not answer."""
    try:
        return await asyncio.to_thread(model.open)
    except MotesError as error:
        log.warning("a model cannot be opened: %s", describe(error))
        return None
