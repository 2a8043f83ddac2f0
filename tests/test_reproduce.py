"""`motes reproduce`: the paper's table and figure, end to end with other models and problems in its models' places."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from motes.cli import main
from motes.errors import ConfigurationError, RunDirectoryError, UnknownNameError
from motes.lab.run.records import RecordStore, RunRecord, read_records
from motes.paper import EVERY, Point, Reproduction, published, read_rows
from motes.paper.row import results

SHARED = Path(__file__).parents[2] / "shared"
PLACES = ["--tasks", "math-500=arithmetic,aime-2024=arithmetic"]
WORLD = ["--models", f"{EVERY}=worlds:language_model", "--reward", "worlds:reward_model", "--limit", "2"]
SCALED = ["Llama-3.2-1B-Instruct", "Llama-3.1-8B-Instruct", "Qwen2.5-Math-1.5B-Instruct", "Qwen2.5-Math-7B-Instruct"]
SMALL = SCALED[0]
GIBBS = "pg 16 particles x 4 sweeps"


def motes(capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def reproduction(out: Path, **settings) -> Reproduction:
    settings = {
        "experiment": "table1",
        "models": {SMALL: "worlds:language_model"},
        "reward": "worlds:reward_model",
        "tasks": {"math-500": "arithmetic"},
        "limit": 2,
        **settings,
    }
    return Reproduction(out=out, **settings)


class TestThePaper:
    @pytest.mark.skipif(not (SHARED / "paper_results.json").exists(), reason="the paper's numbers lie elsewhere")
    def test_its_numbers_are_those_handed_over(self):
        handed = json.loads((SHARED / "paper_results.json").read_text())
        shipped = results()
        assert shipped == {key: handed[key] for key in shipped}
        settings = handed["settings"]
        for name in SCALED:
            sampling = read_rows()[name].sampling
            assert (sampling.temperature, sampling.top_p) == (settings["lm_temperature"], settings["top_p"])
            assert (sampling.max_step_tokens, sampling.max_steps) == (2048, settings["max_steps"])

    def test_points(self):
        table, figure = published("table1"), published("figure2")
        assert table[Point("GPT-4o", "pass@1", None)] == (76.2, 13.3)
        assert table[Point(SMALL, "pf", None)] == (59.6, 10.0)
        assert table[Point(SCALED[3], GIBBS, None)] == (87.2, None)
        assert len(table) == 5 + 4 * 5 + 1
        assert figure[Point(SMALL, "dvts", 4)] == (40,)
        assert figure[Point(SMALL, "dvts", 128)] == (55,)
        assert len(figure) == 8 + 8 + 6 + 8

    @pytest.mark.parametrize("experiment", ["table1", "figure2"])
    def test_every_number_of_its_has_a_method_here(self, experiment):
        found = read_rows()
        for row, label, budget in published(experiment):
            (wanted,) = (one for one in found[row].wanted[experiment] if one.label == label)
            assert budget is None or budget in wanted.budgets

    @pytest.mark.parametrize("place", [SMALL, f"{SMALL}/math-500"])
    def test_no_directory_of_its_is_a_link_to_another(self, place, tmp_path):
        (outside := tmp_path / "outside").mkdir()
        (inside := tmp_path / "out" / place).parent.mkdir(parents=True)
        inside.symlink_to(outside)
        with pytest.raises(RunDirectoryError, match="is a link to another directory"):
            _ = reproduction(tmp_path / "out").entries

    def test_rows_are_asked_as_the_paper_says(self, tmp_path):
        found = reproduction(tmp_path, reward="http://localhost:1#Qwen/Qwen2.5-Math-PRM-7B")
        asked = {entry.point.label: entry.evaluation for entry in found.entries}
        assert {label: (one.methods, one.budgets) for label, one in asked.items()} == {
            "pass@1": (("greedy",), (1,)),
            "one sample (motes)": (("majority",), (1,)),
            "bon": (("bon",), (64,)),
            "wbon": (("wbon",), (64,)),
            "dvts": (("dvts:beam_width=4",), (64,)),
            "pf": (("pf:paper",), (64,)),
            "pf (motes)": (("pf",), (64,)),
        }
        assert asked["pf"].reward == "http://localhost:1#Qwen/Qwen2.5-Math-PRM-7B?prefix=whole"
        assert asked["pass@1"].reward is None
        assert asked["pf"].prompt.name == "llama-3"

    def test_how_a_reward_model_reads(self):
        row = read_rows()[SMALL]
        assert row.reading("tiny") == "tiny?prefix=whole"
        assert row.reading("hf:P?device=cpu") == "hf:P?device=cpu&prefix=whole"
        for as_it_is in ("tiny?prefix=steps", "judge:tiny", "worlds:reward_model"):
            assert row.reading(as_it_is) == as_it_is


class TestTable1:
    def test_every_row(self, capsys, tmp_path):
        words = ("reproduce", "table1", *WORLD, *PLACES, "--budget", 8, "--out", tmp_path)
        code, out, err = motes(capsys, *words)
        assert (code, "motes: " in err) == (0, False)
        assert "`arithmetic` in the place of AIME 2024" in out
        found = {(row["model"], row["method"], row["benchmark"]): row for row in rows(tmp_path / "table1.csv")}
        assert len(found) == 2 * (5 + 4 * 7 + 1)
        for (name, label, _), pair in published("table1").items():
            for task, number in zip(("math-500", "aime-2024"), pair, strict=True):
                row = found[name, label, task]
                assert row["paper_percent"] == ("" if number is None else str(number))
                assert 0 <= float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"]) <= 1
                difference = "" if number is None else pytest.approx(float(row["accuracy"]) - number / 100, abs=1e-6)
                assert (row["difference"] and float(row["difference"])) == difference
                assert (row["problems"], row["failed"]) == ("2", "0")
        assert found[SCALED[3], GIBBS, "math-500"]["budget"] == "8"
        page = (tmp_path / "table1.md").read_text()
        assert page.startswith("# Table 1 of arXiv 2502.01618, measured again\n")
        assert f"| {SMALL} | pf | 59.6 | " in page
        assert f"- {SMALL}: `worlds:language_model`, prompt llama-3" in page

        before = {path: path.read_bytes() for path in tmp_path.rglob("records.jsonl")}
        assert len(before) == len(found)
        code, _, err = motes(capsys, *words)
        assert (code, "0 of them still to be measured" in err) == (0, True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("records.jsonl")} == before
        assert (tmp_path / "table1.md").read_text() == page

    def test_the_bundled_models(self, capsys, tmp_path):
        models = ["--models", f"{EVERY}=tiny", "--reward", "tiny", "--prompt", "none", "--limit", 1, "--budget", 2]
        words = [*models, "--tasks", "math-500=arithmetic", "--out", tmp_path]
        code, _, err = motes(capsys, "reproduce", "table1", *words)
        assert code == 0
        assert err.startswith(f"motes: left out: {SCALED[3]}, {GIBBS}: a budget of 2 has no 4 equal parts")
        found = rows(tmp_path / "table1.csv")
        assert {row["model"] for row in found if row["accuracy"]} == set(read_rows())
        assert [row["method"] for row in found if not row["accuracy"]] == [GIBBS]
        configuration = json.loads((tmp_path / SMALL / "math-500" / "pf_paper-2" / "config.json").read_text())
        assert (configuration["lm"], configuration["reward"]) == ("tiny", "tiny?prefix=whole")

    def test_rows_without_a_model_have_the_papers_numbers(self, tmp_path):
        lines = reproduction(tmp_path, models={"GPT-4o": "worlds:language_model"}, reward=None).lines()
        assert {line.point for line in lines} == set(published("table1"))
        assert all(line.ours == (None,) for line in lines)  # nothing was measured yet
        assert [line.point.row for line in lines][:2] == ["GPT-4o", "o1-preview"]

    def test_a_failed_run_is_told(self, tmp_path):
        found = reproduction(tmp_path)
        entry = found.entries[0]
        for problem in entry.evaluation.problems():
            ends = {"method": "greedy", "budget": 1, "seed": 0, "outcome": "failed"}
            with RecordStore(entry.directory / "records.jsonl") as store:
                store.append(RunRecord(problem_id=problem.id, **ends))
        assert entry.num_done == 0
        assert entry.cell().outcomes["failed"] == 2
        assert any("14 runs are missing or failed" in warning for warning in found.warnings())

    def test_the_papers_own_experiment_has_no_warning_but_what_is_missing(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"question": f"{i}?", "answer": i}) + "\n" for i in range(500)))
        found = reproduction(
            tmp_path,
            models={SMALL: f"http://localhost:1/v1#meta-llama/{SMALL}"},
            reward="hf:Qwen/Qwen2.5-Math-PRM-7B",
            tasks={"math-500": str(path)},
            limit=None,
        )
        assert len(found.warnings()) == 1
        assert found.warnings()[0].startswith("Unfinished: 3500 runs")


class TestFigure2:
    def test_both_models(self, capsys, tmp_path):
        words = [*WORLD, "--tasks", "math-500=arithmetic", "--budget", 4, "--out", tmp_path]
        code, _, err = motes(capsys, "reproduce", "figure2", *words)
        assert (code, "motes: " in err) == (0, False)
        assert {path.name for path in tmp_path.glob("figure2.*")} == {
            f"figure2.{end}" for end in ("md", "csv", "csv-metadata.json", "png", "svg")
        }
        command = shlex.join(map(str, ["motes", "reproduce", "figure2", *words]))
        assert command in (tmp_path / "figure2.md").read_text()
        for name in ("figure2.svg", "figure2.csv-metadata.json"):
            assert "worlds:StoryLanguageModel" in (tmp_path / name).read_text()
        found = {(row["model"], row["method"], row["budget"]): row for row in rows(tmp_path / "figure2.csv")}
        measured = {key for key, row in found.items() if row["accuracy"]}
        assert measured == {(m, method, n) for m in SCALED[:2] for method in ("pf", "wbon", "dvts") for n in "124"}
        assert found[SMALL, "dvts", "4"]["paper_percent"] == "40"
        assert found[SMALL, "pf", "128"]["accuracy"] == ""
        assert "dashed" in (tmp_path / "figure2.svg").read_text()

        code, _, err = motes(capsys, "reproduce", "table1", *words)
        assert code == 0
        assert "33 numbers, 27 of them still to be measured" in err  # three of each of the two rows were shared

    def test_a_model_that_the_paper_has_no_curve_of(self, capsys, tmp_path):
        words = ["--models", f"{SCALED[3]}=worlds:language_model", "--reward", "tiny", "--out", tmp_path]
        code, _, err = motes(capsys, "reproduce", "figure2", *words)
        assert code == 2
        assert "no model for figure2" in err


def test_a_row_of_ones_own(capsys, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine.toml").write_text(
        'model = "org/mine"\n[table1]\nbudgets = [2]\n[table1.methods]\nmajority = "majority"\n'
    )
    words = ["--models", "mine=worlds:language_model", "--limit", 1, "--tasks", PLACES[1]]
    code, _, err = motes(capsys, "reproduce", "table1", *words, "--configs", tmp_path / "rows", "--out", tmp_path / "o")
    assert (code, "motes: " in err) == (0, False)
    last = rows(tmp_path / "o" / "table1.csv")[-1]
    assert (last["model"], last["method"], last["budget"], last["paper_percent"]) == ("mine", "majority", "2", "")


def test_what_is_planned(capsys, tmp_path):
    words = ["reproduce", "table1", "--models", f"{SMALL}=http://localhost:1/v1", "--reward", "http://localhost:1"]
    code, out, _ = motes(capsys, *words, *PLACES, "--limit", 3, "--dry-run", "--out", tmp_path / "none")
    assert code == 0
    assert out.splitlines()[-1] == f"{2 * 7 * 3} runs, {2 * 3 * (2 + 5 * 64):,} trajectories"
    assert not (tmp_path / "none").exists()


class TestWhatCannotWork:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["table2", *WORLD], "did you mean 'table1'"),
            (["table1", "--models", "Llama-3.2-1B=tiny"], "did you mean 'Llama-3.2-1B-Instruct'"),
            (["table1", "--models", f"{SMALL}=tiny"], "--reward http://HOST:PORT#Qwen/Qwen2.5-Math-PRM-7B"),
            (["table1", "--models", SMALL], "is not ROW=SPEC"),
            (["table1", "--models", "all=tiny,all=tiny"], "names all twice"),
            (["table1", *WORLD, "--tasks", "math500"], "did you mean 'math-500'"),
            (["figure2", *WORLD, "--tasks", "aime-2024"], "known are math-500"),
            (["table1", *WORLD, "--budget", 0], "must be at least 1"),
            (["table1", *WORLD, "--concurrency", 0], "must be at least 1"),
            (["table1", *WORLD, "--configs", "nowhere"], "is not a directory"),
        ],
    )
    def test_is_said(self, capsys, tmp_path, words, message):
        code, _, err = motes(capsys, "reproduce", *words, "--out", tmp_path / "out")
        assert code == 2
        assert message in err
        assert not (tmp_path / "out").exists()

    def test_a_directory_of_other_settings(self, capsys, tmp_path):
        words = ["reproduce", "table1", *WORLD, "--models", "GPT-4o=tiny", "--tasks", PLACES[1], "--out", tmp_path]
        with RecordStore(tmp_path / SMALL / "math-500" / "greedy-1" / "records.jsonl") as store:
            store.append(RunRecord(problem_id="0", method="greedy", budget=1, seed=0, outcome="wrong"))
        code, _, err = motes(capsys, *words)
        assert (code, "use another directory" in err) == (2, True)
        with pytest.raises(RunDirectoryError):
            reproduction(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("model =", "cannot be used"),
            ("[table1]\nbudgets = [1]\nmethods = {}\n", "does not say 'model'"),
            ('model = "m"\nmodle = "m"\n', "did you mean 'model'"),
            ('model = "m"\n[sampling]\ntemperatur = 1\n', "did you mean 'temperature'"),
            ('model = "m"\n[sampling]\ntemperature = "hot"\n', "cannot be used"),
            ('model = "m"\n[table1]\nbudgets = [1]\nmethods = { a = "pff" }\n', "did you mean 'pf'"),
            ('model = "m"\n[table1]\nbudgets = []\nmethods = { a = "pf" }\n', "has no budgets"),
        ],
    )
    def test_in_a_row(self, tmp_path, text, message):
        (tmp_path / "row.toml").write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            read_rows(tmp_path)

    def test_an_unknown_experiment_in_python(self, tmp_path):
        with pytest.raises(UnknownNameError):
            reproduction(tmp_path, experiment="table9")
        assert read_records(tmp_path / "records.jsonl") == []
