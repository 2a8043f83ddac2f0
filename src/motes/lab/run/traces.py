"""A trace is everything that happened in a run: the tree of its partial answers, and its population in each round.

A file of traces is a sequence of gzip members, one JSON line each (`zcat` shows it, pandas reads it). It is written
like records: appended once, never rewritten, a torn end is cut off when the file is opened for appending again. Of
several traces of one run the last one counts.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import mmap
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from motes import files
from motes.core import Finish, Record, Result, Step, Trajectory, Usage
from motes.core.thinking import thought_spans
from motes.lab.run.appending import AppendOnly
from motes.lab.run.damage import Damage, Damaged, Item, parse_json, refuse
from motes.lab.run.records import USAGE, Key, known_counts
from motes.lab.run.rules import POSITIVE, TEXT, Rule, is_count, is_list, is_text, list_of, or_null, read_fields
from motes.text import json_line

Numbers = tuple[float | None, ...]
"""An array as JSON can hold it: None stands for NaN, and for the logarithm of zero."""


@dataclass(frozen=True)
class Node:
    """A step of one or more partial answers.

    Attributes:
        parent: the node that it continues; None for a first step.
        tokens: its number of tokens.
        logprob: its log-probability, see `motes.Step`.
        score: the reward model's last score of the step; None if it was never scored.
        thought_tokens: how many of its tokens are thought.
        thoughts: the stretches of its text that are thoughts: the offsets of the start and the end of each.
    """

    parent: int | None
    text: str
    tokens: int
    logprob: float | None = None
    score: float | None = None
    thought_tokens: int = 0
    thoughts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Particles:
    """A population.

    Attributes:
        nodes: (N,) the last step of each particle, as its index in the trace's nodes; None if there is no step yet.
        finished: (N,) the reason why each particle is finished; None while it is not.
        log_weights: (N,) unnormalised; None for zero weight.
        scores: (N,) the reward model's scores; None if there is none.
        errors: for each dropped particle, by its index, the reason.
    """

    nodes: tuple[int | None, ...] = ()
    finished: tuple[Finish | None, ...] = ()
    log_weights: Numbers = ()
    scores: Numbers = ()
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Round(Particles):
    """The population after a round; see `motes.core.Record`."""

    ancestors: tuple[int, ...] = ()
    ess: float = 0.0
    resampled: bool = False
    log_evidence: float | None = None
    sweep: int = 0
    chain: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The trace of a run, whose outcome is in the record with the same key and run seed.

    Attributes:
        messages: the conversation that the language model saw.
        nodes: the tree of steps; a parent stands before its children.
        rounds: the rounds in the order of (sweep, chain, round).
        final: the population from which the answer was selected, in the order of the record's answers.
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
        return json_line(dataclasses.asdict(self), compact=True)

    def to_member(self) -> bytes:
        """The trace as a gzip member of a file of traces."""
        return gzip.compress(f"{self.to_json()}\n".encode(), compresslevel=6, mtime=0)

    @classmethod
    def from_json(cls, line: str | bytes) -> Trace:
        """Read a line; fields that a later version added are left out. A ValueError if it is not a trace."""
        try:
            values = parse_json(line)
            nodes = tuple(_read_node(number, node) for number, node in enumerate(values["nodes"]))
            rounds = tuple(_read_particles(Round, each, len(nodes)) for each in values["rounds"])
            final = _read_particles(Particles, values["final"], len(nodes))
            return cls(**{**read_fields(cls, values, _HEAD), "nodes": nodes, "rounds": rounds, "final": final})
        except (TypeError, KeyError, AttributeError):
            raise ValueError("it is not a trace") from None


class TraceStore(AppendOnly):
    """The file of an evaluation's traces, open for appending; see `AppendOnly`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, whole_members)

    def append(self, trace: Trace) -> None:
        """Write a trace: all of it, or nothing and a RunDirectoryError."""
        self.write(trace.to_member())


def read_traces(path: Path, damaged: Damaged = refuse) -> Iterator[Trace]:
    """Read the traces of a file one after the other, in the order written; of several of one run the last one counts. A
    missing file has none.

    Args:
        damaged: called with each piece that is not a trace; by default the first one is an error, except a torn end.

    Raises:
        RunDirectoryError: the file, or a piece of it, cannot be read, see `damaged`.
    """
    for trace, _ in _read(path, Trace.from_json, damaged):
        yield trace


def read_lines(path: Path, damaged: Damaged = refuse) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Like `read_traces`, but only the head of a line is parsed: yields its key and messages by name, and the line. For
    callers that pass traces on."""
    return _read(path, _parse_head, damaged)


def _parse_head(line: bytes) -> dict[str, Any]:
    head, mark, _ = line.partition(b',"nodes":')  # no string contains it: its quotes are escaped
    try:
        fields = read_fields(Trace, parse_json(head + b"}" if mark else head), _HEAD)
        return {name: fields[name] for name in ("problem_id", "method", "budget", "seed", "messages")}
    except (TypeError, KeyError, AttributeError):
        raise ValueError("it is not a trace") from None


def _read(path: Path, parse: Callable[[bytes], Item], damaged: Damaged) -> Iterator[tuple[Item, bytes]]:
    """The items of a file's lines, each with its line."""
    for end, line in _members(path, damaged):
        try:
            item = parse(line)
        except ValueError as error:
            damaged(_damage(path, f"before byte {end}", str(error)))
        else:
            yield item, line


def whole_members(path: Path) -> int:
    """The offset, in bytes, at which the last whole trace of a file ends."""
    return max((end for end, _ in _members(path, refuse, with_content=False)), default=0)


CHUNK = 1 << 14
MAGIC = b"\x1f\x8b\x08"
"""The first bytes of a gzip member."""
MIN_LIMIT, MAX_RATIO = 1 << 24, 100
"""A trace may inflate to this many bytes, or to this many times its compressed size; a zip bomb inflates a
thousandfold."""


def _members(path: Path, damaged: Damaged, *, with_content: bool = True) -> Iterator[tuple[int, bytes]]:
    """The whole gzip members up to the first damaged one: the offset of each one's end, and its content if wanted."""
    try:
        with files.open_to_read(path) as file:
            start = 0
            while piece := file.read(CHUNK):
                member, parts, num_read, size = zlib.decompressobj(wbits=31), [], 0, 0
                try:
                    while piece and not member.eof:
                        part = member.decompress(piece)
                        num_read, size = num_read + len(piece), size + len(part)
                        if with_content:
                            if size > min(files.LINE, max(MIN_LIMIT, MAX_RATIO * num_read)):
                                raise ValueError(f"it is larger than {size:,} bytes when it is inflated")
                            parts.append(part)
                        piece = b"" if member.eof else file.read(CHUNK)
                except (zlib.error, ValueError) as error:
                    torn = isinstance(error, zlib.error) and not _contains_magic(file, start + 1)
                    reason = "it is not gzip" if isinstance(error, zlib.error) else str(error)
                    damaged(_damage(path, f"after byte {start}", reason, torn=torn))
                    return
                if not member.eof:
                    damaged(_damage(path, f"after byte {start}", "it ends in the middle of a trace", torn=True))
                    return
                start += num_read - len(member.unused_data)
                yield start, b"".join(parts)
                file.seek(start)
    except FileNotFoundError:
        return
    except OSError as error:
        damaged(_damage(path, "", error.strerror or str(error)))


def _contains_magic(file: BinaryIO, start: int) -> bool:
    """Whether another gzip member may begin at `start` or later."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(MAGIC, start) >= 0


def _damage(path: Path, place: str, reason: str, torn: bool = False) -> Damage:
    return Damage(path, place, reason, "move the file elsewhere, or evaluate again without it", torn)


class Tree:
    """Numbers the steps of a run as nodes while the run goes on. Trajectories that differ only in how they ended are
    one node."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._numbers: dict[tuple[int | None, int], int] = {}  # by the parent's number and the step's id
        self._steps: list[Step] = []  # while a step lives, no other one has its id
        self._changed: set[int] = set()

    def round(self, record: Record) -> Round:
        """The population after a round."""
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
        """The population from which the answer was selected."""
        return Particles(**self._particles(result.trajectories, result.log_weights, result.scores))

    def nodes(self) -> tuple[Node, ...]:
        """All nodes so far."""
        return tuple(self._nodes)

    def news(self) -> dict[int, Node]:
        """The nodes that are new, or have a new score, since the last call; by number."""
        changed, self._changed = sorted(self._changed), set()
        return {number: self._nodes[number] for number in changed}

    def _path(self, trajectory: Trajectory) -> list[int]:
        """The numbers of the nodes on a trajectory's path."""
        path: list[int] = []
        for at in trajectory.path:
            step, before = at.step, at.parent
            assert step is not None
            assert before is not None
            parent = path[-1] if path else None
            key = parent, id(step)
            if key not in self._numbers:
                self._changed.add(len(self._nodes))
                self._numbers[key] = len(self._nodes)
                self._steps.append(step)
                thought_tokens = at.thought_tokens - (0 if at.thinking.was_unopened else before.thought_tokens)
                self._nodes.append(
                    Node(
                        parent,
                        step.text,
                        step.num_tokens,
                        _round(step.logprob),
                        thought_tokens=min(thought_tokens, step.num_tokens),
                        thoughts=tuple(chain.from_iterable(thought_spans(before.thinking.reading, step.text))),
                    )
                )
            path.append(self._numbers[key])
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
        for path, path_scores in zip(paths, step_scores, strict=False):
            for number, score in zip(path, map(_round, path_scores), strict=False):
                if self._nodes[number].score != score:
                    self._nodes[number] = dataclasses.replace(self._nodes[number], score=score)
                    self._changed.add(number)
        return {
            "nodes": tuple(path[-1] if path else None for path in paths),
            "finished": tuple(trajectory.finished for trajectory in trajectories),
            "log_weights": tuple(map(_round, log_weights.tolist())),
            "scores": tuple(map(_round, scores.tolist())),
            "errors": {str(i): str(t.error) for i, t in enumerate(trajectories) if t.error is not None},
        }


def _round(value: float | None) -> float | None:
    """A number with six digits; None if JSON cannot hold it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _is_turn(value: Any) -> bool:
    return is_text(value["role"]) and is_text(value["content"])


_HEAD: Mapping[str, Rule] = MappingProxyType(
    {
        "budget": POSITIVE,
        "messages": Rule(lambda value: bool(value) and is_list(value, _is_turn), "a conversation"),
    }
)
_PARTICLES: Mapping[str, Rule] = MappingProxyType({"finished": list_of(or_null(TEXT)), "usage": USAGE})
"""The values that fields may have if their type does not say it."""


def _read_node(number: int, fields: Mapping[str, Any]) -> Node:
    parent = fields["parent"]
    if parent is not None and not (is_count(parent) and parent < number):
        raise ValueError(f"the parent of node {number} does not stand before it")
    return Node(**read_fields(Node, fields))


def _read_particles(cls: type[Any], values: Mapping[str, Any], num_nodes: int) -> Any:
    fields = read_fields(cls, values, _PARTICLES)
    nodes = fields.get("nodes", ())
    if any(node is not None and node >= num_nodes for node in nodes):
        raise ValueError("a particle is at a node that does not exist")
    if any(len(fields.get(name, ())) != len(nodes) for name in ("finished", "log_weights", "scores")):
        raise ValueError("a population is not of one size")
    if "usage" in fields:
        fields["usage"] = Usage(**known_counts(fields["usage"]))
    return cls(**fields)
