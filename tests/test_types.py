"""Problems, the tree of trajectories, sampling, usage, results."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motes import Problem, Result, Sampling, Scores, Step, Trajectory, Usage
from motes.errors import ConfigurationError

# ---------------------------------------------------------------------------------------------------------- problems


def test_a_problem_is_a_question_in_a_conversation():
    problem = Problem("2+2?", id="p1", answer="4", system="Be brief.")
    assert problem.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"})
    assert (problem.question, problem.system, problem.id, problem.answer) == ("2+2?", "Be brief.", "p1", "4")
    assert Problem(messages=problem.messages).question == "2+2?"
    assert Problem(messages=[{"role": "user", "content": "2+2?"}]) == Problem("2+2?")
    assert Problem("2+2?").system is None


def test_problems_are_values():
    first, second = Problem("2+2?", id="a"), Problem("2+2?", id="a")
    assert first == second
    assert len({first, second, Problem("2+2?", id="b"), Problem("2+2?", id="a", system="Be brief.")}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.question = "3+3?"  # type: ignore[misc]
    message = {"role": "user", "content": "2+2?"}
    copied = Problem(messages=[message])
    message["content"] = "3+3?"
    assert copied == Problem("2+2?")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "the question is empty"),
        ({"question": ""}, "the question is empty"),
        ({"question": " \n"}, "the question is empty"),
        ({"messages": []}, "must end with"),
        ({"messages": [{"role": "assistant", "content": "4"}]}, "must end with"),
        ({"messages": [{"content": "2+2?"}]}, "must end with"),
        ({"messages": [{"role": "user", "content": " "}]}, "the question is empty"),
        ({"messages": [{"role": "user"}]}, "needs a `content`"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "needs a `content`"),
        ({"messages": [{"role": "user", "content": "?"}], "question": "?"}, "not both"),
        ({"messages": [{"role": "user", "content": "?"}], "system": "Be brief."}, "not both"),
    ],
)
def test_problems_that_ask_nothing_are_refused(arguments: dict[str, object], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        Problem(**arguments)


# ------------------------------------------------------------------------------------------------------ trajectories


def test_a_trajectory_is_an_immutable_path_in_a_tree():
    root = Trajectory(Problem("?"))
    child = root.extend(Step("a\n\n", "step", (1, 2)))
    left, right = child.extend(Step("b", "eos", (3,))), child.extend(Step("c", "length", (4, 5, 6)))
    assert (root.text, root.depth, root.steps, root.path, root.num_tokens, root.parent) == ("", 0, (), (), 0, None)
    assert left.parent is right.parent is child
    assert child.parent is root
    assert left.path == (child, left)
    assert (left.text, right.text) == ("a\n\nb", "a\n\nc")
    assert (left.depth, left.num_tokens, right.num_tokens) == (2, 3, 5)
    assert [step.text for step in right.steps] == ["a\n\n", "c"]
    assert (root.finished, child.finished, left.finished, right.finished) == (None, None, "eos", None)
    assert "depth=2" in repr(left)


def test_equality_is_identity():
    root, step = Trajectory(Problem("?")), Step("a", "step")
    assert root.extend(step) != root.extend(step)
    assert len({root.extend(step), root.extend(step)}) == 2


def test_what_is_finished_stays_as_it_is():
    root = Trajectory(Problem("?"))
    child = root.extend(Step("a", "step"))
    done = child.finish("max_steps")
    assert (child.finished, done.finished) == (None, "max_steps")
    assert (done.parent, done.step, done.text, done.depth) == (root, child.step, "a", 1)
    assert root.extend(Step("a", "step"), "answer").finished == "answer"
    for finished in (done, root.extend(Step("a", "eos")), root.finish("max_tokens")):
        with pytest.raises(ValueError, match="finished"):
            finished.extend(Step("b", "step"))


def test_depth_is_not_bounded_by_recursion():
    node = Trajectory(Problem("?"))
    for _ in range(5000):
        node = node.extend(Step("ab", "step", (1,)))
    assert (node.text, node.num_tokens) == ("ab" * 5000, 5000)


@given(st.lists(st.text(max_size=5), max_size=8))
def test_text_is_the_concatenation_of_the_steps(texts: list[str]):
    node = Trajectory(Problem("?"))
    for text in texts:
        node = node.extend(Step(text, "step"))
    assert node.text == "".join(texts)
    assert [step.text for step in node.steps] == texts
    assert [ancestor.depth for ancestor in node.path] == list(range(1, len(texts) + 1))


# ---------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("max_step_tokens", 0),
        ("max_tokens", 0),
        ("max_steps", 0),
        ("delimiter", ""),
        ("delimiter", ("\n\n", "")),
    ],
)
def test_sampling_out_of_range_is_refused(field: str, value: object):
    with pytest.raises(ConfigurationError, match=f"Sampling: .*{field}"):
        Sampling(**{field: value})
    with pytest.raises(ConfigurationError, match=f"Sampling: .*{field}"):
        Sampling().replace(**{field: value})


def test_sampling_at_its_bounds_is_accepted():
    Sampling(temperature=0, top_p=1, top_k=0, min_p=0, max_step_tokens=1, max_tokens=1, max_steps=1)
    Sampling(top_p=1e-9, min_p=1, max_tokens=None)


@pytest.mark.parametrize(
    ("delimiter", "delimiters"), [("\n\n", ("\n\n",)), (("\n", ";"), ("\n", ";")), (None, ()), ((), ())]
)
def test_delimiters(delimiter: str | tuple[str, ...] | None, delimiters: tuple[str, ...]):
    assert Sampling(delimiter=delimiter).delimiters == delimiters


# ------------------------------------------------------------------------------------------------- usage and results

usages = st.builds(Usage, *[st.integers(0, 10**9)] * len(dataclasses.fields(Usage)))


@given(usages, usages, usages)
def test_usage_is_additive(a: Usage, b: Usage, c: Usage):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Usage() == a
    assert (a + b) - b == a
    assert {name: a.to_dict()[name] + b.to_dict()[name] for name in a.to_dict()} == (a + b).to_dict()
    assert a.total_tokens == a.generated_tokens + a.prefill_tokens + a.reward_tokens


def test_scores_are_numbers_that_know_their_cost():
    scores = Scores([0.1, 0.9], Usage(reward_tokens=7))
    assert scores == (0.1, 0.9)
    assert scores.usage.reward_tokens == 7


def test_confidence_is_the_answers_share_of_the_posterior():
    result = Result(Problem("?"), "Majority", 0, answer="1", posterior={"2": 0.5, "1": 0.25})
    assert result.confidence == 0.25
    assert dataclasses.replace(result, answer=None).confidence == 0.0
