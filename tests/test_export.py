"""Exports, read back by the libraries that they are for."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
from datasets import load_dataset

import worlds
from motes import api
from motes.errors import ConfigurationError, MissingExtraError, RunDirectoryError, UnknownNameError
from motes.lab import export, method_from_spec, read_records, read_traces
from motes.lab.show.exporting import KINDS, rollouts
from test_cli import motes
from test_lab import SMALL, run


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("evaluation")
    run(directory)
    return directory


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class TestRuns:
    def test_pandas_reads_them_in_one_line(self, directory, tmp_path):
        assert export(directory, tmp_path / "runs.parquet") == 50
        frame = pandas.read_parquet(tmp_path / "runs.parquet")
        records = read_records(directory / "records.jsonl")
        assert len(frame) == 50
        assert list(frame.problem_id) == [record.problem_id for record in records]
        accuracy = frame.groupby(["method", "budget"]).correct.mean()
        for (method, budget), share in accuracy.items():
            cell = [record for record in records if (record.method, record.budget) == (method, budget)]
            assert share == sum(record.outcome == "correct" for record in cell) / len(cell)
        assert frame.generated_tokens.sum() == sum(record.usage.generated_tokens for record in records)
        for row, record in zip(frame.itertuples(), records, strict=True):
            assert {one["answer"]: one["mass"] for one in row.posterior} == record.posterior
            assert tuple(row.answers) == record.answers

    def test_both_forms_hold_the_same(self, directory, tmp_path):
        export(directory, tmp_path / "runs.parquet")
        export(directory, tmp_path / "runs.jsonl")
        assert pyarrow.parquet.read_table(tmp_path / "runs.parquet").to_pylist() == rows(tmp_path / "runs.jsonl")


class TestRollouts:
    def test_distinct_answers_with_copies_and_weight(self, directory):
        found: dict = {}
        for rollout in rollouts(directory):
            found.setdefault(rollout.key, []).append(rollout)
        records = {record.key: record for record in read_records(directory / "records.jsonl")}
        assert found.keys() == records.keys()
        for key, those in found.items():
            record = records[key]
            assert sum(one.copies for one in those) == len(record.answers)
            assert sum(one.weight for one in those) == pytest.approx(1)
            mass: dict = {}
            for one in those:
                mass[one.answer] = mass.get(one.answer, 0) + one.weight
            assert mass == pytest.approx(record.posterior, rel=1e-4)
            assert record.text in [one.text for one in those]
            for one in those:
                assert one.right == (one.answer == record.reference)

    def test_scores_are_the_reward_models(self, directory):
        reward = worlds.reward_model()
        problem = next(problem for problem in SMALL.problems())
        rollout = next(one for one in rollouts(directory) if one.key[:2] == (problem.id, "pf") and one.key[2] == 4)
        result = api.solve(
            problem, lm=worlds.StoryLanguageModel(), reward=reward, method=method_from_spec("pf", 4),
            seed=next(t.run_seed for t in read_traces(directory / "traces.jsonl.gz") if t.key == rollout.key),
        )  # fmt: skip
        last = {t.text: score for t, score in zip(result.trajectories, result.scores, strict=True)}
        assert rollout.scores[-1] == pytest.approx(last[rollout.text], rel=1e-5)


class TestDataSets:
    """As TRL documents its forms."""

    def test_unpaired_preference(self, directory, tmp_path):
        export(directory, tmp_path / "rollouts.jsonl", "rollouts")
        data = load_dataset("json", data_files=str(tmp_path / "rollouts.jsonl"), split="train", cache_dir=str(tmp_path))
        assert {"prompt", "completion", "label"} <= set(data.column_names)
        for row in data:
            assert row["prompt"][-1]["role"] == "user"
            assert [turn["role"] for turn in row["completion"]] == ["assistant"]
            assert row["completion"][0]["content"] == "".join(row["steps"]).strip()
            assert isinstance(row["label"], bool)
            assert len(row["steps"]) == len(row["scores"])

    def test_preference(self, directory, tmp_path):
        export(directory, tmp_path / "pairs.jsonl", "pairs")
        data = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path))
        references = {problem.id: problem.answer for problem in SMALL.problems()}
        assert len(data) > 0
        for row in data:
            box = f"\\boxed{{{references[row['problem_id']]}}}"
            assert box in row["chosen"][0]["content"]
            assert box not in row["rejected"][0]["content"]
        seen = [(row["problem_id"], turn["content"]) for row in data for turn in (*row["chosen"], *row["rejected"])]
        assert len(seen) == len(set(seen))
        for _, group in pandas.DataFrame(data.to_list()).groupby("problem_id"):
            assert group.rejected_score.is_monotonic_decreasing

    def test_stepwise_supervision(self, directory, tmp_path):
        count = export(directory, tmp_path / "steps.jsonl", "steps")
        data = load_dataset("json", data_files=str(tmp_path / "steps.jsonl"), split="train", cache_dir=str(tmp_path))
        assert len(data) == count
        assert {row["method"] for row in data} == {"pf", "bon"}  # greedy is never scored
        for row in data:
            assert isinstance(row["prompt"], str)
            assert len(row["completions"]) == len(row["labels"]) == len(row["scores"])
            assert row["labels"] == [score >= 0.5 for score in row["scores"]]
            assert all(step.strip("\n") == step != "" for step in row["completions"])
        export(directory, tmp_path / "strict.jsonl", "steps", threshold=1.0)
        assert not any(label for row in rows(tmp_path / "strict.jsonl") for label in row["labels"])

    def test_a_run_done_again_counts_once(self, tmp_path):
        class Broken:
            async def score(self, trajectories):
                raise ZeroDivisionError

        evaluation = dataclasses.replace(SMALL, methods=("bon",), limit=2)
        run(tmp_path / "run", evaluation, reward=Broken())
        with pytest.raises(ConfigurationError, match="has no rollouts to write"):
            export(tmp_path / "run", tmp_path / "out.jsonl", "rollouts")
        run(tmp_path / "run", evaluation)
        found = list(rollouts(tmp_path / "run"))
        assert sum(one.copies for one in found) == 2 * (1 + 4)


class TestBadInput:
    def test_says_what_to_do(self, directory, tmp_path, monkeypatch):
        with pytest.raises(ConfigurationError, match=r"must end in \.parquet or \.jsonl"):
            export(directory, tmp_path / "runs.csv")
        with pytest.raises(UnknownNameError, match="did you mean 'steps'"):
            export(directory, tmp_path / "runs.jsonl", "step")
        with pytest.raises(ConfigurationError, match="threshold is a score"):
            export(directory, tmp_path / "runs.jsonl", "runs", threshold=0.5)
        with pytest.raises(RunDirectoryError, match="holds no evaluation"):
            export(tmp_path, tmp_path / "runs.jsonl")
        (tmp_path / "file").write_text("")
        with pytest.raises(RunDirectoryError, match="cannot be written"):
            export(directory, tmp_path / "file" / "runs.jsonl")
        run(tmp_path / "plain", dataclasses.replace(SMALL, limit=1), traces=False)
        with pytest.raises(RunDirectoryError, match="holds no traces"):
            export(tmp_path / "plain", tmp_path / "steps.jsonl", "steps")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtraError, match=r"motes\[parquet\]"):
            export(directory, tmp_path / "runs.parquet")
        assert not list(tmp_path.glob("*.jsonl*"))
        assert not list(tmp_path.glob("*.parquet*"))

    def test_what_was_there_stays_where_writing_fails(self, directory, tmp_path, monkeypatch):
        file = tmp_path / "runs.jsonl"
        file.write_text("before")

        def fails(path, rows):
            path.write_text("half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("motes.lab.show.exporting._json_lines", fails)
        with pytest.raises(RunDirectoryError, match="No space left"):
            export(directory, file)
        assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]
        assert file.read_text() == "before"


@pytest.mark.parametrize("kind", KINDS)
def test_command(capsys, directory, tmp_path, kind):
    code, out, err = motes(capsys, "export", directory, tmp_path / "out.jsonl", "--rows", kind)
    assert (code, err) == (0, "")
    assert out == f"{len(rows(tmp_path / 'out.jsonl'))} rows in {tmp_path / 'out.jsonl'}\n"
