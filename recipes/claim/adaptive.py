"""Claim: an adaptive budget is as accurate as the whole budget, for a share of its tokens.

`adaptive` with several values of `decided`, the share of the posterior that ends a run, against `pf` at the same
budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from claim.cells import Cell, Measured, csv_metadata, write
from motes.lab.measure.comparison import PairedRuns, ends
from motes.lab.measure.formats import csv_text, markdown_rows, with_interval
from motes.lab.measure.statistics import Interval
from motes.lab.show.forest import Forest, forest_figure
from motes.lab.show.style import save
from motes.lab.show.tables import table_row

BUDGETS = (64,)
DECIDED = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
CHIEF = "pf"
NOTE = (
    "Difference of accuracy to `pf` at the same budget, in percentage points, with intervals over problems that hold "
    "for all lines together in 95 % of such tables, and tokens computed by both models as a share of those of `pf`, "
    "each with the 95 % interval of a bootstrap over problems. The figure has each difference's own 95 % interval."
)


def cells(budgets: Sequence[int], decided: Sequence[float] = DECIDED) -> list[Cell]:
    methods = [CHIEF, *(f"adaptive:decided={share:g}" for share in decided)]
    return [Cell(method, budget) for budget in budgets for method in methods]


def write_report(measured: Measured) -> None:
    report, runs = measured.report(), PairedRuns(measured.named())
    differences = {(difference.method, difference.budget): difference for difference in report.differences}
    table, rows = [], []
    panels: list[Forest] = []
    for budget in sorted({cell.budget for cell in report.cells}):
        shares, gains = {}, {}
        for cell in (cell for cell in report.cells if cell.budget == budget):
            share, gain = Interval(1, 1, 1), Interval(0, 0, 0)
            texts = ["", ""]
            if cell.method != CHIEF:
                difference = differences[cell.method, budget]
                share, gain = token_share(runs, cell.method, budget), difference.value
                texts = [str(difference), with_interval(share)]
                name = cell.method.partition(":")[2].replace("=", " = ")
                shares[name], gains[name] = share, gain
            table.append([*table_row(cell)[:4], *texts])
            rows.append({**cell.row(), **ends(gain, "difference"), **ends(share, "token_share")})
        at = f", N = {budget}"
        panels.append(Forest(f"accuracy less that of pf{at}", gains))
        panels.append(
            Forest(f"share of pf's tokens{at}", shares, reference=1.0, words=lambda share: f"{100 * share:g} %")
        )
    header = ["method", "budget", "accuracy", "95 % interval", "difference", "share of tokens"]
    page = measured.page(report, "\n".join(markdown_rows(header, table)), NOTE)
    files = {"report.md": page, "report.csv": csv_text(rows)}
    write(measured.setting.out, {**files, **csv_metadata([measured], "report.csv")})
    title, subtitle = "Waves of particles while the answer is in doubt", f"{report.title}; 95 % intervals"
    groups = {"": list(panels[0].values)}
    save(
        partial(forest_figure, panels, groups, title, subtitle),
        measured.setting.out / "adaptive",
        measured.provenance(),
    )


def token_share(runs: PairedRuns, method: str, budget: int) -> Interval:
    """The tokens that both models compute, as a share of those of the chief method at the same budget."""
    cells = [(method, budget), (CHIEF, budget)]
    means = runs.means(cells, lambda record: float(record.usage.total_tokens))
    return runs.interval(means[:, 0] / means[:, 1], cells)
