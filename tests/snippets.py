"""What readers copy from the pages: blocks of code, and the commands in them.

A comment before a block names the file that it is saved as: `<!-- example: halving.py -->`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results/README.md", *ROOT.glob("docs/**/*.md"))
)
"""CHANGELOG.md is no page of these: it names commands as they were."""

BLOCK = re.compile(r"(?:<!-- example: (\S+) -->\n)?^```(\S*)(?: \S+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
OPERATORS = ("&&", "||", "|", ";", "&", "do", "done", "until", "then")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: as the fence says.
        file: what it is saved as, where a comment says so.
        line: of the page, where its text begins.
    """

    language: str
    text: str
    file: str | None
    line: int


class Command(NamedTuple):
    """One command of a line: its words, without variables set before it and what ends it."""

    words: tuple[str, ...]
    line: int

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def program(self) -> str:
        return Path(self.words[0]).name


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield Block(found[2], found[3], found[1], text.count("\n", 0, found.start(3)) + 1)


def spans(page: str) -> Iterator[str]:
    """Code within sentences."""
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    yield from (found[1] for found in SPAN.finditer(text))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a shell block; of a console, its lines that begin with "$ "; of a manifest, its `motes …`."""
    if block.language == "yaml":
        for text in _texts(yaml.safe_load(block.text)):
            if text.startswith("motes "):
                yield from _divided(shlex.split(text), block.line)
    elif block.language in ("sh", "console"):
        yield from _of_lines(block)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _of_lines(block: Block) -> Iterator[Command]:
    lines = block.text.split("\n")
    number = 0
    while number < len(lines):
        begins, line = number, lines[number]
        number += 1
        if block.language == "console" and not line.startswith("$ "):
            continue
        while number < len(lines) and _words(line) is None:
            line += "\n" + lines[number]
            number += 1
        yield from _divided(_words(line.removeprefix("$ ")) or [], block.line + begins)


def _words(line: str) -> list[str] | None:
    """The words of a line without its comment; None where it goes on."""
    line = re.sub(r"(^|\s)#(\s|!|SBATCH).*$", "", line, flags=re.MULTILINE)
    if line.endswith("\\"):
        return None
    try:
        return shlex.split(line.replace("\\\n", " "))
    except ValueError:  # a quotation is open
        return None


def _divided(words: list[str], line: int) -> Iterator[Command]:
    command: list[str] = []
    for word in [*words, ";"]:
        command += [bare] if (bare := word.removesuffix(";")) and word not in OPERATORS else []
        if word in OPERATORS or word.endswith(";"):
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                del command[0]
            if command:
                yield Command(tuple(command), line)
            command = []
