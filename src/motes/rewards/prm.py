"""The local process reward model, of any family in `motes.rewards.families`: shared prefixes, incremental scoring.

A step's score depends on what comes before it only, so a step is read once: its keys and values are kept, and a longer
trajectory costs only the tokens of its new steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    MotesError,
    RewardError,
    ScoresFailedError,
    UnknownNameError,
)
from motes.kv.checkpoint import checkpoint_config, open_checkpoint
from motes.kv.engine import Engine
from motes.kv.vocabulary import Vocabulary
from motes.kv.worker import Request
from motes.rewards.families import Family, family, recognise
from motes.rewards.format import Format
from motes.rewards.layouts import Qwen2ForProcessRewardModel, head_of, model_class, probability
from motes.types import Problem, Scores, Trajectory, Usage

__all__ = ["LocalPRM", "Qwen2ForProcessRewardModel"]

MAX_ROWS = 256
"""Texts read together."""

Prefix = Literal["steps", "whole"]

SELF_TEST = (
    "2+2=4. The answer is \\boxed{4}.",
    "2+2=5. The answer is \\boxed{5}.",
    "I do not know.",
    "Bananas are yellow, and the train was late again!",
)
"""Answers to "What is 2+2?" that no reward model likes alike."""
SELF_TEST_SPREAD = 1e-4
"""Scores that lie closer together than this do not vary."""


@dataclass(eq=False)
class _Reading(Request):
    """A text to be read, and where in it probabilities are wanted. Its result is one probability for each place."""

    ids: list[int]
    at: list[int]  # positions in `ids`, ascending
    nodes: list[list[Trajectory]]  # for each position, the partial answers whose score is read there
    prompt: int  # tokens of `ids` that every text about this problem begins with
    keep: int  # tokens of `ids` that longer texts will begin with
    computed: int = 0

    @property
    def usage(self) -> Usage:
        return Usage(reward_tokens=self.computed, reward_tokens_cached=len(self.ids) - self.computed)


class LocalPRM(Engine[_Reading]):
    """A process reward model on CPU or GPU.

    Args:
        model: in evaluation mode. Of a language model's head only the two rows that decide are left, see
            `motes.rewards.layouts.head_of`.
        vocabulary: its tokenizer.
        format: the family it is of, by name or as a declaration of your own.
        prefix: "steps": each step is followed by the tag, all are read in one text. "whole": a prefix is read as one
            single step, blank lines collapsed (the paper's "model" aggregation, arXiv 2502.01618); the score of step t
            is then that of the text up to t.
        max_cached_tokens, max_batch_tokens, num_threads: see `motes.kv.engine.Engine`.
    """

    role, error = "reward model", RewardError

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        format: str | Family = "qwen",
        prefix: Prefix = "steps",
        max_cached_tokens: int | None = None,
        max_batch_tokens: int | None = None,
        num_threads: int | None = None,
        name: str = "local",
    ) -> None:
        if prefix not in ("steps", "whole"):
            raise UnknownNameError("prefix", prefix, ("steps", "whole"))
        self.format = Format(family(format), vocabulary)
        super().__init__(
            model,
            head_of(model, self.format.words),
            vocabulary,
            max_cached_tokens=max_cached_tokens,
            max_batch_tokens=max_batch_tokens,
            num_threads=num_threads,
            name=name,
        )
        self.prefix = prefix
        self._known: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()
        self._waiting: list[_Reading] = []
        self._step_ids: WeakKeyDictionary[Trajectory, list[int]] = WeakKeyDictionary()

    @classmethod
    def open(
        cls,
        path: str,
        *,
        format: str | Family | None = None,
        self_test: bool = True,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> LocalPRM:
        """Open a checkpoint.

        Args:
            format: its family; by default what its architecture or its name says, see `families.recognise`.
            self_test: whether to refuse a model whose scores do not vary (0 or 1).
            path, device, dtype: see `motes.kv.checkpoint.open_checkpoint`.
            options: see `LocalPRM`.

        Raises:
            ConfigurationError: there is no such checkpoint, it is of another kind or of a family that cannot be told,
                or its scores do not vary.
        """
        if self_test not in (0, 1):
            raise ConfigurationError(f"self_test is 0 or 1, not {self_test!r}")
        kind = recognise(path, checkpoint_config(path)) if format is None else family(format)
        model, vocabulary = open_checkpoint(model_class(kind.head), path, device, dtype)
        prm = cls(model, vocabulary, format=kind, name=Path(path).name, **options)
        if self_test:
            prm._refuse_constant()
        return prm

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        """See `motes.protocols.RewardModel`. Concurrent calls are read in one batch; equal texts are read once."""
        unread: dict[tuple[int, ...], _Reading] = {}
        mine: list[list[_Reading]] = []
        failures: dict[int, MotesError] = {}
        for i, trajectory in enumerate(trajectories):
            mine.append([])
            try:
                readings = list(self._readings(trajectory))
            except ContextLengthError as error:
                if len(self.format.prompt(trajectory.problem)) >= self.context_length:
                    raise
                failures[i] = error
                continue
            for reading in readings:
                key = (len(reading.at), *reading.ids)
                if key not in unread:
                    unread[key] = reading
                    mine[-1].append(reading)
                else:
                    for nodes, more in zip(unread[key].nodes, reading.nodes, strict=True):
                        nodes.extend(more)
        results = await self.submit(list(unread.values()))
        for reading, values in zip(unread.values(), results, strict=True):
            for nodes, value in zip(reading.nodes, values, strict=True):
                self._known.update((node, value) for node in nodes)
        scores = {
            i: Scores((self._known[node] for node in trajectory.path), sum((r.usage for r in readings), Usage()))
            for i, (trajectory, readings) in enumerate(zip(trajectories, mine, strict=True))
            if i not in failures
        }
        if failures:
            raise ScoresFailedError([failures.get(i) or scores[i] for i in range(len(trajectories))])
        return list(scores.values())

    # What is read, as tokens:

    def _readings(self, trajectory: Trajectory) -> Iterator[_Reading]:
        """What must be read for the steps of a trajectory that have no score yet."""
        path = trajectory.path
        unread = [node for node in path if node not in self._known]
        if not unread:
            return
        prompt = self.format.prompt(trajectory.problem)
        if self.prefix == "whole":
            for node in unread:
                ids = [*prompt, *self.format.step(re.sub(r"\n{2,}", "\n", node.text), 1)]
                yield self._checked(_Reading(ids, [len(ids) - 1], [[node]], len(prompt), len(ids) - 1))
            return
        ids, ends = list(prompt), []
        for node in path:
            ids += self._ids(node)
            ends.append(len(ids) - 1)
        at = ends[len(path) - len(unread) :]  # a step is never scored before those that lead to it
        yield self._checked(_Reading(ids, at, [[node] for node in unread], len(prompt), len(ids)))

    def _checked(self, reading: _Reading) -> _Reading:
        if len(reading.ids) > self.context_length:
            raise ContextLengthError(
                f"a partial answer takes {len(reading.ids)} tokens and {self.name!r} has a context of "
                f"{self.context_length}: lower max_tokens or max_steps"
            )
        self.require_known(reading.ids)
        return reading

    def _ids(self, node: Trajectory) -> list[int]:
        """A step's tokens, up to where its score is read."""
        if node not in self._step_ids:
            assert node.step is not None
            self._step_ids[node] = self.format.step(node.step.text, node.depth)
        return self._step_ids[node]

    # In the worker's thread:

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def work(self, arrived: list[_Reading]) -> None:
        self._waiting += arrived
        group = self._take()
        self._read_prompts(group)
        for reading, values in zip(group, self._read(group), strict=True):
            reading.resolve(values)

    def abandon(self) -> None:
        self._waiting = []
        super().abandon()

    def _take(self) -> list[_Reading]:
        """Out of the waiting, what is read together: the one that waits longest, and as many as fit of those that are
        nearest to it in length. So nobody waits for more than those who were there before."""
        waiting = [reading for reading in self._waiting if not reading.settled]
        nearest = sorted(waiting, key=lambda reading: abs(len(reading.ids) - len(waiting[0].ids)))
        group: list[_Reading] = []
        longest = 0
        for reading in nearest[:MAX_ROWS]:
            longest = max(longest, len(reading.ids))
            if group and (len(group) + 1) * longest > self.max_batch_tokens:
                break
            group.append(reading)
        taken = set(group)
        self._waiting = [reading for reading in waiting if reading not in taken]
        return sorted(group, key=lambda reading: len(reading.ids))

    def _read_prompts(self, group: list[_Reading]) -> None:
        """Prompts that are not stored yet are read first, each once; the first text about it bears the cost."""
        first_of: dict[tuple[int, ...], _Reading] = {}
        for reading in group:
            prompt = tuple(reading.ids[: reading.prompt])
            if prompt not in first_of and len(self.tree.match(prompt)) < len(prompt):
                first_of[prompt] = reading
        alone = [_Reading(list(prompt), [], [], len(prompt), len(prompt)) for prompt in first_of]
        self._read(alone)
        for prompt_only, reading in zip(alone, first_of.values(), strict=True):
            reading.computed += prompt_only.computed

    def _read(self, group: list[_Reading]) -> list[list[float]]:
        """Probabilities at each reading's places; what was computed on the way is stored."""
        workspace = self._runner.workspace
        starts: list[int] = []
        for reading in group:
            slots = self.tree.match(reading.ids[: reading.at[0]] if reading.at else reading.ids)
            workspace.append(slots)
            starts.append(len(slots))
        found: list[list[Tensor]] = [[] for _ in group]
        missing = [reading.ids[start:] for reading, start in zip(group, starts, strict=True)]
        for i, at, hidden in self._runner.feed(0, missing):
            begin = starts[i] + at
            group[i].computed += len(hidden)
            found[i] += [hidden[p - begin] for p in group[i].at if begin <= p < begin + len(hidden)]
        values: list[float] = []
        if any(found):
            logits = self._head(torch.stack([state for states in found for state in states]))
            self._runner.require_numbers(logits)
            values = probability(logits).tolist()
        for row, reading in enumerate(group):
            self._runner.store(self.tree, row, reading.ids[: reading.keep])
        workspace.lengths.clear()
        remaining = iter(values)
        return [[next(remaining) for _ in states] for states in found]

    def _refuse_constant(self) -> None:
        """Raise unless scores vary. They do not where weights were lost: of the head, or of the positions."""
        prompt = self.format.prompt(Problem("What is 2+2?"))
        readings = []
        for text in SELF_TEST:
            ids = [*prompt, *self.format.step(text, 1)]
            self.require_known(ids)
            readings.append(_Reading(ids, [len(ids) - 1], [[]], 0, 0))
        with torch.inference_mode():
            values = [value for (value,) in self._read(readings)]
        if max(values) - min(values) <= SELF_TEST_SPREAD:
            raise ConfigurationError(
                f"{self.name!r} scores everything {values[0]:.6g}, right, wrong or nonsense: its weights are not all "
                "those of a reward model. Check that its files belong together, fetch them again, or name its family "
                f"(format={self.format.family.name} was used); self_test=0 opens it all the same"
            )
