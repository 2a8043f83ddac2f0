"""Export records and traces as rows for other tools: data frames, and data sets to train on.

`runs` is a table of the records. The other three are data sets in the forms that TRL reads (its documentation: "dataset
formats and types"), in conversational form if there is a choice, with further columns that TRL ignores:

    rollouts   prompt, completion, label          unpaired preference: every distinct answer, and whether it is right
    pairs      prompt, chosen, rejected           preference: a right answer and a wrong one
    steps      prompt, completions, labels        stepwise supervision: every step of an answer, and whether it is good
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from motes import files
from motes.errors import ConfigurationError, MissingExtraError, RunDirectoryError, UnknownNameError
from motes.lab.run.damage import Damage, Damages, count_or_refuse
from motes.lab.run.evaluation import RECORDS, TRACES, foreign_to, read_configuration, read_problem_ids
from motes.lab.run.records import Key, RunRecord, read_records
from motes.lab.run.traces import Trace, read_traces
from motes.text import json_line

Row = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One of the distinct texts in the final population of a run.

    Attributes:
        scores: of the steps; None for a step without one.
        right: whether the answer is right; None if it could not be graded.
        copies: number of final particles with this text.
        weight: their share of the posterior mass, in [0, 1].
    """

    key: Key
    messages: tuple[Mapping[str, str], ...]
    steps: tuple[str, ...]
    scores: tuple[float | None, ...]
    answer: str | None
    right: bool | None
    finished: str | None
    copies: int
    weight: float

    @property
    def text(self) -> str:
        return "".join(self.steps)

    @property
    def score(self) -> float:
        """The score of the last step; −∞ if it has none."""
        return -math.inf if not self.scores or self.scores[-1] is None else self.scores[-1]


def runs(directory: Path, damages: Damages | None = None) -> Iterator[Row]:
    """A row for each record. Token counts have columns of their own; the posterior is a list of answers and masses,
    best first."""
    for record in _records(directory, damages):
        fields = dataclasses.asdict(dataclasses.replace(record, prefixes=None))
        del fields["prefixes"]  # the other kinds export partial answers
        usage = fields.pop("usage")
        posterior = [{"answer": answer, "mass": mass} for answer, mass in fields.pop("posterior").items()]
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        yield {**lists, "correct": record.outcome == "correct", "posterior": posterior, **usage}


def rollouts(directory: Path, damages: Damages | None = None) -> Iterator[Rollout]:
    """Every distinct text in the final populations of all runs that did not fail and have a trace, in the order of the
    traces."""
    records = {record.key: record for record in _records(directory, damages) if record.outcome != "failed"}
    path = directory / TRACES
    if not path.exists():
        raise RunDirectoryError(f"{directory} holds no traces: evaluate without --no-traces, into another directory")
    damaged = count_or_refuse(damages, "traces")
    last = {trace.key: place for place, trace in enumerate(read_traces(path, damaged))}
    for place, trace in enumerate(read_traces(path, lambda damage: None)):
        if last[trace.key] == place and (record := records.get(trace.key)) is not None:
            if record.answers and len(record.answers) != len(trace.final.nodes):
                damaged(Damage(path, "", f"the trace of {trace.key} ends otherwise than its record"))
                continue
            yield from _rollouts(record, trace)


def _records(directory: Path, damages: Damages | None) -> list[RunRecord]:
    configuration = read_configuration(directory, count_or_refuse(damages, "configurations"))
    foreign = foreign_to(configuration, read_problem_ids(directory, count_or_refuse(damages, "lists of problems")))
    return read_records(directory / RECORDS, count_or_refuse(damages, "records"), foreign)


def _rollouts(record: RunRecord, trace: Trace) -> Iterator[Rollout]:
    final = trace.final
    weights = [-math.inf if weight is None else weight for weight in final.log_weights]
    largest = max(weights, default=-math.inf)
    masses = [math.exp(weight - largest) if weight > -math.inf else 0.0 for weight in weights]
    total = sum(masses) or 1.0
    places: dict[str, list[int]] = {}
    for place, node in enumerate(final.nodes):
        if node is not None and final.finished[place] != "failed":
            places.setdefault(trace.text(node), []).append(place)
    for copies in places.values():
        first = copies[0]
        path = trace.path(final.nodes[first])
        yield Rollout(
            key=trace.key,
            messages=trace.messages,
            steps=tuple(step.text for step in path),
            scores=tuple(step.score for step in path),
            answer=record.answers[first] if record.answers else None,
            right=record.right[first] if record.right else None,
            finished=final.finished[first],
            copies=len(copies),
            weight=sum(masses[place] for place in copies) / total,
        )


def _key_fields(rollout: Rollout) -> Row:
    return dict(zip(("problem_id", "method", "budget", "seed"), rollout.key, strict=True))


def _completion(rollout: Rollout) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": rollout.text.strip()}]


def unpaired(directory: Path, damages: Damages | None = None) -> Iterator[Row]:
    """Every distinct graded answer: unpaired preference, for KTO. The rows with a true `label` alone are for
    fine-tuning a model on its own right answers."""
    for rollout in rollouts(directory, damages):
        if rollout.right is not None:
            yield {
                "prompt": [dict(message) for message in rollout.messages],
                "completion": _completion(rollout),
                "label": rollout.right,
                "steps": list(rollout.steps),
                "scores": list(rollout.scores),
                "answer": rollout.answer,
                "finished": rollout.finished,
                "copies": rollout.copies,
                "weight": rollout.weight,
                **_key_fields(rollout),
            }


def pairs(directory: Path, damages: Damages | None = None) -> Iterator[Row]:
    """Preference, for DPO and for reward models. For each problem, over all its runs, the right answer with the largest
    score is paired with the wrong answer with the largest score, the second with the second, and so on as long as there
    are both: the rejected answers are those that deceive the reward model most. Equal texts count once."""
    problems: dict[str, dict[str, Rollout]] = {}
    for rollout in rollouts(directory, damages):
        if rollout.right is not None:
            problems.setdefault(rollout.key[0], {}).setdefault(rollout.text.strip(), rollout)
    for answers in problems.values():
        ordered = sorted(answers.values(), key=lambda rollout: -rollout.score)
        right, wrong = ([rollout for rollout in ordered if rollout.right is label] for label in (True, False))
        for chosen, rejected in zip(right, wrong, strict=False):
            yield {
                "prompt": [dict(message) for message in chosen.messages],
                "chosen": _completion(chosen),
                "rejected": _completion(rejected),
                "chosen_score": chosen.score if math.isfinite(chosen.score) else None,
                "rejected_score": rejected.score if math.isfinite(rejected.score) else None,
                "problem_id": chosen.key[0],
            }


def stepwise(directory: Path, damages: Damages | None = None, threshold: float = 0.5) -> Iterator[Row]:
    """Stepwise supervision, for process reward models: the steps of every distinct answer whose steps all have scores,
    with these scores, and with labels that say whether each score is at least `threshold`. Blank steps, and blank lines
    at the ends of steps, are left out, because trainers insert their own separator."""
    for rollout in rollouts(directory, damages):
        scored = [(step.strip("\n"), score) for step, score in zip(rollout.steps, rollout.scores, strict=True)]
        scored = [(step, score) for step, score in scored if step.strip()]
        if scored and all(score is not None for _, score in scored):
            yield {
                "prompt": rollout.messages[-1]["content"],
                "completions": [step for step, _ in scored],
                "labels": [score is not None and score >= threshold for _, score in scored],
                "scores": [score for _, score in scored],
                "right": rollout.right,
                **_key_fields(rollout),
            }


KINDS: Mapping[str, Callable[[Path, Damages | None], Iterator[Row]]] = {
    "runs": runs,
    "rollouts": unpaired,
    "pairs": pairs,
    "steps": stepwise,
}


def export(
    directory: Path, file: Path, kind: str = "runs", *, threshold: float | None = None, damages: Damages | None = None
) -> int:
    """Write rows of an evaluation to a file: Parquet or JSON Lines, depending on its name. If that fails, the file is
    as it was before. Returns the number of rows.

    Args:
        file: its name ends in `.parquet` or `.jsonl`.
        kind: one of `KINDS`.
        threshold: for `steps`, see `stepwise`.
        damages: counts lines that cannot be read, which are left out; None: they are an error.

    Raises:
        ConfigurationError: the file has another ending, or there is nothing to write.
        UnknownNameError: there is no such kind.
        RunDirectoryError: the directory holds no evaluation, or not the traces that are needed; records or traces
            cannot be read at all; or the file cannot be written.
        MissingExtraError: Parquet without pyarrow.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of rows", kind, KINDS)
    if threshold is not None and (kind != "steps" or not 0 <= threshold <= 1):
        raise ConfigurationError("threshold is a score in [0, 1], and for the kind `steps` alone")
    write = {".parquet": _parquet, ".jsonl": _json_lines}.get(file.suffix)
    if write is None:
        raise ConfigurationError(f"the name must end in .parquet or .jsonl, not {file.name!r}")
    rows = KINDS[kind](directory, damages) if threshold is None else stepwise(directory, damages, threshold)
    if (first := next(rows, None)) is None:
        reasons = "".join(f" ({line})" for line in damages.lines()) if damages is not None else ""
        raise ConfigurationError(f"{directory} has no {kind} to write{reasons}: choose other rows, or evaluate first")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(file) as partial:
            return write(partial, chain([first], rows))
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be written: {error.strerror or error}") from error


def _json_lines(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007
            file.write(json_line(row) + "\n")
    return count


def _parquet(path: Path, rows: Iterable[Row]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("writing Parquet", "parquet") from error
    table = pyarrow.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, path)
    return len(table)
