"""From a weighted population to one answer. Populations here are written down, not drawn."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from motes import Problem, Result, Sampling, Step, TabularLanguageModel, Trajectory
from motes.methods import SELECTORS, Population, Run, conclude
from motes.methods.answers import Answers, Classes
from motes.methods.limits import Limits
from motes.smc import Weights
from motes.tasks import BoxedAnswers
from motes.tasks.benchmark import Benchmark, Declaration

PROBLEM = Problem("?")


def choose(*arguments: Any, **options: Any) -> Result:
    return asyncio.run(choice(*arguments, **options))


async def choice(
    selector: str, answers: list[str | None], weights: list[float], scores: list[float] | None = None, seed: int = 0
) -> Result:
    """The result for particles of the given answers (None: no answer), weights and scores (NaN: none)."""
    scores = [0.5] * len(answers) if scores is None else scores
    texts = ["I give up." if answer is None else f"So \\boxed{{{answer}}}." for answer in answers]
    trajectories = tuple(
        Trajectory(PROBLEM).extend(Step(f"Particle {i}. {text}", "eos")) for i, text in enumerate(texts)
    )
    population = Population(
        trajectories, tuple(() if np.isnan(s) else (0.1, s) for s in scores), np.ones(len(answers), dtype=bool)
    )
    lm = TabularLanguageModel({(): {"a": 1.0}})
    run = Run(PROBLEM, lm, None, BoxedAnswers(), Sampling(), np.random.default_rng(seed))
    with np.errstate(divide="ignore"):
        return await conclude(run, population, Weights(np.log(weights)), selector)


def chosen(result: Result) -> int:
    """The particle that the text was taken from."""
    return int(result.text.split(".")[0].removeprefix("Particle "))


@pytest.mark.parametrize(
    ("selector", "answer", "particle"),
    [
        ("argmax", "3", 5),  # the largest score
        ("vote", "1", 0),  # the largest total weight, 0.5
        ("majority", "2", 3),  # three of six; of these the best scored
    ],
)
def test_each_selector_follows_its_own_rule(selector: str, answer: str, particle: int):
    result = choose(selector, ["1", "2", "2", "2", None, "3"], [5, 1, 1, 1, 1, 1], [0.5, 0.4, 0.3, 0.6, 0.99, 0.9])
    assert (result.answer, chosen(result)) == (answer, particle)
    assert result.posterior == pytest.approx({"1": 0.5, "2": 0.3, "3": 0.1})
    assert result.confidence == pytest.approx(result.posterior[answer])
    assert list(result.posterior) == ["1", "2", "3"], "largest first"


def test_every_answer_has_a_text_that_gives_it():
    """The result's own for the answer given, whatever it scores, the best scored for the others; equal ones are one."""
    answers, scores = ["1/2", "3", "0.5", None, "4", "3"], [0.5, 0.2, 0.9, 0.99, np.nan, 0.3]
    for seed in range(20):
        result = choose("sample", answers, [5, 1, 1, 1, 1, 1], scores, seed)
        assert result.answers == ("1/2", "3", "1/2", None, "4", "3")
        texts = result.texts()
        assert list(texts) == list(result.posterior)
        places = {answer: int(text.split(".")[0].removeprefix("Particle ")) for answer, text in texts.items()}
        assert places == {"1/2": 2, "3": 5, "4": 4, result.answer: chosen(result)}


def test_sample_draws_in_proportion_to_weight():
    """Exact binomial tests, whose family raises a false alarm with probability below 1e-6."""
    answers, weights = ["1", None, "2", "1", "3"], [1.0, 4.0, 2.0, 3.0, 0.0]

    async def draw() -> Counter[int]:
        return Counter([chosen(await choice("sample", answers, weights, seed=seed)) for seed in range(1000)])

    draws = asyncio.run(draw())
    for particle, probability in {0: 1 / 6, 2: 2 / 6, 3: 3 / 6}.items():  # among the particles that have an answer
        assert binomtest(draws[particle], 1000, probability).pvalue > 1e-6 / 3
    assert set(draws) == {0, 2, 3}


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_population_without_answers_gives_none_but_its_likeliest_text(selector: str):
    result = choose(selector, [None, None, None], [1, 3, 2])
    assert (result.answer, dict(result.posterior), result.confidence) == (None, {}, 0.0)
    assert (chosen(result), result.text) == (1, "Particle 1. I give up.")


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_particle_with_an_answer_is_chosen_whatever_the_others_weigh(selector: str):
    result = choose(selector, [None, "7", None], [10, 0, 10], [0.9, 0.1, 0.9])
    assert (result.answer, result.confidence) == ("7", 0.0)


def test_equivalent_answers_are_one_named_by_the_first():
    result = choose("vote", ["0.5", "3", "1/2", "$0.50$", "1,000", "1000"], [1, 2, 1, 1, 0.5, 0.5])
    assert dict(result.posterior) == pytest.approx({"0.5": 1 / 2, "3": 1 / 3, "1,000": 1 / 6})
    assert (result.answer, result.confidence) == ("0.5", pytest.approx(1 / 2))


class Counting(BoxedAnswers):
    """Counts the forms that it makes, and compares nothing."""

    def __init__(self) -> None:
        self.made = 0

    def canonical(self, answer: str) -> str:
        self.made += 1
        return super().canonical(answer)


class Signless(Counting):
    """Says by `equivalent` alone what it compares."""

    def equivalent(self, first: str, second: str) -> bool:
        return first.strip("-") == second.strip("-")


class TestClasses:
    def test_many_answers_cost_a_form_each(self):
        rule = Counting()
        boxed = [
            Trajectory(Problem("?")).extend(Step(f"\\boxed{{{i % 300}{'.0' * (i >= 300)}}}", "eos")) for i in range(600)
        ]
        answers = asyncio.run(Answers(rule).of(boxed, Limits()))
        assert answers == [f"{i % 300}" for i in range(600)]
        assert rule.made == 600

    def test_they_can_be_added_to(self):
        classes = Classes(BoxedAnswers(), ["1/2", "0.5"])
        assert (classes.find("0.50"), classes.find("2")) == ("1/2", None)
        assert (classes.name("2"), classes.name("2.0"), classes.find("2.00")) == ("2", "2", "2")

    @pytest.mark.parametrize("rule", [Signless(), type("Further", (Signless,), {})()])
    def test_a_comparison_of_ones_own_comes_before_an_inherited_form(self, rule):
        classes = Classes(rule, ["-3", "4"])
        assert (classes.find("3"), classes.name("-4"), classes.find("3.0"), rule.made) == ("-3", "4", None, 0)

    def test_a_benchmark_groups_as_its_rule_does(self):
        made = Benchmark("mine", Declaration(rule=Signless), path=Path("rows.jsonl"))
        assert Classes(made, ["-3"]).find("3") == "-3"
        made = Benchmark("mine", Declaration(rule=Counting), path=Path("rows.jsonl"))
        assert Classes(made, ["3"]).find("3.0") == "3"


@pytest.mark.parametrize(
    ("selector", "weights", "scores", "particle"),
    [
        ("argmax", [1, 1, 1, 1], [0.2, 0.7, 0.7, 0.1], 1),
        ("vote", [2, 1, 1, 2], None, 0),  # 3 against 3: the answer that appears first
        ("vote", [1, 1, 1, 1], [0.1, 0.9, 0.3, 0.2], 2),  # of its particles the best scored
        ("vote", [1, 1, 3, 1], [0.3, 0.9, 0.1, 0.2], 0),  # the best scored, not the heaviest
        ("majority", [1, 9, 1, 9], None, 0),
        ("majority", [1, 1, 2, 1], None, 2),  # equal scores: the heavier
    ],
)
def test_ties_go_to_the_first(selector: str, weights: list[float], scores: list[float] | None, particle: int):
    assert chosen(choose(selector, ["1", "2", "1", "2"], weights, scores)) == particle


def test_particles_without_a_score_are_the_last_that_argmax_takes():
    assert chosen(choose("argmax", ["1", "2"], [1, 1], [np.nan, 0.0])) == 1
    assert chosen(choose("argmax", ["1", "2"], [1, 1], [np.nan, np.nan])) == 0


particles = st.lists(
    st.tuples(st.sampled_from([None, "1", "1.0", "2", "x"]), st.floats(0.1, 10), st.floats(0, 1)), min_size=1
)


@given(particles, st.sampled_from(sorted(SELECTORS)), st.integers(0, 2**32))
def test_the_posterior_is_the_weight_of_each_answer(drawn: list[tuple[str | None, float, float]], name: str, seed: int):
    answers, weights, scores = map(list, zip(*drawn, strict=True))
    result = choose(name, answers, weights, scores, seed)
    without = sum(w for a, w in zip(answers, weights, strict=True) if a is None) / sum(weights)
    assert sum(result.posterior.values()) == pytest.approx(1 - without)
    masses = list(result.posterior.values())
    assert masses == sorted(masses, reverse=True)
    assert (result.answer is None) == (not result.posterior)
    if result.answer is not None:
        assert result.answer in result.posterior
        assert BoxedAnswers().equivalent(result.answer, answers[chosen(result)])
