"""API keys of callers, as `motes.toml` has them.

A key is 256 random bits, which nobody can guess, so a single SHA-256 protects it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import field_validator

from motes.gateway.tables import Name, Part, Positive, Texts, place, valid_or_none


class Key(Part):
    """An API key.

    Attributes:
        name: the caller's name in logs and metrics.
        sha256: the key's hash, in hexadecimal digits.
        concurrency: maximum number of requests in flight or waiting.
        requests_per_minute: maximum rate of new requests; None: no limit.
        models: virtual models that the key gives access to; None: all.
    """

    name: Name
    sha256: str
    concurrency: Positive = 64
    requests_per_minute: Positive | None = None
    models: Texts | None = None

    @field_validator("sha256")
    @classmethod
    def _check_digest(cls, sha256: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError("must be the SHA-256 of a key, 64 lower-case hexadecimal digits, as `motes key` prints it")
        return sha256

    @classmethod
    def make(cls, name: str) -> tuple[str, Key]:
        """A new key: the secret, which is stored nowhere, and its entry in the configuration."""
        secret = f"motes-{secrets.token_urlsafe(32)}"
        return secret, cls(name=name, sha256=digest(secret))


def digest(secret: str) -> str:
    """The hash of a key, as the configuration has it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def faults_between(keys: Sequence[Any], models: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for number, entry in enumerate(keys):
        if (key := valid_or_none(Key, entry)) is None:
            continue
        if key.name in names:
            yield place("keys", number, "name"), f"two keys have the same name, {key.name!r}: give each its own"
        names.add(key.name)
        if (owner := owners.setdefault(key.sha256, key.name)) != key.name:
            yield place("keys", number, "sha256"), f"the key is that of {owner!r}, too: make one for each"
        for name in key.models or ():
            if name not in models:
                yield place("keys", number, "models"), f"the key {key.name!r} may ask for {name!r}, which is no model"
