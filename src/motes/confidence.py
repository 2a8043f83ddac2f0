"""How certain the language model was of an answer: summaries of `Step.certainty` over the tokens of a text.

With c_i the confidence of token i among the k likeliest tokens (`motes.core.Certainty`):

    "entropy"     minus the mean entropy of all tokens
    "certainty"   the mean of all c_i: self-certainty (arXiv 2502.18581), here among the k likeliest tokens
    "tail"        the mean of the last `window` tokens
    "lowest"      the least mean of `window` consecutive tokens
    "bottom"      the mean of the lowest tenth of these means

The last three are those of DeepConf (arXiv 2508.15260, section 3.1), whose window has 2,048 tokens, for answers of ten
thousand and more. A text that is shorter than the window counts as one window.

The score of a text with the confidence c is 1 − e^(1 − c/log k): 0 where the k tokens are equally likely (c = log k),
1 where only one is possible. With the entropy H it is e^−H. Only its order has a meaning, unless it is calibrated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np

from motes.core import NEUTRAL, Certainty, FloatArray, Trajectory
from motes.core.certainty import Float32Array
from motes.errors import EngineError

Running = Literal["entropy", "certainty", "tail", "lowest"]
"""The measures that can be computed token by token."""
Measure = Literal["entropy", "certainty", "tail", "lowest", "bottom"]

WINDOW = 2048
TOP_LOGPROBS = 20
"""Number of likeliest tokens, as in the paper: the largest that vLLM and OpenAI grant by default."""


@dataclass(frozen=True, eq=False)
class Confidence:
    """A summary of the tokens of a text, to which further tokens can be added.

    Attributes:
        window: number of tokens of a window.
        k: number of likeliest tokens; 0 before the first token.
        num_tokens: of the text, as far as their certainty is known.
        entropy: sum over all tokens, in nats.
        certainty: sum of c_i over all tokens.
        recent: the c_i of the latest steps, as these have them: at least the last `window` − 1.
        tail: mean of the last `window` c_i; NaN before the first token.
        lowest: least mean of a full window; infinite if there is none.
    """

    window: int = WINDOW
    k: int = 0
    num_tokens: int = 0
    entropy: float = 0.0
    certainty: float = 0.0
    recent: tuple[Float32Array, ...] = ()
    tail: float = math.nan
    lowest: float = math.inf

    def add(self, certainty: Certainty | None) -> Confidence:
        """The summary of the text with these tokens added."""
        if certainty is None or not len(certainty):
            return self
        new = certainty.confidences
        recent = [*self.recent, new]
        latest = np.concatenate(recent).astype(np.float64)[-(self.window - 1 + len(new)) :]  # all windows with new ones
        lowest = self.lowest
        if len(latest) >= self.window:
            lowest = min(lowest, float(window_means(latest, self.window).min()))
        spare = sum(map(len, recent)) - (self.window - 1)
        while recent and len(recent[0]) <= spare:
            spare -= len(recent.pop(0))
        return Confidence(
            self.window,
            min(self.k or certainty.k, certainty.k),
            self.num_tokens + len(new),
            self.entropy + float(certainty.entropies.sum(dtype=np.float64)),
            self.certainty + float(new.sum(dtype=np.float64)),
            tuple(recent),
            float(latest[-self.window :].mean()),
            lowest,
        )

    def measure(self, name: Running) -> float:
        """The measure of that name; NaN if the text has no token. Minus the mean entropy for "entropy"."""
        if not self.num_tokens:
            return math.nan
        if name == "entropy":
            return -self.entropy / self.num_tokens
        if name == "tail" or (name == "lowest" and math.isinf(self.lowest)):
            return self.tail
        return self.lowest if name == "lowest" else self.certainty / self.num_tokens

    def score(self, name: Running) -> float:
        """The score by the measure of that name, in [0, 1]; neutral without a token."""
        return score_of(self.measure(name), name, self.k)


class Confidences:
    """The confidence of texts, each step of which is read once.

    Args:
        window: number of tokens of a window.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._empty = Confidence(window)
        self._known: WeakKeyDictionary[Trajectory, Confidence] = WeakKeyDictionary()

    def of(self, trajectory: Trajectory) -> Confidence:
        """The confidence of a partial answer.

        Raises:
            EngineError: a step has tokens and no certainty.
        """
        unread: list[Trajectory] = []
        node: Trajectory | None = trajectory
        while node is not None and node not in self._known:
            unread.append(node)
            node = node.parent
        confidence = self._empty if node is None else self._known[node]
        for node in reversed(unread):
            if node.step is not None:
                certainty = node.step.certainty
                if node.step.num_tokens and (certainty is None or certainty.k < 2):
                    raise EngineError(
                        "the language model returned no log-probabilities of the likeliest tokens with a step: use "
                        "another measure than confidence, or a server that returns them (`motes doctor URL`)"
                    )
                confidence = confidence.add(certainty)
            self._known[node] = confidence
        return confidence

    def scores(self, trajectory: Trajectory, measure: Running) -> list[float]:
        """The score of each prefix, in [0, 1]; neutral before the first token."""
        return [self.of(node).score(measure) for node in trajectory.path]


def score_of(value: float, measure: Measure, k: int) -> float:
    """The score, in [0, 1], of a text with this value of a measure; neutral for NaN."""
    if math.isnan(value):
        return NEUTRAL
    if measure == "entropy":
        return math.exp(min(value, 0.0))
    return -math.expm1(min(1 - value / math.log(k), 0.0))


def window_means(values: FloatArray, window: int) -> FloatArray:
    """The means of all windows of consecutive values; of all values if they are fewer than a window has.

    Args:
        values: (n,) n ≥ 1.

    Returns:
        (max(1, n − window + 1),)
    """
    window = min(window, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((sums[window:] - sums[:-window]) / window)


def measure_trajectory(trajectory: Trajectory, measure: Measure, confidences: Confidences) -> float:
    """The value of a measure for a whole answer; NaN if it has no token. Errors: see `Confidences.of`."""
    whole = confidences.of(trajectory)
    if measure != "bottom":
        return whole.measure(measure)
    parts = [step.certainty.confidences.astype(np.float64) for step in trajectory.steps if step.certainty is not None]
    if not parts:
        return math.nan
    means = np.sort(window_means(np.concatenate(parts), whole.window))
    return float(means[: math.ceil(len(means) / 10)].mean())
