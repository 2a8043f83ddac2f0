"""A reward model made worse on purpose: by how much, and always the same way."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

import motes
import worlds
from motes import FunctionReward, Problem, Step, Trajectory, Usage
from motes.core import Scores
from motes.lab.corruption import CorruptedReward, standard_normal

PROBLEM = Problem("2 + 2?")


def prefixes(*texts: str) -> Trajectory:
    trajectory = Trajectory(PROBLEM)
    for text in texts:
        trajectory = trajectory.extend(Step(text, "step"))
    return trajectory


def logits(trajectory: Trajectory, r: float = 0.7, **corruption: float) -> list[float]:
    reward = CorruptedReward(FunctionReward(lambda problem, text: r), **corruption)
    (scores,) = asyncio.run(reward.score([trajectory]))
    return [math.log(score / (1 - score)) for score in scores]


FOUR = prefixes("a\n\n", "b\n\n", "c\n\n", "d\n\n")
CLEAN = math.log(0.7 / 0.3)


def test_without_corruption_scores_stay():
    assert logits(FOUR) == pytest.approx([CLEAN] * 4)


def test_the_formula_at_each_step():
    assert logits(FOUR, factor=4) == pytest.approx([4 * CLEAN] * 4)
    assert logits(FOUR, bias=0.5) == pytest.approx([CLEAN + 1.0, CLEAN + 0.5, CLEAN, CLEAN])
    z = [standard_normal(3, "2 + 2?", text) for text in ("a\n\n", "a\n\nb\n\n", "a\n\nb\n\nc\n\n")]
    noisy = logits(prefixes("a\n\n", "b\n\n", "c\n\n"), noise=2, seed=3)
    assert noisy == pytest.approx([CLEAN + 2 * z[0], CLEAN + 2 * z[1], CLEAN + 2 * z[2]])
    early = logits(FOUR, early=0.5, seed=3)
    assert early == pytest.approx([CLEAN + 1.0 * z[0], CLEAN + 0.5 * z[1], CLEAN, CLEAN])


def test_the_same_prefix_gets_the_same_score_and_others_do_not():
    noisy = logits(FOUR, noise=1)
    assert logits(prefixes("a\n\n", "b\n\n", "x\n\n"), noise=1)[:2] == noisy[:2]
    assert logits(prefixes("a\n\n", "b\n\n", "x\n\n"), noise=1)[2] != noisy[2]
    assert logits(FOUR, noise=1, seed=1) != noisy


def test_it_depends_on_the_problem_and_not_on_the_prompt():
    asked = PROBLEM.asked_as([{"role": "user", "content": "Is it 4? 2 + 2?"}])
    assert logits(Trajectory(asked).extend(Step("a", "eos")), noise=1) == logits(prefixes("a"), noise=1)
    other = Trajectory(Problem("Is it 4? 2 + 2?")).extend(Step("a", "eos"))
    assert logits(other, noise=1) != logits(prefixes("a"), noise=1)


def test_noise_is_standard_normal():
    """Mean and variance of 4000 draws within 4.4 standard errors: a false alarm in 1e5, once for each."""
    draws = np.array([standard_normal(0, "question", f"prefix {i}") for i in range(4000)])
    assert abs(draws.mean()) < 4.4 / math.sqrt(4000)
    assert abs(draws.var() - 1) < 4.4 * math.sqrt(2 / 4000)


@pytest.mark.parametrize("r", [0.0, 1.0])
def test_extreme_scores_stay_scores(r):
    reward = CorruptedReward(FunctionReward(lambda problem, text: r), factor=8, noise=4)
    (scores,) = asyncio.run(reward.score([FOUR]))
    assert all(0 <= score <= 1 for score in scores)


def test_costs_and_size_are_those_of_the_model_inside():
    class Costly:
        num_parameters = 12

        async def score(self, trajectories):
            return [Scores([0.5] * t.depth, Usage(reward_tokens=t.depth)) for t in trajectories]

    reward = CorruptedReward(Costly(), noise=1)
    (scores,) = asyncio.run(reward.score([FOUR]))
    assert isinstance(scores, Scores)
    assert scores.usage == Usage(reward_tokens=4)
    assert reward.num_parameters == 12
    assert CorruptedReward(worlds.reward_model()).num_parameters is None


def test_it_keeps_the_contract_of_a_reward_model():
    motes.check_reward_model(CorruptedReward(worlds.reward_model(), noise=1, factor=2, bias=1, early=1))
