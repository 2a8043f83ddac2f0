"""Which settings of the particle filter matter: the default with one factor changed at a time.

Potential, link and beta are changed together, since together they define the target. Particles and sweeps share 64
trajectories. By default the validation split is used, so that the results may decide the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from claim.cells import Cell, Measured, csv_metadata, write
from motes.lab.measure.comparison import Difference, ends
from motes.lab.measure.formats import csv_text, markdown_rows
from motes.lab.measure.statistics import Interval
from motes.lab.show.forest import Forest, forest_figure
from motes.lab.show.style import save
from motes.lab.show.tables import table_row
from motes.methods import ParticleFilter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUDGETS = (16,)
SHARED = 64
"""Number of trajectories that particles and sweeps share: particles × sweeps."""
SWEEPS = f"particles × sweeps (default {SHARED} × 1)"
BETAS: Mapping[str, Sequence[float]] = {
    "odds": (0.25, 0.5, 1.0, 2.0),
    "probability": (0.25, 0.5, 1.0, 2.0),
    "exponential": (2.5, 5.0, 10.0),
}
"""By link, since the range of useful betas, between indifference and greed, depends on it."""
DEFAULT = "pf"
NOTE = (
    "Accuracy with Wilson's 95 % interval; difference to the default, `pf`, at the same budget, in percentage points "
    "with intervals over problems that hold for all lines together in 95 % of such tables; the figure has each one's "
    "own 95 % interval, of which one in twenty leaves 0 out where nothing differs."
)


class Variant(NamedTuple):
    """The default with one factor changed; `factor` and `setting` name it in tables."""

    factor: str
    setting: str
    cell: Cell


def variants(budgets: Sequence[int], reward: str) -> list[Variant]:
    """All variants, at the budgets; particles and sweeps at their own."""
    default = ParticleFilter(1)
    collected: list[Variant] = []

    def add(factor: str, setting: str, spec: str = DEFAULT, **changes: object) -> None:
        label = spec if spec != DEFAULT else f"{DEFAULT} {setting}"
        collected.extend(Variant(factor, setting, Cell(spec, budget, label, **changes)) for budget in budgets)  # type: ignore[arg-type]

    for potential in ("increment", 0.5, "absolute"):
        for link, betas in BETAS.items():
            for beta in betas:
                if (potential, link, beta) != (default.potential, default.link, default.beta):
                    spec = f"pf:potential={potential}:link={link}:beta={beta:g}"
                    factor = f"target (default {default.potential}, {default.link}, β={default.beta:g})"
                    add(factor, f"{potential}, {link}, β={beta:g}", spec)
    for field, levels in (
        ("resampling", ("multinomial", "stratified", "systematic", "residual")),
        ("ess_threshold", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("aggregation", ("last", "min", "prod", "mean")),
    ):
        usual = getattr(default, field)
        for level in levels:
            if level != usual:
                add(f"{field} (default {usual})", f"{field}={level}", f"pf:{field}={level}")
        if field == "aggregation" and (reward == "tiny" or reward.startswith("hf:")):  # others may not know the option
            add(
                f"{field} (default {usual})",
                "prefix=whole",
                reward=f"{reward}{'&' if '?' in reward else '?'}prefix=whole",
            )
    for temperature in (0.4, 0.6, 1.0, 1.2):
        add("temperature (default 0.8)", f"temperature={temperature}", temperature=temperature)
    for sweeps in (4, 8, 16, 32):
        cell = Cell(f"pg:num_sweeps={sweeps}", SHARED)
        collected.append(Variant(SWEEPS, f"{SHARED // sweeps} × {sweeps}", cell))
    return collected


def cells(budgets: Sequence[int], reward: str) -> list[Cell]:
    defaults = [Cell(DEFAULT, budget) for budget in sorted({*budgets, SHARED})]
    return [*defaults, *(variant.cell for variant in variants(budgets, reward))]


def write_report(measured: Measured) -> None:
    report = measured.report()
    results = {(cell.method, cell.budget): cell for cell in report.cells}
    differences = {(difference.method, difference.budget): difference for difference in report.differences}
    budgets = sorted({cell.budget for cell in measured.records})
    reported = variants([budget for budget in budgets if (DEFAULT, budget) in results], measured.setting.reward)
    reported = [variant for variant in reported if variant.cell in measured.records]
    table, rows = [], []
    for budget in budgets:
        default = results[DEFAULT, budget]
        table.append(["default", "", *table_row(default)[1:4], "", f"{default.total_tokens:,.0f}"])
        rows.append({"factor": "default", "setting": "", **default.row(), **ends(Interval(0, 0, 0), "difference")})
        for factor, setting, cell in reported:
            if cell.budget == budget:
                key = cell.name, budget
                tokens = f"{results[key].total_tokens:,.0f}"
                table.append([factor, setting, *table_row(results[key])[1:4], str(differences[key]), tokens])
                difference = ends(differences[key].value, "difference")
                rows.append({"factor": factor, "setting": setting, **results[key].row(), **difference})
    header = ["factor", "setting", "budget", "accuracy", "95 % interval", "difference", "tokens"]
    page = measured.page(report, "\n".join(markdown_rows(header, table)), NOTE)
    files = {"report.md": page, "report.csv": csv_text(rows)}
    write(measured.setting.out, {**files, **csv_metadata([measured], "report.csv")})
    sweeps = [variant for variant in reported if variant.factor == SWEEPS]
    for name, shown in (("ablations", [variant for variant in reported if variant not in sweeps]), ("sweeps", sweeps)):
        if shown:
            save(partial(_figure, shown, differences, report.title), measured.setting.out / name, measured.provenance())


def _figure(shown: Sequence[Variant], differences: Mapping[tuple[str, int], Difference], title: str) -> Figure:
    forests = [
        Forest(
            f"percentage points, budget {budget}",
            {setting: differences[cell.name, budget].value for _, setting, cell in shown if cell.budget == budget},
        )
        for budget in sorted({variant.cell.budget for variant in shown})
    ]
    groups: dict[str, dict[str, None]] = {}
    for factor, setting, _ in shown:
        groups.setdefault(factor, {})[setting] = None
    rows = {factor: list(settings) for factor, settings in groups.items()}
    return forest_figure(forests, rows, "Accuracy less that of the default filter", f"{title}; 95 % intervals")
