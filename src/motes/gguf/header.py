"""The header of a GGUF file: its metadata and the list of its tensors, without the weights.

The format is in ggml's docs/gguf.md. The reader of the package `gguf` makes several objects for each token, which takes
2.3 seconds for a vocabulary of 49,152 (here 0.2), and it reads beyond the end of a damaged file.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from motes import files

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_STRING = 1 << 26
"""Maximum number of bytes of a name or a text: far more than any chat template has."""

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers, in the notation of `struct`."""


class UnusableError(ValueError):
    """No program on this machine can read a GGUF file. The message ends in the remedy."""


class DamagedError(ValueError):
    """A GGUF file is damaged."""


@dataclass(frozen=True)
class Tensor:
    """An entry in the list of tensors."""

    name: str
    shape: tuple[int, ...]  # in the order of ggml: the one that varies fastest comes first
    type: int  # the number of a quantisation, `gguf.GGMLQuantizationType`
    start: int  # offset in the file, in bytes

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Header:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        size: its size, in bytes.
        metadata: numbers, texts and lists of these by key, such as "general.architecture".
        tensors: in the order of the file.
    """

    path: Path
    size: int
    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The metadata of the architecture, such as "context_length", without the architecture's name."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}

    def get(self, key: str, kind: type) -> Any:
        """The value of a key; None if there is none, or one of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, kind) and not (kind is int and isinstance(value, bool)) else None

    def items(self, key: str, kind: type) -> list[Any]:
        """The list that is the value of a key; empty if there is none.

        Raises:
            DamagedError: the value is something else, or its items have another type.
        """
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or (value and not isinstance(value[0], kind)):
            raise DamagedError(f"it is damaged: {key!r} is no list of {'texts' if kind is str else 'numbers'}")
        return value


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do. Raises OSError if it cannot be read."""
    with files.open_to_read(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no GGUF file, or one of an unknown version.
        UnusableError: it is one of an old version, or of another byte order.
        DamagedError: it is damaged.
    """
    with files.open_to_read(path) as file:
        reader = _Reader(file)
        if reader.take(4) != MAGIC:
            raise ValueError("it does not begin as a GGUF file does")
        version = reader.number("I")
        if version not in VERSIONS:
            if int.from_bytes(int(version).to_bytes(4, "little"), "big") in VERSIONS:
                raise UnusableError(
                    "it has the byte order of big-endian machines: convert it (`gguf-convert-endian FILE little`, of "
                    "the package `gguf`), or fetch the usual file"
                )
            if version < min(VERSIONS):
                raise UnusableError(f"it has version {version}, which no current program reads: fetch a newer file")
            raise ValueError(f"it has version {version}, and only {' and '.join(map(str, VERSIONS))} are known")
        num_tensors, num_keys = reader.number("Q"), reader.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = reader.string()
            if key in metadata:
                raise DamagedError(f"it is damaged: the key {key!r} occurs twice")
            metadata[key] = reader.value(reader.number("I"))
        entries = [reader.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise DamagedError(f"it is damaged: its alignment is {alignment!r}")
        start = -(-file.tell() // alignment) * alignment
        tensors = tuple(Tensor(name, shape, kind, start + offset) for name, shape, kind, offset in entries)
        return Header(path, reader.size, metadata, tensors)


class _Reader:
    """Reads the values of a header one after the other. It never reads beyond the end of the file."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def take(self, length: int) -> bytes:
        content = self.file.read(length) if length <= self.size - self.file.tell() else b""
        if len(content) < length:
            raise DamagedError("it is damaged: it ends within its header")
        return content

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        if (length := self.number("Q")) > MAX_STRING:
            raise DamagedError(f"it is damaged: a text has {length:,} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise DamagedError(f"it is damaged: a text in its header is not UTF-8 ({error.reason})") from error

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise DamagedError(f"it is damaged: a value has the unknown type {kind}")
        item = self.number("I")
        if item == STRING:
            return [self.string() for _ in range(self.number("Q"))]
        if item not in SCALARS:
            raise DamagedError(f"it is damaged: a list has items of the type {item}")
        dtype = np.dtype(SCALARS[item]).newbyteorder("<")
        return np.frombuffer(self.take(self.number("Q") * dtype.itemsize), dtype).tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dimensions = self.string(), self.number("I")
        if num_dimensions > 8:
            raise DamagedError(f"it is damaged: the tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(num_dimensions))
        return name, shape, self.number("I"), self.number("Q")
