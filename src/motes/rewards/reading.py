"""What a process reward model reads to score partial answers, wherever it runs: which tokens, where in them a score is
read, and which steps have one already.

A step's score depends on what comes before it only, so it is found once and kept as long as the step is.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, Literal, TypeVar, get_args
from weakref import WeakKeyDictionary

from motes.core import Failure, Problem, Reads, Scores, Trajectory, Usage
from motes.errors import ContextLengthError, UnknownNameError
from motes.rewards.blank import fill_scores, written_steps
from motes.rewards.format import Format
from motes.threads import in_thread_if_long

Prefix = Literal["steps", "whole"]

REMEMBERED = 1 << 16
"""Texts whose scores are remembered, the latest."""


@dataclass(eq=False)
class Reading:
    """A text to be read, and where in it scores are wanted. Its result is one score for each place, ascending.

    Attributes:
        ids: its tokens.
        at: positions in `ids`, ascending.
        nodes: for each position, the partial answers whose score is read there.
        prompt: tokens of `ids` that every text about this problem begins with.
        keep: tokens of `ids` that longer texts will begin with.
        usage: what reading it cost, once it is read.
    """

    ids: list[int]
    at: list[int]
    nodes: list[list[Trajectory]]
    prompt: int
    keep: int
    usage: Usage = field(default_factory=Usage, kw_only=True)

    @property
    def key(self) -> Key:
        """What readings that are alike have in common: the positions too, since a text may be divided into as many
        steps elsewhere."""
        return tuple(self.at), tuple(self.ids)


ReadingT = TypeVar("ReadingT", bound=Reading)
Key = tuple[tuple[int, ...], tuple[int, ...]]
Read = Callable[[list[ReadingT]], Awaitable[Sequence[Sequence[float] | Failure]]]
"""Reads texts: for each its scores, or why there are none."""


class Reader(Generic[ReadingT]):
    """Scores trajectories by reading what has no score yet.

    Args:
        format: says which tokens.
        prefix: "steps": each step is followed by the tag, all are read in one text. "whole": a prefix is read as one
            single step, blank lines collapsed (the paper's "model" aggregation, arXiv 2502.01618); the score of step t
            is then that of the text up to t.
        name: of the model, in messages.
        context_length: tokens of a text at most; None: as many as the model takes.
        reading: the class of readings.
        keeps: whether what was read before is not read again.

    Raises:
        UnknownNameError: there is no such `prefix`.
    """

    def __init__(
        self,
        format: Format,
        prefix: Prefix,
        *,
        name: str,
        context_length: int | None,
        reading: type[ReadingT],
        keeps: bool = True,
    ) -> None:
        if prefix not in get_args(Prefix):
            raise UnknownNameError("prefix", prefix, get_args(Prefix))
        self.format = format
        self.prefix = prefix
        self.name = name
        self.context_length = context_length
        self.keeps = keeps
        self._reading = reading
        self._known: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()
        self._names: WeakKeyDictionary[Trajectory, bytes] = WeakKeyDictionary()  # of the tokens read up to a step
        self._scores: dict[bytes, float] = {}  # by such a name: what is alike need not be read again
        self._step_ids: WeakKeyDictionary[Trajectory, list[int]] = WeakKeyDictionary()
        self._whole_lengths: WeakKeyDictionary[Trajectory, int] = WeakKeyDictionary()

    async def score(self, trajectories: Sequence[Trajectory], read: Read[ReadingT]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`. Equal texts are read once; the first trajectory bears the cost.

        Raises:
            ContextLengthError: a problem alone does not fit the context.
        """
        unread: dict[Key, ReadingT] = {}
        wanted: list[list[Key]] = []
        first: list[list[ReadingT]] = []  # of each trajectory: those that nobody before it wanted
        failures: dict[int, Failure] = {}
        for i, trajectory in enumerate(trajectories):
            wanted.append([])
            first.append([])
            try:
                readings = await in_thread_if_long(self._length(trajectory), self._readings_of, trajectory)
            except ContextLengthError as error:
                if self.context_length and len(self.format.prompt(trajectory.problem)) >= self.context_length:
                    raise
                failures[i] = Failure(error)
                continue
            for reading in readings:
                key = reading.key
                wanted[-1].append(key)
                if key not in unread:
                    unread[key] = reading
                    first[-1].append(reading)
                else:
                    for nodes, more in zip(unread[key].nodes, reading.nodes, strict=True):
                        nodes.extend(more)
        failed: dict[Key, Failure] = {}
        outcomes = await read(list(unread.values()))
        for (key, reading), outcome in zip(unread.items(), outcomes, strict=True):
            if isinstance(outcome, Failure):
                failed[key] = outcome
                continue
            for nodes, value in zip(reading.nodes, outcome, strict=True):
                self._known.update((node, value) for node in nodes)
                for node in nodes:
                    self._remember(self._names[node], value)
        scored: list[Sequence[float] | Failure] = []
        for i, trajectory in enumerate(trajectories):
            usage = sum((reading.usage for reading in first[i]), Usage())
            failure = failures.get(i) or next((failed[key] for key in wanted[i] if key in failed), None)
            if failure is None:
                scored.append(Scores(fill_scores(trajectory, self._known), usage, self._reads(trajectory)))
            else:
                scored.append(Failure(failure.error, usage + failure.usage))
        return scored

    def texts(self, problem: Problem, steps: Sequence[str]) -> list[ReadingT]:
        """Each step as the whole answer to a problem, to be read by itself and not to be kept."""
        prompt = self.format.prompt(problem)
        texts = [[*prompt, *self.format.step(step, 1)] for step in steps]
        return [self._reading(ids, [len(ids) - 1], [[]], 0, 0) for ids in texts]

    def _length(self, trajectory: Trajectory) -> int:
        """Characters that have to be tokenized to read it, at most."""
        new = [node for node in trajectory.path if self.prefix == "whole" or node not in self._step_ids]
        question = sum(len(message["content"]) for message in trajectory.problem.plain.messages)
        return question + sum(len(node.step.text) for node in new if node.step is not None)

    def _readings_of(self, trajectory: Trajectory) -> list[ReadingT]:
        return list(self._readings(trajectory))

    def _readings(self, trajectory: Trajectory) -> Iterator[ReadingT]:
        """What must be read for the steps of a trajectory that have no score yet."""
        path = written_steps(trajectory)
        if all(node in self._known for node in path):
            return
        prompt = self.format.prompt(trajectory.problem)
        if self.prefix == "whole":
            for node in path:
                if node in self._known:
                    continue
                ids = [*prompt, *self.format.step(re.sub(r"\n\s*\n", "\n", node.text), 1)]
                self._whole_lengths[node] = len(ids)
                if self._recall(node, _name(b"", ids)):
                    continue
                yield self._checked(self._reading(ids, [len(ids) - 1], [[node]], len(prompt), len(ids) - 1))
            return
        ids, ends, unread = list(prompt), [], []
        name = _name(b"", prompt)
        for number, node in enumerate(path, 1):
            step = self._ids(node, number)
            ids += step
            ends.append(len(ids) - 1)
            name = _name(name, step)
            if node not in self._known and not self._recall(node, name):
                unread.append(node)
        if not unread:
            return
        at = ends[len(path) - len(unread) :]  # a step is never scored before those that lead to it
        yield self._checked(self._reading(ids, at, [[node] for node in unread], len(prompt), len(ids)))

    def _reads(self, trajectory: Trajectory) -> Reads:
        """What scoring a trajectory takes, all of whose steps are read."""
        written = written_steps(trajectory)
        prompt = len(self.format.prompt(trajectory.problem))
        if self.prefix == "whole":
            lengths = [self._whole_lengths[node] for node in written]
            # Of the text before, all but the token where its score is read is the next one's, too.
            new = [length - before + 1 for before, length in zip([prompt + 1, *lengths], lengths, strict=False)]
            alone = lengths
        else:
            new = [len(self._step_ids[node]) for node in written]
            alone = [0] * len(new)
            if alone:
                alone[-1] = prompt + sum(new)
        after = [0]
        added = dict(zip(written, new if self.keeps else alone, strict=True))
        for node in reversed(trajectory.path):
            after.append(after[-1] + added.get(node, 0))
        shared = prompt if self.keeps and written else 0
        after[-1] += shared
        return Reads(shared, tuple(reversed(after)))

    def _recall(self, node: Trajectory, name: bytes) -> bool:
        """Whether the score of a text of this name is remembered: then it is the node's."""
        self._names[node] = name
        if name not in self._scores:
            return False
        self._known[node] = self._scores[name]
        return True

    def forget(self) -> None:
        """Read texts anew that were read before, but for partial answers that have their scores."""
        self._scores.clear()

    def _remember(self, name: bytes, score: float) -> None:
        self._scores[name] = score
        if len(self._scores) > REMEMBERED:
            del self._scores[next(iter(self._scores))]

    def _checked(self, reading: ReadingT) -> ReadingT:
        if self.context_length is not None and len(reading.ids) > self.context_length:
            raise ContextLengthError(
                f"a partial answer takes {len(reading.ids)} tokens and {self.name!r} has a context of "
                f"{self.context_length}: lower max_tokens or max_steps"
            )
        return reading

    def _ids(self, node: Trajectory, number: int) -> list[int]:
        """Tokens of a step, the answer's written step of that number, up to where its score is read."""
        if node not in self._step_ids:
            assert node.step is not None
            self._step_ids[node] = self.format.step(node.step.text, number)
        return self._step_ids[node]


def _name(before: bytes, ids: Sequence[int]) -> bytes:
    """The same for the same tokens behind a text of the same name."""
    return blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()
