"""Presets, answers that are chosen from again, and races; on worlds of chains, with fixed seeds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

import motes
from motes.cli import main
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab import Evaluation, evaluate, method_from_spec, read_records
from motes.lab.chains import ChainWorld
from motes.lab.measure.choosing import choose_again, drawn_by
from motes.lab.measure.racing import CANDIDATES, Race, candidates, race
from motes.lab.run.presets import Preset, expanded

WORLD = "motes.lab.chains:ChainWorld?num_steps=5&success=0.25&separation=2&systematic=0.5&agreement=0.4&num_problems=48"


def world() -> ChainWorld:
    task = motes.api.task(WORLD)
    assert isinstance(task, ChainWorld)
    return task


class TestPresets:
    def test_written_and_read(self, tmp_path):
        preset = Preset("pf:ess_threshold=1.0", 16)
        preset.save(path := tmp_path / "best.toml", "Found by `motes tune`:", "80 %\nof many")
        assert Preset.load(path) == preset
        assert path.read_text().startswith("# Found by `motes tune`:\n# 80 % of many\nmethod = ")
        assert expanded("@best.toml", tmp_path) == "pf:ess_threshold=1.0"
        assert expanded("@best.toml:beta=2", tmp_path) == "pf:ess_threshold=1.0:beta=2"
        assert expanded("pf:beta=2", tmp_path) == "pf:beta=2"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("method = 'pf'", "has two lines"),
            ("method = 'pf'\nbudget = 4\nmore = 1", "has two lines"),
            ("method = 3\nbudget = 4", "method must be a text"),
            ("method = 'pf'\nbudget = 'four'", "budget must be a whole number"),
            ("method", "is not TOML"),
        ],
    )
    def test_what_is_none(self, tmp_path, text: str, words: str):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ConfigurationError, match=words):
            expanded("@bad.toml", tmp_path)
        with pytest.raises(ConfigurationError, match="nowhere"):
            expanded("@nowhere.toml", tmp_path)

    def test_on_the_command_line(self, tmp_path, capsys):
        Preset("pf:ess_threshold=1.0", 3).save(path := tmp_path / "best.toml")
        fake = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
        for words, budget in (([], 3), (["-n", "2"], 2)):
            assert main(["solve", "How many?", *fake, "--method", f"@{path}", "--json", *words]) == 0
            told = capsys.readouterr().out
            assert f'"budget": {budget}' in told
            assert '"method": "pf:ess_threshold=1.0"' in told
        assert main(["solve", "How many?", *fake, "--method", f"@{path}:beta=2", "--json"]) == 0
        told = capsys.readouterr().out
        assert '"method": "pf:ess_threshold=1.0:beta=2"' in told
        assert '"budget": 3' in told
        out = tmp_path / "run"
        words = ["eval", *fake, "--methods", f"@{path}:beta=2", "--budgets", "2", "--limit", "1", "--out", str(out)]
        assert main(words) == 0
        assert [record.method for record in read_records(out / "records.jsonl")] == ["pf:ess_threshold=1.0:beta=2"]

    def test_in_a_gateways_configuration(self, tmp_path):
        pytest.importorskip("fastapi")
        from motes.gateway.config import Config

        Preset("pf:ess_threshold=1.0", 8).save(tmp_path / "best.toml")
        (tmp_path / "motes.toml").write_text(
            '[models.a]\nlm = "tiny"\nreward = "tiny"\nmethod = "@best.toml"\nmethods = ["@best.toml:beta=2", "bon"]\n'
            '[models.b]\nlm = "tiny"\nreward = "tiny"\nmethod = "@best.toml"\nparticles = 4\n'
        )
        models = Config.load(tmp_path / "motes.toml").models
        assert (models["a"].method, models["a"].particles) == ("pf:ess_threshold=1.0", 8)
        assert models["a"].methods == ("pf:ess_threshold=1.0:beta=2", "bon")
        assert models["b"].particles == 4


CHOICES = [
    "majority", "bon", "bon:aggregation=min", "bon:aggregation=mean", "wbon", "wbon:aggregation=prod", "wbon:link=odds",
    "wbon:beta=4", "wbon:beta=0",
]  # fmt: skip


@pytest.mark.parametrize("spec", CHOICES)
def test_what_is_chosen_again_is_what_the_method_chooses(spec: str, tmp_path):
    """From the same seed they draw the same answers."""
    w = world()
    evaluation = Evaluation(task=WORLD, methods=("wbon",), budgets=(6,), limit=24, lm="its", reward="its")
    asyncio.run(evaluate(evaluation, tmp_path, lm=w.lm, reward=w.reward, traces=False))
    by_id = {problem.id: problem for problem in w.problems()}
    differ = 0
    for record in read_records(tmp_path / "records.jsonl"):
        again = choose_again(record, spec)
        made = method_from_spec(spec, 6)
        own = motes.solve(by_id[record.problem_id], lm=w.lm, reward=w.reward, method=made, task=w, seed=record.run_seed)
        assert (again.method, again.answer) == (spec, own.answer)
        assert (again.outcome == "correct") == (own.answer == "right")
        assert again.usage.reward_tokens == own.usage.reward_tokens
        assert (again.usage.reward_calls == 0) == (spec == "majority")
        differ += again.answer != record.answer
    assert differ or spec in ("wbon", "wbon:beta=4")


def test_what_choice_cannot_make():
    assert [drawn_by(spec, 2) for spec in ("majority", "bon:aggregation=min", "wbon:beta=2", "pf", "rebase")] == [
        "wbon", "wbon", "wbon", "pf", "rebase"
    ]  # fmt: skip


def test_a_run_that_failed_or_says_nothing_stays_so(tmp_path):
    w = world()
    evaluation = Evaluation(task=WORLD, methods=("wbon",), budgets=(2,), limit=1, lm="its", reward="its")
    asyncio.run(evaluate(evaluation, tmp_path, lm=w.lm, reward=w.reward, traces=False))
    (record,) = read_records(tmp_path / "records.jsonl")
    failed = replace(record, outcome="failed")
    assert choose_again(failed, "majority") == replace(failed, method="majority")
    silent = replace(record, groups=(None, None), answers=(None, None))
    assert choose_again(silent, "bon").outcome == "no_answer"


def racing(directory: Path, methods=("majority", "bon", "wbon", "pf:ess_threshold=1.0"), **settings) -> Race:
    w = world()
    evaluation = Evaluation(task=WORLD, methods=methods, budgets=(4,), limit=40, lm="its", reward="its")
    return asyncio.run(race(evaluation, directory, lm=w.lm, reward=w.reward, **settings))


class TestRace:
    def test_half_are_out_after_each_round(self, tmp_path):
        told: list[tuple[int, str]] = []
        found = racing(tmp_path, observe=lambda number, spec, progress: told.append((number, spec)))
        assert found.winner.spec == "pf:ess_threshold=1.0"
        assert [each.rounds for each in found.standings] == [4, 4, 1, 1]
        assert [each.problems for each in found.standings] == [40, 40, 5, 5]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pf_ess_threshold=1.0", "wbon"]
        assert dict.fromkeys(told) == dict.fromkeys(
            (n, spec) for n in range(1, 5) for spec in ("wbon", "pf:ess_threshold=1.0")
        )
        assert found.standings[0].behind is None
        assert all(each.behind.value < 0 for each in found.standings[1:])
        assert not found.stopped
        (section,) = found.sections()
        assert [row[0] for row in section.rows] == [each.spec for each in found.standings]

    def test_it_goes_on_where_it_stopped(self, tmp_path):
        first = racing(tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.glob("*/records.jsonl")}
        assert racing(tmp_path) == first
        assert {path: path.read_bytes() for path in before} == before

    def test_its_tokens_are_bounded(self, tmp_path):
        whole = racing(tmp_path / "whole")
        part = racing(tmp_path / "part", tokens=whole.tokens // 3)
        assert part.stopped
        assert part.tokens < whole.tokens
        assert {each.rounds for each in part.standings} <= {1, 2, 3}
        with pytest.raises(ConfigurationError, match="before the first round was over"):
            racing(tmp_path / "none", tokens=1)

    def test_what_is_no_race(self, tmp_path):
        with pytest.raises(ConfigurationError, match="two methods or more"):
            racing(tmp_path, methods=("pf",))
        evaluation = Evaluation(task=WORLD, methods=("pf", "bon"), budgets=(4,), limit=8, lm="its", reward="its")
        with pytest.raises(ConfigurationError, match="16 problems or more, not 8"):
            asyncio.run(race(evaluation, tmp_path))

    def test_who_may_race(self):
        assert candidates(CANDIDATES, 16) == (list(CANDIDATES), [])
        found, refused = candidates(["pf", "beam", "bon", "greedy"], 6)
        assert found == ["pf", "bon"]
        assert [reason.partition(":")[0] for reason in refused] == ["beam", "greedy"]
        with pytest.raises(UnknownNameError):
            candidates(["pf", "pff"], 16)
        with pytest.raises(ConfigurationError, match="not 1; beam: "):
            candidates(["pf", "beam"], 6)

    def test_the_command(self, tmp_path, capsys):
        out = tmp_path / "tuned"
        fake = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
        words = ["tune", *fake, "--methods", "majority,wbon,islands", "-n", "2", "--limit", "16", "--out", str(out)]
        assert main(words) == 0
        told = capsys.readouterr()
        assert "Race at N = 2" in told.out
        assert "left out: islands: " in told.err
        preset = Preset.load(out / "best.toml")
        assert f"the winner: {preset.method}" in told.out
        assert preset.budget == 2
        assert main([*words, "--reward", "none"]) == 2
