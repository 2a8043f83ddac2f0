"""A race between methods and settings on a validation split: the less accurate half drops out after each round.

Each round has twice as many problems as the one before (successive halving: Jamieson and Talwalkar, arXiv 1502.07943).
A method keeps its answers from round to round, and methods that differ only in how they choose an answer share them
(`motes.lab.measure.choosing`). Every evaluation of the race is resumed where it stopped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from motes.core import Usage
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab.measure.choosing import choose_again, drawn_by
from motes.lab.measure.comparison import PairedRuns, compare_cells, is_right, points
from motes.lab.measure.formats import Section, with_interval
from motes.lab.measure.statistics import Interval, share_interval
from motes.lab.run.evaluation import RECORDS, Evaluation, Shard
from motes.lab.run.execution import Progress, evaluate
from motes.lab.run.method_spec import draws_one, method_from_spec
from motes.lab.run.records import RunRecord, read_records

EIGHTHS = 8
ROUNDS: Sequence[Sequence[int]] = ((1,), (2,), (3, 4), (5, 6, 7, 8))
"""The eighths of the problems that each round adds."""

CANDIDATES = (
    "majority",
    "bon",
    "bon:aggregation=min",
    "wbon",
    "wbon:aggregation=min",
    "wbon:link=odds",
    "wbon:beta=4",
    "beam",
    "dvts",
    "rebase",
    "pf",
    "pf:beta=1",
    "pf:potential=0.5:beta=1",
    "pf:potential=increment:beta=1",
    "pf:potential=increment:beta=2",
)
"""The default candidates of a race."""

NOTE = (
    "Accuracy on the problems of a candidate's last round, with Wilson's 95 % interval. Behind: difference to the "
    "winner, in percentage points, on the problems that both have; each 95 % interval holds by itself. Tokens: of both "
    "models for a problem, as if the method ran alone. {stopped}"
)


@dataclass(frozen=True)
class Standing:
    """The result of a candidate.

    Attributes:
        rounds: number of rounds that it took part in.
        problems: number of problems that it answered.
        accuracy: over all these problems.
        tokens: for a problem, of both models.
        behind: accuracy less that of the winner on the problems that both have; None for the winner.
    """

    spec: str
    rounds: int
    problems: int
    accuracy: Interval
    tokens: float
    behind: Interval | None = None


@dataclass(frozen=True)
class Race:
    """The result of a race.

    Attributes:
        standings: the winner first, then the others, those with the most rounds first.
        tokens: computed by the race, for both models together.
        stopped: whether the token budget ended the race.
    """

    budget: int
    standings: tuple[Standing, ...]
    tokens: int
    stopped: bool

    @property
    def winner(self) -> Standing:
        return self.standings[0]

    def sections(self) -> Iterator[Section]:
        """The table of a race."""
        rows = [
            [
                standing.spec,
                str(standing.rounds),
                str(standing.problems),
                with_interval(standing.accuracy),
                "" if standing.behind is None else _points_with_interval(standing.behind),
                f"{standing.tokens:,.0f}",
            ]
            for standing in self.standings
        ]
        stopped = "The token budget ended the race." if self.stopped else ""
        header = ("method", "rounds", "problems", "accuracy", "behind", "tokens")
        yield Section(f"Race at N = {self.budget}", header, rows, NOTE.format(stopped=stopped).strip())


def _points_with_interval(difference: Interval) -> str:
    ends = f" ({points(difference.low)} to {points(difference.high)})" if difference.is_known else ""
    return points(difference.value) + ends


async def race(
    evaluation: Evaluation,
    directory: Path,
    *,
    tokens: int | None = None,
    observe: Callable[[int, str, Progress], None] | None = None,
    **settings: Any,
) -> Race:
    """Let the methods of an evaluation, at its one budget, race on its problems.

    Args:
        directory: of the race; each method has a directory of its own in it.
        tokens: once both models together have computed this many, no further evaluation is started.
        observe: called with the round, the method and its progress.
        settings: of `motes.lab.evaluate`: models, concurrency, the command.

    Raises:
        ConfigurationError: there are fewer than two candidates, several budgets, or too few problems to halve.
    """
    if len(evaluation.budgets) != 1 or len(evaluation.methods) < 2:
        raise ConfigurationError("a race is between two methods or more, at one budget")
    if len(evaluation.problems()) < 2 * EIGHTHS:
        raise ConfigurationError(f"a race needs {2 * EIGHTHS} problems or more, not {len(evaluation.problems())}")
    (budget,) = evaluation.budgets
    racing = list(evaluation.methods)
    standings: dict[str, Standing] = {}
    runs: dict[str, list[RunRecord]] = {}  # of each method, after its last round
    records: dict[str, list[RunRecord]] = {}  # of each evaluated method, so far
    problems: set[str | None] = set()
    stopped = False
    for number, eighths in enumerate(ROUNDS, start=1):
        # 1. Evaluate the methods on the round's new problems.
        for eighth in eighths:
            problems.update(problem.id for problem in Shard(eighth, EIGHTHS).of(evaluation.problems()))
        for source in dict.fromkeys(drawn_by(spec, budget) for spec in racing):
            if stopped := stopped or (tokens is not None and _spent(records) >= tokens):
                break
            subdirectory = directory / re.sub(r"[^\w.=-]+", "_", source)
            for eighth in eighths:
                await evaluate(
                    replace(evaluation, methods=(source,)), subdirectory, shard=Shard(eighth, EIGHTHS), traces=False,
                    observe=None if observe is None else partial(observe, number, source), **settings,
                )  # fmt: skip
            # A resumed race finds the records of its later rounds, too: without them it repeats its choices.
            written = read_records(subdirectory / RECORDS)
            records[source] = [record for record in written if record.problem_id in problems]
        if stopped:
            break
        # 2. Rank them, and drop the less accurate half.
        for spec in racing:
            runs[spec] = [choose_again(record, spec) for record in records[drawn_by(spec, budget)]]
            standings[spec] = _standing(spec, number, runs[spec])
        racing.sort(key=lambda spec: (-standings[spec].accuracy.value, standings[spec].tokens))
        if number < len(ROUNDS):
            racing = racing[: max(2, math.ceil(len(racing) / 2))]
    if not standings:
        raise ConfigurationError("the token budget was spent before the first round was over: give more")
    # 3. Compare them with the winner.
    order = sorted(standings.values(), key=lambda each: (-each.rounds, -each.accuracy.value, each.tokens))
    paired = PairedRuns([record for each in runs.values() for record in each])
    winner, *others = [(each.spec, paired.budgets(each.spec)[0]) for each in order]
    behind = [difference for _, difference, _ in compare_cells(paired, [(cell, winner) for cell in others])]
    compared = [replace(each, behind=difference) for each, difference in zip(order[1:], behind, strict=True)]
    return Race(budget, (order[0], *compared), _spent(records), stopped)


def _spent(records: Mapping[str, Sequence[RunRecord]]) -> int:
    return sum(record.usage.computed_tokens for each in records.values() for record in each)


def _standing(spec: str, number: int, records: Sequence[RunRecord]) -> Standing:
    usage = sum((record.usage for record in records), Usage())
    return Standing(
        spec,
        number,
        len({record.problem_id for record in records}),
        share_interval((record.problem_id, is_right(record)) for record in records),
        usage.total_tokens / max(1, len(records)),
    )


def candidates(specs: Sequence[str], budget: int) -> tuple[list[str], list[str]]:
    """The methods that can race at this budget; and the reasons why the others cannot.

    Raises:
        UnknownNameError: a name is unknown.
        ConfigurationError: fewer than two methods can race.
    """
    usable, refused = [], []
    for spec in specs:
        try:
            method_from_spec(spec, budget)
        except UnknownNameError:
            raise
        except ConfigurationError as error:
            refused.append(f"{spec}: {error}")
        else:
            if draws_one(spec):
                refused.append(f"{spec}: it draws one answer whatever the budget")
            else:
                usable.append(spec)
    if len(usable) < 2:
        raise ConfigurationError("; ".join([f"a race is between two methods or more, not {len(usable)}", *refused]))
    return usable, refused
