"""JSON schemas that clients send: values are checked by jsonschema, within bounds on time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from motes.gateway.errors import RefusedError

MAX_CHECKS = 20_000
"""Maximum number of keywords that are applied to one value: schemas that refer to themselves can double the work at
each level."""

UNCHECKED = ("pattern", "patternProperties", "format")
"""Keywords that are left to the server's grammar: some regular expressions take forever."""


class _TooManyChecksError(Exception):
    pass


class Schema:
    """A JSON schema (draft 2020-12). References lead only to places within it.

    Raises:
        RefusedError: it is no such schema. `field` names its place in the request.
    """

    def __init__(self, schema: Any, field: str) -> None:
        try:
            Draft202012Validator.check_schema(schema)
        except (SchemaError, RecursionError) as error:
            reason = error.message[:200] if isinstance(error, SchemaError) else "it is nested too deeply"
            raise RefusedError(f"{field} is no JSON schema: {reason}", field) from None
        self._schema = schema

    def accepts(self, value: Any) -> bool:
        """Whether a JSON value has this schema; False if that takes too long to find out."""
        num_checks = 0

        def counted(keyword: Any) -> Any:
            def check(*arguments: Any) -> Iterator[ValidationError]:
                nonlocal num_checks
                num_checks += 1
                if num_checks > MAX_CHECKS:
                    raise _TooManyChecksError
                yield from keyword(*arguments) or ()

            return check

        keywords: Mapping[str, Any] = Draft202012Validator.VALIDATORS
        bounded = extend(
            Draft202012Validator,
            {name: counted(keyword) for name, keyword in keywords.items() if name not in UNCHECKED}
            | dict.fromkeys(UNCHECKED, _accept),
        )
        try:
            return bool(bounded(self._schema, registry=Registry()).is_valid(value))
        except (_TooManyChecksError, RecursionError, Unresolvable):
            return False


def _accept(*_: Any) -> Iterator[ValidationError]:
    yield from ()


def canonical_json(value: Any) -> str:
    """The text that JSON values with the same meaning share: names in order, and 1.0 as 1."""
    return json.dumps(_canonical(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
