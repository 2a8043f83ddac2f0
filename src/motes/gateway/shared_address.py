"""The address of the server through which several gateways share their quotas.

    redis://HOST:6379/0     rediss:// with TLS     unix:///run/redis.sock?db=0

The address in the configuration has no password. One with a password is in the environment variable
`MOTES_SHARED_LIMITS`, as redis://USER:PASSWORD@HOST:6379/0 or unix:///run/redis.sock?password=PASSWORD, and replaces
that of the configuration.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator

from motes.errors import ConfigurationError

VARIABLE = "MOTES_SHARED_LIMITS"
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
OPTIONS = {"redis": ("db",), "rediss": ("db", *TLS_OPTIONS), "unix": ("db",)}
"""What may stand behind the "?" of an address, by its scheme."""
MOST_CHARACTERS = 1000


@dataclass(frozen=True)
class Address:
    """A server's address.

    Attributes:
        url: all of it, maybe with a password.
        shown: for logs and metrics, without user, password and options.
    """

    url: str = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, text: str, *, may_have_password: bool = False) -> Address:
        """Check an address.

        Raises:
            ValueError: it is not one, or has a password that it may not have. The message does not quote it.
        """
        if not (text.isprintable() and " " not in text and 0 < len(text) <= MOST_CHARACTERS):
            raise _error(f"it has no blanks and at most {MOST_CHARACTERS} characters")
        try:
            parts = urlsplit(text)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            raise _error("its host or an option is malformed") from None
        options = dict(pairs)
        if len(options) < len(pairs):
            raise _error("it has an option twice")
        if parts.scheme not in OPTIONS:
            raise _error("it begins with redis://, rediss:// or unix://")
        if not may_have_password and ("@" in text or "password" in options or "username" in options):
            raise ValueError(
                f"a password does not belong into this file: put the whole address into the environment variable "
                f"{VARIABLE}"
            )
        if parts.fragment:
            raise _error('it has no "#"; in a password, write %23')
        allowed = (*OPTIONS[parts.scheme], *(("username", "password") if may_have_password else ()))
        if unknown := options.keys() - set(allowed):
            raise _error(f"behind the ? there may be {', '.join(OPTIONS[parts.scheme])}; not {len(unknown)} other")
        path, database = unquote(parts.path), options.get("db", "")
        if parts.scheme == "unix":
            if parts.hostname or not path.startswith("/") or path.endswith("/"):
                raise _error("the path of a socket is absolute: unix:///run/redis.sock")
            place = path
        else:
            place = _host_and_port(text)
            database = path.strip("/") or database
        if database and not (database.isascii() and database.isdecimal()):
            raise _error("the number of its database is a whole number, such as 0")
        return cls(text, f"{parts.scheme}://{place}")


def _host_and_port(text: str) -> str:
    """The host and the port of an address as a text. Raises ValueError if there is no host, or no such port."""
    parts = urlsplit(text)
    host = parts.hostname
    try:
        port = 6379 if parts.port is None else parts.port
        is_host = bool(host and host.encode("idna"))
    except ValueError:
        port, is_host = 0, False
    if not host or not is_host or port == 0:
        raise _error("it names a host, and a port from 1 to 65535 or none; in a password, write %2F for a slash")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _error(reason: str) -> ValueError:
    return ValueError(
        f"Input should be the address of a Redis or Valkey server, such as redis://HOST:6379/0, rediss://HOST:6379/0 "
        f"or unix:///run/redis.sock: {reason}"
    )


def _check(text: str) -> str:
    Address.parse(text)
    return text


SharedAddress = Annotated[str, AfterValidator(_check)]


def shared_address(configured: str | None) -> Address | None:
    """The address in the environment, else the configured one; None where there is neither.

    Raises:
        ConfigurationError: that of the environment is not an address.
    """
    if text := os.environ.get(VARIABLE, "").strip():
        try:
            return Address.parse(text, may_have_password=True)
        except ValueError as error:
            raise ConfigurationError(f"the environment variable {VARIABLE}: {error}") from None
    return None if configured is None else Address.parse(configured)
