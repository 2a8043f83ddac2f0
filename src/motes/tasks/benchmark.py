"""Benchmarks: problems from a data set on the hub or from a file, and the rule that reads and grades their answers.

Each is a declaration of a few lines. The names and fields of data sets are those that their authors publish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from motes.core import Problem
from motes.errors import ConfigurationError, GraderError, MissingExtraError, UnknownNameError
from motes.protocols import AnswerRuleTraits, Reading, canonical_form
from motes.tasks.boxed import BoxedAnswers
from motes.tasks.code import CodeAnswers, ProgramFields
from motes.tasks.maths import MathAnswers
from motes.tasks.olympiad import ListedAnswers, OlympiadFields
from motes.tasks.patterns import RegexAnswers
from motes.tasks.plain import AnswerIs, LastLine, LastNumber
from motes.tasks.rows import Entry, Fields, Row, ShuffledChoices, read_jsonl, read_problems
from motes.tasks.words import Choices, ExactMatch, WholeText


@dataclass(frozen=True)
class HubData:
    """A data set on the Hugging Face hub: its name, one of its configurations (if it has several), and the names of its
    splits there, by their names here."""

    repository: str
    configuration: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"test": "test"})


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A benchmark.

    Attributes:
        rule: how answers are read and graded. If grading needs more than the reference answer (tests, a tolerance),
            `fields` reads that from a row as the problem's key, and the rule has a method `meets(key, answer) -> bool`,
            which raises the same errors as `matches`. A rule that cannot work everywhere has a method
            `require(options)`, which gets the options of the task's spec and raises `ConfigurationError` before
            anything is generated.
        fields: of its rows.
        hub: the data set; None: a file that the user names.
        options: names of options of the task's spec that are arguments of `rule`.
    """

    rule: Callable[..., BoxedAnswers] = MathAnswers
    fields: Fields = field(default_factory=Fields)
    hub: HubData | None = None
    options: tuple[str, ...] = ()

    def make_rule(self, options: Mapping[str, str]) -> BoxedAnswers:
        """The rule, with those of the options of a spec that are its arguments."""
        return self.rule(**{name: value for name, value in options.items() if name in self.options})


_PROBLEM = Fields(question=("problem",), answer=("answer",))
_ARENA = dataclasses.replace(_PROBLEM, id=("problem_idx",))

DECLARED: Mapping[str, Declaration] = MappingProxyType(
    {
        "math-500": Declaration(
            hub=HubData("HuggingFaceH4/MATH-500"), fields=dataclasses.replace(_PROBLEM, id=("unique_id",))
        ),
        "aime-2024": Declaration(hub=HubData("HuggingFaceH4/aime_2024", splits={"test": "train"}), fields=_PROBLEM),
        "aime-2025": Declaration(hub=HubData("math-ai/aime25"), fields=_PROBLEM),
        "amc-2023": Declaration(
            hub=HubData("math-ai/amc23"), fields=Fields(question=("question",), answer=("answer",))
        ),
        "gsm8k": Declaration(
            hub=HubData("openai/gsm8k", "main", splits={"test": "test", "train": "train"}),
            fields=Fields(question=("question",), answer=("answer",), after="####"),
        ),
        "aime-2026": Declaration(hub=HubData("MathArena/aime_2026", splits={"test": "train"}), fields=_ARENA),
        "hmmt-feb-2025": Declaration(hub=HubData("MathArena/hmmt_feb_2025", splits={"test": "train"}), fields=_ARENA),
        "olympiadbench": Declaration(
            rule=ListedAnswers,
            hub=HubData("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", splits={"test": "train"}),
            fields=OlympiadFields(),
        ),
        "olympiadbench-physics": Declaration(
            rule=ListedAnswers,
            hub=HubData("Hothan/OlympiadBench", "OE_TO_physics_en_COMP", splits={"test": "train"}),
            fields=OlympiadFields(),
        ),
        "gpqa-diamond": Declaration(
            rule=Choices,
            hub=HubData("Idavidrein/gpqa", "gpqa_diamond", splits={"test": "train"}),
            fields=ShuffledChoices(
                question=("Question",),
                answer=("Correct Answer",),
                id=("Record ID",),
                wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
            ),
        ),
        "mmlu-pro": Declaration(
            rule=Choices,
            hub=HubData("TIGER-Lab/MMLU-Pro", splits={"test": "test", "validation": "validation"}),
            fields=Fields(question=("question",), answer=("answer",), id=("question_id",), choices=("options",)),
        ),
        "humaneval-plus": Declaration(
            rule=CodeAnswers,
            hub=HubData("evalplus/humanevalplus"),
            fields=ProgramFields(
                question=("prompt",),
                answer=("canonical_solution",),
                id=("task_id",),
                prelude=("prompt",),
                template="Complete this Python function. Write all of it, with the imports that it needs, as one block "
                "of code.\n\n```python\n{question}\n```",
            ),
        ),
        "mbpp-plus": Declaration(
            rule=CodeAnswers,
            hub=HubData("evalplus/mbppplus"),
            fields=ProgramFields(
                question=("prompt",),
                answer=("code",),
                id=("task_id",),
                examples=("test_list",),
                imports=("test_imports",),
                template="{question}\n\nWrite it in Python, as one block of code that passes this test:\n\n"
                "```python\n{example}\n```",
            ),
        ),
        "code": Declaration(rule=CodeAnswers, fields=ProgramFields()),
        "math": Declaration(),
        "boxed": Declaration(rule=BoxedAnswers),
        "answer-is": Declaration(rule=AnswerIs),
        "last-number": Declaration(rule=LastNumber),
        "last-line": Declaration(rule=LastLine),
        "regex": Declaration(rule=RegexAnswers, options=("pattern",)),
        "exact-match": Declaration(rule=ExactMatch),
        "whole-text": Declaration(rule=WholeText),
        "multiple-choice": Declaration(rule=Choices, fields=Fields(choices=("choices",))),
    }
)
"""The benchmarks by name."""


class Benchmark:
    """A task whose problems are rows of data.

    Args:
        name: of the task; ids begin with it if rows have none.
        declaration: of the benchmark.
        path: of a JSON Lines file with the rows, which replaces the data set on the hub.
        revision: of the data set on the hub, a commit or a tag; by default the newest.
        options: of the task's spec, for the rule.

    Raises:
        ConfigurationError: there is neither a data set on the hub nor a file, or the rule cannot work here.
        MissingExtraError: grading needs a package that is not installed.
    """

    def __init__(
        self,
        name: str,
        declaration: Declaration,
        *,
        path: Path | None = None,
        revision: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        data = path or declaration.hub
        if data is None:
            raise ConfigurationError(f"the task {name!r} needs a file: {name}:FILE.jsonl")
        if path is not None and revision is not None:
            raise ConfigurationError("a file has no revision")
        self.name = name
        self.declaration = declaration
        self.path = path
        self.revision = revision
        self._data = data
        self._rule = declaration.make_rule(options or {})
        if (require := getattr(self._rule, "require", None)) is not None:
            require(dict(options or {}))
        self._entries: dict[str | None, Entry] = {}

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        """The problems, in the order of the rows.

        Raises:
            UnknownNameError: there is no such split.
            ConfigurationError: the rows cannot be read or loaded.
        """
        return [entry.problem for entry in self._read_split(split).values()][:limit]

    @property
    def needs_end(self) -> bool:
        return AnswerRuleTraits(self._rule).needs_end

    def answer(self, text: str) -> str | None:
        return self._rule.answer(text)

    def answer_when_cut(self, text: str) -> str | None:
        return self._rule.answer_when_cut(text)

    def read(self, step: str, before: Any) -> Reading:
        return self._rule.read(step, before)

    def equivalent(self, first: str, second: str) -> bool:
        return self._rule.equivalent(first, second)

    @property
    def canonical(self) -> Callable[[str], str] | None:
        return canonical_form(self._rule)

    def grade(self, problem: Problem, answer: str) -> bool:
        """See `motes.protocols.Task`."""
        if (meets := getattr(self._rule, "meets", None)) is None:
            return problem.answer is not None and self._rule.matches(problem.answer, answer)
        return bool(meets(self.key(problem), answer))

    def level(self, problem: Problem) -> int | None:
        """The problem's level, if the rows state levels."""
        return entry.level if (entry := self._entries.get(problem.id)) else None

    def key(self, problem: Problem) -> Any:
        """The data that grading needs besides the reference answer, see `Entry.key`.

        Raises:
            GraderError: there is no such problem.
            ConfigurationError: the rows cannot be read or loaded.
        """
        for split in self._splits:
            if problem.id not in self._entries:
                self._read_split(split)
        try:
            return self._entries[problem.id].key
        except KeyError:
            raise GraderError(f"the task {self.name!r} has no problem {problem.id!r} to grade by") from None

    @property
    def _splits(self) -> Mapping[str, str]:
        return self._data.splits if isinstance(self._data, HubData) else {"test": "test"}

    def _read_split(self, split: str) -> dict[str, Entry]:
        if split not in self._splits:
            raise UnknownNameError("split", split, self._splits)
        data = self._data
        if isinstance(data, HubData):
            rows, source = load(data.repository, data.configuration, data.splits[split], self.revision), data.repository
        else:
            rows, source = read_jsonl(data), str(data)
        entries = read_problems(rows, self.declaration.fields, source=source, name=self.name)
        self._entries.update(entries)
        return entries


@lru_cache(maxsize=8)
def load(repository: str, configuration: str | None, split: str, revision: str | None) -> list[tuple[int, Row]]:
    """The numbered rows of a data set on the hub; from the hub's cache on this machine if they are there."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"loading {repository} from the hub", "hub") from error
    try:
        rows = datasets.load_dataset(repository, configuration, split=split, revision=revision)
        return list(enumerate(map(dict, rows), start=1))
    except Exception as error:  # of any kind: no connection, no such data set, no such split
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigurationError(
            f"{repository} cannot be loaded from the hub ({reason}): check the connection, or name a file with its "
            "rows, NAME:FILE.jsonl"
        ) from error
