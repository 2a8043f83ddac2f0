"""Limits on a whole run, which make every method an anytime method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from motes.core import Stop


@dataclass(eq=False)
class Limits:
    """The limits on a run's time and tokens, which all parts of the run share.

    Args:
        deadline: time on the clock of the run's event loop, in seconds; None: no deadline.
        token_budget: generated tokens of all trajectories together, pruned ones included; None: no limit.

    Attributes:
        stopped: the limit that cut the run short; None while there is none.
    """

    deadline: float | None = None
    token_budget: int | None = None
    stopped: Stop | None = None
    _timeouts: dict[asyncio.Timeout, float] = field(default_factory=dict, init=False, repr=False)  # with their earliest

    def stop(self, generated_tokens: int) -> bool:
        """Whether the run has to end now, after so many tokens. Once True, it stays True."""
        if self.stopped is None:
            if self.token_budget is not None and generated_tokens >= self.token_budget:
                self.stopped = "token_budget"
            elif self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline:
                self.stopped = "deadline"
        return self.stopped is not None

    def bring_forward(self, deadline: float) -> None:
        """Set an earlier deadline, which holds for work in flight, too. A later one than the present one has no effect.

        Args:
            deadline: time on the clock of the run's event loop, in seconds.
        """
        if self.deadline is not None and self.deadline <= deadline:
            return
        self.deadline = deadline
        for timeout, earliest in self._timeouts.items():
            if not timeout.expired():
                timeout.reschedule(max(deadline, earliest))

    @asynccontextmanager
    async def timeout(self, grace: float = 0.0) -> AsyncIterator[asyncio.Timeout]:
        """Cancel the context at the deadline, or `grace` seconds from now if that is later, and raise TimeoutError."""
        earliest = asyncio.get_running_loop().time() + grace if grace else 0.0
        async with asyncio.timeout_at(None if self.deadline is None else max(self.deadline, earliest)) as timeout:
            self._timeouts[timeout] = earliest
            try:
                yield timeout
            finally:
                del self._timeouts[timeout]
