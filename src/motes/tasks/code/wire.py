"""Plain data as JSON text: the arguments that tests pass to a program, and the program's results.

Numbers, texts, bytes, lists, tuples, dicts, sets, ranges, fractions, decimals and numpy's arrays arrive unchanged; an
object of a subclass arrives as one of its base class; anything else as an `Opaque`, which equals nothing. So no code of
the program is transmitted: no `__eq__` that always agrees, no number that is equal to every other.

This module imports nothing of motes, since the sandbox's own process loads it as a file.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BYTES = 64 << 20
"""Maximum size of a message."""
_INTEGER_LIMIT = 1 << 63
_DTYPES = frozenset("biufc")


class Opaque:
    """A value that is not plain data: it equals nothing but itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def encode(value: Any) -> Any:
    """A value in a form that JSON can hold: {TAG: …} for types that JSON does not have."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(int(value)) < _INTEGER_LIMIT:
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for tag, (base, write, _) in _TYPES.items():
        if isinstance(value, base):
            return {tag: encode(write(value))}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        kind = str(value.dtype.kind)
        items = value.tolist()
        if kind not in _DTYPES or not getattr(value, "shape", ()):
            return encode(items) if isinstance(items, (int, float, complex, str)) else {"opaque": kind}
        return {"array": [str(value.dtype.str), encode(items)]}
    return {"opaque": type(value).__name__}


def decode(data: Any) -> Any:
    """The value that `encode` turned into `data`. Raises ValueError, TypeError or KeyError for other data."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    match tag:
        case "dict":
            return {decode(key): decode(item) for key, item in content}
        case "array":
            import numpy as np

            return np.array(decode(content[1]), dtype=np.dtype(str(content[0])))
        case "opaque":
            return Opaque(str(content))
    return _TYPES[tag][2](decode(content))


_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, lambda value: hex(int(value)), lambda digits: int(digits, 16)),  # Python limits decimal digits alone
    "tuple": (tuple, list, tuple),
    "set": (set, list, set),
    "frozenset": (frozenset, list, frozenset),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda ends: range(*ends)),
    "fraction": (Fraction, lambda value: [value.numerator, value.denominator], lambda parts: Fraction(*parts)),
    "decimal": (Decimal, str, Decimal),
}
"""Types by their tags, with their content as simpler values, and the value of such content."""


def send(connection: socket.socket, message: Any) -> None:
    """Send one message. Raises OSError if the other side is gone."""
    data = json.dumps(message, separators=(",", ":")).encode()
    connection.sendall(struct.pack("!I", len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """The next message, whose content cannot be trusted. Raises EOFError if the other side is gone, ValueError if the
    message is too long or not JSON, RecursionError if it is nested too deeply."""
    (length,) = struct.unpack("!I", _read(connection, 4))
    if length > MAX_BYTES:
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
