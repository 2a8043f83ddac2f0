"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import shlex
import sys
import typing
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from motes import api, prompts
from motes.cli import terminal
from motes.core import Sampling, SamplingOptions
from motes.errors import ConfigurationError, MissingExtraError
from motes.lab.run import prices
from motes.protocols import LanguageModel, RewardModel
from motes.tasks import DECLARED, RULES, TASKS

REWARDS = ("tiny", "none", "judge:", "hf:", "http://", "https://")


def complete(*names: str) -> Callable[[str], list[str]]:
    """The shell completion of an option that takes one of `names`, or several separated by commas."""

    def completions(incomplete: str) -> list[str]:
        before, comma, word = incomplete.rpartition(",")
        return [before + comma + name for name in names if name.startswith(word)]

    return completions


Model = Annotated[
    str,
    typer.Option(
        "--model",
        autocompletion=complete("tiny", "hf:", "http://", "https://"),
        help="Language model: tiny, hf:PATH_OR_NAME, http://HOST:PORT/v1#MODEL, or MODULE:ATTRIBUTE of your own.",
    ),
]
Reward = Annotated[
    str,
    typer.Option(
        "--reward",
        autocompletion=complete(*REWARDS),
        help="Reward model: tiny, hf:PATH_OR_NAME, http://HOST:PORT#MODEL, judge:LM, MODULE:ATTRIBUTE, or none.",
    ),
]
OutcomeReward = Annotated[
    str | None,
    typer.Option(
        "--outcome-reward",
        autocompletion=complete(*REWARDS),
        help="A second reward model, which only chooses among the complete answers.",
    ),
]

NO_OPTIONS = SamplingOptions()
HELP = {field.name: field.metadata["help"] for field in dataclasses.fields(SamplingOptions)}
Temperature = Annotated[float | None, typer.Option(help=HELP["temperature"])]
MaxTokens = Annotated[int | None, typer.Option(help=HELP["max_tokens"])]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        autocompletion=complete(*prompts.names()),
        help=f"Prompt, which also defines the steps of answers: {', '.join(prompts.names())}, or a TOML file.",
    ),
]
TaskOfRule = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        autocompletion=complete(*TASKS, *DECLARED),
        help=f"Task whose rule reads and compares answers: {', '.join((*TASKS, *DECLARED))}, or MODULE:ATTRIBUTE of "
        r"your own. Default: the last \boxed{…} counts.",
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=complete(*(name.partition("…")[0] for name in RULES)),
        help=f"Rule that reads answers, in the place of the task's: {', '.join(RULES)}, or MODULE:ATTRIBUTE of your "
        "own. The task compares and grades the answers.",
    ),
]
Task = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE.jsonl",
        autocompletion=complete(*TASKS, *DECLARED),
        help=f"Task: {', '.join((*TASKS, *DECLARED))}, a file of problems, or MODULE:ATTRIBUTE of your own.",
    ),
]
ValidationSplit = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Part of the task. Default: its validation split, or test if it has none.",
        show_default=False,
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Number of problems in flight.")]

RunCode = Annotated[
    bool,
    typer.Option(
        "--run-code", help="Run code (MODULE:ATTRIBUTE) that the directory names. Do so only if you trust it."
    ),
]

Prices = Annotated[
    str | None,
    typer.Option(
        metavar="KIND=PRICE,…",
        help="Price of a million tokens, in any currency: generated, prefill, prefill_cached, reward, reward_cached.",
    ),
]


ARGUMENTS: ContextVar[list[str] | None] = ContextVar("arguments", default=None)
"""The arguments of the current command, without `motes`; None: those of this process."""


def command_line() -> str:
    """The current command, quoted for a shell."""
    arguments = ARGUMENTS.get()
    return shlex.join(["motes", *(sys.argv[1:] if arguments is None else arguments)])


@contextlib.contextmanager
def resumable(out: Path | None) -> Iterator[None]:
    """A context for work that Ctrl-C interrupts (StoppedError) and the same command resumes from `out`."""
    try:
        yield
    except KeyboardInterrupt:
        if out is None:
            raise terminal.StoppedError("nothing is kept without --out") from None
        raise terminal.StoppedError(f"finished work is in {out}, resume it: {command_line()}") from None


def open_prompt(spec: str | None, sampling: SamplingOptions) -> tuple[prompts.Prompt | None, Sampling]:
    """The prompt that an option names, and the sampling: the prompt's steps, changed by the other options."""
    prompt = None if spec is None else prompts.prompt(spec)
    return prompt, sampling.apply(Sampling() if prompt is None else prompt.sampling)


def takes_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `SamplingOptions`, in the place of its parameter `sampling`."""
    signature = inspect.signature(command, eval_str=True)
    kinds = typing.get_type_hints(SamplingOptions)
    sampling = [_parameter(field, kinds[field.name]) for field in dataclasses.fields(SamplingOptions)]
    parameters = list(signature.parameters.values())
    place = list(signature.parameters).index("sampling")
    parameters[place : place + 1] = sampling

    @functools.wraps(command)
    def with_options(**arguments: Any) -> None:
        values = {option.name: arguments.pop(option.name) for option in sampling}
        values |= {name: list(map(_unescape, texts)) for name, texts in values.items() if isinstance(texts, list)}
        if isinstance(values["wait"], str):
            values["wait"] = _unescape(values["wait"])
        command(**arguments, sampling=SamplingOptions(**values))

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    """The option for a field of `SamplingOptions`."""
    option = typer.Option(help=HELP[field.name], metavar=field.metadata.get("metavar"))
    takes_several = list[str] in typing.get_args(kind)
    annotation: Any = Annotated[list[str] | None if takes_several else kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)


def _unescape(option: str) -> str:
    return option.replace(r"\n", "\n").replace(r"\t", "\t")


def names(text: str, option: str) -> tuple[str, ...]:
    """The names in a list separated by commas. An empty list is a ConfigurationError."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise ConfigurationError(f"{option} is empty: give at least one")
    return words


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of a list separated by commas. Other items, or none, are a ConfigurationError."""
    words = names(text, option)
    try:
        return tuple(map(int, words))
    except ValueError:
        raise ConfigurationError(f"{option} must be whole numbers separated by commas, not {text!r}") from None


def parse_prices(text: str | None) -> prices.Prices | None:
    """The prices in the value of `--prices`."""
    return None if text is None else prices.Prices.parse(text)


def write_files(write: Callable[[bool], list[Path]], plots: bool = True) -> list[Path]:
    """Call `write(plots)`, and again without plots if the package that draws them is not installed."""
    try:
        return write(plots)
    except MissingExtraError as error:
        terminal.note(str(error))
        return write(False)


def open_models(model: str, reward: str) -> tuple[LanguageModel, RewardModel | None]:
    """Open the models of these names."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # errors are raised anyway
    terminal.say_busy(f"opening {model}")
    return api.language_model(model), open_reward_model(reward)


def open_reward_model(reward: str | None) -> RewardModel | None:
    """Open the reward model of this name, if there is one."""
    if reward is None or reward == "none":
        return None
    terminal.say_busy(f"opening {reward}")
    return api.reward_model(reward)
