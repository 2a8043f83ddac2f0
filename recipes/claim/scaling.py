"""Claim: a particle filter needs several times less budget than searches and sampling for the same accuracy.

Every method of the family at budgets 1, 2, 4, …, 128 on the same problems. Methods that divide their budget among
sweeps, chains or islands have no cells at budgets too small for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from claim.cells import Cell, Measured, possible, write
from motes.lab.show.forest import Forest, forest_figure
from motes.lab.show.plot import BUDGET, FLOPS, TOKENS, curves_figure
from motes.lab.show.style import save

BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128)
GROUPS: Mapping[str, Sequence[str]] = {
    "sampling": ("greedy", "majority", "asc", "deepconf:window=16", "bon", "wbon", "power"),
    "search": ("beam", "dvts", "rebase"),
    "particles": ("pf", "pf:paper", "pg", "pt", "epf", "islands", "adaptive"),
}
METHODS = ("pf", *(method for methods in GROUPS.values() for method in methods if method != "pf"))


def cells(methods: Sequence[str], budgets: Sequence[int]) -> list[Cell]:
    return possible(methods, budgets)


def write_report(measured: Measured) -> None:
    report, out = measured.report(), measured.setting.out
    tables = report.tables()
    write(out, {**tables, "report.md": f"{tables['report.md']}\n{measured.setting.made_by}\n"})
    shown = {cell.method for cell in report.cells}
    groups = {**GROUPS, "others": sorted(shown - set(METHODS))}
    known = all(cell.total_flops is not None for cell in report.cells)
    save(partial(curves_figure, report, [BUDGET], groups), out / "accuracy", report.provenance)
    costs = [TOKENS, *([FLOPS] if known else [])]
    save(partial(curves_figure, report, costs, groups), out / "cost", report.provenance)
    if report.rates:
        forests = [
            Forest(
                f"times the budget, n = {n}",
                {rate.method: rate.value for rate in report.rates if rate.budget == n},
                reference=1.0,
                log2=True,
            )
            for n in sorted({rate.budget for rate in report.rates})
        ]
        rated = {rate.method for rate in report.rates}
        rows = {name: [method for method in methods if method in rated] for name, methods in groups.items()}
        title = f"Budget that matches {report.chief} at n, over n"
        subtitle = f"{report.title}; 95 % intervals; arrowheads: beyond the budgets measured"
        rows = {name: methods for name, methods in rows.items() if methods}
        save(partial(forest_figure, forests, rows, title, subtitle), out / "rates", report.provenance)
