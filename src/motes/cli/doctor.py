"""`motes doctor`: show the capabilities of a server. `motes check`: check that models keep their contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from motes import api
from motes.cli import options, terminal
from motes.cli.terminal import Console, Text
from motes.conformance import check_language_model, check_reward_model
from motes.core import Sampling
from motes.errors import ConfigurationError, ContractError

if TYPE_CHECKING:
    from motes.models.served import HTTPLanguageModel
    from motes.rewards.served.model import ServedPRM

SAMPLING = Sampling(max_step_tokens=32)
TOLERANCE = 0.02
"""Allowed difference between scores of the same step: servers compute in half precision, in batches of any size."""


def check(model: options.Model = "tiny", reward: options.Reward = "tiny") -> None:
    """Prove that models keep their contract.

    Batch = single, concurrent = sequential, fork = fresh, same seed = same tokens, and more.
    """
    lm, prm = options.open_models(model, reward)
    check_language_model(lm)
    terminal.say(f"{model} keeps the contract of a language model")
    if prm is not None:
        check_reward_model(prm)
        terminal.say(f"{reward} keeps the contract of a reward model")


def command(
    url: Annotated[str, typer.Argument(help="http://HOST:PORT/v1#MODEL, perhaps with options: …#MODEL?seeds=group.")],
    contract: Annotated[bool, typer.Option(help="Check the contract with a few hundred short steps or scores.")] = True,
) -> None:
    """Show what a server can do, what its missing capabilities cost, and check its contract."""
    if not url.strip().lower().startswith(("http://", "https://")):
        raise ConfigurationError(f"{url!r} is no server: write http://HOST:PORT/v1#MODEL (for others, `motes check`)")
    console = terminal.results()
    terminal.say_busy(f"asking {url}")
    if api.serves_rewards(url):
        prm = cast("ServedPRM", api.reward_model(url))
        _show_reward_model(console, prm)
        if contract:
            _check_reward_model(console, prm)
    else:
        lm = cast("HTTPLanguageModel", api.language_model(url))
        _show_language_model(console, lm)
        if contract:
            _check_language_model(console, lm)


def _show_language_model(console: Console, lm: HTTPLanguageModel) -> None:
    server = lm.capabilities
    facts = {
        **_common_facts(server),
        "route": str(server).rpartition(": ")[2],
        "prompts": {
            "server": "made by the server",
            "tokenizer": "made by a tokenizer on this side",
            "messages": "messages, as they are",
        }[server.rendering],
        "seeds": lm.seeds,
    }
    _show(console, facts, server.findings())


def _show_reward_model(console: Console, prm: ServedPRM) -> None:
    server = prm.server
    facts = {
        **_common_facts(server),
        "rewards": f"of the family {prm.format.family.name}, which scores the steps of an answer",
        "route": prm.route.url,
        "tokens": f"made by a tokenizer on this side, {prm.vocabulary.tokenizer.name_or_path}",
    }
    _show(console, facts, prm.findings())


def _common_facts(server: Any) -> dict[str, str]:
    """Facts about a language model's `Capabilities` or a reward model's server, which have the same attributes."""
    others = [name for name in server.models if name != server.model]
    return {
        "engine": f"{server.engine} {server.version or '(unknown version)'}",
        "model": server.model,
        "others": ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else ""),
        "context": f"{server.context_length} tokens" if server.context_length else "unknown",
    }


def _show(console: Console, facts: Mapping[str, str], findings: Sequence[tuple[str, bool, str]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    console.show(table)
    console.print()
    for capability, is_there, consequence in findings:
        mark = Text("yes  ", style="green") if is_there else Text("no   ", style="yellow")
        console.print(mark + Text(capability), soft_wrap=True)
        if not is_there:
            console.print(Text(f"     {consequence}", style="dim"), soft_wrap=True)
    console.print()


def _check_reward_model(console: Console, prm: ServedPRM) -> None:
    try:
        check_reward_model(prm, tolerance=TOLERANCE)
    except ContractError as error:
        raise ContractError(f"the contract of a reward model does not hold: {error}. See docs/servers.md") from error
    console.print("keeps the contract of a reward model", soft_wrap=True)


def _check_language_model(console: Console, lm: HTTPLanguageModel) -> None:
    sampling, rounds, mode = SAMPLING, 3, ""
    if not lm.continues_prefixes:
        sampling, rounds, mode = sampling.replace(delimiter=None), 1, ", whole answers only"
    if lm.seeds != "particle":
        sampling = sampling.replace(temperature=0.0)
        mode += f", at temperature 0, as steps are not drawn by their own seeds (seeds={lm.seeds})"
    try:
        check_language_model(lm, sampling=sampling, rounds=rounds)
    except ContractError as error:
        raise ContractError(
            f"the contract of a language model does not hold{mode}: {error}. Where only the last bits of a sum differ "
            "between batches (a law about sameness, broken now and then), answers are as good as any, but runs cannot "
            "be repeated exactly; see docs/servers.md"
        ) from error
    console.print(f"keeps the contract of a language model{mode}", soft_wrap=True)
