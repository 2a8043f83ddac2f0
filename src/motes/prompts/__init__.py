r"""Prompts: the form of questions to a family of models, and the steps of its answers, as readable files.

A prompt is a TOML file. Any of its keys may be left out:

    system = '''…'''              # the system prompt
    question = '{question}'       # the text that contains the question
    delimiter = "\n\n"            # the text that ends a step, or a list of such texts
    pattern = '\n\n(?=## Step)'   # or a regular expression
    step_tokens = 256             # or a number of tokens
    step_entropy = 1.5            # or where the next token is uncertain
    stop = ["\nQuestion:"]        # texts that end the answer

See `motes.steps` for their exact meaning.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from motes.arguments import fit_fields
from motes.core import Problem, Sampling, SamplingOptions
from motes.errors import ConfigurationError, UnknownNameError
from motes.files import read_toml

FOLDER = Path(__file__).parent
SLOT = "{question}"
KEYS: Mapping[str, tuple[type, ...]] = {
    "system": (str,),
    "question": (str,),
    "delimiter": (str, list),
    "pattern": (str,),
    "step_tokens": (int,),
    "step_entropy": (int, float),
    "min_step_tokens": (int,),
    "stop": (str, list),
}
"""The keys of a file, and the types of their values."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt of a family of models.

    Attributes:
        name: of the file, without its suffix.
        system: the system prompt; None: none.
        question: a text in which the question replaces "{question}".
        sampling: the steps of answers; all other values are defaults.

    Raises:
        ConfigurationError: `question` does not contain "{question}".
    """

    name: str = ""
    system: str | None = None
    question: str = SLOT
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        fit_fields(self, "a prompt's ")
        if SLOT not in self.question:
            raise ConfigurationError(f"the prompt {self.name!r} has no {SLOT} in its `question`: put it there")

    def problem(self, question: str | Problem) -> Problem:
        """The problem with the question, or the last one of a conversation, in this family's form.

        The rest of a conversation stays as it is. If it has a system prompt of its own, that replaces the prompt's.
        Reward models, tasks and graders see the original problem (`Problem.plain`).
        """
        plain = question.plain if isinstance(question, Problem) else Problem(question)
        *before, last = plain.messages
        turns = [*before, {**last, "content": self.question.replace(SLOT, last["content"])}]
        if self.system and plain.system is None:
            turns.insert(0, {"role": "system", "content": self.system})
        return plain.asked_as(turns)


def names() -> list[str]:
    """The names of the prompts that come with motes."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def prompt(spec: str | Path | Prompt) -> Prompt:
    """The prompt with a name such as "llama-3" or "qwen2.5-math", or the one in your own TOML file.

    Raises:
        UnknownNameError: there is neither such a prompt nor such a file, or the file has an unknown key.
        ConfigurationError: the file cannot be read, or a value in it is invalid.
    """
    if isinstance(spec, Prompt):
        return spec
    path, where = Path(spec), f"the prompt {str(Path(spec))!r}"
    if str(spec) in names():
        path = FOLDER / f"{spec}.toml"
    elif path.name == str(spec) and path.suffix != ".toml" and not os.path.exists(path):
        raise UnknownNameError("prompt", str(spec), (*names(), "FILE.toml of your own"))
    content = read_toml(path, where)
    for key, value in content.items():
        if key not in KEYS:
            raise UnknownNameError(f"key of {where}", key, KEYS)
        parts = value if isinstance(value, list) else ()
        if type(value) not in KEYS[key] or not all(isinstance(part, str) for part in parts):
            raise ConfigurationError(f"{where}: {key} cannot be {value!r}")
    try:
        options = SamplingOptions(**{key: value for key, value in content.items() if key not in ("system", "question")})
        sampling, question = options.apply(Sampling()), content.get("question", SLOT)
        return Prompt(name=path.stem, system=content.get("system"), question=question, sampling=sampling)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
