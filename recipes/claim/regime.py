"""Claim: how much less budget a particle filter needs depends on the number of steps T, on pass@1 P, and on the reward
model's AUROC within a problem.

Each world is a set of chains (`motes.lab.chains`), on which every method runs as it does on models. The factor of a
method at n is the budget at which it is as accurate as the particle filter is at n, divided by n. `PREDICTED` holds the
predictions of theory, written down before anything was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from claim.cells import write
from claim.factor import REGISTERED
from motes.errors import DirectoryBusyError
from motes.lab import Evaluation, RunRecord, evaluate, read_records
from motes.lab.chains import ChainWorld
from motes.lab.measure.comparison import PairedRuns, Rate, ends, is_right, rates
from motes.lab.measure.formats import csv_text, markdown_rows, percent
from motes.lab.measure.statistics import Interval, share_interval
from motes.lab.run.evaluation import RECORDS
from motes.lab.run.method_spec import NAMES
from motes.lab.run.provenance import CSV_METADATA, Provenance, together
from motes.lab.show.style import heading, save
from motes.lab.show.tables import provenance_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILTERS = {"theory": REGISTERED, "default": "pf"}
"""The particle filters whose accuracy the other methods have to reach: the one that the predictions are about, and
motes' default."""
SEARCHES = ("beam", "dvts", "rebase")
SAMPLING = ("wbon", "bon", "majority")
BUDGETS: Mapping[str, tuple[Sequence[str], Sequence[int]]] = {
    "stepwise": ((*FILTERS.values(), *SEARCHES), (2, 4, 8, 16, 32)),
    "weighted": (SAMPLING[:1], (1, 2, 4, 8, 16, 32, 64, 128)),
    "sampling": (SAMPLING[1:], (1, 2, 4, 8, 16, 32, 64)),
}
"""The evaluations of each world, by the name of their directory: methods, and their budgets."""
REFERENCES = (4, 8)
"""Budgets of those filters."""

STEPS = (6, 12, 24)
SUCCESS = (0.3, 0.1, 0.03)
SEPARATIONS = (1.0, 1.5, 2.0, 3.0)

Factors = tuple[float, float]
OVER = math.inf

PREDICTED: Mapping[tuple[int, float], Mapping[float, Factors]] = {
    (6, 0.3): {1.5: (1.5, 0.8), 2.0: (4.6, 2.4), 3.0: (15, OVER)},
    (12, 0.3): {1.5: (2.1, 1.6), 2.0: (6.8, 4.8), 3.0: (29, OVER)},
    (24, 0.3): {1.5: (3.3, 1.8), 2.0: (9.8, 4.1), 3.0: (55, OVER)},
    (6, 0.1): {1.5: (2.9, 2.0), 2.0: (6.2, 4.4), 3.0: (37, OVER)},
    (12, 0.1): {1.5: (4.9, 2.4), 2.0: (21, 22), 3.0: (OVER, OVER)},
    (24, 0.1): {1.5: (5.9, 2.9), 2.0: (55, OVER), 3.0: (OVER, OVER)},
    (12, 0.03): {1.5: (6.2, 3.7), 2.0: (61, OVER), 3.0: (OVER, OVER)},
    (24, 0.03): {1.5: (12.9, 8.0), 2.0: (OVER, OVER), 3.0: (OVER, OVER)},
}
"""By T and P, then by d′: the factors, at 4 and at 8, of weighted best-of-N relative to the particle filter that
resamples at every step, from a simulation of another chain (one seed, 300 problems: accurate to about a quarter).
`OVER`: more than 64 at 4, more than 32 at 8. At d′ = 1 they are 0.3 to 1.0 on a data set of mixed difficulty."""


@dataclass(frozen=True)
class Cell:
    """One world, as arguments of `ChainWorld`."""

    num_steps: int
    success: float
    separation: float
    systematic: float = 1.0
    concentration: float | None = None
    num_problems: int = 200
    seed: int = 0

    @property
    def world(self) -> ChainWorld:
        return ChainWorld(**dataclasses.asdict(self))

    @property
    def spec(self) -> str:
        """The world's spec as a task."""
        options = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return f"motes.lab.chains:ChainWorld?{urlencode(options)}"

    @property
    def name(self) -> str:
        words = [f"T={self.num_steps}", f"P={self.success:g}", f"d={self.separation:g}"]
        words += [f"systematic={self.systematic:g}"] if self.systematic != 1 else []
        words += [f"concentration={self.concentration:g}"] if self.concentration is not None else []
        return "_".join([*words, f"problems={self.num_problems}", f"seed={self.seed}"])

    @property
    def kind(self) -> tuple[float, float | None]:
        """The parameters that all worlds of one heat map share."""
        return self.systematic, self.concentration

    def evaluations(self, seeds: tuple[int, ...]) -> Iterator[tuple[str, Evaluation]]:
        """The evaluations of this world, each with its directory."""
        for name, (methods, budgets) in BUDGETS.items():
            models = dict.fromkeys(("lm", "reward"), "the world's own")
            grid = {"methods": tuple(methods), "budgets": tuple(budgets), "seeds": seeds}
            yield f"{self.name}/{name}", Evaluation(task=self.spec, **grid, **models)


def cells(
    steps: Sequence[int], success: Sequence[float], separations: Sequence[float], problems: int
) -> Iterator[Cell]:
    """The worlds of the map: every combination; then, in its middle, variations that may matter: errors of which half
    depend on the wording, and difficulty that is concentrated in a few steps."""
    for t, p, d in itertools.product(steps, success, separations):
        yield Cell(t, p, d, num_problems=problems)
    middle = [(t, p, d) for t, p, d in itertools.product(steps[1:2], success, separations) if d in (1.5, 2.0)]
    for t, p, d in middle:
        yield Cell(t, p, d, systematic=0.5, num_problems=problems)
    for t, p, d in middle:
        yield Cell(t, p, d, concentration=0.3, num_problems=problems)


@dataclass(frozen=True)
class WorldResult:
    """The measurements in one world.

    Attributes:
        accuracy: for each (method, budget).
        factors: for each (particle filter, other method, budget of the filter).
    """

    cell: Cell
    accuracy: Mapping[tuple[str, int], Interval]
    factors: Mapping[tuple[str, str, int], Rate]

    @classmethod
    def of(cls, cell: Cell, records: Sequence[RunRecord]) -> WorldResult:
        runs = PairedRuns(records)
        methods = list(dict.fromkeys(record.method for record in records))
        accuracy = {
            name: share_interval((problem, is_right(run)) for problem, repeats in problems.items() for run in repeats)
            for name, problems in runs.cells.items()
        }
        factors = {
            (reference, rate.method, rate.budget): rate
            for reference in FILTERS.values()
            for rate in rates(runs, methods, REFERENCES, reference)
        }
        return cls(cell, accuracy, factors)


def run(args: argparse.Namespace, command: str) -> int:
    """Measure the worlds that have no complete records yet, then write the tables and the figures.

    Returns:
        the number of failed runs.

    Raises:
        DirectoryBusyError: everything is measured, except evaluations that other processes are measuring.
    """
    worlds = cells(args.steps, args.success, args.separations, args.problems)
    evaluations = {cell: dict(cell.evaluations(args.seeds)) for cell in worlds}
    busy: list[Path] = []
    for number, (cell, by_name) in enumerate(evaluations.items(), start=1):
        started = time.perf_counter()
        measured = {args.work / name: measure(each, args.work / name, command) for name, each in by_name.items()}
        busy += [directory for directory, is_new in measured.items() if is_new is None]
        if any(measured.values()):
            print(f"{number}/{len(evaluations)}  {cell.name}: {time.perf_counter() - started:.0f} s", flush=True)
    if busy:
        raise DirectoryBusyError(
            f"other processes are at {len(busy)} evaluations, the first is {busy[0]}: when they have ended, the same "
            "command writes the tables"
        )
    records = {
        cell: [record for name in by_name for record in read_records(args.work / name / RECORDS)]
        for cell, by_name in evaluations.items()
    }
    provenance = together([Provenance.read(args.work / name) for by_name in evaluations.values() for name in by_name])
    results = [WorldResult.of(cell, of_cell) for cell, of_cell in records.items()]
    write_report(results, args.out, provenance, command)
    return sum(record.outcome == "failed" for of_cell in records.values() for record in of_cell)


def measure(evaluation: Evaluation, directory: Path, command: str) -> bool | None:
    """Do all runs that have no record yet. Returns whether there were any; None if another process works on them."""
    records = read_records(directory / RECORDS)
    if sum(record.outcome != "failed" for record in records) == evaluation.to_dict()["num_runs"]:
        return False
    world = evaluation.opened
    assert isinstance(world, ChainWorld)
    work = evaluate(
        evaluation, directory, lm=world.lm, reward=world.reward, concurrency=4, traces=False, command=command
    )
    try:
        asyncio.run(work)
    except DirectoryBusyError:
        return None
    return True


def write_report(results: Sequence[WorldResult], out: Path, provenance: Provenance, command: str) -> None:
    parts = []
    for name, reference in FILTERS.items():
        words = f"the filter that the predictions are about, `{reference}`" if name == "theory" else "motes' default"
        parts.append(f"## Against {words}\n\n![Budgets against the filter's]({name}.png)")
        for kind in dict.fromkeys(each.cell.kind for each in results):
            parts.append(f"### {_heading(kind)}")
            of_kind = [each for each in results if each.cell.kind == kind]
            for n in REFERENCES:
                parts += [f"To be as accurate as {n} particles:", "\n".join(_table(of_kind, reference, n))]
    page = "\n\n".join(
        [
            "# Where particles win: budgets against the particle filter's",
            f"Chains of T steps ([`motes.lab.chains`](../../src/motes/lab/chains.py)), {results[0].cell.num_problems} "
            "problems a world. For each method the budget at which it is as accurate as a particle filter is at 4, and "
            "at 8, divided by 4 and 8, each with its own 95 % interval over problems: "
            '"> 32" means that 32 times the budget is not enough. Predicted: the factor of weighted best-of-N, from a '
            "simulation of another chain, written down before.",
            *parts,
            f"Made by `{command}`.",
            "\n".join(provenance_table(provenance).markdown()).strip(),
        ]
    )
    rows: list[dict[str, Any]] = []
    for each in results:
        world = {**dataclasses.asdict(each.cell), "auroc": round(each.cell.world.auroc, 4)}
        for (method, budget), accuracy in each.accuracy.items():
            row = {**world, "method": method, "budget": budget} | ends(accuracy, "accuracy")
            for name, reference in FILTERS.items():
                factor = each.factors.get((reference, method, budget))
                columns = ("rate", "rate_low", "rate_high")
                row |= {f"{name}_{column}": "" if factor is None else factor.row()[column] for column in columns}
            rows.append(row)
    files = {"report.md": page + "\n", "report.csv": csv_text(rows)}
    write(out, {**files, CSV_METADATA: provenance.csv_metadata("regime", ["report.csv"])})
    for name, reference in FILTERS.items():
        save(partial(figure, results, reference), out / name, provenance)


def _others(reference: str) -> list[str]:
    """The methods to compare with `reference`, in the order of columns and heat maps."""
    return [method for method in (*SAMPLING, *SEARCHES, *FILTERS.values()) if method != reference]


def _label(method: str) -> str:
    return {REGISTERED: "filter of the theory", "pf": "default filter"}.get(method) or NAMES[method]


def _heading(kind: tuple[float, float | None]) -> str:
    systematic, concentration = kind
    errors = "all errors of the reward model systematic" if systematic == 1 else f"{percent(systematic)} systematic"
    hard = "all steps equally hard" if concentration is None else "a few steps hard"
    return f"{errors}, {hard}".capitalize()


def _table(of_kind: Iterable[WorldResult], reference: str, n: int) -> list[str]:
    """The lines of a Markdown table: for each world, the factors of the other methods at n particles of `reference`."""
    predicts = reference == REGISTERED
    header = ["steps", "pass@1", "d′ (AUROC)", "filter", *(["predicted"] if predicts else [])]
    rows = []
    for each in of_kind:
        cell = each.cell
        accuracy = percent(each.accuracy[reference, n].value)
        row = [
            str(cell.num_steps),
            f"{100 * cell.success:g} %",
            f"{cell.separation:g} ({cell.world.auroc:.2f})",
            accuracy,
        ]
        row += [_predicted(cell, n)] if predicts else []
        rows.append([*row, *(each.factors[reference, method, n].with_own_interval() for method in _others(reference))])
    return markdown_rows([*header, *map(_label, _others(reference))], rows)


def _predicted(cell: Cell, n: int) -> str:
    """The predicted factor of weighted best-of-N; empty if there is no prediction."""
    factors = PREDICTED.get((cell.num_steps, cell.success), {}).get(cell.separation)
    if cell.kind != (1.0, None) or factors is None:
        return ""
    place = REFERENCES.index(n)
    return f"> {(64, 32)[place]}" if factors[place] == OVER else f"{factors[place]:g}"


def figure(results: Sequence[WorldResult], reference: str, at: int = 4) -> Figure:
    """A heat map for each other method, a row, and each separation: factors over T and P at `at` particles of the
    filter `reference`."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    shown = {
        (each.cell.num_steps, each.cell.success, each.cell.separation): each
        for each in results
        if each.cell.kind == (1.0, None)
    }
    methods = _others(reference)
    steps, success, separations = (sorted({place[i] for place in shown}) for i in range(3))
    success = success[::-1]
    side, gap, left, above, below = 1.75, 0.18, 1.75, 1.1, 0.6
    high = side * 0.62
    width = left + len(separations) * (side + gap)
    height = above + len(methods) * (high + gap) + below
    canvas = Figure(figsize=(width, height))
    grid = canvas.subplots(len(methods), len(separations), squeeze=False)
    canvas.subplots_adjust(
        left=left / width, right=1 - gap / width, top=1 - above / height, bottom=below / height,
        wspace=gap / side, hspace=gap / high,
    )  # fmt: skip
    norm = TwoSlopeNorm(0.0, -3.0, 6.0)
    for row, method in enumerate(methods):
        for column, separation in enumerate(separations):
            axes = grid[row][column]
            for x, t in enumerate(steps):
                for y, p in enumerate(success):
                    if (each := shown.get((t, p, separation))) is not None:
                        _square(axes, x, y, each.factors[reference, method, at], norm)
            axes.set(xlim=(-0.5, len(steps) - 0.5), ylim=(-0.5, len(success) - 0.5))
            axes.set_xticks(range(len(steps)), labels=[str(t) for t in steps] if row == len(methods) - 1 else [])
            axes.set_yticks(range(len(success)), labels=[f"{100 * p:g} %" for p in success] if column == 0 else [])
            axes.tick_params(length=0)
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if row == 0:
                auroc = ChainWorld(1, 0.5, separation).auroc
                axes.set_title(f"AUROC {auroc:.2f}", fontsize=10)
        name = _label(method).replace(" best", "\nbest").replace(" of the", "\nof the")
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center", "annotation_clip": False}
        grid[row][0].annotate(name, (0, 0.5), (-left * 72 + 8, 0), fontweight="bold", fontsize=9.5, **place)
    grid[-1][0].set_xlabel("steps")
    grid[0][0].annotate(
        "pass@1", (0, 1), (-4, 7), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=9
    )
    title = f"Budget that matches {at} particles of the {_label(reference)}, over {at}"
    heading(canvas, title, "chains; reward models from weak to strong; blue: the particle filter needs less", left=0.02)
    return canvas


def _square(axes: Axes, x: int, y: int, rate: Rate, norm: Any) -> None:
    import matplotlib
    from matplotlib.patches import Rectangle

    edge = {0.0: rate.smallest, math.inf: rate.largest}
    value = rate.value.value
    colour = matplotlib.colormaps["RdBu"](norm(math.log2(edge.get(value, value))))
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
    dark = sum(colour[:3]) < 1.5
    axes.text(x, y, rate.text(value), ha="center", va="center", fontsize=8.5, color="white" if dark else "#222222")
