"""What a run needs by itself, whatever else its models do at the same time and have done before."""

from __future__ import annotations

from dataclasses import dataclass, field

from motes.core import Failure, Problem, Scores, Step, Trajectory, Usage
from motes.protocols import LanguageModel, LanguageModelTraits, RewardModel


@dataclass(eq=False)
class Ledger:
    """Tells what each step and each score of a run costs, made of what the models say of it.

    A model has computed what a run of its own has asked of it, so a prompt, a prefix or a text of the same steps counts
    once in a run: it is needed where it is met first, and spared wherever it is met again. What this comes to does not
    depend on the order in which steps and scores arrive. Where a model does not share what is alike
    (`shares_prefixes` of a language model, `Scores.reads`), everything counts as often as it is asked for.
    """

    _prefixes: dict[Trajectory | Problem, int] = field(
        default_factory=dict
    )  # tokens known of what a step stands behind
    _texts: dict[tuple[int, str] | Problem, int] = field(default_factory=dict)  # a number for each text, by its steps
    _read: set[tuple[int, int]] = field(default_factory=set)  # by which reward model, and which text

    def step(self, parent: Trajectory, step: Step | Failure, lm: LanguageModel) -> Usage:
        """What a step behind `parent` costs."""
        if isinstance(step, Failure):
            return _failed(step.usage, Usage(lm_calls=1))
        told = step.usage or Usage(generated_tokens=len(step.token_ids))
        prefix = told.prefill_tokens + told.prefill_tokens_cached if step.prefix_tokens is None else step.prefix_tokens
        known = 0
        if LanguageModelTraits.of(lm).shares_prefixes:
            place = parent.problem if parent.step is None else parent
            known = min(prefix, max(self._prefixes.get(place, 0), self._drawn(parent)))
            self._prefixes[place] = max(prefix, known)
        return Usage(
            generated_tokens=told.generated_tokens,
            prefill_tokens=prefix - known,
            prefill_tokens_cached=known,
            lm_calls=1,
            computed_prefill_tokens=told.prefill_tokens,
            failed_generated_tokens=told.failed_generated_tokens,
            failed_prefill_tokens=told.failed_prefill_tokens,
        )

    def scores(self, trajectory: Trajectory, scores: object, reward: RewardModel) -> Usage:
        """What the scores of a trajectory cost, or the attempt to have some."""
        if isinstance(scores, Failure):
            return _failed(scores.usage, Usage(reward_calls=1))
        if not isinstance(scores, Scores):
            return Usage(reward_calls=1)
        told, reads = scores.usage, scores.reads
        if reads is None:
            needed, spared = told.reward_tokens + told.reward_tokens_cached, 0
        else:
            texts = [(id(reward), number) for number in self._numbers_of(trajectory)]
            known = next((t for t in range(len(texts) - 1, 0, -1) if texts[t] in self._read), 0)
            needed = reads.after[known] - (reads.prompt if known == 0 and texts[0] in self._read else 0)
            spared = reads.after[0] - needed
            self._read.update(texts)
        return Usage(
            reward_tokens=needed,
            reward_tokens_cached=spared,
            reward_calls=1,
            computed_reward_tokens=told.reward_tokens,
            failed_reward_tokens=told.failed_reward_tokens,
        )

    def _drawn(self, trajectory: Trajectory) -> int:
        """Tokens known of what stands behind a step that the language model has drawn: those before it, and its own."""
        before = trajectory.parent
        if before is None or trajectory.step is None:
            return 0
        known = self._prefixes.get(before.problem if before.step is None else before)
        return 0 if known is None else known + trajectory.step.num_tokens

    def _numbers_of(self, trajectory: Trajectory) -> list[int]:
        """(T + 1,) a number for the problem, and one for each partial answer on the path: the same for the same steps
        about the same problem."""
        numbers = [self._texts.setdefault(trajectory.problem, len(self._texts))]
        for node in trajectory.path:
            assert node.step is not None
            numbers.append(self._texts.setdefault((numbers[-1], node.step.text), len(self._texts)))
        return numbers


def _failed(usage: Usage, call: Usage) -> Usage:
    return call + Usage(
        failed_generated_tokens=usage.generated_tokens + usage.failed_generated_tokens,
        failed_prefill_tokens=usage.prefill_tokens + usage.failed_prefill_tokens,
        failed_reward_tokens=usage.reward_tokens + usage.failed_reward_tokens,
    )
