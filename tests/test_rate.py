"""A reward model by itself on labelled steps: readers of published forms, first-error F1, resuming, the command."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strangers
from motes import Trajectory, __version__
from motes.cli import main
from motes.core import Failure, Reads, Scores, Usage
from motes.errors import ConfigurationError, RewardError, RunDirectoryError, UnauthorizedError
from motes.lab import LabelledSteps, StepFile, rate
from motes.lab.measure.first_errors import Answers, FirstErrors
from motes.lab.measure.rated import Rated, Tally
from motes.lab.measure.rating_run import RATINGS, REFUSED
from motes.lab.show.writing import write_rating

PRM800K = {
    "labeler": "a",
    "question": {"problem": "Q?", "ground_truth_answer": "4"},
    "label": {
        "steps": [
            {"completions": [{"text": "A", "rating": 0, "flagged": None}], "human_completion": None,
             "chosen_completion": 0},
            {"completions": [{"text": "B", "rating": 1}, {"text": "B2", "rating": -1}], "human_completion": None,
             "chosen_completion": 0},
            {"completions": [{"text": "C", "rating": -1}, {"text": "C2", "rating": 0}, {"text": "C3", "rating": None}],
             "human_completion": None, "chosen_completion": None},
        ],
        "finish_reason": "found_error",
    },
}  # fmt: skip
SHEPHERD = {
    "input": "How many? Step 1: 1+1 = <<1+1=2>>2. ки\nStep 2: 2-3 = -1. ки\nStep 3: The answer is: -1 ки",
    "label": "How many? Step 1: 1+1 = <<1+1=2>>2. +\nStep 2: 2-3 = -1. -\nStep 3: The answer is: -1 -",
    "task": "GSM8K",
}
BENCH = {"id": "gsm8k-0", "generator": "m", "problem": "Q?", "steps": ["a", "b", "c"], "final_answer_correct": False,
         "label": 1}  # fmt: skip


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read(path: Path, form: str | None = None) -> list[LabelledSteps | None]:
    return [reader() for _, reader in StepFile.open(path, form).read()]


class TestForms:
    @pytest.mark.parametrize(
        ("row", "form", "texts", "right", "first_error"),
        [
            (BENCH, "processbench", "abc", (True, False, False), 1),
            ({**BENCH, "label": -1}, "processbench", "abc", (True, True, True), -1),
            ({**BENCH, "label": 0}, "processbench", "abc", (False, False, False), 0),
            ({"question": "Q?", "steps": ["a", "b"], "labels": [1, 0]}, "steps", "ab", (True, False), 1),
            ({"question": "Q?", "steps": ["a", "b"], "labels": [1, None]}, "steps", "ab", (True, None), None),
            ({"question": "Q?", "steps": ["a", "b"], "labels": [0, None]}, "steps", "ab", (False, None), 0),
            ({"prompt": "Q?", "completions": ["a", "b"], "labels": [False, True]}, "trl", "ab", (False, True), 0),
        ],
    )
    def test_chains(self, tmp_path, row, form, texts, right, first_error):
        path = written(tmp_path / "x.jsonl", row)
        assert StepFile.open(path).form == form
        (one,) = read(path)
        assert (one.question, one.texts, one.right, one.first_error) == ("Q?", tuple(texts), right, first_error)
        assert (one.parents, one.length) == ((None, 0, 1)[: len(texts)], len(texts))
        *_, last = one.trajectories()
        assert last.finished == "eos"
        assert last.text == "\n\n".join(texts)

    def test_math_shepherd(self, tmp_path):
        path = written(tmp_path / "x.jsonl", SHEPHERD)
        assert StepFile.open(path).form == "math-shepherd"
        (one,) = read(path)
        assert one.question == "How many?"
        assert one.texts == ("Step 1: 1+1 = <<1+1=2>>2.", "Step 2: 2-3 = -1.", "Step 3: The answer is: -1")
        assert (one.right, one.first_error) == ((True, False, False), 1)

    def test_prm800k_is_a_tree(self, tmp_path):
        path = written(tmp_path / "x.jsonl", PRM800K)
        assert StepFile.open(path).form == "prm800k"
        (one,) = read(path)
        assert one.texts == ("A", "B", "C", "B2", "C2", "C3")
        assert one.parents == (None, 0, 1, 0, 1, 1)
        assert one.right == (True, True, False, False, True, None)
        assert (one.length, one.first_error, one.is_complete) == (3, 2, False)
        assert one.leaves == (2, 3, 4, 5)
        assert [node.text for node in one.trajectories()][2:5] == ["A\n\nB\n\nC\n\n", "A\n\nB2\n\n", "A\n\nB\n\nC2\n\n"]
        assert all(node.finished is None for node in one.trajectories())

    @pytest.mark.parametrize(("reason", "first_error", "complete"), [("solution", -1, True), ("give_up", None, False)])
    def test_prm800k_without_an_error(self, tmp_path, reason, first_error, complete):
        human = {"completions": [{"text": "B", "rating": -1}], "human_completion": {"text": "H"},
                 "chosen_completion": None}  # fmt: skip
        label = {"steps": [PRM800K["label"]["steps"][0], human], "finish_reason": reason}
        (one,) = read(written(tmp_path / "x.jsonl", {**PRM800K, "label": label}))
        assert one.texts == ("A", "H", "B")
        assert one.right == (True, True, False)
        assert (one.first_error, one.is_complete) == (first_error, complete)

    def test_behind_a_wrong_step_everything_is_wrong(self, tmp_path):
        steps = [
            {"completions": [{"text": t, "rating": r}], "chosen_completion": 0}
            for t, r in zip("ABC", (1, -1, 1), strict=True)
        ]
        (one,) = read(
            written(tmp_path / "x.jsonl", {**PRM800K, "label": {"steps": steps, "finish_reason": "solution"}})
        )
        assert (one.right, one.first_error) == ((True, False, False), 1)

    def test_an_array_and_a_mark_at_its_beginning(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_text("\ufeff \n" + json.dumps([BENCH, BENCH], indent=1))
        assert len(read(path)) == StepFile.open(path).rows == 2

    @pytest.mark.parametrize(
        ("row", "form", "words"),
        [
            ({**BENCH, "label": 3}, None, "from 0 to 2, not 3"),
            ({**BENCH, "label": True}, None, "`label` must be"),
            ({**BENCH, "problem": " "}, None, "the question must be a text"),
            ({**BENCH, "steps": []}, None, "`steps` must be a list of texts"),
            ({"question": "Q", "steps": ["a"], "labels": [1, 0]}, None, "2 labels for 1 steps"),
            ({"question": "Q", "steps": ["a"], "labels": [2]}, None, "a list of 1, 0 and null"),
            ({**SHEPHERD, "label": SHEPHERD["label"].replace("+\n", "?\n")}, None, "its tag 1"),
            ({**SHEPHERD, "input": "no tag"}, None, "no step tag"),
            ({"input": "a ки", "label": "a +"}, None, "Step 1"),
            (
                {**PRM800K, "label": {"steps": [{"completions": [{"text": "A", "rating": 5}]}]}},
                None,
                "a rating must be",
            ),
            (
                {**PRM800K, "label": {"steps": [{"completions": [{"text": "A"}], "chosen_completion": 1}]}},
                None,
                "is 1, of 1 completions",
            ),
            ([1], "steps", "not a JSON object"),
        ],
    )
    def test_what_a_row_lacks_is_said(self, tmp_path, row, form, words):
        with pytest.raises(ValueError, match=words):
            read(written(tmp_path / "x.jsonl", row), form)

    @pytest.mark.parametrize(
        ("content", "words"),
        [("", "is empty"), ('{"a": 1}', r"row|line 1.*\(a\).*known form"), ("[1,", "not a JSON array"), ("{", "JSON")],
    )
    def test_files_of_no_form_are_refused(self, tmp_path, content, words):
        (tmp_path / "x.jsonl").write_text(content)
        with pytest.raises(ConfigurationError, match=words):
            StepFile.open(tmp_path / "x.jsonl")
        with pytest.raises(ConfigurationError, match="cannot be read"):
            StepFile.open(tmp_path / "none")
        with pytest.raises(ConfigurationError, match="did you mean 'prm800k'"):
            StepFile.open(tmp_path / "x.jsonl", "prm80k")


def prediction(scores: list[float], threshold: float) -> int:
    """As ProcessBench has it."""
    return next((i for i, score in enumerate(scores) if score < threshold), -1)


def f1(rows: list[tuple[list[float], int, int]], threshold: float) -> float:
    kinds = [
        [prediction(s, threshold) == label for s, label, _ in rows if (label >= 0) is wrong] for wrong in (True, False)
    ]
    if not all(kinds):
        return math.nan
    a, b = map(np.mean, kinds)
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def answers(rows: list[tuple[list[float], int, int]]) -> Answers:
    tally = Tally()
    for row, (scores, label, problem) in enumerate(rows, start=1):
        size = len(scores)
        right = tuple(label < 0 or i < label for i in range(size))
        tally.add(Rated(row, f"{problem:03}", tuple(scores), right, tuple(range(1, size + 1)), size, label))
    return tally.answers


score = st.sampled_from([0.0, 0.2, 0.4999, 0.5, 0.5001, 0.8, 1.0])
rated_rows = st.lists(
    st.tuples(st.lists(score, min_size=1, max_size=4), st.integers(-1, 3), st.integers(0, 4)).map(
        lambda row: (row[0], min(row[1], len(row[0]) - 1), row[2])
    ),
    min_size=1,
    max_size=12,
)


class TestFirstErrors:
    @given(rated_rows, score)
    def test_f1_is_processbenchs(self, rows, threshold):
        found = FirstErrors.of(answers(rows), threshold)
        assert found.f1.value == pytest.approx(f1(rows, threshold), nan_ok=True)
        wrong = [prediction(s, threshold) == label for s, label, _ in rows if label >= 0]
        assert found.wrong.value == pytest.approx(np.mean(wrong) if wrong else math.nan, nan_ok=True)
        assert found.numbers == (len(wrong), len(rows) - len(wrong))

    @settings(max_examples=60)
    @given(rated_rows)
    def test_the_best_threshold_is_the_best(self, rows):
        grid = [0.0, 0.1, 0.3, 0.45, 0.49995, 0.50005, 0.6, 0.9, 1.0, 1.1]
        values = [f1(rows, threshold) for threshold in grid]
        found = answers(rows).best_threshold()
        if math.isnan(values[0]):
            assert found == 0.5
        else:
            assert f1(rows, found) == pytest.approx(max(values))

    def test_it_is_chosen_on_one_half_and_measured_on_the_other(self):
        """Questions of one half find their errors below 0.3, those of the other below 0.9."""
        half = np.random.default_rng(0).permutation(40) % 2
        rows = []
        for problem in range(40):
            right, wrong = (0.4, 0.2) if half[problem] == 0 else (0.95, 0.85)
            rows += [([right, right], -1, problem), ([right, wrong], 1, problem)]
        found = FirstErrors.of(answers(rows), "best")
        assert 0.2 < found.threshold <= 0.4
        assert (found.chosen_on, found.numbers) == (40, (20, 20))
        assert (found.wrong.value, found.right.value, found.f1.value) == (0, 1, 0)

    def test_its_interval_holds_its_level(self):
        """95 % intervals of 120 samples of 40 questions with 6 answers each, true F1 by a long run: 88–99.5 % hold it.
        Where 95 % do in the long run that fails for one seed in some 300."""
        rng = np.random.default_rng(0)

        def sample(problems: int) -> list[tuple[list[float], int, int]]:
            rows = []
            for problem in range(problems):
                sense = 2.0 if rng.random() < 0.6 else 0.0  # of some questions the reward model understands nothing
                for _ in range(6):
                    label = int(rng.integers(-1, 3))
                    means = [1.0 if label < 0 or i < label else -1.0 for i in range(3)]
                    rows.append(([1 / (1 + math.exp(-rng.normal(sense * m))) for m in means], label, problem))
            return rows

        truth = f1(sample(2500), 0.5)
        found = [FirstErrors.of(answers(sample(40)), 0.5).f1 for _ in range(120)]
        assert 0.88 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.995


class Known:
    """Scores by the text of a step: that of "s0.3" is 0.3."""

    merges_calls = False

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def score(self, trajectories: list[Trajectory]) -> list[Any]:
        self.calls.append(len(trajectories))
        await asyncio.sleep(0)
        found: list[Any] = []
        for trajectory in trajectories:
            texts = [step.text.strip() for step in trajectory.steps]
            if "boom" in texts:
                raise RewardError("boom")
            if "no key" in texts:
                raise UnauthorizedError("no key")
            if "long" in texts:
                found.append(Failure(RewardError("too long")))
            else:
                found.append(Scores([float(text[1:]) for text in texts], Usage(reward_tokens=10 * len(texts))))
        return found


def row(*steps: str, labels: list[int] | None = None, question: str = "Q?") -> dict[str, Any]:
    return {"question": question, "steps": list(steps), "labels": labels or [1] * len(steps)}


ROWS = [
    row("s0.9", "s0.8", question="Q1"),
    row("s0.9", "s0.2", labels=[1, 0], question="Q1"),
    row("s0.7", "s0.6", labels=[1, 0], question="Q2"),
    row("s0.95", question="Q2"),
    row("s0.3", "s0.4", question="Q3"),
]


def run(reward: Any, path: Path, *arguments: Any, **options: Any):
    return asyncio.run(rate(reward, path, *arguments, **{"name": "mine", **options}))


def untimed(rating: Any) -> dict[str, str]:
    return {name: str(value) for name, value in rating.row().items() if name != "seconds"}


class TestRate:
    def test_says_what_scores_are_worth(self, tmp_path):
        reward = Known()
        rating = run(reward, written(tmp_path / "x.jsonl", *ROWS), name="known")
        assert reward.calls == [5]  # all in flight, one call
        found = rating.first_errors
        assert (found.numbers, found.wrong.value, found.right.value) == ((2, 3), 0.5, pytest.approx(2 / 3))
        assert found.f1.value == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
        assert (rating.tally.steps, rating.tally.tokens, len(rating.tally.done)) == (9, 90, 5)
        assert rating.predictions.brier_score() == pytest.approx(
            np.mean([(s - r) ** 2 for s, r in zip((0.9, 0.8, 0.9, 0.2, 0.7, 0.6, 0.95, 0.3, 0.4),
                                                  (1, 1, 1, 0, 1, 0, 1, 1, 1), strict=True)])
        )  # fmt: skip
        all_pairs, within, abreast = (interval.value for interval in rating.aurocs)
        wins = [(a > b) for a, b in itertools.product((0.9, 0.8, 0.9, 0.7, 0.95, 0.3, 0.4), (0.2, 0.6))]
        assert all_pairs == pytest.approx(np.mean(wins))
        assert within == 1
        assert abreast == 1
        text = rating.markdown()
        assert "The threshold was given" in text
        assert "| 0.5 | 2 | 50.0 %" in text

    def test_tokens_are_those_of_each_answer_alone(self, tmp_path):
        """Answers to one question share its prompt, which a model reads once; branches of one answer do share it."""

        def reads(depth: int) -> Reads:
            return Reads(100, tuple(100 * (known == 0) + 10 * (depth - known) for known in range(depth + 1)))

        class Shares(Known):
            async def score(self, trajectories):
                return [Scores([0.5] * t.depth, Usage(), reads(t.depth)) for t in trajectories]

        rating = run(Shares(), written(tmp_path / "x.jsonl", *ROWS))
        assert rating.tally.tokens == 5 * 100 + 9 * 10
        rating = run(Shares(), written(tmp_path / "y.jsonl", PRM800K))
        assert rating.tally.tokens == 100 + 6 * 10

    def test_concurrency_bounds_what_is_in_flight(self, tmp_path):
        reward = Known()
        run(reward, written(tmp_path / "x.jsonl", *ROWS), concurrency=2)
        assert max(reward.calls) == 2
        assert sum(reward.calls) == 5

    def test_branches_are_scored_together_and_steps_once(self, tmp_path):
        tree = json.loads(json.dumps(PRM800K))
        for step, texts in zip(
            tree["label"]["steps"], (["s0.9"], ["s0.8", "s0.1"], ["s0.2", "s0.7", "long"]), strict=True
        ):
            for one, text in zip(step["completions"], texts, strict=True):
                one["text"] = text
        rating = run(Known(), written(tmp_path / "x.jsonl", tree))
        assert rating.tally.steps == 5  # "long" has no score, "s0.9" one
        assert rating.first_errors.wrong.value == 1
        assert len(rating.predictions) == 5

    def test_what_fails_is_told_and_takes_nothing_along(self, tmp_path):
        rows = [*ROWS, row("boom"), row("s0.5", "long"), {"question": "Q", "steps": ["a"]}]
        path = written(tmp_path / "x.jsonl", *rows)
        rating = run(Known(), path, tmp_path / "out")
        assert sorted(rating.tally.failed) == [6, 7, 8]
        assert len(rating.tally.done) == 5
        assert rating.tally.failed[6] == "boom"
        assert any(line.startswith("3 answers could not be rated; row 6: boom") for line in rating.warnings())

        class Better(Known):
            async def score(self, trajectories):
                self.calls.append(len(trajectories))
                return [[0.5] * trajectory.depth for trajectory in trajectories]

        better = Better()
        rating = run(better, path, tmp_path / "out")
        assert sum(better.calls) == 2  # the others are not asked again, the last one cannot be read
        assert sorted(rating.tally.failed) == [8]

    def test_a_missing_key_ends_it(self, tmp_path):
        with pytest.raises(UnauthorizedError):
            run(Known(), written(tmp_path / "x.jsonl", *ROWS, row("no key")))

    def test_where_nothing_works_it_ends_early(self, tmp_path):
        reward = Known()
        path = written(tmp_path / "x.jsonl", *(row("long") for _ in range(3 * REFUSED)))
        with pytest.raises(ConfigurationError, match=f"not one of {REFUSED} answers could be rated; row .*: too long"):
            run(reward, path, concurrency=4)
        assert sum(reward.calls) < 2 * REFUSED

    @pytest.mark.parametrize("wrong", [[1.5], [0.1, 0.2], [math.nan], "x"])
    def test_scores_that_are_none_fail_their_answer(self, tmp_path, wrong):
        class Wrong(Known):
            async def score(self, trajectories):
                return [wrong if t.steps[0].text == "bad" else [0.5] * t.depth for t in trajectories]

        rating = run(Wrong(), written(tmp_path / "x.jsonl", row("bad"), row("good")))
        assert sorted(rating.tally.failed) == [1]

    def test_interrupted_it_goes_on(self, tmp_path):
        path, out = written(tmp_path / "x.jsonl", *ROWS), tmp_path / "out"

        class Stops(Known):
            async def score(self, trajectories):
                if len(self.calls) == 2:
                    raise asyncio.CancelledError
                return await super().score(trajectories)

        with pytest.raises(asyncio.CancelledError):
            run(Stops(), path, out, concurrency=1)
        with (out / RATINGS).open("ab") as file:
            file.write(b'{"row": 3, "problem": "x", "sco')  # as if killed while writing
        reward = Known()
        rating = run(reward, path, out, concurrency=1)
        assert reward.calls == [1, 1, 1]
        whole = run(Known(), path)
        assert untimed(rating) == untimed(whole)
        assert rating.warnings() == []
        assert sorted(json.loads(line)["row"] for line in (out / RATINGS).read_text().splitlines()) == [1, 2, 3, 4, 5]

    def test_the_order_of_answers_does_not_matter(self, tmp_path):
        path = written(tmp_path / "x.jsonl", *ROWS * 3)
        out = tmp_path / "out"
        first = run(Known(), path, out, threshold="best")
        lines = (out / RATINGS).read_text().splitlines(keepends=True)
        (out / RATINGS).write_text("".join(reversed(lines)))
        again = run(Known(), path, out, threshold="best")
        assert untimed(first) == untimed(again)

    def test_damage_is_told_and_scored_again(self, tmp_path):
        path, out = written(tmp_path / "x.jsonl", *ROWS), tmp_path / "out"
        run(Known(), path, out)
        lines = (out / RATINGS).read_text().splitlines(keepends=True)
        broken = json.loads(lines[1])
        broken["scores"][0] = 7
        (out / RATINGS).write_text("".join([lines[0], json.dumps(broken) + "\n", "junk\n", *lines[2:]]))
        reward = Known()
        rating = run(reward, path, out)
        assert reward.calls == [1]
        assert len(rating.tally.done) == 5
        assert "2 rated answers could not be read" in rating.warnings()[0]

    def test_another_ratings_directory_is_refused(self, tmp_path):
        path, out = written(tmp_path / "x.jsonl", *ROWS), tmp_path / "out"
        run(Known(), path, out, name="a")
        with pytest.raises(RunDirectoryError, match=r"another rating .*'a', not 'b'"):
            run(Known(), path, out, name="b")
        with pytest.raises(RunDirectoryError, match="sha256"):
            run(Known(), written(tmp_path / "y.jsonl", *ROWS[1:]), out, name="a")
        configuration = json.loads((out / "config.json").read_text())
        assert len(configuration["calls"]) == 1
        (out / "config.json").write_text(json.dumps({**configuration, "digest": "sha256:1"}))
        with pytest.raises(RunDirectoryError, match="digest 'sha256:1', not None"):
            run(Known(), path, out, name="a")
        other = tmp_path / "other"
        other.mkdir()
        (other / "thing").touch()
        with pytest.raises(RunDirectoryError, match="holds other files"):
            run(Known(), path, other)

    def test_how_it_was_made_is_told_without_keys(self, tmp_path):
        path, out = written(tmp_path / "x.jsonl", *ROWS), tmp_path / "out"
        for _ in range(2):
            rating = run(Known(), path, out, name="judge:m?api_key=hush", command="motes rate m --api-key hush")
        text = (out / "config.json").read_text() + rating.markdown() + rating.tables()["rating.csv"]
        assert "hush" not in text
        assert [call["motes"]["version"] for call in json.loads((out / "config.json").read_text())["calls"]] == [
            __version__
        ] * 2
        assert "motes rate m --api-key" in rating.markdown()

    def test_a_limit_is_the_first_rows(self, tmp_path):
        path, out = written(tmp_path / "x.jsonl", *ROWS), tmp_path / "out"
        run(Known(), path, out)
        rating = run(Known(), path, out, limit=2)
        assert (len(rating.tally.done), rating.total) == (2, 2)

    @pytest.mark.parametrize("options", [{"concurrency": 0}, {"limit": 0}, {"threshold": 2.0}, {"threshold": "x"}])
    def test_arguments_that_cannot_work(self, tmp_path, options):
        with pytest.raises(ConfigurationError):
            run(Known(), written(tmp_path / "x.jsonl", *ROWS), **options)

    def test_files(self, tmp_path):
        out = tmp_path / "out"
        rating = run(Known(), written(tmp_path / "=x|`.jsonl", *ROWS), out, name="=1+1")
        names = [path.name for path in write_rating(out, rating)]
        assert names == ["rating.md", "rating.csv", "bins.csv", "reliability.png", "reliability.svg"]
        (told,) = csv.DictReader(io.StringIO((out / "rating.csv").read_text()))
        assert (told["reward"], told["data"], told["f1"]) == ("'=1+1", "'=x|`.jsonl", "0.571429")
        assert "# =1+1 on =x\\|\\`.jsonl" in (out / "rating.md").read_text()
        assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "change",
    [{"row": 0}, {"scores": [2]}, {"right": [True]}, {"depths": [0]}, {"length": 2}, {"first_error": 1},
     {"first_error": -2}, {"scores": []}, {"error": 3}, {"seconds": -1}],
)  # fmt: skip
def test_what_cannot_have_been_rated_is_refused(change):
    good = Rated(1, "a", (0.5,), (True,), (1,), 1, -1)
    fields = json.loads(good.to_json())
    assert Rated.from_json(json.dumps(fields)) == good
    with pytest.raises(ValueError, match=r"`|steps|error"):
        Rated.from_json(json.dumps({**fields, **change}))


class TestCommand:
    def rate(self, capsys, *words: object) -> tuple[int, str, str]:
        code = main(["rate", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def data(self, tmp_path: Path) -> Path:
        rows = []
        for problem in strangers.PROBLEMS:
            rows.append(row("The answer is \\boxed{" + (problem.answer or "") + "}.", question=problem.question))
            rows.append(row("The answer is \\boxed{0}.", labels=[0], question=problem.question))
        return written(tmp_path / "x.jsonl", *rows)

    def test_prints_and_writes(self, capsys, tmp_path):
        path, out = self.data(tmp_path), tmp_path / "out"
        code, told, progress = self.rate(capsys, "worlds:reward_model", "--data", path, "--out", out, "--no-plots")
        assert code == 0
        for words in ("First errors", "within a question", "Calibration", "reward tokens a step", "written: "):
            assert words in told
        assert "6/6 answers" in progress
        assert not (out / "reliability.png").exists()
        code, again, _ = self.rate(
            capsys, "worlds:reward_model", "--data", path, "--out", out, "--no-plots", "--threshold", "best"
        )
        assert code == 0
        assert "largest F1 on" in again

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("none",), "nothing to rate"),
            (("tiny", "--threshold", "x"), "--threshold must be a score"),
            (("tiny", "--format", "prm"), "did you mean 'prm800k'"),
        ],
    )
    def test_says_what_is_wrong(self, capsys, tmp_path, words, said):
        code, _, err = self.rate(capsys, *words, "--data", self.data(tmp_path))
        assert code == 2
        assert said in err
