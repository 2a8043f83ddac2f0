"""`motes doctor`: what can this server do, and does it keep the contract of a language model?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from motes import api
from motes.cli.views import print_trimmed
from motes.contracts import check_language_model
from motes.errors import ConfigurationError, ContractError
from motes.types import Sampling

if TYPE_CHECKING:
    from motes.models.served import HTTPLanguageModel

SAMPLING = Sampling(max_step_tokens=32)


def command(
    url: Annotated[str, typer.Argument(help="http://HOST:PORT/v1#MODEL, options behind it: …#MODEL?seeds=group.")],
    contract: Annotated[bool, typer.Option(help="Draw a few hundred short steps and check them.")] = True,
) -> None:
    """Show what a server can do, what is lost without the rest, and check it."""
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{url!r} is no server: write http://HOST:PORT/v1#MODEL (for others, `motes check`)")
    lm = cast("HTTPLanguageModel", api.language_model(url))
    found = lm.capabilities
    console = Console()
    others = [name for name in found.models if name != found.model]
    facts = {
        "engine": f"{found.engine} {found.version or '(version not told)'}",
        "model": found.model,
        "others": ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else ""),
        "context": f"{found.context_length} tokens" if found.context_length else "not told",
        "route": str(found).rpartition(": ")[2],
        "prompts": {
            "server": "made by the server",
            "tokenizer": "made by a tokenizer on this side",
            "messages": "messages, as they are",
        }[found.rendering],
        "seeds": lm.seeds,
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    print_trimmed(console, table)
    console.print()
    for what, there, lost in found.findings():
        mark = Text("yes  ", style="green") if there else Text("no   ", style="yellow")
        console.print(mark + Text(what), soft_wrap=True)
        if not there:
            console.print(Text(f"     {lost}", style="dim"), soft_wrap=True)
    if contract:
        console.print()
        _check(console, lm)


def _check(console: Console, lm: HTTPLanguageModel) -> None:
    sampling, rounds, how = SAMPLING, 3, ""
    if not lm.continues_prefixes:
        sampling, rounds, how = sampling.replace(delimiter=None), 1, ", whole answers only"
    if lm.seeds != "particle":
        sampling = sampling.replace(temperature=0.0)
        how += f", at temperature 0, as steps are not drawn by their own seeds (seeds={lm.seeds})"
    try:
        check_language_model(lm, sampling=sampling, rounds=rounds)
    except ContractError as error:
        raise ContractError(
            f"the contract of a language model does not hold{how}: {error}. Where only the last bits of a sum differ "
            "between batches (a law about sameness, broken now and then), answers are as good as any, but runs cannot "
            "be repeated exactly; see docs/servers.md"
        ) from error
    console.print(f"keeps the contract of a language model{how}", soft_wrap=True, highlight=False)
