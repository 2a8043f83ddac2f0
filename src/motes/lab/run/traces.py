"""A trace is everything that happened in a run: the tree of its partial answers, and its population in each round.

A file of traces is a sequence of gzip members, one JSON line each (`zcat` shows it, pandas reads it). It is written
like records: appended once, never rewritten, a torn end is cut off when the file is opened for appending again. Of
several traces of one run the last one counts.
"""

from __future__ import annotations

import dataclasses
import gzip
import mmap
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from motes import files
from motes.core import Result, Usage
from motes.lab.run.appending import AppendOnly
from motes.lab.run.damage import Damage, Damaged, Item, parse_json, refuse
from motes.lab.run.records import USAGE, Key, known_counts
from motes.lab.run.rules import POSITIVE, TEXT, Rule, is_count, is_list, is_text, list_of, or_null, read_fields
from motes.lab.run.tree import Node, Particles, Round, RoundMoves, Tree
from motes.text import json_line


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
        tree = Tree(result.problem)
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
    if fields.get("moves") is not None:
        fields["moves"] = moves = RoundMoves(**read_fields(RoundMoves, fields["moves"]))
        if any(node is not None and node >= num_nodes for node in moves.nodes):
            raise ValueError("a proposal is at a node that does not exist")
        if not len(moves.nodes) == len(moves.accepted) == len(nodes):
            raise ValueError("a population and its proposals are not of one size")
    return cls(**fields)
