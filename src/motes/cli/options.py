"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from motes import api
from motes.errors import ConfigurationError
from motes.protocols import LanguageModel, RewardModel
from motes.types import Sampling

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Language model: tiny, hf:PATH_OR_NAME, http://HOST:PORT/v1#MODEL, or MODULE:ATTRIBUTE of your own.",
    ),
]
Reward = Annotated[
    str, typer.Option("--reward", help="Reward model: tiny, hf:PATH_OR_NAME, MODULE:ATTRIBUTE, or none.")
]
OutcomeReward = Annotated[
    str | None,
    typer.Option("--outcome-reward", help="Another reward model, which chooses among the complete answers."),
]

DEFAULTS = Sampling()
Temperature = Annotated[float, typer.Option(help="Of the language model; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus mass, in (0, 1].")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option(help="Keep tokens at least this fraction as likely as the likeliest.")]
MaxStepTokens = Annotated[int, typer.Option(help="Tokens of one step.")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of one answer; by default what the model's context holds.")]
MaxSteps = Annotated[int, typer.Option(help="Steps of one answer.")]
Delimiter = Annotated[
    str, typer.Option(help=r"Text that ends a step, with \n for a new line; none: the answer is one step.")
]
DEFAULT_DELIMITER = r"\n\n"


def delimiter(text: str) -> str | None:
    """The delimiter that an option's text stands for."""
    return None if text == "none" else text.replace(r"\n", "\n").replace(r"\t", "\t")


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


def open_models(model: str, reward: str) -> tuple[LanguageModel, RewardModel | None]:
    """The models of those names."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what matters is raised
    return api.language_model(model), open_reward_model(reward)


def open_reward_model(reward: str | None) -> RewardModel | None:
    """The reward model of that name, if there is one."""
    return None if reward in (None, "none") else api.reward_model(reward)
