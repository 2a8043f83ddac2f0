"""JSON bodies of requests, with bounds that are checked before the body is validated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request as HTTPRequest

from motes.gateway.errors import RefusedError
from motes.gateway.leniency import leave_out
from motes.gateway.wire import Request
from motes.text import parse_json, shortened
from motes.threads import in_thread_if_long

BodyT = TypeVar("BodyT", bound=BaseModel)
ToRequest = Callable[[BodyT], tuple[Request, Sequence[str]]]
"""Makes a request of a body, and returns the names of the body's fields that are ignored with it."""

MAX_VALUES = 50_000
"""Maximum number of values in a body: objects, lists, texts, numbers, true, false and null."""
MAX_DEPTH = 64
MAX_NAMES = 1000
"""Maximum number of fields of one object."""
MAX_DIGITS = 20
"""Maximum number of digits of a whole number. A seed has 64 bits."""

VALIDATION_MESSAGES = {
    "extra_forbidden": "there is no such field",
    "model_type": "Input should be a JSON object",
    "model_attributes_type": "Input should be a JSON object",
    "too_short": "Input should have at least {min_length} item",
    "too_long": "Input should have at most {max_length} items, not {actual_length}",
}
"""Messages for clients by pydantic's type of error. They replace pydantic's own, which are for Python programmers."""


async def read_json(http: HTTPRequest) -> Any:
    """The JSON value in the body of a request. Raises RefusedError if it is not JSON."""
    media_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Web pages of other origins can send bodies of other types without asking.
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise RefusedError("the body should be a JSON object, sent with `Content-Type: application/json`")
    content = await http.body()
    return await in_thread_if_long(len(content), parse_body, content)


async def read_fields(
    http: HTTPRequest, value: Any, kind: type[BodyT], to_request: ToRequest[BodyT], *, strict: bool
) -> tuple[BodyT, Request, list[str]]:
    """The fields in the JSON value of a request, the request that they make, and the names of fields that are ignored;
    none if `strict`.

    Raises:
        RefusedError: it exceeds a bound, or does not have the form of `kind`. The message names the first fault.
    """
    length = 10 * len(await http.body())  # a tool's schema takes ten times as long as a text
    return await in_thread_if_long(length, validate, value, kind, to_request, strict)


def parse_body(content: bytes) -> Any:
    """See `read_json`."""
    try:
        return parse_json(content, parse_int=_integer, parse_float=_number, parse_constant=_number)
    except RefusedError:
        raise
    except ValueError as error:
        raise RefusedError(f"the body is not JSON: {error}") from None


def validate(
    value: Any, kind: type[BodyT], to_request: ToRequest[BodyT], strict: bool
) -> tuple[BodyT, Request, list[str]]:
    """See `read_fields`."""
    _require_bounded(value)
    value, ignored = leave_out(value, kind, strict=strict)
    body = validated(value, kind)
    request, more = to_request(body)
    if strict and more:
        raise RefusedError(f"{more[0]}: this has no effect: leave it out", more[0])
    return body, request, list(dict.fromkeys([*ignored, *more]))


def validated(value: Any, kind: type[BodyT], names: Mapping[str, str] | None = None) -> BodyT:
    """A JSON value in the form of `kind`.

    Args:
        names: the client's names of fields, see `client_field`.

    Raises:
        RefusedError: it does not have that form. The message names the first fault.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
    field = shortened(client_field(".".join(map(str, fault["loc"])), names or {}), 100) or None
    reason = VALIDATION_MESSAGES.get(fault["type"], "").format_map(fault.get("ctx", {}))
    reason = reason or fault["msg"].removeprefix("Value error, ")
    raise RefusedError(f"{field or 'body'}: {reason}", field)


def client_field(field: str, names: Mapping[str, str]) -> str:
    """The client's name of a field, such as "tools.0.name" for "tools.0.function.name".

    Args:
        names: the client's names, by patterns of the beginnings of fields' names. The first one that matches counts.
    """
    for pattern, name in names.items():
        if (match := re.match(rf"(?:{pattern})(?=\.|$)", field)) is not None:
            return match.expand(name) + field[match.end() :]
    return field


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise RefusedError("the body has a number with too many digits")
    return int(digits)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RefusedError(f"the body has a number that is not finite: {text[:MAX_DIGITS]}")
    return number


def _require_bounded(value: Any) -> None:
    """Raise RefusedError if a JSON value has too many parts."""
    count, level = 1, [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, (dict, list)):
                count += len(item)
                if count > MAX_VALUES or (isinstance(item, dict) and len(item) > MAX_NAMES):
                    raise RefusedError(
                        f"the body has too many values: at most {MAX_VALUES:,}, and {MAX_NAMES:,} fields of one object"
                    )
                below += item.values() if isinstance(item, dict) else item
        if not below:
            return
        level = below
    raise RefusedError(f"the body is nested too deeply: at most {MAX_DEPTH} levels")
