"""What happened inside a run, as data: the tree of its partial answers, and its population round by round.

A file of traces is a sequence of gzip members, one JSON line each (`zcat` shows it, pandas reads it), written as
records are: appended once, never rewritten, a torn end cut off when the file is opened for appending again. Of several
traces of one run the last one counts.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from motes.errors import RunDirectoryError
from motes.lab.appending import AppendOnly
from motes.lab.records import Key
from motes.types import Finish, Record, Result, Step, Trajectory, Usage

Numbers = tuple[float | None, ...]
"""What JSON can hold of an array: None stands for NaN, and for the logarithm of zero."""


@dataclass(frozen=True)
class Node:
    """A step of one or more partial answers.

    Attributes:
        parent: the node that it continues; None: it is the first step.
        text, tokens, logprob: the step's own, see `motes.Step`.
        score: the reward model's score of this step when it was last scored, None where it never was.
    """

    parent: int | None
    text: str
    tokens: int
    logprob: float | None = None
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Particles:
    """A population.

    Attributes:
        nodes: (N,) the last step of each, a place among the trace's nodes; None where there is none yet.
        finished: (N,) why nothing follows, None as long as something may.
        log_weights: (N,) unnormalised, None for zero weight. scores: (N,) None where there is none.
        errors: why particles were dropped, by place.
    """

    nodes: tuple[int | None, ...] = ()
    finished: tuple[Finish | None, ...] = ()
    log_weights: Numbers = ()
    scores: Numbers = ()
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Round(Particles):
    """The population after a round; see `motes.types.Record`."""

    ancestors: tuple[int, ...] = ()
    ess: float = 0.0
    resampled: bool = False
    log_evidence: float | None = None
    sweep: int = 0
    chain: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The inside of the run that the record of the same key tells the outcome of.

    Attributes:
        problem_id, method, budget, seed, run_seed: as in the record.
        messages: the conversation as the language model saw it.
        nodes: the tree of steps; a parent stands before its children.
        rounds: in the order of (sweep, chain, round).
        final: the population that the answer was selected from, in the order of the record's answers.
    """

    problem_id: str
    method: str
    budget: int
    seed: int
    run_seed: int
    messages: tuple[Mapping[str, str], ...]
    nodes: tuple[Node, ...]
    rounds: tuple[Round, ...]
    final: Particles

    @property
    def key(self) -> Key:
        return self.problem_id, self.method, self.budget, self.seed

    @classmethod
    def of(cls, key: Key, result: Result) -> Trace:
        tree = Tree()
        rounds = tuple(map(tree.round, result.records))
        final = tree.final(result)
        problem_id, method, budget, seed = key
        return cls(
            problem_id=problem_id,
            method=method,
            budget=budget,
            seed=seed,
            run_seed=result.seed,
            messages=result.problem.messages,
            nodes=tree.nodes(),
            rounds=rounds,
            final=final,
        )

    def path(self, node: int | None) -> tuple[Node, ...]:
        """The steps from the first one to `node`."""
        steps: list[Node] = []
        while node is not None:
            steps.append(self.nodes[node])
            node = steps[-1].parent
        return tuple(reversed(steps))

    def text(self, node: int | None) -> str:
        """The partial answer that ends with `node`."""
        return "".join(step.text for step in self.path(node))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def to_member(self) -> bytes:
        """The gzip member that a file of traces has of it."""
        return gzip.compress(f"{self.to_json()}\n".encode(), compresslevel=6, mtime=0)

    @classmethod
    def from_json(cls, line: str) -> Trace:
        """Read a line; fields that a later version added are left out.

        Raises:
            ValueError: it is not a trace.
        """
        try:
            fields = _known(cls, json.loads(line))
            fields["messages"] = tuple(fields["messages"])
            fields["nodes"] = tuple(Node(**_known(Node, node)) for node in fields["nodes"])
            fields["rounds"] = tuple(_particles(Round, one) for one in fields["rounds"])
            fields["final"] = _particles(Particles, fields["final"])
            return cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a trace: {error}") from error


class TraceStore(AppendOnly):
    """The file of an evaluation's traces, open for appending; see `AppendOnly`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, whole_members)

    def append(self, trace: Trace) -> None:
        """Write one, or nothing.

        Raises:
            RunDirectoryError: it could not be written; the file is as it was.
        """
        self.write(trace.to_member())


def read_traces(path: Path) -> Iterator[Trace]:
    """The traces of a file in the order written, one after the other; of several of one run the last one counts.

    A torn end is passed over. Nothing where there is no such file.

    Raises:
        RunDirectoryError: the file cannot be read, or something in it is damaged.
    """
    for end, line in _members(path):
        try:
            yield Trace.from_json(line.decode())
        except ValueError as error:
            raise RunDirectoryError(f"{path} is damaged before byte {end}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The traces of a file as they stand there, one after the other, nothing but their heads read: the key and the
    messages as fields, and the line. For those who pass traces on.

    Raises:
        RunDirectoryError: the file cannot be read, or something in it is damaged.
    """
    for end, line in _members(path):
        head, mark, _ = line.partition(b',"nodes":')  # which no text can hold: its quotes have strokes before them
        try:
            fields = json.loads(head + b"}" if mark else line)
            yield {name: fields[name] for name in ("problem_id", "method", "budget", "seed", "messages")}, line
        except (ValueError, TypeError, KeyError) as error:
            raise RunDirectoryError(f"{path} is damaged before byte {end}: {error}") from error


def whole_members(path: Path) -> int:
    """Where the last whole trace of a file ends, in bytes."""
    return max((end for end, _ in _members(path)), default=0)


CHUNK = 1 << 14
MAGIC = b"\x1f\x8b\x08"
"""How a gzip member begins."""


def _members(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each whole gzip member's end, in bytes, and what it holds."""
    try:
        with path.open("rb") as file:
            start = 0
            while piece := file.read(CHUNK):
                member, parts, fed = zlib.decompressobj(wbits=31), [], 0
                try:
                    while piece and not member.eof:
                        parts.append(member.decompress(piece))
                        fed += len(piece)
                        piece = b"" if member.eof else file.read(CHUNK)
                except zlib.error as error:
                    file.seek(start + 1)
                    if MAGIC in file.read():
                        raise RunDirectoryError(f"{path} is damaged after byte {start}: move it elsewhere") from error
                    return
                if not member.eof:
                    return
                start += fed - len(member.unused_data)
                yield start, b"".join(parts)
                file.seek(start)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}") from error


class Tree:
    """Trajectories as nodes that have numbers, as a run goes on. Those that differ in how they ended alone are one
    node."""

    def __init__(self) -> None:
        self._places: dict[tuple[int | None, int], int] = {}
        self._steps: list[tuple[int | None, Step]] = []
        self._scores: dict[int, float] = {}
        self._new: set[int] = set()

    def round(self, record: Record) -> Round:
        """What happened in a round."""
        return Round(
            **self._particles(record.trajectories, record.log_weights, record.scores, record.step_scores),
            ancestors=tuple(record.ancestors.tolist()),
            ess=_round(record.ess) or 0.0,
            resampled=record.resampled,
            log_evidence=_round(record.log_evidence),
            sweep=record.sweep,
            chain=record.chain,
            usage=record.usage,
        )

    def final(self, result: Result) -> Particles:
        """What the answer was selected from."""
        return Particles(**self._particles(result.trajectories, result.log_weights, result.scores))

    def nodes(self) -> tuple[Node, ...]:
        """All nodes so far."""
        return tuple(self._node(place) for place in range(len(self._steps)))

    def news(self) -> dict[int, Node]:
        """The nodes that came, or got another score, since this was last asked; by number."""
        new, self._new = sorted(self._new), set()
        return {place: self._node(place) for place in new}

    def _path(self, trajectory: Trajectory) -> list[int]:
        """The numbers of the nodes of its path."""
        path: list[int] = []
        for step in trajectory.steps:
            parent = path[-1] if path else None
            key = parent, id(step)
            if key not in self._places:
                self._new.add(len(self._steps))
                self._places[key] = len(self._steps)
                self._steps.append((parent, step))
            path.append(self._places[key])
        return path

    def _particles(
        self,
        trajectories: tuple[Trajectory, ...],
        log_weights: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64],
        step_scores: tuple[Any, ...] = (),
    ) -> dict[str, Any]:
        """The fields of `Particles`."""
        paths = [self._path(trajectory) for trajectory in trajectories]
        for path, each in zip(paths, step_scores, strict=False):
            for place, score in zip(path, map(float, each), strict=False):
                if self._scores.get(place) != score:
                    self._scores[place] = score
                    self._new.add(place)
        return {
            "nodes": tuple(path[-1] if path else None for path in paths),
            "finished": tuple(trajectory.finished for trajectory in trajectories),
            "log_weights": tuple(map(_round, log_weights.tolist())),
            "scores": tuple(map(_round, scores.tolist())),
            "errors": {str(i): str(t.error) for i, t in enumerate(trajectories) if t.error is not None},
        }

    def _node(self, place: int) -> Node:
        parent, step = self._steps[place]
        score = self._scores.get(place)
        return Node(
            parent,
            step.text,
            step.num_tokens,
            None if step.logprob is None else _round(step.logprob),
            None if score is None else _round(score),
        )


def _round(value: float) -> float | None:
    """Six digits; None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _known(cls: type[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}


def _particles(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    known = _known(cls, fields)
    if "usage" in known:
        known["usage"] = Usage(**_known(Usage, known["usage"]))
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
