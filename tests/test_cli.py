"""The command line in-process: what it prints, and what it does with bad input."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

import worlds
from motes import ParticleFilter, api, solve
from motes.cli import main
from motes.cli.views import Watch
from motes.errors import ContextLengthError, EngineError
from motes.tasks import Arithmetic

FAKE = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
PROBLEM = Arithmetic().problems()[2]


@pytest.fixture
def tiny(monkeypatch):
    """The fake world under the bundled models' name."""
    monkeypatch.setattr(api, "language_model", lambda spec: worlds.StoryLanguageModel())
    monkeypatch.setattr(api, "reward_model", lambda spec: worlds.reward_model())


def motes(capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class TestSolve:
    def test_plain_output(self, capsys):
        code, out, err = motes(capsys, "solve", PROBLEM.question, *FAKE, "-n", 8)
        assert (code, "motes: " in err) == (0, False)
        rounds = re.findall(r"^round +(\d+)   ESS +[\d.]+ of 8   survivors +\d+   finished +\d+", err, re.MULTILINE)
        assert rounds == ["1", "2", "3", "4"]
        assert re.search(rf"^answer +{PROBLEM.answer}$", out, re.MULTILINE)
        assert re.search(r"^confidence +\d+ %$", out, re.MULTILINE)
        assert re.search(r"^cost .* generated \+ .* prefill \+ .* reward tokens", out, re.MULTILINE)
        assert "\x1b" not in out + err

    def test_json_is_one_object(self, capsys):
        code, out, err = motes(capsys, "solve", PROBLEM.question, *FAKE, "-n", 8, "--seed", 3, "--json")
        assert (code, err) == (0, "")
        answer = json.loads(out)
        models = {"lm": worlds.language_model(), "reward": worlds.reward_model()}
        again = solve(PROBLEM.question, **models, method=ParticleFilter(8), seed=3)
        assert answer["answer"] == again.answer
        assert answer["posterior"] == dict(again.posterior)
        assert answer["usage"] == again.usage.to_dict()
        assert (answer["method"], answer["budget"], answer["seed"], answer["note"]) == ("pf", 8, 3, None)
        assert len(answer["trajectories"]) == 8
        assert sum(one["weight"] for one in answer["trajectories"]) == pytest.approx(1)
        assert [one["number"] for one in answer["rounds"]] == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        "method", ["greedy", "majority", "bon", "wbon", "beam", "dvts:beam_width=2", "rebase", "pf", "pf:paper"]
    )
    def test_every_method(self, capsys, method):
        code, out, _ = motes(capsys, "solve", PROBLEM.question, *FAKE, "--method", method, "-n", 4, "--json")
        assert code == 0
        assert json.loads(out)["answer"] in json.loads(out)["posterior"]

    def test_settings_reach_method_and_sampling(self, capsys):
        settings = ["--set", "potential=absolute", "--set", "ess_threshold=1.0", "--max-steps", 2]
        code, out, _ = motes(capsys, "solve", PROBLEM.question, *FAKE, *settings, "--json")
        assert code == 0
        answer = json.loads(out)
        assert answer["settings"]["potential"] == "absolute"
        assert [one["resampled"] for one in answer["rounds"]] == [False, True]
        assert {one["finished"] for one in answer["trajectories"]} == {"max_steps"}
        assert answer["answer"] is None

    def test_no_reward_model_where_none_is_needed(self, capsys):
        code, _, err = motes(capsys, "solve", PROBLEM.question, *FAKE, "--reward", "none", "--method", "majority")
        assert (code, "motes: " in err) == (0, False)

    def test_the_question_from_stdin(self, capsys, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO(PROBLEM.question + "\n"))
        code, out, _ = motes(capsys, "solve", "-", *FAKE, "--json")
        assert (code, json.loads(out)["question"].strip()) == (0, PROBLEM.question)

    def test_tiny_says_when_a_question_is_not_of_its_kind(self, capsys, tiny):
        code, out, _ = motes(capsys, "solve", "What is the capital of France?", "--json")
        assert code == 0
        assert "do not believe the answer" in json.loads(out)["note"]
        _, out, _ = motes(capsys, "solve", "What is the capital of France?")
        assert "do not believe the answer" in " ".join(out.split())
        _, out, _ = motes(capsys, "solve", PROBLEM.question)
        assert "believe" not in out

    def test_live_on_a_terminal(self):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=100, height=40)
        with Watch(console) as watch:
            solve(PROBLEM, lm=worlds.language_model(), reward=worlds.reward_model(), observe=watch.observe)
        shown = file.getvalue()
        for words in ("effective sample size", "survivors", "finished", "latest step", "of 16"):
            assert words in shown

    def test_text_of_a_model_is_never_markup(self, capsys, monkeypatch):
        monkeypatch.setattr(worlds, "parse", lambda question: None)
        code, _, err = motes(capsys, "solve", "what is [/red] [bold]?", *FAKE)
        assert (code, "motes: " in err) == (0, False)


class TestEvalAndReport:
    ASK = ("--methods", "pf,bon,greedy", "--budgets", "1,4", "--limit", "5", *FAKE)

    def test_from_evaluation_to_report(self, capsys, tmp_path):
        out_directory = tmp_path / "deep" / "run"
        code, out, err = motes(capsys, "eval", *self.ASK, "--out", out_directory)
        assert (code, "motes: " in err) == (0, False)
        pace = r"[\d,]+ runs/min, [\d,]+ tokens computed, [\d,]+/s"
        assert re.search(rf"^25/25 runs   accuracy [\d.]+ %   {pace}$", err, re.MULTILINE)
        assert "runs/min" not in out
        assert "0:00:0" in err
        assert f"motes report {out_directory}" in out
        before = (out_directory / "records.jsonl").read_bytes()
        assert len(before.splitlines()) == 25
        code, out, _ = motes(capsys, "eval", *self.ASK, "--out", out_directory)
        assert code == 0
        assert (out_directory / "records.jsonl").read_bytes() == before

        code, out, err = motes(capsys, "report", out_directory)
        assert (code, err) == (0, "")
        assert re.search(r"^pf +1 +[\d.]+ % +[\d.]+ % – [\d.]+ %", out, re.MULTILINE)
        for name in ("report.md", "report.csv", "accuracy.png", "accuracy.svg", "levels.png"):
            assert (out_directory / name).stat().st_size > 200

    def test_a_differing_directory(self, capsys, tmp_path):
        motes(capsys, "eval", *self.ASK, "--out", tmp_path)
        code, out, err = motes(capsys, "eval", *self.ASK, "--out", tmp_path, "--temperature", 1)
        assert (code, out) == (2, "")
        assert "sampling.temperature is 0.8 there and 1.0 here" in err

    def test_failed_runs_end_in_exit_code_1(self, capsys, tmp_path, tiny, monkeypatch):
        question = PROBLEM.question
        monkeypatch.setattr(api, "language_model", lambda spec: worlds.StoryLanguageModel(fails_on=question))
        ask = ("eval", "--methods", "greedy", "--limit", 5, "--out", tmp_path)
        code, _, err = motes(capsys, *ask)
        assert code == 1
        assert "1 runs failed" in err
        monkeypatch.setattr(api, "language_model", lambda spec: worlds.StoryLanguageModel())
        code, _, err = motes(capsys, *ask)
        assert (code, "motes: " in err) == (0, False)

    def test_without_matplotlib_the_tables_are_written(self, capsys, tmp_path, monkeypatch):
        motes(capsys, "eval", *self.ASK, "--out", tmp_path)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        code, _, err = motes(capsys, "report", tmp_path)
        assert code == 0
        assert "motes[plot]" in err
        assert (tmp_path / "report.csv").exists()

    def test_demo(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("demo", "demo-2"):
            code, out, err = motes(capsys, "demo", *FAKE, "--limit", 3)
            assert (code, "motes: " in err) == (0, False)
            assert "the right answer is" in out
            for method in ("pass@1", "weighted best of N", "particle filter"):
                assert method in out
            for budget in (4, 16):
                assert f"particle filter less weighted best of N, N = {budget}, problem by problem: " in out
            assert f"runs/{name}/accuracy.png" in out
            assert Path("runs", name, "accuracy.png").exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["solve", "q", *FAKE, "--method", "pff"], "did you mean 'pf'"),
            (["solve", "q", *FAKE, "-n", "0"], "at least 1"),
            (["solve", "q", *FAKE, "-n", "many"], "--budget"),
            (["solve", "", *FAKE], "the question is empty"),
            (["solve", "  \n", *FAKE], "the question is empty"),
            (["solve"], "question"),
            (["solve", "q", *FAKE, "--seed", "-1"], "seed must be 0 or more"),
            (["solve", "q", *FAKE, "--temperature", "-1"], "temperature"),
            (["solve", "q", *FAKE, "--top-p", "0"], "top_p"),
            (["solve", "q", *FAKE, "--max-steps", "0"], "max_steps"),
            (["solve", "q", *FAKE, "--delimiter", ""], "delimiter"),
            (["solve", "q", *FAKE, "--set", "beta"], "FIELD=VALUE"),
            (["solve", "q", *FAKE, "--set", "beta=x"], "beta"),
            (["solve", "q", *FAKE, "--set", "bta=1"], "did you mean 'beta'"),
            (["solve", "q", "--model", "nosuchmodule:thing"], "no module 'nosuchmodule'"),
            (["solve", "q", "--model", "worlds:nothing"], "no 'nothing'"),
            (["solve", "q", "--model", "json:dumps", "--reward", "none"], "json:dumps"),
            (["solve", "q", "--model", "gpt"], "names no model"),
            (["solve", "q", "--model", "worlds:language_model", "--reward", "none"], "needs a reward model"),
            (["eval", *FAKE], "--out"),
            (["eval", "--out", "x", *FAKE, "--task", "poetry"], "arithmetic"),
            (["eval", "--out", "x", *FAKE, "--budgets", "1,b"], "--budgets"),
            (["eval", "--out", "x", *FAKE, "--budgets", ","], "--budgets is empty"),
            (["eval", "--out", "x", *FAKE, "--limit", "0"], "limit"),
            (["eval", "--out", "x", *FAKE, "--concurrency", "0"], "concurrency"),
            (["eval", "--out", "x", "--model", "hf:no/such/model/anywhere"], "no/such/model"),
            (["demo", "--model", "hf:no/such/model/anywhere"], "no/such/model"),
            (["report", "missing"], "holds no evaluation"),
            (["grade", "missing"], "holds no evaluation"),
            (["eval", "--out", "x", *FAKE, "--task", "missing.jsonl"], "missing.jsonl cannot be read"),
            (["no-such-command"], "No such command"),
            (["solve", "q", "--no-such-option"], "No such option"),
        ],
    )
    def test_one_clear_line_and_exit_code_2(self, capsys, tmp_path, monkeypatch, words, says):
        monkeypatch.chdir(tmp_path)
        code, out, err = motes(capsys, *words)
        assert (code, out) == (2, "")
        assert says in err
        assert err.startswith("motes: ")
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("error", "expected"),
        [(ContextLengthError("the prompt has 900 tokens\nof 512"), 2), (EngineError("out of memory"), 1)],
    )
    def test_errors_of_a_model(self, capsys, tiny, monkeypatch, error, expected):
        class Failing:
            async def extend(self, trajectories, sampling, seeds):
                raise error

        monkeypatch.setattr(api, "language_model", lambda spec: Failing())
        for words in ([], ["--json"]):
            code, out, err = motes(capsys, "solve", PROBLEM.question, *words)
            assert (code, out) == (expected, "")
            assert err == f"motes: {' '.join(str(error).split())}\n"


def test_help_and_version(capsys):
    code, out, _ = motes(capsys)
    assert code == 0
    assert all(command in out for command in ("solve", "eval", "grade", "report", "demo", "check"))
    assert motes(capsys, "--version")[1].startswith("motes ")
    for command in ("solve", "eval", "grade", "report", "compare", "demo", "check"):
        code, out, err = motes(capsys, command, "--help")
        assert (code, err) == (0, "")
        assert out


def test_check(capsys):
    code, out, err = motes(capsys, "check", *FAKE)
    assert (code, err) == (0, "")
    assert "worlds:language_model keeps the contract" in out
    assert "worlds:reward_model keeps the contract" in out
