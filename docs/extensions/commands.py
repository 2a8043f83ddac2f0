"""The directive `commands`: every command of the command line with its `--help`, as the command line prints it."""

from __future__ import annotations

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from motes.cli import app as command_line

WIDTH = 76
ROOT = typer.Context(typer.main.get_command(command_line), info_name="motes", terminal_width=WIDTH)
COMMANDS = {name: one for name, one in ROOT.command.commands.items() if not one.hidden}  # type: ignore[attr-defined]


class Commands(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        return [
            section(name, typer.Context(command, info_name=name, parent=ROOT, terminal_width=WIDTH).get_help())
            for name, command in COMMANDS.items()
        ]


def section(name: str, text: str) -> nodes.section:
    title = f"motes {name}"
    made = nodes.section("", nodes.title(title, title), ids=[f"motes-{name}"], names=[title])
    made += nodes.literal_block(text, text, language="text")
    return made


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
