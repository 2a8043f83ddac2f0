"""The cost of a run by itself, independent of other work of its models, at the same time or before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from motes.core import Failure, Problem, Scores, Step, Trajectory, Usage
from motes.protocols import LanguageModel, LanguageModelTraits, RewardModel

Call = tuple[Trajectory, Step | Failure]
"""A call of a language model for one step: the trajectory that it extends, and its outcome."""


@dataclass(eq=False)
class Ledger:
    """Computes the cost of each step and each score of a run from the models' own counts.

    A prompt, a prefix or a text of the same steps counts as needed when it first occurs in a run, and as cached when it
    occurs again; so does the common beginning of two prompts (`prompt_ids` of a language model). The sum does not
    depend on the order in which steps and scores arrive. If a model does not share prefixes (`shares_prefixes` of a
    language model, `Scores.reads`), every occurrence counts as needed.
    """

    _prefix_lengths: dict[Trajectory | Problem, int] = field(default_factory=dict)  # in tokens, of the steps' parents
    _prompts: dict[Problem, Sequence[int]] = field(default_factory=dict)  # their token ids, where they are known
    _text_numbers: dict[tuple[int, str] | Problem, int] = field(default_factory=dict)  # see `_numbers_of`
    _turned: set[Trajectory] = field(default_factory=set)  # whose tokens a later step has turned into thoughts
    _scored: set[tuple[int, int]] = field(default_factory=set)  # (id of the reward model, number of the text)

    def step(self, parent: Trajectory, step: Step | Failure, lm: LanguageModel) -> Usage:
        """The cost of a step that extends `parent`."""
        if isinstance(step, Failure):
            return _cost_of_failure(step.usage, Usage(lm_calls=1))
        usage = step.usage or Usage(generated_tokens=len(step.token_ids))
        prefix = step.prefix_tokens
        if prefix is None:
            prefix = usage.prefill_tokens + usage.prefill_tokens_cached
        cached = 0
        if LanguageModelTraits(lm).shares_prefixes:
            key = parent.problem if parent.step is None else parent
            known = self._prefix_lengths.get(key)
            if known is None and parent.step is None:
                known = self._length_shared_with_prompts(parent.problem, lm)
            cached = min(prefix, max(known or 0, self._length_with_step(parent)))
            self._prefix_lengths[key] = max(prefix, cached)
        return Usage(
            generated_tokens=usage.generated_tokens,
            prefill_tokens=prefix - cached,
            prefill_tokens_cached=cached,
            lm_calls=1,
            computed_prefill_tokens=usage.prefill_tokens,
            failed_generated_tokens=usage.failed_generated_tokens,
            failed_prefill_tokens=usage.failed_prefill_tokens,
            thought_tokens=self._thought_tokens(parent, step, usage.generated_tokens),
        )

    def _thought_tokens(self, parent: Trajectory, step: Step, generated: int) -> int:
        """The step's tokens of thought. Earlier steps that it turns into thoughts, by closing a thought that nothing
        opened, count as well, each once in a run."""
        before, after = parent.thinking, parent.extend(step).thinking
        if not after.was_unopened:
            return min(after.tokens - before.tokens, generated)
        earlier = 0
        for node in parent.path:
            if node not in self._turned and node.step is not None and node.parent is not None:
                self._turned.add(node)
                earlier += node.step.num_tokens - (node.thinking.tokens - node.parent.thinking.tokens)
        return earlier + min(after.tokens - parent.num_tokens, generated)

    def scores(self, trajectory: Trajectory, scores: object, reward: RewardModel) -> Usage:
        """The cost of a trajectory's scores, or of the failed attempt to score it."""
        if isinstance(scores, Failure):
            return _cost_of_failure(scores.usage, Usage(reward_calls=1))
        if not isinstance(scores, Scores):
            return Usage(reward_calls=1)
        usage, reads = scores.usage, scores.reads
        if reads is None:
            needed, cached = usage.reward_tokens + usage.reward_tokens_cached, 0
        else:
            texts = [(id(reward), number) for number in self._numbers_of(trajectory)]
            num_scored = next((t for t in range(len(texts) - 1, 0, -1) if texts[t] in self._scored), 0)
            needed = reads.after[num_scored]
            if num_scored == 0 and texts[0] in self._scored:
                needed -= reads.prompt
            cached = reads.after[0] - needed
            self._scored.update(texts)
        return Usage(
            reward_tokens=needed,
            reward_tokens_cached=cached,
            reward_calls=1,
            computed_reward_tokens=usage.reward_tokens,
            failed_reward_tokens=usage.failed_reward_tokens,
        )

    def _length_shared_with_prompts(self, problem: Problem, lm: LanguageModel) -> int:
        """The number of tokens at the beginning of a new prompt with which an earlier prompt of the run begins, too."""
        if (prompt_ids := LanguageModelTraits(lm).prompt_ids) is None:
            return 0
        ids = prompt_ids(problem)
        shared = max((common_length(ids, other) for other in self._prompts.values()), default=0)
        self._prompts[problem] = ids
        return shared

    def _length_with_step(self, trajectory: Trajectory) -> int:
        """The tokens before a trajectory's last step plus the tokens of this step; 0 if the former are not recorded."""
        parent = trajectory.parent
        if parent is None or trajectory.step is None:
            return 0
        length = self._prefix_lengths.get(parent.problem if parent.step is None else parent)
        return 0 if length is None else length + trajectory.step.num_tokens

    def _numbers_of(self, trajectory: Trajectory) -> list[int]:
        """(T + 1,) numbers that identify the problem and each partial answer on the path. The same steps of the same
        problem have the same number."""
        problem = trajectory.problem.plain  # which reward models read
        numbers = [self._text_numbers.setdefault(problem, len(self._text_numbers))]
        for node in trajectory.path:
            assert node.step is not None
            numbers.append(self._text_numbers.setdefault((numbers[-1], node.step.text), len(self._text_numbers)))
        return numbers


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common beginning of two sequences of one type. It bisects: comparing slices is much faster than
    comparing items."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def cost_alone(calls: Iterable[Call], lm: LanguageModel) -> Usage:
    """The cost of calls of a language model, as if a run had made no others."""
    ledger = Ledger()
    return sum((ledger.step(parent, outcome, lm) for parent, outcome in calls), Usage())


def _cost_of_failure(usage: Usage, call: Usage) -> Usage:
    return call + Usage(
        failed_generated_tokens=usage.generated_tokens + usage.failed_generated_tokens,
        failed_prefill_tokens=usage.prefill_tokens + usage.failed_prefill_tokens,
        failed_reward_tokens=usage.reward_tokens + usage.failed_reward_tokens,
    )
