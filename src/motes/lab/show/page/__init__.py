"""A report as one HTML page that holds everything it needs: curves, tables, and every run's particles to look into.

The page, see `motes.pages`, has the numbers in it as JSON. Each run's record and trace are an element of their own,
compressed, which the browser inflates when it is opened. Nothing is loaded.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from motes import pages
from motes.lab.measure.cells import Cell
from motes.lab.measure.formats import Section
from motes.lab.run.damage import Damage, Damaged
from motes.lab.run.evaluation import TRACES
from motes.lab.run.records import OUTCOMES, Key, RunRecord
from motes.lab.run.traces import Trace, read_lines
from motes.lab.show.report import Report
from motes.lab.show.style import styles_of
from motes.text import visible

SCRIPTS = ("data", "curves", "forest", "problems", "run", "page")
PROBLEMS, MEGABYTES = 30, 24
"""Whose runs a page holds unless told otherwise: those of the first so many problems, in so much of a file."""


def html(report: Report, directory: Path, *, viewer: int | None = None) -> str:
    """The page of a report.

    Args:
        directory: of the evaluation, whose traces are read.
        viewer: the number of problems whose runs can be opened, in the order of their names; 0 for none. None: the
            first 30, or as many of them as 24 MB hold. The page says what it leaves out.

    Raises:
        RunDirectoryError: the traces cannot be read at all.
    """
    insides = Insides.read(report, directory, viewer)
    return pages.page(
        __name__,
        "page.html",
        styles=("report",),
        scripts=SCRIPTS,
        title=f"{visible(report.title)} · motes",
        data={
            "title": escape(visible(report.title)),
            "models": escape(visible(report.models)),
            "warnings": "".join(f'<p class="warning">{escape(visible(warning))}.</p>' for warning in report.warnings()),
            "sections": "\n".join(section_html(section) for section in report.sections()),
            "index": pages.embedded(_index(report, insides)),
            "runs": "\n".join(
                f'<script type="application/gzip" id="run-{place}">{inside}</script>'
                for place, inside in insides.numbered.items()
            ),
        },
    )


@dataclass
class Insides:
    """The runs that a page can open.

    Attributes:
        problems: ids of all problems, in the order of their names; `embedded`: of the first so many runs are held.
        asked: whether that number was asked for.
        traced: whether the evaluation kept traces at all.
        questions: the last message of each problem's conversation, where a trace tells.
        numbered: each run's record and trace by its place in the report, compressed, in base64.
    """

    problems: list[str]
    embedded: int
    asked: bool
    traced: bool = False
    questions: dict[str, str] = field(default_factory=dict)
    numbered: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, report: Report, directory: Path, viewer: int | None) -> Insides:
        records = list(chain.from_iterable(report.runs.values()))
        problems = sorted({record.problem_id for record in records}, key=_natural)
        wanted = problems[: PROBLEMS if viewer is None else viewer]
        found = cls(problems, len(wanted), viewer is not None)
        places = {record.key: (place, record) for place, record in enumerate(records)}
        held: dict[str, dict[int, str]] = {problem: {} for problem in wanted}
        for place, record in places.values():
            if record.problem_id in held:
                held[record.problem_id][place] = _packed(record, b"null")
        damaged = report.damages.of("traces")
        for head, line in read_lines(directory / TRACES, damaged):
            found.traced = True
            if head["problem_id"] not in found.questions:
                found.questions[head["problem_id"]] = head["messages"][-1]["content"]
            key: Key = head["problem_id"], head["method"], head["budget"], head["seed"]
            if key in places and key[0] in held and _is_trace(directory / TRACES, line, damaged):
                place, record = places[key]
                held[key[0]][place] = _packed(record, line)
        room = math.inf if found.asked else MEGABYTES * 1e6
        for number, runs in enumerate(held.values()):
            room -= sum(map(len, runs.values()))
            if room < 0:
                found.embedded = number
                break
            found.numbered.update(runs)
        return found

    def note(self, directory: str = "DIR") -> str:
        """What the page leaves out, and how to have it."""
        total, notes = len(self.problems), []
        if self.embedded < total:
            some = f"of the first {self.embedded} of {total} problems" if self.embedded else "of no problem"
            limit = "" if self.asked else f" (at most {PROBLEMS}, in {MEGABYTES} MB)"
            notes.append(
                f"This page holds the runs {some}{limit}; motes report {directory} --viewer {total} embeds all."
            )
        if not self.traced:
            notes.append(
                "The evaluation kept no traces (--no-traces, or made before there were any): questions and what "
                "happened inside the runs are not known, their records are."
            )
        return " ".join(notes)


def _index(report: Report, insides: Insides) -> dict[str, Any]:
    """What the page draws before any run is opened. Outcomes stand as a letter each: for every problem a text, for
    every cell and seed one letter of it, "." for a run that there is none of."""
    styles = styles_of(report.cells)
    records = list(chain.from_iterable(report.runs.values()))
    seeds = sorted({record.seed for record in records})
    columns = {(*cell, seed): i for i, (cell, seed) in enumerate((c, s) for c in report.runs for s in seeds)}
    rows: dict[str, list[tuple[str, int]]] = {problem: [(".", -1)] * len(columns) for problem in insides.problems}
    about: dict[str, RunRecord] = {}
    for place, record in enumerate(records):
        column = columns[record.method, record.budget, record.seed]
        rows[record.problem_id][column] = (record.outcome[0], place)
        about.setdefault(record.problem_id, record)
    return {
        "title": report.title,
        "chief": report.chief,
        "methods": {
            name: {"label": style.label.split("\n"), "colour": style.colour, "marker": style.marker}
            for name, style in styles.items()
        },
        "settings": report.configuration.get("methods", {}),
        "cells": [cell_fields(cell) for cell in report.cells],
        "differences": [
            {
                "method": difference.method,
                "budget": difference.budget,
                "problems": difference.problems,
                "value": _ends(difference.simultaneous),
            }
            for difference in report.differences
        ],
        "seeds": seeds,
        "outcomes": {outcome[0]: outcome.replace("_", " ") for outcome in OUTCOMES},
        "problems": [
            {
                "id": problem,
                "level": about[problem].level,
                "reference": about[problem].reference,
                "question": insides.questions.get(problem),
                "outcomes": "".join(letter for letter, _ in row),
                "runs": [place for _, place in row] if number < insides.embedded else None,
            }
            for number, (problem, row) in enumerate(rows.items())
        ],
        "traced": insides.traced,
        "note": insides.note(),
    }


def cell_fields(cell: Cell) -> dict[str, Any]:
    """A point of the curves."""
    return {
        "method": cell.method,
        "budget": cell.budget,
        "runs": cell.runs,
        "accuracy": _ends(cell.accuracy),
        "oracle": _ends(cell.oracle),
        "tokens": cell.total_tokens,
        "flops": cell.total_flops,
        "seconds": cell.seconds.median,
        "at_once": cell.seconds.concurrency,
        "money": cell.money,
    }


def _ends(interval: Any) -> list[float | None]:
    values = (interval.value, interval.low, interval.high)
    return [value if math.isfinite(value) else None for value in values]


def section_html(section: Section) -> str:
    """A table, with its title and its note; the first one, which has no title, stands open."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(visible(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in section.rows)
    note = f'<p class="note">{escape(section.note.replace("`", ""))}</p>' if section.note else ""
    kind = ' class="words"' if section.words else ""
    head = row(section.header, "th")
    table = f'<div class="scroll"><table{kind}><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    title = escape(section.title.replace("`", "") or "Accuracy and cost")
    return f"<details{'' if section.title else ' open'}><summary>{title}</summary>{table}{note}</details>"


def _packed(record: RunRecord, trace: bytes) -> str:
    """A record, the answers of its posterior in their order, and a trace as it stands in the file."""
    fields = dataclasses.asdict(dataclasses.replace(record, prefixes=None))  # the trace says more
    fields["posterior"] = list(record.posterior.items())
    text = b'{"record":' + json.dumps(fields, allow_nan=False).encode() + b',"trace":' + trace + b"}"
    return base64.b64encode(gzip.compress(text, compresslevel=9, mtime=0)).decode()


def _is_trace(path: Path, line: bytes, damaged: Damaged) -> bool:
    """Whether a line of traces can be drawn: its head alone has been looked at so far."""
    try:
        Trace.from_json(line.decode())
    except ValueError as error:
        damaged(Damage(path, "", str(error)))
        return False
    return True


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """For sorting: numbers in names count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
