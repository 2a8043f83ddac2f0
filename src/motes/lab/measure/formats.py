"""How numbers and tables are written: on the terminal, in Markdown and in CSV files."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from motes.lab.measure.statistics import Interval
from motes.text import visible

Rows = list[list[str]]


@dataclass(frozen=True)
class Section:
    """A table under a title. The first column names what the row is about, the others hold numbers, or `words`."""

    title: str
    header: Sequence[str]
    rows: Rows
    note: str = ""
    words: bool = False

    def markdown(self) -> list[str]:
        """Its lines in Markdown, which title and note are already: names in them are `code`."""
        heading = [f"## {self.title}", ""] if self.title else []
        table = markdown_rows(self.header, self.rows, words=self.words)
        return [*heading, *table, "", *([self.note, ""] if self.note else [])]


def percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def between(interval: Interval) -> str:
    """The ends of a share's interval."""
    return f"{percent(interval.low)} – {percent(interval.high)}" if interval.is_known else "–"


def with_interval(share: Interval) -> str:
    return "–" if share.value != share.value else f"{percent(share.value)} ({between(share)})"


def three(value: Interval) -> str:
    """A number between 0 and 1 to three digits, with its interval."""
    return "–" if value.value != value.value else f"{value.value:.3f} ({_three_ends(value)})"


def _three_ends(value: Interval) -> str:
    return f"{value.low:.3f} – {value.high:.3f}" if value.is_known else "–"


def two_digits(value: Interval) -> str:
    """A number to two digits, with its interval."""
    ends = f"{value.low:.2f} – {value.high:.2f}" if value.is_known else "–"
    return "–" if value.value != value.value else f"{value.value:.2f} ({ends})"


def flops(number: float | None) -> str:
    """Three digits and a unit: 21.4 G is 21.4e9 operations."""
    if number is None:
        return "–"
    power = min(max(int(math.log10(max(1.0, number)) // 3), 0), 6)
    return f"{number / 1000**power:.3g} {' kMGTPE'[power]}".rstrip()


def money(amount: float | None) -> str:
    """Of one problem; written for a thousand."""
    return "–" if amount is None else f"{1000 * amount:,.4g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03"."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV file of at least one row, under the names of the first one's fields.

    What a spreadsheet would take for a formula has a ' before it.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


FORMULA = re.compile(r"^(?=[\t\n])|(?:^|(?<=[;\n]))(?=\s*[-=+@\uff0b\uff0d\uff1d\uff20])")
"""Before what a spreadsheet calculates; in some languages the wide signs count, too. Where it takes a semicolon to part
cells, quotes in the middle of a line do not count: behind each semicolon and line end in a text a cell may begin."""


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # before Python 3.13 a lone one is left without quotes
    try:
        float(value)
    except ValueError:
        return FORMULA.sub("'", value)
    return value


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> list[str]:
    """A table of texts in Markdown; but for the first column they stand on the right, unless they are words."""
    line, others = "| {} |".format, "---" if words else "---:"
    return [line(" | ".join(map(markdown, header))), line(" | ".join(["---"] + [others] * (len(header) - 1)))] + [
        line(" | ".join(map(markdown, row))) for row in rows
    ]


MARKS = re.compile(r"[\\`*\[\]<|~$&]|(?<!\w)_|_(?!\w)")
"""What means something to Markdown within a line or a cell."""


def markdown(text: str) -> str:
    """A text as one line of Markdown that shows it as it is."""
    return MARKS.sub(r"\\\g<0>", visible(" ".join(text.split())))


def code(name: str) -> str:
    """A name as code in Markdown."""
    shown = visible(" ".join(name.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{shown}{space}{fence}"
