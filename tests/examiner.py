"""A language model that judges: it reads the arithmetic in what it is asked, and believes or doubts it.

Opened by name as "examiner:model", so that "judge:examiner:model" is a reward model.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from motes import Rubric, Sampling, Step, Trajectory, Usage
from motes.core import Failure
from motes.errors import ContextLengthError, MotesError

CUE = re.compile(r"(Verdict:|Grade:|Is the solution correct\?)$")
STERN = Rubric(name="stern", prompt="{question}\n\n{solution}\n\nWould you stake your life on it?")


def belief(asked: str) -> float:
    """How probable the examiner thinks it is that all is right: 0.9 and less, or 0.3 and less where a sum is wrong."""
    sums = re.findall(r"(\d+)\+(\d+)=(\d+)", asked)
    wrong = any(int(a) + int(b) != int(c) for a, b, c in sums)
    digest = hashlib.sha256(asked.encode()).digest()
    return (0.3 if wrong else 0.9) - 0.1 * digest[0] / 256


class Examiner:
    """Says "Yes" or "No" behind a cue, or something else.

    Args:
        logprobs: whether it tells log-probabilities.
        mumbles: the probability of a token that is no verdict.
        says: of a text that it was asked about, the probability of each token; instead of "Yes", "No" and mumbling.
        fails: for a text that it was asked about, an error instead of a step.
        context: characters that a prompt may have.
    """

    def __init__(
        self,
        *,
        logprobs: bool = True,
        merges_calls: bool = False,
        continues_prefixes: bool = True,
        mumbles: float = 0.0,
        says: Callable[[str], Mapping[str, float]] | None = None,
        fails: Callable[[str], MotesError | None] = lambda asked: None,
        context: int = 10**6,
    ) -> None:
        self.logprobs = logprobs
        self.merges_calls = merges_calls
        self.continues_prefixes = continues_prefixes
        self.mumbles = mumbles
        self.says = says
        self.fails = fails
        self.context = context
        self.calls: list[list[Trajectory]] = []
        self.samplings: list[Sampling] = []
        self.spent = Usage()

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Step | Failure]:
        self.calls.append(list(trajectories))
        self.samplings.append(sampling)
        await asyncio.sleep(0)
        if any(len(t.problem.question) > self.context for t in trajectories):
            raise ContextLengthError("the prompt is too long: shorten the question")
        errors = [self.fails(t.problem.question) for t in trajectories]
        outcomes = [
            Failure(error) if error else self._step(t, sampling, seed)
            for error, t, seed in zip(errors, trajectories, seeds, strict=True)
        ]
        for outcome in outcomes:
            self.spent += outcome.usage or Usage()
        return outcomes

    def tokens(self, asked: str) -> dict[str, float]:
        """The probability of each token behind a cue."""
        if self.says is not None:
            return dict(self.says(asked))
        yes = belief(asked)
        return {" Yes": yes * (1 - self.mumbles), " No": (1 - yes) * (1 - self.mumbles), " Hmm": self.mumbles}

    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        asked = trajectory.problem.question
        usage = Usage(generated_tokens=1, prefill_tokens=len(asked) // 10, prefill_tokens_cached=len(trajectory.text))
        chance = np.random.default_rng(seed)
        verdicts = self.tokens(asked)
        token = max(verdicts, key=verdicts.__getitem__)
        if sampling.temperature > 0:
            token = str(chance.choice(list(verdicts), p=list(verdicts.values())))
        logprob = math.log(verdicts[token]) if self.logprobs else None
        if not self.continues_prefixes:
            return Step(
                f"I looked. Is the solution correct?{token}\n\n**Verdict:**{token}.", "eos", usage=usage, logprob=-20.0
            )
        if CUE.search(trajectory.text):
            assert (sampling.max_step_tokens, sampling.delimiter) == (1, None)
            return Step(token, "length", token_ids=(list(verdicts).index(token),), usage=usage, logprob=logprob)
        ends: Any = sampling.delimiters
        thought = f"Thought {int(chance.integers(100))}: \\boxed{{correct}}.\n"
        return Step(thought + ends[int(chance.integers(len(ends)))] + " Ye", "step", usage=usage, logprob=-5.0)


def model(**options: Any) -> Examiner:
    return Examiner(**options)
