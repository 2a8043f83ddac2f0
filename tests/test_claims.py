"""The recipe that measures the claims, on the fake world: what it runs, keeps, shares and writes."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import pytest

import claims
import motes.lab.measure.advice
from claim import ablations, adaptive, advice, factor, regime, robustness, scaling
from claim.cells import Cell, possible
from motes import ParticleFilter, Usage
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab import RunRecord, method_from_spec
from motes.lab.measure.comparison import PairedRuns
from motes.lab.run.records import RecordStore
from motes.methods import METHODS

FAKE = ["--model", "worlds:language_model", "--reward", "worlds:reward_model", "--limit", "2"]


def claim(directory: Path, name: str, *words: str) -> Path:
    out = directory / "out" / name
    assert claims.main([name, *FAKE, "--work", str(directory / "work"), "--out", str(out), *words]) == 0
    return out


def rows(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


def records(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted((directory / "work").glob("*/records.jsonl"))}


class TestCells:
    def test_what_a_method_refuses_is_left_out(self):
        assert possible(["pg", "greedy"], (1, 2, 4, 8, 16)) == [Cell("pg", 8), Cell("pg", 16), Cell("greedy", 1)]

    def test_a_method_that_refuses_all_is_left_out_aloud(self, capsys):
        assert possible(["pg", "pf"], (1,)) == [Cell("pf", 1)]
        assert "left out: pg: a budget of 1" in capsys.readouterr().err
        with pytest.raises(ConfigurationError):
            possible(["pg"], (1, 2))
        with pytest.raises(UnknownNameError):
            possible(["pff"], (1, 2))

    def test_every_method_of_the_family_is_measured(self):
        measured = {cell.method.partition(":")[0] for cell in scaling.cells(scaling.METHODS, scaling.BUDGETS)}
        needs_instructions = {"refine", "pdr"}  # the bundled model, which is measured, follows none
        assert measured == METHODS.keys() - needs_instructions

    def test_one_factor_at_a_time(self):
        default = ParticleFilter(16)
        found = ablations.variants((16,), "tiny")
        assert len(found) == 3 * 11 - 1 + 3 + 4 + 3 + 1 + 4 + 4
        assert len({(variant.cell.name, variant.cell.budget) for variant in found}) == len(found)
        for kind, _, cell in found:
            made = method_from_spec(cell.method, cell.budget)
            if kind == ablations.SWEEPS:
                assert made.num_particles * made.num_sweeps == 64
                continue
            changed = [f.name for f in dataclasses.fields(default) if getattr(made, f.name) != getattr(default, f.name)]
            beside = (cell.temperature is not None) + bool(cell.reward)
            if kind.startswith("target"):
                assert 1 <= len(changed) <= 3
                assert set(changed) <= {"potential", "link", "beta"}
            else:
                assert len(changed) + beside == 1

    def test_a_reward_model_of_ones_own_is_not_asked_to_read_otherwise(self):
        assert all(not cell.reward for cell in ablations.cells((16,), "worlds:reward_model"))

    def test_the_first_level_of_a_corruption_is_none(self):
        cells = robustness.cells(("pf",), (4,))
        assert len(set(cells)) == len(cells) == 1 + sum(len(levels) - 1 for levels in robustness.LEVELS.values())


def test_scaling(tmp_path):
    words = ["--methods", "pf,pf:paper,bon,greedy,pg", "--budgets", "1,4,8"]
    out = claim(tmp_path, "scaling", *words)
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.csv", "differences.csv", "rates.csv", "predictions.csv", "steps.csv",
        "csv-metadata.json",
        *(f"{name}.{kind}" for name in ("accuracy", "cost", "rates") for kind in ("png", "svg")),
    }  # fmt: skip
    made_by = f"Made by `python recipes/claims.py scaling {' '.join([*FAKE, *words])}`."
    assert made_by in (out / "report.md").read_text()
    assert str(tmp_path) not in (out / "report.md").read_text()
    found = {(row["method"], row["budget"]) for row in rows(out / "report.csv")}
    assert found == {*((m, b) for m in ("pf", "pf:paper", "bon") for b in "148"), ("greedy", "1"), ("pg", "8")}
    before = records(tmp_path)
    assert len(before) == 11
    tables = (out / "report.csv").read_bytes()
    claim(tmp_path, "scaling", *words)
    assert (records(tmp_path), (out / "report.csv").read_bytes()) == (before, tables)
    claim(tmp_path, "scaling", "--methods", "pf,bon", "--budgets", "1,2,4")
    assert len(records(tmp_path)) == 13
    assert before.items() < records(tmp_path).items()


def test_scaling_on_problems_of_ones_own(tmp_path):
    rows_of_problems = [{"id": f"sum-{n}", "question": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of_problems))
    task = ["--task", f"math:{path}?rule=last-number", "--temperature", "0.5", "--max-tokens", "64"]
    claim(tmp_path, "scaling", *task, "--methods", "majority,wbon", "--budgets", "1,2")
    configurations = [json.loads(path.read_text()) for path in (tmp_path / "work").glob("*/config.json")]
    assert len(configurations) == 2, "majority chooses from the answers of wbon"
    for configuration in configurations:
        assert configuration["task"] == task[1]
        assert configuration["sampling"]["temperature"] == 0.5
        assert configuration["sampling"]["max_tokens"] == 64


def test_processes_share_the_cells_out(tmp_path, capsys):
    words = ["--methods", "pf,bon", "--budgets", "1,2"]
    claim(tmp_path, "scaling", *words)
    path = next(iter(records(tmp_path)))
    others = {own: content for own, content in records(tmp_path).items() if own != path}
    path.unlink()
    with RecordStore(path):
        where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "none")]
        assert claims.main(["scaling", *FAKE, *where, *words]) == 1
    assert f"other processes are at 1 cells, the first is {path.parent}" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    claim(tmp_path, "scaling", *words)
    assert others.items() < records(tmp_path).items()


def test_robustness(tmp_path):
    words = ["--methods", "pf,bon", "--budgets", "2,4"]
    claim(tmp_path, "scaling", *words)
    shared = records(tmp_path)
    out = claim(tmp_path, "robustness", *words, "--kinds", "noise,early")
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.csv", "csv-metadata.json", "robustness.png", "robustness.svg",
    }  # fmt: skip
    for name in ("report.md", "robustness.svg", "csv-metadata.json"):
        assert "motes.lab.corruption:CorruptedReward" in (out / name).read_text()
    assert len(records(tmp_path)) == len(shared) + 2 * 2 * (4 + 3)
    assert shared.items() < records(tmp_path).items()
    found = rows(out / "report.csv")
    assert len(found) == 2 * 2 * (5 + 4)
    assert all(float(row["to_none"]) == 0 for row in found if float(row["corruption_level"]) == 0)
    assert all(float(row["to_chief"]) == 0 for row in found if row["method"] == "pf")
    accuracy = {(r["corruption"], r["corruption_level"], r["method"], r["budget"]): float(r["accuracy"]) for r in found}
    for row in found:
        own = row["corruption"], row["corruption_level"]
        chief = accuracy[*own, "pf", row["budget"]]
        assert float(row["to_chief"]) == pytest.approx(float(row["accuracy"]) - chief)
        clean = accuracy[row["corruption"], "0", row["method"], row["budget"]]
        assert float(row["to_none"]) == pytest.approx(float(row["accuracy"]) - clean)


def test_factor(tmp_path):
    words = ["--worlds", "short,noisy", "--budgets", "2,4,8", "--methods", f"{factor.REGISTERED},pf,wbon,bon,majority"]
    out = claim(tmp_path, "factor", *words)
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.csv", "rates.csv", "csv-metadata.json",
        *(f"{name}.{kind}" for name in ("accuracy", "factors") for kind in ("png", "svg")),
    }  # fmt: skip
    assert len(records(tmp_path)) == 2 * 3 * 3  # the three that draw alike share answers
    page = (out / "report.md").read_text()
    assert "## Short problems" in page
    assert "## Long problems, AUROC 0.86" in page
    assert "| weighted best of N | 4 | 2.4 – 5 |" in page
    found = rows(out / "report.csv")
    assert len(found) == 2 * 5 * 3
    assert {row["runs"] for row in found} == {"2"}  # problems; the controls have one seed
    factors = rows(out / "rates.csv")
    for filter, other in ((factor.REGISTERED, "pf"), ("pf", factor.REGISTERED)):
        told = {(row["world"], row["method"], row["budget"]) for row in factors if row["relative_to"] == filter}
        assert told == set(itertools.product(("short", "noisy"), (other, "wbon", "bon", "majority"), ("4", "8")))
    assert {row["unit"] for row in factors} >= {"trajectories", "tokens"}
    assert all(row["chief"] == row["relative_to"] for row in factors)
    assert page.index("Times the budget of the default:") < page.index("Times the budget of the registered filter:")
    assert page.count("2.4 – 5") == 2, "of the registered filter, at 4 and at 8"


def test_parts_of_the_factor_alone(tmp_path):
    for method in ("wbon", factor.REGISTERED):
        out = claim(
            tmp_path / method.partition(":")[0], "factor", "--worlds", "noisy", "--budgets", "2", "--methods", method
        )
        assert (out / "report.md").exists()
    assert "T, P and AUROC are unknown" in (out / "report.md").read_text()


def test_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(motes.lab.measure.advice, "RESAMPLES", 2)
    monkeypatch.setattr(motes.lab.measure.advice, "PROBLEMS", 4)
    out = claim(tmp_path, "advice", "--cases", "short,hot", "--budgets", "2,4", "--limit", "6")
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.csv", "csv-metadata.json", "advice.png", "advice.svg",
    }  # fmt: skip
    assert len(records(tmp_path)) == 2 * (1 + 2 * 4)  # of each case the pilot; majority and wbon share answers
    found = rows(out / "report.csv")
    assert [(row["case"], row["method"], row["budget"]) for row in found] == list(
        itertools.product(("short problems", "short, temperature 1.2"), advice.METHODS, ("2", "4"))
    )
    assert all(0 <= float(row[name]) <= 1 for row in found for name in ("accuracy", "found"))
    page = (out / "report.md").read_text()
    assert "## Short, temperature 1.2" in page
    errors = [float(row["accuracy"]) - float(row["found"]) for row in found]
    assert f"off by {100 * sum(map(abs, errors)) / len(errors):.1f} points in the mean" in page


def test_ablations(tmp_path):
    out = claim(tmp_path, "ablations", "--budgets", "2")
    assert {path.suffix for path in out.iterdir()} == {".md", ".csv", ".json", ".png", ".svg"}
    found = rows(out / "report.csv")
    assert [(row["factor"], row["budget"]) for row in found if row["factor"] == "default"] == [
        ("default", "2"),
        ("default", "64"),
    ]
    assert len(found) == 2 + 3 * 11 - 1 + 3 + 4 + 3 + 4 + 4
    assert "validation" in next(iter(records(tmp_path))).read_text()


def test_adaptive(tmp_path):
    out = claim(tmp_path, "adaptive", "--budgets", "16", "--decided", "0.5,2")
    half, never = rows(out / "report.csv")[1:]
    assert float(half["token_share"]) < float(never["token_share"])
    assert float(never["token_share"]) == pytest.approx(1.0, abs=0.2)  # all waves run


def test_token_share_by_hand():
    every = [
        RunRecord(problem_id=str(i), method=method, budget=64, seed=0, outcome="wrong", usage=Usage(generated_tokens=n))
        for method, tokens in (("pf", (100, 300)), ("adaptive", (20, 80)))
        for i, n in enumerate(tokens)
    ]
    share = adaptive.token_share(PairedRuns(every), "adaptive", 64)
    assert (share.value, share.low, share.high) == pytest.approx((0.25, 0.2, 80 / 300))


def test_an_error_is_one_line(tmp_path, capsys):
    assert claims.main(["scaling", *FAKE, "--methods", "pff", "--work", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "did you mean 'pf'" in capsys.readouterr().err


def test_defaults_are_told_by_how_far_they_are_behind(tmp_path):
    methods = "pf:ess_threshold=1.0,wbon"
    words = ["--worlds", "short,short-noisy", "--budgets", "2,4", "--methods", methods]
    out = claim(tmp_path, "defaults", *words)
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.csv", "csv-metadata.json", "defaults.png", "defaults.svg"
    }  # fmt: skip
    cells = {(row["world"], row["method"], row["budget"]): float(row["accuracy"]) for row in rows(out / "report.csv")}
    assert len(cells) == 2 * 2 * 2
    page = (out / "report.md").read_text()
    for method in methods.split(","):
        behind = [
            100 * (max(cells[world, other, budget] for other in methods.split(",")) - cells[world, method, budget])
            for world in ("short", "short, noise 0.7")
            for budget in ("2", "4")
        ]
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {method} |") and " of 4 |" in line]
        *by_budget, whole, worst, close = (text.strip() for text in line.strip("|").split("|")[1:])
        assert [float(text) for text in by_budget] == pytest.approx(
            [(behind[0] + behind[2]) / 2, (behind[1] + behind[3]) / 2], abs=0.051
        )
        assert float(whole.partition(" ")[0]) == pytest.approx(sum(behind) / 4, abs=0.051)
        assert float(worst) == pytest.approx(max(behind), abs=0.051)
        assert close == f"{sum(value <= 2 for value in behind)} of 4"


def test_what_is_there_is_told_without_measuring(tmp_path, capsys):
    claim(tmp_path, "scaling", "--methods", "pf", "--budgets", "2,4")
    claim(tmp_path, "scaling", "--methods", "wbon", "--budgets", "4,8")
    before = records(tmp_path)
    out = claim(tmp_path, "scaling", "--methods", "pf,wbon,beam", "--budgets", "2,4,8,16", "--recorded")
    cells = {(row["method"], row["budget"]) for row in rows(out / "report.csv")}
    assert cells == {("pf", "2"), ("pf", "4"), ("wbon", "4"), ("wbon", "8")}
    assert records(tmp_path) == before
    nowhere = ["--work", str(tmp_path / "nowhere"), "--out", str(tmp_path / "no")]
    assert claims.main(["scaling", *FAKE, *nowhere, "--recorded"]) == 1
    assert "no complete cell" in capsys.readouterr().err


def test_shards_are_put_together(tmp_path):
    words = ("--methods", "pf,bon", "--budgets", "2,4", "--limit", "3")
    for part in ("1/2", "2/2"):
        where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "no")]
        assert claims.main(["scaling", *FAKE, *words, *where, "--shard", part]) == 0
    assert not (tmp_path / "no").exists(), "a part writes no tables"
    assert not records(tmp_path)
    parts = {path: path.read_bytes() for path in tmp_path.glob("work/*/parts/*/records.jsonl")}
    assert len(parts) == 4 * 2
    out = claim(tmp_path, "scaling", *words)
    whole = claim(tmp_path / "alone", "scaling", *words)
    columns = ("method", "budget", "runs", "accuracy", "generated_tokens")
    assert [[row[name] for name in columns] for row in rows(out / "report.csv")] == [
        [row[name] for name in columns] for row in rows(whole / "report.csv")
    ]
    assert "--shard" not in (out / "report.md").read_text().partition("Made by")[2].partition("`.")[0]
    for path, text in parts.items():
        path.unlink()
        assert text
    claim(tmp_path, "scaling", *words)
    assert claims.main(["scaling", *FAKE, *words, "--work", str(tmp_path / "work"), "--shard", "1/2"]) == 0
    assert not list(tmp_path.glob("work/*/parts/*/records.jsonl")), "what is merged is not done again"


class TestRegime:
    WORDS = ("regime", "--steps", "2,3", "--success", "0.3", "--separations", "1.5", "--problems", "6")

    def test_it_is_measured_told_and_gone_on_with(self, tmp_path, monkeypatch):
        few = {name: (methods, (4, 8)) for name, (methods, _) in regime.BUDGETS.items()}
        monkeypatch.setattr(regime, "BUDGETS", few)
        work, out = tmp_path / "work", tmp_path / "out"
        command = [*self.WORDS, "--work", str(work), "--out", str(out)]
        assert claims.main(command) == 0
        assert {path.name for path in out.iterdir()} == {
            "report.md", "report.csv", "csv-metadata.json", "theory.png", "theory.svg", "default.png", "default.svg"
        }  # fmt: skip
        page = (out / "report.md").read_text()
        assert f"Made by `python recipes/claims.py {' '.join(self.WORDS)}`." in page
        assert page.count("| 2 | 30 % | 1.5 (0.86) |") == 2 * 2, "the middle of the map is the second number of steps"
        assert page.count("| 3 | 30 % | 1.5 (0.86) |") == 2 * 2 * 3, (
            "all errors systematic, half of them, and a few steps hard"
        )
        found = [row for row in rows(out / "report.csv") if (row["method"], row["budget"]) == ("wbon", "4")]
        names = ("num_steps", "separation", "systematic", "concentration", "auroc")
        assert {tuple(row[name] for name in names) for row in found} == {
            ("2", "1.5", "1.0", "", "0.8556"),
            ("3", "1.5", "1.0", "", "0.8556"),
            ("3", "1.5", "0.5", "", "0.8556"),
            ("3", "1.5", "1.0", "0.3", "0.8556"),
        }
        assert all(row["theory_rate"] and row["default_rate"] for row in found)

        before = {path: path.read_bytes() for path in work.glob("*/*/records.jsonl")}
        assert len(before) == 4 * 3
        lost = next(iter(before))
        lost.unlink()
        assert claims.main(command) == 0
        again = {path: path.read_bytes() for path in work.glob("*/*/records.jsonl")}
        assert {path for path in before if again[path] != before[path]} <= {lost}, "what is done is not done again"
        assert len(again[lost].splitlines()) == len(before[lost].splitlines())

    def test_predictions_are_of_the_map(self):
        assert set(regime.PREDICTED) <= set(itertools.product(regime.STEPS, regime.SUCCESS))
        assert {d for each in regime.PREDICTED.values() for d in each} <= set(regime.SEPARATIONS)
