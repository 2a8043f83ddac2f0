"""Self-contained HTML pages: of a report, with curves, tables, and every run with its particles; and of a comparison,
with all curves in one figure, each of which can be hidden, and tables.

A page (see `motes.pages`) contains the numbers as JSON, and the record and the trace of each run as a compressed
element, which the browser inflates when the run is opened. Nothing else is loaded.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate, islice, product
from pathlib import Path
from typing import Any

from motes import pages
from motes.lab.measure.cells import Cell
from motes.lab.measure.formats import Section
from motes.lab.measure.statistics import Interval
from motes.lab.run.damage import Damage
from motes.lab.run.evaluation import TRACES
from motes.lab.run.records import OUTCOMES, Key, RunRecord
from motes.lab.run.traces import Trace, read_lines
from motes.lab.show.comparing import Comparison, looks_of
from motes.lab.show.report import Report
from motes.lab.show.style import styles_of
from motes.text import visible
from motes.thoughts import split

SCRIPTS = ("data", "curves", "forest", "problems", "run", "page")
PROBLEMS, MEGABYTES = 30, 24
"""By default a page contains the runs of at most this many problems, the first ones, in at most this many megabytes."""


def html(report: Report, directory: Path, *, viewer: int | None = None) -> str:
    """The page of a report, with the traces from the evaluation's directory.

    Args:
        viewer: the number of problems whose runs can be opened, in the order of their names; 0 for none. None: the
            first 30, or as many of them as fit into 24 MB. The page says which runs it leaves out.

    Raises:
        RunDirectoryError: the traces cannot be read at all.
    """
    embedded = EmbeddedRuns.read(report, directory, viewer)
    elements = "\n".join(
        f'<script type="application/gzip" id="run-{place}">{content}</script>'
        for runs in embedded.contents.values()
        for place, content in runs.items()
    )
    return _page("page", SCRIPTS, report, report.title, report.models, _index(report, embedded), runs=elements)


def comparison_html(comparison: Comparison) -> str:
    """The page of a comparison."""
    title = f"Accuracy on {comparison.title}"
    models = "; ".join(f"{name}: {report.models}" for name, report in comparison.reports.items())
    scripts = ("data", "curves", "comparison")
    return _page("comparison", scripts, comparison, title, models, _comparison_index(comparison))


def _page(
    name: str,
    scripts: Iterable[str],
    content: Report | Comparison,
    title: str,
    models: str,
    index: Mapping[str, Any],
    **data: str,
) -> str:
    """The page made of a template, with the warnings and the tables of a report or a comparison, and the numbers that
    the scripts draw. `data`: other fields of the template, as HTML."""
    warnings = (f'<p class="warning">{escape(visible(warning))}.</p>' for warning in content.warnings())
    return pages.page(
        __name__,
        f"{name}.html",
        styles=("report",),
        scripts=scripts,
        title=f"{visible(title)} · motes",
        data={
            "title": escape(visible(title)),
            "models": escape(visible(models)),
            "warnings": "".join(warnings),
            "sections": "\n".join(_section_html(section) for section in content.sections()),
            "index": pages.embedded(index),
            **data,
        },
    )


@dataclass
class EmbeddedRuns:
    """The runs that a page can open: for the first of all problems, the record and trace of each run, compressed and in
    base64, by problem and the run's place in the report. `is_limited`: whether no caller has set how many problems."""

    problems: list[str]
    is_limited: bool
    contents: dict[str, dict[int, str]]
    questions: dict[str, str] = field(default_factory=dict)  # the last message of each conversation with a trace
    traced: bool = False  # whether the evaluation has traces at all

    @classmethod
    def read(cls, report: Report, directory: Path, viewer: int | None) -> EmbeddedRuns:
        problems = sorted(report.problem_ids, key=_natural_key)
        contents: dict[str, dict[int, str]] = {name: {} for name in problems[: PROBLEMS if viewer is None else viewer]}
        embedded = cls(problems, viewer is None, contents)
        # 1. The record of each run.
        places = {record.key: (place, record) for place, record in enumerate(report.records)}
        for place, record in places.values():
            if record.problem_id in contents:
                contents[record.problem_id][place] = _compress_run(record, b"null")
        # 2. The record with its trace, if there is one.
        damaged = report.damages.of("traces")
        for head, line in read_lines(directory / TRACES, damaged):
            embedded.traced = True
            problem = head["problem_id"]
            if problem not in embedded.questions:
                embedded.questions[problem] = head["messages"][-1]["content"]
            key: Key = problem, head["method"], head["budget"], head["seed"]
            if key in places and problem in contents:
                try:
                    Trace.from_json(line.decode())  # only its head was checked so far
                except ValueError as error:
                    damaged(Damage(directory / TRACES, "", str(error)))
                    continue
                place, record = places[key]
                contents[problem][place] = _compress_run(record, line)
        # 3. As many problems as there is room for.
        if embedded.is_limited:
            sizes = accumulate(sum(map(len, runs.values())) for runs in contents.values())
            embedded.contents = dict(islice(contents.items(), sum(size <= MEGABYTES * 1e6 for size in sizes)))
        return embedded

    def note(self) -> str:
        """Sentences about the runs that the page leaves out, and how to include them."""
        number, total, notes = len(self.contents), len(self.problems), []
        if number < total:
            some = f"of the first {number} of {total} problems" if number else "of no problem"
            limit = f" (at most {PROBLEMS}, in {MEGABYTES} MB)" if self.is_limited else ""
            notes.append(f"This page holds the runs {some}{limit}; motes report DIR --viewer {total} embeds all.")
        if not self.traced:
            notes.append(
                "The evaluation kept no traces (--no-traces, or an early version): the page has the records of runs, "
                "but neither questions nor particles."
            )
        return " ".join(notes)


def _index(report: Report, embedded: EmbeddedRuns) -> dict[str, Any]:
    """The data that the page needs before a run is opened. The outcomes of a problem are a text with a letter for each
    cell and seed; "." stands for a missing run."""
    columns = [(*cell, seed) for cell, seed in product(report.runs, report.seeds)]
    places: dict[str, dict[tuple[str, int, int], int]] = {problem: {} for problem in embedded.problems}
    for place, record in enumerate(report.records):
        places[record.problem_id][record.method, record.budget, record.seed] = place
    return {
        "title": report.title,
        "chief": report.chief,
        "methods": {
            name: {"label": style.label.split("\n"), "colour": style.colour, "marker": style.marker}
            for name, style in styles_of(report.methods).items()
        },
        "settings": report.configuration.get("methods", {}),
        "cells": [_cell_fields(cell) for cell in report.cells],
        "differences": [
            {"method": each.method, "budget": each.budget, "problems": each.problems, "value": _ends(each.simultaneous)}
            for each in report.differences
        ],
        "seeds": report.seeds,
        "outcomes": {outcome[0]: outcome.replace("_", " ") for outcome in OUTCOMES},
        "problems": [
            {
                "id": problem,
                "level": report.records[min(runs.values())].level,
                "reference": report.records[min(runs.values())].reference,
                "question": embedded.questions.get(problem),
                "outcomes": "".join(report.records[runs[one]].outcome[0] if one in runs else "." for one in columns),
                "runs": [runs.get(one, -1) for one in columns] if problem in embedded.contents else None,
            }
            for problem, runs in places.items()
        ],
        "traced": embedded.traced,
        "note": embedded.note(),
    }


def _comparison_index(comparison: Comparison) -> dict[str, Any]:
    """The data of the curves, in the format of a report's, with curves instead of methods."""
    return {
        "title": comparison.title,
        "chief": str(comparison.reference),
        "methods": {
            str(curve): {
                "label": [look.label],
                "colour": look.colour,
                "marker": look.marker,
                "dashes": " ".join(map(str, look.dashes)),
            }
            for curve, look in looks_of(comparison).items()
        },
        "cells": [
            {**_cell_fields(cell), "method": str(curve)} for curve, cells in comparison.cells.items() for cell in cells
        ],
        "seeds": [],
        "outcomes": {},
    }


def _cell_fields(cell: Cell) -> dict[str, Any]:
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


def _ends(interval: Interval) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in (interval.value, interval.low, interval.high)]


def _section_html(section: Section) -> str:
    """A table with its title and note; the first one, which has no title, is open."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(visible(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in section.rows)
    note = f'<p class="note">{escape(section.note.replace("`", ""))}</p>' if section.note else ""
    kind = ' class="words"' if section.words else ""
    head = row(section.header, "th")
    table = f'<div class="scroll"><table{kind}><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    title = escape(section.title.replace("`", "") or "Accuracy and cost")
    return f"<details{'' if section.title else ' open'}><summary>{title}</summary>{table}{note}</details>"


def _compress_run(record: RunRecord, trace: bytes) -> str:
    """A record (with its posterior as a list, which keeps the order) and a line of traces: JSON, gzip, base64."""
    fields = dataclasses.asdict(dataclasses.replace(record, prefixes=None))  # the trace contains them
    fields["posterior"] = list(record.posterior.items())
    thoughts, content = split(record.text)
    words = {"thoughts": thoughts, "content": content} if thoughts else {}
    head = json.dumps({"record": fields, **words}, allow_nan=False).encode().removesuffix(b"}")
    text = head + b',"trace":' + trace + b"}"
    return base64.b64encode(gzip.compress(text, compresslevel=9, mtime=0)).decode()


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that compares numbers in names as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
