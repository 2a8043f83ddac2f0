"""A comparison as one HTML page: all curves in one figure, each of which can be hidden, and the tables."""

from __future__ import annotations

from html import escape
from typing import Any

from motes import pages
from motes.lab.show.comparing import Comparison
from motes.lab.show.overlay import looks_of
from motes.lab.show.page import cell_fields, section_html
from motes.text import visible


def html(comparison: Comparison) -> str:
    """The page of a comparison."""
    title = f"Accuracy on {visible(comparison.title)}"
    models = "; ".join(f"{name}: {report.models}" for name, report in comparison.reports.items())
    return pages.page(
        __package__,
        "comparison.html",
        styles=("report",),
        scripts=("data", "curves", "comparison"),
        title=f"{title} · motes",
        data={
            "title": escape(title),
            "models": escape(visible(models)),
            "warnings": "".join(
                f'<p class="warning">{escape(visible(warning))}.</p>' for warning in comparison.warnings()
            ),
            "sections": "\n".join(section_html(section) for section in comparison.sections()),
            "index": pages.embedded(_index(comparison)),
        },
    )


def _index(comparison: Comparison) -> dict[str, Any]:
    """The data of the curves, in the format of a report's, with curves instead of methods."""
    looks = looks_of(comparison)
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
            for curve, look in looks.items()
        },
        "cells": [
            {**cell_fields(cell), "method": str(curve)} for curve, cells in comparison.cells.items() for cell in cells
        ],
        "seeds": [],
        "outcomes": {},
    }
