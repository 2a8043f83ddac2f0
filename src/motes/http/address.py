"""Where a served model is: `http://HOST:PORT/v1#MODEL`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from motes.errors import ConfigurationError

KEY_VARIABLE = "MOTES_API_KEY"
OPENAI_HOST = "api.openai.com"


@dataclass(frozen=True)
class Address:
    """A server and one of its models.

    Attributes:
        base: URL of the OpenAI-compatible part, as a rule ending in "/v1".
        model: None: the one that the server has.
    """

    base: str
    model: str | None = None

    @classmethod
    def parse(cls, spec: str) -> Address:
        """Read "http://HOST:PORT/v1#MODEL"; without a path, "/v1" is added.

        Raises:
            ConfigurationError: that is no such URL.
        """
        parts = urlsplit(spec)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"{spec!r} is no address of a model: write http://HOST:PORT/v1#MODEL")
        if parts.username or parts.password:
            raise ConfigurationError(f"a key does not belong into an address: put it into {KEY_VARIABLE}")
        path = parts.path.rstrip("/") or "/v1"
        return cls(f"{parts.scheme}://{parts.netloc}{path}", parts.fragment or None)

    @property
    def root(self) -> str:
        """URL of the server itself, where engines have routes of their own."""
        return self.base.removesuffix("/v1")

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or ""

    def key(self, variable: str | None = None) -> str | None:
        """The API key that the environment holds for this server.

        A general key is never sent where it may not belong: OPENAI_API_KEY goes to OpenAI only.

        Args:
            variable: where it is; by default MOTES_API_KEY, and OPENAI_API_KEY for OpenAI.

        Raises:
            ConfigurationError: the named variable is not set.
        """
        if variable is not None:
            if not os.environ.get(variable):
                raise ConfigurationError(f"the environment variable {variable} is not set: put the API key into it")
            return os.environ[variable]
        own = os.environ.get("OPENAI_API_KEY") if self.host == OPENAI_HOST else None
        return os.environ.get(KEY_VARIABLE) or own or None

    def __str__(self) -> str:
        return f"{self.base}#{self.model}" if self.model else self.base
