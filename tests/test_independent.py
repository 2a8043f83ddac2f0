"""Greedy, majority, best-of-N and weighted best-of-N, against enumeration of everything they can draw.

The frequencies are one family of exact binomial tests on fixed seeds: it raises a false alarm with probability below
1e-6 over the choice of seeds.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest

import motes
from exact import Path, path_of, prefixes
from motes import (
    BestOfN,
    Greedy,
    Majority,
    ParticleFilter,
    Sampling,
    Step,
    TabularLanguageModel,
    TabularReward,
    Trajectory,
    WeightedBestOfN,
    asolve,
)
from motes.errors import ConfigurationError, DegenerateWeightsError, UnknownNameError
from motes.methods import METHODS, method
from motes.methods.method import Method
from motes.methods.population import AGGREGATIONS
from motes.tasks import BoxedAnswers

ONE, TWO, NONE = "\\boxed{1}", "\\boxed{2}", "no idea"
LM = TabularLanguageModel({(): {"a": 0.5, ONE: 0.3, TWO: 0.2}, ("a",): {ONE: 0.3, TWO: 0.6, NONE: 0.1}})
REWARD = TabularReward({("a",): 0.9, (ONE,): 0.3, (TWO,): 0.45, ("a", ONE): 0.6, ("a", TWO): 0.2, ("a", NONE): 0.7})
ANSWERS = ("1", "2", None)


def answer_of(path: Path) -> str | None:
    return {ONE: "1", TWO: "2", NONE: None}[path[-1]]


def best(totals: dict[str, float]) -> str | None:
    """The first of the largest."""
    return max(totals, key=totals.__getitem__, default=None)


def majority_rule(paths: Sequence[Path]) -> str | None:
    answers = [answer for path in paths if (answer := answer_of(path)) is not None]
    return best({answer: answers.count(answer) for answer in answers})


def bon_rule(paths: Sequence[Path]) -> str | None:
    answering = [path for path in paths if answer_of(path) is not None]
    return answer_of(max(answering, key=REWARD.__getitem__)) if answering else None


def wbon_rule(paths: Sequence[Path]) -> str | None:
    answering = [path for path in paths if answer_of(path) is not None]
    answers = list(dict.fromkeys(map(answer_of, answering)))
    return best({answer: sum(REWARD[path] for path in answering if answer_of(path) == answer) for answer in answers})


RULES = {Majority: majority_rule, BestOfN: bon_rule, WeightedBestOfN: wbon_rule}


def answers(method: Method, runs: int) -> list[tuple[str | None, list[Path]]]:
    async def every() -> list[tuple[str | None, list[Path]]]:
        drawn = [await asolve("?", lm=LM, reward=REWARD, method=method, seed=seed) for seed in range(runs)]
        return [(result.answer, list(map(path_of, result.trajectories))) for result in drawn]

    return asyncio.run(every())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("cls", RULES)
def test_the_answers_law_is_that_of_the_enumeration(cls: type[BestOfN], n: int):
    expected = np.zeros(len(ANSWERS))
    for draw in itertools.product(LM.paths(), repeat=n):
        paths, probabilities = zip(*draw, strict=True)
        expected[ANSWERS.index(RULES[cls](paths))] += np.prod(probabilities)
    drawn = answers(cls(n), runs=600)
    for answer, probability in zip(ANSWERS, expected, strict=True):
        count = sum(given == answer for given, _ in drawn)
        assert binomtest(count, len(drawn), probability).pvalue > 1e-6 / (3 * 3 * len(ANSWERS)), answer


@pytest.mark.parametrize("cls", RULES)
def test_the_answer_is_the_rules_for_every_draw(cls: type[BestOfN]):
    for answer, paths in answers(cls(6), runs=200):
        assert answer == RULES[cls](paths)


def test_the_three_rules_differ():
    draws = list(itertools.product([path for path, _ in LM.paths()], repeat=4))
    decided = [tuple(rule(draw) for rule in RULES.values()) for draw in draws]
    assert all(any(d[i] != d[j] for d in decided) for i, j in itertools.combinations(range(3), 2))


def test_greedy_takes_the_likeliest_step_whatever_the_seed():
    for seed in range(5):
        result = motes.solve("?", lm=LM, reward=None, method=Greedy(), seed=seed, sampling=Sampling(temperature=2.0))
        assert (result.answer, result.text, result.confidence) == ("2", "a" + TWO, 1.0)
        assert (result.usage.lm_calls, result.usage.reward_calls) == (2, 0)


def test_weighted_best_of_n_has_the_scores_as_weights():
    result = motes.solve("?", lm=LM, reward=REWARD, method=WeightedBestOfN(5), seed=3)
    assert np.exp(result.log_weights) == pytest.approx([REWARD[path_of(t)] for t in result.trajectories])
    assert result.log_evidence is None


def test_weighted_best_of_n_without_a_score_above_zero_is_an_error():
    with pytest.raises(DegenerateWeightsError, match="TabularReward"):
        motes.solve("?", lm=LM, reward=TabularReward({}, default=0.0), method=WeightedBestOfN(3))


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("last", 0.4), ("min", 0.4), ("prod", 0.9 * 0.5 * 0.4), ("mean", 0.6)]
)
def test_aggregations(aggregation: str, expected: float):
    lm = TabularLanguageModel({(): {"x": 1.0}, ("x",): {"y": 1.0}, ("x", "y"): {ONE: 1.0}})
    reward = TabularReward(dict(zip(sorted(prefixes(lm), key=len), (0.9, 0.5, 0.4), strict=True)))
    for cls in (BestOfN, WeightedBestOfN):
        (record,) = motes.solve("?", lm=lm, reward=reward, method=cls(2, aggregation)).records
        assert record.scores == pytest.approx([expected] * 2)
    assert set(AGGREGATIONS) == {"last", "min", "prod", "mean"}


class Batches(TabularLanguageModel):
    """Counts calls; with `merges_calls`, each particle asks alone."""

    def __init__(self, table: dict[Path, dict[str, float]], merges_calls: bool) -> None:
        super().__init__(table)
        self.merges_calls = merges_calls
        self.sizes: list[int] = []

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        self.sizes.append(len(trajectories))
        for _ in range(seeds[0] % 3):
            await asyncio.sleep(0)
        return await super().extend(trajectories, sampling, seeds)


@pytest.mark.parametrize("cls", RULES)
def test_the_result_does_not_depend_on_merged_calls(cls: type[BestOfN]):
    for seed in range(10):
        lms = [Batches(LM.table, merges) for merges in (False, True)]
        first, second = (motes.solve("?", lm=lm, reward=REWARD, method=cls(5), seed=seed) for lm in lms)
        assert lms[0].sizes[0] == 5
        assert set(lms[1].sizes) == {1}
        assert sum(lms[0].sizes) == sum(lms[1].sizes) == first.usage.lm_calls
        assert list(map(path_of, first.trajectories)) == list(map(path_of, second.trajectories))
        assert (first.answer, first.text, first.usage) == (second.answer, second.text, second.usage)
        assert first.log_weights.tolist() == second.log_weights.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_id_and_runs_at_a_budget(name: str):
    made = method(name, 16)
    assert made.budget == (1 if name == "greedy" else 16)
    result = motes.solve("?", lm=LM, reward=REWARD, method=made, seed=1)
    answering = {"pt": 8, "refine": 4, "pdr": 8}  # from one of two chains; from the last of the rounds
    assert len(result.trajectories) == answering.get(name, made.budget)
    assert result.method == type(made).__name__
    assert len(result.answers) == len(result.trajectories)
    assert {answer for answer in result.answers if answer is not None} == set(result.posterior)
    assert all(BoxedAnswers().answer(text) == answer for answer, text in result.texts().items())


def test_methods_that_cannot_work_are_refused():
    for cls in (Majority, BestOfN, WeightedBestOfN):
        for n in (0, -1, 2.5):
            with pytest.raises(ConfigurationError, match="whole number of at least 1"):
                cls(n)
        with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
            cls(2, "meen")
    with pytest.raises(ConfigurationError, match="n must be 1"):
        Greedy(2)
    with pytest.raises(UnknownNameError, match="did you mean 'wbon'"):
        method("wbn", 4)
    with pytest.raises(ConfigurationError, match="at least 1"):
        method("pf", 0)


@pytest.mark.parametrize("scoring", [BestOfN(2), WeightedBestOfN(2), ParticleFilter(2)])
def test_a_missing_reward_model_is_found_before_anything_is_paid_for(scoring: Method):
    lm = Batches(LM.table, merges_calls=False)
    with pytest.raises(ConfigurationError, match="give `reward=`"):
        motes.solve("?", lm=lm, reward=None, method=scoring)
    assert lm.sizes == []


@pytest.mark.parametrize("name", METHODS)
def test_a_population_that_is_one_holds_the_beginning_of_the_answer(name: str):
    """And of every other answer; the others say that they are several."""
    one = getattr(METHODS[name], "one_population", False)
    assert one == (name in ("pf", "epf", "power", "beam", "dvts", "rebase"))
    for seed in range(20 if one else 0):
        result = motes.solve("?", lm=LM, reward=REWARD, method=method(name, 8), seed=seed)
        for record in result.records:
            beginnings = tuple(t.text for t in record.trajectories if t.error is None)
            assert all(text.startswith(beginnings) for text in (result.text, *result.texts().values()))


@pytest.mark.parametrize("merges", [False, True])
def test_whole_answers_can_be_followed(merges: bool):
    """All of them each time: where calls are merged one has grown by a step, otherwise all that were unfinished."""
    seen: list[tuple[Trajectory, ...]] = []
    lm = Batches(LM.table, merges)
    result = motes.solve("?", lm=lm, reward=None, method=Majority(5), seed=1, on_progress=seen.append)
    depths = np.array([[0] * 5, *([trajectory.depth for trajectory in each] for each in seen)])
    assert np.diff(depths.sum(axis=1)).tolist() == lm.sizes
    assert (np.diff(depths, axis=0) >= 0).all()
    assert seen[-1] == result.trajectories
