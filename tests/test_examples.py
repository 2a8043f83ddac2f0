"""The examples, run as their readers run them, on fewer problems."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from gateways import gateway
from motes.gateway.config import Config
from snippets import ROOT

EXAMPLES = ROOT / "examples"
QUESTIONS = [
    "Some friends collect plums. Carl owns 10. Finn has 7 fewer than Carl. How many does Finn have?",
    "Some friends collect pears. Ben owns 7. Rosa has 5 more than Ben. How many does Rosa have?",
]
SMALLER = {
    "inside_a_run": {"range(5)": "range(1)"},
    "accuracy_curve": {"limit=20": "limit=2", "budgets=(1, 4, 8)": "budgets=(1, 2)"},
}


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_every_example_is_tested_and_listed():
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert names == {"answer_many.py", "ask_gateway.py", "check_target.py", *(f"{name}.ipynb" for name in SMALLER)}
    listed = (ROOT / "docs/tutorials/index.md").read_text(encoding="utf-8")
    assert all(f"](../../examples/{name})" in listed for name in names)


def test_answering_many_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    questions, answers = tmp_path / "questions.txt", tmp_path / "answers.jsonl"
    questions.write_text(QUESTIONS[0] + "\n\n")
    run(monkeypatch, "answer_many", str(questions), str(answers), "-n", "2")
    questions.write_text("\n".join(QUESTIONS) + "\n")
    run(monkeypatch, "answer_many", str(questions), str(answers), "-n", "2")
    assert capsys.readouterr().out.splitlines() == [
        "1 questions answered, 0 were there already",
        "1 questions answered, 1 were there already",
    ]
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["question"] for row in rows] == QUESTIONS
    assert all(row["answer"].isdigit() and row["tokens"] > 0 for row in rows)


def test_a_question_that_fails_ends_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    questions, answers = tmp_path / "questions.txt", tmp_path / "answers.jsonl"
    questions.write_text("\n".join([QUESTIONS[0], "word " * 5_000]) + "\n")
    for _ in range(2):
        run(monkeypatch, "answer_many", str(questions), str(answers), "-n", "2")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    failed = [row for row in rows if "error" in row]
    assert len(rows) == 3
    assert len(failed) == 2, "it is tried again by the next call"


def test_the_filter_samples_from_its_target(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run(monkeypatch, "check_target", "--runs", "300")
    assert "largest |z| of 7: " in capsys.readouterr().out


def test_asking_the_gateway(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with gateway(Config.bundled()) as client:
        address = f"{str(client.base_url).rstrip('/')}/v1"
        run(monkeypatch, "ask_gateway", QUESTIONS[0], "--address", address, "--particles", "2")
    out = capsys.readouterr().out
    assert "\\boxed{" in out
    assert int(out.split()[-5]) > 0, "tokens of all particles"


@pytest.mark.parametrize("name", SMALLER)
def test_a_notebook_runs_and_shows_what_it_showed(name: str, tmp_path: Path):
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    shown = outputs(notebook)
    for cell in notebook.cells:
        for whole, part in SMALLER[name].items():
            cell.source = cell.source.replace(whole, part)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert outputs(notebook) == shown


def outputs(notebook: Any) -> list[set[str]]:
    """Of each cell of code, the kinds of its outputs; the texts depend on how many problems there are."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [[output for output in cell.outputs if output.get("name") != "stderr"] for cell in cells]
    return [{kind for output in of_cell for kind in (output.output_type, *output.get("data", {}))} for of_cell in shown]
