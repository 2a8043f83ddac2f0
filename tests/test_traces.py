"""Traces: what happened inside a run, kept beside its record."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import motes
import scripted
import worlds
from motes import api
from motes.core import Failure
from motes.errors import EngineError, RunDirectoryError
from motes.lab import Evaluation, Trace, TraceStore, evaluate, method_from_spec, read_records, read_traces
from motes.lab.run.traces import whole_members

METHODS = (
    "pf", "pg:num_sweeps=2", "islands:num_islands=2", "adaptive", "beam:beam_width=2", "bon", "greedy",
    "refine:rounds=1", "pdr",
)  # fmt: skip
SMALL = Evaluation(
    methods=METHODS, budgets=(8,), limit=3, lm="worlds:language_model", reward="worlds:reward_model", seeds=(0, 1)
)
PROBLEM = SMALL.problems()[0]


def solved(spec: str, budget: int = 8):
    return api.solve(
        PROBLEM,
        lm=worlds.StoryLanguageModel(),
        reward=worlds.reward_model(),
        method=method_from_spec(spec, budget),
        seed=3,
    )


def traced(spec: str) -> Trace:
    return Trace.of(("a", spec, 8, 0), solved(spec))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("traced")
    asyncio.run(evaluate(SMALL, directory))
    return directory


def trace_start(trace: Trace, node: int) -> int:
    """The first step before a node."""
    while (parent := trace.nodes[node].parent) is not None:
        node = parent
    return node


def own_prompt(trajectory, problem):
    return None if trajectory.problem is problem else trajectory.problem.question


class TestTrace:
    @pytest.mark.parametrize("spec", METHODS)
    def test_holds_the_whole_genealogy(self, spec):
        result = solved(spec)
        trace = Trace.of(("a", spec, 8, 0), result)
        assert len(trace.rounds) == len(result.records)
        for one, record in zip(trace.rounds, result.records, strict=True):
            assert [trace.text(node) for node in one.nodes] == [t.text for t in record.trajectories]
            assert list(one.finished) == [t.finished for t in record.trajectories]
            assert one.ancestors == tuple(record.ancestors)
            assert (one.sweep, one.chain, one.resampled, one.usage) == (
                record.sweep, record.chain, record.resampled, record.usage,
            )  # fmt: skip
            weights = [np.nan if weight is None else weight for weight in one.log_weights]
            known = np.where(np.isfinite(record.log_weights), record.log_weights, np.nan)
            assert weights == pytest.approx(known, rel=1e-5, nan_ok=True)
            assert one.ess == pytest.approx(record.ess, rel=1e-5)
        assert [trace.text(node) for node in trace.final.nodes] == [t.text for t in result.trajectories]
        assert all(node.parent is None or node.parent < place for place, node in enumerate(trace.nodes))

    @pytest.mark.parametrize("spec", METHODS)
    def test_steps_are_kept_once(self, spec):
        result = solved(spec)
        ends = [t for record in result.records for t in record.trajectories] + list(result.trajectories)
        ends += [t for record in result.records if record.moves for t in record.moves.trajectories]
        steps = {id(node.step) for end in ends for node in end.path}
        assert len(Trace.of(("a", spec, 8, 0), result).nodes) == len(steps)

    def test_steps_have_scores_where_the_method_asked_for_them(self):
        trace = traced("pf")
        assert all(node.score is not None for node in trace.nodes)
        for one in trace.rounds:
            for node, score in zip(one.nodes, one.scores, strict=True):
                assert trace.nodes[node].score == score  # aggregation "last"
        assert all(node.score is not None for node in traced("bon").nodes)  # a finished answer's steps are all scored
        assert all(node.score is None for node in traced("greedy").nodes)

    def test_round_trip(self):
        for spec in METHODS:
            trace = traced(spec)
            assert Trace.from_json(trace.to_json()) == trace

    def test_moves_say_what_was_made_of_what(self):
        draw = scripted.drafts(2, 3, 4)
        ill = Failure(EngineError("not this one"))

        def answer(prompt, seed):
            if (old := scripted.reading(prompt)) is None:
                return draw(seed)
            return ill if old == scripted.box(4) else scripted.box(2 + seed % 2)

        problem = motes.prompt("boxed").problem(scripted.QUESTION)
        result = scripted.solve(scripted.Scripted(answer), motes.Refine(9, 1), problem=problem, seed=3)
        record = result.records[1]
        trace = Trace.of(("a", "refine", 18, 0), result)
        assert trace.rounds[0].moves is None
        moves = trace.rounds[1].moves
        assert moves.accepted == tuple(record.moves.accepted)
        assert {True, False} == set(moves.accepted)
        refused = {i for i, t in enumerate(record.moves.trajectories) if t.error is not None}
        assert moves.errors == {str(i): "not this one" for i in refused} != {}
        for i, (node, proposal) in enumerate(zip(moves.nodes, record.moves.trajectories, strict=True)):
            if i in refused:
                assert node is None
                continue
            assert trace.text(node) == proposal.text
            assert trace.nodes[trace_start(trace, node)].prompt == own_prompt(proposal, problem)
            assert trace.nodes[node].score == pytest.approx(record.moves.scores[i])
        assert [trace.nodes[node].prompt for node in trace.rounds[0].nodes] == [None] * 9
        assert Trace.from_json(trace.to_json()) == trace

    def test_first_steps_have_the_prompts_that_are_not_the_runs(self):
        for spec in ("refine:rounds=1", "pdr"):
            trace = traced(spec)
            drafted = {trace_start(trace, node) for node in trace.rounds[0].nodes}
            moved = {trace_start(trace, node) for node in trace.rounds[1].moves.nodes}
            assert moved
            for number, node in enumerate(trace.nodes):
                assert (node.prompt is not None) == (number in moved - drafted)
                assert node.prompt is None or PROBLEM.question in node.prompt

    @pytest.mark.parametrize(
        "change",
        [
            {"nodes": [999, 999]},
            {"nodes": [0]},
            {"accepted": [True]},
            {"accepted": [1, 0]},
            {"errors": {"0": 3}},
            {"nodes": [True, None]},
        ],
    )
    def test_moves_that_cannot_be(self, change):
        result = scripted.solve(scripted.Scripted(lambda prompt, seed: scripted.box(3)), motes.Refine(2, 1))
        fields = json.loads(Trace.of(("a", "refine", 4, 0), result).to_json())
        fields["rounds"][1]["moves"] |= change
        with pytest.raises(ValueError, match=r".+"):
            Trace.from_json(json.dumps(fields))

    def test_a_trace_of_an_earlier_version_has_none(self):
        trace = traced("pf")
        fields = json.loads(trace.to_json())
        for part in (*fields["rounds"], *fields["nodes"]):
            part.pop("moves", None)
            part.pop("prompt", None)
        assert Trace.from_json(json.dumps(fields)) == trace

    def test_later_fields_are_passed_over(self):
        trace = traced("pf")
        fields = json.loads(trace.to_json())
        fields["nodes"][0]["new"] = fields["rounds"][0]["new"] = fields["final"]["new"] = fields["new"] = 1
        assert Trace.from_json(json.dumps(fields)) == trace

    @pytest.mark.parametrize("line", ["{}", "[]", "x", "3", '{"problem_id": "a", "nodes": [3]}'])
    def test_what_is_no_trace(self, line):
        with pytest.raises(ValueError, match=r".+"):
            Trace.from_json(line)

    def test_dropped_particles_say_why(self):
        class Picky(worlds.StoryLanguageModel):
            async def extend(self, trajectories, sampling, seeds):
                from motes.errors import EngineError

                steps = list(await super().extend(trajectories, sampling, seeds))
                if any(t.depth == 1 for t in trajectories):
                    return [*steps[:-1], Failure(EngineError("not this one"))]
                return steps

        result = api.solve(
            PROBLEM, lm=Picky(merges_calls=False), reward=worlds.reward_model(), method=method_from_spec("pf", 4)
        )
        trace = Trace.of(("a", "pf", 4, 0), result)
        second = trace.rounds[1]
        assert second.errors == {"3": "not this one"}
        assert second.finished[3] == "failed"
        assert second.log_weights[3] is None
        assert Trace.from_json(trace.to_json()) == trace


class TestEvaluation:
    def test_every_run_has_a_trace_that_agrees_with_its_record(self, directory):
        records = {record.key: record for record in read_records(directory / "records.jsonl")}
        traces = {trace.key: trace for trace in read_traces(directory / "traces.jsonl.gz")}
        assert traces.keys() == records.keys()
        for key, trace in traces.items():
            record = records[key]
            assert trace.run_seed == record.run_seed
            assert len(trace.final.nodes) == len(record.answers)
            assert record.text in [trace.text(node) for node in trace.final.nodes]
            assert trace.messages[-1]["content"] == next(p.question for p in SMALL.problems() if p.id == key[0])
            assert len(trace.rounds) == record.rounds

    def test_any_tool_that_knows_gzip_reads_it(self, directory):
        with gzip.open(directory / "traces.jsonl.gz", "rt") as file:
            lines = [json.loads(line) for line in file]
        assert len(lines) == len(SMALL.plan())

    def test_they_can_be_left_out(self, tmp_path):
        asyncio.run(evaluate(SMALL, tmp_path, traces=False))
        assert not (tmp_path / "traces.jsonl.gz").exists()
        assert list(read_traces(tmp_path / "traces.jsonl.gz")) == []

    def test_failed_runs_leave_what_there_was(self, tmp_path):
        class Nonsense:
            async def score(self, trajectories):
                raise ZeroDivisionError("no score today")

        evaluation = dataclasses.replace(SMALL, methods=("pf",), seeds=(0,))
        asyncio.run(evaluate(evaluation, tmp_path, reward=Nonsense()))
        asyncio.run(evaluate(evaluation, tmp_path))
        traces = list(read_traces(tmp_path / "traces.jsonl.gz"))
        assert [len(trace.rounds) > 0 for trace in traces] == [False] * 3 + [True] * 3
        log = (tmp_path / "log.txt").read_text()
        assert log.count("ZeroDivisionError: no score today") == 3
        assert "Traceback" in log
        assert "done: 3 of 3 runs (3 failed)" in log
        assert "3 runs, 0 of them done before" in log


class TestFile:
    def test_a_torn_end_is_passed_over_and_cut_off(self, tmp_path):
        first, second, path = traced("pf"), traced("bon"), tmp_path / "t.gz"
        with TraceStore(path) as store:
            store.append(first)
            end = path.stat().st_size
            store.append(second)
        content = path.read_bytes()
        assert whole_members(path) == len(content)
        for cut in (end + 1, end + 5, end + 11, (end + len(content)) // 2, len(content) - 9, len(content) - 1):
            path.write_bytes(content[:cut])
            assert list(read_traces(path)) == [first]
            with TraceStore(path) as store:
                assert path.stat().st_size == end
                store.append(second)
            assert path.read_bytes() == content

    @pytest.mark.parametrize("tail", [b"\x00" * 40, b"nonsense", b"\x1f\x8b"])
    def test_what_a_crash_leaves_at_the_end_is_cut_off(self, tmp_path, tail):
        trace, path = traced("pf"), tmp_path / "t.gz"
        with TraceStore(path) as store:
            store.append(trace)
        path.write_bytes(path.read_bytes() + tail)
        assert list(read_traces(path)) == [trace]
        with TraceStore(path) as store:
            store.append(trace)
        assert list(read_traces(path)) == [trace, trace]

    def test_damage_inside_is_an_error(self, tmp_path):
        path = tmp_path / "t.gz"
        with TraceStore(path) as store:
            store.append(traced("pf"))
            size = path.stat().st_size
            store.append(traced("pf"))
            store.append(traced("bon"))
        content = bytearray(path.read_bytes())
        content[size + 30 : size + 60] = b"\xff" * 30
        path.write_bytes(content)
        with pytest.raises(RunDirectoryError, match=f"damaged after byte {size}"):
            list(read_traces(path))
        path.write_bytes(gzip.compress(b'{"no": "trace"}\n'))
        with pytest.raises(RunDirectoryError, match="damaged"):
            list(read_traces(path))

    def test_a_full_disk_stops_the_evaluation_and_loses_nothing(self, tmp_path, monkeypatch):
        evaluation = dataclasses.replace(SMALL, methods=("pf",))
        write, room = worlds.os.write, [9_000]

        def limited(file, data):
            room[0] -= len(data)
            if room[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data)

        monkeypatch.setattr("motes.lab.run.appending.os.write", limited)
        with pytest.raises(RunDirectoryError, match="make room, then run the same command"):
            asyncio.run(evaluate(evaluation, tmp_path, concurrency=1))
        monkeypatch.undo()
        kept = read_records(tmp_path / "records.jsonl")
        assert 0 < len(kept) < 6
        assert "stopped after" in (tmp_path / "log.txt").read_text()
        progress = asyncio.run(evaluate(evaluation, tmp_path))
        assert (progress.resumed, progress.done) == (len(kept), 6)
        assert {trace.key for trace in read_traces(tmp_path / "traces.jsonl.gz")} == {
            run.key for run in evaluation.plan()
        }
