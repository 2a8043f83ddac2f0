"""Reads rows whose answers are programs: a question, and tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from motes.tasks.code.sandbox import ProgramTests
from motes.tasks.rows import Entry, Fields, Row, find, need_text

_PLACE = re.compile(r"\{(question|example)\}")


@dataclass(frozen=True, kw_only=True)
class ProgramFields(Fields):
    """The fields of a row whose answer is a program. `answer`, a correct program, may be missing.

    Attributes:
        tests: Python code that raises if a program is wrong: a text, or a list of texts.
        entry_point: the function to define. Without it, programs define the functions that the tests call and do not
            define.
        prelude: Python code that a program may complete or build on.
        imports: code that the tests need before them: a list of texts.
        examples: tests that the question may show; it shows the first one.
        asked: the text of the question, with {question} and {example} in their places.
    """

    question: tuple[str, ...] = ("question", "prompt", "problem")
    answer: tuple[str, ...] = ("answer", "solution", "canonical_solution", "code")
    id: tuple[str, ...] = ("id", "task_id", "unique_id")
    tests: tuple[str, ...] = ("test", "tests")
    entry_point: tuple[str, ...] = ("entry_point",)
    prelude: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    asked: str = "{question}"

    def read(self, row: Row, name: str) -> Entry | None:
        question = need_text(row, self.question, "question")
        tests = _lines(*find(row, self.tests))
        if not tests:
            raise ValueError(f"it has no tests: {' or '.join(f'`{name}`' for name in self.tests)}")
        examples = _lines(*find(row, self.examples))
        reference = find(row, self.answer)[1]
        prelude = need_text(row, self.prelude, "prelude") if self.prelude else ""
        key = ProgramTests(
            "\n".join((*_lines(*find(row, self.imports)), *tests)),
            need_text(row, self.entry_point, "entry point") if find(row, self.entry_point)[0] else None,
            prelude,
        )
        parts = {"question": question.strip("\n"), "example": examples[0] if examples else ""}
        text = _PLACE.sub(lambda place: parts[place[1]], self.asked)
        if reference is not None and not isinstance(reference, str):
            raise ValueError(f"the answer must be a program, not {reference!r}")
        return self.entry(row, name, text, reference, key)


def _lines(field: str, value: Any) -> Sequence[str]:
    """The texts of a field that has one text, a list of texts, or nothing. Blank ones are left out.

    Raises:
        ValueError: the field has something else.
    """
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not (isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"`{field}` must be a text or a list of texts, not {value!r}")
    return [text for text in texts if text.strip()]
