"""The paper (arXiv 2502.01618): its numbers, how they are measured again, and our numbers beside them."""

from motes.paper.reproduction import EVERY, Entry, Line, Reproduction
from motes.paper.row import COLUMNS, EXPERIMENTS, TASKS, Experiment, Point, Row, Wanted, published, read_rows

__all__ = [
    "COLUMNS",
    "EVERY",
    "EXPERIMENTS",
    "TASKS",
    "Entry",
    "Experiment",
    "Line",
    "Point",
    "Reproduction",
    "Row",
    "Wanted",
    "published",
    "read_rows",
]
