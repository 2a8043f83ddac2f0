"""What a pilot says of a regime, and what is advised: on worlds of chains, where the truth is known, on fixed seeds."""

from __future__ import annotations

import asyncio
import csv
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import motes
from motes.cli import main
from motes.errors import ConfigurationError
from motes.lab import RunRecord, advise, read_records
from motes.lab.chains import RIGHT, ChainWorld
from motes.lab.measure import advice
from motes.lab.measure.advice import Advice, Prediction, coverage
from motes.lab.measure.readings import ReadAnswer
from motes.lab.measure.regime import Mistakes, Regime, resampled, samples_of
from motes.lab.measure.statistics import Interval
from pilots import measured, pilot_of

LONG = ChainWorld(10, 0.15, 2.0, memory=0.6)
"""Where particles win."""


@pytest.fixture(scope="module")
def pilot(tmp_path_factory) -> list[RunRecord]:
    return measured(tmp_path_factory.mktemp("pilot"), LONG)


class TestRegime:
    def test_it_is_found_again(self, pilot):
        found = Regime.of(pilot)
        assert (found.problems, found.answers, found.checked) == (100, 8, True)
        assert found.steps.value == 10
        assert found.success.low < np.mean([np.prod(c) for c in list(LONG.chances.values())[:100]]) < found.success.high
        assert found.auroc.low < LONG.auroc < found.auroc.high
        assert found.separation == pytest.approx(2.0, abs=0.2)
        assert 0.4 < found.systematic < 0.75, "two mistakes of three at a step are different ones"
        assert found.world(10).systematic == 1.0
        mistakes = found.mistakes
        assert mistakes.flawless == found.success.value
        assert (mistakes.luck, len(mistakes.hardness)) == (0.0, 10)
        assert mistakes.hardness[:5] == pytest.approx([1 - 0.15 ** (1 / 10)] * 5, abs=0.08)
        assert mistakes.spread == pytest.approx(found.spread)
        assert 2.5 < found.spread < 10
        assert found.tokens == (20.0, 0.0)

    def test_errors_of_the_wording_are_told_from_those_of_what_is_said(self, tmp_path):
        found = []
        for systematic in (0.0, 0.6, 1.0):
            world = replace(LONG, num_steps=3, success=0.3, systematic=systematic)
            found.append(Regime.of(measured(tmp_path / f"{systematic}", world)))
        assert found[0].systematic < 0.12
        assert found[0].world(10).systematic < 0.25
        assert found[0].systematic < found[1].systematic < found[2].systematic

    def test_agreement_of_wrong_answers(self, tmp_path):
        world = replace(LONG, num_steps=4, success=0.3, agreement=0.7)
        found = Regime.of(measured(tmp_path, world))
        assert found.mistakes.agreement == pytest.approx(0.7**2, abs=0.12)
        assert agreement_of(found.world(60)) == pytest.approx(0.7**2, abs=0.12)

    def test_mistakes_at_one_step_are_as_often_the_same(self):
        """Which is told from how often answers agree, those that go wrong at the same step or not."""
        world = replace(LONG, num_steps=4, success=0.3, mistakes=(0.8, 0.2))
        found = Mistakes.of(pilot_of(world), agreement_of(world))
        assert found.sameness == pytest.approx(0.8**2 + 0.2**2, abs=0.12)
        assert sum(share**2 for share in found.kinds) == pytest.approx(found.sameness, abs=1e-9)
        assert sum(found.kinds) == pytest.approx(1.0)
        assert agreement_of(replace(world, mistakes=found.kinds)) == pytest.approx(found.agreement, abs=0.08)

    def test_luck_is_no_success_of_steps(self, tmp_path):
        found = Regime.of(measured(tmp_path, replace(LONG, num_steps=5, success=0.2, luck=0.2), limit=None))
        assert found.mistakes.luck == pytest.approx(0.2, abs=0.05)
        assert found.mistakes.flawless == pytest.approx(0.2, abs=0.06)
        assert found.success.value == pytest.approx(0.2 + 0.8 * 0.2, abs=0.06)
        world = found.world(10)
        assert (world.success, world.luck) == (found.mistakes.flawless, found.mistakes.luck)

    @pytest.mark.parametrize(("concentration", "least", "most"), [(0.4, 0.25, 0.7), (2.0, 1.0, 4.0)])
    def test_where_difficulty_lies(self, concentration: float, least: float, most: float):
        world = ChainWorld(8, 0.1, 1.0, concentration=concentration, spread=9.0, law="gamma", num_problems=150)
        found = Mistakes.of(pilot_of(world, 12), 0.0)
        assert found.concentration is not None
        assert least <= found.concentration <= most

    def test_of_what_little_there_is(self):
        """A problem of which one answer alone was scored throughout tells nothing of how answers to it differ."""
        alone = [ReadAnswer("a", (1.0, -1.0), 1, False), ReadAnswer("b", (1.0, 1.0), None, True)]
        found = Mistakes.of(alone, 0.0)
        assert (found.flawless, found.luck, found.hardness, found.sameness) == (0.5, 0.0, (0.0, 0.5), 1.0)
        assert math.isnan(found.meeting)

    def test_without_checked_steps_final_answers_tell(self, pilot):
        unchecked = [
            replace(record, prefixes=replace(record.prefixes, right=()))
            for record in pilot
            if record.prefixes is not None
        ]
        found = Regime.of(unchecked)
        assert not found.checked
        assert found.auroc.value == pytest.approx(LONG.auroc, abs=0.06)
        assert found.mistakes.flawless == pytest.approx(found.success.value, abs=0.03)
        assert np.mean(found.mistakes.hardness) == pytest.approx(1 - 0.15 ** (1 / 10), abs=0.06)

    def test_a_reward_model_of_whole_answers_is_as_theory_has_it(self, pilot):
        found = Regime.of([_scored_at_the_end(record) for record in pilot])
        assert found.readings is None
        assert found.mistakes == Mistakes.unknown(found.success.value, found.spread, found.mistakes.agreement)
        world = found.world(10)
        assert world.separation == found.separation == pytest.approx(2.0, abs=0.4)
        assert (world.reader, world.num_steps) == (None, 10)

    def test_where_there_is_nothing_to_choose_from(self, pilot):
        for mark, words in (
            (True, "none of 800 answers is wrong.*harder"),
            (False, "none of 800 answers is right.*easier"),
        ):
            alike = [replace(record, right=(mark,) * 8) for record in pilot]
            with pytest.raises(ConfigurationError, match=words):
                Regime.of(alike)
        with pytest.raises(ConfigurationError, match="evaluate bon or wbon"):
            Regime.of([replace(record, method="pf") for record in pilot])
        with pytest.raises(ConfigurationError, match="evaluate bon or wbon"):
            Regime.of([replace(record, scores=(None,) * 8) for record in pilot])
        with pytest.raises(ConfigurationError, match=r"how many steps .* Evaluate again"):
            Regime.of([replace(record, prefixes=None) for record in pilot])

    def test_the_cell_with_the_most_answers_is_looked_at(self, pilot):
        fewer = [replace(record, budget=4, method="bon") for record in pilot]
        assert samples_of([*fewer, *pilot]) == pilot
        assert samples_of([*fewer, *pilot[:50]]) == fewer, "more problems before more answers"

    def test_resamples_are_of_whole_problems(self, pilot):
        drawn = resampled(pilot, np.random.default_rng(0))
        assert len(drawn) == len({record.problem_id for record in drawn}) == 100
        assert len({record.run_seed for record in drawn}) < 80

    def test_coverage_is_that_of_a_beta_distribution(self, pilot):
        regime = replace(Regime.of(pilot), success=Interval.none(0.2), spread=5.0)
        p = np.random.default_rng(0).beta(1.0, 4.0, size=200_000)
        for n in (1, 8, 64):
            assert coverage(regime, n) == pytest.approx(np.mean(1 - (1 - p) ** n), abs=4e-3)


def agreement_of(world: ChainWorld) -> float:
    """The chance that two wrong answers to a problem are the same."""
    same = pairs = 0
    for seed, problem in enumerate(world.problems()):
        made = motes.solve(problem, lm=world.lm, reward=None, method=motes.Majority(8), task=world, seed=seed)
        wrong = Counter(answer for t in made.trajectories if (answer := world.answer(t.text)) != RIGHT)
        same += sum(n * (n - 1) for n in wrong.values())
        pairs += wrong.total() * (wrong.total() - 1)
    return same / pairs


def _scored_at_the_end(record: RunRecord) -> RunRecord:
    assert record.prefixes is not None
    ends = set(record.prefixes.ends)
    scores = tuple(score if place in ends else None for place, score in enumerate(record.prefixes.scores))
    return replace(record, prefixes=replace(record.prefixes, scores=scores, right=()))


@pytest.fixture(scope="module")
def advised(pilot) -> Advice:
    told: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advice, "RESAMPLES", 4)
        patch.setattr(advice, "PROBLEMS", 40)
        found = asyncio.run(advise(pilot, ("majority", "wbon", "pf"), (2, 8), observe=lambda *args: told.append(args)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return found


def predicted(advised: Advice, method: str, budget: int) -> Prediction:
    return next(one for one in advised.predictions if (one.method, one.budget) == (method, budget))


class TestAdvice:
    def test_what_is_predicted_is_found(self, advised, tmp_path):
        """On other problems of that world: within the interval, or four points beside it, for what they are. 160 and
        120 problems are compared: the mean of the six errors is known to some three points."""
        records = measured(tmp_path, replace(LONG, num_problems=120), ("majority", "wbon", "pf"), (2, 8), limit=None)
        errors = []
        for method in ("majority", "wbon", "pf"):
            for budget in (2, 8):
                runs = [record for record in records if (record.method, record.budget) == (method, budget)]
                found = sum(record.outcome == "correct" for record in runs) / len(runs)
                interval = predicted(advised, method, budget).accuracy
                assert interval.low - 0.04 < found < interval.high + 0.04, (method, budget)
                errors.append(abs(found - interval.value))
        assert np.mean(errors) < 0.09

    def test_particles_are_advised_where_they_win(self, advised):
        assert advised.chosen.method == "pf"
        assert predicted(advised, "pf", 8).accuracy.value > predicted(advised, "wbon", 8).accuracy.value + 0.1
        assert advised.words()[0].startswith(f"Take pf with N = {advised.chosen.budget}: about ")
        assert predicted(advised, "pf", 8).tokens == 8 * 20

    def test_its_files(self, advised):
        tables = advised.tables("a | title")
        assert tables["advice.md"].startswith("# a \\| title\n\nTake pf with N = ")
        rows = list(csv.DictReader(tables["advice.csv"].splitlines()))
        assert [(row["method"], row["budget"]) for row in rows] == [
            (method, budget) for method in ("majority", "wbon", "pf") for budget in ("2", "8")
        ]


def advice_of(
    accuracies: dict[str, tuple[float, float]],
    covered: float,
    better: float | None = None,
    auroc: float = 0.8,
    beta: Interval | None = None,
) -> Advice:
    """Of accuracies at 4 and 16."""
    regime = Regime(
        100, 8, Interval(6, 5, 7), Interval(0.3, 0.2, 0.4), 2.0, Interval(auroc, 0.7, 0.9), True,
        beta or Interval.none(), math.nan, Mistakes.unknown(0.3, 2.0, 0.1), None, (10.0, 5.0),
    )  # fmt: skip
    predictions = tuple(
        Prediction(method, budget, Interval(value, value, value), 15.0 * budget)
        for method, both in accuracies.items()
        for budget, value in zip((4, 16), both, strict=True)
    )
    return Advice(regime, None, {4: 0.5, 16: covered}, predictions, better)


class TestWords:
    def test_the_smallest_budget_that_is_about_as_good(self):
        found = advice_of({"majority": (0.3, 0.4), "wbon": (0.5, 0.6), "pf": (0.69, 0.7)}, 0.75)
        assert (found.chosen.method, found.chosen.budget) == ("pf", 4)
        assert found.words()[0].endswith("N = 16 gains no more than 2 points on that.")
        assert advice_of({"pf": (0.5, 0.7)}, 0.75).words()[0].endswith("more may be worth their price.")

    def test_what_is_as_good_and_later_in_the_list_is_taken(self):
        assert advice_of({"wbon": (0.5, 0.71), "rebase": (0.6, 0.7), "pf": (0.5, 0.6)}, 0.75).chosen.method == "rebase"

    def test_the_reward_model_is_the_limit(self):
        found = advice_of({"wbon": (0.5, 0.6), "pf": (0.6, 0.7)}, 0.95, better=0.9)
        assert found.limit == "reward"
        assert "with an AUROC of 0.95 instead of 0.80 the same budget comes to 90.0 %" in found.words()[-1]
        no_better = advice_of({"wbon": (0.5, 0.6), "pf": (0.6, 0.7)}, 0.95, better=0.69)
        assert no_better.words()[-1].endswith("A better one is worth more than particles.")

    @pytest.mark.parametrize(
        ("beta", "words"),
        [
            (Interval(2.5, 1.8, 3.2), "take them more sharply, with beta = 2.5 (1.8 – 3.2) instead of 1,"),
            (Interval(0.4, 0.2, 0.6), "too sure: take them less sharply, with beta = 0.4"),
            (Interval(1.4, 0.9, 1.9), ""),
            (Interval.none(), ""),
        ],
    )
    def test_how_sharply_scores_should_be_taken(self, beta, words):
        increment = "pf:potential=increment:beta=1"
        of_filter = advice_of({"wbon": (0.5, 0.6), increment: (0.6, 0.7)}, 0.95, beta=beta).words()
        assert words in " ".join(of_filter)
        assert any("with beta" in line for line in of_filter) == bool(words)
        for other in ("wbon", "pf"):  # which do not weigh the last score alone
            assert not any("beta" in line for line in advice_of({other: (0.5, 0.6)}, 0.95, beta=beta).words())

    def test_coverage_is_the_limit(self):
        found = advice_of({"wbon": (0.5, 0.6), "pf": (0.6, 0.7)}, 0.72)
        assert found.limit == "coverage"
        assert "Coverage is the limit: of 16 answers one is right in 72.0 %" in found.words()[-1]

    def test_a_vote_that_is_as_good_is_named(self):
        found = advice_of({"majority": (0.6, 0.7), "pf": (0.6, 0.7)}, 0.78)
        assert "A majority vote does as well there" in found.words()[1]
        assert found.limit == "neither"


class TestCommand:
    def test_on_an_evaluation_that_exists(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(advice, "RESAMPLES", 2)
        monkeypatch.setattr(advice, "PROBLEMS", 5)
        measured(tmp_path, replace(LONG, num_steps=3), limit=20)
        assert main(["advise", str(tmp_path)]) == 0
        told = capsys.readouterr().out
        for words in ("Regime", "Predicted accuracy", "weighted best of N", "Take ", "tokens"):
            assert words in told
        page = (tmp_path / "advice.md").read_text()
        assert "## Provenance" in page
        assert (tmp_path / "advice.csv").is_file()
        assert main(["advise", str(tmp_path), "--dry-run"]) == 2
        assert main(["advise", str(tmp_path / "nowhere")]) == 2

    def test_a_task_without_a_validation_split(self, tmp_path, capsys):
        problems = [{"id": str(n), "problem": f"Ben owns {n}. How many does Ben have?", "answer": n} for n in range(4)]
        mine = tmp_path / "mine.jsonl"
        mine.write_text("\n".join(map(json.dumps, problems)))
        fake = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
        words = ["advise", "--labels", "4", "--out", str(tmp_path / "pilot"), *fake, "--dry-run"]
        for split, code, note in (([], 0, "using test"), (["--split", "test"], 0, None), (["--split", "x"], 2, "'x'")):
            assert main([*words, "--task", str(mine), *split]) == code
            error = capsys.readouterr().err
            assert (note in error) if note else ("using test" not in error)
        assert main([*words, "--task", "arithmetic"]) == 0
        assert "using test" not in capsys.readouterr().err
        assert main([*words, "--task", "arithmetics"]) == 2
        assert "arithmetics" in capsys.readouterr().err

    def test_a_pilot_of_its_own(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(advice, "RESAMPLES", 2)
        monkeypatch.setattr(advice, "PROBLEMS", 4)
        out = tmp_path / "pilot"
        words = ["advise", "--labels", "4", "--samples", "2", "--out", str(out)]
        fake = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
        assert main([*words, *fake, "--dry-run"]) == 0
        assert "wbon" in capsys.readouterr().out
        assert not out.exists(), "priced before anything is done"
        assert main([*words, "--reward", "none"]) == 2
        assert "name one" in capsys.readouterr().err
        code = main([*words, *fake])
        told = capsys.readouterr()
        assert {record.method for record in read_records(out / "records.jsonl")} == {"wbon", "greedy"}
        assert (code, "greedy (measured)" in told.out) == (0, True) or "none of 8 answers" in told.err
