"""A race: methods and settings on a validation split, the slower half out after each round.

Round r takes twice as many problems as the one before (successive halving: Jamieson and Talwalkar, arXiv 1502.07943). A
method keeps what it has answered from round to round, and methods that differ in their choice alone share their answers
(`motes.lab.measure.choosing`). Every evaluation of the race is resumed where it stopped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
"""What a race begins with by default."""

NOTE = (
    "Accuracy on the problems of the last round that a candidate was in, with Wilson's 95 % interval; behind: "
    "percentage points behind the winner on the problems that both have, with a 95 % interval each by itself. Tokens: "
    "of both models for a problem, needed by that method alone. {stopped}"
)


@dataclass(frozen=True)
class Standing:
    """How far a candidate came.

    Attributes:
        rounds: that it was in. accuracy: over all problems it has. tokens: a problem, of both models.
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
    """How a race ended.

    Attributes:
        standings: the winner first, then those that came furthest.
        tokens: computed by the race, both models together. stopped: whether its token budget ended it.
    """

    budget: int
    standings: tuple[Standing, ...]
    tokens: int
    stopped: bool

    @property
    def winner(self) -> Standing:
        return self.standings[0]

    def sections(self) -> Iterator[Section]:
        """Its table."""
        rows = [
            [
                each.spec,
                str(each.rounds),
                str(each.problems),
                with_interval(each.accuracy),
                "" if each.behind is None else points(each.behind.value) + _between(each.behind),
                f"{each.tokens:,.0f}",
            ]
            for each in self.standings
        ]
        stopped = "The race was ended by its token budget." if self.stopped else ""
        header = ("method", "rounds", "problems", "accuracy", "behind", "tokens")
        yield Section(f"Race at N = {self.budget}", header, rows, NOTE.format(stopped=stopped).strip())


def _between(interval: Interval) -> str:
    return f" ({points(interval.low)} to {points(interval.high)})" if interval.is_known else ""


async def race(
    evaluation: Evaluation,
    directory: Path,
    *,
    tokens: int | None = None,
    observe: Callable[[int, str, Progress], None] | None = None,
    **settings: Any,
) -> Race:
    """Let an evaluation's methods, at its one budget, race on its problems.

    Args:
        directory: of the race; each method has a directory of its own in it.
        tokens: computed ones, of both models together, after which no further evaluation is begun.
        observe: called with the round, the method and its progress.
        settings: of `motes.lab.evaluate`: models, concurrency, the command.

    Raises:
        ConfigurationError: there is one candidate or none, more than one budget, or too few problems to halve.
    """
    if len(evaluation.budgets) != 1 or len(evaluation.methods) < 2:
        raise ConfigurationError("a race is between two methods or more, at one budget")
    if len(evaluation.problems()) < 2 * EIGHTHS:
        raise ConfigurationError(f"a race needs {2 * EIGHTHS} problems or more, not {len(evaluation.problems())}")
    (budget,) = evaluation.budgets
    racing = list(evaluation.methods)
    standings: dict[str, Standing] = {}
    runs: dict[str, list[RunRecord]] = {}  # of each method, in the last round that it was in
    records: dict[str, list[RunRecord]] = {}  # of what was evaluated, so far
    problems: set[str | None] = set()
    stopped = False
    for number, eighths in enumerate(ROUNDS, start=1):
        for eighth in eighths:
            problems.update(problem.id for problem in Shard(eighth, EIGHTHS).of(evaluation.problems()))
        for source in dict.fromkeys(drawn_by(spec, budget) for spec in racing):
            if stopped := stopped or (tokens is not None and _spent(records) >= tokens):
                break
            own = replace(evaluation, methods=(source,))
            place = directory / re.sub(r"[^\w.=-]+", "_", source)
            for eighth in eighths:
                await evaluate(
                    own, place, shard=Shard(eighth, EIGHTHS), traces=False,
                    observe=None if observe is None else _told(observe, number, source), **settings,
                )  # fmt: skip
            # A race that is resumed finds what later rounds have added: it must go as it went.
            records[source] = [record for record in read_records(place / RECORDS) if record.problem_id in problems]
        if stopped:
            break
        for spec in racing:
            runs[spec] = [choose_again(record, spec) for record in records[drawn_by(spec, budget)]]
            standings[spec] = _standing(spec, number, runs[spec])
        racing.sort(key=lambda spec: (-standings[spec].accuracy.value, standings[spec].tokens))
        if number < len(ROUNDS):
            racing = racing[: max(2, math.ceil(len(racing) / 2))]
    if not standings:
        raise ConfigurationError("the token budget was spent before the first round was over: give more")
    order = sorted(standings.values(), key=lambda each: (-each.rounds, -each.accuracy.value, each.tokens))
    everything = [record for each in runs.values() for record in each]
    return Race(budget, tuple(_behind(order, everything)), _spent(records), stopped)


def _told(observe: Callable[[int, str, Progress], None], number: int, spec: str) -> Callable[[Progress], None]:
    return lambda progress: observe(number, spec, progress)


def _spent(records: Mapping[str, Sequence[RunRecord]]) -> int:
    return sum(record.usage.computed_tokens for each in records.values() for record in each)


def _standing(spec: str, number: int, records: Sequence[RunRecord]) -> Standing:
    usage = sum((record.usage for record in records), Usage())
    needed = usage.generated_tokens + usage.prefill_tokens + usage.reward_tokens
    return Standing(
        spec,
        number,
        len({record.problem_id for record in records}),
        share_interval((record.problem_id, is_right(record)) for record in records),
        needed / max(1, len(records)),
    )


def _behind(order: Sequence[Standing], records: Sequence[RunRecord]) -> Iterator[Standing]:
    """The standings, each compared with the first."""
    runs = PairedRuns(records)
    winner, *others = order
    yield winner
    first = next(iter(runs.budgets(winner.spec)))
    pairs = [((each.spec, next(iter(runs.budgets(each.spec)))), (winner.spec, first)) for each in others]
    for each, (_, own, _) in zip(others, compare_cells(runs, pairs), strict=True):
        yield replace(each, behind=own)


def candidates(specs: Sequence[str], budget: int) -> tuple[list[str], list[str]]:
    """Those of the methods that can be had at that budget; and of each other one, why it cannot.

    Raises:
        UnknownNameError: a name is unknown.
        ConfigurationError: fewer than two are left.
    """
    found, refused = [], []
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
                found.append(spec)
    if len(found) < 2:
        raise ConfigurationError("; ".join([f"a race is between two methods or more, not {len(found)}", *refused]))
    return found, refused
