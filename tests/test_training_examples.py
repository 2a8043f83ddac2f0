"""Examples from answers and from files of others, their split, and the refusal of data that cannot carry a model."""

from __future__ import annotations

import numpy as np
import pytest

from motes import Problem
from motes.errors import ConfigurationError
from motes.lab.measure.labelled_steps import LabelledSteps
from motes.training.examples import (
    Example,
    examples_of_labels,
    examples_of_steps,
    measure,
    require_enough,
    split,
)
from motes.training.outcomes import Answer, Labels, Outcomes


def labels_of(problems: int, right: int = 2, answers: int = 4) -> Labels:
    """Problems with so many answers of three steps, so many of them right."""
    labels = Labels()
    for problem in range(problems):
        name = f"p{problem}"
        labels.messages[name] = ({"role": "user", "content": f"Question {problem}?"},)
        for number in range(answers):
            steps = ("The same first step.\n\n", f"Step {number}.\n\n", "The end.")
            labels.add(Answer(name, steps, number < right))
    return labels


def examples(problems: int, right: int = 2) -> list[Example]:
    return examples_of_labels(labels_of(problems, right), lambda name: Problem(f"Question {name}?"))


def test_prefixes_have_the_outcomes_of_all_answers_that_begin_with_them():
    first, *_, last = examples(1)
    assert first.outcomes == ((2, 4), (1, 1), (1, 1))
    assert last.outcomes == ((0, 0), (0, 1), (0, 1)), "the first answer has those of the step that they share"
    assert first.counts.tolist() == [[2, 2], [0, 1], [0, 1]]
    assert [node.depth for node in first.path] == [1, 2, 3]
    assert first.answer.finished == "eos"
    assert first.answer.text == "The same first step.\n\nStep 0.\n\nThe end."
    assert first.path[0].parent is last.path[0].parent, "prompts are shared"


def test_completions_count_for_their_prefix_alone():
    labels = labels_of(1)
    labels.count("p0", ("The same first step.\n\n", "Step 3.\n\n"), Outcomes(3, 5))
    last = examples_of_labels(labels, lambda name: Problem(name))[-1]
    assert last.outcomes == ((0, 0), (3, 6), (0, 1))


def test_files_of_others():
    rows = [
        LabelledSteps.chain("Q?", ["a", "b", "c"], [True, False, None]),
        LabelledSteps("Q?", ("a", "b", "c"), (None, 0, 0), (True, True, False), 2),  # with an alternative to b
    ]
    chain, *tree = examples_of_steps(rows)
    assert chain.outcomes == ((1, 1), (0, 1), (0, 0))
    assert [example.outcomes for example in tree] == [((1, 1), (1, 1)), ((0, 0), (0, 1))]
    assert [example.answer.text.split() for example in tree] == [["a", "b"], ["a", "c"]]
    assert chain.problem == tree[0].problem


def test_a_problem_is_on_one_side_and_stays_there():
    every = examples(400)
    trained, held_out = split(every, 0.2)
    names = {example.problem for example in trained}, {example.problem for example in held_out}
    assert not names[0] & names[1]
    assert len(trained) + len(held_out) == len(every)
    assert 50 < len(names[1]) < 110  # 80 ± 8; fixed by the names
    _, fewer = split(examples(100), 0.2)
    assert {example.problem for example in fewer} <= names[1]


def test_too_few_mixed_problems_are_refused():
    require_enough(examples(30), examples(10))
    with pytest.raises(
        ConfigurationError, match=r"30 of them are needed to train on, and 20 of .* about 10 problems more"
    ):
        require_enough(examples(20), examples(10))
    with pytest.raises(ConfigurationError, match=r"10 of them are needed to test on, and 0 of 0 problems"):
        require_enough(examples(30), [])
    for right, advice in ((0, "take easier problems"), (4, "take harder problems")):
        with pytest.raises(ConfigurationError, match=rf"and 0 of 90 problems are such\. .*: {advice}"):
            require_enough(examples(90, right), examples(10))


def test_quality():
    held_out = examples(50)
    perfect = [[right / max(total, 1) for right, total in example.outcomes] for example in held_out]
    quality = measure(held_out, perfect)
    assert quality.abreast.value == pytest.approx((4 * 0.5 + 4 + 4) / 12)
    assert 0.5 < quality.within.value < 1
    assert quality.by_depth[1].value == 0.5, "one prefix for all"
    assert quality.by_depth[2].value == quality.by_depth[3].value == 1.0
    assert quality.calibration == pytest.approx(0, abs=1e-6)
    even = measure(held_out, [[0.5] * 3] * len(held_out))
    assert even.loss == pytest.approx(np.log(2))
    assert quality.loss < even.loss
    inverted = measure(held_out, [[1 - score for score in scores] for scores in perfect])
    assert inverted.abreast.value == pytest.approx(1 - quality.abreast.value)
