"""An evaluation in parts, on machines that know nothing of each other; and its plan before anything is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from motes.errors import ConfigurationError, RunDirectoryError
from motes.lab import Report, Shard, estimate, merge, read_records, read_traces
from motes.lab.run.flops import Sizes
from motes.lab.run.prices import Prices
from motes.lab.show.tables import plan_table
from test_cli import motes
from test_lab import SMALL, results, run

FAKE = ("--model", "worlds:language_model", "--reward", "worlds:reward_model")
ASK = ("eval", "--methods", "pf,bon,greedy", "--budgets", "1,4", "--limit", "10", *FAKE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    run(directory)
    return directory


@pytest.fixture
def parts(tmp_path) -> list[Path]:
    directories = [tmp_path / f"part-{number}" for number in (1, 2, 3)]
    for number, directory in enumerate(directories, start=1):
        run(directory, shard=Shard(number, 3))
    return directories


def kept(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class TestShard:
    @pytest.mark.parametrize("total", [1, 3, 7, 13])
    def test_every_run_is_in_exactly_one_part(self, total):
        keys = [planned.key for number in range(1, total + 1) for planned in SMALL.plan(Shard(number, total))]
        assert sorted(keys) == sorted(planned.key for planned in SMALL.plan())

    def test_parts_are_of_even_size(self):
        sizes = [len(SMALL.plan(Shard(number, 3))) for number in (1, 2, 3)]
        assert sizes == [20, 15, 15]

    @pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "3", "a/b", "-1/2", "1/2/3", ""])
    def test_what_is_no_part(self, text):
        with pytest.raises(ConfigurationError, match="written I/N, I from 1 to N"):
            Shard.parse(text)

    def test_reads_what_it_writes(self):
        assert Shard.parse(" 2/8 ") == Shard(2, 8)
        assert str(Shard(2, 8)) == "2/8"


class TestMerge:
    def test_parts_make_the_whole(self, parts, whole, tmp_path):
        merged = merge(tmp_path / "all", parts)
        assert dataclasses.astuple(merged) == (50, 0, 0, 50, 0)
        assert results(tmp_path / "all") == results(whole)
        traces = {trace.key: trace for trace in read_traces(tmp_path / "all" / "traces.jsonl.gz")}
        assert traces == {trace.key: trace for trace in read_traces(whole / "traces.jsonl.gz")}
        assert Report.load(tmp_path / "all").csv().splitlines()[0] == Report.load(whole).csv().splitlines()[0]
        assert (tmp_path / "all" / "config.json").read_bytes() == (whole / "config.json").read_bytes()

    def test_merging_again_adds_what_is_new_and_nothing_twice(self, parts, whole, tmp_path):
        before = kept(parts[0])
        assert merge(tmp_path / "all", parts[:2]).missing == 15
        again = merge(tmp_path / "all", parts)
        assert (again.added, again.repeated, again.missing) == (15, 35, 0)
        content = kept(tmp_path / "all")
        assert merge(tmp_path / "all", parts).added == 0
        assert kept(tmp_path / "all") == content
        assert kept(parts[0]) == before
        assert results(tmp_path / "all") == results(whole)

    def test_a_part_can_take_the_others_in(self, parts, whole):
        assert merge(parts[0], parts).runs == 50
        assert results(parts[0]) == results(whole)

    def test_what_is_missing_is_done_by_resuming(self, parts, whole, tmp_path):
        merge(tmp_path / "all", parts[1:])
        progress = run(tmp_path / "all")
        assert (progress.resumed, progress.done) == (30, 50)
        assert results(tmp_path / "all") == results(whole)

    def test_failed_runs_give_way_to_others(self, whole, tmp_path):
        class Broken:
            async def score(self, trajectories):
                raise ZeroDivisionError

        run(tmp_path / "broken", reward=Broken())
        merged = merge(tmp_path / "all", [tmp_path / "broken", whole])
        assert (merged.runs, merged.failed, merged.repeated) == (50, 0, 50)
        assert results(tmp_path / "all") == results(whole)
        assert merge(tmp_path / "all", [tmp_path / "broken"]).added == 0
        assert results(tmp_path / "all") == results(whole)

    def test_old_directories_without_traces(self, parts, tmp_path):
        (parts[1] / "traces.jsonl.gz").unlink()
        merge(tmp_path / "all", parts)
        assert len(list(read_traces(tmp_path / "all" / "traces.jsonl.gz"))) == 35

    def test_another_evaluation_is_refused(self, parts, tmp_path):
        run(tmp_path / "other", dataclasses.replace(SMALL, limit=4))
        with pytest.raises(RunDirectoryError, match=r"holds another evaluation than .*: limit is 10 there and 4 here"):
            merge(tmp_path / "all", [parts[0], tmp_path / "other"])
        assert not (tmp_path / "all").exists()
        before = kept(tmp_path / "other")
        with pytest.raises(RunDirectoryError, match="another configuration: limit is 4 there and 10 here"):
            merge(tmp_path / "other", parts)
        assert kept(tmp_path / "other") == before
        with pytest.raises(RunDirectoryError, match="holds no evaluation"):
            merge(tmp_path / "all", [tmp_path / "nowhere"])
        with pytest.raises(RunDirectoryError, match="nothing to merge"):
            merge(tmp_path / "all", [])


class TestPlan:
    def test_without_records_it_is_assumed(self, tmp_path):
        found = {(one.method, one.budget): one for one in estimate(SMALL, tmp_path / "new", answer_tokens=100)}
        assert not (tmp_path / "new").exists()
        chief = found["pf", 4]
        assert (chief.runs, chief.done, chief.seconds, chief.source) == (10, 0, None, "assumed")
        assert chief.usage.generated_tokens == 10 * 4 * 100
        assert chief.usage.reward_tokens == chief.usage.generated_tokens + chief.usage.prefill_tokens
        assert chief.usage.prefill_tokens == sum(len(problem.question) // 4 for problem in SMALL.problems())
        assert found["greedy", 1].usage.reward_tokens == 0

    def test_with_records_it_is_what_they_say(self, whole, tmp_path):
        run(tmp_path, shard=Shard(1, 2))
        spent = {key: record.usage for key, record in results(whole).items()}
        for one in estimate(SMALL, tmp_path):
            own = [usage for key, usage in spent.items() if key[1:3] == (one.method, one.budget)]
            assert (one.runs, one.done, one.source) == (10, 5, "recorded")
            assert one.seconds > 0
            left = sum(usage.generated_tokens for usage in own) / 2
            assert one.usage.generated_tokens == pytest.approx(left, rel=0.5)
        assert all(one.left == 0 and one.usage.total_tokens == 0 for one in estimate(SMALL, whole))

    def test_other_cells_say_how_long_trajectories_are(self, tmp_path):
        run(tmp_path)
        path = tmp_path / "records.jsonl"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if '"greedy"' in line))
        records = read_records(path)
        mean = sum(record.usage.generated_tokens for record in records) / len(records)
        found = {(one.method, one.budget): one for one in estimate(SMALL, tmp_path)}
        assert found["bon", 4].source == "scaled"
        assert found["bon", 4].usage.generated_tokens == round(10 * 4 * mean)

    def test_table(self, tmp_path):
        section = plan_table(
            estimate(SMALL, tmp_path, shard=Shard(1, 5)),
            sizes=Sizes(1000, 2000),
            prices=Prices(generated=1e6),
            concurrency=8,
        )
        assert len(section.rows) == 6
        assert section.rows[-1][:4] == ["all", "", "10", "0"]
        assert float(section.rows[-1][-1].replace(",", "")) == pytest.approx(400 * 2 * 11, rel=1e-3)
        assert section.note.endswith("Estimated from answers of 400 tokens, which is an assumption.")


class TestCommands:
    def test_shards_then_merge_then_report(self, capsys, tmp_path, whole):
        for number in (1, 2):
            code, out, err = motes(capsys, *ASK, "--shard", f"{number}/2", "--out", tmp_path / str(number))
            assert code == 0
            assert "25/25 runs" in err
        code, out, err = motes(capsys, "merge", tmp_path / "all", tmp_path / "1")
        assert code == 0
        assert "25 runs are missing and 0 failed" in err
        code, out, err = motes(capsys, "merge", tmp_path / "all", tmp_path / "1", tmp_path / "2")
        assert (code, err) == (0, "")
        assert "50 runs in" in out
        assert results(tmp_path / "all") == results(whole)
        assert motes(capsys, "report", "--no-plots", tmp_path / "all")[0] == 0

    def test_a_dry_run_does_nothing(self, capsys, tmp_path):
        code, out, err = motes(capsys, *ASK, "--dry-run", "--shard", "1/2", "--out", tmp_path / "new")
        assert (code, err) == (0, "")
        assert "arithmetic: 5 problems (part 1/2), to" in out
        assert "all " in out
        assert not (tmp_path / "new").exists()
        motes(capsys, *ASK, "--shard", "1/2", "--out", tmp_path / "new")
        before = kept(tmp_path / "new")
        code, out, err = motes(capsys, *ASK, "--dry-run", "--prices", "generated=1", "--out", tmp_path / "new")
        assert "Estimated from the runs recorded so far. About 0:00:0" in out
        assert "money" in out
        assert kept(tmp_path / "new") == before

    @pytest.mark.parametrize(
        ("words", "says"),
        [(("--shard", "3/2"), "a shard is written I/N"), (("--prices", "generated=1"), "goes with --dry-run")],
    )
    def test_bad_input(self, capsys, tmp_path, words, says):
        code, _, err = motes(capsys, *ASK, "--out", tmp_path / "new", *words)
        assert code == 2
        assert says in err
        assert not (tmp_path / "new").exists()
