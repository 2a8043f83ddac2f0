"""A diagnosis: a few questions of a task put to a model, and what would break an evaluation of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from motes.lab.measure.examination import DEADLINE, Examination, Finding, examine
from motes.lab.measure.findings import findings
from motes.lab.run.evaluation import Evaluation
from motes.lab.run.keys import without_keys
from motes.protocols import LanguageModel, RewardModel
from motes.threads import in_thread


@dataclass(frozen=True)
class Diagnosis:
    """An examination, and its findings."""

    examination: Examination
    findings: tuple[Finding, ...]

    @property
    def is_broken(self) -> bool:
        """Whether an evaluation would be worthless."""
        return any(finding.level == "broken" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON can hold it, without keys."""
        examination, evaluation = self.examination, self.examination.evaluation
        return {
            "model": without_keys(evaluation.lm),
            "reward": None if evaluation.reward is None else without_keys(evaluation.reward),
            "task": evaluation.task,
            "split": evaluation.split,
            "prompt": None if evaluation.prompt is None else evaluation.prompt.name,
            "num_problems": examination.num_problems,
            "seconds": round(examination.seconds, 3),
            "is_broken": self.is_broken,
            "findings": [vars(finding) for finding in self.findings],
            "questions": [trial.to_dict() for trial in examination.trials],
        }


async def diagnose(
    evaluation: Evaluation,
    *,
    lm: LanguageModel | None = None,
    reward: RewardModel | None = None,
    deadline: float | None = DEADLINE,
    observe: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Ask the questions of an evaluation, each once and all at the same time, and find what would break it.

    Its findings say whether the task's rule finds answers, and which other rule would; how many steps there are, how
    long they are and where they end; whether texts end by themselves; whether thoughts are closed; whether the model
    reads the whole question; whether scores vary; and how long an evaluation takes, about.

    Args:
        evaluation: its `limit` is the number of questions, its first method and seed determine their seeds. Its task,
            prompt, sampling and models are used; its other methods and budgets are not.
        lm, reward: opened models; by default the evaluation's.
        deadline: seconds after which an answer is cut off; None: no limit.
        observe: called with the numbers of questions done and of all questions.

    Raises:
        ConfigurationError: see `motes.lab.measure.examination.examine`.
    """
    examination = await examine(evaluation, lm=lm, reward=reward, deadline=deadline, observe=observe)
    return Diagnosis(examination, tuple(await in_thread(findings, examination)))
