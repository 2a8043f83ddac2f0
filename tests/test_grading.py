"""Five ends of a run, told apart; and answers graded again without generating anything."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from pathlib import Path

import pytest

from motes import Step, api
from motes.cli import main
from motes.errors import ConfigurationError, EngineError, RunDirectoryError, UnknownNameError
from motes.lab import Evaluation, RecordStore, Report, evaluate, read_records, regrade
from motes.tasks import Arithmetic
from motes.tasks.maths import Grader

FAKE = (sys.executable, str(Path(__file__).with_name("fake_grader.py")))
ENDS = {
    "right": ("correct", "So \\boxed{x+1}."),
    "wrong": ("wrong", "So \\boxed{x-1}."),
    "silent": ("no_answer", "I give up."),
    "slow": ("grader_timeout", "So \\boxed{hang}."),
    "odd": ("grader_timeout", "So \\boxed{fail}."),
    "broken": ("failed", ""),
}
"""How a run ends on each question, and what the language model writes."""


class Told:
    """A language model that writes what the question asks for."""

    async def extend(self, trajectories, sampling, seeds):
        texts = [ENDS[trajectory.problem.question][1] for trajectory in trajectories]
        if "" in texts:
            raise EngineError("broken, as told")
        return [Step(text, "eos") for text in texts]


@pytest.fixture
def grading(monkeypatch):
    """Makes a grader of fake workers the one that this process shares."""
    graders = []

    def use(timeout: float) -> Grader:
        graders.append(Grader(timeout=timeout, command=FAKE))
        monkeypatch.setattr("motes.tasks.maths.shared", lambda: graders[-1])
        return graders[-1]

    yield use
    for grader in graders:
        grader.close()


@pytest.fixture
def directory(tmp_path, grading) -> Path:
    """An evaluation of which every run ended in another way."""
    write_problems(tmp_path / "told.jsonl")
    grading(timeout=0.1)
    run(tmp_path)
    return tmp_path / "run"


def write_problems(path: Path, **answers: str) -> None:
    rows = [{"id": question, "question": question, "answer": answers.get(question, "x + 1")} for question in ENDS]
    path.write_text("\n".join(map(json.dumps, rows)))


def run(folder: Path):
    evaluation = Evaluation(
        task=str(folder / "told.jsonl"), methods=("greedy", "majority"), budgets=(2,), lm="told:lm", reward=None
    )
    return asyncio.run(evaluate(evaluation, folder / "run", lm=Told()))


def outcomes(directory: Path) -> dict[str, str]:
    records = read_records(directory / "records.jsonl")
    return {record.problem_id: record.outcome for record in records if record.method == "majority"}


def motes(capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class TestOutcomes:
    def test_are_five(self, directory):
        assert outcomes(directory) == {question: end for question, (end, _) in ENDS.items()}
        errors = {record.problem_id: record.error for record in read_records(directory / "records.jsonl")}
        assert errors == {
            "right": None,
            "wrong": None,
            "silent": None,
            "slow": "GraderTimeoutError: not graded within 0.1 seconds",
            "odd": "GraderError: Math-Verify failed: ValueError: as told",
            "broken": "EngineError: broken, as told",
        }

    def test_all_stand_in_the_denominator(self, directory, tmp_path):
        (cell, _) = report = Report.load(directory).cells
        assert cell.outcomes == {"correct": 1, "wrong": 1, "no_answer": 1, "grader_timeout": 2, "failed": 1}
        assert (cell.runs, cell.missing, cell.accuracy.value) == (6, 0, 1 / 6)
        assert len(report) == 2
        progress = run(tmp_path)
        assert (progress.total, progress.done, progress.failed, progress.accuracy) == (12, 12, 2, 1 / 6)
        assert progress.cells["majority", 2] == (6, 1)

    def test_reports_show_them(self, directory, capsys):
        code, out, _ = motes(capsys, "report", directory, "--no-plots")
        assert code == 0
        table = [" ".join(line.split()) for line in out.splitlines()]
        header = table.index("method budget runs correct wrong no answer grader timeout failed missing")
        assert table[header + 1 : header + 3] == ["greedy 1 6 1 1 1 2 1 0", "majority 2 6 1 1 1 2 1 0"]
        assert "4 answers could not be graded" in out
        assert "2 failed runs stand in the denominator" in out
        markdown = (directory / "report.md").read_text()
        assert "| majority | 2 | 6 | 1 | 1 | 1 | 2 | 1 | 0 |" in markdown
        row = next(csv.DictReader((directory / "report.csv").read_text().splitlines()))
        assert [row[end] for end in ("correct", "wrong", "no_answer", "grader_timeout", "failed")] == list("11121")

    def test_an_evaluation_says_what_could_not_be_graded(self, directory, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(api, "language_model", lambda spec: Told())
        ask = f"eval --task {tmp_path}/told.jsonl --methods greedy,majority --budgets 2 --model told:lm --reward none"
        code, _, err = motes(capsys, *ask.split(), "--out", directory)
        assert code == 1, "for the failed runs, as ever"
        assert f"motes: 4 answers could not be graded; this tries again: motes grade {directory}\n" in err

    def test_a_comparison_that_hangs_holds_no_other_run_up(self, tmp_path, grading):
        write_problems(tmp_path / "told.jsonl")
        grader = grading(timeout=60)
        done = []

        def observe(progress):
            done.append(progress.done)
            if progress.done == 3:  # all but the one that hangs
                grader.close()

        evaluation = Evaluation(
            task=str(tmp_path / "told.jsonl"), methods=("greedy",), lm="told:lm", reward=None, limit=4
        )
        asyncio.run(evaluate(evaluation, tmp_path / "run", lm=Told(), observe=observe))
        assert done == [0, 1, 2, 3, 4]
        (slow,) = [r for r in read_records(tmp_path / "run" / "records.jsonl") if r.outcome == "grader_timeout"]
        assert slow.error == "GraderError: the grader is closed"


class TestGradingAgain:
    def test_with_more_time(self, directory, grading, capsys, monkeypatch):
        before = (directory / "records.jsonl").read_bytes()
        use = grading(timeout=60)
        monkeypatch.setattr(use, "verify", lambda gold, answer: {"hang": True, "x-1": False}.get(answer, False))
        code, out, err = motes(capsys, "grade", directory)
        assert (code, err) == (0, "")
        assert outcomes(directory) == {
            "right": "correct", "wrong": "wrong", "silent": "no_answer", "slow": "correct", "odd": "wrong",
            "broken": "failed",
        }  # fmt: skip
        assert "slow  greedy 1 seed 0: grader timeout → correct" in out
        assert "10 answers graded, 4 records changed: 2 from grader timeout to correct, 2 from grader" in out
        assert "2 failed runs have no answer to grade" in out
        after = (directory / "records.jsonl").read_bytes()
        assert after.startswith(before), "what was said before stays readable"
        assert len(after.splitlines()) == len(before.splitlines()) + 4
        (cell, _) = Report.load(directory).cells
        assert (cell.outcomes["correct"], cell.accuracy.value, cell.oracle.value) == (2, 1 / 3, 1 / 3)
        changed = next(record for record in read_records(directory / "records.jsonl") if record.problem_id == "slow")
        assert (changed.error, changed.oracle) == (None, True)

    def test_the_same_again_changes_nothing(self, directory, capsys):
        before = (directory / "records.jsonl").read_bytes()
        code, out, err = motes(capsys, "grade", directory)
        assert code == 0
        assert out.splitlines()[0] == "10 answers graded, 0 records changed"
        assert "4 answers could not be graded" in err
        assert (directory / "records.jsonl").read_bytes() == before

    def test_with_other_references(self, directory, tmp_path, capsys):
        write_problems(tmp_path / "told.jsonl", wrong="x - 1")
        _, out, _ = motes(capsys, "grade", directory)
        assert "wrong → correct  (answer 'x-1', reference 'x - 1', which was 'x + 1', another one is right)" in out
        assert outcomes(directory)["wrong"] == "correct"

    def test_by_another_task(self, directory, tmp_path, capsys):
        _, out, _ = motes(capsys, "grade", directory, "--task", f"exact-match:{tmp_path / 'told.jsonl'}")
        assert outcomes(directory) == {
            "right": "wrong", "wrong": "wrong", "silent": "no_answer", "slow": "wrong", "odd": "wrong",
            "broken": "failed",
        }  # fmt: skip
        assert "2 from correct to wrong" in out

    def test_a_problem_that_is_gone(self, directory, tmp_path):
        (tmp_path / "told.jsonl").write_text('{"question": "right", "answer": "1", "id": "right"}')
        before = (directory / "records.jsonl").read_bytes()
        with pytest.raises(RunDirectoryError, match=r"no problem '(?!right)"):
            asyncio.run(regrade(directory))
        assert (directory / "records.jsonl").read_bytes() == before

    def test_all_changes_are_written_or_none(self, directory, tmp_path, monkeypatch):
        import os

        write_problems(tmp_path / "told.jsonl", wrong="x-1", right="2")
        before = (directory / "records.jsonl").read_bytes()
        write = os.write
        monkeypatch.setattr("motes.lab.run.appending.os.write", lambda file, data: write(file, data[: len(data) - 9]))
        with pytest.raises(RunDirectoryError, match="disk is full"):
            asyncio.run(regrade(directory))
        assert (directory / "records.jsonl").read_bytes() == before

    def test_not_while_an_evaluation_writes(self, directory):
        with RecordStore(directory / "records.jsonl"), pytest.raises(RunDirectoryError, match="another evaluation"):
            asyncio.run(regrade(directory))

    @pytest.mark.parametrize("content", ["{}", '{"task": "poetry"}'])
    def test_a_configuration_without_a_known_task(self, tmp_path, content):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UnknownNameError, match="task"):
            asyncio.run(regrade(tmp_path))

    def test_what_is_no_evaluation(self, capsys, tmp_path):
        code, out, err = motes(capsys, "grade", tmp_path)
        assert (code, out) == (2, "")
        assert "holds no evaluation" in err
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_from_before(self, tmp_path, capsys):
        """Lines as the first version wrote them, of the bundled task."""
        problem = Arithmetic().problems()[0]
        (tmp_path / "config.json").write_text('{"task": "arithmetic", "split": "test", "methods": {"pf": {}}}')
        line = {
            "problem_id": problem.id,
            "method": "pf",
            "budget": 1,
            "seed": 0,
            "outcome": "wrong",
            "answer": problem.answer,
        }
        (tmp_path / "records.jsonl").write_text(json.dumps({**line, "answers": [problem.answer]}) + "\n")
        code, out, _ = motes(capsys, "grade", tmp_path)
        assert code == 0
        assert "1 answers graded, 1 records changed: 1 from wrong to correct" in out


def test_an_evaluation_on_a_bad_file_starts_nothing(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ConfigurationError, match=r"p\.jsonl, line 1"):
        Evaluation(task=str(tmp_path / "p.jsonl"), reward=None, methods=("greedy",))


def test_levels_come_from_the_task(tmp_path, grading):
    grading(timeout=60)
    (tmp_path / "told.jsonl").write_text('{"question": "right", "answer": "x+1", "level": 4}\n')
    run(tmp_path)
    assert {record.level for record in read_records(tmp_path / "run" / "records.jsonl")} == {4}
    assert {cell.level for cell in Report.load(tmp_path / "run").levels} == {4}


def test_a_task_of_ones_own_is_evaluated_and_graded_again(tmp_path):
    class Four:
        async def extend(self, trajectories, sampling, seeds):
            return [Step("Take 4", "eos") for _ in trajectories]

    evaluation = Evaluation(task="worlds:Evens", methods=("greedy",), lm="told:lm", reward=None)
    asyncio.run(evaluate(evaluation, tmp_path, lm=Four()))
    (record,) = read_records(tmp_path / "records.jsonl")
    assert (record.outcome, record.answer, record.level, record.oracle) == ("correct", "4", None, True)
    assert asyncio.run(regrade(tmp_path, run_code=True)).changed == ()
