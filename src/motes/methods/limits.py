"""Limits on a whole run: what makes every method an anytime one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from motes.core import Stop


@dataclass(eq=False)
class Limits:
    """How long a run may go on and how much it may generate; all parts of a run share them.

    Args:
        deadline: in seconds, on the clock of the event loop that the run is in; None: there is none.
        token_budget: generated tokens, all trajectories together, pruned ones included; None: any number.

    Attributes:
        stopped: the limit that cut the run short, None as long as none has.
    """

    deadline: float | None = None
    token_budget: int | None = None
    stopped: Stop | None = None

    def stop(self, generated_tokens: int) -> bool:
        """Whether the run must end, after so many tokens and now; once it must, it always must."""
        if self.stopped is None:
            if self.token_budget is not None and generated_tokens >= self.token_budget:
                self.stopped = "token_budget"
            elif self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline:
                self.stopped = "deadline"
        return self.stopped is not None
