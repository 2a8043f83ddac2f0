"""Who answers at an address: which engine, which version, which models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from motes.errors import (
    BadResponseError,
    ConfigurationError,
    MotesError,
    RejectedError,
    ServerError,
    UnknownNameError,
)
from motes.http.address import OPENAI_HOST, Address
from motes.http.client import Client
from motes.http.parsing import value_at


@dataclass(frozen=True)
class Sign:
    """How an engine is recognised.

    Attributes:
        owned_by: what it says of its models in the list of models.
        paths: routes of its own, below the root, one of which tells its version, the newest first.
        key: where in that route's answer the version stands.
        context: where in that route's answer the longest context stands.
        proof: what no other engine's answer has; by default the version.
    """

    owned_by: str | None = None
    paths: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()


SIGNS: Mapping[str, Sign] = MappingProxyType(
    {
        "vllm": Sign("vllm", ("version",), ("version",)),
        "sglang": Sign(
            "sglang", ("server_info", "get_server_info"), ("version",), ("context_length",), ("model_path",)
        ),
        "llama.cpp": Sign("llamacpp", ("props",), ("build_info",), ("default_generation_settings", "n_ctx")),
        "tgi": Sign(None, ("info",), ("version",), ("max_total_tokens",), ("model_id",)),
        "ollama": Sign("library", ("api/version",), ("version",)),
        "transformers": Sign(),
        "openai": Sign(),
    }
)
"""The engines by name. The last two give no sign: OpenAI is known by its host, `transformers serve` must be named."""

UNKNOWN = "unknown"

LENGTHS = (("loaded_context_length",), ("max_model_len",), ("meta", "n_ctx"))
"""Where lists of models say how long the context is."""

LARGEST_LENGTHS = (("context_window",), ("context_length",), ("max_context_length",), ("meta", "n_ctx_train"))
"""Where they say how long it can be: servers may have been started with less."""

LOADED = {"ollama": ("api/ps", "models", "context_length"), UNKNOWN: ("api/v0/models", "data", "loaded_context_length")}
"""Where servers that load models on demand, Ollama and LM Studio, say how long the context is of those that are loaded:
a route below the root, the list in its answer, and the field of its entries."""


@dataclass(frozen=True)
class Server:
    """What answers at an address.

    Attributes:
        engine: a name in `SIGNS`, or "unknown".
        version: as the engine tells it.
        models: those it has, by name; empty where it does not tell.
        model: the one that is used.
        context_length: tokens of prompt and answer together, None where it does not tell.
        info: what the engine's own route answered.
        origin: what the model was loaded from, a folder on the server's side or a name that the hub knows, where it
            tells.
    """

    engine: str
    version: str | None
    models: tuple[str, ...]
    model: str
    context_length: int | None
    info: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    origin: str | None = None


async def identify(client: Client, address: Address, engine: str | None = None) -> Server:
    """Ask who is there. Nothing is generated.

    Args:
        engine: its name, where it gives no sign of itself.

    Raises:
        UnreachableError: nothing answers.
        UnauthorizedError: it wants a key.
        UnknownNameError: it has no such model, or `engine` names none.
        ConfigurationError: it is no OpenAI-compatible server, or has several models and none was chosen.
    """
    if engine is not None and engine not in (*SIGNS, UNKNOWN):
        raise UnknownNameError("engine", engine, (*SIGNS, UNKNOWN))
    try:
        listed = await client.get(f"{address.base}/models", attempts=3)
    except ServerError as error:
        named = address.model is not None and (error.status == 404 or (error.status == 500 and engine is not None))
        if isinstance(error, (RejectedError, BadResponseError)) and not named:
            raise ConfigurationError(
                f"{address.base} lists no models, as an OpenAI-compatible server does: is the path right? {error}"
            ) from error
        if not named:
            raise
        listed = {"data": []}  # some gateways list none; `transformers serve` fails where it has no cache of models
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise ConfigurationError(f"{address.base}/models answers no list of models: is it an OpenAI-compatible server?")
    chosen = _chosen(address, entries)
    if engine is None and address.host == OPENAI_HOST:
        engine = "openai"
    engine, told = await _sign(client, address, chosen, engine)
    sign = SIGNS.get(engine, Sign())
    lengths = (
        *(value_at(chosen, path) for path in LENGTHS),
        value_at(told, sign.context),
        *(value_at(chosen, path) for path in LARGEST_LENGTHS),
    )
    version = value_at(told, sign.key) if sign.key else None
    origins = (value_at(told, ("tokenizer_path",)), chosen.get("root"))  # SGLang's word; everyone's, if they say it
    return Server(
        engine=engine,
        version=None if version is None else str(version),
        models=tuple(str(entry["id"]) for entry in entries),
        model=str(chosen["id"]),
        context_length=next((length for n in lengths if (length := _length(n)) is not None), None),
        info=told if isinstance(told, dict) else {},
        origin=next((name for name in origins if isinstance(name, str) and name), None),
    )


async def loaded_context_length(client: Client, address: Address, server: Server) -> int | None:
    """The context that a server gave its model when it loaded it, which some do with the first request; None: it does
    not say."""
    if server.engine not in LOADED:
        return None
    path, listed, name = LOADED[server.engine]
    try:
        told = await client.get(f"{address.root}/{path}", attempts=1)
    except MotesError:
        return None
    entries = value_at(told, (listed,))
    for entry in entries if isinstance(entries, list) else ():
        if server.model in (value_at(entry, ("id",)), value_at(entry, ("model",)), value_at(entry, ("name",))):
            return _length(value_at(entry, (name,)))
    return None


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _chosen(address: Address, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of the model that is wanted."""
    names = [str(entry["id"]) for entry in entries]
    if address.model is None:
        if len(entries) != 1:
            raise ConfigurationError(
                f"{address.base} has {len(entries)} models, {', '.join(names) or 'by its own account'}: "
                f"choose one, as in {address.base}#{names[0] if names else 'MODEL'}"
            )
        return entries[0]
    if not entries:
        return {"id": address.model}
    for entry in entries:
        if address.model in (entry["id"], entry.get("root"), f"{entry['id']}".removesuffix(":latest")):
            return entry
    raise UnknownNameError(f"model at {address.base}", address.model, names)


async def _sign(client: Client, address: Address, entry: Mapping[str, Any], engine: str | None) -> tuple[str, Any]:
    """The engine, and what its own route says."""
    owners = {sign.owned_by: name for name, sign in SIGNS.items() if sign.owned_by}
    named = engine or owners.get(str(entry.get("owned_by")))
    for name in [named] if named else SIGNS:
        sign = SIGNS.get(name, Sign())
        for path in sign.paths:
            try:
                told = await client.get(f"{address.root}/{path}", attempts=1)
            except MotesError:
                continue
            if value_at(told, sign.proof or sign.key) is not None:
                return name, told
    return named or UNKNOWN, {}
