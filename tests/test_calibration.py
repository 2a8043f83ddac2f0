"""Scores made probabilities: the fit against known maps and an independent one, the order of scores, files, names, the
command line."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import optimize

import motes
import worlds
from motes import CalibratedReward, Calibration, FunctionReward, Problem, Scores, Step, Trajectory, Usage
from motes.cli import main
from motes.core import NEUTRAL, Failure
from motes.errors import ConfigurationError, RewardError
from motes.lab.corruption import CorruptedReward
from motes.lab.measure.calibration import Labelled, calibrate, isotonic_regression, read_labelled, score_labelled
from motes.lab.measure.reliability import brier_score, expected_calibration_error
from motes.tasks import Arithmetic
from motes.tasks.arithmetic import parse

SCORES = st.lists(
    st.sampled_from([0.0, 0.1, 0.1 + 1e-12, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1), min_size=1, max_size=40
)


def drawn(n: int, truth: Any, seed: int = 0) -> list[Labelled]:
    """n answers, each to a question of its own, scored uniformly and right with probability truth(score)."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return [Labelled(int(rng.random() < truth(r)), score=float(r)) for r in scores]


# ------------------------------------------------------------------------------------------------------------- the fit


@given(SCORES, st.integers(0, 2**32))
def test_the_regression_is_scipys(scores: list[float], seed: int):
    """scipy knows no ties: equal scores are given to it as one, weighted."""
    r = np.array(scores)
    y = np.random.default_rng(seed).integers(2, size=len(r)).astype(float)
    _, place, counts = np.unique(r, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=y) / counts
    expected = optimize.isotonic_regression(means, weights=counts).x[place]
    assert isotonic_regression(r, y) == pytest.approx(expected, abs=1e-12)


def test_the_regression_by_hand():
    r = np.array([0.9, 0.1, 0.5, 0.5, 0.3])
    y = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    # in order: 0.1 → 1, 0.3 → 0, 0.5 → 1/2 (twice), 0.9 → 1: the first two are pooled to 1/2, which 1/2 joins
    assert isotonic_regression(r, y).tolist() == [1.0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "truth",
    [lambda r: r, lambda r: r**2, math.sqrt, lambda r: 0.2 + 0.5 * r, lambda r: 0.9 if r > 0.6 else 0.1, lambda r: 0.4],
    ids=["identity", "overconfident", "underconfident", "flat", "a step", "no information"],
)
def test_a_known_map_is_found(truth: Any):
    """Within 0.05 on average; of 20 000 labels a bin of 500 has a standard error of 0.022."""
    calibration, held_out = calibrate(drawn(20_000, truth), slope=0.001)
    grid = np.linspace(0.02, 0.98, 97)
    gaps = [abs(calibration(float(r)) - truth(float(r))) for r in grid]
    assert np.mean(gaps) < 0.03
    assert np.quantile(gaps, 0.95) < 0.1
    before, after = held_out.ece
    true_gap = float(np.mean([abs(truth(float(r)) - r) for r in grid]))
    assert before == pytest.approx(true_gap, abs=0.04)
    assert after < 0.02
    assert held_out.brier[1] <= held_out.brier[0] + 1e-3


def test_what_is_held_out_is_not_fitted_to():
    """Labels that have nothing to do with scores: a map that had seen them would look better than a coin."""
    _, held_out = calibrate([Labelled(i % 2, score=s) for i, s in enumerate(np.random.default_rng(1).random(400))])
    assert held_out.brier[1] > 0.25


def test_answers_to_one_question_are_held_out_together():
    """One question is always right at 0.2, the other never at 0.8. Who knows both says one half; who knows only the
    other one is wrong about each."""
    answers = [Labelled(int(q == 0), question=f"{q}?", score=0.2 + 0.6 * q) for q in (0, 1) for _ in range(50)]
    calibration, held_out = calibrate(answers)
    apart = calibrate([Labelled(a.label, score=a.score) for a in answers])[1]
    assert (held_out.folds, held_out.brier[1] > 0.9) == (2, True)
    assert (apart.folds, apart.brier[1]) == (5, pytest.approx(0.25, abs=0.01))
    assert (calibration.provenance["questions"], calibration.provenance["labels"]) == (2, 100)


def test_no_probability_is_claimed_beyond_what_the_labels_show():
    answers = [Labelled(int(i >= 10), score=i / 20) for i in range(20)]
    calibration, _ = calibrate(answers, slope=0.0)
    assert (calibration(0.0), calibration(1.0)) == (pytest.approx(1 / 22), pytest.approx(21 / 22))


@pytest.mark.parametrize(
    ("answers", "options", "complaint"),
    [
        (
            [Labelled(1, score=0.5)] * 4 + [Labelled(0, score=0.5)] * 4,
            {},
            "8 labelled answers, 4 of them right: at least 10",
        ),
        ([Labelled(1, score=0.5)] * 40, {}, "some right and some wrong"),
        ([Labelled(0, score=0.5)] * 40, {}, "some right and some wrong"),
        ([Labelled(i % 2, question="?", score=0.5) for i in range(40)], {}, "answers to several"),
        (drawn(40, lambda r: r), {"folds": 1}, "folds must be at least 2"),
        (drawn(40, lambda r: r), {"slope": 1.5}, r"numbers must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_fitted(answers: list[Labelled], options: dict[str, Any], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        calibrate(answers, **options)


def test_errors_by_hand():
    p = np.array([0.05, 0.15, 0.16, 0.95, 1.0])
    y = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    assert expected_calibration_error(p, y) == pytest.approx((0.05 + abs(1 - 0.31) + abs(2 - 1.95)) / 5)
    assert brier_score(p, y) == pytest.approx((0.05**2 + 0.85**2 + 0.16**2 + 0.05**2) / 5)


# ----------------------------------------------------------------------------------------------------------- the order


@given(SCORES, st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.3, 1.0]), st.floats(0, 1), st.floats(0, 1))
@example([0.0, 1.0] * 6, 0, 0.01, 0.0, 1.0)
def test_an_order_is_never_inverted(scores: list[float], seed: int, slope: float, a: float, b: float):
    labels = np.random.default_rng(seed).integers(2, size=len(scores))
    answers = [Labelled(int(y), score=s) for y, s in zip(labels, scores, strict=True)]
    answers += [Labelled(i % 2, score=0.5) for i in range(10)]
    calibration, _ = calibrate(answers, slope=slope)
    low, high = sorted((a, b))
    near = math.nextafter(low, 1.0)
    for first, second in ((low, high), (low, near), *zip(sorted(scores), sorted(scores)[1:], strict=False)):
        assert 0 <= calibration(first) <= calibration(second) <= 1
        if slope and second - first > 1e-9:
            assert calibration(first) < calibration(second)


def test_rounding_inverts_no_order():
    assert 0.185 + (0.961 - 0.185) * 1.0 > 0.961
    calibration = Calibration((0.2, 0.8, 0.9), (0.185, 0.961, 0.961), slope=0.0)
    assert calibration(0.8) == calibration(0.85) == 0.961


def test_plateaus_collapse_and_a_slope_keeps_the_ranking():
    answers = drawn(400, lambda r: 0.9 if r > 0.5 else 0.1)
    scores = sorted({a.score for a in answers if a.score is not None})
    flat, _ = calibrate(answers, slope=0.0)
    steep, _ = calibrate(answers, slope=0.01)
    assert len({flat(score) for score in scores}) < 100
    assert len({steep(score) for score in scores}) == len(scores)
    assert max(abs(flat(score) - steep(score)) for score in scores) <= 0.01


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (((0.1, 0.1), (0.2, 0.3)), "scores must be strictly increasing"),
        (((0.2, 0.1), (0.2, 0.3)), "scores must be strictly increasing"),
        (((0.1, 0.2), (0.3, 0.2)), "probabilities must not decrease"),
        (((0.1, 0.2), (0.3,)), "a probability each"),
        (((), ()), "one at least"),
        (((0.1,), (1.3,)), r"must lie in \[0, 1\]"),
        (((0.1,), (float("nan"),)), r"must lie in \[0, 1\]"),
        (((0.1,), ("x",)), r"must lie in \[0, 1\]"),
        (((0.1,), (0.5,), -1), r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_calibration(arguments: Any, complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        Calibration(*arguments)


# ------------------------------------------------------------------------------------------------ a calibrated reward

HALF = Calibration((0.0, 1.0), (0.0, 0.5), slope=0.0)


def path(*texts: str) -> Trajectory:
    node = Trajectory(Problem("?"))
    for text in texts:
        node = node.extend(Step(text, "step"))
    return node


def score(reward: Any, *trajectories: Trajectory) -> list[Sequence[float]]:
    return asyncio.run(reward.score(trajectories))


class Costly:
    num_parameters = 12

    async def score(self, trajectories: Sequence[Trajectory]) -> Any:
        failure = Failure(RewardError("I cannot read x"))
        return [
            failure if "x" in t.text else Scores([0.8] * t.depth, Usage(reward_tokens=t.depth)) for t in trajectories
        ]


@pytest.mark.parametrize(
    "wrap", [lambda reward: CalibratedReward(reward, HALF), lambda reward: CorruptedReward(reward, factor=2)]
)
def test_costs_failures_and_size_are_those_of_the_model_inside(wrap: Any):
    reward = wrap(Costly())
    (found,) = score(reward, path("a", "b"))
    assert isinstance(found, Scores)
    assert found.usage == Usage(reward_tokens=2)
    assert reward.num_parameters == 12
    first, second = score(reward, path("a"), path("x"))
    assert first == (found[0],), "those that could be scored are changed like any other"
    assert isinstance(second, Failure)
    assert str(second.error) == "I cannot read x"


def test_every_score_is_mapped():
    reward = CalibratedReward(FunctionReward(lambda problem, text: len(text) / 10), HALF)
    assert score(reward, path("a", "bc")) == [[0.05, 0.15]]
    assert reward.num_parameters is None


@pytest.mark.parametrize("outcome", [False, True])
def test_it_keeps_the_contract(outcome: bool):
    calibration, _ = calibrate(drawn(200, lambda r: r**2))
    inside = FunctionReward(lambda problem, text: (len(problem.question) + 7 * len(text)) % 101 / 101, outcome=outcome)
    motes.check_reward_model(CalibratedReward(inside, calibration))


def test_what_is_not_finished_stays_neutral_for_an_outcome():
    reward = CalibratedReward(FunctionReward(lambda problem, text: 0.8, outcome=True), HALF)
    begun = path("a")
    assert score(reward, begun.extend(Step("b", "eos")), begun) == [[NEUTRAL, 0.4], [NEUTRAL]]


# --------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOTES_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_file_is_small_readable_and_says_where_it_comes_from(home: Path):
    calibration, held_out = calibrate(drawn(500, lambda r: r**2), reward="tiny?prefix=whole")
    saved = calibration.save("mine")
    assert saved == home / "home" / "calibrations" / "mine.json"
    text = saved.read_text()
    assert len(text.splitlines()) == 12
    held = json.loads(text)
    assert (held["format"], held["reward"], held["labels"], held["slope"]) == (
        "motes calibration 1", "tiny?prefix=whole", 500, 0.01,
    )  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", held["date"])
    assert held["held_out"]["ece"] == list(held_out.ece)
    again = Calibration.load("mine")
    assert again == calibration
    assert dict(again.provenance)["right"] == calibration.provenance["right"]
    file = home / "deep" / "other.json"
    assert again.save(str(file)) == file
    assert Calibration.load(str(file)) == again
    assert again.save("mine") == saved, "a calibration may be replaced"
    assert not list(home.rglob("*.partial"))


@pytest.mark.parametrize(
    ("held", "complaint"),
    [
        ("{", "cannot be read"),
        ("[]", "is no calibration"),
        ('{"scores": [0.1]}', "is no calibration"),
        ('{"format": "motes calibration 1", "slope": 0, "scores": [0.1]}', "is damaged"),
        ('{"format": "motes calibration 1", "slope": 0, "scores": [0.1], "probabilities": [7]}', "is damaged"),
        ('{"format": "motes calibration 1", "slope": 0, "scores": 3, "probabilities": [0.7]}', "is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_never_written_over(home: Path, held: str, complaint: str):
    file = home / "some.json"
    file.write_text(held)
    with pytest.raises(ConfigurationError, match=f"some.json.*{complaint}"):
        Calibration.load(str(file))
    with pytest.raises(ConfigurationError, match=complaint):
        HALF.save(str(file))
    assert file.read_text() == held


@pytest.mark.parametrize("name", ["", " ", "a b", "-x", "a?b", "a&b=c"])
def test_what_cannot_be_a_name(home: Path, name: str):
    with pytest.raises(ConfigurationError, match="cannot name a calibration"):
        HALF.save(name)
    assert not (home / "home").exists()


def test_a_reward_model_is_opened_with_one(home: Path):
    HALF.save("half")
    reward = motes.reward_model("worlds:reward_model?noise=0&calibration=half")
    assert isinstance(reward, CalibratedReward)
    plain = worlds.reward_model(0)
    (found,), (expected,) = score(reward, path("a", "b")), score(plain, path("a", "b"))
    assert found == pytest.approx([s / 2 for s in expected])
    file = HALF.save(str(home / "half.json"))
    again = motes.reward_model("worlds:reward_model", noise=0, calibration=str(file))
    assert score(again, path("a", "b")) == [found]
    assert isinstance(motes.reward_model("judge:examiner:model?calibration=half"), CalibratedReward)
    for name in ("quarter", str(home / "quarter.json")):
        with pytest.raises(ConfigurationError, match=r"there is no calibration .*quarter.*`motes calibrate` makes one"):
            motes.reward_model(f"hf:no/such/model?calibration={name}")


# ------------------------------------------------------------------------------------------------------- labelled files


def test_every_form_of_a_line(tmp_path: Path):
    file = tmp_path / "labelled.jsonl"
    lines = [
        {"question": "2+2?", "steps": ["Two twos.", "So \\boxed{4}."], "label": 1, "level": 3},
        {"question": "2+2?", "text": "Two twos.\n\nSo\n\\boxed{5}.", "label": 0},
        {"question": "2+2?", "score": 0.25, "label": False},
        {"score": 1, "label": 1},
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    steps, text, question, score_only = read_labelled(file)
    assert [step.text for step in steps.trajectory.steps] == ["Two twos.\n\n", "So \\boxed{4}."]
    assert [step.text for step in text.trajectory.steps] == ["Two twos.\n\n", "So\n\\boxed{5}."]
    assert (steps.trajectory.finished, steps.trajectory.problem.question) == ("eos", "2+2?")
    assert (question.question, question.score, question.label) == ("2+2?", 0.25, 0)
    assert (score_only.question, score_only.score) == (None, 1.0)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: it is not a JSON object"),
        ('{"score": 0.5}', "line 2: `label` must be 0 or 1, not None"),
        ('{"score": 0.5, "label": 2}', "not 2"),
        ('{"score": 0.5, "label": "1"}', "not '1'"),
        ('{"score": 1.5, "label": 1}', r"`score` must be a number in \[0, 1\], not 1.5"),
        ('{"score": NaN, "label": 1}', "not nan"),
        ('{"steps": ["a"], "label": 1}', "needs a `question`"),
        ('{"question": " ", "steps": ["a"], "label": 1}', "needs a `question`"),
        ('{"question": "?", "label": 1}', "needs `steps`"),
        ('{"question": "?", "steps": [], "label": 1}', "needs `steps`"),
        ('{"question": "?", "steps": [1], "label": 1}', "needs `steps`"),
        ('{"question": "?", "text": "", "label": 1}', "needs `steps`"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, complaint: str):
    file = tmp_path / "labelled.jsonl"
    file.write_text('{"score": 0.5, "label": 1}\n' + line + "\n")
    with pytest.raises(ConfigurationError, match=complaint):
        read_labelled(file)


def test_answers_are_scored_by_their_last_step_and_what_cannot_be_is_left_out():
    answers = [Labelled(1, "?", ("a", "b")), Labelled(0, "?", ("x",)), Labelled(0, score=0.3), Labelled(1, "?", ("c",))]
    scored, usage = asyncio.run(score_labelled(Costly(), answers))
    assert sorted((a.score, a.label) for a in scored) == [(0.3, 0), (0.8, 1), (0.8, 1)]
    assert usage == Usage(reward_tokens=3)
    with pytest.raises(RewardError, match="none of 1 answers could be scored; the first: I cannot read x"):
        asyncio.run(score_labelled(Costly(), [answers[1]]))


# ---------------------------------------------------------------------------------------------------- the command line


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def labelled(folder: Path, n: int = 60) -> Path:
    """Answers to the arithmetic task, of which the fake reward model knows which are right."""
    file = folder / "labelled.jsonl"
    lines = []
    for i, problem in enumerate(Arithmetic().problems(limit=n)):
        story = parse(problem.question)
        steps = list(story.steps)
        if i % 3 == 0:
            steps[0] = worlds._spoil(steps[0], random.Random(i))
        lines.append({"question": problem.question, "steps": steps, "label": int(i % 3 > 0)})
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_from_labels_to_a_calibrated_answer(home: Path, capsys: Any):
    file = labelled(home)
    ask = ("calibrate", file, "--reward", "worlds:reward_model?noise=0", "--out", "mine")
    code, out, err = run(capsys, *ask)
    assert (code, err) == (0, "")
    assert "60 labels, 40 of them right, 60 questions" in out
    before, after = map(float, re.search(r"^expected calibration error +([\d.]+) +([\d.]+)$", out, re.M).groups())
    assert after < before
    assert re.search(r"^Brier score +[\d.]+ +[\d.]+$", out, re.MULTILINE)
    spec = re.search(r"--reward '(.*)'$", out, re.MULTILINE)[1]
    assert spec == "worlds:reward_model?noise=0&calibration=mine"
    question = Arithmetic().problems()[2].question
    code, out, err = run(capsys, "solve", question, "--model", "worlds:language_model", "--reward", spec, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["reward"] == spec


def test_scores_that_are_there_need_no_reward_model(home: Path, capsys: Any):
    file = home / "scored.jsonl"
    file.write_text("\n".join(json.dumps({"score": a.score, "label": a.label}) for a in drawn(200, lambda r: r**2)))
    code, out, err = run(capsys, "calibrate", file, "--out", home / "new.json")
    assert (code, err) == (0, "")
    assert f"use it as --reward 'SPEC?calibration={home / 'new.json'}'" in out
    assert Calibration.load(str(home / "new.json")).provenance["reward"] is None


def test_it_says_when_scores_are_better_without(home: Path, capsys: Any):
    file = home / "scored.jsonl"
    file.write_text("\n".join(json.dumps({"score": a.score, "label": a.label}) for a in drawn(60, lambda r: r)))
    code, out, err = run(capsys, "calibrate", file, "--out", "useless")
    assert (code, err) == (
        0,
        "motes: held out, the uncalibrated scores do better: use them, or add more labels\n",
    )
    assert "written: " in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["missing.jsonl", "--out", "x"], "missing.jsonl cannot be read"),
        (["labelled.jsonl", "--out", "x"], "name the reward model by --reward"),
        (["labelled.jsonl", "--out", "x", "--reward", "none"], "name the reward model by --reward"),
        (["labelled.jsonl", "--out", "x", "--reward", "gpt"], "names no model"),
        (["labelled.jsonl", "--out", "a b", "--reward", "gpt"], "cannot name a calibration"),
        (["labelled.jsonl", "--out", "other.json", "--reward", "gpt"], "is no calibration"),
        (["labelled.jsonl", "--reward", "worlds:reward_model"], "--out"),
        (["labelled.jsonl", "--out", "x", "--slope", "2"], "slope"),
        (["labelled.jsonl", "--out", "x", "--folds", "1"], "folds"),
        (["few.jsonl", "--out", "x"], "at least 10 are needed"),
        (["bad.jsonl", "--out", "x"], "bad.jsonl, line 1: `label` must be"),
        ([], "data"),
    ],
)
def test_one_clear_line_and_exit_code_2(
    home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
):
    monkeypatch.chdir(home)
    labelled(home, 12)
    (home / "few.jsonl").write_text('{"score": 0.5, "label": 1}\n')
    (home / "bad.jsonl").write_text('{"score": 0.5, "label": "yes"}\n')
    (home / "other.json").write_text("{}")
    code, out, err = run(capsys, "calibrate", *words)
    assert (code, out) == (2, "")
    assert complaint.lower() in err.lower()
    assert err.startswith("motes: ")
    assert err.count("\n") == 1
    assert not (home / "home").exists()
