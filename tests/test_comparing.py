"""Evaluations held against each other: what is compared, what is refused, and what is written."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import strangers
from motes.cli import main
from motes.core import Usage
from motes.errors import RunDirectoryError, UnknownNameError
from motes.lab import RunRecord, compare, write_comparison
from motes.lab.measure.statistics import paired_intervals
from motes.lab.run.provenance import Call
from motes.lab.show.comparing import Curve, _names, looks_of
from motes.lab.show.page import comparison_html as html
from test_hostile_text import HOSTILE, Elements

TASK = "problems.jsonl"


def evaluation(directory: Path, cells: dict[tuple[str, int], np.ndarray | list], *, seed: int = 0, **fields) -> Path:
    """A directory with a run of each cell for each problem and seed, right as a matrix (P, S) or a vector (P,) says;
    NaN stands for a run that there is none of."""
    lines = [
        RunRecord(
            problem_id=f"p/{i}", method=method, budget=budget, seed=seed + s, answer="1", reference="1",
            outcome="correct" if value else "wrong", usage=Usage(generated_tokens=100 * budget), seconds=1.0,
        ).to_json()
        for (method, budget), right in cells.items()
        for i, row in enumerate(np.asarray(right, dtype=float).reshape(len(right), -1))
        for s, value in enumerate(row)
        if value == value
    ]  # fmt: skip
    told = {
        "task": TASK,
        "limit": None,
        "methods": {method: {} for method, _ in cells},
        "budgets": sorted({budget for _, budget in cells}),
        "seeds": sorted(
            {seed + s for right in cells.values() for s in range(np.asarray(right).reshape(len(right), -1).shape[1])}
        ),
        "num_problems": max(map(len, cells.values())),
        "num_runs": len(lines),
    }
    return strangers.write(directory, ("\n".join(lines) + "\n").encode(), **{**told, **fields})


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Two evaluations with other temperatures: `b` lacks the last problem, has one more method, and other seeds."""
    rng = np.random.default_rng(0)
    ease = rng.beta(0.5, 0.5, size=(40, 1))
    cells = {(m, n): rng.random((40, 2)) < ease for m in ("pf", "bon") for n in (1, 4, 8)}
    cells["greedy", 1] = rng.random((40, 2)) < ease
    first = evaluation(tmp_path / "a", cells, sampling={"temperature": 0.8})
    cells = {**cells, ("majority", 4): rng.random((40, 2)) < ease, ("bon", 4): rng.random((40, 2)) < ease + 0.2}
    cells = {cell: right[:39] for cell, right in cells.items()}
    return first, evaluation(tmp_path / "b", cells, sampling={"temperature": 1.0}, seed=5)


class TestNumbers:
    def test_differences_are_over_the_problems_that_both_have(self, tmp_path):
        """By hand: three problems are in both, on which B's filter is right once more; the others do not count."""
        nan = float("nan")
        a = evaluation(tmp_path / "a", {("pf", 4): [1, 0, 0, 1, nan]})
        b = evaluation(tmp_path / "b", {("pf", 4): [1, 1, 0, nan, 1]})
        found = compare(a, b)
        (difference,) = found.same
        expected = np.array([[0.0], [1.0], [0.0]])
        assert (difference.method, difference.chief, difference.budget, difference.problems) == ("b: pf", "a: pf", 4, 3)
        assert difference.value == difference.simultaneous == paired_intervals(expected)[0]
        assert found.differences == found.same  # the reference is the same curve
        assert found.problems == {"p/0", "p/1", "p/2"}
        assert [cells[0].accuracy.value for cells in found.cells.values()] == pytest.approx([1 / 3, 2 / 3])
        assert [cells[0].missing for cells in found.cells.values()] == [0, 0]
        assert [warning for warning in found.warnings() if "left out" in warning] == [
            "a: 1 problem left out, which not all evaluations have runs of",
            "b: 1 problem left out, which not all evaluations have runs of",
        ]

    def test_families_are_those_of_the_tables(self, two):
        found = compare(*two)
        assert [(each.method, each.budget) for each in found.same] == [
            *((f"b: {method}", n) for method in ("pf", "bon") for n in (1, 4, 8)), ("b: greedy", 1),
        ]  # fmt: skip
        runs = [
            {n: [r.outcome == "correct" for r in report.runs["pf", n]] for n in (1, 4, 8)}
            for report in found.reports.values()
        ]
        own = [
            np.array(runs[1][n]).reshape(39, 2).mean(1) - np.array(runs[0][n]).reshape(40, 2)[:39].mean(1)
            for n in (1, 4, 8)
        ]
        for difference, expected in zip(found.same, paired_intervals(np.transpose(own)), strict=False):
            assert difference.value == expected
            assert difference.simultaneous.low < difference.value.low
        assert {each.method for each in found.differences} == {
            "a: bon", "a: greedy", "b: pf", "b: bon", "b: greedy", "b: majority"
        }  # fmt: skip
        greedy = [each.budget for each in found.differences if each.method == "a: greedy"]
        assert greedy == [1, 4, 8], "one draw, whatever the budget"
        assert [each.budget for each in found.differences if each.method == "b: majority"] == [4]

    def test_seeds_of_a_problem_are_averaged(self, tmp_path):
        """One evaluation has three seeds, the other one of another number."""
        a = evaluation(tmp_path / "a", {("pf", 4): [[1, 0, 1], [0, 0, 1]]})
        b = evaluation(tmp_path / "b", {("pf", 4): [1, 1]}, seed=9)
        (difference,) = compare(a, b).same
        assert difference.value.value == pytest.approx((1 / 3 + 2 / 3) / 2)

    def test_scaling_rates_are_against_the_reference(self, tmp_path):
        """B's filter needs four times the budget of A's: whatever problems are drawn."""
        kinds = np.arange(240) % 8
        a = evaluation(tmp_path / "a", {("pf", 2**p): kinds <= p for p in range(8)})
        b = evaluation(tmp_path / "b", {("pf", 2**p): kinds <= p - 2 for p in range(8)})
        found = compare(a, b)
        assert [(rate.method, rate.budget) for rate in found.rates] == [("b: pf", 2**p) for p in range(1, 8)]
        for rate in found.rates[:5]:
            assert rate.value.value == pytest.approx(4)

    def test_the_reference_is_the_first_ones(self, two):
        assert compare(*two).reference == Curve("a", "pf")
        found = compare(*two, reference="bon")
        assert {each.chief for each in (*found.differences, *found.rates)} == {"a: bon"}
        with pytest.raises(UnknownNameError, match="method of a 'majority'"):
            compare(*two, reference="majority")

    def test_three(self, tmp_path):
        paths = [evaluation(tmp_path / name, {("pf", 4): [1, 0, i % 2, 1]}) for i, name in enumerate("abc")]
        assert [each.method for each in compare(*paths).same] == ["b: pf", "c: pf"]


class TestDifferingSettings:
    def test_what_differs_is_told(self, two):
        found = compare(*two)
        assert ("sampling: temperature", "0.8", "1.0") in [tuple(each) for each in found.differing()["b"]]
        assert "| sampling: temperature | 0.8 | 1.0 |" in found.markdown()

    def test_that_nothing_differs_is_told(self, tmp_path):
        a, b = (evaluation(tmp_path / name, {("pf", 4): [1, 0, 1]}) for name in "ab")
        assert compare(a, b).differing() == {"b": []}
        assert "Nothing that was recorded of how they were made differs." in compare(a, b).markdown()

    def test_seeds_are_told(self, two, tmp_path):
        assert "2 seeds: the intervals are over problems and seeds" in compare(*two).markdown()
        one = evaluation(tmp_path / "one", {("pf", 4): [1, 0, 1]})
        page = compare(two[0], one).markdown()
        assert "`a`: 2 seeds" in page
        assert "`one`: One seed is all there is" in page


class TestRefusals:
    @pytest.mark.parametrize(
        ("task", "reason"),
        [
            ("arithmetic", "a is of the task 'problems.jsonl', b of 'arithmetic': the first is graded by MathAnswers"),
            ("exact-match:problems.jsonl", "graded by MathAnswers, the other by ExactMatch"),
            ("mine:TASK", "b of 'mine:TASK'"),
            ("other.jsonl", "a is of the task 'problems.jsonl', b of 'other.jsonl': only evaluations of the same"),
            ("math-500", "only evaluations of the same problems"),
        ],
    )
    def test_other_tasks_and_graders_by_name(self, tmp_path, task, reason):
        a = evaluation(tmp_path / "a", {("pf", 4): [1, 0]})
        b = evaluation(tmp_path / "b", {("pf", 4): [1, 0]})
        config = json.loads((b / "config.json").read_text())
        (b / "config.json").write_text(json.dumps({**config, "task": task}))
        records = [json.loads(line) for line in (b / "records.jsonl").read_text().splitlines()]
        if task == "arithmetic":  # whose records must be of its own problems
            for record, problem in zip(records, strangers.PROBLEMS, strict=False):
                record["problem_id"] = problem.id
            (b / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        with pytest.raises(RunDirectoryError, match=reason.replace("(", r"\(")):
            compare(a, b)

    @pytest.mark.parametrize("task", ["elsewhere/problems.jsonl", "math:problems.jsonl", "problems.jsonl?answer=key"])
    def test_a_file_in_another_place_is_the_same(self, tmp_path, task):
        a = evaluation(tmp_path / "a", {("pf", 4): [1, 0]})
        b = evaluation(tmp_path / "b", {("pf", 4): [1, 0]}, task=task)
        assert len(compare(a, b).same) == 1

    def test_the_same_problems_by_another_name(self, tmp_path):
        a = evaluation(tmp_path / "a", {("pf", 4): [1, 0]})
        b = evaluation(tmp_path / "b", {("pf", 4): [1, 0]}, task="copy.jsonl")
        for digest, same in (("sha256:0", True), ("sha256:1", False)):
            for path, told in ((a, "sha256:0"), (b, digest)):
                (path / "provenance.jsonl").write_text(Call(task={"name": "x", "digest": told}).to_json() + "\n")
            if same:
                assert len(compare(a, b).same) == 1
            else:
                with pytest.raises(RunDirectoryError, match="same problems"):
                    compare(a, b)

    def test_problems_with_other_answers(self, tmp_path):
        a, b = (evaluation(tmp_path / name, {("pf", 4): [1, 0]}) for name in "ab")
        records = b / "records.jsonl"
        records.write_text(records.read_text().replace('"reference": "1"', '"reference": "2"', 1))
        with pytest.raises(RunDirectoryError, match="'p/0' has the answer '1' in a and '2' in b"):
            compare(a, b)

    def test_no_problem_in_common(self, tmp_path):
        a = evaluation(tmp_path / "a", {("pf", 4): [1, float("nan")]})
        b = evaluation(tmp_path / "b", {("pf", 4): [float("nan"), 1]})
        with pytest.raises(RunDirectoryError, match="no problem that a and b all have"):
            compare(a, b)

    def test_fewer_than_two(self, two):
        for paths in ((), two[:1], (two[0], two[0] / "." / ".." / "a"), (*two, two[1])):
            with pytest.raises(RunDirectoryError, match="two different directories"):
                compare(*paths)


def test_names_are_as_short_as_tells_them_apart():
    assert _names([Path("/x/a"), Path("/y/b")]) == ["a", "b"]
    assert _names([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]


class TestFiles:
    def test_what_is_written(self, two, tmp_path):
        found = compare(*two)
        paths = write_comparison(tmp_path / "out" / "deep", found)
        assert [path.name for path in paths] == [
            "comparison.md", "accuracy.csv", "same.csv", "differences.csv", "rates.csv", "comparison.html",
            "accuracy.png", "accuracy.svg",
        ]  # fmt: skip
        first = {path: path.read_bytes() for path in paths}
        write_comparison(tmp_path / "out" / "deep", compare(*two))
        assert first == {path: path.read_bytes() for path in paths}
        rows = list(csv.DictReader(io.StringIO((paths[2]).read_text())))
        assert (rows[0]["evaluation"], rows[0]["method"], rows[0]["chief_evaluation"], rows[0]["chief"]) == (
            "b", "pf", "a", "pf",
        )  # fmt: skip
        assert float(rows[0]["simultaneous_low"]) < float(rows[0]["difference_low"])
        assert {row["evaluation"] for row in csv.DictReader(io.StringIO(paths[1].read_text()))} == {"a", "b"}
        width, height = struct.unpack(">II", paths[6].read_bytes()[16:24])
        assert width <= 1600 >= height
        assert ElementTree.parse(paths[7]).getroot().tag.endswith("svg")

    def test_no_evaluation_is_written_over(self, two):
        with pytest.raises(RunDirectoryError, match="holds an evaluation"):
            write_comparison(two[0], compare(*two))
        assert not (two[0] / "differences.csv").exists()

    def test_curves_of_a_method_look_alike_and_can_be_told_apart(self, two):
        looks = looks_of(compare(*two))
        for method in ("pf", "bon", "greedy"):
            one, other = looks[Curve("a", method)], looks[Curve("b", method)]
            assert one.marker == other.marker
            assert one.colour != other.colour
            assert one.dashes != other.dashes
            assert (one.label, other.label) == (one.label, one.label.replace(", a", ", b"))
        assert len({look.colour for look in looks.values()}) == len(looks)

    def test_names_from_strangers_are_text(self, tmp_path):
        paths = []
        for side in "ab":
            records = b"".join(
                strangers.line(0, problem_id=name, method=f"pf:{name}", error=name, answer=name, reference=name)
                for name in HOSTILE
            )
            told = {"task": "mine:TASK", "lm": " ".join(HOSTILE), "methods": {f"pf:{name}": {} for name in HOSTILE}}
            told |= {"sampling": dict.fromkeys(HOSTILE, side)}
            paths.append(strangers.write(tmp_path / f"{side}<b>|`$&", records, **told))
        found = compare(*paths)
        page = Elements(html(found))
        assert not {"img", "b"} & set(page.elements)
        assert page.elements.count("script") == 2
        assert json.loads(page.scripts[0])["chief"] == str(found.reference)
        rows = [line for line in found.markdown().splitlines() if line.startswith("|")]
        assert not any("<" in line.replace("\\<", "") for line in rows)
        for name, text in found.tables().items():
            if name.endswith(".csv"):
                for row in csv.DictReader(io.StringIO(text, newline="")):
                    assert None not in row
                    assert not any(value.lstrip().startswith(tuple("=+@")) for value in row.values())
        write_comparison(tmp_path / "out", dataclasses.replace(found))

    def test_the_page_in_a_browser(self, two, tmp_path, browser):
        found = compare(*two)
        write_comparison(tmp_path / "out", found, plots=False)
        with browser.undisturbed("file:", "about:"):
            browser.open(tmp_path / "out" / "comparison.html")
            points = sum(map(len, found.cells.values()))
            assert browser.js("document.querySelectorAll('.point').length") == points
            line = "one.querySelector('.line')?.getAttribute('stroke-dasharray')"
            dashed = f"[...document.querySelectorAll('.curve')].map((one) => [one.dataset.method, {line}])"
            lines = {method: dashes for method, dashes in browser.js(dashed) if dashes}
            assert {method for method, dashes in lines.items() if dashes != "none"} == {"b: pf", "b: bon"}
            assert "NaN" not in browser.js("document.querySelector('.plot').outerHTML")
            assert browser.js("document.querySelectorAll('#tables details').length") == len(list(found.sections()))


def test_the_command(two, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "a", "b", "--out", "out", "--no-plots"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Differences to a: pf" in out
    assert "b: majority" in out
    assert "written: out/comparison.md" in out
    assert main(["compare", "a", "b", "--out", "a"]) == 2
    assert main(["compare", "a"]) == 2
    assert "two different directories" in capsys.readouterr().err
