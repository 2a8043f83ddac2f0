"""Methods compared on the same problems: differences, scaling rates, and what they cost in arithmetic."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

import worlds
from motes import Usage
from motes.errors import RunDirectoryError
from motes.lab import Report, RunRecord, write_report
from motes.lab.measure import statistics
from motes.lab.measure.comparison import PairedRuns, chief_of, differences, points, rates
from motes.lab.measure.formats import flops
from motes.lab.measure.statistics import (
    Interval,
    budget_to_reach,
    joint_level,
    joint_rank_level,
    paired_intervals,
    percentile_interval,
    resamples,
    simultaneous_intervals,
)
from motes.lab.run.flops import MODELS, Sizes
from motes.lab.show.forest import Forest, whole_points
from motes.lab.show.plot import BUDGET, TOKENS, _decades, curves_figure
from motes.lab.show.style import heading, save, styles_of
from test_lab import SMALL, results, run

INF = math.inf


def records(method: str, budget: int, right: np.ndarray | list, tokens: int = 0) -> list[RunRecord]:
    """One run for each problem and seed, from a matrix (P, S) or a vector (P,) of truth values."""
    return [
        RunRecord(
            problem_id=f"p/{i}",
            method=method,
            budget=budget,
            seed=seed,
            outcome="correct" if value else "wrong",
            usage=Usage(generated_tokens=tokens),
        )
        for i, row in enumerate(np.asarray(right).reshape(len(right), -1))
        for seed, value in enumerate(row)
    ]


def only(found: list):
    (one,) = found
    return one


class TestBootstrap:
    def test_the_first_row_is_the_sample_and_the_others_are_as_large(self):
        counts = np.concatenate(list(resamples(7, 50)))
        assert counts.shape == (51, 7)
        assert (counts[0] == 1).all()
        assert (counts.sum(axis=1) == 7).all()
        assert len(np.unique(counts, axis=0)) > 40

    def test_ends_are_order_statistics(self):
        draws = np.array([5.0, *range(200)])
        interval = percentile_interval(draws)
        assert dataclasses.astuple(interval) == (5.0, 5.0, 194.0)
        draws[-20:] = INF
        assert percentile_interval(draws).high == INF
        assert math.isnan(percentile_interval(np.array([1.0, math.nan])).low)

    def test_few_problems_have_wider_intervals(self):
        """The level of the larger quantile √(K/(K − 1)) · t is cut off at each end."""
        draws = np.array([500.0, *range(1000)])
        for problems in (2, 5, 20, 1000):
            wide = math.sqrt(problems / (problems - 1)) * stats.t.ppf(0.975, problems - 1)
            cut = round(1000 * stats.norm.cdf(-wide))
            assert dataclasses.astuple(percentile_interval(draws, problems=problems)) == (500.0, cut, 999 - cut)
        alone = percentile_interval(draws, problems=1)
        assert (alone.value, alone.is_known) == (500.0, False)

    def test_blocks_do_not_change_what_is_drawn_from(self, monkeypatch):
        monkeypatch.setattr(statistics, "BLOCK", 20)
        blocks = list(resamples(7, 50, extra=2))
        assert {block.shape for block in blocks[1:]} == {(2, 9)}
        assert len(np.unique(np.concatenate(blocks[1:]), axis=0)) > 40
        assert blocks[0].tolist() == [[1] * 7 + [0] * 2]
        assert (np.concatenate(blocks).sum(axis=1) == 7).all()

    def test_memory_does_not_grow_with_the_problems(self):
        """Of 14,000 problems and 100 columns all resamples at once would be 450 MB; a block and the means are 40."""
        tracemalloc.start()
        try:
            found = np.concatenate([counts.mean(axis=1) for counts in resamples(14_000, 600)])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (found == 1).all()
        assert peak < 40e6

    def test_its_spread_is_that_of_the_formula(self):
        """The mean of problems that weigh the same has variance Σ(d_i − d̄)²/P²; 4000 resamples know its root to 1.1 %
        (one standard error): 5 % off has a chance of 1e-5."""
        rng = np.random.default_rng(3)
        a, b = rng.random((60, 4)) < 0.6, rng.random((60, 4)) < 0.4
        means = PairedRuns([*records("pf", 4, a), *records("bon", 4, b)]).means([("pf", 4), ("bon", 4)])
        d = a.mean(axis=1) - b.mean(axis=1)
        assert means[0, 0] - means[0, 1] == pytest.approx(d.mean())
        assert np.std(means[1:, 0] - means[1:, 1]) == pytest.approx(np.std(d) / math.sqrt(60), rel=0.05)


def drawn_differences(rng, trials: int, problems: int, seeds: int, gain: float, agreement: float) -> np.ndarray:
    """(trials, problems) differences of shares of right runs, the true mean of which is `gain`: problems are of very
    different difficulty, and in a share `agreement` of runs both sides draw the same."""
    chances = rng.beta(0.4, 0.6, size=(trials, problems, 1)) * (1 - gain)  # so that nothing is cut off at 1
    one, other = rng.random((2, trials, problems, seeds))
    other = np.where(rng.random(other.shape) < agreement, one, other)
    return ((one < chances + gain).mean(axis=2) - (other < chances).mean(axis=2)).round(9)


class TestPairedIntervals:
    @pytest.mark.parametrize(("problems", "least"), [(25, 0.955), (100, 0.94)])
    @pytest.mark.parametrize(
        ("seeds", "gain", "agreement"), [(1, 0.1, 0.0), (3, 0.1, 0.0), (1, 0.05, 0.9), (1, 0.01, 0.95)]
    )
    def test_coverage(self, problems, least, seeds, gain, agreement):
        """95 % intervals hold the true difference in 0.965 or more of 40,000 trials with 25 problems, in 0.952 or more
        with 100 (the first case): not in more than `least` of 4,000 is a false alarm of 3e-4 at most. They are no wider
        than it takes: where the sides differ often, by a fifth at most than Student's own, which holds the last case in
        0.43 with 25 problems."""
        d = drawn_differences(np.random.default_rng(11), 4000, problems, seeds, gain, agreement).T
        found = paired_intervals(d)
        assert np.mean([interval.low <= gain <= interval.high for interval in found]) > least
        widths = np.mean([interval.high - interval.low for interval in found])
        student = 2 * stats.t.ppf(0.975, problems - 1) * np.std(d, axis=0, ddof=1).mean() / math.sqrt(problems)
        assert agreement or 1 < widths / student < 1.2

    @pytest.mark.parametrize("problems", [4, 6])
    def test_coverage_with_very_few_problems(self, problems):
        """More than 0.95 of 4,000 trials, where it is 0.99 or more in 40,000: a false alarm below 1e-9."""
        found = paired_intervals(drawn_differences(np.random.default_rng(5), 4000, problems, 8, 0.0, 0.0).T)
        assert np.mean([interval.low <= 0 <= interval.high for interval in found]) > 0.95

    def test_the_formula(self):
        d = np.array([0.5, 0.25, 0.0, 0.0, -0.25])
        variance = (np.sum(d**2) + 2 * 0.5**2 - np.sum(d) ** 2 / 7) / 6
        half = stats.t.ppf(0.975, 4) * math.sqrt(variance / 7)
        for function in (paired_intervals, simultaneous_intervals):
            (interval,) = function(d[:, None])
            assert dataclasses.astuple(interval) == pytest.approx((0.1, 0.1 - half, 0.1 + half))

    def test_agreement_is_no_certainty(self):
        """None of 20 problems differs: one in ten may."""
        (interval,) = paired_intervals(np.zeros((20, 1)))
        assert -0.15 < interval.low < -0.1
        assert interval.high == -interval.low

    def test_what_is_missing_counts_for_neither(self):
        rng = np.random.default_rng(0)
        d = rng.choice([-1.0, 0.0, 1.0], size=(30, 3))
        d[10:, 1] = math.nan
        d[1:, 2] = math.nan
        own, together = paired_intervals(d), simultaneous_intervals(d)
        assert own[1] == only(paired_intervals(d[:10, 1:2]))
        assert (own[2].value, own[2].is_known, together[2].is_known) == (d[0, 2], False, False)
        assert not math.isnan(together[0].low)

    def test_a_family_of_intervals_holds_its_level(self):
        """Three methods as good as the chief one, at two budgets: all six simultaneous intervals hold 0 in more than
        0.90 of 200 trials (a false alarm of 2e-3 at 0.95), in fact in 0.96; their own in less than 0.9."""
        rng = np.random.default_rng(4)
        held = np.zeros(2)
        for _ in range(200):
            right = rng.random((60, 4, 2)) < rng.beta(0.4, 0.6, size=(60, 1, 1))
            d = (right[:, 1:] * 1.0 - right[:, :1]).reshape(60, 6)
            families = (paired_intervals(d), simultaneous_intervals(d))
            held += [all(each.low <= 0 <= each.high for each in family) for family in families]
        assert held[0] / 200 < 0.9
        assert held[1] / 200 > 0.9

    def test_levels_of_families(self):
        """What does not hang together needs 0.95 to the power 1/C; what is one comparison, 0.95; to three standard
        errors of 10,000 draws."""
        assert joint_level(np.eye(1)) == joint_level(np.empty((0, 0))) == 0.95
        assert joint_level(np.ones((5, 5))) == pytest.approx(0.95, abs=0.0066)
        for columns in (2, 10):
            assert joint_level(np.eye(columns)) == pytest.approx(0.95 ** (1 / columns), abs=0.0066 / columns)
        half = joint_level(np.full((6, 6), 0.5) + 0.5 * np.eye(6))  # as when six have one chief
        assert 0.96 < half < 0.95 ** (1 / 6) - 0.0005

    def test_levels_of_ranks(self):
        rng = np.random.default_rng(0)
        draws = rng.normal(size=(20_000, 3))
        assert joint_rank_level(draws[:, :1]) == 0.95
        assert joint_rank_level(draws[:, [0, 0]]) == pytest.approx(0.95, abs=0.001)
        assert joint_rank_level(draws) == pytest.approx(0.95 ** (1 / 3), abs=0.002)
        for beyond in (INF, 0.0):  # half of them beyond measure, which are inside together
            draws[:, 1] = np.where(draws[:, 1] > 0, beyond, draws[:, 1])
        assert joint_rank_level(draws) < 0.95 ** (1 / 3)


class TestDifferences:
    def test_who_is_compared_with_whom(self):
        """The first particle filter by its id, whatever its settings; no name that only begins alike."""
        assert chief_of(["bon", "pf:paper", "pf"]) == "pf:paper"
        assert chief_of(["bon", "pg"]) == "bon"
        assert chief_of(["bon", "pf_of_mine:Filter", "pfx"]) == "bon"
        assert chief_of(["pf_of_mine:Filter", "pf"]) == "pf"

    def test_by_hand(self):
        runs = PairedRuns([*records("pf", 4, [1, 1, 1, 0]), *records("bon", 4, [0, 1, 0, 0])])
        found = only(differences(runs, ["bon", "pf"]))
        assert (found.method, found.chief, found.budget, found.value.value) == ("bon", "pf", 4, -0.5)
        assert found.value == found.simultaneous == Interval(-0.5, -1.0, pytest.approx(-0.5 + 3.18245 / 3, abs=1e-5))
        assert str(found) == "−50.0 (−100.0 to +56.1)"

    def test_what_problems_share_is_not_in_the_interval(self):
        """Half the problems are hopeless for both; on the others the methods agree but for one. As unpaired numbers
        they would be known to 22 points."""
        right, other = [1] * 20 + [0] * 20, [1] * 19 + [0] * 21
        found = only(differences(PairedRuns([*records("pf", 4, right), *records("bon", 4, other)]), ["pf", "bon"]))
        assert found.value.value == -0.025
        assert found.value.high - found.value.low < 0.18

    def test_seeds_are_averaged_problem_by_problem(self):
        """The first problem has three runs of one and one of the other, and counts as much as the second."""
        every = [*records("pf", 4, [[1, 1, 0]]), *records("bon", 4, [[1], [0]])]
        every.append(dataclasses.replace(every[0], problem_id="p/1", seed=7))
        assert only(differences(PairedRuns(every), ["pf", "bon"])).value.value == pytest.approx((1 / 3 - 1) / 2)

    def test_several_comparisons_have_simultaneous_intervals(self):
        rng = np.random.default_rng(1)
        every = [r for method in ("pf", "bon", "wbon") for r in records(method, 4, rng.random(50) < 0.5)]
        found = differences(PairedRuns(every), ["pf", "bon", "wbon"])
        for difference in found:
            assert difference.simultaneous.low < difference.value.low < difference.value.high
            assert points(difference.simultaneous.low) in str(difference)
            row = difference.row()
            assert (row["problems"], row["simultaneous_low"]) == (50, round(difference.simultaneous.low, 6))

    def test_seeds_move_with_their_problem(self):
        rng = np.random.default_rng(5)
        a, b = rng.random(40) < 0.7, rng.random(40) < 0.4
        methods = ["pf", "bon"]
        once = only(differences(PairedRuns([*records("pf", 4, a), *records("bon", 4, b)]), methods))
        a, b = (np.repeat(right[:, None], 5, axis=1) for right in (a, b))
        five = only(differences(PairedRuns([*records("pf", 4, a), *records("bon", 4, b)]), methods))
        assert dataclasses.astuple(five.value) == pytest.approx(dataclasses.astuple(once.value))

    def test_seeds_that_differ_count(self):
        """With five independent seeds a problem's mean is known better, and the interval is narrower."""
        rng = np.random.default_rng(5)
        widths = []
        for seeds in (1, 5):
            a, b = rng.random((60, seeds)) < 0.6, rng.random((60, seeds)) < 0.5
            runs = PairedRuns([*records("pf", 4, a), *records("bon", 4, b)])
            value = only(differences(runs, ["pf", "bon"])).value
            widths.append(value.high - value.low)
        assert widths[1] < 0.6 * widths[0]

    def test_only_runs_that_both_have_count(self):
        every = [*records("pf", 4, [1, 1, 0]), *records("bon", 4, [1])]  # problems 1 and 2 are missing
        assert only(differences(PairedRuns(every), ["pf", "bon"])).value.value == 0.0

    def test_without_common_runs_there_is_no_number(self):
        other = dataclasses.replace(records("bon", 4, [1])[0], problem_id="q")
        found = only(differences(PairedRuns([*records("pf", 4, [1]), other]), ["pf", "bon"]))
        assert str(found) == "– (– to –)"

    def test_greedy_is_compared_at_each_budget(self):
        runs = PairedRuns([*records("pf", 4, [1]), *records("pf", 8, [1]), *records("greedy", 1, [0])])
        assert [(found.budget, found.value.value) for found in differences(runs, ["pf", "greedy"])] == [
            (4, -1.0),
            (8, -1.0),
        ]

    def test_what_was_measured_at_budget_1_alone_is_not_greedy(self):
        every = [r for budget in (1, 4) for r in records("pf", budget, [1])]
        every += [*records("bon", 1, [0]), *records("greedy:aggregation=min", 1, [0]), *records("my:Own", 1, [0])]
        found = differences(PairedRuns(every), ["pf", "bon", "greedy:aggregation=min", "my:Own"])
        greedy = [("greedy:aggregation=min", 1), ("greedy:aggregation=min", 4)]
        assert [(each.method, each.budget) for each in found] == [("bon", 1), *greedy, ("my:Own", 1)]

    def test_points(self):
        assert [points(share) for share in (0.0123, -0.0123, -0.0001)] == ["+1.2", "−1.2", "+0.0"]


class TestScalingRate:
    @pytest.mark.parametrize(
        ("target", "budget"),
        [
            (0.5, 0.0),  # the smallest is enough
            (0.4, 0.0),
            (0.55, math.sqrt(2)),  # half way from 1 to 2 in log2
            (0.6, 2.0),
            (0.65, 2.0 ** (1 + 0.05 / 0.3 * 2)),  # from (2, 0.6) to (8, 0.9), what comes between them being lower
            (0.9, 8.0),
            (0.91, INF),
        ],
    )
    def test_budget_to_reach(self, target, budget):
        found = budget_to_reach(np.array([target]), (1, 2, 8), np.array([[0.5, 0.6, 0.9]]))
        assert found[0] == pytest.approx(budget)

    def test_a_fall_counts_as_a_plateau(self):
        """The running maximum is 0.5, 0.7, 0.7, 0.9."""
        curve = np.array([[0.5, 0.7, 0.3, 0.9]] * 3)
        found = budget_to_reach(np.array([0.7, 0.8, 0.6]), (1, 2, 4, 8), curve)
        assert found == pytest.approx([2.0, 2.0**2.5, 2.0**0.5])

    def test_of_curves_a_constant_factor_apart(self):
        """Problem i is solved from budget 2^(i mod 8) on by the chief, from four times that by the other: whatever
        problems are drawn, as long as they are of all kinds, the rate is 4, but for the two further problems."""
        kinds = np.arange(400) % 8
        every = []
        for power in range(8):
            every += records("pf", 2**power, kinds <= power)
            every += records("bon", 2**power, kinds <= power - 2)
        found = rates(PairedRuns(every), ["pf", "bon"])
        assert [(rate.method, rate.budget) for rate in found] == [("bon", 4), ("bon", 8), ("bon", 16)]
        for rate in found:
            assert rate.value.value == pytest.approx(4.0)
            assert 3.5 < rate.simultaneous.low < rate.value.low < 4 < rate.value.high < rate.simultaneous.high < 4.6
            assert str(rate).startswith("4 (3.")

    def test_in_what_they_cost(self):
        """The chief pays three for a trajectory, the other one: four times the budget is four thirds of the cost."""
        kinds = np.arange(400) % 8
        every = []
        for power in range(8):
            every += records("pf", 2**power, kinds <= power)
            every += records("bon", 2**power, kinds <= power - 2)
        runs = PairedRuns(every)
        costs = {(method, budget): (3.0 if method == "pf" else 1.0) * budget for method, budget in runs.cells}
        budgets, paid = rates(runs, ["pf", "bon"]), rates(runs, ["pf", "bon"], costs=costs)
        for inner in ("value", "simultaneous"):
            for end in ("low", "value", "high"):
                plain, priced = ([getattr(getattr(rate, inner), end) for rate in of] for of in (budgets, paid))
                assert priced == pytest.approx([rate / 3 for rate in plain])
        assert [(rate.smallest, rate.largest) for rate in paid] == [
            (1 / (3 * n), 128 / (3 * n)) for n in (4, 8, 16)
        ]  # fmt: skip

    def test_ends_that_were_not_measured_are_said_not_made_up(self):
        every = [r for budget in (1, 4, 16) for r in records("pf", budget, [1] * 10)]
        every += [r for budget in (2, 8) for r in records("bon", budget, [0] * 10)]
        every += [r for budget in (2, 8) for r in records("wbon", budget, [1] * 10)]
        found = {(rate.method, rate.budget): rate for rate in rates(PairedRuns(every), ["pf", "bon", "wbon"])}
        assert str(found["bon", 4]) == "> 2 (> 2 to > 2)"
        assert str(found["wbon", 16]) == "≤ 0.125 (≤ 0.125 to > 0.5)"  # as good on ten problems: no certainty
        assert found["bon", 4].row() == {
            "method": "bon", "chief": "pf", "budget": 4, "rate": "> 2", "rate_low": "> 2", "rate_high": "> 2",
            "simultaneous_low": "> 2", "simultaneous_high": "> 2",
        }  # fmt: skip

    def test_one_end_of_an_interval_may_be_open(self):
        rng = np.random.default_rng(2)
        every = [r for budget in (1, 4) for r in records("pf", budget, rng.random(50) < 0.5)]
        every += [r for power in range(5) for r in records("bon", 2**power, rng.random(50) < 0.3 + 0.055 * power)]
        rate = only(rates(PairedRuns(every), ["pf", "bon"]))
        assert 0 < rate.value.value < INF
        assert rate.value.high == INF
        assert str(rate).endswith("> 4)")

    def test_a_single_budget_is_no_curve(self):
        every = [*records("pf", 4, [1]), *records("pf", 8, [1]), *records("greedy", 1, [1])]
        assert rates(PairedRuns(every), ["pf", "greedy"]) == []


class Sized(worlds.StoryLanguageModel):
    num_parameters = 1000


class TestFlops:
    def test_the_formula(self):
        usage = Usage(generated_tokens=3, prefill_tokens=2, prefill_tokens_cached=50, reward_tokens=7)
        assert Sizes(10, 100).flops(usage) == (100.0, 1400.0)
        assert Sizes(None, 100).flops(usage) == (None, 1400.0)
        assert Sizes(10, None).flops(dataclasses.replace(usage, reward_tokens=0)) == (100.0, 0.0)

    def test_only_numbers_are_sizes(self):
        class Model:
            def num_parameters(self):
                return 5

        assert Sizes.of(Sized(), Model()) == Sizes(1000, None)

    def test_recorded_once_and_reported(self, tmp_path):
        reward = worlds.reward_model()
        reward.num_parameters = 50
        run(tmp_path, lm=Sized(), reward=reward)
        assert json.loads((tmp_path / MODELS).read_text()) == {
            "lm": {"num_parameters": 1000},
            "reward": {"num_parameters": 50},
        }
        cell = Report.load(tmp_path).cells[1]
        assert cell.flops == pytest.approx((2000 * (cell.tokens[0] + cell.tokens[1]), 100 * cell.tokens[2]))
        names = {path.name for path in write_report(tmp_path, Report.load(tmp_path))}
        assert {"cost.png", "cost.svg"} < names
        row = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))[1]
        assert float(row["total_flops"]) == pytest.approx(sum(cell.flops), rel=1e-5)

    def test_a_directory_from_before_sizes_were_recorded(self, tmp_path):
        run(tmp_path, lm=Sized())
        before = results(tmp_path)
        (tmp_path / MODELS).unlink()
        assert Report.load(tmp_path).cells[0].total_flops is None
        assert run(tmp_path).resumed == 50
        assert not (tmp_path / MODELS).exists()
        assert run(tmp_path, lm=Sized()).resumed == 50
        assert results(tmp_path) == before
        assert Sizes.read(tmp_path) == Sizes(1000, None)

    def test_unknown_sizes_leave_no_number(self, tmp_path):
        run(tmp_path, dataclasses.replace(SMALL, limit=2))
        paths = write_report(tmp_path, Report.load(tmp_path))
        assert "cost.png" not in {path.name for path in paths}
        row = next(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
        assert row["lm_flops"] == row["total_flops"] == ""

    def test_what_is_recorded_first_stays(self, tmp_path):
        Sizes(None, 7).record(tmp_path)
        Sizes(5, 8).record(tmp_path)
        assert Sizes.read(tmp_path) == Sizes(5, 7)
        (tmp_path / MODELS).write_text("[]")
        with pytest.raises(RunDirectoryError, match="delete it"):
            Sizes.read(tmp_path)

    def test_words(self):
        numbers = (None, 0.0, 950.0, 21_400_000_000.0, 3e12)
        assert [flops(number) for number in numbers] == ["–", "0", "950", "21.4 G", "3 T"]
        assert _decades([3e9, 4e11]) == {3e9: "3 G", 1e10: "10 G", 3e10: "30 G", 1e11: "100 G", 3e11: "300 G"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("compared")
    run(directory, dataclasses.replace(SMALL, methods=("bon", "pf", "greedy"), budgets=(1, 2, 4)))
    return directory


def test_a_forest_tells_what_is_beyond_measure():
    forest = Forest("", {"a": Interval(0.0, 0.0, 4.0), "b": Interval(INF, 0.5, INF)}, reference=1.0, log2=True)
    assert forest.ends("a") == (-INF, -INF, 2.0)
    assert forest.ends("b") == (-1.0, INF, INF)
    assert Forest("", {"a": Interval(0.1, -0.1, 0.2)}).ends("a") == (-0.1, 0.1, 0.2)
    assert [whole_points(share) for share in (-0.1, 0.0, 0.025)] == ["−10", "0", "+2.5"]


class TestReport:
    def test_tables(self, compared):
        write_report(compared, Report.load(compared), plots=False)
        page = (compared / "report.md").read_text()
        assert "## Differences to `pf`" in page
        assert "| method | budget 1 | budget 2 | budget 4 |" in page
        assert "| method | n = 4 |" in page
        rows = list(csv.DictReader(io.StringIO((compared / "differences.csv").read_text())))
        assert [(row["method"], row["budget"]) for row in rows] == [(m, b) for m in ("bon", "greedy") for b in "124"]
        assert all(float(row["difference_low"]) <= float(row["difference"]) <= 1 for row in rows)
        assert (
            (compared / "rates.csv")
            .read_text()
            .startswith("method,chief,budget,rate,rate_low,rate_high,simultaneous_low,simultaneous_high\nbon,pf,4,")
        )

    def test_twice_the_same(self, compared):
        assert Report.load(compared).tables() == Report.load(compared).tables()

    def test_groups_share_a_figure(self, compared, tmp_path):
        report = Report.load(compared)
        groups = {"sampling": ["bon", "greedy"], "search": ["beam"], "particles": ["pf"]}
        figure = curves_figure(report, [BUDGET, TOKENS], groups)
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["sampling", "particles"] * 2
        paths = save(lambda: curves_figure(report, [BUDGET], groups), tmp_path / "grouped")
        assert [path.name for path in paths] == ["grouped.png", "grouped.svg"]


@pytest.mark.parametrize(
    ("length", "smaller", "cut"), [(10, False, False), (60, True, False), (100, True, True), (2000, True, True)]
)
def test_headings_stay_within_their_figure(length, smaller, cut):
    figure = Figure(figsize=(4, 3))
    figure.subplots(1, 1)
    FigureCanvasAgg(figure)
    heading(figure, "Accuracy", "models " * (length // 7), left=0.1)
    figure.draw_without_rendering()
    _, subtitle = figure.texts
    assert subtitle.get_window_extent().x1 <= figure.bbox.x1
    assert (subtitle.get_fontsize() < 10) == smaller
    assert subtitle.get_text().endswith("…") == cut


def test_a_long_setting_breaks_where_a_panel_has_little_room():
    label = styles_of(["pf:potential=increment:beta=2"])["pf:potential=increment:beta=2"].label
    assert label.splitlines() == ["particle filter", "potential=", "increment", "beta=2"]
