"""Draw answers to training problems, and completions of chosen prefixes of them; everything is kept as it is drawn.

    OUT/answers             an evaluation: `answers` answers to each problem (`motes.lab.evaluate`)
    OUT/completions.jsonl   a line for each prefix that was completed

The same call resumes. In the local engine, and on servers with a prefix cache, no prefix is computed twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from motes import api, files
from motes.arguments import fit_fields, whole_number
from motes.concurrency import gather
from motes.core import Problem, Result, Step, Trajectory
from motes.errors import ConfigurationError
from motes.lab.run.appending import AppendOnlyLines, read_items
from motes.lab.run.damage import Damaged, refuse
from motes.lab.run.evaluation import Evaluation
from motes.lab.run.grading import grade_run
from motes.methods.answers import answer_of
from motes.methods.run import Run
from motes.methods.selectors import conclude
from motes.protocols import LanguageModel, Task
from motes.smc import Weights
from motes.text import json_line, parse_json
from motes.threads import in_thread
from motes.training.choosing import KNOWN, How, choose
from motes.training.outcomes import Labels, Outcomes, Prefix

COMPLETIONS = "completions.jsonl"


@dataclass(frozen=True)
class Plan:
    """How many answers and completions are drawn.

    Args:
        answers: to each problem.
        completions: of each prefix that is completed, at least 3.
        prefixes: number of prefixes that are completed, in the mean of all problems.
        how: how these prefixes are chosen, see `motes.training.choosing`.
        rounds: number of times that prefixes are chosen, each time with the outcomes of the times before.
        seed: of all draws.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    answers: int = 4
    completions: int = 4
    prefixes: float = 2.0
    how: How = "uncertain"
    rounds: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        fit_fields(self)
        whole_number("answers", self.answers, least=1)
        whole_number("completions", self.completions, least=KNOWN)
        whole_number("rounds", self.rounds, least=1)
        if not self.prefixes >= 0:
            raise ConfigurationError(f"prefixes must be 0 or more, not {self.prefixes}")

    def evaluation(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation that draws the answers: the given one with this number of answers."""
        return replace(evaluation, methods=("majority",), budgets=(self.answers,), seeds=(self.seed,), reward=None)


@dataclass(frozen=True)
class Completions:
    """n completions of a partial answer, drawn independently; a method like any other.

    Args:
        prefix: the steps of the partial answer.
        n: number of completions.
    """

    needs_reward: ClassVar[bool] = False
    independent: ClassVar[bool] = True

    prefix: Prefix
    n: int

    @property
    def budget(self) -> int:
        return self.n

    async def run(self, run: Run) -> Result:
        node = Trajectory(run.problem)
        for text in self.prefix:
            node = node.extend(Step(text, "step"))
        start = replace(run.start(self.n), trajectories=(node,) * self.n)
        population = await run.complete(start, score=False)
        weights = Weights.uniform(self.n)
        run.record(population, ancestors=np.arange(self.n), weights=weights, resampled=False)
        return await conclude(run, population, weights, "majority")


@dataclass(frozen=True)
class Completed:
    """The completions of a prefix, as a line of the file.

    Attributes:
        tokens: number of tokens generated.
    """

    problem: str
    prefix: Prefix
    outcomes: Outcomes
    tokens: int

    def to_json(self) -> str:
        right, total = self.outcomes
        fields = {"problem": self.problem, "steps": self.prefix, "right": right, "total": total, "tokens": self.tokens}
        return json_line(fields)

    @classmethod
    def from_json(cls, line: str | bytes) -> Completed:
        """Read a line. A ValueError if it is not one."""
        values = parse_json(line)
        try:
            outcomes = Outcomes(int(values["right"]), int(values["total"]))
            return cls(str(values["problem"]), tuple(map(str, values["steps"])), outcomes, int(values["tokens"]))
        except (TypeError, KeyError) as error:
            raise ValueError("it is not the outcome of completions") from error


class CompletionStore(AppendOnlyLines):
    """The file of completions. Only this process may append to it; an incomplete last line is cut off.

    Args:
        damaged: called with each line that is no outcome of completions; these are drawn again.

    Attributes:
        found: the completions in it when it was opened.
    """

    def __init__(self, path: Path, damaged: Damaged = refuse) -> None:
        self.found: list[Completed] = []

        def read(path: Path) -> int:
            items = list(read_items(path, Completed.from_json, damaged, lambda line: not line.whole, limit=files.LINE))
            self.found = [completed for completed, _ in items if completed is not None]
            return items[-1][1] if items else 0

        super().__init__(path, read)

    def append(self, completed: Completed) -> None:
        self.write_lines([completed.to_json()])


async def draw_completions(
    plan: Plan,
    labels: Labels,
    store: CompletionStore,
    *,
    evaluation: Evaluation,
    lm: LanguageModel,
    concurrency: int = 64,
    observe: Callable[[int, int], None] | None = None,
) -> Labels:
    """Complete prefixes until the plan is fulfilled, or no further prefix is worth it. The labels get the outcomes,
    those in the store included.

    Args:
        evaluation: whose task, prompt and sampling the answers were drawn with.
        observe: called after each prefix with the number of completed ones, and the plan's.

    Raises:
        MotesError: the language model cannot go on. What was drawn is in the store.
    """
    for completed in store.found:
        labels.count(completed.problem, completed.prefix, completed.outcomes)
    problems = {problem.id: problem for problem in evaluation.problems()}
    wanted, done = round(plan.prefixes * len(labels.messages)), len(store.found)
    while done < wanted:
        rng = random.Random(f"{plan.seed}/{done}")
        chosen = choose(labels, min(wanted - done, math.ceil(wanted / plan.rounds)), plan.how, rng)
        if not chosen:
            break
        pending = iter(chosen)

        async def work(pending: Iterator[tuple[str, Prefix]] = pending) -> None:
            nonlocal done
            for problem, prefix in pending:
                completed = await complete(plan, problems[problem], prefix, evaluation=evaluation, lm=lm)
                store.append(completed)
                labels.count(problem, prefix, completed.outcomes)
                done += 1
                if observe is not None:
                    observe(done, wanted)

        await gather(work() for _ in range(min(concurrency, len(chosen))))
    return labels


async def complete(
    plan: Plan, problem: Problem, prefix: Prefix, *, evaluation: Evaluation, lm: LanguageModel
) -> Completed:
    """Draw and grade the completions of a prefix. Those that fail, or that the grader cannot judge, do not count."""
    result = await api.asolve(
        problem if evaluation.prompt is None else evaluation.prompt.problem(problem),
        lm=lm,
        reward=None,
        method=Completions(prefix, plan.completions),
        sampling=evaluation.sampling,
        seed=_seed(plan.seed, problem.id, prefix),
        task=evaluation.opened,
    )
    right = await in_thread(_right, evaluation.opened, problem, result)
    graded = [is_right for is_right in right if is_right is not None]
    outcomes = Outcomes(sum(graded), len(graded))
    return Completed(str(problem.id), prefix, outcomes, result.usage.generated_tokens)


def _right(task: Task, problem: Problem, result: Result) -> list[bool | None]:
    """Whether each completion ends right; None where it failed, or the grader could not say."""
    answers = [answer_of(trajectory, task) for trajectory in result.trajectories]
    _, right = grade_run(task, problem, result.answer, answers)
    return [
        None if trajectory.finished == "failed" else is_right
        for trajectory, is_right in zip(result.trajectories, right, strict=True)
    ]


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:7], "big")
