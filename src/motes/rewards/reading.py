"""The texts that a process reward model reads to score partial answers, wherever it runs: their tokens, the positions
at which scores are read, and the steps that have a score already.

A step's score depends only on the text up to it, so it is read once and kept as long as the step exists.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, Literal, TypeVar, get_args
from weakref import WeakKeyDictionary

from motes.core import Failure, Problem, Reads, Scores, Trajectory, Usage
from motes.errors import ConfigurationError, ContextLengthError, UnknownNameError
from motes.rewards.blank import fill_scores, written_steps
from motes.rewards.format import Format
from motes.threads import in_thread_if_long

Prefix = Literal["steps", "whole"]

MAX_REMEMBERED = 1 << 16
"""Number of texts, the latest, whose scores are remembered."""

QUESTION = Problem("What is 2+2?")
ANSWERS = (
    "2+2=4. The answer is \\boxed{4}.",
    "2+2=5. The answer is \\boxed{5}.",
    "I do not know.",
    "Bananas are yellow, and the train was late again!",
)
"""Answers to that question, to which every reward model gives different scores."""
SPREAD = 1e-4
"""Scores that differ by no more than this count as equal."""


@dataclass(eq=False)
class Reading:
    """A text to be read, and the positions at which scores are wanted. The result is a score for each position."""

    ids: list[int]  # its tokens
    positions: list[int]  # in `ids`, ascending
    nodes: list[list[Trajectory]]  # for each position, the partial answers whose score is read there
    prompt_length: int  # number of tokens at the beginning that all texts about this problem share
    shared_length: int  # number of tokens at the beginning that longer texts will share
    usage: Usage = field(default_factory=Usage, kw_only=True)  # the cost of reading it, once it is read

    @property
    def key(self) -> Key:
        """The same for equal readings. It has the positions, because equal tokens can be divided into other steps."""
        return tuple(self.positions), tuple(self.ids)


ReadingT = TypeVar("ReadingT", bound=Reading)
Key = tuple[tuple[int, ...], tuple[int, ...]]
Read = Callable[[list[ReadingT]], Awaitable[Sequence[Sequence[float] | Failure]]]
"""Reads texts; returns for each its scores, or a failure."""


class Reader(Generic[ReadingT]):
    """Scores trajectories by reading the steps that have no score yet.

    Args:
        format: turns texts into tokens.
        prefix: "steps": one text contains all steps, each followed by the tag. "whole": a prefix is read as one single
            step, blank lines collapsed (the paper's "model" aggregation, arXiv 2502.01618); the score of step t is then
            that of the text up to t.
        name: of the model, in messages.
        context_length: maximum number of tokens of a text; None: as many as the model takes.
        reading: the class of readings.
        keeps: whether the model has a prefix cache: it does not read a prefix again in longer texts.

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
        self._scores: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()
        self._digests: WeakKeyDictionary[Trajectory, bytes] = WeakKeyDictionary()  # of the tokens up to a step
        self._scores_by_digest: dict[bytes, float] = {}  # so that equal texts are not read again
        # The tokens of a step, up to the one at which its score is read:
        self._step_ids: WeakKeyDictionary[Trajectory, list[int]] = WeakKeyDictionary()
        self._text_lengths: WeakKeyDictionary[Trajectory, int] = WeakKeyDictionary()

    async def score(self, trajectories: Sequence[Trajectory], read: Read[ReadingT]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`. Equal texts are read once; the first trajectory bears the cost.

        Raises:
            ContextLengthError: a problem alone does not fit the context.
        """
        # 1) collect the texts to read, equal ones once
        unread: dict[Key, ReadingT] = {}
        keys: list[list[Key]] = []  # of the readings that each trajectory needs
        failures: dict[int, Failure] = {}
        for i, trajectory in enumerate(trajectories):
            keys.append([])
            try:
                readings = await in_thread_if_long(self._num_characters(trajectory), self._readings, trajectory)
            except ContextLengthError as error:
                if self.context_length and len(self.format.prompt(trajectory.problem)) >= self.context_length:
                    raise
                failures[i] = Failure(error)
                continue
            for reading in readings:
                key = reading.key
                keys[-1].append(key)
                if key not in unread:
                    unread[key] = reading
                else:
                    for nodes, more in zip(unread[key].nodes, reading.nodes, strict=True):
                        nodes.extend(more)
        # 2) read them, and keep the scores
        failed: dict[Key, Failure] = {}
        outcomes = await read(list(unread.values()))
        for (key, reading), outcome in zip(unread.items(), outcomes, strict=True):
            if isinstance(outcome, Failure):
                failed[key] = outcome
                continue
            for nodes, score in zip(reading.nodes, outcome, strict=True):
                for node in nodes:
                    self._scores[node] = score
                    self._remember(self._digests[node], score)
        # 3) assemble the scores of each trajectory
        results: list[Sequence[float] | Failure] = []
        costs = {key: reading.usage for key, reading in unread.items()}  # for the first trajectory that needs a reading
        for i, trajectory in enumerate(trajectories):
            usage = sum((costs.pop(key, Usage()) for key in keys[i]), Usage())
            failure = failures.get(i) or next((failed[key] for key in keys[i] if key in failed), None)
            if failure is None:
                results.append(Scores(fill_scores(trajectory, self._scores), usage, self._reads(trajectory)))
            else:
                results.append(Failure(failure.error, usage + failure.usage))
        return results

    def texts(self, problem: Problem, steps: Sequence[str]) -> list[ReadingT]:
        """Readings of each step as the whole answer to a problem, which are not kept."""
        prompt = self.format.prompt(problem)
        texts = [[*prompt, *self.format.step(step, 1)] for step in steps]
        return [self._reading(ids, [len(ids) - 1], [[]], 0, 0) for ids in texts]

    def refuse_constant(self, scores: Sequence[float]) -> None:
        """Check that the scores of `ANSWERS` vary. They are all equal if the weights of the head, or of the positions,
        were lost, or if the model reads another format than its own: that raises a ConfigurationError."""
        if max(scores) - min(scores) <= SPREAD:
            raise ConfigurationError(
                f"{self.name!r} scores everything {scores[0]:.6g}, right, wrong or nonsense: some of its weights are "
                "not those of a reward model. Check that its files belong together, fetch them again, or name its "
                f"family (format={self.format.family.name} was used); self_test=0 opens it all the same"
            )

    def _num_characters(self, trajectory: Trajectory) -> int:
        """Upper bound of the number of characters that have to be tokenized to read a trajectory."""
        new = [node for node in trajectory.path if self.prefix == "whole" or node not in self._step_ids]
        question = sum(len(message["content"]) for message in trajectory.problem.plain.messages)
        return question + sum(len(node.step.text) for node in new if node.step is not None)

    def _readings(self, trajectory: Trajectory) -> list[ReadingT]:
        """The readings needed to score the steps of a trajectory that have no score yet."""
        path = written_steps(trajectory)
        if all(node in self._scores for node in path):
            return []
        prompt = self.format.prompt(trajectory.problem)
        if self.prefix == "whole":
            readings: list[ReadingT] = []
            for node in path:
                if node in self._scores:
                    continue
                ids = [*prompt, *self.format.step(re.sub(r"\n\s*\n", "\n", node.text), 1)]
                self._text_lengths[node] = len(ids)
                if not self._recall(node, _digest(b"", ids)):
                    readings.append(self._new_reading(ids, [len(ids) - 1], [node], len(prompt), len(ids) - 1))
            return readings
        ids, ends, unread = list(prompt), [], []
        digest = _digest(b"", prompt)
        for number, node in enumerate(path, 1):
            if node not in self._step_ids:
                assert node.step is not None
                self._step_ids[node] = self.format.step(node.step.text, number)
            step = self._step_ids[node]
            ids += step
            ends.append(len(ids) - 1)
            digest = _digest(digest, step)
            if node not in self._scores and not self._recall(node, digest):
                unread.append(node)
        if not unread:
            return []
        positions = ends[len(path) - len(unread) :]  # a step is never scored before the steps that lead to it
        return [self._new_reading(ids, positions, unread, len(prompt), len(ids))]

    def _reads(self, trajectory: Trajectory) -> Reads:
        """The tokens that a model reads to score a trajectory, all of whose steps have scores."""
        written = written_steps(trajectory)
        prompt = len(self.format.prompt(trajectory.problem))
        if self.prefix == "whole":
            lengths = [self._text_lengths[node] for node in written]
            # A text begins with the tokens of the text before it, except the last one, where that text's score is read.
            new = [length - before + 1 for before, length in zip([prompt + 1, *lengths], lengths, strict=False)]
            full = lengths
        else:
            new = [len(self._step_ids[node]) for node in written]
            full = [0] * len(new)
            if full:
                full[-1] = prompt + sum(new)
        after = [0]
        added = dict(zip(written, new if self.keeps else full, strict=True))
        for node in reversed(trajectory.path):
            after.append(after[-1] + added.get(node, 0))
        shared = prompt if self.keeps and written else 0
        after[-1] += shared
        return Reads(shared, tuple(reversed(after)))

    def _recall(self, node: Trajectory, digest: bytes) -> bool:
        """Give a node the score that is remembered for its text's digest; False if there is none."""
        self._digests[node] = digest
        if digest not in self._scores_by_digest:
            return False
        self._scores[node] = self._scores_by_digest[digest]
        return True

    def forget(self) -> None:
        """Forget the scores of texts, so that they are read again. Partial answers that have scores keep them."""
        self._scores_by_digest.clear()

    def _remember(self, digest: bytes, score: float) -> None:
        self._scores_by_digest[digest] = score
        if len(self._scores_by_digest) > MAX_REMEMBERED:
            del self._scores_by_digest[next(iter(self._scores_by_digest))]

    def _new_reading(
        self, ids: list[int], positions: list[int], nodes: list[Trajectory], prompt_length: int, shared_length: int
    ) -> ReadingT:
        if self.context_length is not None and len(ids) > self.context_length:
            raise ContextLengthError(
                f"a partial answer takes {len(ids)} tokens and {self.name!r} has a context of "
                f"{self.context_length}: lower max_tokens or max_steps"
            )
        return self._reading(ids, positions, [[node] for node in nodes], prompt_length, shared_length)


def _digest(before: bytes, ids: Sequence[int]) -> bytes:
    """The digest of a text: `ids` after a text with the digest `before`."""
    return blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()


def wants_self_test(self_test: bool) -> bool:
    """Whether the option `self_test` wants the test.

    Raises:
        ConfigurationError: it is neither 0 nor 1.
    """
    if self_test not in (0, 1):
        raise ConfigurationError(f"self_test is 0 or 1, not {self_test!r}")
    return bool(self_test)
