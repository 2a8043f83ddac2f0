"""Reads the hidden states of steps that the local engine has not sampled, or not with `Sampling.hidden_layers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from motes.core import HiddenStates, Reads, Usage
from motes.core.hidden import StepStates
from motes.kv.runner import Runner
from motes.kv.tree import PrefixTree
from motes.kv.worker import Request

MAX_ROWS = 8
"""Maximum number of answers that are read together: the states of all of their tokens are in memory."""


@dataclass(eq=False)
class StateReading(Request):
    """A request for the states of some steps of an answer.

    Attributes:
        ids: tokens of the prompt and of the answer.
        spans: for each step, (start, stop): its sampled tokens are ids[start:stop].
        layers: numbers of layers, in ascending order.
        reads: the tokens that reading the whole answer needs.
    """

    ids: list[int]
    spans: Sequence[tuple[int, int]]
    layers: tuple[int, ...]
    reads: Reads

    @property
    def first(self) -> int:
        """The place of the first token whose state is needed."""
        return self.spans[0][0] - 1


def read_states(runner: Runner, tree: PrefixTree, group: Sequence[StateReading]) -> None:
    """Settle the readings. Their rows follow those that are in the workspace, and are removed."""
    workspace = runner.workspace
    first_row = workspace.num_rows
    stored = [tree.match(reading.ids[: reading.first]) for reading in group]
    starts = list(map(len, stored))
    workspace.append(stored)
    layers = tuple(sorted({layer for reading in group for layer in reading.layers}))
    sequences = [reading.ids[: reading.spans[-1][1] - 1] for reading in group]  # a last token is predicted, not read
    states: list[list[npt.NDArray[np.float32]]] = [[] for _ in group]
    missing = [ids[start:] for ids, start in zip(sequences, starts, strict=True)]
    for i, _, hidden in runner.feed(first_row, missing, layers):
        states[i].append(hidden.cpu().numpy())
    rows = np.arange(first_row, first_row + len(group))
    runner.store(tree, rows.tolist(), sequences)
    workspace.remove(rows)
    for reading, start, parts in zip(group, starts, states, strict=True):
        values = np.concatenate(parts)[:, [layers.index(layer) for layer in reading.layers]] if parts else None
        steps = tuple(
            _summary(reading.layers, values[begin - 1 - start : end - 1 - start])
            if values is not None and begin < end
            else None
            for begin, end in reading.spans
        )
        usage = Usage(reward_tokens=len(reading.ids) - 1 - start, reward_tokens_cached=start)
        reading.resolve(StepStates(steps, usage, reading.reads))


def _summary(layers: tuple[int, ...], states: npt.NDArray[np.float32]) -> HiddenStates:
    """The states of a step whose tokens were sampled from these states, (tokens, L, d)."""
    return HiddenStates(layers, np.stack([states[-1], states.mean(0)], axis=1).astype(np.float16))
