"""The command line: `motes COMMAND`. Errors that motes raises on purpose become one line.

Exit codes: 0 success; 1 something failed while running; 2 the input cannot work; 130 interrupted. If the reader of
stdout closes it (`| head`), the code does not change. MOTES_DEBUG=1 shows the traceback of an error.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer
import typer.core

from motes.cli import demo, doctor, evaluate, options, recorded, reproduce, rewards, serve, solve, terminal, trials
from motes.errors import ConfigurationError, ContextLengthError, MotesError, RunDirectoryError, UnknownNameError

INPUT_ERRORS = (ConfigurationError, ContextLengthError, RunDirectoryError)
USAGE_ERROR = cast(type[Exception], typer.BadParameter.__bases__[0])  # in typer's own copy of click or in click itself
INTERRUPTED = 130

app = typer.Typer(
    name="motes",
    help="Inference-time scaling of language models by particle-based Monte Carlo.",
    rich_markup_mode=None,
)
app.command("solve")(solve.command)
app.command("eval", cls=evaluate.Command)(evaluate.command)
app.command("merge")(recorded.merge)
app.command("grade")(recorded.grade)
app.command("report")(recorded.report)
app.command("compare")(recorded.compare)
app.command("export")(recorded.export)
app.command("advise")(trials.advise)
app.command("tune")(trials.tune)
app.command("reproduce")(reproduce.command)
app.command("demo")(demo.command)
app.command("check")(doctor.check)
app.command("doctor")(doctor.command)
app.command("calibrate")(rewards.calibrate)
app.command("rate")(rewards.rate)
app.command("serve")(serve.command)
app.command("key")(serve.key)


@app.command("help", hidden=True)
def _help(
    context: typer.Context,
    command: Annotated[str | None, typer.Argument(help="Name of a command. Default: list all commands.")] = None,
) -> None:
    """Show the help of a command."""
    root = context.find_root()
    if command is None:
        typer.echo(root.get_help())
        return
    commands = cast(typer.core.TyperGroup, root.command).commands
    if command not in commands:
        raise UnknownNameError("command", command, (name for name, item in commands.items() if not item.hidden))
    typer.echo(typer.Context(commands[command], info_name=command, parent=root).get_help())


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from motes import __version__

        typer.echo(f"motes {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments after `motes`; by default those of this process.
    """
    with terminal.safe_streams() as out:
        code = _run(None if argv is None else list(argv))
        is_lost = out.error is not None and not isinstance(out.error, BrokenPipeError)
        return code or int(is_lost)


def _run(arguments: list[str] | None) -> int:
    command = typer.main.get_command(app)
    options.ARGUMENTS.set(arguments)
    try:
        code = command.main(args=arguments, prog_name="motes", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except terminal.StoppedError as error:
        return _fail(f"interrupted; {error}", INTERRUPTED)
    except MotesError as error:
        return _fail(str(error), 2 if isinstance(error, INPUT_ERRORS) else 1)
    except USAGE_ERROR as error:
        return _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    except OSError as error:
        return _fail(_explain(error), 1)
    except UnicodeError as error:
        return _fail(f"{error}: convert the text to UTF-8", 2)
    except Exception as error:  # a bug, in motes or in the user's own code: show its place
        terminal.show_traceback()
        return _fail(f"unexpected {type(error).__name__}: {error}", 1)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


REMEDIES = {
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "make room, then run the same command again",
    errno.EDQUOT: "make room, then run the same command again",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name another place",
    errno.ENOENT: "check the spelling",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


def _explain(error: OSError) -> str:
    """The operating system's message, with a remedy."""
    message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
    remedy = REMEDIES.get(error.errno or 0)
    return message if remedy is None else f"{message}: {remedy}"


def _fail(message: str, code: int) -> int:
    if os.environ.get("MOTES_DEBUG") and sys.exc_info()[0] is not None:
        terminal.show_traceback()
    terminal.note(message)
    return code
