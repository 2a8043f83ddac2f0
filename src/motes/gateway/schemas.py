"""JSON schemas that clients send: schemas and values are checked by jsonschema, within bounds on time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_SCHEMA_VALUES = 5000
"""Maximum number of values (objects, lists, texts, numbers, …) of all schemas of a request together. Checking so many
takes a second."""
MAX_CHECKS = 40_000
"""Maximum number of keywords and subschemas that are applied to one value, which take a second: schemas that refer to
themselves can double the work at each level."""
VALUES_PER_CHECK = 20
"""A keyword that looks at so many more values counts as one more check."""

UNCHECKED = ("pattern", "patternProperties", "format")
"""Keywords that are left to the server's grammar: some regular expressions take forever."""


class _TooManyChecksError(Exception):
    pass


def num_values(values: Iterable[Any]) -> int:
    """The number of values that JSON values consist of, themselves included."""
    count, rest = 0, list(values)
    while rest:
        value = rest.pop()
        count += 1
        if isinstance(value, (dict, list)):
            rest += value.values() if isinstance(value, dict) else value
    return count


def check_schema(schema: Any) -> None:
    """Check a JSON schema (draft 2020-12).

    Raises:
        ValueError: it is none.
    """
    try:
        # Without checks of formats: they compile regular expressions, which some texts turn into other errors.
        error = next(_validator(OWN_KEYWORDS, Draft202012Validator.META_SCHEMA, lambda: None).iter_errors(schema), None)
        reason = None if error is None else SchemaError.create_from(error).message[:200]
    except RecursionError:
        reason = "it is nested too deeply"
    if reason is not None:
        raise ValueError(f"this is no JSON schema: {reason}")


class Schema:
    """A JSON schema (draft 2020-12), see `check_schema`. References lead only to places within it."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._has_patterns = _mentions(schema, "patternProperties")

    def accepts(self, value: Any) -> bool:
        """Whether a JSON value has this schema; False if that takes too long to find out, or if jsonschema cannot."""
        num_checks = 0
        sizes: dict[int, int] = {}

        def count(size: int = 0) -> None:
            nonlocal num_checks
            num_checks += 1 + size // VALUES_PER_CHECK
            if num_checks > MAX_CHECKS:
                raise _TooManyChecksError

        def counted(keyword: Any) -> Any:
            def check(validator: Any, expected: Any, part: Any, schema: Any) -> Iterator[ValidationError]:
                count(sizes.get(id(part), 0) + (len(expected) if isinstance(expected, (dict, list)) else 0))
                yield from keyword(validator, expected, part, schema) or ()

            return check

        keywords: Mapping[str, Any] = {**Draft202012Validator.VALIDATORS, **OWN_KEYWORDS}
        unchecked = (*UNCHECKED, *(["unevaluatedProperties"] if self._has_patterns else []))
        bounded = {name: counted(keyword) for name, keyword in keywords.items()} | dict.fromkeys(unchecked, _accept)
        try:
            sizes |= _sizes(value)
            return bool(_validator(bounded, self._schema, count).is_valid(value))
        except (_TooManyChecksError, RecursionError, Unresolvable, ArithmeticError, ValueError):
            return False  # ArithmeticError, ValueError: such as `multipleOf` of a number with 400 digits


def _validator(keywords: Mapping[str, Any], schema: Any, count: Callable[[], None]) -> Any:
    """A validator of values by a schema, with these keywords in the place of jsonschema's. It calls `count` for each
    subschema that it applies."""
    kind: Any = extend(Draft202012Validator, keywords)
    own_evolve = kind.evolve
    names = {field.name: field.alias for field in attrs.fields(kind) if field.init}

    def evolve(self: Any, **changes: Any) -> Any:
        count()
        schema = changes.get("schema", self.schema)
        if isinstance(schema, dict) and "$schema" in schema:
            # jsonschema's own method takes another class here, without these keywords.
            return kind(**{alias: getattr(self, name) for name, alias in names.items()} | changes)
        return own_evolve(self, **changes)

    kind.evolve = evolve
    root = DRAFT202012.create_resource(schema)
    # Found once: without `crawl`, each reference to a name reads the whole schema again.
    registry = REGISTRY.with_resource(root.id() or "", root).crawl()
    return kind(schema, _resolver=registry.resolver(root.id() or ""))


def _sizes(value: Any) -> dict[int, int]:
    """The number of values, and of tens of characters, of each part of a JSON value, by the part's id."""
    sizes: dict[int, int] = {}

    def size(part: Any) -> int:
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        sizes[id(part)] = total = 1 + sum(map(size, parts)) + (len(part) // 10 if isinstance(part, str) else 0)
        return total

    size(value)
    return sizes


def _accept(*_: Any) -> Iterator[ValidationError]:
    yield from ()


def _unique_items(validator: Any, is_required: Any, items: Any, _: Any) -> Iterator[ValidationError]:
    """The keyword `uniqueItems`. jsonschema compares each item with each other one."""
    if is_required and validator.is_type(items, "array") and len(set(map(canonical_json, items))) < len(items):
        yield ValidationError("has the same item twice")


def _additional_properties(validator: Any, allowed: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """The keyword `additionalProperties`, which does not say anything if only patterns could tell which these are."""
    if "patternProperties" not in schema:
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, allowed, value, schema) or ()


OWN_KEYWORDS: Mapping[str, Any] = {"uniqueItems": _unique_items, "additionalProperties": _additional_properties}
"""Keywords whose checks in jsonschema take too long for some values."""


def _mentions(schema: Any, name: str) -> bool:
    """Whether an object in a JSON value has a field of that name."""
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if name in value:
                return True
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    return False


def canonical_json(value: Any) -> str:
    """The text that JSON values with the same meaning share: names in order, and 1.0 as 1."""
    return json.dumps(_canonical(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
