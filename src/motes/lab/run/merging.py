"""Put the parts of an evaluation together: those that `motes eval --shard` made on several machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motes.errors import RunDirectoryError
from motes.lab.run.damage import Damages, told_to
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
from motes.lab.run.provenance import sign_merged
from motes.lab.run.records import Key, RecordStore, RunRecord, read_records
from motes.lab.run.traces import TraceStore, read_traces


@dataclass(frozen=True)
class Merged:
    """What merging came to.

    Attributes:
        runs: that the merged directory holds now; `failed`: of these; `missing`: that the evaluation asks for besides.
        added: new in it. repeated: found in more than one place, and kept once.
    """

    runs: int
    failed: int
    missing: int
    added: int
    repeated: int


def merge(out: Path, parts: Sequence[Path], damages: Damages | None = None) -> Merged:
    """Add to the evaluation in `out`, made if missing, what the directories `parts` hold of it.

    What each of them was made with is kept, see `motes.lab.run.provenance`.

    Each must hold the same evaluation, whichever of its runs they did. Of a run that several have, one that did not
    fail is kept, the first of them; a failed run never replaces another. The parts stay as they are, and the result is
    a directory like any other: `motes eval` does what is missing, `motes report` reports it. Merging again adds what
    is new.

    Args:
        damages: counts records and traces that cannot be read, or are of runs that the evaluation does not ask for:
            they are left out. None: the first one is an error.

    Raises:
        RunDirectoryError: a directory holds no evaluation, or another one; or two parts hold different results of one
            run, or more than the evaluation asks for; or `out` cannot be written. Nothing was added then.
    """
    if not parts:
        raise RunDirectoryError("nothing to merge: name the directories of the parts")
    first = read_configuration(parts[0])
    for part in parts[1:]:
        if different := differing(read_configuration(part), first):
            raise RunDirectoryError(
                f"{part} holds another evaluation than {parts[0]}: {'; '.join(different)}. "
                "Only parts of one evaluation can be merged"
            )
    ids = read_problem_ids(parts[0], told_to(damages, "lists of problems"))
    damaged, foreign = told_to(damages, "records"), foreign_to(first, ids)
    others = [part for part in parts if part.resolve() != out.resolve()]
    held = [(part, read_records(part / RECORDS, damaged, foreign)) for part in others]
    check(out, first)
    with RecordStore(out / RECORDS, damaged, foreign) as store:
        kept: dict[Key, RunRecord] = {record.key: record for record in store.records}
        sources: dict[Key, Path] = {}
        repeated = 0
        for part, records in held:
            for record in records:
                before = kept.get(record.key)
                if before is not None and "failed" not in (before.outcome, record.outcome):
                    _require_same(before, record, sources.get(record.key, out), part)
                if before is not None and (before.outcome != "failed" or record.outcome == "failed"):
                    repeated += 1
                    continue
                repeated += before is not None
                kept[record.key], sources[record.key] = record, part
        _require_planned(kept, first)
        claim(out, first, ids)
        sign_merged(out, others, told_to(damages, "provenance lines"))
        for part in others:
            Sizes.read(part, told_to(damages, "models' sizes")).record(out)
        with TraceStore(out / TRACES) as traces:
            for part in dict.fromkeys(sources.values()):
                for trace in read_traces(part / TRACES, told_to(damages, "traces")):
                    if sources.get(trace.key) == part:
                        traces.append(trace)
        store.append(*(kept[key] for key in sources))
    failed = sum(record.outcome == "failed" for record in kept.values())
    return Merged(len(kept), failed, max(0, first.get("num_runs", 0) - len(kept)), len(sources), repeated)


def _require_same(one: RunRecord, other: RunRecord, part: Path, other_part: Path) -> None:
    """Two records of a run must be of one result; how it was graded may have changed since, and how long it took.

    Raises:
        RunDirectoryError: they are not.
    """
    for name in ("run_seed", "answer", "answers", "text"):
        if getattr(one, name) != getattr(other, name):
            raise RunDirectoryError(
                f"{part} and {other_part} hold different results of the run {_words(one.key)} ({name} differs): the "
                "same run gives the same result, so leave the part out that is not of this evaluation"
            )


def _require_planned(kept: Mapping[Key, RunRecord], configuration: Mapping[str, Any]) -> None:
    """Only problems and runs that the evaluation asks for, as far as their numbers tell.

    Raises:
        RunDirectoryError: there are more.
    """
    found = {"problems": len({problem for problem, *_ in kept}), "runs": len(kept)}
    for kind, number in found.items():
        if number > (asked := configuration.get(f"num_{kind}", number)):
            raise RunDirectoryError(
                f"the parts hold {number} {kind}, and the evaluation has {asked}: leave the part out that is of another"
            )


def _words(key: Key) -> str:
    problem, method, budget, seed = key
    return f"{problem!r}, {method} at {budget}, seed {seed}"
