"""Limits on a whole run, which make every method an anytime method."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from motes.arguments import fit
from motes.core import Stop
from motes.errors import ConfigurationError

ANSWER_SHARE = 0.2
"""The share of a run's time, and of its tokens, that is kept for answers: thoughts end before it."""


@dataclass(eq=False)
class Limits:
    """The limits on a run's time and tokens, which all parts of the run share.

    Args:
        deadline: time on the clock of the run's event loop, in seconds; None: no deadline.
        token_budget: generated tokens of all trajectories together, pruned ones included; None: no limit.
        answer_share: the share of the time, from the first use of these limits to the deadline, and of the token budget
            that is kept for answers: when it begins, open thoughts are ended, see `motes.methods.thinking`. 0: a
            thought may take all.

    Raises:
        ConfigurationError: `answer_share` is not in [0, 1).

    Attributes:
        stopped: the limit that cut the run short; None while there is none.
    """

    deadline: float | None = None
    token_budget: int | None = None
    stopped: Stop | None = None
    answer_share: float = ANSWER_SHARE
    _timeouts: dict[asyncio.Timeout, float] = field(default_factory=dict, init=False, repr=False)  # with their earliest
    _of_thoughts: set[asyncio.Timeout] = field(default_factory=set, init=False, repr=False)
    _began: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= fit("answer_share", self.answer_share, float) < 1:
            raise ConfigurationError(
                f"answer_share is a share of the time, at least 0 and below 1, not {self.answer_share}"
            )
        with suppress(RuntimeError):  # no loop is running yet
            self._began = asyncio.get_running_loop().time()

    @property
    def thinking_deadline(self) -> float | None:
        """When thoughts end, on the clock of the run's event loop; None: never before the deadline."""
        if self._began is None:
            self._began = asyncio.get_running_loop().time()
        if self.deadline is None or math.isinf(self.deadline) or not self.answer_share:
            return None
        return self._began + (1 - self.answer_share) * max(0.0, self.deadline - self._began)

    def answer_is_due(self, generated_tokens: int) -> bool:
        """Whether no thought may go on, after so many tokens."""
        spent = self.token_budget is not None and self.answer_share > 0
        if spent and generated_tokens >= (1 - self.answer_share) * (self.token_budget or 0):
            return True
        end = self.thinking_deadline
        return end is not None and asyncio.get_running_loop().time() >= end

    @asynccontextmanager
    async def thinking_timeout(self) -> AsyncIterator[asyncio.Timeout]:
        """Cancel the context when thoughts end, and raise TimeoutError."""
        async with asyncio.timeout_at(self.thinking_deadline) as timeout:
            self._of_thoughts.add(timeout)
            try:
                yield timeout
            finally:
                self._of_thoughts.discard(timeout)

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
        for timeout in self._of_thoughts:
            if not timeout.expired():
                timeout.reschedule(self.thinking_deadline)

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
