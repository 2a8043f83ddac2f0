"""Put the parts of an evaluation together: those that `motes eval --shard` made on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from motes.errors import RunDirectoryError
from motes.lab.evaluation import RECORDS, TRACES, claim, differing, read_configuration
from motes.lab.flops import Sizes
from motes.lab.records import Key, RecordStore, RunRecord, read_records
from motes.lab.traces import TraceStore, read_traces


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


def merge(out: Path, parts: Sequence[Path]) -> Merged:
    """Add to the evaluation in `out`, made if missing, what the directories `parts` hold of it.

    Each must hold the same evaluation, whichever of its runs they did. Of a run that several have, one that did not
    fail is kept, the first of them; a failed run never replaces another. The parts stay as they are, and the result is
    a directory like any other: `motes eval` does what is missing, `motes report` reports it. Merging again adds what
    is new.

    Raises:
        RunDirectoryError: a directory holds no evaluation, or another one; or `out` cannot be written. Nothing was
            added then.
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
    held = [(part, read_records(part / RECORDS)) for part in parts if part.resolve() != out.resolve()]
    with RecordStore(out / RECORDS) as store:
        claim(out, first)
        kept: dict[Key, RunRecord] = {record.key: record for record in store.records}
        sources: dict[Key, Path] = {}
        repeated = 0
        for part, records in held:
            Sizes.read(part).record(out)
            for record in records:
                before = kept.get(record.key)
                if before is not None and (before.outcome != "failed" or record.outcome == "failed"):
                    repeated += 1
                    continue
                repeated += before is not None
                kept[record.key], sources[record.key] = record, part
        with TraceStore(out / TRACES) as traces:
            for part in dict.fromkeys(sources.values()):
                for trace in read_traces(part / TRACES):
                    if sources.get(trace.key) == part:
                        traces.append(trace)
        store.append(*(kept[key] for key in sources))
    failed = sum(record.outcome == "failed" for record in kept.values())
    return Merged(len(kept), failed, max(0, first.get("num_runs", 0) - len(kept)), len(sources), repeated)
