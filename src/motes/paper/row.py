"""A row of the paper's: a model, how it is asked, and what is measured of it, as a readable file.

    model = "meta-llama/Llama-3.2-1B-Instruct"    # what is served
    prompt = "llama-3"                            # see `motes.prompts`; may be left out
    [reward]                                      # may be left out where no method scores
    model = "Qwen/Qwen2.5-Math-PRM-7B"
    prefix = "whole"                              # how it reads, see docs/reward-models.md
    [sampling]                                    # fields of `motes.Sampling`
    temperature = 0.8
    [table1]                                      # and [figure2]
    budgets = [64]
    [table1.methods]                              # what the paper calls it = the method's spec here
    pf = "pf:paper"
    "one sample" = { method = "majority", budgets = [1] }

The file's name is the row's.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

from motes import files
from motes.core import Sampling
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab.run.method_spec import is_own, method_from_spec
from motes.methods.run import MethodTraits
from motes.prompts import Prompt, prompt

Experiment = Literal["table1", "figure2"]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)

KEYS = ("model", "prompt", "reward", "sampling", *EXPERIMENTS)
SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))


class Wanted(NamedTuple):
    """What is measured: what the paper calls it, the method's spec, and at which budgets."""

    label: str
    method: str
    budgets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the paper's.

    Attributes:
        name: the paper's. model: what the row is measured with, as its server calls it.
        prompt: how it is asked; None: as the problems stand.
        reward: the reward model; None: none. prefix: how it reads, see docs/reward-models.md; None: as it comes.
        wanted: for each experiment that the row is in, what is measured.
    """

    name: str
    model: str
    prompt: Prompt | None
    sampling: Sampling
    reward: str | None
    prefix: str | None
    wanted: Mapping[Experiment, tuple[Wanted, ...]]

    def needs_reward(self, experiment: Experiment) -> bool:
        """Whether a method of that experiment scores."""
        made = [method_from_spec(one.method, one.budgets[0]) for one in self.wanted.get(experiment, ())]
        return any(MethodTraits.of(method).needs_reward for method in made)

    def reading(self, reward: str) -> str:
        """The spec of a reward model that reads as the row wants it. One that says by itself how it reads, a judge and
        a model of one's own stay as they are."""
        own = re.match(r"https?:|hf:|tiny\b", reward) is None
        if self.prefix is None or own or "prefix=" in reward:
            return reward
        return f"{reward}{'&' if '?' in reward else '?'}prefix={quote(self.prefix, safe='')}"


def read_rows(directory: Path | None = None, *, run_code: bool = False) -> dict[str, Row]:
    """The rows by name: those that come with motes, or the TOML files of a directory.

    Args:
        run_code: allow methods that are code, MODULE:CLASS. Directories may come from others.

    Raises:
        ConfigurationError: there are none, or one of them cannot be used.
    """
    folder: Traversable = resources.files("motes.paper") / "configs" if directory is None else directory
    if not folder.is_dir():
        raise ConfigurationError(f"{directory} is no directory: name one that holds a TOML file for each row")
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda file: file.name)
    if not found:
        raise ConfigurationError(f"{directory} holds no TOML file: docs/reproducing-the-paper.md says what they are")
    return {row.name: row for row in (_read(file, run_code) for file in found)}


def _read(file: Traversable, run_code: bool) -> Row:
    name = file.name.removesuffix(".toml")
    try:
        told = tomllib.loads(files.read_text(file) if isinstance(file, Path) else file.read_text(encoding="utf-8"))
        _known(told, KEYS, "key")
        reward = told.get("reward", {})
        _known(reward, ("model", "prefix"), "key of [reward]")
        _known(told.get("sampling", {}), SAMPLING, "field of [sampling]")
        asked = None if "prompt" not in told else prompt(told["prompt"])
        usual = Sampling() if asked is None else asked.sampling
        row = Row(
            name=name,
            model=str(told["model"]),
            prompt=asked,
            sampling=usual.replace(**told.get("sampling", {})),
            reward=reward.get("model"),
            prefix=reward.get("prefix"),
            wanted={
                experiment: _wanted(told[experiment], run_code) for experiment in EXPERIMENTS if experiment in told
            },
        )
    except KeyError as error:
        raise ConfigurationError(f"the row {str(file)!r} does not say {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:  # of TOML, and of what is wrong in it
        raise ConfigurationError(f"the row {str(file)!r} cannot be used: {error}") from error
    return row


def _wanted(told: Mapping[str, Any], run_code: bool) -> tuple[Wanted, ...]:
    _known(told, ("budgets", "methods"), "key of an experiment")
    found = []
    for label, spec in told["methods"].items():
        own = {"method": spec} if isinstance(spec, str) else spec
        _known(own, ("method", "budgets"), f"key of {label!r}")
        budgets = own.get("budgets", told["budgets"])
        if not budgets:
            raise ConfigurationError(f"{label!r} has no budgets")
        if not run_code and is_own(own["method"]):
            raise ConfigurationError(
                f"the method {own['method']!r} is code, and only this file names it: if you know what it does, allow "
                "it by `--run-code`"
            )
        found.append(Wanted(label, own["method"], tuple(budgets)))
        for budget in budgets:
            method_from_spec(own["method"], budget)
    return tuple(found)


def _known(told: Mapping[str, Any], known: tuple[str, ...], kind: str) -> None:
    for key in told:
        if key not in known:
            raise UnknownNameError(kind, key, known)
