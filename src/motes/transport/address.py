"""Addresses of served models, `http://HOST:PORT/v1#MODEL`, and the values of options after them, `?attempts=3`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from motes.errors import ConfigurationError
from motes.text import well_formed
from motes.transport.key import Key

NumberT = TypeVar("NumberT", int, float)

KEY_VARIABLE = "MOTES_API_KEY"
OPENAI_HOST = "api.openai.com"
MOST = 1_000_000_000
"""The largest number that an option can be. Clocks and sockets fail at some larger ones."""


@dataclass(frozen=True)
class Address:
    """A server and one of its models.

    Attributes:
        base: URL of the OpenAI-compatible part, usually ending in "/v1".
        model: None: the server's only model.
    """

    base: str
    model: str | None = None

    @classmethod
    def parse(cls, spec: str) -> Address:
        """The address in "http://HOST:PORT/v1#MODEL". The default path is "/v1".

        Raises:
            ConfigurationError: it is no such URL.
        """
        spec = well_formed(spec.strip())
        try:
            parts = urlsplit(spec)
        except ValueError:
            raise _address_error(spec, "its host is not an IPv6 address") from None
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError(f"a key does not belong into an address: put it into {KEY_VARIABLE}")
        if parts.scheme not in ("http", "https"):
            raise _address_error(spec, "it begins with neither http:// nor https://")
        if not parts.hostname or re.search(r"[\s\0-\x1f\x7f]", parts.netloc):
            raise _address_error(spec, "it names no host")
        try:
            is_port = parts.port != 0
        except ValueError:
            is_port = False
        if not is_port:
            raise _address_error(spec, "its port is not a number from 1 to 65535")
        if parts.query:
            raise _address_error(spec, "options stand behind the model's name, and a server's own query cannot be sent")
        path = parts.path.rstrip("/") or "/v1"
        return cls(f"{parts.scheme}://{parts.netloc}{path}", parts.fragment or None)

    @property
    def root(self) -> str:
        """URL of the server itself, below which engines have their own routes."""
        return self.base.removesuffix("/v1")

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or ""

    def key(self, variable: str | None = None) -> str | None:
        """The API key for this server in the environment; None where there is none.

        OPENAI_API_KEY is for OpenAI only: no other server receives it.

        Args:
            variable: its environment variable; by default MOTES_API_KEY, and OPENAI_API_KEY for OpenAI.

        Raises:
            ConfigurationError: `variable` is not set, or a header cannot contain the key.
        """
        if variable is not None:
            key = Key.clean(os.environ.get(str(variable)), str(variable))
            if key is None:
                raise ConfigurationError(f"the environment variable {variable} is not set: put the API key into it")
            return key.value
        variables = [KEY_VARIABLE, *(["OPENAI_API_KEY"] if self.host == OPENAI_HOST else [])]
        keys = (Key.clean(os.environ.get(variable), variable) for variable in variables)
        return next((key.value for key in keys if key is not None), None)

    def __str__(self) -> str:
        return f"{self.base}#{self.model}" if self.model else self.base


def _address_error(spec: str, reason: str) -> ConfigurationError:
    without_password = re.sub(r"(?s)//.*@", "//", spec)  # which may contain a slash or a #
    return ConfigurationError(
        f"{without_password!r} is no address of a model ({reason}): write http://HOST:PORT/v1#MODEL, an IPv6 host in "
        "brackets, http://[::1]:8000/v1"
    )


def seconds(name: str, value: object) -> float:
    """An option of a model's spec that is a number of seconds. Raises ConfigurationError if it is not positive."""
    return _positive(name, value, float, "a number of seconds")


def whole_number(name: str, value: object) -> int:
    """An option of a model's spec that is a whole number. Raises ConfigurationError if it is not, or less than 1."""
    return _positive(name, value, int, "a whole number")


def _positive(name: str, value: Any, kind: Callable[[Any], NumberT], expected: str) -> NumberT:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = kind(0)
    if isinstance(value, bool) or not 0 < number <= MOST or (isinstance(value, float) and value != number):
        bounds = f"more than 0 and at most {MOST:,}" if number > MOST else "more than 0"
        raise ConfigurationError(f"{name} must be {bounds}, {expected}, not {value!r}")
    return number


def flag(name: str, value: object) -> bool | None:
    """An option of a model's spec that is 0 or 1; None where it is left out. Raises ConfigurationError otherwise."""
    if value is None:
        return None
    if value not in (0, 1):
        raise ConfigurationError(f"{name} must be 0 or 1, not {value!r}")
    return bool(value)
