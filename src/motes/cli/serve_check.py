"""`motes serve --check`: show the models that a configuration serves, without serving them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from motes.cli import terminal
from motes.errors import EngineError

if TYPE_CHECKING:
    from motes.gateway.answering import Served
    from motes.gateway.config import Config
    from motes.gateway.shared_address import Address


def check(config: Config, models: Mapping[str, Served], source: str) -> None:
    """Show the models, with a line for each model behind them, the server that shares the limits, and keys that have
    expired.

    Raises:
        EngineError: a server is out of reach.
    """
    from motes.gateway.shared_address import shared_address

    for name, served in models.items():
        settings = served.settings
        particles = "no method" if settings.is_passed_through else f"{settings.particles} particles"
        if settings.most_particles > settings.particles:
            particles += f", at most {settings.most_particles}"
        methods = "" if settings.is_passed_through else f"{', '.join((settings.method, *settings.methods))}; "
        terminal.say(f"{name}: {methods}{particles}")
        for role in ("lm", "reward", "outcome_reward"):
            if (spec := getattr(settings, role)) is not None:
                details = ", passed through" if settings.is_passed_through else _details(getattr(served, role))
                terminal.say(f"  {role}: {spec if isinstance(spec, str) else ', '.join(spec)}{details}")
    for key in config.keys:
        if key.expires is not None and key.expires < datetime.now(UTC):
            terminal.note(f"the keys of {key.name!r} have expired")
    if (address := shared_address(config.limits.shared)) is not None:
        asyncio.run(_probe(address, source))
        terminal.say(f"limits.shared: {address.shown} can be used")
    if missing := asyncio.run(_missing(models)):
        places = ", ".join(f"{name}: {' and '.join(roles)}" for name, roles in missing.items())
        raise EngineError(f"{source}: these models are out of reach ({places}): start their servers")
    terminal.say(f"{source} has no fault")


async def _missing(models: Mapping[str, Served]) -> Mapping[str, Sequence[str]]:
    """The roles of the unreachable models, by virtual model."""
    from motes.gateway.readiness import Readiness
    from motes.gateway.relay import Relay

    try:
        return await Readiness(models).missing()
    finally:
        for served in models.values():
            if isinstance(served.lm, Relay):
                await served.lm.aclose()


async def _probe(address: Address, source: str) -> None:
    """Use the server that shares the limits once. Raises EngineError if that cannot be done."""
    from motes.gateway.shared_counters import SharedCounters

    shared = SharedCounters(address)
    try:
        await shared.probe()
    except EngineError as error:
        raise EngineError(f"{source}: limits.shared: {error}") from error
    finally:
        await shared.aclose()


def _details(model: Any) -> str:
    """The engine of a model's server, and the capabilities that it lacks, as `motes doctor` finds them."""
    model = getattr(model, "reward", model)  # of a model with a calibration
    model = getattr(model, "lm", model)  # of a judge
    server: Any = getattr(model, "capabilities", None) or getattr(model, "server", None)
    if not hasattr(server, "engine"):
        return ", in this process"
    findings = server.findings() if hasattr(server, "findings") else model.findings()
    lacks = [capability for capability, is_there, _ in findings if not is_there]
    return f", {server.engine} {server.version or '(unknown version)'}; lacks: {', '.join(lacks) or 'nothing'}"
