"""The steps that wait for requests to a server, and the parts of requests that they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from motes.concurrency import Pending
from motes.core import Failure, Sampling, Step, Trajectory, Usage
from motes.models.served.prompts import Prompt


@dataclass(eq=False)
class PendingStep(Pending[Step | Failure]):
    """A trajectory that waits for its next step."""

    trajectory: Trajectory
    sampling: Sampling
    seed: int
    wasted: Usage = Usage()  # tokens of failed attempts on its behalf  # noqa: RUF009 (frozen)
    has_answer: bool = False  # its answer has arrived and becomes a step: a later failure of the call does not matter

    @property
    def is_waiting(self) -> bool:
        return not (self.has_answer or self.future.done())


Part = tuple[Prompt, list[list[PendingStep]]]
"""A prompt of a request, and for each of its n answers the pending steps that use it: one, or all equal ones at
temperature 0."""


def steps_of(parts: Iterable[Part]) -> list[PendingStep]:
    """The pending steps of parts of requests."""
    return [step for _, group in parts for steps in group for step in steps]
