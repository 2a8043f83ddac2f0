"""`motes serve`: the gateway. `motes key`: a key for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from motes import prompts
from motes.cli import options, serve_check, terminal
from motes.errors import ConfigurationError, MissingExtraError
from motes.methods import METHODS


def command(
    file: Annotated[
        Path | None, typer.Argument(help="Configuration file, see docs/gateway.md. Default: serve the bundled models.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The same as FILE.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read the configuration, open its models, show them, and serve nothing.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Serve one language model, without a configuration file.")] = None,
    reward: Annotated[str | None, typer.Option(help="With --model: the reward model.")] = None,
    method: Annotated[
        str | None,
        typer.Option(autocompletion=options.complete(*METHODS), help="With --model: the method.  [default: pf]"),
    ] = None,
    num_particles: Annotated[
        int | None, typer.Option("-n", "--num-particles", help="With --model: number of trajectories.  [default: 16]")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", autocompletion=options.complete(*prompts.names()), help="With --model: the prompt."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="With --model: the task whose rule reads answers.")] = None,
    name: Annotated[str, typer.Option(help="With --model: the model name that clients use.")] = "motes",
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.  [default: 8080]")] = None,
) -> None:
    """Serve methods over models as one OpenAI-compatible endpoint."""
    try:
        from motes.gateway.answering import open_models
        from motes.gateway.app import application
        from motes.gateway.config import Config, parse_config
        from motes.gateway.logs import to_stream
        from motes.gateway.reloading import ConfigFile
        from motes.gateway.server import Server, ends_on_sigterm
    except ModuleNotFoundError as error:
        raise MissingExtraError("motes serve", "serve") from error
    if file is not None and config is not None:
        raise ConfigurationError("FILE and --config mean the same: give one of them")
    config = config or file
    changes = {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    model_options = {"reward": reward, "method": method, "particles": num_particles, "prompt": prompt, "task": task}
    model_options = {key: value for key, value in model_options.items() if value is not None}
    if config is not None and (model is not None or model_options):
        raise ConfigurationError(
            "--config says which models there are: leave out --model and the options that go with it"
        )
    if model is None and model_options:
        raise ConfigurationError(f"{', '.join(model_options)} go with --model: name one")
    source = "the command line" if config is None else str(config)
    if config is not None:
        settings = Config.load(config, **changes)
    elif model is not None:
        models = {name: {"lm": model, **model_options}}
        settings = parse_config(Config, {"models": models, **changes}, source)
    else:
        settings = Config.bundled(**changes)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if check:
        serve_check.check(settings, open_models(settings, source), source)
        return
    with ends_on_sigterm(), listen(settings.host, settings.port) as listener:
        watched = None if config is None else ConfigFile(config, changes)
        app = application(settings, open_models(settings, source, needs_all=False), watched)
        host, number = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{number}"
        terminal.say_progress(f"motes serves {', '.join(settings.models)} at {address}/v1")
        to_stream()
        reloading = app.state.gateway.reloading
        Server(app, reload=None if reloading is None else reloading.reload).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections already, so that clients need not retry while the models are opened."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}; try another --port") from error


def key(name: Annotated[str, typer.Argument(help="Name of the key's owner in logs and metrics.")]) -> None:
    """Make an API key for the gateway, and its entry for motes.toml."""
    try:
        from motes.gateway.keys import Key
    except ModuleNotFoundError as error:
        raise MissingExtraError("motes key", "serve") from error
    secret, entry = Key.make(name)
    terminal.say(f"# the key, which is shown this once: {secret}")
    for line in ("[[keys]]", f"name = {terminal.exact_json(entry.name)}", f'sha256 = "{entry.sha256[0]}"'):
        terminal.say(line)
