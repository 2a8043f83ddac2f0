"""What the claims share: cells, measured once each into a directory of its own, and told together."""

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
from dataclasses import dataclass
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
"""In a cell's directory: what each shard has done of it."""


@dataclass(frozen=True)
class Setting:
    """What all cells of a claim have in common, as the command line gives it.

    Attributes:
        command: that measures the same.
        shard: the part of the problems that this call measures; None: all.
        recorded: tell of the cells that are there, and measure nothing.
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

    @property
    def made_by(self) -> str:
        return f"Made by `{self.command}`."


@dataclass(frozen=True)
class Cell:
    """One method at one budget.

    Attributes:
        label: what tables call the method; by default its spec.
        temperature: of the language model. reward: another one than the setting's.
        corruption: arguments of `CorruptedReward`.
    """

    method: str
    budget: int
    label: str = ""
    temperature: float = Sampling().temperature
    reward: str = ""
    corruption: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        return self.label or self.method

    def with_noise(self, noise: float) -> Cell:
        """The same with noise of that deviation on the reward model's logits."""
        return dataclasses.replace(self, corruption=(("noise", noise),) if noise else ())

    def reward_name(self, setting: Setting) -> str:
        words = [self.reward or setting.reward, *(f"{name}={value:g}" for name, value in self.corruption)]
        return " ".join(words)

    def evaluation(self, setting: Setting) -> Evaluation:
        return Evaluation(
            split=setting.split,
            limit=setting.limit,
            methods=(self.method,),
            budgets=(self.budget,),
            seeds=setting.seeds,
            lm=setting.model,
            reward=self.reward_name(setting),
            sampling=Sampling(temperature=self.temperature),
        )

    @property
    def drawn(self) -> Cell:
        """The cell from whose answers this one's are chosen; itself, where its method draws in a way of its own."""
        return dataclasses.replace(self, method=drawn_by(self.method, self.budget), label="")

    def directory(self, setting: Setting) -> Path:
        """By everything that makes the answers what they are: claims that share --work share cells, and methods that
        differ only in what they choose share answers."""
        configuration = json.dumps(self.drawn.evaluation(setting).to_dict(), sort_keys=True)
        words = "_".join([self.drawn.method, *(f"{name}={level:g}" for name, level in self.corruption)])
        name = re.sub(r"[^\w.=-]+", "_", words)
        return setting.work / f"{name}-{self.budget}-{hashlib.sha256(configuration.encode()).hexdigest()[:10]}"


@dataclass(frozen=True, kw_only=True)
class World:
    """A set of problems and a quality of the reward model.

    Attributes:
        limit: the first so many problems; None: all.
        noise: of the reward model's logits.
        temperature: of the language model.
    """

    title: str
    split: str
    limit: int | None = None
    noise: float = 0.0
    temperature: float = Sampling().temperature

    def setting(self, setting: Setting) -> Setting:
        """The claim's setting, with the problems of this world."""
        return dataclasses.replace(setting, split=self.split, limit=setting.limit or self.limit)

    def cells(self, methods: Iterable[str], budgets: Sequence[int]) -> list[Cell]:
        """As `possible`, with the models of this world."""
        return [
            dataclasses.replace(cell.with_noise(self.noise), temperature=self.temperature)
            for cell in possible(methods, budgets)
        ]


def possible(methods: Iterable[str], budgets: Sequence[int]) -> list[Cell]:
    """A cell for each method and budget that it takes; `greedy` has one. A method that takes none is left out aloud.

    Raises:
        ConfigurationError: a name is unknown, or nothing is left.
    """
    cells: list[Cell] = []
    for method in methods:
        refusals, known = [], len(cells)
        for budget in budgets:
            try:
                cells.append(Cell(method, method_from_spec(method, budget).budget))
            except UnknownNameError:
                raise
            except ConfigurationError as refusal:
                refusals.append(refusal)
        if len(cells) == known:
            print(f"left out: {method}: {refusals[0]}", file=sys.stderr)
    if not cells:
        raise ConfigurationError("no method takes any of these budgets")
    return list(dict.fromkeys(cells))


@dataclass(frozen=True)
class Measured:
    """The records of cells, under the cells' names."""

    setting: Setting
    records: Mapping[Cell, Sequence[RunRecord]]
    sizes: Sizes

    @property
    def failed(self) -> int:
        """How many runs failed."""
        return sum(record.outcome == "failed" for records in self.records.values() for record in records)

    def report(self, cells: Sequence[Cell] | None = None) -> Report:
        """Of some of the cells, by default of all: each is a method at a budget, and methods stand in their order."""
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
        """What some of the cells, by default all, were made with."""
        directories = dict.fromkeys(cell.directory(self.setting) for cell in cells or self.records)
        return together([Provenance.read(directory) for directory in directories])

    def named(self, cells: Sequence[Cell] | None = None) -> list[RunRecord]:
        return [
            dataclasses.replace(record, method=cell.name)
            for cell in (self.records if cells is None else cells)
            for record in self.records[cell]
        ]

    def page(self, report: Report, *parts: str) -> str:
        """A Markdown page: title, warnings, the parts, the command that made it, and what the runs were made with."""
        warnings = [f"**{warning}.**" for warning in report.warnings()]
        title = f"# {self.setting.claim}: {report.title}"
        models = f"{report.models}; {self.setting.split} split."
        made_with = "\n".join(provenance_table(self.provenance()).markdown()).strip()
        return "\n\n".join([title, models, *warnings, *parts, self.setting.made_by, made_with]) + "\n"


def measure(setting: Setting, cells: Sequence[Cell]) -> Measured | None:
    """Do every run of the cells that has no record yet; what was done is kept if it is interrupted.

    One cell after another, those of small budgets first. What another process measures is left to it: several may
    share a claim's cells out among themselves, or the problems of each, by shards. A call for a shard does no more than
    its part, into a folder of the cell's own; one for all problems begins with what shards have done.

    Returns:
        the records; None, where the call was for a shard.

    Raises:
        DirectoryBusyError: all is measured but for what other processes are at.
        RunDirectoryError: nothing is to be measured, and no cell is there.
    """
    cells = list(dict.fromkeys(cells))
    own = {cell.directory(setting): cell.drawn for cell in sorted(cells, key=lambda cell: cell.budget)}
    problems = cells[0].evaluation(setting).problems()
    runs = len(problems if setting.shard is None else setting.shard.of(problems)) * len(setting.seeds)
    if setting.recorded:
        own = {directory: cell for directory, cell in own.items() if _complete(directory, runs)}
        cells = [cell for cell in cells if cell.directory(setting) in own]
        if not cells:
            raise RunDirectoryError(f"{setting.work} has no complete cell: leave --recorded out to measure them")
    trajectories = sum(cell.budget for cell in own.values())
    print(f"{len(own)} cells, {trajectories:,} trajectories a problem, {trajectories * runs:,} in all", flush=True)
    open_model, open_reward = functools.cache(motes.language_model), functools.cache(motes.reward_model)
    busy = []
    for number, (whole, cell) in enumerate(own.items(), start=1):
        if setting.shard is None:
            directory = whole
            if not _complete(whole, runs) and (parts := sorted((whole / PARTS).glob("*"))):
                merge(whole, parts)
        else:
            directory = whole / PARTS / f"{setting.shard.number}-of-{setting.shard.total}"
        if _complete(directory, runs):
            continue
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
        words = f"{number}/{len(own)}  {cell.name} {cell.budget}  {cell.reward_name(setting)}"
        failed = f", {progress.failed} failed" if progress.failed else ""
        print(f"{words}: {100 * progress.accuracy:.1f} %{failed}, {time.perf_counter() - started:.0f} s", flush=True)
    if busy := [directory for directory in busy if not _complete(directory, runs)]:
        raise DirectoryBusyError(
            f"other processes are at {len(busy)} cells, the first is {busy[0]}: when they have ended, the same command "
            "writes the tables"
        )
    if setting.shard is not None:
        return None
    records = {
        cell: [choose_again(record, cell.method) for record in read_records(cell.directory(setting) / RECORDS)]
        for cell in cells
    }
    return Measured(setting, records, Sizes.read(next(iter(own))))


def _complete(directory: Path, runs: int) -> bool:
    return sum(record.outcome != "failed" for record in read_records(directory / RECORDS)) == runs


def told_of(measured: Measured, *names: str) -> dict[str, str]:
    """What says of CSV files where they come from, by its file name."""
    title = f"{measured.setting.claim}, {measured.setting.split} split"
    return {CSV_METADATA: measured.provenance().csv_metadata(title, names)}


def write(directory: Path, files: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
