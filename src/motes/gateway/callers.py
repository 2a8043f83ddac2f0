"""The callers of the gateway: who has which key, and the state of each caller's limits, which outlives a new file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from motes.gateway.admission import Caller
from motes.gateway.errors import RefusedError
from motes.gateway.keys import Key, find_key
from motes.gateway.quotas import Counters, LocalCounters, Quotas


class Callers:
    """The callers that have keys.

    Args:
        keys: the entries of the configuration.
        clock: returns the time in seconds since 1970.
        counters: of the callers' quotas.
    """

    def __init__(
        self, keys: Sequence[Key], clock: Callable[[], float] = time.time, counters: Counters | None = None
    ) -> None:
        self._clock, self._counters = clock, counters or LocalCounters()
        self._keys: tuple[Key, ...] = ()
        self._callers: dict[str, Caller] = {}
        self.replace(keys)

    @property
    def keys(self) -> tuple[Key, ...]:
        """The entries that count now."""
        return self._keys

    def replace(self, keys: Sequence[Key]) -> None:
        """Replace all keys and limits. Requests in flight continue. A caller with the same name keeps the state
        of its limits."""
        callers = {}
        for key in keys:
            caller = self._callers.get(key.name) or Caller(key.name, key.concurrency)
            caller.concurrency = key.concurrency
            caller.quotas = Quotas(key.name, key.quotas(), self._counters, self._clock)
            callers[key.name] = caller
        self._keys, self._callers = tuple(keys), callers

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def identify(self, authorization: str) -> tuple[Caller, Key]:
        """The caller whose key is in the value of a header `Authorization`, and the entry of its key.

        Raises:
            RefusedError: the key is missing, unknown or expired.
        """
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        key = find_key(self._keys, secret) if scheme.lower() == "bearer" else None
        if key is not None and (key.expires is None or self._now() <= key.expires):
            return self._callers[key.name], key
        if key is not None:
            message = "this API key has expired"
        elif secret:
            message = "this API key is not known"
        else:
            message = "no API key: send it as `Authorization: Bearer KEY`"
        raise RefusedError(message, status=401, code="invalid_api_key")
