"""Finds out whether a server has a reward model, and of which family, without a tokenizer, torch or a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from motes.errors import ConfigurationError, ServerError
from motes.rewards.families import Family, recognise
from motes.transport import Address, Client, Server, identify


async def is_reward_server(client: Client, address: Address, engine: str | None = None) -> bool:
    """Whether the model at an address is a reward model: its server has `/pooling`, or its name is a reward model's.

    Raises:
        UnreachableError, UnauthorizedError, UnknownNameError, ConfigurationError: see `motes.transport.identify`.
    """
    server = await identify(client, address, engine)
    return family_of(server) is not None or await serves_pooling(client, address)


async def serves_pooling(client: Client, address: Address) -> bool:
    """Whether the server scores texts by `/pooling`, as vLLM does for models that it was started to pool."""
    try:
        await client.get(f"{address.root}/pooling", attempts=1)
    except ServerError as error:
        return error.status == 405  # it has the route, which allows only POST
    return False


def family_of(server: Server, tokenizer: str | None = None, config: Mapping[str, Any] | None = None) -> Family | None:
    """The family of the model, by its architecture or its name; None if neither is known.

    Args:
        tokenizer: the folder or name of its tokenizer.
        config: the config.json there.
    """
    for name in filter(None, (tokenizer, server.origin, server.model)):
        try:
            return recognise(name, config or {})
        except ConfigurationError:
            continue
    return None
