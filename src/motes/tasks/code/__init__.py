"""Answers that are programs: which one a text states, which are the same, and whether one passes its tests."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from functools import lru_cache
from typing import Any

from motes.errors import ConfigurationError
from motes.tasks.code.confinement import Limits
from motes.tasks.code.sandbox import ProgramTests, Sandbox, require_confinement, shared
from motes.tasks.tex import Reading
from motes.tasks.thoughts import said

_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`{]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
_PYTHON = frozenset(("", "python", "py", "python3", "python2", "ipython", "pycon"))
_NAME = "<program of a model>"
warnings.filterwarnings("ignore", module=re.escape(_NAME))  # "\\d" in a text: none of the reader's business
_LONGEST = 50_000
"""Characters of a program that is parsed; a longer one is a model's loop, and named by its text."""


class CodeAnswers:
    """An answer is a Python program: of the blocks between fences, the last that defines a function or a class; the
    last of any where none does; the whole text where there are no fences, and it is Python.

    A block counts as Python where its language is that or is not stated. A text that ended within a block states what
    is there of it. Nothing is final before the model has ended its text: a later block may take another's place.

    Two programs are the same where they are once comments, docstrings and layout are left out. Whether two programs do
    the same cannot be decided.

    Args:
        sandbox: that programs are run in; by default the one that this process shares.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox = sandbox

    def answer(self, text: str) -> str | None:
        text = said(text)
        blocks = [found for found in _BLOCK.finditer(text) if found["code"].strip()]
        if not blocks:
            return text.strip("\n") if _is_program(text) else None
        codes = [_code(found) for found in blocks if found["language"].casefold() in _PYTHON]
        codes = [code for code in codes if _defines_something(code)] or codes
        return codes[-1].rstrip() if codes else None

    def read(self, step: str, before: Reading | None) -> Reading:
        return Reading()

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two programs have one canonical form."""
        return self.canonical(first) == self.canonical(second)

    def canonical(self, answer: str) -> str:
        """The program without comments, docstrings and layout; what is no Python as it is, without spaces at the ends
        of lines."""
        tree = _parsed(answer)
        if tree is not None:
            try:
                return _unparsed(tree)
            except (RecursionError, MemoryError, ValueError):
                pass
        return "\n".join(line.rstrip() for line in answer.strip().splitlines())

    def matches(self, reference: str, answer: str) -> bool:
        """Whether two programs are the same. Rows have tests, by which programs are graded: see `meets`."""
        return self.equivalent(reference, answer)

    def meets(self, key: Any, answer: str) -> bool:
        """Whether a program passes its tests.

        Args:
            key: the tests, a `ProgramTests`.

        Raises:
            GraderError: the tests are broken, or cannot be run.
        """
        assert isinstance(key, ProgramTests)
        return (self._sandbox or shared()).passes(key, answer)

    def require(self, options: dict[str, str]) -> None:
        """Refuse what cannot work, before anything is generated.

        Args:
            options: of the task: "sandbox", "limits" where programs may run without confinement.

        Raises:
            ConfigurationError: programs cannot be confined here, or the option has another value.
        """
        if (chosen := options.get("sandbox", "full")) not in ("full", "limits"):
            raise ConfigurationError(f"sandbox can be full or limits, not {chosen!r}")
        if chosen == "full":
            require_confinement()


def _code(block: re.Match[str]) -> str:
    """What a block holds, no deeper than its fences: blocks in lists are indented."""
    return textwrap.dedent(block["code"]) if block["indent"] else block["code"]


@lru_cache(maxsize=256)
def _parsed(code: str) -> ast.Module | None:
    """The tree of a program; None for what is none, or too long or too nested to be read."""
    if len(code) > _LONGEST:
        return None
    try:
        return ast.parse(code, _NAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_program(text: str) -> bool:
    """Whether a text without fences is Python, or the indented rest of a function, rather than prose that happens to be
    both, such as a word."""
    tree = _parsed(text)
    if tree is None and text[:1].isspace():
        tree = _parsed("def _():\n" + text.lstrip("\n"))
    return tree is not None and not all(isinstance(statement, ast.Expr) for statement in tree.body)


def _defines_something(code: str) -> bool:
    tree = _parsed(code)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if tree is None:  # it was cut off, or is Python of another version
        return re.search(r"^[ \t]*(?:async\s+def|def|class)\s+\w", code, re.MULTILINE) is not None
    return any(isinstance(statement, kinds) for statement in tree.body)


def _unparsed(tree: ast.Module) -> str:
    return ast.unparse(_WithoutDocstrings().visit(ast.parse(ast.unparse(tree), _NAME)))


class _WithoutDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node, clean=False) is not None
            if documented:
                node.body = node.body[1:] or [ast.Pass()]
        return node


__all__ = ["CodeAnswers", "Limits", "ProgramTests", "Sandbox"]
