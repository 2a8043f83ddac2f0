"""Models whose servers did not answer when the gateway started: they are opened as soon as the servers do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from motes.errors import EngineError
from motes.gateway.errors import describe

log = logging.getLogger(__name__)

PAUSE = 5.0
"""Seconds between two attempts to open a model."""


class Unopened:
    """Stands for a model whose server did not answer when the gateway started.

    Args:
        open: opens the model.
        places: of the model in the configuration, for the log.
        error: of the latest attempt.
    """

    def __init__(self, open: Callable[[], Any], places: str, error: Exception) -> None:
        self.places, self.error = places, error
        self._open = open

    def absence(self) -> EngineError:
        """A new error that says that the model is missing, because of the error of the latest attempt to open it."""
        error = EngineError(f"{self.places} is not open yet: start its server")
        error.__cause__ = self.error
        return error

    async def ready(self) -> None:
        """Raise an EngineError: the model cannot be used."""
        raise self.absence()

    async def opened(self) -> Any:
        """The model, as soon as it can be opened. The log has a warning for each new reason why it cannot."""
        while True:
            await asyncio.sleep(PAUSE)
            try:
                model = await asyncio.to_thread(self._open)
            except Exception as error:  # of the user's own code, too: the next attempt may succeed
                if describe(error) != describe(self.error):
                    log.warning("%s cannot be opened: %s", self.places, describe(error))
                self.error = error
            else:
                log.info("%s is open", self.places)
                return model
