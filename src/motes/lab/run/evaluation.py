"""An evaluation as data: its configuration, its runs, and the directory that holds it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from motes import api, files
from motes.arguments import fit
from motes.core import Problem, Sampling
from motes.errors import ConfigurationError, MotesError, RunDirectoryError
from motes.lab.run.appending import writing
from motes.lab.run.damage import Damage, Damaged, parse_json, parse_object, read_json, refuse
from motes.lab.run.keys import without_keys
from motes.lab.run.method_spec import canonical, describe, is_own, method_from_spec
from motes.lab.run.records import Foreign, Key
from motes.lab.run.rules import COUNT, POSITIVE, TEXT, Rule, broken, is_list, is_text, list_of, or_null
from motes.prompts import Prompt
from motes.protocols import Task
from motes.tasks import TASKS
from motes.text import well_formed_values

CONFIGURATION = "config.json"
PROBLEMS = "problems.json"
RECORDS = "records.jsonl"
TRACES = "traces.jsonl.gz"
PROVENANCE = "provenance.jsonl"
LOG = "log.txt"

MODELS = ("lm", "reward", "outcome_reward")

LATER: Mapping[str, Any] = MappingProxyType({"copies": "count"})
"""Settings that were added to methods later, each with the value that reproduces the earlier behaviour. Configurations
leave such a value out, as those of earlier versions do, so that evaluations of earlier versions can be resumed."""

MULTIPLE = 720_720
"""A multiple of 1 to 16: a budget times this number can be divided among up to 16 beams, sweeps or islands."""


class PlannedRun(NamedTuple):
    """One run of an evaluation."""

    problem: Problem
    method: str
    budget: int
    seed: int

    @property
    def key(self) -> Key:
        return str(self.problem.id), self.method, self.budget, self.seed

    @property
    def run_seed(self) -> int:
        return derive_seed(self.seed, self.key[0], self.method, self.budget)


@dataclass(frozen=True)
class Shard:
    """Part `number` of `total`, from 1: every total-th problem, with all its runs. Every run is in exactly one part,
    and has the same seed as in the whole evaluation."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse a text such as "2/8"; a ConfigurationError if it has another form, or there is no such part."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigurationError(f"a shard is written I/N, I from 1 to N, such as 2/8, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def of(self, problems: Sequence[Problem]) -> list[Problem]:
        return list(problems[self.number - 1 :: self.total])

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def derive_seed(seed: int, problem_id: str, method: str, budget: int) -> int:
    """The seed of one run, from 0 and below 2^63. It depends on the run's name only, so that order, resuming and
    sharding do not change results."""
    name = json.dumps([seed, problem_id, method, budget])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every method at every budget and seed on every problem.

    Args:
        task: its spec, see `motes.api.task`.
        split: the part of the task's problems that is used.
        limit: only the first so many problems; None: all.
        methods: method specs, see `motes.lab.run.method_spec`.
        budgets: numbers of trajectories. `greedy` draws one whatever the budget: it is run once, at budget 1.
        seeds: the whole evaluation is repeated with each.
        lm: spec of the language model, see `motes.asolve`.
        reward: spec of the reward model.
        outcome_reward: spec of the outcome reward model.
        sampling: the language model's sampling settings.
        prompt: the prompt around the problems, see `motes.prompt`; None: problems are asked as they are. Its step
            settings do not apply by themselves: pass `prompt.sampling` as `sampling`.

    Raises:
        ConfigurationError: a setting cannot work. Nothing was computed.
    """

    task: str = "arithmetic"
    split: str = "test"
    limit: int | None = None
    methods: tuple[str, ...] = ("pf", "bon", "wbon", "majority", "greedy")
    budgets: tuple[int, ...] = (1, 4, 16)
    seeds: tuple[int, ...] = (0,)
    lm: str = "tiny"
    reward: str | None = "tiny"
    outcome_reward: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    prompt: Prompt | None = None

    def __post_init__(self) -> None:
        fit("limit", self.limit, int | None)
        fit("sampling", self.sampling, Sampling)
        fit("prompt", self.prompt, Prompt | None)
        tuples = {"methods": tuple[str, ...], "budgets": tuple[int, ...], "seeds": tuple[int, ...]}
        for name, kind in tuples.items():
            object.__setattr__(self, name, fit(name, getattr(self, name), kind))
            if not getattr(self, name):
                raise ConfigurationError(f"an evaluation needs at least one of: {name}")
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"limit must be at least 1 problem, not {self.limit}")
        if min(self.seeds) < 0:
            raise ConfigurationError(f"seeds must be 0 or more, not {min(self.seeds)}")
        object.__setattr__(self, "methods", tuple(dict.fromkeys(map(canonical, self.methods))))
        object.__setattr__(self, "budgets", tuple(sorted(set(self.budgets))))
        object.__setattr__(self, "seeds", tuple(sorted(set(self.seeds))))
        for spec in self.methods:
            for budget in self.budgets:
                method_from_spec(spec, budget)
        identifiers = [problem.id for problem in self.problems()]
        if len(set(identifiers)) < len(identifiers) or None in identifiers:
            raise ConfigurationError(f"the problems of {self.task!r} need an id each, all different")

    @cached_property
    def opened(self) -> Task:
        """The task, opened."""
        return api.task(self.task)

    def problems(self) -> list[Problem]:
        return self.opened.problems(self.split, self.limit)

    def cells(self) -> list[tuple[str, int]]:
        """Every (method, budget) once, in the order of the configuration."""
        cells = [(spec, method_from_spec(spec, budget).budget) for spec in self.methods for budget in self.budgets]
        return list(dict.fromkeys(cells))

    def plan(self, shard: Shard | None = None) -> list[PlannedRun]:
        """All runs, or those of one part, in the order in which they are started.

        Problem by problem, so that an unfinished evaluation compares all methods, and the runs in flight are always
        the same mixture of budgets; the longest runs of a problem first, so that the last batches are not a few long
        runs.
        """
        cells = sorted(self.cells(), key=lambda cell: -cell[1])
        return [
            PlannedRun(problem, spec, budget, seed)
            for problem in (self.problems() if shard is None else shard.of(self.problems()))
            for seed in self.seeds
            for spec, budget in cells
        ]

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as JSON can hold it, without keys. Two evaluations with equal configurations are
        the same."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in MODELS:
            fields[name] = None if fields[name] is None else without_keys(fields[name])
        for name in ("outcome_reward", "prompt"):  # configurations of earlier versions lack these fields
            if fields[name] is None:
                del fields[name]
        if self.prompt is not None:
            fields["prompt"] = {key: getattr(self.prompt, key) for key in ("name", "system", "question")}
        return {
            **fields,
            "methods": {spec: self._describe(spec) for spec in self.methods},
            "budgets": list(self.budgets),
            "seeds": list(self.seeds),
            "sampling": _describe_sampling(self.sampling),
            "num_problems": (num_problems := len(self.problems())),
            "num_runs": num_problems * len(self.seeds) * len(self.cells()),
        }

    def _describe(self, spec: str) -> dict[str, Any]:
        """The method's fields, without the one that holds the budget."""
        budget = self.budgets[0]
        small, large = describe(method_from_spec(spec, budget)), describe(method_from_spec(spec, MULTIPLE * budget))
        settings = {name: value for name, value in small.items() if value == large[name]}
        return {name: value for name, value in settings.items() if name not in LATER or value != LATER[name]}

    def check(self, directory: Path) -> None:
        """Raise a RunDirectoryError if `directory` holds records of a different evaluation, or is not a directory.
        Writes nothing."""
        check(directory, self.to_dict())

    def claim(self, directory: Path) -> None:
        """Make `directory`, which must exist, this evaluation's. The caller must have its record file open. Errors as
        `check`, and a RunDirectoryError if the directory cannot be written."""
        claim(directory, self.to_dict(), [str(problem.id) for problem in self.problems()])


def check(directory: Path, configuration: Mapping[str, Any]) -> None:
    """Check that `directory` can hold the evaluation with this configuration; see `Evaluation.check`."""
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file: name a directory")
    records = directory / RECORDS
    if not records.exists() or not records.stat().st_size:
        return
    if not (directory / CONFIGURATION).exists():
        raise RunDirectoryError(f"{directory} holds records but no {CONFIGURATION}: use another directory")
    # The configuration in the directory is well-formed text; a file's name in this one may not be.
    if different := differing(well_formed_values(configuration), read_configuration(directory)):
        raise RunDirectoryError(
            f"{directory} holds an evaluation with another configuration: {'; '.join(different)}. "
            "Use the same settings, or another directory"
        )


def claim(directory: Path, configuration: Mapping[str, Any], problems: Sequence[str] | None) -> None:
    """Make `directory` that of the evaluation with this configuration, and with the problems of these ids (None:
    unknown); see `Evaluation.claim`."""
    check(directory, configuration)
    texts = {CONFIGURATION: json.dumps(configuration, indent=2, ensure_ascii=False)}
    if problems is not None:
        texts[PROBLEMS] = json.dumps(problems, indent=0, ensure_ascii=False)
    for name, text in texts.items():
        with writing(directory / name):
            files.write_text(directory / name, text + "\n")


def _describe_sampling(sampling: Sampling) -> dict[str, Any]:
    """The fields of the sampling settings. Fields that earlier versions lack are left out while they are unset."""
    fields = {**sampling.to_dict(), "delimiter": list(sampling.delimiters), "stop": list(sampling.stops)}
    if not sampling.stops:
        del fields["stop"]
    if sampling.pattern is not None:
        fields["delimiter"] = {"pattern": sampling.pattern.pattern, "flags": str(re.RegexFlag(sampling.pattern.flags))}
    return fields


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "task": TEXT,
        "split": TEXT,
        "limit": or_null(POSITIVE),
        "methods": Rule(lambda value: isinstance(value, dict) or is_list(value, is_text), "an object, by method"),
        "budgets": list_of(POSITIVE),
        "seeds": list_of(COUNT),
        "lm": TEXT,
        "reward": or_null(TEXT),
        "outcome_reward": or_null(TEXT),
        "num_problems": COUNT,
        "num_runs": COUNT,
    }
)
"""The values that each field of a configuration may have when it is read from a directory."""


def read_configuration(directory: Path, damaged: Damaged = refuse) -> dict[str, Any]:
    """The configuration in an evaluation's directory; a RunDirectoryError if there is none, or a damaged one.

    Args:
        damaged: called with each part that cannot be read, which is then left out; by default it is an error.
    """
    path, remedy = directory / CONFIGURATION, "use another directory"
    configuration = read_json(path, parse_object, damaged, remedy)
    if configuration is None and not path.exists():
        raise RunDirectoryError(f"{directory} holds no evaluation: `motes eval --out {directory}` makes one")
    configuration = configuration or {}
    for name, reason in broken(RULES, configuration):
        damaged(Damage(path, "", reason, remedy))
        del configuration[name]
    # Earlier versions wrote a model's spec unchanged, including any key in it.
    return {name: without_keys(value) if name in MODELS and value else value for name, value in configuration.items()}


def read_problem_ids(directory: Path, damaged: Damaged = refuse) -> list[str] | None:
    """The ids of an evaluation's problems; None if its directory does not hold them, like those of earlier versions, or
    if they cannot be read, see `read_configuration`."""
    return read_json(directory / PROBLEMS, _parse_ids, damaged, "delete it there")


def _parse_ids(text: str) -> list[str]:
    ids: list[str] = parse_json(text)
    if not is_list(ids, is_text):
        raise ValueError("it is not a list of texts")
    return ids


def foreign_to(configuration: Mapping[str, Any], ids: Sequence[str] | None = None) -> Foreign:
    """A function that recognises runs that do not belong to an evaluation, as far as its configuration and the ids of
    its problems allow: no code and no file that the configuration names is opened."""
    methods, budgets = configuration.get("methods"), configuration.get("budgets")
    cells = None if methods is None or budgets is None else {method: _budgets(method, budgets) for method in methods}
    seeds = None if "seeds" not in configuration else set(configuration["seeds"])
    problems: set[str | None] | None = None if ids is None else set(ids)
    if (make := TASKS.get(configuration.get("task", ""))) is not None:  # a task that motes generates
        with contextlib.suppress(MotesError):
            generated = make().problems(configuration.get("split", "test"), configuration.get("limit"))
            problems = {problem.id for problem in generated}

    def foreign(key: Key) -> str | None:
        problem_id, method, budget, seed = key
        if problems is not None and problem_id not in problems:
            return f"the evaluation has no problem {problem_id!r}"
        if cells is not None and method not in cells:
            return f"the evaluation has no method {method!r}"
        if cells is not None and budget not in (cells[method] or (budget,)):
            return f"the evaluation has no run of {method!r} at budget {budget}"
        if seeds is not None and seed not in seeds:
            return f"the evaluation has no seed {seed}"
        return None

    return foreign


def _budgets(method: str, budgets: Sequence[int]) -> set[int] | None:
    """The budgets that a method is run at; None for a user's own method, as only its code knows."""
    if is_own(method):
        return None
    try:
        return {method_from_spec(method, budget).budget for budget in set(budgets)}
    except MotesError:
        return None


def differing(here: Any, there: Any, name: str = "") -> list[str]:
    """The differences of two configurations, key by key: "sampling.temperature is 0.8 there and 1.0 here"."""
    if isinstance(here, dict) and isinstance(there, dict) and here.keys() == there.keys():
        return [line for key in here for line in differing(here[key], there[key], f"{name}.{key}" if name else key)]
    if isinstance(here, dict) and isinstance(there, dict):
        if name.startswith("methods.") and (later := (here.keys() ^ there.keys()) & LATER.keys()):
            defaults = {key: LATER[key] for key in later}
            return differing({**defaults, **here}, {**defaults, **there}, name)
        if not name or name.startswith("methods."):
            prefix = f"{name}." if name else ""
            return [f"{prefix}{key} is only in one of them" for key in here.keys() ^ there.keys()]
        here, there = ",".join(here), ",".join(there)
    return [] if here == there else [f"{name} is {there!r} there and {here!r} here"]
