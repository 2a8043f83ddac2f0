"""The live example: the report of a recorded evaluation, written as `motes report` writes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from sphinx.application import Sphinx

from motes.lab import Report, write_report

RECORDED = "results/example"


def write(app: Sphinx, error: Exception | None = None) -> None:
    with TemporaryDirectory() as folder:
        directory = Path(folder) / "example"
        shutil.copytree(Path(app.srcdir) / RECORDED, directory)
        write_report(directory, Report.load(directory), plots=False)
        out = Path(app.outdir) / "example"
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(directory / "report.html", out)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
