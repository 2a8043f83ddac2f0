"""Claim: a particle filter suffers less than searches from a reward model that is wrong.

Methods at budgets 16 and 64 with the reward model's logits corrupted, see `motes.lab.corruption`: by noise, by
overconfidence (a factor), by a bias at the first two steps, or by noise at the first two steps. The same prefix always
gets the same corrupted score. A bias is the same for all candidates with the same number of steps. It cannot affect
methods that compare only such candidates, and is measured to check that it does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

from claim.cells import Cell, Measured, csv_metadata, possible, write
from motes.errors import ConfigurationError
from motes.lab.measure.cells import Cell as ReportedCell
from motes.lab.measure.comparison import Difference, PairedRuns, differences, ends
from motes.lab.measure.formats import csv_text, markdown_rows
from motes.lab.measure.statistics import Interval
from motes.lab.show.plot import Panel, panels_figure
from motes.lab.show.style import save
from motes.lab.show.tables import table_row

BUDGETS = (16, 64)
METHODS = ("pf", "bon", "wbon", "beam", "dvts", "rebase")
LEVELS: Mapping[str, Sequence[float]] = {
    "noise": (0, 0.5, 1, 2, 4),
    "factor": (1, 2, 4, 8),
    "bias": (0, 1, 2),
    "early": (0, 0.5, 1, 2),
}
"""For each kind of corruption, its levels; the first leaves the reward model unchanged."""
NAMES = {
    "noise": "noise: standard deviation added to every logit",
    "factor": "overconfidence: factor of the logit",
    "bias": "bias b: b · max(0, 3 − t) added at step t",
    "early": "misjudged start: deviation b · max(0, 3 − t) at step t",
}
NOTE = (
    "Accuracy with Wilson's 95 % interval; difference to the particle filter at the same budget and corruption, and to "
    "the same method without corruption, in percentage points with 95 % intervals over problems: those to the filter "
    "hold for all methods and budgets at one corruption together, those to no corruption each by itself."
)


def cells(methods: Sequence[str], budgets: Sequence[int], kinds: Sequence[str] = tuple(LEVELS)) -> list[Cell]:
    whole = possible(methods, budgets)
    return [*whole, *(_corrupted(cell, kind, level) for kind in kinds for level in LEVELS[kind][1:] for cell in whole)]


def _corrupted(cell: Cell, kind: str, level: float) -> Cell:
    return cell if level == LEVELS[kind][0] else dataclasses.replace(cell, corruption=((kind, float(level)),))


def write_report(measured: Measured) -> None:
    whole = [cell for cell in measured.records if not cell.corruption]
    kinds = list(dict.fromkeys(name for cell in measured.records for name, _ in cell.corruption))
    report = measured.report(whole)
    if not kinds:
        raise ConfigurationError("no cell with a corruption is recorded whole: run the command without --recorded")
    table, rows, panels = [], [], []
    for budget in sorted({cell.budget for cell in whole}):
        uncorrupted = [cell for cell in whole if cell.budget == budget]
        for kind in kinds:
            cells_by_level: dict[float, list[ReportedCell]] = {}
            for level in LEVELS[kind]:
                corrupted = [_corrupted(cell, kind, level) for cell in uncorrupted]
                level_report = measured.report(corrupted)
                cells_by_level[level] = list(level_report.cells)
                differences_to_chief = {difference.method: difference for difference in level_report.differences}
                for cell, before, after in zip(level_report.cells, uncorrupted, corrupted, strict=True):
                    fall = _difference(measured, before, after)
                    to_chief = differences_to_chief.get(cell.method)
                    text = "" if to_chief is None else str(to_chief)
                    table.append([kind, f"{level:g}", *table_row(cell)[:4], text, str(fall)])
                    columns = ends(to_chief.value if to_chief else Interval(0, 0, 0), "to_chief")
                    name = {"corruption": kind, "corruption_level": level}
                    rows.append({**name, **cell.row(), **columns, **ends(fall.value, "to_none")})
            panels.append(_panel(budget, kind, cells_by_level))
    header = ["corruption", "level", "method", "budget", "accuracy", "95 % interval", f"to {report.chief}", "to none"]
    page = measured.page(report, "\n".join(markdown_rows(header, table)), NOTE)
    files = {"report.md": page, "report.csv": csv_text(rows)}
    write(measured.setting.out, {**files, **csv_metadata([measured], "report.csv")})
    title, subtitle = f"Accuracy with a corrupted reward model, {report.title}", f"{report.models}; 95 % intervals"
    figure = partial(panels_figure, panels, len(kinds), title, subtitle)
    save(figure, measured.setting.out / "robustness", measured.provenance())


def _difference(measured: Measured, before: Cell, after: Cell) -> Difference:
    """The change of a method's accuracy by the corruption."""
    records = [dataclasses.replace(record, method="without") for record in measured.records[before]]
    (difference,) = differences(PairedRuns([*records, *measured.records[after]]), ["without", after.name], "without")
    return difference


def _panel(budget: int, kind: str, cells_by_level: Mapping[float, Sequence[ReportedCell]]) -> Panel:
    """Accuracy against the corruption's level; the levels are evenly spaced."""
    positions = {level: 2.0**i for i, level in enumerate(cells_by_level)}
    cells = [cell for level_cells in cells_by_level.values() for cell in level_cells]
    places = [positions[level] for level, level_cells in cells_by_level.items() for _ in level_cells]
    ticks = {position: f"{level:g}" for level, position in positions.items()}
    return Panel(f"budget {budget}", cells, places, places, ticks, NAMES[kind])
