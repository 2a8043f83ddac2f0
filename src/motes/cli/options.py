"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from motes import api, prompts
from motes.cli import terminal
from motes.core import Sampling
from motes.errors import ConfigurationError
from motes.lab.run import prices
from motes.lab.run.evaluation import Evaluation
from motes.protocols import LanguageModel, RewardModel
from motes.tasks import DECLARED, TASKS

REWARDS = ("tiny", "none", "judge:", "hf:", "http://", "https://")


def complete(*names: str) -> Callable[[str], list[str]]:
    """What a shell offers for an option that takes one of `names`, or several with commas between."""

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
        help="Another reward model, which chooses among the complete answers.",
    ),
]

DEFAULTS = Sampling()
Temperature = Annotated[float, typer.Option(help="Of the language model; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus mass, in (0, 1].")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option(help="Keep tokens at least this fraction as likely as the likeliest.")]
MaxStepTokens = Annotated[
    int | None, typer.Option(help=f"Tokens of one step at most; by default {DEFAULTS.max_step_tokens:,}.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of one answer; by default what the model's context holds.")]
MaxSteps = Annotated[int, typer.Option(help="Steps of one answer.")]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        autocompletion=complete(*prompts.names()),
        help=f"How the model is asked, and the steps that it answers in: {', '.join(prompts.names())}, or a TOML file.",
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        autocompletion=complete(*TASKS, *DECLARED),
        help=f"How answers are read and compared, as by {', '.join((*TASKS, *DECLARED))}, or MODULE:ATTRIBUTE of your "
        r"own; by default the last \boxed{…} counts.",
    ),
]
Delimiter = Annotated[
    list[str] | None,
    typer.Option(
        help=r"Text that ends a step, with \n for a new line; may be repeated; by default \n\n. "
        "none: a step is --max-step-tokens tokens."
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Instead of a delimiter: a step ends where a match ends; (?=…) looks ahead."),
]
StepTokens = Annotated[int | None, typer.Option(help="Instead of a delimiter: a step is so many tokens.")]
StopText = Annotated[
    list[str] | None,
    typer.Option("--stop", help=r"Text that ends the answer, with \n for a new line; may be repeated."),
]

Task = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE.jsonl",
        autocompletion=complete(*TASKS, *DECLARED),
        help=f"Whose problems: {', '.join((*TASKS, *DECLARED))}, a file or MODULE:ATTRIBUTE of your own.",
    ),
]
ValidationSplit = Annotated[str, typer.Option("--split", help="Part of the task: not the one that is measured later.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Problems in flight.")]

RunCode = Annotated[
    bool,
    typer.Option("--run-code", help="Run code (MODULE:ATTRIBUTE) that the directory names, too: only if you trust it."),
]

Prices = Annotated[
    str | None,
    typer.Option(
        metavar="KIND=PRICE,…",
        help="Of a million tokens, in any currency: generated, prefill, prefill_cached, reward, reward_cached.",
    ),
]


TYPED: ContextVar[list[str] | None] = ContextVar("typed", default=None)
"""The words behind `motes` of the command that runs; None: those of this process."""


def command_line() -> str:
    """What was typed, to be typed again."""
    typed = TYPED.get()
    return shlex.join(["motes", *(sys.argv[1:] if typed is None else typed)])


@contextlib.contextmanager
def resumable(out: Path | None) -> Iterator[None]:
    """Work that Ctrl-C ends, and that the same command goes on with: what is done is in `out`.

    Raises:
        StoppedError: it was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        if out is None:
            raise terminal.StoppedError("nothing is kept without --out") from None
        raise terminal.StoppedError(f"what is done is in {out}, this goes on with it: {command_line()}") from None


def prompt(spec: str | None) -> prompts.Prompt | None:
    """The prompt that an option names."""
    return None if spec is None else prompts.prompt(spec)


def sampling(
    prompt: prompts.Prompt | None,
    *,
    max_step_tokens: int | None,
    delimiter: list[str] | None,
    pattern: str | None,
    step_tokens: int | None,
    stop: list[str] | None,
    **fields: Any,
) -> Sampling:
    """What the options say; where they say nothing of steps and stop texts, what the prompt says of them.

    Raises:
        ConfigurationError: they contradict each other, or a value cannot work.
    """
    if step_tokens is not None and max_step_tokens is not None:
        raise ConfigurationError("--step-tokens and --max-step-tokens both say how long a step is: give one of them")
    told = {"delimiter": delimiter and list(map(_text, delimiter)), "pattern": pattern, "step_tokens": step_tokens}
    steps = prompts.steps(told)
    if delimiter == ["none"]:
        steps = {"delimiter": None}
    if steps:
        fields |= {"max_step_tokens": DEFAULTS.max_step_tokens, **steps}
    if max_step_tokens is not None:
        fields["max_step_tokens"] = max_step_tokens
    if stop:
        fields["stop"] = tuple(map(_text, stop))
    return (DEFAULTS if prompt is None else prompt.sampling).replace(**fields)


def trial(
    task: str,
    split: str,
    limit: int,
    methods: Sequence[str],
    budget: int,
    *,
    model: str,
    reward: str,
    temperature: float,
    max_tokens: int | None,
    asked: str | None,
) -> Evaluation:
    """An evaluation that finds something out before the one that counts, with steps as the prompt has them.

    Raises:
        ConfigurationError: there is no reward model, or something else cannot work.
    """
    if reward == "none":
        raise ConfigurationError("this looks at how good the reward model is: name one")
    found = prompt(asked)
    usual = DEFAULTS if found is None else found.sampling
    return Evaluation(
        task=task,
        split=split,
        limit=limit,
        methods=tuple(methods),
        budgets=(budget,),
        lm=model,
        reward=reward,
        sampling=usual.replace(temperature=temperature, max_tokens=max_tokens),
        prompt=found,
    )


def _text(option: str) -> str:
    return option.replace(r"\n", "\n").replace(r"\t", "\t")


def names(text: str, option: str) -> tuple[str, ...]:
    """The words of a list separated by commas.

    Raises:
        ConfigurationError: it is empty.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise ConfigurationError(f"{option} is empty: give at least one")
    return words


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of a list separated by commas.

    Raises:
        ConfigurationError: it is empty, or something in it is no whole number.
    """
    words = names(text, option)
    try:
        return tuple(map(int, words))
    except ValueError:
        raise ConfigurationError(f"{option} must be whole numbers separated by commas, not {text!r}") from None


def parse_prices(text: str | None) -> prices.Prices | None:
    """The prices that an option gives."""
    return None if text is None else prices.Prices.parse(text)


def open_models(model: str, reward: str) -> tuple[LanguageModel, RewardModel | None]:
    """The models of those names."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what matters is raised
    terminal.pass_time(f"opening {model}")
    return api.language_model(model), open_reward_model(reward)


def open_reward_model(reward: str | None) -> RewardModel | None:
    """The reward model of that name, if there is one."""
    if reward is None or reward == "none":
        return None
    terminal.pass_time(f"opening {reward}")
    return api.reward_model(reward)
