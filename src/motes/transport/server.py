"""The server at an address: its engine, its version, its models."""

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
from motes.transport.address import OPENAI_HOST, Address
from motes.transport.client import Client
from motes.transport.failures import value_at, whole_number_of


@dataclass(frozen=True)
class Sign:
    """How to recognise an engine.

    Attributes:
        owned_by: the value of this field in its list of models.
        paths: its own routes for information, below the root, the newest first.
        key: path of the version in the response of such a route.
        context: path of the longest context there.
        proof: path of a value that no other engine has there; by default that of the version.
    """

    owned_by: str | None = None
    paths: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()


UNKNOWN = "unknown"

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
        UNKNOWN: Sign(),
    }
)
"""The engines by name. The last three have no sign: OpenAI is known by its host, users have to name `transformers`."""

LENGTHS = (("loaded_context_length",), ("max_model_len",), ("meta", "n_ctx"))
"""Paths of the context length in lists of models."""

LARGEST_LENGTHS = (("context_window",), ("context_length",), ("max_context_length",), ("meta", "n_ctx_train"))
"""Paths of the model's longest context there. A server may have been started with less."""

LOADED = {"ollama": ("api/ps", "models", "context_length"), UNKNOWN: ("api/v0/models", "data", "loaded_context_length")}
"""Context lengths of loaded models, on servers that load models on demand (Ollama and LM Studio): a route below the
root, the list in its response, and the field of the entries."""


@dataclass(frozen=True)
class Server:
    """The server at an address. Fields that it does not report are None or empty.

    Attributes:
        engine: a name in `SIGNS`.
        version: of the engine.
        models: names of its models.
        model: name of the one to use.
        context_length: tokens of prompt and answer together.
        info: the response of the engine's own route for information.
        origin: the folder or file on the server's side, or the name on the hub, from which it has loaded the model.
    """

    engine: str
    version: str | None
    models: tuple[str, ...]
    model: str
    context_length: int | None
    info: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    origin: str | None = None


async def identify(client: Client, address: Address, engine: str | None = None) -> Server:
    """The server at an address. It does not have to generate tokens for this.

    Args:
        engine: its name, where the server gives no sign of it.

    Raises:
        UnreachableError: nothing answers.
        UnauthorizedError: the server wants a key.
        UnknownNameError: it has no such model, or there is no such engine.
        ConfigurationError: it is not an OpenAI-compatible server, or has several models and the address names none.
    """
    if engine is not None and engine not in SIGNS:
        raise UnknownNameError("engine", engine, SIGNS)
    try:
        models = await client.get(f"{address.base}/models", attempts=3)
    except ServerError as error:
        # Some gateways have no such route, and `transformers serve` fails without a cache of models.
        lacks_route = error.status == 404 or (error.status == 500 and engine is not None)
        if address.model is not None and lacks_route:
            models = {"data": []}
        elif isinstance(error, (RejectedError, BadResponseError)):
            raise ConfigurationError(
                f"{address.base} lists no models, as an OpenAI-compatible server does: is the path right? {error}"
            ) from error
        else:
            raise
    entries = models.get("data") if isinstance(models, dict) else None
    if not isinstance(entries, list) or not all(isinstance(value_at(entry, ("id",)), str) for entry in entries):
        raise ConfigurationError(f"{address.base}/models answers no list of models: is it an OpenAI-compatible server?")
    entry = _entry(address, entries)
    if engine is None and address.host == OPENAI_HOST:
        engine = "openai"
    engine, info = await _engine(client, address, entry, engine)
    lengths = (
        *(value_at(entry, path) for path in LENGTHS),
        value_at(info, SIGNS[engine].context),
        *(value_at(entry, path) for path in LARGEST_LENGTHS),
    )
    version = value_at(info, SIGNS[engine].key)
    # SGLang's field, most engines' field, llama.cpp's field
    origins = (value_at(info, ("tokenizer_path",)), entry.get("root"), value_at(info, ("model_path",)))
    return Server(
        engine=engine,
        version=str(version) if isinstance(version, (str, int, float)) else None,
        models=tuple(entry["id"] for entry in entries),
        model=entry["id"],
        context_length=next((length for n in lengths if (length := _length(n)) is not None), None),
        info=info if isinstance(info, dict) else {},
        origin=next((name for name in origins if isinstance(name, str) and name), None),
    )


async def loaded_context_length(client: Client, address: Address, server: Server) -> int | None:
    """The context length of the loaded model, where the server loads models with their first request; None if it does
    not report it."""
    if server.engine not in LOADED:
        return None
    path, list_field, length_field = LOADED[server.engine]
    try:
        response = await client.get(f"{address.root}/{path}", attempts=1)
    except MotesError:
        return None
    entries = value_at(response, (list_field,))
    for entry in entries if isinstance(entries, list) else ():
        if server.model in (value_at(entry, ("id",)), value_at(entry, ("model",)), value_at(entry, ("name",))):
            return _length(value_at(entry, (length_field,)))
    return None


def _length(value: Any) -> int | None:
    return whole_number_of(value) or None


def _entry(address: Address, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of the model to use."""
    names = [entry["id"] for entry in entries]
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


async def _engine(client: Client, address: Address, entry: Mapping[str, Any], engine: str | None) -> tuple[str, Any]:
    """The engine, and the response of its own route for information."""
    owner = entry.get("owned_by") or UNKNOWN
    known_engine = engine or next((name for name, sign in SIGNS.items() if sign.owned_by == owner), None)
    for name in [known_engine] if known_engine else SIGNS:
        sign = SIGNS[name]
        for path in sign.paths:
            try:
                info = await client.get(f"{address.root}/{path}", attempts=1)
            except MotesError:
                continue
            if value_at(info, sign.proof or sign.key) is not None:
                return name, info
    return known_engine or UNKNOWN, {}
