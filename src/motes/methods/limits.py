"""Limits on a whole run, which make every method an anytime method."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

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

    def stop(self, generated_tokens: int) -> bool:
        """Whether the run has to end now, after so many tokens. Once True, it stays True."""
        if self.stopped is None:
            if self.token_budget is not None and generated_tokens >= self.token_budget:
                self.stopped = "token_budget"
            elif self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline:
                self.stopped = "deadline"
        return self.stopped is not None
