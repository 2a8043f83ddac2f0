"""Rollouts: which prefixes are completed, what the outcomes are, and that nothing drawn is lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest

import motes
from motes import TabularLanguageModel
from motes.errors import ConfigurationError
from motes.lab import evaluate
from motes.lab.run.evaluation import Evaluation
from motes.training.choosing import KNOWN, choose
from motes.training.outcomes import Answer, Labels, Outcomes, read_evaluation
from motes.training.rollouts import COMPLETIONS, Completions, CompletionStore, Plan, draw_completions

SLIP = 0.25
RIGHT, WRONG = "So far so good.\n\n", "A slip.\n\n"
LENGTH = 5


def language_model() -> TabularLanguageModel:
    """Answers of five steps, each of which is a slip with probability ¼; after a slip the answer is wrong."""
    table: dict[tuple[str, ...], dict[str, float]] = {}

    def grow(steps: tuple[str, ...]) -> None:
        if len(steps) == LENGTH:
            table[steps] = {"\\boxed{0}" if WRONG in steps else "\\boxed{1}": 1.0}
            return
        table[steps] = {RIGHT: 1 - SLIP, WRONG: SLIP} if WRONG not in steps else {RIGHT: 1.0}
        for step in table[steps]:
            grow((*steps, step))

    grow(())
    return TabularLanguageModel(table)


def value(prefix: tuple[str, ...]) -> float:
    """The probability that a completion of the prefix is right."""
    if WRONG in prefix or "\\boxed{0}" in prefix:
        return 0.0
    return (1 - SLIP) ** max(0, LENGTH - len(prefix))


def evaluation(directory: Path, problems: int = 30) -> Evaluation:
    rows = [{"id": f"p{n}", "question": f"Question {n}?", "answer": "1"} for n in range(problems)]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Evaluation(task=f"boxed:{path}", lm="test_rollouts:language_model", reward=None)


def drawn(directory: Path, plan: Plan, problems: int = 30) -> tuple[Evaluation, Labels]:
    """The answers of the plan, as labels."""
    whole = plan.evaluation(evaluation(directory, problems))
    asyncio.run(evaluate(whole, directory / "answers"))
    labels = Labels()
    for answer, messages in read_evaluation(directory / "answers"):
        labels.messages[answer.problem] = messages
        labels.add(answer)
    return whole, labels


def complete(directory: Path, plan: Plan, whole: Evaluation, labels: Labels, **options) -> Labels:
    with CompletionStore(directory / COMPLETIONS) as store:
        return asyncio.run(draw_completions(plan, labels, store, evaluation=whole, lm=language_model(), **options))


def test_outcomes_are_those_of_the_language_model(tmp_path: Path):
    """The mean over all prefixes of the difference to the exact probability, in standard errors, is below 4: a false
    alarm in 1 of 16,000."""
    plan = Plan(answers=4, completions=40, prefixes=3)
    whole, labels = drawn(tmp_path, plan)
    assert len(labels.answers) == 120
    complete(tmp_path, plan, whole, labels)
    excess = variance = 0.0
    for (_, prefix), outcomes in labels.outcomes.items():
        expected = value(prefix)
        excess += outcomes.right - outcomes.total * expected
        variance += outcomes.total * expected * (1 - expected)
        if expected == 0:
            assert outcomes.right == 0
    # Outcomes of the prefixes of one answer are one draw: their sum varies at most LENGTH times as much.
    assert abs(excess) < 4 * (LENGTH * variance) ** 0.5


def test_completions_of_a_prefix_are_fresh_draws():
    prefix = (RIGHT, RIGHT)
    result = motes.solve("Question?", lm=language_model(), reward=None, method=Completions(prefix, 2000), seed=1)
    assert all(trajectory.text.startswith("".join(prefix)) for trajectory in result.trajectories)
    right = sum(trajectory.text.endswith("\\boxed{1}") for trajectory in result.trajectories)
    expected = value(prefix)
    assert abs(right / 2000 - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5  # 1 in 16,000


def test_what_was_drawn_is_kept_and_not_drawn_again(tmp_path: Path):
    plan = Plan(answers=3, completions=5, prefixes=2, rounds=3)
    whole, labels = drawn(tmp_path, plan)
    seen: list[tuple[int, int]] = []

    class StopError(Exception):
        pass

    def observe(done: int, wanted: int) -> None:
        seen.append((done, wanted))
        if done == 25:
            raise StopError

    with pytest.raises(StopError):
        complete(tmp_path, plan, whole, labels, observe=observe, concurrency=1)
    assert seen[-1] == (25, 60)
    first = (tmp_path / COMPLETIONS).read_text()
    with (tmp_path / COMPLETIONS).open("a") as file:
        file.write('{"problem": "p1", "st')  # a torn line
    _, again = drawn(tmp_path, plan)
    complete(tmp_path, plan, whole, again)
    lines = (tmp_path / COMPLETIONS).read_text()
    assert lines.startswith(first)
    rows = [json.loads(line) for line in lines.splitlines()]
    assert len(rows) == 60
    assert len({(row["problem"], tuple(row["steps"])) for row in rows}) == 60
    assert all(row["total"] == 5 for row in rows)
    _, whole_again = drawn(tmp_path, plan)
    complete(tmp_path, plan, whole, whole_again, observe=lambda *_: pytest.fail("drawn again"))
    assert whole_again.outcomes == again.outcomes


# ----------------------------------------------------------------------------------------------------------- choosing


def labels_of(*answers: tuple[str, int, bool]) -> Labels:
    """Answers to problems, each of so many different steps."""
    labels = Labels()
    for number, (problem, length, right) in enumerate(answers):
        labels.messages[problem] = ()
        labels.add(Answer(problem, tuple(f"{number}.{depth}\n\n" for depth in range(length)), right))
    return labels


def mistake_at(depth: int, labels: Labels, answer: Answer) -> list[int]:
    """The depths at which bisection looks for a mistake in the step of this number, from 1."""
    looked = []
    while chosen := choose(labels, 1, "bisect", random.Random(0)):
        ((problem, prefix),) = chosen
        assert problem == answer.problem
        looked.append(len(prefix))
        labels.count(problem, prefix, Outcomes(8, 8) if len(prefix) < depth else Outcomes(0, 8))
    return looked


@pytest.mark.parametrize("depth", [1, 2, 5, 9, 16])
def test_bisection_finds_the_first_mistake(depth: int):
    labels = labels_of(("p", 16, False), ("p", 16, True), ("p", 16, True))
    answer = labels.answers[0]
    looked = mistake_at(depth, labels, answer)
    known = {0, 16, *looked[:4]}
    assert {depth - 1, depth} <= known, "halved four times"


def test_problems_whose_answers_agree_come_last():
    labels = labels_of(*(("even", 8, n % 2 == 0) for n in range(6)), *(("easy", 8, True) for _ in range(6)))
    chosen = choose(labels, 6, "uncertain", random.Random(0))
    assert Counter(problem for problem, _ in chosen) == {"even": 6}
    assert {len(prefix) for _, prefix in chosen} == {4}


def test_nothing_is_left_to_choose():
    labels = labels_of(("p", 1, False), ("p", 1, True))
    for how in ("uncertain", "bisect", "uniform"):
        assert choose(labels, 5, how, random.Random(0)) == []


def test_uniform_choices_are_those_not_known():
    labels = labels_of(("p", 4, True))
    answer = labels.answers[0]
    seen = set()
    for seed in range(40):
        ((_, prefix),) = choose(labels, 3, "uniform", random.Random(seed))
        seen.add(len(prefix))
    assert seen == {1, 2, 3}
    labels.count("p", answer.steps[:2], Outcomes(1, KNOWN))
    assert {len(choose(labels, 3, "uniform", random.Random(seed))[0][1]) for seed in range(40)} == {1, 3}


# ------------------------------------------------------------------------------------------------ evaluations of others


def test_answers_of_methods_that_choose_are_left_out(tmp_path: Path):
    whole = evaluation(tmp_path, problems=3)
    both = Evaluation(task=whole.task, lm=whole.lm, reward="worlds:reward_model", methods=("pf", "wbon"), budgets=(2,))
    asyncio.run(evaluate(both, tmp_path / "run"))
    assert len(list(read_evaluation(tmp_path / "run"))) == 6
    filters = Evaluation(task=whole.task, lm=whole.lm, reward="worlds:reward_model", methods=("pf",), budgets=(2,))
    asyncio.run(evaluate(filters, tmp_path / "filters"))
    with pytest.raises(ConfigurationError, match="drawn independently"):
        list(read_evaluation(tmp_path / "filters"))
    asyncio.run(evaluate(whole_of(both), tmp_path / "bare", traces=False))
    with pytest.raises(ConfigurationError, match="--traces"):
        list(read_evaluation(tmp_path / "bare"))


def whole_of(both: Evaluation) -> Evaluation:
    return Evaluation(task=both.task, lm=both.lm, reward=both.reward, methods=("wbon",), budgets=(2,))


@pytest.mark.parametrize("settings", [{"completions": 2}, {"answers": 0}, {"prefixes": -1}, {"how": "guess"}])
def test_settings_are_checked(settings: dict):
    with pytest.raises(ConfigurationError):
        Plan(**settings)
