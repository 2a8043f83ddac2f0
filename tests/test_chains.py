"""Worlds of chains: what they promise of themselves, and that methods find there what can be computed.

The z-test is on a fixed seed: by the normal approximation a right filter fails it with probability below 1e-6 over the
choice of seeds. Bounds on shares are four standard deviations wide, or more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import motes
from exact import z_limit, z_scores
from motes import ParticleFilter, Problem, Sampling, TabularLanguageModel, Trajectory
from motes.errors import ConfigurationError
from motes.lab.chains import RIGHT, USUAL, ChainReward, ChainWorld, Gaussian, is_right, table_of
from motes.lab.measure.reliability import auroc

WORLD = ChainWorld(4, 0.3, 2.0, num_problems=60)


def samples(world: ChainWorld, problem: Problem, count: int) -> Sequence[Trajectory]:
    result = motes.solve(problem, lm=world.lm, reward=world.reward, method=motes.BestOfN(count), task=world)
    return result.trajectories


def steps_of(world: ChainWorld, count: int = 40) -> list[tuple[float, bool, int]]:
    """Scores of the steps of samples, whether each prefix is right, and its number of steps."""
    found = []
    for problem in world.problems():
        trajectories = samples(world, problem, count)
        scored = asyncio.run(world.reward.score(trajectories))
        for trajectory, scores in zip(trajectories, scored, strict=True):
            right = np.cumprod([is_right(step.text) for step in trajectory.steps]).astype(bool).tolist()
            found += zip(scores, right, range(len(scores)), strict=True)
    return found


class TestTables:
    def test_a_sample_is_right_with_the_product_of_the_chances(self):
        success = (0.5, 0.8, 0.25)
        paths = dict(TabularLanguageModel(table_of(success)).paths())
        assert sum(paths.values()) == pytest.approx(1.0)
        assert {len(path) for path in paths} == {3}
        by_answer = {WORLD.answer("".join(path)): p for path, p in paths.items()}
        assert len(by_answer) == len(paths) == 1 + 3 * 4, "every mistake has a wrong answer of its own"
        assert by_answer[RIGHT] == pytest.approx(0.5 * 0.8 * 0.25)
        assert by_answer["2a"] == pytest.approx(0.5 * 0.2 * 0.5)

    def test_mistakes_may_share_the_usual_answer(self):
        paths = dict(TabularLanguageModel(table_of((0.5, 0.8), usual={"1a", "2b"})).paths())
        usual = sum(p for path, p in paths.items() if WORLD.answer("".join(path)) == USUAL)
        assert usual == pytest.approx(0.5 * 0.5 + 0.5 * 0.2 * 0.25)
        assert not any(is_right(path[-1]) for path in paths if WORLD.answer("".join(path)) != RIGHT)

    def test_mistakes_may_end_in_the_right_answer(self):
        paths = dict(TabularLanguageModel(table_of((0.5, 0.8), usual={"1a"}, lucky={"1a", "2b"})).paths())
        lucky = {path for path in paths if WORLD.answer("".join(path)) == RIGHT and not all(map(is_right, path))}
        assert sum(paths[path] for path in lucky) == pytest.approx(0.5 * 0.5 + 0.5 * 0.2 * 0.25)
        assert {path[0] for path in lucky} == {"1a\n\n", "1\n\n"}

    @pytest.mark.parametrize("agreement", [0.0, 0.5])
    def test_as_many_are_lucky_as_are_said_to_be(self, agreement: float):
        world = ChainWorld(6, 0.3, 1.0, luck=0.25, agreement=agreement, num_problems=400)
        found = [
            (WORLD.answer(trajectory.text) == RIGHT, all(is_right(step.text) for step in trajectory.steps))
            for problem in world.problems()
            for trajectory in samples(world, problem, 8)
        ]
        assert np.mean([right for right, flawless in found if not flawless]) == pytest.approx(0.25, abs=0.05)
        assert all(right for right, flawless in found if flawless)

    @pytest.mark.parametrize(("mean", "spread"), [(0.03, 9.0), (0.3, 2.0), (0.8, 20.0)])
    def test_difficulties_may_be_those_of_sums(self, mean: float, spread: float):
        world = ChainWorld(6, mean, 1.0, spread=spread, law="gamma", num_problems=20_000)
        whole = np.array([np.prod(chances) for chances in world.chances.values()])
        variance = mean * (1 - mean) / (spread + 1)
        assert whole.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / 20_000))
        assert whole.var() == pytest.approx(variance, rel=0.15)

    def test_difficulty_lies_in_few_steps_where_it_is_concentrated(self):
        world = ChainWorld(6, 0.2, 1.0, hardness=(1, 1, 2, 2, 3, 3), concentration=0.5, num_problems=3000)
        hard = np.array([-np.log(chances) for chances in world.chances.values()])
        shares = hard / hard.sum(axis=1, keepdims=True)
        assert shares.mean(axis=0) == pytest.approx(np.array([1, 1, 2, 2, 3, 3]) / 12, abs=0.025)
        assert shares.max(axis=1).mean() > 0.5, "where difficulty is even it is a quarter"

    def test_problems_are_as_hard_as_they_are_said_to_be(self):
        world = ChainWorld(6, 0.2, 1.0, spread=4.0, num_problems=4000)
        whole = np.array([np.prod(chances) for chances in world.chances.values()])
        assert whole.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / 5 / 4000))
        assert whole.var() == pytest.approx(0.2 * 0.8 / 5, rel=0.15)
        assert all(np.ptp(chances) < 1e-12 for chances in world.chances.values()), "steps are equally hard"
        uneven = replace(world, hardness=(0, 0, 1, 0, 0, 3)).chances
        assert np.allclose([np.prod(chances) for chances in uneven.values()], whole), "whatever the steps' shares are"
        (first, *_) = uneven.values()
        assert first[0] == first[1] == 1.0
        assert np.log(first[5]) == pytest.approx(3 * np.log(first[2]))

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_steps": 0}, {"success": 1.0}, {"separation": -1.0}, {"systematic": 2.0}, {"memory": 1.0},
            {"concentration": 0.0}, {"hardness": (1.0,)}, {"hardness": (0.0,) * 4}, {"agreement": 1.5}, {"spread": 0.0},
            {"num_problems": 0}, {"luck": -0.1}, {"mistakes": ()}, {"mistakes": (0.5, 0.4)}, {"sharpness": 0.0},
            {"law": "normal"},
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused(self, changes: dict):
        with pytest.raises(ConfigurationError, match=next(iter(changes))):
            replace(WORLD, **changes)

    def test_a_world_has_a_name(self):
        task = motes.api.task("motes.lab.chains:ChainWorld?num_steps=4&success=0.3&separation=2&num_problems=60")
        assert task == WORLD
        assert task.problems(limit=3) == WORLD.problems()[:3]
        with pytest.raises(ConfigurationError, match="not a problem of this world"):
            motes.solve("How many?", lm=WORLD.lm, reward=WORLD.reward, task=WORLD)


class TestReward:
    @pytest.mark.parametrize(("separation", "area"), [(1.0, 0.760), (2.0, 0.921)])
    @pytest.mark.parametrize("systematic", [0.0, 1.0])
    def test_it_is_as_good_as_it_is_said_to_be(self, separation: float, area: float, systematic: float):
        """Of as many steps; problems differ, so that the share is known to about two points."""
        world = ChainWorld(4, 0.3, separation, systematic, num_problems=300)
        assert world.auroc == pytest.approx(area, abs=5e-4)
        found = steps_of(world, 8)
        for depth in range(4):
            scores, right, _ = zip(*(each for each in found if each[2] == depth), strict=True)
            assert auroc(scores, right) == pytest.approx(area, abs=0.045)

    def test_its_logit_is_the_log_likelihood_ratio_of_its_reading(self):
        found = [each for each in steps_of(ChainWorld(3, 0.4, 1.5, 0.0, num_problems=150), 20) if each[2] == 2]
        scores, right, _ = map(np.array, zip(*found, strict=True))
        logits = np.log(scores / (1 - scores))
        for kind, sign in ((True, 1), (False, -1)):
            assert logits[right == kind].mean() == pytest.approx(sign * 1.5**2 / 2, abs=0.25)
            assert logits[right == kind].std() == pytest.approx(1.5, rel=0.1)

    def test_what_states_the_same_is_judged_alike_where_errors_are_systematic(self):
        for systematic, alike in ((1.0, True), (0.0, False)):
            world = replace(WORLD, systematic=systematic)
            trajectories = samples(world, world.problems()[0], 40)
            scores = asyncio.run(world.reward.score(trajectories))
            by_text: dict[str, set[float]] = {}
            for trajectory, values in zip(trajectories, scores, strict=True):
                by_text.setdefault(trajectory.text, set()).add(values[-1])
            assert all(len(values) == 1 for values in by_text.values()) == alike
            again = ChainReward(Gaussian(2.0), world.num_steps, systematic, world.seed)
            assert asyncio.run(again.score(trajectories[::-1])) == scores[::-1], "the same in any company"

    def test_one_that_is_too_sure_or_not_sure_enough_knows_as_much(self):
        scores, *others = zip(*steps_of(replace(WORLD, sharpness=2.5, num_problems=10), 8), strict=True)
        as_sure, *same = zip(*steps_of(replace(WORLD, num_problems=10), 8), strict=True)
        assert others == same
        logits, those = (np.log(np.array(each) / (1 - np.array(each))) for each in (scores, as_sure))
        assert 2.5 * logits == pytest.approx(those)

    def test_another_reader_may_take_its_place(self):
        asked = []

        class Blind:
            def next(self, before, was_right, is_right, share, normal) -> float:
                asked.append((before is None, was_right, is_right, share))
                return 1.0 if before is None else before + 1.0

        world = replace(WORLD, reader=Blind(), num_steps=2)
        (problem, *_) = world.problems()
        trajectories = samples(world, problem, 20)
        assert asyncio.run(world.reward.score(trajectories)) == [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))]] * 20
        kinds = {(True, True, right, 0.5) for right in (True, False)}
        kinds |= {(False, True, True, 1.0), (False, True, False, 1.0), (False, False, False, 1.0)}
        assert set(asked) == kinds

    def test_errors_are_remembered(self):
        for memory in (0.0, 0.9):
            world = ChainWorld(2, 0.9, 1.0, 0.0, memory=memory, num_problems=400, spread=1000.0)
            pairs = []
            for problem in world.problems():
                trajectories = [t for t in samples(world, problem, 6) if all(is_right(s.text) for s in t.steps)]
                pairs += asyncio.run(world.reward.score(trajectories))
            logits = np.log(np.array(pairs) / (1 - np.array(pairs)))
            assert np.corrcoef(logits.T)[0, 1] == pytest.approx(memory, abs=0.1)


def test_the_language_model_keeps_its_promises():
    problem = WORLD.problems()[0]
    start = Trajectory(problem)
    (step,) = asyncio.run(WORLD.lm.extend([start], Sampling(), [5]))
    assert asyncio.run(WORLD.lm.extend([start] * 3, Sampling(), [1, 5, 5]))[1:] == [step, step]
    likeliest = motes.solve(problem, lm=WORLD.lm, reward=None, method=motes.Greedy(), task=WORLD)
    assert likeliest.trajectories[0].steps[0].token_ids[1] == 0, "in the same words"


def test_the_particle_filter_finds_the_evidence_of_a_chain():
    world = ChainWorld(3, 0.3, 1.5, num_problems=1)
    (problem,) = world.problems()
    z = 0.0
    for path, p in world.lm.table(problem.question).paths():
        trajectory = Trajectory(problem)
        for text in path:
            trajectory = trajectory.extend(motes.Step(text, "step"))
        ((*_, last),) = asyncio.run(world.reward.score([trajectory]))
        z += p * last / (1 - last)
    of_the_last = ParticleFilter(4, potential="increment", beta=1.0)
    for method in (of_the_last, replace(of_the_last, ess_threshold=0.5)):
        found = [
            [
                np.exp(
                    motes.solve(
                        problem, lm=world.lm, reward=world.reward, method=method, task=world, seed=seed
                    ).log_evidence
                )
            ]
            for seed in range(400)
        ]
        assert np.abs(z_scores(np.array(found), np.array([z]))).max() < z_limit(2)
