"""Write the results of a reproduction: the table as Markdown and CSV, and figure 2 as a plot."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from motes.lab.run.provenance import CSV_METADATA
from motes.lab.show.plot import BUDGET, Panel, panels_figure
from motes.lab.show.writing import write_files
from motes.paper.reproduction import Reproduction
from motes.paper.row import COLUMNS, published

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(reproduction: Reproduction, *, plot: bool = True) -> list[Path]:
    """Write EXPERIMENT.md, EXPERIMENT.csv and the provenance of the CSV file into the reproduction's directory and, if
    `plot`, figure 2 as PNG and SVG; return the paths.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: matplotlib, which plots need, is not installed. The tables are written.
    """
    name: str = reproduction.experiment
    provenance = reproduction.provenance()
    texts = {
        f"{name}.md": reproduction.markdown(),
        f"{name}.csv": reproduction.csv(),
        f"{name}.{CSV_METADATA}": provenance.csv_metadata(name, [f"{name}.csv"]),
    }
    figures = {name: partial(figure, reproduction)} if plot and name == "figure2" else {}
    return write_files(reproduction.out, name, texts, figures, provenance)


def figure(reproduction: Reproduction) -> Figure | None:
    """Figure 2: a panel for each measured model, with our curves solid and with intervals, the paper's dashed. None if
    nothing has been measured."""
    (task,) = reproduction.columns
    panels = []
    for row in reproduction.measured:
        entries = [entry for entry in reproduction.entries if entry.point.row == row.name]
        cells = [cell for entry in entries if (cell := entry.cell()) is not None]
        if not cells:
            continue
        curves: dict[str, list[tuple[float, float]]] = {}
        for point, (value,) in published("figure2").items():
            if point.row == row.name and value is not None and point.budget is not None:
                curves.setdefault(point.label, []).append((float(point.budget), value / 100))
        places = [BUDGET.place(cell) for cell in cells]
        span = sorted({*places, *(place for points in curves.values() for place, _ in points)})
        panels.append(Panel(row.name, cells, places, span, BUDGET.ticks(span), BUDGET.label, curves))
    if not panels:
        return None
    problems = max(cell.problems for panel in panels for cell in panel.cells)
    spec, benchmark = reproduction.tasks[task], COLUMNS[task]
    if spec != task and not spec.partition("?")[0].endswith(".jsonl"):
        benchmark = f"{spec} in the place of {benchmark}"
    title = f"Figure 2 of arXiv 2502.01618: accuracy on {benchmark}"
    subtitle = f"solid: measured here on {problems} problems, 95 % intervals; dashed: the paper's, read off by eye"
    return panels_figure(panels, len(panels), title, subtitle)
