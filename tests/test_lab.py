"""The lab in-process: planning, records, resuming, numbers, reports and plots."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import io
import json
import logging
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import worlds
from costs import without_company
from motes import Sampling, Usage, api
from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    MissingExtraError,
    RewardError,
    RunDirectoryError,
    UnauthorizedError,
    UnknownNameError,
)
from motes.lab import Evaluation, RecordStore, Report, RunRecord, evaluate, method_from_spec, read_records, write_report
from motes.lab.measure.statistics import Interval, proportion_interval, student_quantile, wilson
from motes.lab.run.evaluation import derive_seed, differing
from motes.lab.run.execution import run_log
from motes.lab.run.grading import groups
from motes.lab.run.method_spec import NAMES
from motes.lab.show.plot import BUDGET, TOKENS, _spread, curves_figure
from motes.lab.show.style import PIXELS, STYLES
from motes.methods import METHODS, BestOfN, Greedy, ParticleFilter

SMALL = Evaluation(
    methods=("pf", "bon", "greedy"), budgets=(1, 4), limit=10, lm="worlds:language_model", reward="worlds:reward_model"
)

RECORD = RunRecord(problem_id="a/1-0", method="pf", budget=2, seed=0, outcome="correct", answer="½", text="so ½\n")


def run(directory: Path, evaluation: Evaluation = SMALL, **options):
    return asyncio.run(evaluate(evaluation, directory, **options))


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]


def results(directory: Path) -> dict:
    """What each run came to, without what depends on the clock."""
    return {record.key: without_company(record) for record in read_records(directory / "records.jsonl")}


class TestMethodSpec:
    def test_reads_what_is_written(self):
        assert method_from_spec("pf", 8) == ParticleFilter(8)
        assert method_from_spec("pf:paper", 8) == ParticleFilter.paper(8)
        made = method_from_spec("pf:ess_threshold=1:selector=argmax", 8)
        assert made == ParticleFilter(8, ess_threshold=1.0, selector="argmax")
        assert method_from_spec("pf:paper:beta=2", 8) == dataclasses.replace(ParticleFilter.paper(8), beta=2.0)
        assert method_from_spec("bon:aggregation=min", 3) == BestOfN(3, aggregation="min")
        assert method_from_spec("greedy", 64) == Greedy()

    @pytest.mark.parametrize("spec", ["pff", "pf:papr", "pf:bta=1", "bon:paper", "pf:potential=nothing"])
    def test_unknown_names(self, spec):
        with pytest.raises(UnknownNameError):
            method_from_spec(spec, 4)

    @pytest.mark.parametrize("spec", ["pf:beta=x", "pf:beta=-1", "pf:paper:paper", "pf:num_particles=3", "bon:n=2"])
    def test_values_that_cannot_work(self, spec):
        with pytest.raises(ConfigurationError):
            method_from_spec(spec, 4)


class TestPlan:
    def test_greedy_is_run_once_and_every_run_once(self):
        keys = [planned.key for planned in SMALL.plan()]
        assert len(keys) == len(set(keys)) == 10 * 5
        assert {key[2] for key in keys if key[1] == "greedy"} == {1}
        assert SMALL.to_dict()["num_runs"] == 50

    def test_seeds_are_stable_and_apart(self):
        assert derive_seed(0, "arithmetic/test/1-000", "pf", 16) == 8118671243181376767
        seeds = {planned.run_seed for planned in dataclasses.replace(SMALL, seeds=(0, 1)).plan()}
        assert len(seeds) == 100
        assert all(0 <= seed < 2**63 for seed in seeds)

    @pytest.mark.parametrize(
        "change",
        [{"methods": ()}, {"budgets": (0,)}, {"budgets": ()}, {"seeds": (-1,)}, {"limit": 0}, {"task": "x"},
         {"split": "x"}, {"methods": ("x",)}],
    )  # fmt: skip
    def test_what_cannot_work_is_refused_when_made(self, change):
        with pytest.raises(ConfigurationError):
            dataclasses.replace(SMALL, **change)


class Refusing(worlds.StoryLanguageModel):
    """Refuses some questions."""

    def __init__(self, questions: set[str], error: type[Exception]) -> None:
        super().__init__()
        self.questions, self.error = questions, error

    async def extend(self, trajectories, sampling, seeds):
        if any(trajectory.problem.question in self.questions for trajectory in trajectories):
            arguments = {UnknownNameError: ("name", "x", ["y"]), MissingExtraError: ("this", "extra")}
            raise self.error(*arguments.get(self.error, ("no, not this",)))
        return await super().extend(trajectories, sampling, seeds)


class Careful:
    """A method of somebody's own that knows what it needs."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def require(self, lm, sampling):
        raise ConfigurationError("it wants another model")

    async def run(self, run):
        raise AssertionError


class TestRun:
    def test_answers_that_mean_the_same_are_of_one_group(self):
        class Numbers:
            @staticmethod
            def equivalent(first: str, second: str) -> bool:
                return float(first) == float(second)

        assert groups(Numbers, ["0.5", "3"], ["3", "0.50", None, "0.5", "7"]) == (1, 0, None, 0, None)

    def test_records_hold_what_is_promised(self, tmp_path):
        progress = run(tmp_path)
        assert (progress.total, progress.done, progress.resumed, progress.failed) == (50, 50, 0, 0)
        for line in lines(tmp_path):
            assert line["outcome"] == ("correct" if line["answer"] == line["reference"] else "wrong")
            assert line["oracle"] == (line["reference"] in line["answers"])
            assert len(line["answers"]) == len(line["scores"]) == line["budget"]
            assert [list(line["posterior"])[group] for group in line["groups"]] == line["answers"]
            assert line["right"] == [answer == line["reference"] for answer in line["answers"]]
            assert all((score is None) == (line["method"] == "greedy") for score in line["scores"])
            assert line["level"] == int(line["problem_id"].split("/")[2][0])
            assert line["answer"] in line["posterior"]
            assert line["confidence"] == line["posterior"][line["answer"]]
            assert line["text"].endswith(f"\\boxed{{{line['answer']}}}.")
            assert line["usage"]["generated_tokens"] > 0
            assert line["rounds"] >= 1
            assert (line["log_evidence"] is None) == (line["method"] != "pf")
        spent = sum((record.usage for record in read_records(tmp_path / "records.jsonl")), Usage())
        assert progress.usage == spent

    def test_the_log_has_warnings_that_the_program_asks_nobody_for(self, tmp_path, caplog):
        caplog.set_level(logging.ERROR)
        with run_log(tmp_path) as log:
            log.info("begun")
            logging.getLogger("motes.somewhere").warning("a worker died")
            logging.getLogger("motes.somewhere").info("a detail")
        logging.getLogger("motes.somewhere").warning("too late")
        told = (tmp_path / "log.txt").read_text().splitlines()
        assert [line.partition(",")[2].partition(" ")[2] for line in told] == ["INFO begun", "WARNING a worker died"]

    def test_a_recorded_run_can_be_done_alone(self, tmp_path):
        run(tmp_path)
        problems = {problem.id: problem for problem in SMALL.problems()}
        for record in read_records(tmp_path / "records.jsonl")[::7]:
            alone = api.solve(
                problems[record.problem_id],
                lm=worlds.StoryLanguageModel(merges_calls=False),
                reward=worlds.reward_model(),
                method=method_from_spec(record.method, record.budget),
                seed=record.run_seed,
            )
            assert (alone.answer, alone.text) == (record.answer, record.text)

    def test_neither_order_nor_concurrency_nor_selection_changes_results(self, tmp_path):
        run(tmp_path / "a", concurrency=1)
        run(tmp_path / "b", concurrency=64, lm=worlds.StoryLanguageModel(merges_calls=False))
        run(tmp_path / "c", dataclasses.replace(SMALL, methods=("greedy", "bon", "pf"), limit=4))
        a, c = results(tmp_path / "a"), results(tmp_path / "c")
        assert a == results(tmp_path / "b")
        assert c == {key: a[key] for key in c}

    def test_resuming_does_only_what_is_missing(self, tmp_path):
        run(tmp_path / "whole")
        run(tmp_path / "cut")
        path = tmp_path / "cut" / "records.jsonl"
        content = path.read_bytes()
        kept = content.splitlines(keepends=True)[:23]
        path.write_bytes(b"".join(kept) + content.splitlines(keepends=True)[23][:-9])  # torn
        lm = worlds.StoryLanguageModel()
        progress = run(tmp_path / "cut", lm=lm)
        assert (progress.resumed, progress.done) == (23, 50)
        assert path.read_bytes().startswith(b"".join(kept))
        assert len(lines(tmp_path / "cut")) == 50
        assert results(tmp_path / "cut") == results(tmp_path / "whole")
        lm = worlds.StoryLanguageModel()
        assert run(tmp_path / "cut", lm=lm).resumed == 50
        assert lm.calls == 0

    def test_failed_runs_are_recorded_and_done_again(self, tmp_path):
        question = SMALL.problems()[3].question
        progress = run(tmp_path, lm=worlds.StoryLanguageModel(fails_on=question))
        assert progress.failed == 5
        assert progress.done == 50
        failed = [line for line in lines(tmp_path) if line["outcome"] == "failed"]
        assert {line["error"] for line in failed} == {"EngineError: the fake model fails on this question, as told"}
        assert Report.load(tmp_path).cells[0].outcomes["failed"] == 1
        assert Report.load(tmp_path).cells[0].runs == 10
        again = run(tmp_path)
        assert (again.resumed, again.failed, again.done) == (45, 0, 50)
        assert len(lines(tmp_path)) == 55
        run(tmp_path / "whole")
        assert results(tmp_path) == results(tmp_path / "whole")

    def test_any_exception_of_a_model_fails_its_run_only(self, tmp_path):
        class Broken:
            async def score(self, trajectories):
                raise ZeroDivisionError("by the user's own model")

        progress = run(tmp_path, reward=Broken())
        assert progress.outcomes["failed"] == 40  # greedy needs no score
        errors = {line["error"] for line in lines(tmp_path) if line["error"]}
        assert errors == {"ZeroDivisionError: by the user's own model"}

    def test_what_every_run_would_fail_of_ends_the_evaluation(self, tmp_path):
        with pytest.raises(ConfigurationError, match="reward model"):
            run(tmp_path, dataclasses.replace(SMALL, reward=None))
        assert "failed" not in (tmp_path / "records.jsonl").read_text()

    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            ({0}, ConfigurationError),
            ({3, 4}, UnknownNameError),
            ({0}, ContextLengthError),
            ({3, 4}, ValueError),
            (set(range(9)), ConfigurationError),
        ],
    )
    def test_what_is_true_of_some_problems_fails_their_runs_alone(self, bad, error, tmp_path):
        questions = {SMALL.problems()[i].question for i in bad}
        lm = Refusing(questions, error)
        progress = run(tmp_path, lm=lm, concurrency=1)
        assert (progress.done, progress.failed) == (50, 5 * len(bad))
        errors = {line["error"] for line in lines(tmp_path) if line["outcome"] == "failed"}
        assert {text.partition(":")[0] for text in errors} == {error.__name__}
        again = run(tmp_path, lm=lm)
        assert (again.resumed, again.failed) == (50 - 5 * len(bad), 5 * len(bad))
        assert run(tmp_path).failed == 0

    @pytest.mark.parametrize("number", [2, 10, 50])
    def test_what_is_true_of_all_problems_ends_the_evaluation(self, number, tmp_path):
        evaluation = dataclasses.replace(SMALL, methods=("greedy",), limit=number)
        everything = {problem.question for problem in evaluation.problems()}
        with pytest.raises(
            ConfigurationError, match=f"not one run worked, of {min(32, number)} problems; the last: no"
        ):
            run(tmp_path, evaluation, lm=Refusing(everything, ConfigurationError), concurrency=1)
        assert [line["outcome"] for line in lines(tmp_path)] == ["failed"] * min(32, number)
        assert run(tmp_path, evaluation).done == number

    @pytest.mark.parametrize("error", [UnauthorizedError, MissingExtraError])
    def test_a_missing_key_or_package_ends_the_evaluation_at_once(self, error, tmp_path):
        lm = Refusing({SMALL.problems()[1].question}, error)
        with pytest.raises(error):
            run(tmp_path, lm=lm, concurrency=1)
        assert [line["problem_id"] for line in lines(tmp_path)] == [SMALL.problems()[0].id] * 5

    @pytest.mark.parametrize(
        ("methods", "sampling", "lm", "name"),
        [
            (("majority", "power"), Sampling(temperature=0.0), worlds.StoryLanguageModel(), "power"),
            (("majority", "pf"), Sampling(), "whole", "pf"),
            (("greedy", "beam:beam_width=1"), Sampling(), "whole", "beam:beam_width=1"),
            (("majority", "test_lab:Careful"), Sampling(), worlds.StoryLanguageModel(), "test_lab:Careful"),
        ],
    )
    def test_a_method_that_cannot_work_is_refused_by_its_name_before_the_first_run(
        self, methods, sampling, lm, name, tmp_path
    ):
        if lm == "whole":
            lm = worlds.StoryLanguageModel()
            lm.continues_prefixes = False
        with pytest.raises(ConfigurationError, match=f"the method {name} cannot work here: "):
            run(tmp_path, dataclasses.replace(SMALL, methods=methods, sampling=sampling), lm=lm)
        assert lm.calls == 0
        assert lines(tmp_path) == []

    @pytest.mark.parametrize(("part", "failed"), [("grade", 1), ("level", 1), ("answer", 10)])
    def test_a_task_that_fails_fails_its_runs_alone(self, part, failed, tmp_path, monkeypatch):
        problem = SMALL.problems()[2]
        whole = getattr(SMALL.opened, part)

        def fail(told, *rest):
            if part == "answer" or told.id == problem.id:
                raise ZeroDivisionError("by the user's own task")
            return whole(told, *rest)

        evaluation = dataclasses.replace(SMALL, methods=("greedy",))
        monkeypatch.setattr(type(evaluation.opened), part, staticmethod(fail))
        progress = run(tmp_path, evaluation)
        assert (progress.done, progress.failed) == (10, failed)
        told = [line for line in lines(tmp_path) if line["outcome"] == "failed"]
        assert {line["error"] for line in told} == {"ZeroDivisionError: by the user's own task"}
        assert part == "answer" or all(line["usage"]["generated_tokens"] > 0 for line in told)

    @pytest.mark.parametrize("error", [RewardError("no score today"), ZeroDivisionError("by the user's own model")])
    def test_partial_cost_of_a_failed_run_is_kept(self, error, tmp_path):
        class Nonsense:
            async def score(self, trajectories):
                raise type(error)(*error.args)

        run(tmp_path, dataclasses.replace(SMALL, methods=("pf",)), reward=Nonsense())
        assert all(line["usage"]["generated_tokens"] > 0 for line in lines(tmp_path))


@pytest.fixture
def one_run(tmp_path) -> Path:
    with RecordStore(tmp_path / "records.jsonl") as store:
        SMALL.claim(tmp_path)
        store.append(RECORD)
    return tmp_path


class TestDirectory:
    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ({"limit": 11}, "limit is 10 there and 11 here"),
            ({"budgets": (1, 8)}, "budgets"),
            ({"seeds": (0, 1)}, "seeds"),
            ({"lm": "other:model"}, "lm is 'worlds:language_model' there and 'other:model' here"),
            ({"sampling": Sampling(temperature=1.0)}, "sampling.temperature is 0.8 there and 1.0 here"),
            ({"methods": ("pf", "bon")}, "methods is 'pf,bon,greedy' there and 'pf,bon' here"),
        ],
    )
    def test_another_configuration_is_refused_by_key(self, one_run, change, key):
        before = {path: path.read_bytes() for path in one_run.iterdir()}
        with pytest.raises(RunDirectoryError, match=key):
            run(one_run, dataclasses.replace(SMALL, **change), lm=worlds.language_model())
        assert before == {path: path.read_bytes() for path in one_run.iterdir()}

    def test_the_same_configuration_written_otherwise_is_accepted(self, one_run):
        dataclasses.replace(SMALL, budgets=(4, 1, 4), methods=("pf", "bon", " greedy")).check(one_run)

    def test_a_directory_without_records_is_free(self, tmp_path):
        with pytest.raises(ConfigurationError, match="reward model"):
            run(tmp_path, dataclasses.replace(SMALL, reward=None))
        assert (tmp_path / "config.json").exists()
        assert run(tmp_path).done == 50

    def test_nothing_is_made_where_a_model_cannot_be_opened(self, tmp_path):
        with pytest.raises(ConfigurationError):
            run(tmp_path / "new", dataclasses.replace(SMALL, lm="worlds:none"))
        assert not (tmp_path / "new").exists()

    def test_what_is_no_evaluation(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(RunDirectoryError, match="is a file"):
            run(tmp_path / "file")
        with pytest.raises(RunDirectoryError, match="cannot be written"):
            run(tmp_path / "file" / "below")
        with pytest.raises(RunDirectoryError, match="holds no evaluation"):
            Report.load(tmp_path)
        (tmp_path / "records.jsonl").write_text("{}")
        with pytest.raises(RunDirectoryError, match="holds records but no"):
            run(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(RunDirectoryError, match="cannot be read"):
            run(tmp_path)

    def test_two_evaluations_do_not_write_to_one_directory(self, tmp_path):
        with (
            RecordStore(tmp_path / "records.jsonl"),
            pytest.raises(RunDirectoryError, match="another evaluation is writing"),
        ):
            RecordStore(tmp_path / "records.jsonl")
        RecordStore(tmp_path / "records.jsonl").close()


class TestRecords:
    def test_round_trip(self):
        assert RunRecord.from_json(RECORD.to_json()) == RECORD
        assert "\n" not in RECORD.to_json()

    def test_later_fields_are_passed_over(self):
        assert RunRecord.from_json(json.dumps({**json.loads(RECORD.to_json()), "new": 1})) == RECORD

    @pytest.mark.parametrize("tail", [b'{"problem_id": "a', b"\x00\x00\x00\n", b"{}\n", b"\xff"])
    def test_a_torn_last_line_is_dropped(self, tmp_path, tail):
        path = tmp_path / "records.jsonl"
        whole = RECORD.to_json().encode() + b"\n"
        path.write_bytes(whole + tail)
        assert read_records(path) == [RECORD]
        assert path.read_bytes() == whole + tail  # reading alters nothing
        with RecordStore(path) as store:
            assert store.records == [RECORD]
            assert path.read_bytes() == whole
            store.append(dataclasses.replace(RECORD, seed=1))
        assert [record.seed for record in read_records(path)] == [0, 1]

    def test_a_damaged_line_inside_is_an_error(self, tmp_path):
        path = tmp_path / "records.jsonl"
        path.write_text(f"{RECORD.to_json()}\nnonsense\n{RECORD.to_json()}\n")
        with pytest.raises(RunDirectoryError, match="line 2"):
            read_records(path)

    def test_the_last_line_of_a_run_counts(self, tmp_path):
        path = tmp_path / "records.jsonl"
        with RecordStore(path) as store:
            store.append(dataclasses.replace(RECORD, outcome="failed"))
            store.append(dataclasses.replace(RECORD, seed=5))
            store.append(RECORD)
        assert [(record.seed, record.outcome) for record in read_records(path)] == [(0, "correct"), (5, "correct")]

    def test_a_full_disk_leaves_whole_lines(self, tmp_path, monkeypatch):
        path = tmp_path / "records.jsonl"
        with RecordStore(path) as store:
            store.append(RECORD)
            write = worlds.os.write
            monkeypatch.setattr("motes.lab.run.appending.os.write", lambda file, data: write(file, data[:20]))
            with pytest.raises(RunDirectoryError, match="disk is full"):
                store.append(RECORD)
            monkeypatch.undo()
            store.append(dataclasses.replace(RECORD, seed=1))
        assert [record.seed for record in read_records(path)] == [0, 1]


def close_to(interval: Interval) -> Interval:
    return Interval(*(pytest.approx(end) for end in dataclasses.astuple(interval)))


class TestStatistics:
    def test_wilson_of_a_textbook(self):
        interval = wilson(0.8, 10)
        assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)

    def test_one_run_a_problem_is_plain_wilson(self):
        runs = {str(i): [i < 30] for i in range(80)}
        assert proportion_interval(runs) == wilson(30 / 80, 80)

    def test_seeds_that_agree_add_nothing(self):
        """Their variance is known from 80 problems only, and so are their intervals' quantiles."""
        five = proportion_interval({str(i): [i < 30] * 5 for i in range(80)})
        size = 80 * (79 / 80) * (400 / 399) * (stats.t.ppf(0.975, 399) / stats.t.ppf(0.975, 79)) ** 2
        assert five == close_to(wilson(30 / 80, size))

    def test_the_extremes_are_not_certain(self):
        everything = proportion_interval({str(i): [True] * 3 for i in range(20)})
        assert everything == wilson(1.0, 20)
        assert everything.low < 0.9
        alike = 40 * (stats.t.ppf(0.975, 39) / stats.t.ppf(0.975, 19)) ** 2
        assert proportion_interval({str(i): [True, False] for i in range(20)}) == close_to(wilson(0.5, alike))
        assert math.isnan(proportion_interval({}).value)

    def test_one_problem_alone_has_no_interval(self):
        for seeds in (1, 2, 100):
            found = proportion_interval({"p": [True, False] * seeds})
            assert (found.value, found.is_known) == (0.5, False)
        assert not proportion_interval({"p": [True], "q": []}).is_known
        two = proportion_interval({"p": [True, False] * 25, "q": [True, False] * 25})
        assert two.is_known
        assert two.high - two.low > 0.7

    @pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 99, 100, 999, 1000, 1001, 20_000])
    def test_students_quantiles_are_scipys(self, freedom):
        for p in (0.5, 0.9, 0.975, 0.9995):
            assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-5, abs=1e-9)

    @pytest.mark.parametrize(
        ("problems", "seeds", "a", "b"),
        [(4, 8, 0.5, 0.5), (6, 8, 0.5, 0.5), (10, 8, 2, 1), (8, 3, 1, 1)],
    )
    def test_coverage_with_few_problems(self, problems, seeds, a, b):
        """Not below 0.935 of 2000 trials, where it is 0.95 or more: a false alarm of 1e-3 a case. Without Student's
        quantile it is 0.80 to 0.92."""
        rng = np.random.default_rng(3)
        chances = rng.beta(a, b, size=(2000, problems, 1))
        runs = rng.random((2000, problems, seeds)) < chances
        found = [proportion_interval(dict(enumerate(trial.tolist()))) for trial in runs]
        assert np.mean([interval.low <= a / (a + b) <= interval.high for interval in found]) > 0.935

    def test_coverage_with_clusters(self):
        """Problems of very different difficulty, five seeds each: the interval holds its level, and a naive one,
        which takes all runs for independent, would not."""
        rng = np.random.default_rng(7)
        trials, problems, seeds, truth = 1500, 60, 5, 0.4
        covered = naive = 0
        for _ in range(trials):
            chances = rng.beta(0.4, 0.6, size=problems)
            runs = rng.random((problems, seeds)) < chances[:, None]
            interval = proportion_interval({str(i): row.tolist() for i, row in enumerate(runs)})
            covered += interval.low <= truth <= interval.high
            plain = wilson(runs.mean(), runs.size)
            naive += plain.low <= truth <= plain.high
        assert 0.93 <= covered / trials <= 0.97
        assert naive / trials < 0.8


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    run(directory, dataclasses.replace(SMALL, methods=("pf", "pf:paper", "majority", "greedy"), seeds=(0, 1)))
    return directory


class TestReport:
    def test_cells(self, finished):
        report = Report.load(finished)
        assert [(cell.method, cell.budget) for cell in report.cells] == [
            ("pf", 1), ("pf", 4), ("pf:paper", 1), ("pf:paper", 4), ("majority", 1), ("majority", 4), ("greedy", 1)
        ]  # fmt: skip
        assert report.warnings() == []
        everything = read_records(finished / "records.jsonl")
        for cell in report.cells:
            records = [r for r in everything if (r.method, r.budget) == (cell.method, cell.budget)]
            assert (cell.problems, cell.runs, cell.missing) == (10, 20, 0)
            assert cell.accuracy.value == sum(r.outcome == "correct" for r in records) / 20
            assert cell.oracle.value == sum(r.oracle for r in records) / 20
            assert cell.oracle.value >= cell.accuracy.value
            assert cell.tokens[0] == sum(r.usage.generated_tokens for r in records) / 20
        assert {cell.level for cell in report.levels} == {1, 2, 3, 4, 5}
        assert all(cell.runs == 4 for cell in report.levels)

    def test_an_unfinished_evaluation_says_so(self, finished, tmp_path):
        for name in ("config.json", "records.jsonl"):
            (tmp_path / name).write_bytes((finished / name).read_bytes())
        path = tmp_path / "records.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:100]))
        report = Report.load(tmp_path)
        assert report.missing == sum(cell.missing for cell in report.cells) == 40
        assert "40 runs are missing" in report.markdown()

    def test_foreign_records_stand_in_for_none_that_are_missing(self, tmp_path):
        """Of a file's problems only the directory's own list tells which they are."""
        path = tmp_path / "problems.jsonl"
        rows = [{"question": f"What is {i}+1?", "answer": f"{i + 1}", "id": f"sum/{i}"} for i in range(4)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run(tmp_path / "out", dataclasses.replace(SMALL, task=str(path), methods=("greedy",)))
        records = tmp_path / "out" / "records.jsonl"
        records.write_text(records.read_text().replace('"sum/1"', '"other/1"'))
        report = Report.load(tmp_path / "out")
        assert (report.missing, report.cells[0].missing, report.cells[0].runs) == (1, 1, 3)
        assert "the evaluation has no problem 'other/1'" in report.warnings()[0]
        (tmp_path / "out" / "problems.json").unlink()  # as in directories from before there was one
        assert Report.load(tmp_path / "out").missing == 0

    def test_files(self, finished):
        report = Report.load(finished)
        paths = write_report(finished, report)
        assert sorted(path.name for path in paths) == [
            "accuracy.png", "accuracy.svg", "csv-metadata.json", "differences.csv", "differences.png",
            "differences.svg", "levels.png", "levels.svg", "predictions.csv", "rates.csv", "reliability.png",
            "reliability.svg", "report.csv", "report.html", "report.md", "steps.csv",
        ]  # fmt: skip
        rows = list(csv.DictReader(io.StringIO((finished / "report.csv").read_text())))
        assert len(rows) == 7 * 6
        assert float(rows[1]["accuracy_low"]) <= float(rows[1]["accuracy"]) <= float(rows[1]["accuracy_high"])
        assert "| pf:paper | 4 |" in (finished / "report.md").read_text()
        assert (finished / "accuracy.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(finished / "accuracy.svg").getroot().tag.endswith("svg")
        for path in paths:  # pictures say where their numbers come from
            if path.suffix == ".svg":
                assert report.provenance.to_json() in ElementTree.parse(path).getroot().itertext()
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    assert image.info["Description"] == report.provenance.to_json()
                    assert image.width <= PIXELS

    def test_drawing_twice_gives_the_same_files(self, finished):
        first = {path: path.read_bytes() for path in write_report(finished, Report.load(finished))}
        assert first == {path: path.read_bytes() for path in write_report(finished, Report.load(finished))}

    @pytest.mark.parametrize("methods", [("greedy",), ("pf",), ("bon:aggregation=min", "greedy")])
    def test_any_selection_can_be_drawn(self, tmp_path, methods):
        run(tmp_path, dataclasses.replace(SMALL, methods=methods, limit=3))
        drawn = {path.stem for path in write_report(tmp_path, Report.load(tmp_path)) if path.suffix == ".svg"}
        more = {("greedy",): [], ("pf",): ["reliability"]}.get(methods, ["reliability", "differences"])
        assert drawn == {"accuracy", "levels", *more}

    @pytest.mark.parametrize("dodged", [True, False])
    def test_whiskers_stand_at_their_points(self, finished, dodged):
        """Which stand side by side where methods share a place, and elsewhere where they were measured."""
        report = Report.load(finished)
        figure = curves_figure(report, [BUDGET if dodged else TOKENS])
        (axes,) = figure.axes
        drawn = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() in MARKERS]
        points = sorted(x for places in drawn for x in places)
        whiskers = [x for bars in axes.collections if hasattr(bars, "get_segments")
                    for (x, _), _ in bars.get_segments()]  # fmt: skip
        assert len(points) == len(report.cells)
        assert set(whiskers) <= set(points)
        assert len(whiskers) == sum(cell.method != report.chief for cell in report.cells)
        places = sorted(float(cell.budget) if dodged else cell.total_tokens for cell in report.cells)
        assert (points == pytest.approx(places, rel=1e-9)) != dodged
        assert points == pytest.approx(places, rel=0.2)

    def test_labels_are_moved_apart_as_little_as_it_takes(self):
        assert _spread([0.1, 0.5, 0.9], [0.0, 0.1, 0.1], 1.0) == pytest.approx([0.1, 0.5, 0.9])
        assert _spread([0.5, 0.5, 0.9], [0.0, 0.1, 0.1], 1.0) == pytest.approx([0.45, 0.55, 0.9])
        assert _spread([0.98, 1.0], [0.0, 0.1], 1.0) == pytest.approx([0.9, 1.0])


MARKERS = {marker for _, marker in STYLES.values()}


def test_every_method_has_a_name_and_a_look_of_its_own():
    assert set(METHODS) == set(NAMES) == set(STYLES)
    assert len(set(NAMES.values())) == len(set(STYLES.values())) == len(METHODS)


def test_settings_that_came_later_leave_configurations_as_they_were():
    plain, sharing = (
        Evaluation(methods=(spec,), budgets=(4,), limit=1).to_dict()["methods"] for spec in ("pf", "pf:copies=share")
    )
    assert "copies" not in plain["pf"]
    assert sharing["pf:copies=share"]["copies"] == "share"
    told = {"methods": {"pf": {**plain["pf"], "copies": "count"}}}
    assert differing({"methods": plain}, told) == differing(told, {"methods": plain}) == []
    other = {"methods": {"pf": {**plain["pf"], "copies": "share"}}}
    assert differing({"methods": plain}, other) == ["methods.pf.copies is 'share' there and 'count' here"]
