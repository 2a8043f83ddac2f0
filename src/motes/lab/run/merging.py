"""Merge the parts of an evaluation, which `motes eval --shard` did on several machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motes.errors import RunDirectoryError
from motes.lab.run.calls import copy_calls
from motes.lab.run.damage import Damages, count_or_refuse
from motes.lab.run.evaluation import (
    RECORDS,
    TRACES,
    check,
    claim,
    differing,
    foreign_to,
    read_configuration,
    read_problem_ids,
)
from motes.lab.run.flops import Sizes
from motes.lab.run.records import Key, RecordStore, RunRecord, read_records
from motes.lab.run.traces import TraceStore, read_traces


@dataclass(frozen=True)
class Merged:
    """The result of merging.

    Attributes:
        runs: number of runs in the merged directory.
        failed: number of these that failed.
        missing: number of the evaluation's runs that no part has done.
        added: number of new runs in the merged directory.
        repeated: number of runs that were found in more than one place, and kept once.
    """

    runs: int
    failed: int
    missing: int
    added: int
    repeated: int


def merge(out: Path, parts: Sequence[Path], damages: Damages | None = None) -> Merged:
    """Add the runs of the directories `parts` to the evaluation in `out`, which is created if missing.

    All parts must be of the same evaluation. If several parts have done a run, the first result that is no failure is
    kept; a failed run never replaces another. The parts stay unchanged, and their provenance is copied, see
    `motes.lab.run.provenance`. The result is an ordinary directory: `motes eval` does the missing runs, `motes report`
    reports it. Merging again adds new runs.

    Args:
        damages: counts records and traces that cannot be read, or whose runs do not belong to the evaluation; they are
            left out. None: the first one is an error.

    Raises:
        RunDirectoryError: a directory holds no evaluation, or another one; or two parts hold different results of one
            run, or more runs than the evaluation has; or `out` cannot be written. Nothing was added then.
    """
    # 1. All parts must be of one evaluation.
    if not parts:
        raise RunDirectoryError("nothing to merge: name the directories of the parts")
    first = read_configuration(parts[0])
    for part in parts[1:]:
        if different := differing(read_configuration(part), first):
            raise RunDirectoryError(
                f"{part} holds another evaluation than {parts[0]}: {'; '.join(different)}. "
                "Only parts of one evaluation can be merged"
            )
    ids = read_problem_ids(parts[0], count_or_refuse(damages, "lists of problems"))
    damaged, foreign = count_or_refuse(damages, "records"), foreign_to(first, ids)
    others = [part for part in parts if part.resolve() != out.resolve()]
    records_of_parts = [(part, read_records(part / RECORDS, damaged, foreign)) for part in others]
    check(out, first)
    with RecordStore(out / RECORDS, damaged, foreign) as store:
        # 2. Choose a record for each run.
        merged: dict[Key, RunRecord] = {record.key: record for record in store.records}
        sources: dict[Key, Path] = {}
        repeated = 0
        for part, records in records_of_parts:
            for record in records:
                before = merged.get(record.key)
                if before is not None and "failed" not in (before.outcome, record.outcome):
                    _require_same(before, record, sources.get(record.key, out), part)
                repeated += before is not None
                if before is None or (before.outcome == "failed" and record.outcome != "failed"):
                    merged[record.key], sources[record.key] = record, part
        _require_planned(merged, first)
        # 3. Write, the records last.
        claim(out, first, ids)
        copy_calls(others, out, count_or_refuse(damages, "provenance lines"))
        for part in others:
            Sizes.read(part, count_or_refuse(damages, "models' sizes")).record(out)
        with TraceStore(out / TRACES) as traces:
            for part in dict.fromkeys(sources.values()):
                for trace in read_traces(part / TRACES, count_or_refuse(damages, "traces")):
                    if sources.get(trace.key) == part:
                        traces.append(trace)
        store.append(*(merged[key] for key in sources))
    failed = sum(record.outcome == "failed" for record in merged.values())
    return Merged(len(merged), failed, max(0, first.get("num_runs", 0) - len(merged)), len(sources), repeated)


def _require_same(one: RunRecord, other: RunRecord, part: Path, other_part: Path) -> None:
    """Refuse two records of a run with different results. Grades and times may differ."""
    problem, method, budget, seed = one.key
    for name in ("run_seed", "answer", "answers", "text"):
        if getattr(one, name) != getattr(other, name):
            raise RunDirectoryError(
                f"{part} and {other_part} hold different results of the run {problem!r}, {method} at {budget}, seed "
                f"{seed} ({name} differs): the same run gives the same result, so leave out the part that is not of "
                "this evaluation"
            )


def _require_planned(records: Mapping[Key, RunRecord], configuration: Mapping[str, Any]) -> None:
    """Refuse more problems or runs than the evaluation has."""
    numbers = {"problems": len({problem for problem, *_ in records}), "runs": len(records)}
    for kind, number in numbers.items():
        if number > (planned := configuration.get(f"num_{kind}", number)):
            raise RunDirectoryError(
                f"the parts hold {number} {kind}, and the evaluation has {planned}: leave out the part of another one"
            )
