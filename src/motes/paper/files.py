"""What a reproduction leaves for others to read: the table as Markdown and CSV, and figure 2 drawn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from motes import files
from motes.errors import RunDirectoryError
from motes.lab.show.plot import BUDGET, Panel, Reference, panels_figure
from motes.lab.show.style import save
from motes.paper.published import COLUMNS, published
from motes.paper.reproduction import Reproduction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(reproduction: Reproduction, *, plot: bool = True) -> list[Path]:
    """Write EXPERIMENT.md, EXPERIMENT.csv and what the CSV file was made with into the reproduction's directory, and
    figure 2, if asked for, as PNG and SVG.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: a plot was asked for, and matplotlib is not installed. The tables are written.
    """
    paths = []
    path = reproduction.out / reproduction.experiment
    try:
        told = reproduction.provenance()
        texts = {".md": reproduction.markdown(), ".csv": reproduction.csv()}
        texts[".csv-metadata.json"] = told.csv_metadata(reproduction.experiment, [f"{path.name}.csv"])
        for suffix, text in texts.items():
            paths.append(path.with_suffix(suffix))
            files.write_text(paths[-1], text)
        if plot and reproduction.experiment == "figure2":
            paths += save(partial(figure, reproduction), path, told)
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error
    return paths


def figure(reproduction: Reproduction) -> Figure | None:
    """Figure 2: a panel for each model that was measured, ours solid with intervals, the paper's dashed; None where
    nothing was measured."""
    given = published("figure2")
    (task,) = reproduction.columns
    panels = []
    for row in reproduction.measured:
        mine = [entry for entry in reproduction.entries if entry.point.row == row.name]
        cells = [cell for entry in mine if (cell := entry.cell()) is not None]
        if not cells:
            continue
        curves: dict[str, list[tuple[float, float]]] = {}
        for point, (value,) in given.items():
            if point.row == row.name and value is not None and point.budget is not None:
                curves.setdefault(point.label, []).append((float(point.budget), value / 100))
        references = [Reference(label, *zip(*points, strict=True)) for label, points in curves.items()]
        places = [BUDGET.place(cell) for cell in cells]
        span = sorted({*places, *(place for reference in references for place in reference.places)})
        panels.append(Panel(row.name, cells, places, span, BUDGET.ticks(span), BUDGET.label, references))
    if not panels:
        return None
    problems = max(cell.problems for panel in panels for cell in panel.cells)
    own, where = reproduction.tasks[task], COLUMNS[task]
    if own != task and not own.partition("?")[0].endswith(".jsonl"):
        where = f"{own} in the place of {where}"
    title = f"Figure 2 of arXiv 2502.01618: accuracy on {where}"
    subtitle = f"solid: measured here on {problems} problems, 95 % intervals; dashed: the paper's, read off by eye"
    return panels_figure(panels, len(panels), title, subtitle)
