"""The local process reward model, of any family in `motes.rewards.families`: shared prefixes, incremental scoring.

A step's score depends only on the text up to it, so a step is read once: its keys and values are kept, and a longer
trajectory costs only the tokens of its new steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motes.checkpoint import checkpoint_config
from motes.core import Failure, Trajectory, Usage
from motes.errors import ConfigurationError, RewardError
from motes.gguf import find_gguf
from motes.kv.checkpoint import open_checkpoint
from motes.kv.engine import Engine, take_similar
from motes.kv.worker import Request
from motes.rewards.families import Family, NextToken, family, recognise
from motes.rewards.format import Format
from motes.rewards.layouts import Qwen2ForProcessRewardModel, head_of, model_class, probability
from motes.rewards.reading import ANSWERS, QUESTION, Key, Prefix, Reader, Reading, wants_self_test
from motes.vocabulary import Vocabulary

__all__ = ["LocalPRM", "Qwen2ForProcessRewardModel"]

MAX_ROWS = 256
"""Maximum number of texts that are read in one batch."""


@dataclass(eq=False)
class _Reading(Reading, Request):
    computed: int = 0


class LocalPRM(Engine[_Reading]):
    """A process reward model on CPU or GPU.

    Args:
        model: in evaluation mode. A language model's head is narrowed to the two rows that give the score, see
            `motes.rewards.layouts.head_of`.
        vocabulary: its tokenizer.
        format: the model's family, by name or as your own declaration.
        prefix: "steps" or "whole", see `motes.rewards.reading.Reader`.
        max_cached_tokens, max_batch_tokens, num_threads: see `motes.kv.engine.Engine`.
    """

    merges_calls = True
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
        self.format = Format(family(format), vocabulary)
        head = head_of(model, self.format.words)
        super().__init__(model, head, vocabulary, max_cached_tokens, max_batch_tokens, num_threads, name)
        self._reader = Reader(self.format, prefix, name=name, context_length=self.context_length, reading=_Reading)
        self.prefix = prefix
        self._waiting: list[_Reading] = []

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
            format: its family; by default the family of its architecture or its name, see `families.recognise`.
            self_test: whether to refuse a model whose scores do not vary (0 or 1).
            path, device, dtype: see `motes.kv.checkpoint.open_checkpoint`.
            options: see `LocalPRM`.

        Raises:
            ConfigurationError: there is no such checkpoint, its kind or family is unknown, or its scores do not vary.
        """
        wants_test = wants_self_test(self_test)
        chosen_family = recognise(path, checkpoint_config(path)) if format is None else family(format)
        if not isinstance(chosen_family.head, NextToken) and find_gguf(path) is not None:
            raise ConfigurationError(
                f"{path!r} is a GGUF file, which holds a language model, and reward models of the family "
                f"{chosen_family.name} have a head of their own: use the checkpoint that the file was made of"
            )
        model, vocabulary = open_checkpoint(model_class(chosen_family.head), path, device, dtype)
        prm = cls(model, vocabulary, format=chosen_family, name=Path(path).name, **options)
        if wants_test:
            prm._require_varying_scores()
        return prm

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`. Texts of concurrent calls are read in one batch, equal texts once."""
        return await self._reader.score(trajectories, self._submit)

    def forget(self) -> None:
        """See `motes.protocols.RewardModel`."""
        self._reader.forget()

    async def _submit(self, readings: list[_Reading]) -> list[list[float]]:
        for reading in readings:
            self.require_known(reading.ids)
        return await self.submit(readings)

    # In the worker's thread:

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def work(self, arrived: list[_Reading]) -> None:
        self._waiting += arrived
        by_key: dict[Key, list[_Reading]] = {}  # equal texts are read once
        for reading in self._take():
            by_key.setdefault(reading.key, []).append(reading)
        group = [equal[0] for equal in by_key.values()]
        self._read_prompts(group)
        for equal, scores in zip(by_key.values(), self._read(group), strict=True):
            for reading in equal:
                cached = len(reading.ids) - reading.computed
                reading.usage = Usage(reward_tokens=reading.computed, reward_tokens_cached=cached)
                reading.resolve(scores)

    def abandon(self) -> None:
        self._waiting = []
        super().abandon()

    def _take(self) -> list[_Reading]:
        """Take the next batch out of the waiting readings, the shortest first."""
        group = take_similar(self._waiting, MAX_ROWS, self.max_batch_tokens)
        return sorted(group, key=lambda reading: len(reading.ids))

    def _read_prompts(self, group: list[_Reading]) -> None:
        """Read the prompts that are not stored yet, each once; the first text with a prompt bears its cost."""
        first_of: dict[tuple[int, ...], _Reading] = {}
        for reading in group:
            prompt = tuple(reading.ids[: reading.prompt_length])
            if prompt not in first_of and len(self.tree.match(prompt)) < len(prompt):
                first_of[prompt] = reading
        prompt_readings = [_Reading(list(prompt), [], [], len(prompt), len(prompt)) for prompt in first_of]
        self._read(prompt_readings)
        for prompt_only, reading in zip(prompt_readings, first_of.values(), strict=True):
            reading.computed += prompt_only.computed

    def _read(self, group: list[_Reading]) -> list[list[float]]:
        """The scores at each reading's positions. Stores the keys and values of its first `shared_length` tokens."""
        # 1) read the tokens that are not stored; the first position is read in any case, for its hidden state
        workspace = self._runner.workspace
        stored = [self.tree.match(reading.ids[: min(reading.positions, default=None)]) for reading in group]
        starts = list(map(len, stored))
        workspace.append(stored)
        states: list[list[Tensor]] = [[] for _ in group]  # (positions, hidden) for each reading
        missing = [reading.ids[start:] for reading, start in zip(group, starts, strict=True)]
        for i, at, hidden in self._runner.feed(0, missing):
            begin = starts[i] + at
            group[i].computed += len(hidden)
            states[i] += [hidden[p - begin] for p in group[i].positions if begin <= p < begin + len(hidden)]
        # 2) compute scores from the hidden states
        scores: list[float] = []
        if any(states):
            logits = self._head(torch.stack([state for of_reading in states for state in of_reading]))
            self._runner.require_numbers(logits)
            scores = probability(logits).tolist()
        # 3) store keys and values
        self._runner.store(self.tree, range(len(group)), [reading.ids[: reading.shared_length] for reading in group])
        workspace.lengths.clear()
        remaining = iter(scores)
        return [[next(remaining) for _ in of_reading] for of_reading in states]

    def _require_varying_scores(self) -> None:
        readings = self._reader.texts(QUESTION, ANSWERS)
        for reading in readings:
            self.require_known(reading.ids)
        with torch.inference_mode():
            scores = [score for (score,) in self._read(readings)]
        self._reader.refuse_constant(scores)
