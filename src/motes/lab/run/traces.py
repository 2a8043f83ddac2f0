"""What happened inside a run, as data: the tree of its partial answers, and its population round by round.

A file of traces is a sequence of gzip members, one JSON line each (`zcat` shows it, pandas reads it), written as
records are: appended once, never rewritten, a torn end cut off when the file is opened for appending again. Of several
traces of one run the last one counts.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from motes import files
from motes.core import Finish, Record, Result, Step, Trajectory, Usage
from motes.lab.run.appending import AppendOnly
from motes.lab.run.damage import (
    Damage,
    Damaged,
    Rule,
    broken,
    is_count,
    is_list,
    is_number,
    is_text,
    or_none,
    parse_json,
    refuse,
)
from motes.lab.run.records import Key
from motes.text import json_line

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
        return json_line(dataclasses.asdict(self), compact=True)

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
            fields = _known(cls, parse_json(line))
            _require(_HEAD, fields)
            fields["messages"] = tuple(fields["messages"])
            fields["nodes"] = tuple(_node(i, node) for i, node in enumerate(fields["nodes"]))
            fields["rounds"] = tuple(_particles(Round, one, len(fields["nodes"])) for one in fields["rounds"])
            fields["final"] = _particles(Particles, fields["final"], len(fields["nodes"]))
            return cls(**fields)
        except (TypeError, KeyError, AttributeError):
            raise ValueError("it is no trace") from None


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


def read_traces(path: Path, damaged: Damaged = refuse) -> Iterator[Trace]:
    """The traces of a file in the order written, one after the other; of several of one run the last one counts.

    Nothing where there is no such file.

    Args:
        damaged: told of each piece that is no trace; by default the first one is an error, except a torn end.

    Raises:
        RunDirectoryError: the file cannot be read, or something in it, see `damaged`.
    """
    for end, content in _members(path, damaged):
        try:
            yield Trace.from_json(_text(content))
        except ValueError as error:
            damaged(_damage(path, f"before byte {end}", str(error)))


def read_lines(path: Path, damaged: Damaged = refuse) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The traces of a file as they stand there, one after the other, nothing but their heads read: the key and the
    messages as fields, and the line. For those who pass traces on.

    Args:
        damaged: see `read_traces`.

    Raises:
        RunDirectoryError: the file cannot be read, or something in it, see `damaged`.
    """
    for end, content in _members(path, damaged):
        try:
            head, mark, _ = _text(content).partition(',"nodes":')  # no text holds it: its quotes have strokes before
            fields = _known(Trace, parse_json(head + "}" if mark else head))
            _require(_HEAD, fields)
            yield {name: fields[name] for name in ("problem_id", "method", "budget", "seed", "messages")}, content
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else "it is no trace"
            damaged(_damage(path, f"before byte {end}", reason))


def whole_members(path: Path) -> int:
    """Where the last whole trace of a file ends, in bytes."""
    return max((end for end, _ in _members(path, refuse, inflated=False)), default=0)


CHUNK = 1 << 14
MAGIC = b"\x1f\x8b\x08"
"""How a gzip member begins."""
SURE, RATIO = 1 << 24, 100
"""A trace may be inflated to so many bytes, or to so many times what it is in the file: a bomb is a thousand times."""


def _members(path: Path, damaged: Damaged, *, inflated: bool = True) -> Iterator[tuple[int, bytes]]:
    """Each whole gzip member's end, in bytes, and, if asked for, what it holds; nothing behind a damaged one."""
    try:
        with files.open_to_read(path) as file:
            start = 0
            while piece := file.read(CHUNK):
                member, parts, fed, size = zlib.decompressobj(wbits=31), [], 0, 0
                try:
                    while piece and not member.eof:
                        part = member.decompress(piece)
                        fed, size = fed + len(piece), size + len(part)
                        if inflated:
                            if size > min(files.LINE, max(SURE, RATIO * fed)):
                                raise ValueError(f"it is larger than {size:,} bytes when it is inflated")
                            parts.append(part)
                        piece = b"" if member.eof else file.read(CHUNK)
                except (zlib.error, ValueError) as error:
                    torn = isinstance(error, zlib.error) and not _holds_magic(file, start + 1)
                    reason = "it is no gzip" if isinstance(error, zlib.error) else str(error)
                    damaged(_damage(path, f"after byte {start}", reason, torn=torn))
                    return
                if not member.eof:
                    damaged(_damage(path, f"after byte {start}", "it ends in the middle of a trace", torn=True))
                    return
                start += fed - len(member.unused_data)
                yield start, b"".join(parts)
                file.seek(start)
    except FileNotFoundError:
        return
    except OSError as error:
        damaged(_damage(path, "", error.strerror or str(error)))


def _holds_magic(file: BinaryIO, start: int) -> bool:
    """Whether another gzip member may begin in what follows."""
    file.seek(start)
    before = b""
    while piece := file.read(CHUNK):
        if MAGIC in before + piece:
            return True
        before = piece[1 - len(MAGIC) :]
    return False


def _damage(path: Path, place: str, reason: str, *, torn: bool = False) -> Damage:
    return Damage(path, place, reason, "move the file elsewhere, or evaluate again without it", torn)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8") from None


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


_NUMBER = Rule(or_none(is_number), "a number or null")
_NUMBERS = Rule(lambda value: is_list(value, or_none(is_number)), "a list of numbers and nulls")
_COUNT = Rule(is_count, "a whole number from 0")
_TURN = ("role", "content")
_HEAD: Mapping[str, Rule] = MappingProxyType(
    {
        "problem_id": Rule(is_text, "a text"),
        "method": Rule(is_text, "a text"),
        "budget": Rule(lambda value: is_count(value, 1), "a whole number from 1"),
        "seed": _COUNT,
        "run_seed": _COUNT,
        "messages": Rule(
            lambda value: bool(value) and is_list(value, lambda turn: all(is_text(turn[name]) for name in _TURN)),
            "a conversation",
        ),
    }
)
_NODE: Mapping[str, Rule] = MappingProxyType(
    {"text": Rule(is_text, "a text"), "tokens": _COUNT, "logprob": _NUMBER, "score": _NUMBER}
)
_PARTICLES: Mapping[str, Rule] = MappingProxyType(
    {
        "nodes": Rule(lambda value: is_list(value, or_none(is_count)), "a list of whole numbers from 0 and nulls"),
        "finished": Rule(lambda value: is_list(value, or_none(is_text)), "a list of texts and nulls"),
        "log_weights": _NUMBERS,
        "scores": _NUMBERS,
        "errors": Rule(lambda value: all(map(is_text, value.values())), "texts, by place"),
        "ancestors": Rule(lambda value: is_list(value, is_count), "a list of whole numbers from 0"),
        "ess": Rule(is_number, "a number"),
        "resampled": Rule(lambda value: isinstance(value, bool), "true or false"),
        "log_evidence": _NUMBER,
        "sweep": _COUNT,
        "chain": _COUNT,
        "usage": Rule(lambda value: all(map(is_count, value.values())), "whole numbers from 0, by name"),
    }
)
"""What the fields of a trace, of its nodes and of its populations may hold."""


def _require(rules: Mapping[str, Rule], fields: dict[str, Any]) -> None:
    for _, reason in broken(rules.items(), fields):
        raise ValueError(reason)


def _known(cls: type[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}


def _node(place: int, fields: Mapping[str, Any]) -> Node:
    known = _known(Node, fields)
    _require(_NODE, known)
    if known["parent"] is not None and not (is_count(known["parent"]) and known["parent"] < place):
        raise ValueError(f"the parent of node {place} does not stand before it")
    return Node(**known)


def _particles(cls: type[Any], fields: Mapping[str, Any], nodes: int) -> Any:
    known = _known(cls, fields)
    if "usage" in known:
        known["usage"] = _known(Usage, known["usage"])
    _require(_PARTICLES, known)
    if any(node is not None and node >= nodes for node in known.get("nodes", ())):
        raise ValueError("a particle is at a node that there is not")
    size = len(known.get("nodes", ()))
    if any(len(known.get(name, ())) != size for name in ("finished", "log_weights", "scores")):
        raise ValueError("a population is not of one size")
    if "usage" in known:
        known["usage"] = Usage(**known["usage"])
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
