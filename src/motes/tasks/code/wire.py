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
    for base, write in _WRITERS:
        if isinstance(value, base):
            return write(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        kind = str(value.dtype.kind)
        items = value.tolist()
        if kind not in _DTYPES or not getattr(value, "shape", ()):
            return encode(items) if isinstance(items, (int, float, complex, str)) else {"opaque": kind}
        return {"array": [str(value.dtype.str), encode(items)]}
    return {"opaque": type(value).__name__}


def decode(data: Any) -> Any:
    """The value that `encode` turned into `data`.

    Raises:
        ValueError, TypeError, KeyError: `encode` never returns such data.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if isinstance(data, dict):
        ((tag, content),) = data.items()
        return _READERS[tag](content)
    return data


def _encode_integer(value: int) -> Any:
    plain = int(value)
    return plain if abs(plain) < _INTEGER_LIMIT else {"int": hex(plain)}  # Python does not limit hexadecimal digits


def _decode_array(content: Any) -> Any:
    import numpy as np

    return np.array(decode(content[1]), dtype=np.dtype(str(content[0])))


def _encode_items(value: Any) -> list[Any]:
    return [encode(item) for item in value]


_WRITERS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, _encode_integer),
    (float, float),
    (str, str),
    (list, _encode_items),
    (tuple, lambda value: {"tuple": _encode_items(value)}),
    (dict, lambda value: {"dict": [[encode(key), encode(item)] for key, item in value.items()]}),
    (set, lambda value: {"set": _encode_items(value)}),
    (frozenset, lambda value: {"frozenset": _encode_items(value)}),
    (complex, lambda value: {"complex": [value.real, value.imag]}),
    (bytes, lambda value: {"bytes": value.hex()}),
    (bytearray, lambda value: {"bytearray": value.hex()}),
    (range, lambda value: {"range": _encode_items((value.start, value.stop, value.step))}),
    (Fraction, lambda value: {"fraction": _encode_items((value.numerator, value.denominator))}),
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
        OSError: the other side is gone.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    connection.sendall(struct.pack("!I", len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """The next message. Its content cannot be trusted.

    Raises:
        EOFError: the other side is gone.
        ValueError: it is too long, or not JSON.
        RecursionError: it is nested too deeply.
    """
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
