"""The code that claims share: cells, each measured once, in a directory of its own, and reported together."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import motes
from motes import Sampling
from motes.errors import ConfigurationError, DirectoryBusyError, RunDirectoryError, UnknownNameError
from motes.lab import Evaluation, Report, RunRecord, Shard, evaluate, merge, method_from_spec, read_records
from motes.lab.corruption import CorruptedReward
from motes.lab.measure.choosing import choose_again, drawn_by
from motes.lab.run.evaluation import RECORDS
from motes.lab.run.flops import Sizes
from motes.lab.run.provenance import CSV_METADATA, Provenance, together
from motes.lab.show.tables import provenance_table

PARTS = "parts"
"""The folder in a cell's directory that holds the parts done by shards."""


@dataclass(frozen=True)
class Setting:
    """The settings that all cells of a claim share, from the command line.

    Attributes:
        command: the command that reproduces the measurement.
        shard: the part of the problems that this call measures; None: all.
        recorded: report the recorded cells, and measure nothing.
    """

    claim: str
    command: str
    split: str
    limit: int | None
    seeds: tuple[int, ...]
    model: str
    reward: str
    concurrency: int
    work: Path
    out: Path
    shard: Shard | None = None
    recorded: bool = False
    task: str = "arithmetic"
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def made_by(self) -> str:
        return f"Made by `{self.command}`."


@dataclass(frozen=True)
class Cell:
    """One method at one budget.

    Attributes:
        label: the method's name in tables; by default its spec.
        temperature: of the language model; None: the setting's.
        reward: a reward model other than the setting's.
        corruption: arguments of `CorruptedReward`.
    """

    method: str
    budget: int
    label: str = ""
    temperature: float | None = None
    reward: str = ""
    corruption: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        return self.label or self.method

    def with_noise(self, noise: float) -> Cell:
        """The same cell with noise of this standard deviation on the reward model's logits."""
        return dataclasses.replace(self, corruption=(("noise", noise),) if noise else ())

    def reward_name(self, setting: Setting) -> str:
        words = [self.reward or setting.reward, *(f"{name}={value:g}" for name, value in self.corruption)]
        return " ".join(words)

    def evaluation(self, setting: Setting) -> Evaluation:
        sampling = setting.sampling
        if self.temperature is not None:
            sampling = sampling.replace(temperature=self.temperature)
        return Evaluation(
            task=setting.task,
            split=setting.split,
            limit=setting.limit,
            methods=(self.method,),
            budgets=(self.budget,),
            seeds=setting.seeds,
            lm=setting.model,
            reward=self.reward_name(setting),
            sampling=sampling,
        )

    @property
    def source(self) -> Cell:
        """The cell from whose answers this one chooses; the cell itself if its method samples in its own way."""
        return dataclasses.replace(self, method=drawn_by(self.method, self.budget), label="")

    def directory(self, setting: Setting) -> Path:
        """The cell's directory, named after everything that the answers depend on: claims with the same --work share
        cells, and methods that only choose differently share answers."""
        configuration = json.dumps(self.source.evaluation(setting).to_dict(), sort_keys=True)
        words = "_".join([self.source.method, *(f"{name}={level:g}" for name, level in self.corruption)])
        name = re.sub(r"[^\w.=-]+", "_", words)
        return setting.work / f"{name}-{self.budget}-{hashlib.sha256(configuration.encode()).hexdigest()[:10]}"


@dataclass(frozen=True, kw_only=True)
class World:
    """A set of problems and a quality of the reward model.

    Attributes:
        limit: only the first so many problems; None: all.
        noise: standard deviation of the noise on the reward model's logits.
        temperature: of the language model; None: the command line's.
        seeds: None: those of the command line.
    """

    title: str
    split: str
    limit: int | None = None
    noise: float = 0.0
    temperature: float | None = None
    seeds: tuple[int, ...] | None = None

    def setting(self, setting: Setting) -> Setting:
        """The claim's setting, with the problems and seeds of this world."""
        return dataclasses.replace(
            setting, split=self.split, limit=setting.limit or self.limit, seeds=self.seeds or setting.seeds
        )

    def cells(self, methods: Iterable[str], budgets: Sequence[int]) -> list[Cell]:
        """As `possible`, with the models of this world."""
        return [
            dataclasses.replace(cell.with_noise(self.noise), temperature=self.temperature)
            for cell in possible(methods, budgets)
        ]


def possible(methods: Iterable[str], budgets: Sequence[int]) -> list[Cell]:
    """A cell for each method and each budget that it takes; `greedy` has one cell. A method that takes no budget is
    left out, with a message.

    Raises:
        ConfigurationError: a name is unknown, or there is no cell.
    """
    cells: list[Cell] = []
    for method in methods:
        refusals, num_before = [], len(cells)
        for budget in budgets:
            try:
                cells.append(Cell(method, method_from_spec(method, budget).budget))
            except UnknownNameError:
                raise
            except ConfigurationError as refusal:
                refusals.append(refusal)
        if len(cells) == num_before:
            print(f"left out: {method}: {refusals[0]}", file=sys.stderr)
    if not cells:
        raise ConfigurationError("no method takes any of these budgets")
    return list(dict.fromkeys(cells))


@dataclass(frozen=True)
class Measured:
    """The records of each cell."""

    setting: Setting
    records: Mapping[Cell, Sequence[RunRecord]]
    sizes: Sizes

    @property
    def failed(self) -> int:
        """Number of failed runs."""
        return sum(record.outcome == "failed" for records in self.records.values() for record in records)

    def report(self, cells: Sequence[Cell] | None = None) -> Report:
        """The report of some of the cells, by default of all, with their methods in the same order."""
        cells = list(self.records) if cells is None else cells
        evaluation = cells[0].evaluation(self.setting).to_dict()
        configuration: dict[str, Any] = {
            **{name: evaluation[name] for name in ("task", "split", "lm", "num_problems")},
            "reward": self.setting.reward,
            "seeds": list(self.setting.seeds),
            "methods": list(dict.fromkeys(cell.name for cell in cells)),
            "num_runs": len(cells) * evaluation["num_runs"],
        }
        report = Report.of(self.named(cells), configuration, self.sizes)
        return dataclasses.replace(report, provenance=self.provenance(cells))

    def provenance(self, cells: Iterable[Cell] | None = None) -> Provenance:
        """The provenance of some of the cells, by default of all."""
        directories = dict.fromkeys(cell.directory(self.setting) for cell in cells or self.records)
        return together([Provenance.read(directory) for directory in directories])

    def named(self, cells: Sequence[Cell] | None = None) -> list[RunRecord]:
        return [
            dataclasses.replace(record, method=cell.name)
            for cell in (self.records if cells is None else cells)
            for record in self.records[cell]
        ]

    def page(self, report: Report, *parts: str) -> str:
        """A Markdown page: title, warnings, the parts, the command, and the provenance of the runs."""
        warnings = [f"**{warning}.**" for warning in report.warnings()]
        title = f"# {self.setting.claim}: {report.title}"
        models = f"{report.models}; {self.setting.split} split."
        made_with = "\n".join(provenance_table(self.provenance()).markdown()).strip()
        return "\n\n".join([title, models, *warnings, *parts, self.setting.made_by, made_with]) + "\n"


def measure(setting: Setting, cells: Sequence[Cell]) -> Measured | None:
    """Do all runs of the cells that have no record yet. If interrupted, finished runs stay recorded.

    Cells are measured one after another, small budgets first. A cell that another process is measuring is skipped: so
    several processes may divide a claim's cells among themselves, or, with shards, the problems of each cell. A call
    with a shard measures only its part, in a folder of the cell; a call without one first merges the shards' parts.

    Returns:
        the records; None if the call was for a shard.

    Raises:
        DirectoryBusyError: everything is measured, except cells that other processes are measuring.
        RunDirectoryError: with `recorded`: there is no complete cell.
    """
    # 1. Find the cells that produce answers; others choose from theirs.
    cells = list(dict.fromkeys(cells))
    sources = {cell.directory(setting): cell.source for cell in sorted(cells, key=lambda cell: cell.budget)}
    problems = cells[0].evaluation(setting).problems()
    all_runs = len(problems) * len(setting.seeds)
    runs = all_runs if setting.shard is None else len(setting.shard.of(problems)) * len(setting.seeds)
    if setting.recorded:
        sources = {directory: cell for directory, cell in sources.items() if _is_complete(directory, runs)}
        cells = [cell for cell in cells if cell.directory(setting) in sources]
        if not cells:
            raise RunDirectoryError(f"{setting.work} has no complete cell: leave --recorded out to measure them")
    trajectories = sum(cell.budget for cell in sources.values())
    print(f"{len(sources)} cells, {trajectories:,} trajectories a problem, {trajectories * runs:,} in all", flush=True)
    open_model, open_reward = functools.cache(motes.language_model), functools.cache(motes.reward_model)
    busy = []
    for number, (whole, cell) in enumerate(sources.items(), start=1):
        # 2. Merge the shards' parts, or work on a part.
        if setting.shard is None:
            directory = whole
            if not _is_complete(whole, runs) and (parts := sorted((whole / PARTS).glob("*"))):
                merge(whole, parts)
        else:
            if _is_complete(whole, all_runs):
                continue
            directory = whole / PARTS / f"{setting.shard.number}-of-{setting.shard.total}"
        if _is_complete(directory, runs):
            continue
        # 3. Do the missing runs.
        started = time.perf_counter()
        reward, corruption = open_reward(cell.reward or setting.reward), dict(cell.corruption)
        try:
            progress = asyncio.run(
                evaluate(
                    cell.evaluation(setting),
                    directory,
                    lm=open_model(setting.model),
                    reward=CorruptedReward(reward, **cast(dict[str, Any], corruption)) if corruption else reward,
                    concurrency=setting.concurrency,
                    shard=setting.shard,
                    traces=False,
                    command=setting.command,
                )
            )
        except DirectoryBusyError:
            busy.append(directory)
            continue
        title = f"{number}/{len(sources)}  {cell.name} {cell.budget}  {cell.reward_name(setting)}"
        failed = f", {progress.failed} failed" if progress.failed else ""
        print(f"{title}: {100 * progress.accuracy:.1f} %{failed}, {time.perf_counter() - started:.0f} s", flush=True)
    if busy := [directory for directory in busy if not _is_complete(directory, runs)]:
        raise DirectoryBusyError(
            f"other processes are at {len(busy)} cells, the first is {busy[0]}: when they have ended, the same command "
            "writes the tables"
        )
    # 4. Read the records of all cells.
    if setting.shard is not None:
        return None
    records = {
        cell: [choose_again(record, cell.method) for record in read_records(cell.directory(setting) / RECORDS)]
        for cell in cells
    }
    return Measured(setting, records, Sizes.read(next(iter(sources))))


def _is_complete(directory: Path, runs: int) -> bool:
    return sum(record.outcome != "failed" for record in read_records(directory / RECORDS)) == runs


def provenance_of(measured: Iterable[Measured]) -> Provenance:
    """The provenance of several measurements."""
    return together([each.provenance() for each in measured])


def csv_metadata(measured: Sequence[Measured], *names: str) -> dict[str, str]:
    """The metadata file that describes the provenance of CSV files: its text, by its name."""
    splits = dict.fromkeys(each.setting.split for each in measured)
    title = f"{measured[0].setting.claim}, {' and '.join(splits)} split{'s' if len(splits) > 1 else ''}"
    return {CSV_METADATA: provenance_of(measured).csv_metadata(title, names)}


def write(directory: Path, files: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
