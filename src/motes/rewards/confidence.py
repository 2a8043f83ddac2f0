"""The language model's own confidence as a reward: no second model, no further token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from motes.arguments import whole_number
from motes.confidence import TOP_LOGPROBS, WINDOW, Confidences, Running
from motes.core import Failure, Reads, Scores, Trajectory, Usage
from motes.errors import EngineError, RewardError, UnknownNameError


class ConfidenceReward:
    """Scores each prefix by how certain the language model was of its tokens (`motes.confidence`).

    The model has to return the log-probabilities of the likeliest tokens: the local engine does, and servers of vLLM,
    SGLang, llama.cpp, TGI and OpenAI's chat do. Reading them costs no token of either model.

    Whether a model is more certain of right answers than of wrong ones to the same problem differs by model and task:
    look at the AUROC within problems in a report (`motes eval --reward confidence:`) before you trust it.

    A trajectory with a step for which the model returned none of them has no score.

    Args:
        measure: "certainty", "entropy", "tail" or "lowest".
        window: number of tokens of a window, for "tail" and "lowest".
        top_logprobs: number of likeliest tokens that are read.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    num_parameters = 0
    merges_calls = True  # a call costs nothing

    def __init__(
        self, measure: Running = "certainty", *, window: int = WINDOW, top_logprobs: int = TOP_LOGPROBS
    ) -> None:
        if measure not in get_args(Running):
            raise UnknownNameError("measure of confidence", str(measure), get_args(Running))
        self.measure: Running = measure
        self.window = whole_number("window", window, least=1)
        self.top_logprobs = whole_number("top_logprobs", top_logprobs, least=2)
        self._confidences = Confidences(self.window)

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`."""
        return [self._score(trajectory) for trajectory in trajectories]

    def _score(self, trajectory: Trajectory) -> Sequence[float] | Failure:
        try:
            values = self._confidences.scores(trajectory, self.measure)
        except EngineError as error:
            return Failure(RewardError(str(error)))
        return Scores(values, Usage(), Reads(0, (0,) * (len(values) + 1)))

    def __repr__(self) -> str:
        return f"ConfidenceReward({self.measure!r})"
