"""The sequences that the local engine decodes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from motes.core import Certainty, HiddenStates, Sampling, Usage
from motes.core.hidden import STATES
from motes.kv.runner import moves
from motes.kv.worker import Request
from motes.thoughts import ThoughtReading
from motes.vocabulary import TextEnds


@dataclass(eq=False)
class Extension(Request):
    """A request to extend one trajectory by a step. Once it is admitted, it is a sequence in the batch."""

    ids: list[int]  # all tokens so far; the last one is fed first
    sampling: Sampling
    seed: int
    limit: int  # maximum number of tokens of this step
    ends: TextEnds | None = None  # finds delimiters and stop texts; None: there are none, or there is a pattern
    thoughts: ThoughtReading = ThoughtReading()  # the state of the text before the step  # noqa: RUF009 (frozen)
    before: str = ""  # the beginning of the step's text: the last step's overrun, or the opening in the prompt
    prompt_usage: Usage = field(default_factory=Usage)
    layers: tuple[int, ...] = ()  # layers whose states the step gets
    text: str = ""  # the step's text so far, if the sampling has a pattern
    read: Callable[[int], str] | None = None  # returns the text that a token adds

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values are needed before the first token can be sampled."""
        return self.ids[:-1]

    @property
    def longest(self) -> int:
        return len(self.ids) + self.limit


WIDE = ("step_tokens", "certainty", "hidden")
"""The arrays of a batch that have more than one number for each row."""


class Batch:
    """The sequences that decode together, as arrays with the workspace's rows."""

    def __init__(self) -> None:
        self.requests: list[Extension] = []
        self.token = np.zeros(0, dtype=np.int64)  # the last token of each row, which is fed next
        self.count = np.zeros(0, dtype=np.int64)  # number of tokens sampled in this step
        self.limit = np.zeros(0, dtype=np.int64)
        self.seed = np.zeros(0, dtype=np.uint64)
        self.logprob = np.zeros(0)
        self.proposal_logprob = np.zeros(0)
        self.step_tokens = np.zeros((0, 0), dtype=np.int64)  # (rows, at least the largest count)
        self.certainty = np.zeros((0, 0, 3), dtype=np.float32)  # likewise, once a row asks for it; see `Certainty`
        self.layers: tuple[int, ...] = ()  # layers whose states the rows ask for
        self.hidden = np.zeros((0, 0, STATES, 0), dtype=np.float32)  # (rows, layers, last state and sum, hidden size)

    def __len__(self) -> int:
        return len(self.requests)

    def append(self, requests: Sequence[Extension]) -> None:
        self.requests.extend(requests)
        n = len(requests)
        self.token = np.append(self.token, [request.ids[-1] for request in requests])
        self.count = np.append(self.count, np.zeros(n, dtype=np.int64))
        self.limit = np.append(self.limit, [request.limit for request in requests])
        self.seed = np.append(self.seed, np.array([request.seed for request in requests], dtype=np.uint64))
        self.logprob = np.append(self.logprob, np.zeros(n))
        self.proposal_logprob = np.append(self.proposal_logprob, np.zeros(n))
        for name in WIDE:
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros((n, *array.shape[1:]), dtype=array.dtype)]))

    def widen(self, name: str) -> None:
        """Make room for one more token in each row of an array, if there is none."""
        array = getattr(self, name)
        if array.shape[1] <= self.count.max():
            wider = np.zeros(
                (len(array), max(32, 2 * array.shape[1], self.count.max() + 1), *array.shape[2:]), array.dtype
            )
            wider[:, : array.shape[1]] = array
            setattr(self, name, wider)

    def remove(self, rows: npt.NDArray[np.intp]) -> None:
        """Remove rows; the last rows take their places, as in the workspace."""
        sources, targets = moves(rows, len(self))
        left = len(self) - len(rows)
        for source, target in zip(sources, targets, strict=True):
            self.requests[target] = self.requests[source]
        del self.requests[left:]
        for name in (
            "token",
            "count",
            "limit",
            "seed",
            "logprob",
            "proposal_logprob",
            "step_tokens",
            "certainty",
            "hidden",
        ):
            array = getattr(self, name)
            array[targets] = array[sources]
            setattr(self, name, array[:left])

    def record_certainty(self, logprobs: npt.NDArray[np.float32], top_logprobs: npt.NDArray[np.float32]) -> None:
        """Record how certain the model was of the token that it has sampled, in the rows that ask for it.

        Args:
            logprobs: (B,) of the sampled tokens.
            top_logprobs: (B, k) of the likeliest tokens, the largest first.
        """
        self.widen("certainty")
        numbers = np.array([request.sampling.top_logprobs for request in self.requests])
        for k in np.unique(numbers[numbers > 0]):
            rows = np.flatnonzero(numbers == k)
            self.certainty[rows, self.count[rows]] = Certainty.of(logprobs[rows], top_logprobs[rows, :k]).values

    def set_layers(self) -> None:
        """Make room for the states of the layers that the rows ask for now, and keep those that they have."""
        layers = tuple(sorted({layer for request in self.requests for layer in request.layers}))
        if layers == self.layers:
            return
        hidden = np.zeros((len(self), len(layers), *self.hidden.shape[2:]), dtype=np.float32)
        both = [layer for layer in layers if layer in self.layers]
        hidden[:, [layers.index(layer) for layer in both]] = self.hidden[
            :, [self.layers.index(layer) for layer in both]
        ]
        self.layers, self.hidden = layers, hidden

    def record_states(self, states: npt.NDArray[np.float32], is_recorded: npt.NDArray[np.bool_]) -> None:
        """Record the states from which the tokens were sampled.

        Args:
            states: (B, L, d) of `layers`.
            is_recorded: (B,) whether the row's token belongs to its step.
        """
        if not self.hidden.shape[-1]:
            self.hidden = np.zeros((*self.hidden.shape[:-1], states.shape[-1]), dtype=np.float32)
        self.hidden[is_recorded, :, 0] = states[is_recorded]
        self.hidden[is_recorded, :, 1] += states[is_recorded]

    def states_of(self, row: int) -> HiddenStates | None:
        """The states of a row's step; None if it asks for none."""
        layers = self.requests[row].layers
        if not layers:
            return None
        values = self.hidden[row, [self.layers.index(layer) for layer in layers]]
        values[:, 1] /= max(self.count[row], 1)
        return HiddenStates(layers, values.astype(np.float16))
