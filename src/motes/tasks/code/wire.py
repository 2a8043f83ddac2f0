"""Plain data as JSON text: what the tests hand a program, and what it returns.

Numbers, texts, bytes, lists, tuples, dicts, sets, ranges, fractions, decimals and numpy's arrays arrive as what they
are; an object of a subclass as one of its base class; anything else as an `Opaque`, which equals nothing. So no code
of the program comes along: no `__eq__` that always agrees, no number that is equal to every other.

It imports nothing of motes, since the sandbox's own process loads it as a file.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_BYTES = 64 << 20
"""Of one message."""
_LARGEST_PLAIN = 1 << 63
_DTYPES = frozenset("biufc")


class Opaque:
    """A value that is no plain data: it equals nothing but itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def encode(value: Any) -> Any:
    """A value as what JSON can hold: {TAG: …} where JSON has no such thing."""
    if value is None or isinstance(value, bool):
        return value
    for base, write in _WRITERS:
        if isinstance(value, base):
            return write(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        kind = str(value.dtype.kind)
        listed = value.tolist()
        if kind not in _DTYPES or not getattr(value, "shape", ()):
            return encode(listed) if isinstance(listed, (int, float, complex, str)) else {"opaque": kind}
        return {"array": [str(value.dtype.str), encode(listed)]}
    return {"opaque": type(value).__name__}


def decode(data: Any) -> Any:
    """What `encode` made JSON of.

    Raises:
        ValueError, TypeError, KeyError: it is nothing that `encode` makes.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if isinstance(data, dict):
        ((tag, content),) = data.items()
        return _READERS[tag](content)
    return data


def _encode_integer(value: int) -> Any:
    plain = int(value)
    return plain if abs(plain) < _LARGEST_PLAIN else {"int": hex(plain)}  # no limit on the digits of hexadecimals


def _decode_array(content: Any) -> Any:
    import numpy as np

    return np.array(decode(content[1]), dtype=np.dtype(str(content[0])))


def _listed(value: Any) -> list[Any]:
    return [encode(item) for item in value]


_WRITERS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, _encode_integer),
    (float, float),
    (str, str),
    (list, _listed),
    (tuple, lambda value: {"tuple": _listed(value)}),
    (dict, lambda value: {"dict": [[encode(key), encode(item)] for key, item in value.items()]}),
    (set, lambda value: {"set": _listed(value)}),
    (frozenset, lambda value: {"frozenset": _listed(value)}),
    (complex, lambda value: {"complex": [value.real, value.imag]}),
    (bytes, lambda value: {"bytes": value.hex()}),
    (bytearray, lambda value: {"bytearray": value.hex()}),
    (range, lambda value: {"range": _listed((value.start, value.stop, value.step))}),
    (Fraction, lambda value: {"fraction": _listed((value.numerator, value.denominator))}),
    (Decimal, lambda value: {"decimal": str(value)}),
)

_READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda content: int(content, 16),
    "tuple": lambda content: tuple(map(decode, content)),
    "dict": lambda content: {decode(key): decode(item) for key, item in content},
    "set": lambda content: set(map(decode, content)),
    "frozenset": lambda content: frozenset(map(decode, content)),
    "complex": lambda content: complex(*content),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda content: range(*map(decode, content)),
    "fraction": lambda content: Fraction(*map(decode, content)),
    "decimal": Decimal,
    "array": _decode_array,
    "opaque": lambda content: Opaque(str(content)),
}


def send(connection: socket.socket, message: Any) -> None:
    """Send one message.

    Raises:
        OSError: nobody reads any more.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    connection.sendall(struct.pack("!I", len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """The next message; what it holds is anybody's word.

    Raises:
        EOFError: the other side is gone.
        ValueError: it is too long, or no JSON.
        RecursionError: it is nested too deeply.
    """
    (length,) = struct.unpack("!I", _read(connection, 4))
    if length > MOST_BYTES:
        raise ValueError("the message is too long")
    return json.loads(_read(connection, length))


def _read(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
