"""Format numbers and tables for the terminal, Markdown and CSV files."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from motes.lab.measure.statistics import Interval
from motes.text import visible

Rows = list[list[str]]


@dataclass(frozen=True)
class Section:
    """A table with a title. The first column names the subject of the row; the others hold numbers, or `words`."""

    title: str
    header: Sequence[str]
    rows: Rows
    note: str = ""
    words: bool = False

    def markdown(self) -> list[str]:
        """Its lines in Markdown. Title and note are Markdown already, with names as `code`."""
        heading = [f"## {self.title}", ""] if self.title else []
        table = markdown_rows(self.header, self.rows, words=self.words)
        return [*heading, *table, "", *([self.note, ""] if self.note else [])]


def markdown_page(title: str, lines: Iterable[str], warnings: Iterable[str], sections: Iterable[Section]) -> str:
    """A page in Markdown: its title (plain text), lines, warnings and tables."""
    page = [f"# {markdown(title)}", "", *lines]
    for warning in warnings:
        page += [f"**{warning}.**", ""]
    return "\n".join([*page, *(line for section in sections for line in section.markdown())])


def percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def between(interval: Interval) -> str:
    """The ends of the interval of a share."""
    return f"{percent(interval.low)} – {percent(interval.high)}" if interval.is_known else "–"


def with_interval(value: Interval, text: Callable[[float], str] = percent) -> str:
    """A number, by default a share, with its interval."""
    ends = f"{text(value.low)} – {text(value.high)}" if value.is_known else "–"
    return "–" if value.value != value.value else f"{text(value.value)} ({ends})"


def three(value: Interval) -> str:
    """A number between 0 and 1 to three digits, with its interval."""
    return with_interval(value, "{:.3f}".format)


def two_digits(value: Interval) -> str:
    """A number to two digits after the point, with its interval."""
    return with_interval(value, "{:.2f}".format)


def flops(number: float | None) -> str:
    """A number of operations with three digits and a unit: 21.4 G is 21.4e9."""
    if number is None:
        return "–"
    power = min(max(int(math.log10(max(1.0, number)) // 3), 0), 6)
    return f"{number / 1000**power:.3g} {' kMGTPE'[power]}".rstrip()


def money(amount: float | None) -> str:
    """An amount for one problem, written as the amount for a thousand."""
    return "–" if amount is None else f"{1000 * amount:,.4g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03"."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV file of at least one row; the fields of all rows are the header.

    Text that a spreadsheet would take for a formula gets a ' before it.
    """
    text = io.StringIO()
    fields = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, fieldnames=list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


FORMULA = re.compile(r"^(?=[\t\n])|(?:^|(?<=[;\n]))(?=\s*[-=+@\uff0b\uff0d\uff1d\uff20])")
"""The places before text that a spreadsheet would calculate; in some languages also before the wide signs. Spreadsheets
that separate cells by semicolons ignore quotes in the middle of a line: a cell may begin after each semicolon and line
end of a text."""


def _inert(value: Any) -> Any:
    """The value, or text that no spreadsheet calculates."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # before Python 3.13 csv does not quote a lone "\r"
    try:
        float(value)
    except ValueError:
        return FORMULA.sub("'", value)
    return value


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> list[str]:
    """A table of texts in Markdown. All columns but the first are aligned right, unless they hold words."""
    line, others = "| {} |".format, "---" if words else "---:"
    return [line(" | ".join(map(markdown, header))), line(" | ".join(["---"] + [others] * (len(header) - 1)))] + [
        line(" | ".join(map(markdown, row))) for row in rows
    ]


MARKS = re.compile(r"[\\`*\[\]<|~$&]|(?<!\w)_|_(?!\w)")
"""Characters with a meaning in Markdown, within a line or a cell."""


def markdown(text: str) -> str:
    """One line of Markdown that shows the text as it is."""
    return MARKS.sub(r"\\\g<0>", visible(" ".join(text.split())))


def code(name: str) -> str:
    """A name as code in Markdown."""
    shown = visible(" ".join(name.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{shown}{space}{fence}"
