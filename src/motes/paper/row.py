"""A row of the paper's table: a model, its prompt and sampling, and the methods to measure, as a readable file.

    model = "meta-llama/Llama-3.2-1B-Instruct"    # the server's name of the model
    prompt = "llama-3"                            # see `motes.prompts`; may be left out
    [reward]                                      # may be left out if no method scores
    model = "Qwen/Qwen2.5-Math-PRM-7B"
    prefix = "whole"                              # how it reads, see docs/reward-models.md
    [sampling]                                    # fields of `motes.Sampling`
    temperature = 0.8
    [table1]                                      # and [figure2]
    budgets = [64]
    [table1.methods]                              # the paper's name of the method = its spec here
    pf = "pf:paper"
    "one sample" = { method = "majority", budgets = [1] }

The file's name is the row's. The paper's own numbers (arXiv 2502.01618) are here, too. Those of its figure 2 are read
off by eye, to about a point.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

from motes import files
from motes.core import Sampling
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab.run.method_spec import is_own, method_from_spec
from motes.methods.method import MethodTraits
from motes.prompts import Prompt, prompt

Experiment = Literal["table1", "figure2"]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)

COLUMNS: Mapping[str, str] = MappingProxyType({"math-500": "MATH-500", "aime-2024": "AIME 2024"})
"""The paper's name of each of its benchmarks, by our name."""

SIZES: Mapping[str, int] = MappingProxyType({"math-500": 500, "aime-2024": 30})
"""Number of problems of each benchmark."""

TASKS: Mapping[Experiment, tuple[str, ...]] = MappingProxyType(
    {"table1": ("math-500", "aime-2024"), "figure2": ("math-500",)}
)
"""The benchmarks of each experiment, in the order of its numbers."""

KEYS = ("model", "prompt", "reward", "sampling", *EXPERIMENTS)
SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))


class Wanted(NamedTuple):
    """A method to measure: the paper's name for it, its spec, and its budgets."""

    label: str
    method: str
    budgets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One of the paper's models.

    Attributes:
        name: the paper's name of the row.
        model, reward: the models to measure with, by their servers' names for them; no reward model if none is needed.
        prompt: the prompt around the problems; None: no prompt.
        prefix: how the reward model reads, see docs/reward-models.md; None: its default.
        wanted: the methods to measure, for each experiment that has the row.
    """

    name: str
    model: str
    prompt: Prompt | None
    sampling: Sampling
    reward: str | None
    prefix: str | None
    wanted: Mapping[Experiment, tuple[Wanted, ...]]

    def needs_reward(self, experiment: Experiment) -> bool:
        """Whether a method of that experiment needs a reward model."""
        methods = [method_from_spec(each.method, each.budgets[0]) for each in self.wanted.get(experiment, ())]
        return any(MethodTraits(method).needs_reward for method in methods)

    def reading(self, reward: str) -> str:
        """The spec of a reward model, with the row's `prefix`. The specs of judges and of users' own models, and specs
        with a prefix, stay unchanged."""
        own = re.match(r"https?:|hf:|tiny\b", reward) is None
        if self.prefix is None or own or "prefix=" in reward:
            return reward
        return f"{reward}{'&' if '?' in reward else '?'}prefix={quote(self.prefix, safe='')}"


def read_rows(directory: Path | None = None, *, run_code: bool = False) -> dict[str, Row]:
    """Read rows, by name, from the TOML files of a directory, by default motes's own. As directories may come from
    others, methods that are code, MODULE:CLASS, are refused unless `run_code`.

    Raises:
        ConfigurationError: there is no row, or a row cannot be used.
    """
    folder: Traversable = resources.files("motes.paper") / "configs" if directory is None else directory
    if not folder.is_dir():
        raise ConfigurationError(f"{directory} is not a directory: name one that holds a TOML file for each row")
    paths = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda file: file.name)
    if not paths:
        raise ConfigurationError(f"{directory} holds no TOML file: docs/reproducing-the-paper.md says what they are")
    return {row.name: row for row in (_read_row(file, run_code) for file in paths)}


def _read_row(file: Traversable, run_code: bool) -> Row:
    try:
        table = tomllib.loads(files.read_text(file) if isinstance(file, Path) else file.read_text(encoding="utf-8"))
        require_known(table, KEYS, "key")
        reward, sampling = table.get("reward", {}), table.get("sampling", {})
        require_known(reward, ("model", "prefix"), "key of [reward]")
        require_known(sampling, SAMPLING, "field of [sampling]")
        row_prompt = None if "prompt" not in table else prompt(table["prompt"])
        defaults = Sampling() if row_prompt is None else row_prompt.sampling
        return Row(
            name=file.name.removesuffix(".toml"),
            model=str(table["model"]),
            prompt=row_prompt,
            sampling=defaults.replace(**sampling),
            reward=reward.get("model"),
            prefix=reward.get("prefix"),
            wanted={name: _parse_experiment(table[name], run_code) for name in EXPERIMENTS if name in table},
        )
    except KeyError as error:
        raise ConfigurationError(f"the row {str(file)!r} does not say {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:  # errors of TOML, and of wrong values in it
        raise ConfigurationError(f"the row {str(file)!r} cannot be used: {error}") from error


def _parse_experiment(table: Mapping[str, Any], run_code: bool) -> tuple[Wanted, ...]:
    require_known(table, ("budgets", "methods"), "key of an experiment")
    wanted = []
    for label, value in table["methods"].items():
        fields = {"method": value} if isinstance(value, str) else value
        require_known(fields, ("method", "budgets"), f"key of {label!r}")
        spec, budgets = fields["method"], fields.get("budgets", table["budgets"])
        if not budgets:
            raise ConfigurationError(f"{label!r} has no budgets")
        if not run_code and is_own(spec):
            raise ConfigurationError(
                f"the method {spec!r} is code, and only this file names it: if you know what it does, allow it by "
                "`--run-code`"
            )
        wanted.append(Wanted(label, spec, tuple(budgets)))
        for budget in budgets:
            method_from_spec(spec, budget)
    return tuple(wanted)


def require_known(names: Iterable[str], known: Collection[str], kind: str) -> None:
    """Raise an UnknownNameError if a name is not known."""
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)


class Point(NamedTuple):
    """A place in a table or figure: the row, the paper's name of the method, and the budget (None in table 1, whose
    budgets are all the same)."""

    row: str
    label: str
    budget: int | None


def results() -> dict[str, Any]:
    """All numbers, as in the shipped file."""
    numbers: dict[str, Any] = json.loads((resources.files("motes.paper") / "results.json").read_text(encoding="utf-8"))
    return numbers


@cache
def published(experiment: Experiment) -> Mapping[Point, tuple[float | None, ...]]:
    """Accuracy in percent at each point, on each of the experiment's tasks, in the paper's order; None if the paper
    gives no number."""
    numbers: dict[Point, tuple[float | None, ...]] = {}
    if experiment == "table1":
        table = results()["table1_budget64"]
        rows = {row: {"pass@1": pair} for row, pair in table["reference_models"].items()}
        rows |= {row: lines | table["particle_gibbs"].get(row, {}) for row, lines in table["scaled_models"].items()}
        numbers = {Point(row, label, None): tuple(pair) for row, lines in rows.items() for label, pair in lines.items()}
    else:
        for row, curves in results()["figure2_read_off_by_eye_plus_minus_1_point"].items():
            for label, values in curves.items():
                if label != "budgets":
                    budgets = curves["budgets"][-len(values) :]  # a curve may begin at a later budget
                    name = label.removesuffix("_from_4")
                    numbers.update((Point(row, name, n), (value,)) for n, value in zip(budgets, values, strict=True))
    return MappingProxyType(numbers)
