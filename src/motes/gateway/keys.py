"""API keys of callers, as `motes.toml` has them.

    [[keys]]
    name = "team-a"
    sha256 = ["…", "…"]              # one digest, or several: the new key and the one that it replaces
    expires = 2026-12-31T12:00:00Z   # or 2026-12-31: to the end of that day in UTC

A key is 256 random bits, which nobody can guess, so a single SHA-256 protects it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, field_validator

from motes.gateway.quotas import DAY, MINUTE, Kind, Quota
from motes.gateway.tables import Name, Part, Positive, Texts, place, valid_or_none


def _as_moment(value: Any) -> Any:
    """The moment in UTC that a date or a time with an offset stands for. A date lasts until its day ends in UTC."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("add the offset from UTC, or Z for UTC itself, as in 2026-12-31T12:00:00Z")
        return value
    if isinstance(value, date):
        return datetime.combine(value, time.max, UTC)
    if value is not None:
        raise ValueError("write a date or a time without quotes, such as 2026-12-31 or 2026-12-31T12:00:00Z")
    return value


Digests = Annotated[
    tuple[str, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
Amount = Annotated[int, Field(ge=1, le=10**12)]
Moment = Annotated[datetime, BeforeValidator(_as_moment)]


class Key(Part):
    """The keys of a caller, and its limits.

    Attributes:
        name: the caller's name in logs and metrics.
        sha256: the hashes of its keys, in hexadecimal digits; a file may have a single one.
        expires: the moment after which the keys are refused; None: never.
        concurrency: maximum number of requests in flight or waiting.
        requests_per_minute, tokens_per_minute, tokens_per_day, particles_per_minute, particles_per_day: quotas, see
            `motes.gateway.quotas`; None: no limit.
        models: virtual models that the keys give access to; None: all.
    """

    name: Name
    sha256: Digests
    expires: Moment | None = None
    concurrency: Positive = 64
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    tokens_per_day: Amount | None = None
    particles_per_minute: Amount | None = None
    particles_per_day: Amount | None = None
    models: Texts | None = None

    @field_validator("sha256")
    @classmethod
    def _check_digests(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in digests):
            raise ValueError("must be the SHA-256 of a key, 64 lower-case hexadecimal digits, as `motes key` prints it")
        if len(set(digests)) < len(digests):
            raise ValueError("has the same digest twice")
        return digests

    def quotas(self) -> list[Quota]:
        """The quotas that the entry sets."""
        quotas = []
        for kind in get_args(Kind):
            for period, name in ((MINUTE, "minute"), (DAY, "day")):
                if (amount := getattr(self, f"{kind}_per_{name}", None)) is not None:
                    quotas.append(Quota(kind, period, amount))
        return quotas

    @classmethod
    def make(cls, name: str) -> tuple[str, Key]:
        """A new key: the secret, which is stored nowhere, and its entry in the configuration."""
        secret = f"motes-{secrets.token_urlsafe(32)}"
        return secret, cls(name=name, sha256=(digest(secret),))


def digest(secret: str) -> str:
    """The hash of a key, as the configuration has it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find_key(keys: Iterable[Key], secret: str) -> Key | None:
    """The entry of a secret, None if it has none. The secret is compared with every key, and in constant time."""
    sha256 = digest(secret)
    matches = [key for key in keys for known in key.sha256 if hmac.compare_digest(known, sha256)]
    return matches[-1] if matches else None


def faults_between(keys: Sequence[Any], models: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The faults between the entries of keys, and between keys and models, with their places. Entries with faults of
    their own are left out."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for number, entry in enumerate(keys):
        if (key := valid_or_none(Key, entry)) is None:
            continue
        if key.name in names:
            yield place("keys", number, "name"), f"two keys have the same name, {key.name!r}: list both digests in one"
        names.add(key.name)
        for sha256 in key.sha256:
            if sha256 in owners:
                message = f"{owners[sha256]!r} has the same key: make a key for each caller"
                yield place("keys", number, "sha256"), message
            owners.setdefault(sha256, key.name)
        for name in key.models or ():
            if name not in models:
                yield place("keys", number, "models"), f"the key {key.name!r} may ask for {name!r}, which is no model"
