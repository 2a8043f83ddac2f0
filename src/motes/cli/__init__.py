"""The command line: `motes COMMAND`. One module a command; errors that motes raises on purpose become one line.

Exit codes: 0 done; 1 something failed while running; 2 the input cannot work; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

import typer

from motes.cli import calibrate, check, demo, doctor, evaluate, export, grade, merge, report, reproduce, serve, solve
from motes.errors import ConfigurationError, ContextLengthError, MotesError, RunDirectoryError

INPUT_ERRORS = (ConfigurationError, ContextLengthError, RunDirectoryError)
USAGE_ERROR = cast(type[Exception], typer.BadParameter.__bases__[0])  # of typer's click, wherever that lives

app = typer.Typer(
    name="motes",
    help="Inference-time scaling of language models by particle-based Monte Carlo.",
    add_completion=False,
    rich_markup_mode=None,
)
app.command("solve")(solve.command)
app.command("eval", cls=evaluate.Command)(evaluate.command)
app.command("merge")(merge.command)
app.command("grade")(grade.command)
app.command("report")(report.command)
app.command("export")(export.command)
app.command("reproduce")(reproduce.command)
app.command("demo")(demo.command)
app.command("check")(check.command)
app.command("doctor")(doctor.command)
app.command("calibrate")(calibrate.command)
app.command("serve")(serve.command)
app.command("key")(serve.key)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from motes import __version__

        typer.echo(f"motes {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    if os.getcwd() not in sys.path:  # models and methods of one's own are found in the working directory as well
        sys.path.append(os.getcwd())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after `motes`; by default this process's.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(args=None if argv is None else list(argv), prog_name="motes", standalone_mode=False)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except MotesError as error:
        return _fail(str(error), 2 if isinstance(error, INPUT_ERRORS) else 1)
    except typer.Abort:
        return _fail("interrupted", 130)
    except USAGE_ERROR as error:
        return _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"motes: {' '.join(message.split())}", file=sys.stderr)
    return code
