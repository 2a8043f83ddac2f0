r"""Prompts: how a family of models is asked, and the steps that it answers in, as readable files.

A prompt is a TOML file. Any of its keys may be left out:

    system = '''…'''              # the system prompt
    question = '{question}'       # what the question is put into
    delimiter = "\n\n"            # what ends a step: a text, or a list of them
    pattern = '\n\n(?=## Step)'   # or a regular expression
    step_tokens = 256             # or so many tokens
    stop = ["\nQuestion:"]        # texts that end the answer

See `motes.steps` for what these mean to the letter.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from motes.arguments import fit_fields
from motes.core import Problem, Sampling
from motes.errors import ConfigurationError, UnknownNameError, UnreadableFileError
from motes.text import read_text

SLOT = "{question}"
KEYS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "system": (str,),
        "question": (str,),
        "delimiter": (str, list),
        "pattern": (str,),
        "step_tokens": (int,),
        "stop": (str, list),
    }
)
"""What a file may say, and as what."""
STEPS = ("delimiter", "pattern", "step_tokens")
"""What may end a step: one of these."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How a family of models is asked.

    Attributes:
        name: of the file, without its ending.
        system: the system prompt; None: none.
        question: what the question is put into, in place of "{question}".
        sampling: the steps that such an answer has, everything else as by default.

    Raises:
        ConfigurationError: `question` does not say where the question stands.
    """

    name: str = ""
    system: str | None = None
    question: str = SLOT
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        fit_fields(self, "a prompt's ")
        if SLOT not in self.question:
            raise ConfigurationError(f"the prompt {self.name!r} has no {SLOT} in its `question`: say where it stands")

    def problem(self, asked: str | Problem) -> Problem:
        """A question, or the last one of a conversation, as this family wants it.

        Whatever else is in a conversation stays as it is; so does its own system prompt, which takes the place of the
        prompt's. Reward models, tasks and graders see the problem as it was asked (`Problem.plain`).
        """
        plain = asked.plain if isinstance(asked, Problem) else Problem(asked)
        *before, last = plain.messages
        turns = [*before, {**last, "content": self.question.replace(SLOT, last["content"])}]
        if self.system and plain.system is None:
            turns.insert(0, {"role": "system", "content": self.system})
        return plain.asked_as(turns)


def names() -> list[str]:
    """The prompts that come with motes."""
    files = (Path(entry.name) for entry in resources.files(__name__).iterdir())
    return sorted(file.stem for file in files if file.suffix == ".toml")


def prompt(spec: str | Path | Prompt) -> Prompt:
    """A prompt by its name, "llama-3" or "qwen2.5-math", or of a TOML file of your own.

    Raises:
        UnknownNameError: there is neither such a prompt nor such a file, or the file has a key that means nothing.
        ConfigurationError: the file cannot be read, or a value in it cannot work.
    """
    if isinstance(spec, Prompt):
        return spec
    if str(spec) in names():
        text = resources.files(__name__).joinpath(f"{spec}.toml").read_text(encoding="utf-8")
        return _read(text, str(spec), str(spec))
    path = Path(spec)
    if path.name == str(spec) and path.suffix != ".toml" and not path.exists():
        raise UnknownNameError("prompt", str(spec), (*names(), "FILE.toml of your own"))
    try:
        text = read_text(path)
    except (OSError, UnicodeError) as error:
        raise UnreadableFileError(path, error) from error
    return _read(text, path.stem, str(path))


def _read(text: str, name: str, where: str) -> Prompt:
    try:
        told: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the prompt {where!r} is no TOML: {error}") from error
    for key, value in told.items():
        if key not in KEYS:
            raise UnknownNameError(f"key of the prompt {where!r}", key, KEYS)
        parts = value if isinstance(value, list) else ()
        if type(value) not in KEYS[key] or not all(isinstance(part, str) for part in parts):
            raise ConfigurationError(f"the prompt {where!r}: {key} cannot be {value!r}")
    try:
        sampling = Sampling().replace(**steps(told), stop=_texts(told.get("stop", [])))
        return Prompt(name=name, system=told.get("system"), question=told.get("question", SLOT), sampling=sampling)
    except ConfigurationError as error:
        raise ConfigurationError(f"the prompt {where!r}: {error}") from error


def steps(told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a sampling that say what ends a step, of the one of `STEPS` that is given.

    Raises:
        ConfigurationError: more than one is given, or the pattern is no regular expression.
    """
    given = [key for key in STEPS if told.get(key) is not None]
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)} both say what ends a step: give one of them")
    if "pattern" in given:
        try:
            return {"delimiter": re.compile(told["pattern"])}
        except re.error as error:
            raise ConfigurationError(f"{told['pattern']!r} is no regular expression: {error}") from error
    if "step_tokens" in given:
        return {"delimiter": None, "max_step_tokens": told["step_tokens"]}
    return {"delimiter": _texts(told["delimiter"])} if given else {}


def _texts(value: str | list[str]) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)
