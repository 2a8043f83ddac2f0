"""Blank steps. A model that writes a delimiter and then ends its answer leaves one at its end.

A blank step adds nothing to read, so it is left out of what a model reads, and its score is that of the text before
it. A model that were asked about it would say what it thinks of an empty step, a form that none was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

from motes.core import NEUTRAL, Trajectory


def written_steps(trajectory: Trajectory) -> list[Trajectory]:
    """The nodes of the path whose step is more than white space."""
    return [node for node in trajectory.path if node.step is not None and node.step.text.strip()]


def fill_scores(trajectory: Trajectory, known: Mapping[Trajectory, float]) -> list[float]:
    """A score for each step: its own where it has one, else that of the step before, NEUTRAL where none is before."""
    scores: list[float] = []
    score = NEUTRAL
    for node in trajectory.path:
        score = known.get(node, score)
        scores.append(score)
    return scores
