"""Answers that are programs: finds one in a text, compares two, grades one by its tests, and reads rows with tests."""

from __future__ import annotations

import ast
import contextlib
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from motes.errors import ConfigurationError
from motes.tasks.boxed import BoxedAnswers
from motes.tasks.code.confinement import Limits
from motes.tasks.code.sandbox import ProgramTests, Sandbox, require_confinement, shared
from motes.tasks.rows import Entry, Fields, Row, find, need_text
from motes.tasks.tex import Reading
from motes.thoughts import without_thoughts

_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`{]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
_PYTHON = frozenset(("", "python", "py", "python3", "python2", "ipython", "pycon"))
_NAME = "<program of a model>"
warnings.filterwarnings("ignore", module=re.escape(_NAME))  # about "\\d" in a text, say
_MAX_CHARACTERS = 50_000
"""Maximum length of a program that is parsed. A longer one is a model's loop, and its text is its canonical form."""


class CodeAnswers(BoxedAnswers):
    """An answer is a Python program: the last block between fences that defines a function or a class, or the last
    block if none does; or the whole text, if it has no fences and is Python.

    A block counts as Python if its language is Python or is not stated. If a text ended within a block, the answer is
    the part that is there. No answer is final before the model has ended its text: a later block may replace it.

    Two programs are the same if they are equal without comments, docstrings and layout. Whether two programs do the
    same cannot be decided; grading uses the tests of rows instead, see `meets`.

    Args:
        sandbox: in which programs run; by default the one of this process.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox = sandbox

    def answer(self, text: str) -> str | None:
        text = without_thoughts(text)
        blocks = [block for block in _BLOCK.finditer(text) if block["code"].strip()]
        if not blocks:
            return text.strip("\n") if _is_program(text) else None
        blocks = [block for block in blocks if block["language"].casefold() in _PYTHON]
        # a block within a list is indented
        codes = [textwrap.dedent(block["code"]) if block["indent"] else block["code"] for block in blocks]
        codes = [code for code in codes if _defines_something(code)] or codes
        return codes[-1].rstrip() if codes else None

    def answer_when_cut(self, text: str) -> str | None:
        return self.answer(text)

    def read(self, step: str, before: Reading | None) -> Reading:
        return Reading()

    def canonical(self, answer: str) -> str:
        """The program without comments, docstrings and layout. A text that is not Python only loses the spaces at the
        ends of its lines."""
        if (tree := _parse(answer)) is not None:
            with contextlib.suppress(RecursionError, MemoryError, ValueError):
                return ast.unparse(_WithoutDocstrings().visit(ast.parse(ast.unparse(tree), _NAME)))
        return "\n".join(line.rstrip() for line in answer.strip().splitlines())

    def meets(self, key: Any, answer: str) -> bool:
        """Whether a program passes the tests `key`. Raises GraderError if they are broken, or cannot be run."""
        assert isinstance(key, ProgramTests)
        return (self._sandbox or shared()).passes(key, answer)

    def require(self, options: dict[str, str]) -> None:
        """Refuse options that cannot work, before anything is generated: "sandbox" is "full", or "limits" if programs
        may run without confinement.

        Raises:
            ConfigurationError: programs cannot be confined here, or the option has another value.
        """
        if (value := options.get("sandbox", "full")) not in ("full", "limits"):
            raise ConfigurationError(f"sandbox can be full or limits, not {value!r}")
        if value == "full":
            require_confinement()


@lru_cache(maxsize=256)
def _parse(code: str) -> ast.Module | None:
    """The tree of a program; None if the text is no program, or too long or too nested to parse."""
    if len(code) > _MAX_CHARACTERS:
        return None
    try:
        return ast.parse(code, _NAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_program(text: str) -> bool:
    """Whether a text without fences is Python, or the indented rest of a function, and not prose that happens to be
    valid Python, such as a word."""
    tree = _parse(text)
    if tree is None and text[:1].isspace():
        tree = _parse("def _():\n" + text.lstrip("\n"))
    return tree is not None and not all(isinstance(statement, ast.Expr) for statement in tree.body)


def _defines_something(code: str) -> bool:
    tree = _parse(code)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if tree is None:  # the program was cut off, or is Python of another version
        return re.search(r"^[ \t]*(?:async\s+def|def|class)\s+\w", code, re.MULTILINE) is not None
    return any(isinstance(statement, kinds) for statement in tree.body)


class _WithoutDocstrings(ast.NodeTransformer):
    _KINDS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, self._KINDS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node


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
        template: the text of the question, with {question} and {example} in their places.
    """

    question: tuple[str, ...] = ("question", "prompt", "problem")
    answer: tuple[str, ...] = ("answer", "solution", "canonical_solution", "code")
    id: tuple[str, ...] = ("id", "task_id", "unique_id")
    tests: tuple[str, ...] = ("test", "tests")
    entry_point: tuple[str, ...] = ("entry_point",)
    prelude: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    template: str = "{question}"

    def read(self, row: Row, name: str) -> Entry | None:
        question = need_text(row, self.question, "question")
        tests = _lines(*find(row, self.tests))
        if not tests:
            raise ValueError(f"it has no tests: {' or '.join(f'`{name}`' for name in self.tests)}")
        examples = _lines(*find(row, self.examples))
        reference = find(row, self.answer)[1]
        prelude = need_text(row, self.prelude, "prelude") if self.prelude else ""
        code = "\n".join((*_lines(*find(row, self.imports)), *tests))
        entry_point = need_text(row, self.entry_point, "entry point") if find(row, self.entry_point)[0] else None
        key = ProgramTests(code, entry_point, prelude)
        parts = {"question": question.strip("\n"), "example": examples[0] if examples else ""}
        text = _PLACE.sub(lambda place: parts[place[1]], self.template)
        if reference is not None and not isinstance(reference, str):
            raise ValueError(f"the answer must be a program, not {reference!r}")
        return self.entry(row, name, text, reference, key)


def _lines(field: str, value: Any) -> Sequence[str]:
    """The texts of a field that has one text, a list of texts, or nothing. Blank ones are left out."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not (isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"`{field}` must be a text or a list of texts, not {value!r}")
    return [text for text in texts if text.strip()]


__all__ = ["CodeAnswers", "Limits", "ProgramFields", "ProgramTests", "Sandbox"]
