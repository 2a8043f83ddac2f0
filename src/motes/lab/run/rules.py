"""Rules: the values that fields of recorded objects may have. The declared type of a dataclass's field is its rule,
unless a table beside the class says more."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from motes.text import shortened

LARGEST = 2**63
"""Whole numbers must be less: a larger one fits no column of a table."""


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value is a whole number from `least`."""
    return type(value) is int and least <= value < LARGEST


def is_number(value: Any, low: float = float("-inf"), high: float = float("inf")) -> bool:
    """Whether a value is a finite number between `low` and `high`."""
    return type(value) in (int, float) and low <= value <= high and abs(value) < float("inf")


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether a value is a list and `holds` is true of each item."""
    return isinstance(value, list) and all(map(holds, value))


class Rule(NamedTuple):
    """The values that a field may have: a test, and a description of one value and of several."""

    holds: Callable[[Any], bool]
    words: str
    plural: str = ""


def or_null(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.holds(value), f"{rule.words} or null", f"{rule.plural} and nulls")


def list_of(rule: Rule) -> Rule:
    return Rule(lambda value: is_list(value, rule.holds), f"a list of {rule.plural}")


def by_name(rule: Rule) -> Rule:
    """The rule of an object whose values all obey `rule`."""
    return Rule(
        lambda value: isinstance(value, dict) and all(map(rule.holds, value.values())),
        f"{rule.plural}, by name",
        f"objects of {rule.plural}",
    )


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a value is a text, a number, true, false, null, or an object of such values, a few levels deep."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value.values())
    return value is None or isinstance(value, (str, bool, float)) or (type(value) is int and abs(value) < LARGEST)


TEXT = Rule(is_text, "a text", "texts")
COUNT = Rule(is_count, "a whole number from 0", "whole numbers from 0")
POSITIVE = Rule(lambda value: is_count(value, 1), "a whole number from 1", "whole numbers from 1")
SCORES = list_of(or_null(Rule(lambda value: is_number(value, 0, 1), "", "numbers in [0, 1]")))
"""Scores of steps, None for a step without one."""
MARKS = list_of(or_null(Rule(lambda value: type(value) is int and value in (0, 1), "", "1, 0")))
"""Whether steps are right, None where that is unknown."""

OF_TYPES: Mapping[Any, Rule] = MappingProxyType(
    {
        str: TEXT,
        int: COUNT,
        bool: Rule(lambda value: isinstance(value, bool), "true or false", "true, false"),
        float: Rule(is_number, "a number", "numbers"),
        Any: Rule(_is_plain, "a text or a number", "texts and numbers"),
    }
)
OBJECT = Rule(lambda value: isinstance(value, dict), "an object", "objects")


def rule_of(hint: Any) -> Rule:
    """The rule of a field by its declared type."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return Rule(lambda value: value in arguments, f"one of {', '.join(arguments)}")
    if kind in (typing.Union, types.UnionType):
        return or_null(rule_of(arguments[0]))
    if kind is tuple:
        return list_of(rule_of(arguments[0]))
    if kind in (dict, Mapping):
        return by_name(rule_of(arguments[1]))
    return OF_TYPES.get(hint, OBJECT)


@functools.cache
def _rules_of(cls: type) -> Mapping[str, Rule]:
    return {name: rule_of(hint) for name, hint in typing.get_type_hints(cls).items()}


def read_fields(
    cls: type, values: Mapping[str, Any], rules: Mapping[str, Rule] = MappingProxyType({})
) -> dict[str, Any]:
    """The fields of a dataclass in a JSON object. Lists become tuples. Unknown fields, which later versions write, are
    left out.

    Args:
        rules: of fields whose type does not determine their values exactly.

    Raises:
        ValueError: a field may not hold its value.
    """
    fields = {}
    by_type = _rules_of(cls)
    for name, value in values.items():
        if name in by_type:
            rule = rules.get(name) or by_type[name]
            if not rule.holds(value):
                raise ValueError(_refusal(name, rule, value))
            fields[name] = tuple(value) if isinstance(value, list) else value
    return fields


def broken(rules: Mapping[str, Rule], fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fields that break their rules, each with the reason. Missing fields break none."""
    pairs = ((name, rule) for name, rule in rules.items() if name in fields)
    return [(name, _refusal(name, rule, fields[name])) for name, rule in pairs if not rule.holds(fields[name])]


def _refusal(name: str, rule: Rule, value: Any) -> str:
    text = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__} of {len(value)}"
    return f"`{name}` must be {rule.words}, not {shortened(text, 60)}"
