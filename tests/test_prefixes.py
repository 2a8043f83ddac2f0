"""Partial answers in records, and the numbers that decide: T, P, and the AUROC between steps of the same problem."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import strangers
import worlds
from motes import api
from motes.core import Sampling
from motes.lab import Evaluation, RunRecord, Trace, evaluate, method_from_spec, read_records
from motes.lab.measure.reliability import Predictions, StepQuality, pair_counts, ratio_interval
from motes.lab.measure.statistics import wilson
from motes.lab.run.prefixes import Prefixes
from motes.lab.run.worker import prefixes_of
from motes.lab.show.report import Report
from motes.tasks import Arithmetic
from motes.tasks.arithmetic import parse

TASK = Arithmetic()
PROBLEMS = TASK.problems(limit=5)
TREE = Prefixes((None, 0, 0, 2, None), (0.9, 0.2, 0.8, 0.7, None), (True, False, True, True, None), (1, 3, None))
few = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


def solved(spec: str, budget: int = 8, sampling: Sampling | None = None):
    return api.solve(
        PROBLEMS[4],
        lm=worlds.StoryLanguageModel(0.3),
        reward=worlds.reward_model(),
        method=method_from_spec(spec, budget),
        sampling=sampling or Sampling(),
        seed=1,
    )


def found(result, task=TASK) -> Prefixes:
    return prefixes_of(Trace.of(("a", "pf", 8, 0), result), task, result.problem)


class TestPrefixes:
    @pytest.mark.parametrize("spec", ["pf", "bon", "beam:beam_width=2"])
    def test_hold_every_step_once_with_what_the_checker_says(self, spec):
        result = solved(spec)
        drawn = {}
        for population in [*(record.trajectories for record in result.records), result.trajectories]:
            for trajectory in population:
                for node in trajectory.path:
                    drawn[id(node.step)] = node
        story = parse(result.problem.question)
        expected = sorted((n.depth, n.text, all(story.check_step(s.text) for s in n.steps)) for n in drawn.values())
        prefixes = found(result)
        texts = []
        nodes = Trace.of(("a", "pf", 8, 0), result).nodes
        for place, parent in enumerate(prefixes.parents):
            texts.append(("" if parent is None else texts[parent]) + nodes[place].text)
        assert sorted(zip(prefixes.depths, texts, prefixes.right, strict=True)) == expected
        assert {True, False} == set(prefixes.right)
        assert [texts[end] for end in prefixes.ends] == [t.text for t in result.trajectories]
        for place, score in enumerate(prefixes.scores):
            assert score == nodes[place].score

    def test_particles_that_were_not_selected_are_there(self):
        result = solved("pf:ess_threshold=1")
        living = {id(step) for trajectory in result.trajectories for step in trajectory.steps}
        assert len(found(result)) > len(living)

    def test_a_task_without_checker_says_nothing(self):
        class Plain(Arithmetic):
            check_step = None

        assert found(solved("pf"), Plain()).right == ()

    def test_steps_that_are_no_paragraphs_are_not_checked(self):
        trace = Trace.of(("a", "pf", 8, 0), solved("bon"))
        cut = dataclasses.replace(trace.nodes[0], text=trace.nodes[0].text.strip())
        for nodes in ((cut, *trace.nodes[1:]), (*trace.nodes[:-1], dataclasses.replace(cut, text="a\n\nb"))):
            assert prefixes_of(dataclasses.replace(trace, nodes=nodes), TASK, PROBLEMS[4]).right == ()

    def test_a_checker_that_cannot_tell(self):
        class Unsure(Arithmetic):
            def check_step(self, problem, step):
                return None if step.startswith("Now") and super().check_step(problem, step) else False

        right = found(solved("bon"), Unsure()).right
        assert None in right
        assert True not in right
        assert False in right

    def test_final_answers_say_what_leads_to_a_right_one(self):
        assert TREE.lead_to((False, True, True)) == (True, False, True, True, None)
        assert TREE.lead_to((False, False, True)) == (False, False, False, False, None)
        assert TREE.lead_to((True, False, None)) == (True, True, False, False, None)
        assert TREE.lead_to((False, None, None)) == (False, False, None, None, None)
        assert TREE.lead_to((None, False, None)) == (False, None, False, False, None)

    def test_are_written_and_read(self):
        record = strangers.record(budget=3, prefixes=TREE)
        assert RunRecord.from_json(record.to_json()) == record
        assert json.loads(record.to_json())["prefixes"]["right"] == [1, 0, 1, 1, None]
        old = json.loads(record.to_json())
        del old["prefixes"]
        assert RunRecord.from_json(json.dumps(old)) == dataclasses.replace(record, prefixes=None)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"parents": [None, 1, 0, 2, None]}, "before the one that it continues"),
            ({"scores": [0.5]}, "not of one length"),
            ({"right": [1]}, "not of one length"),
            ({"scores": [0.9, 2, 0.8, 0.7, None]}, "numbers in"),
            ({"right": [True, 0, 1, 1, None]}, "1, 0 and null"),
            ({"ends": [1, 3, 5]}, "a step that does not exist"),
            ({"ends": [1, 3]}, "end 2 times, for 3 answers"),
            ({"parents": 3}, "a list of whole numbers"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, words):
        fields = json.loads(strangers.record(budget=3, prefixes=TREE).to_json())
        fields["prefixes"].update(change)
        with pytest.raises(ValueError, match=words):
            RunRecord.from_json(json.dumps(fields))


class TestPairs:
    @settings(max_examples=60)
    @given(st.lists(st.tuples(few, st.booleans(), st.integers(0, 3)), max_size=30))
    def test_are_counted_within_groups(self, rows):
        values, right, groups = (np.array(column) for column in zip(*rows, strict=True)) if rows else np.zeros((3, 0))
        wins, pairs = pair_counts(values.astype(float), right.astype(bool), groups.astype(np.int64))
        expected = np.zeros((2, len(wins)))
        for (a, good, g), (b, bad, h) in itertools.product(rows, rows):
            if good and not bad and g == h:
                expected[:, g] += (a > b) + (a == b) / 2, 1
        assert wins == pytest.approx(expected[0])
        assert pairs == pytest.approx(expected[1])

    def test_the_interval_of_a_mean_is_students(self):
        values = np.random.default_rng(0).integers(0, 5, 12).astype(float)
        interval = ratio_interval(values, np.ones(12), np.arange(12))
        expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
        assert (interval.low, interval.high) == pytest.approx(expected)
        one = np.zeros(12, dtype=np.int64)
        for alike, problems in ((values, one), (np.ones(12), np.arange(12))):  # one problem, and no difference
            assert not ratio_interval(alike, np.ones(12), problems).is_known

    def test_intervals_of_ratios_hold_their_level(self):
        """95 % intervals hold a ratio whose parts vary between 30 problems in more than 0.92 of 2,000 samples, where it
        is 0.945 in the long run: a false alarm of 1e-6."""
        rng = np.random.default_rng(1)
        held = 0
        for answers, factor in zip(rng.integers(1, 9, (2000, 30)), rng.gamma(4, 0.25, (2000, 30)), strict=True):
            steps = rng.poisson(5 * factor * answers).astype(float)
            interval = ratio_interval(steps, answers.astype(float), np.arange(30))
            held += interval.low <= 5 <= interval.high
        assert 0.92 < held / 2000 < 0.98

    def test_what_never_differs_is_no_certainty(self):
        rows = [(0.9, True, "a"), (0.1, False, "a"), (0.8, True, "b"), (0.2, False, "b"), (0.1, False, "c")]
        _, within = Predictions.of(rows).auroc()
        assert dataclasses.astuple(within) == dataclasses.astuple(wilson(1.0, 2)), "two problems are contested"


class TestSharpness:
    """Scores σ(x), of which σ(α_g + βx) are right: groups differ in how many are, and β is what is asked for."""

    @staticmethod
    def drawn(seed: int, beta: float, problems: int = 60, groups: int = 5, size: int = 8):
        rng = np.random.default_rng(seed)
        x = rng.normal(0, 1.5, (problems * groups, size))
        chance = 1 / (1 + np.exp(-(rng.normal(0, 2, (problems * groups, 1)) + beta * x)))
        right = rng.random(chance.shape) < chance
        each = np.arange(problems * groups).repeat(size)
        scores = 1 / (1 + np.exp(-x))
        return Predictions(scores.ravel(), right.ravel(), each // groups), each

    @pytest.mark.parametrize("beta", [0.4, 1.0, 2.5])
    def test_it_is_found_whatever_groups_have_in_common(self, beta: float):
        """40 samples: the mean is within 5 standard errors (false alarm below 1e-6), and of 95 % intervals at least 30
        hold (below 1e-4)."""
        found = [predictions.sharpness(groups) for predictions, groups in (self.drawn(i, beta) for i in range(40))]
        values = np.array([each.value for each in found])
        assert abs(values.mean() - beta) < 5 * values.std() / 40**0.5 + 0.02 * beta
        assert sum(each.low < beta < each.high for each in found) >= 30

    def test_of_two_it_is_what_pairs_say(self):
        """Of three pairs with the same gap the right one is the larger in two: σ(βd) = 2/3."""
        predictions = Predictions(np.array([0.8, 0.5] * 3), np.array([1, 0, 1, 0, 0, 1], dtype=bool), np.arange(6) // 2)
        assert predictions.sharpness(np.arange(6) // 2).value == pytest.approx(np.log(2) / np.log(4))

    def test_many_pairs_of_a_group_are_thinned(self, monkeypatch: pytest.MonkeyPatch):
        predictions, groups = self.drawn(0, 1.0, problems=20, size=60)
        few = predictions.sharpness(groups)
        monkeypatch.setattr("motes.lab.measure.reliability.PAIRS", 10**6)
        every = predictions.sharpness(groups)
        assert few.value != every.value
        assert few.value == pytest.approx(every.value, abs=0.15)

    def test_there_is_none_where_nothing_is_in_doubt(self):
        certain = Predictions(np.array([0.9, 0.1]), np.array([True, False]), np.array([0, 0]))
        for predictions in (certain, Predictions(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=int))):
            groups = np.zeros(len(predictions.values), dtype=int)
            assert np.isnan(predictions.sharpness(groups).value)


def run(problem: int, prefixes: Prefixes | None, right=(True, False), **fields) -> RunRecord:
    told = {"method": "bon", "budget": 2, "outcome": "correct", "seed": 0, "right": right, "answers": ("1", "2")}
    told |= {"scores": (0.5, 0.6), "posterior": {"1": 1.0}, "groups": (0, None)}
    return RunRecord(**{**told, "problem_id": f"p{problem}", "prefixes": prefixes, **fields})


class TestStepQuality:
    def test_is_what_its_words_say(self):
        rng = np.random.default_rng(3)
        records, rows = [], []
        for problem, seed in itertools.product(range(6), range(2)):
            parents = (None, 0, 1, 0, None, 4)
            depths = (1, 2, 3, 2, 1, 2)
            scores = tuple(rng.integers(0, 5, 6) / 5)
            right = tuple(bool(b) for b in rng.integers(0, 2, 6))
            records.append(run(problem, Prefixes(parents, scores, right, (2, 5)), seed=seed))
            rows += [(s, r, problem, d) for s, r, d in zip(scores, right, depths, strict=True)]
        quality = StepQuality.of("bon", 2, True, records)
        pairs = [
            ((a[0] > b[0]) + (a[0] == b[0]) / 2, a[3] == b[3])
            for a, b in itertools.product(rows, rows)
            if a[1] and not b[1] and a[2] == b[2]
        ]
        assert quality.within.value == pytest.approx(np.mean([win for win, _ in pairs]))
        assert quality.abreast.value == pytest.approx(np.mean([win for win, same in pairs if same]))
        assert quality.within.low < quality.within.value < quality.within.high
        assert (quality.steps.value, quality.right.value, quality.prefixes) == (2.5, 0.5, 72)
        assert quality.wrong == pytest.approx(np.mean([not row[1] for row in rows]))
        assert quality.checked
        parts = {part: i for i, part in enumerate(dict.fromkeys(row[2:] for row in rows))}
        predictions = Predictions.of([(score, right, str(problem)) for score, right, problem, _ in rows])
        expected = predictions.sharpness(np.array([parts[row[2:]] for row in rows]))
        assert dataclasses.astuple(quality.beta) == pytest.approx(dataclasses.astuple(expected))

    def test_without_a_checker_final_answers_say_it(self):
        records = [run(i, dataclasses.replace(TREE, right=(), ends=(1, 3))) for i in range(3)]
        quality = StepQuality.of("pf", 2, False, records)
        assert not quality.checked
        assert quality.prefixes == 12  # the one that nothing continues is left out
        labels = TREE.lead_to((True, False, None))[:4]
        expected = [(a > b) for a, x in zip(TREE.scores, labels, strict=False) for b, y in
                    zip(TREE.scores, labels, strict=False) if x and not y]  # fmt: skip
        assert quality.within.value == pytest.approx(np.mean(expected))

    def test_failed_runs_count_as_not_right(self):
        records = [run(0, None), run(1, None, outcome="failed", right=(), answers=(), groups=(), scores=())]
        assert StepQuality.of("bon", 2, True, records).right.value == 0.25

    def test_nothing_scored_is_left_out(self):
        assert StepQuality.of("majority", 2, True, [run(0, TREE, scores=(None, None))]) is None

    def test_old_records_cannot_tell_and_the_report_says_so(self):
        records = [run(problem, None) for problem in range(3)]
        quality = StepQuality.of("bon", 2, True, records)
        assert (quality.prefixes, quality.untold, quality.right.value) == (0, 3, 0.5)
        text = Report.of(records, {}).markdown()
        assert "3 of these runs have records from before partial answers were kept" in text


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    directory = tmp_path_factory.mktemp("steps")
    evaluation = Evaluation(
        methods=("pf", "wbon", "majority"), budgets=(8,), limit=10, lm="worlds:language_model",
        reward="worlds:reward_model",
    )  # fmt: skip
    asyncio.run(evaluate(evaluation, directory, traces=False))
    assert all(record.prefixes.right for record in read_records(directory / "records.jsonl") if record.scores[0])
    return Report.load(directory)


class TestReport:
    def test_tells_the_numbers_that_decide(self, report):
        section = next(section for section in report.sections() if "between steps" in section.title)
        assert [row[:2] for row in section.rows] == [["pf", "8"], ["wbon", "8"]]
        for row in section.rows:
            assert all("(" in row[place] for place in (2, 3, 6, 7, 8))
        assert "step checker" in section.note
        assert "only `wbon` says" in section.note
        assert "final outcome" not in section.note

    def test_and_writes_them(self, report):
        header, *rows = report.tables()["steps.csv"].splitlines()
        assert header.startswith("method,budget,independent,steps,steps_low,steps_high,right,")
        assert [row.split(",")[:3] for row in rows] == [["pf", "8", "0"], ["wbon", "8", "1"]]

    def test_says_where_final_answers_label(self, report):
        bare = [
            dataclasses.replace(record, prefixes=dataclasses.replace(record.prefixes, right=()))
            for records in report.runs.values()
            for record in records
        ]
        text = Report.of(bare, report.configuration).markdown()
        assert "by the final outcome" in text
        assert "step checker for these steps" in text
