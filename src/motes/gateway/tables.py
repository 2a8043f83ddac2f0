"""The tables of `motes.toml`: the types of values, and faults with their places."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from motes.errors import closest
from motes.text import shortened

PartT = TypeVar("PartT", bound="Part")

MAX_COUNT = 1_000_000_000
MAX_SECONDS = 7 * 86_400
MAX_NAME = 256
"""Maximum number of characters of a name. Requests cannot name longer ones."""


def _check_name(name: str) -> str:
    if not name.strip():
        raise ValueError("a name must not be blank")
    if name != name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} printable characters, and no blank at its ends")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Spec = Annotated[str, Field(max_length=1000)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # a list, in a file


class Part(BaseModel):
    """A table of the file. Unknown keys and values of other types are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FaultsError(ValueError):
    """The faults of a table.

    Attributes:
        faults: a message for each place.
    """

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{place}: {message}" for place, message in faults.items()))
        self.faults = dict(faults)


MESSAGES: Mapping[str, str] = {
    "dict_type": "Input should be a table",
    "mapping_type": "Input should be a table",
    "model_type": "Input should be a table",
    "tuple_type": "Input should be a list",
}
"""Messages by pydantic's type of error. They replace pydantic's own, which are for Python programmers."""


def place(*path: str | int) -> str:
    """The place of a value, as TOML writes it: models."my model".lm. The entries of a list are counted from 0."""
    bare = [
        str(key) if re.fullmatch(r"[\w-]+", str(key), re.ASCII) else json.dumps(shortened(str(key), 80)) for key in path
    ]
    return ".".join(bare)


def faults_of(error: ValidationError) -> dict[str, str]:
    """The faults that pydantic has found, by their places. No message quotes a value, which may be a secret."""
    faults: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_input=False):
        path = [key for key in fault["loc"] if key != "[key]"]
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, FaultsError):
            faults = {**cause.faults, **faults}
            continue
        message = MESSAGES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
        if fault["type"] == "extra_forbidden":
            message += _suggestion(str(path[-1]))
        faults.setdefault(place(*path), message)
    return faults


def valid_or_none(kind: type[PartT], table: Any) -> PartT | None:
    """The table as a `kind`; None if it has faults."""
    try:
        return kind.model_validate(table)
    except ValidationError:
        return None


def _suggestion(name: str) -> str:
    known = {field for kind in Part.__subclasses__() for field in kind.model_fields}
    close = closest(shortened(name, 40), known - {name})
    return f": did you mean {close!r}?" if close else ""
