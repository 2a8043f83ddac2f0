"""What is asked for in one turn of the event loop, carried out together, and dropped when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from motes.errors import MotesError

T = TypeVar("T")
AskT = TypeVar("AskT", bound="Ask[Any]")


class Ask(Generic[T]):
    """Something that is asked for, and the future of its outcome: what was wanted, or why there is none."""

    future: asyncio.Future[T | MotesError]

    def settle(self, outcome: T | MotesError) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class Turns(Generic[AskT, T]):
    """Collects what concurrent calls ask for until the event loop has run everything that was ready, then hands it to
    `carry_out`. Waits for no clock.

    Whatever works for asks is started by `start`, and is cancelled when the last of its asks is.
    """

    def __init__(self, carry_out: Callable[[list[AskT]], Coroutine[Any, Any, None]]) -> None:
        self._carry_out = carry_out
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, list[AskT]] = WeakKeyDictionary()
        self._at_work: set[asyncio.Task[None]] = set()

    async def submit(self, asks: Sequence[AskT]) -> list[T | MotesError]:
        """Their outcomes, in order. Cancelling the call withdraws what it asked for."""
        loop = asyncio.get_running_loop()
        for ask in asks:
            ask.future = loop.create_future()
        waiting = self._waiting.setdefault(loop, [])
        if not waiting:
            loop.call_soon(self._flush, loop)
        waiting.extend(asks)
        outcomes: list[T | MotesError] = await asyncio.gather(*(ask.future for ask in asks))
        return outcomes

    def start(self, work: Coroutine[Any, Any, None], asks: Sequence[AskT]) -> None:
        """Do `work`, which settles `asks`, beside everything else. What it raises is the outcome of those left."""

        async def guarded() -> None:
            try:
                await work
            except MotesError as error:
                for ask in asks:
                    ask.settle(error)
            except asyncio.CancelledError:
                for ask in asks:
                    ask.future.cancel()
                raise
            except Exception as error:  # whatever went wrong belongs to those who wait
                for ask in asks:
                    if not ask.future.done():
                        ask.future.set_exception(error)

        task = asyncio.ensure_future(guarded())
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        left = len(asks)

        def done(future: asyncio.Future[Any]) -> None:
            nonlocal left
            left -= 1
            if left == 0 and any(ask.future.cancelled() for ask in asks):
                task.cancel()

        for ask in asks:
            ask.future.add_done_callback(done)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        asks = [ask for ask in self._waiting.pop(loop, ()) if not ask.future.done()]
        if asks:
            self.start(self._carry_out(asks), asks)
