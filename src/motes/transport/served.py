"""The base class of models behind a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from motes.protocols import RequestObserver
from motes.transport.address import Address
from motes.transport.client import Client

T = TypeVar("T")


class ServedModel:
    """A model behind a server."""

    def __init__(self, client: Client, address: Address) -> None:
        self.client = client
        self.address = address

    async def ready(self) -> None:
        """Check once that the server answers.

        Raises:
            ServerError, UnauthorizedError: it does not.
        """
        await self.client.get(f"{self.address.base}/models", attempts=1)

    def watch_requests(self, observe: RequestObserver) -> None:
        """Call `observe` after each attempt of a request to the server, from now on."""
        self.client.observe = observe

    async def aclose(self) -> None:
        """Close this event loop's connections; otherwise they are closed with the loop."""
        await self.client.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.address)!r})"


def now(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, from a thread with its own event loop: the caller's thread may have a running one."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(asyncio.run(work))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="motes-probe", daemon=True).start()
    return outcome.result()
