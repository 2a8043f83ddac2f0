"""`motes serve`: the gateway. `motes key`: a key for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motes import prompts
from motes.cli import options, terminal
from motes.errors import ConfigurationError, MissingExtraError
from motes.methods import METHODS

if TYPE_CHECKING:
    from motes.gateway.config import Config


def command(
    config: Annotated[
        Path | None, typer.Option("--config", help="A motes.toml; see docs/gateway.md. By default the bundled models.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Instead of a file: the language model behind it.")] = None,
    reward: Annotated[str | None, typer.Option(help="With --model: the reward model.")] = None,
    method: Annotated[
        str | None,
        typer.Option(autocompletion=options.complete(*METHODS), help="With --model: the method.  [default: pf]"),
    ] = None,
    num_particles: Annotated[
        int | None,
        typer.Option("-n", "--num-particles", help="With --model: trajectories.  [default: 16]"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=options.complete(*prompts.names()),
            help="With --model: how it is asked.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="With --model: whose rule reads answers.")] = None,
    name: Annotated[str, typer.Option(help="With --model: what clients call it.")] = "motes",
    host: Annotated[str | None, typer.Option(help="Where to listen.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="[default: 8080]")] = None,
) -> None:
    """Serve methods over models as one OpenAI-compatible endpoint."""
    try:
        import uvicorn

        from motes.gateway.answering import open_models
        from motes.gateway.app import application
        from motes.gateway.config import Config, checked
        from motes.gateway.logs import to_stream
    except ModuleNotFoundError as error:
        raise MissingExtraError("motes serve", "serve") from error
    changes = {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    own = {"reward": reward, "method": method, "particles": num_particles, "prompt": prompt, "task": task}
    own = {key: value for key, value in own.items() if value is not None}
    if config is not None and (model is not None or own):
        raise ConfigurationError("--config says which models there are: leave --model and what goes with it out")
    if model is None and own:
        raise ConfigurationError(f"{', '.join(own)} go with --model: name one")
    told: Config
    if config is not None:
        told = Config.load(config, **changes)
    elif model is not None:
        told = checked(Config, {"models": {name: {"lm": model, **own}}, **changes}, "the command line")
    else:
        told = Config.bundled(**changes)
    with listening(told.host, told.port) as listener:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        app = application(told, open_models(told))
        patience = int(told.limits.drain) + 1
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=patience))
        host, number = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{number}"
        terminal.tell(f"motes serves {', '.join(told.models)} at {where}/v1")
        to_stream()
        server.run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that already takes connections, so that nobody is refused while the models are still being opened.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}; try another --port") from error


def key(name: Annotated[str, typer.Argument(help="Whose it is: what logs and metrics say.")]) -> None:
    """Make an API key for the gateway, and the lines that motes.toml needs of it."""
    try:
        from motes.gateway.config import Key
    except ModuleNotFoundError as error:
        raise MissingExtraError("motes key", "serve") from error
    secret, made = Key.make(name)
    terminal.say(f"# the key, which is shown this once: {secret}")
    for line in ("[[keys]]", f"name = {terminal.exact_json(made.name)}", f'sha256 = "{made.sha256}"'):
        terminal.say(line)
