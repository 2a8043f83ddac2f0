"""Blank steps. A model that writes a delimiter and then ends its answer leaves a blank step at its end.

A blank step adds nothing to read, so a reward model does not read it, and its score is that of the text before it. A
model that read it would score an empty step, and no model was trained on these.
"""

from __future__ import annotations

from collections.abc import Mapping

from motes.core import NEUTRAL, Trajectory


def written_steps(trajectory: Trajectory) -> list[Trajectory]:
    """The nodes of the path whose step is more than white space."""
    return [node for node in trajectory.path if node.step is not None and node.step.text.strip()]


def fill_scores(trajectory: Trajectory, own_scores: Mapping[Trajectory, float]) -> list[float]:
    """A score for each step: its own if it has one, otherwise that of the step before, NEUTRAL if there is none yet."""
    scores: list[float] = []
    score = NEUTRAL
    for node in trajectory.path:
        score = own_scores.get(node, score)
        scores.append(score)
    return scores
