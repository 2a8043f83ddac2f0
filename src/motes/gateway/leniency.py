"""What the gateway leaves out of a request, so that clients work as they are."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from motes.gateway.fields import AcceptOnly
from motes.gateway.unions import form_of, forms_in
from motes.gateway.wire import Message, MotesOptions


def leave_out(body: Any, kind: type[BaseModel], *, strict: bool = False) -> tuple[Any, list[str]]:
    """A JSON body without null and, unless `strict`, without fields that have no effect here: unknown ones, and known
    ones that only tune an answer.

    Returns:
        The body, and the names of the fields left out, such as "messages.name"; null has no name.
    """
    ignored: dict[str, None] = {}
    return _leave_out(body, (kind,), "", None if strict else ignored), list(ignored)


def _leave_out(value: Any, kinds: tuple[type[BaseModel], ...], place: str, ignored: dict[str, None] | None) -> Any:
    """See `leave_out`. `kinds` are the forms that an object may have; with none, all of it is the client's own. With
    `ignored` None, only null is left out."""
    if not kinds:
        return value
    if isinstance(value, list):
        return [_leave_out(item, kinds, place, ignored) for item in value]
    kind = form_of(value, kinds) if isinstance(value, dict) else None
    if kind is None:
        return value
    kept: dict[str, Any] = {}
    fields = _fields(kind)
    for name, item in value.items():
        field, nested = fields.get(name, (None, ()))
        if item is None and (field is not None or ignored is not None):
            continue
        support = next((data for data in field.metadata if isinstance(data, AcceptOnly)), None) if field else None
        if ignored is not None and (
            field is None or (support is not None and support.may_be_ignored and not support.accepts(item))
        ):
            ignored[place + name] = None
            continue
        # A fault in `motes` is always named: that field is ours.
        kept[name] = _leave_out(item, nested, f"{place}{name}.", None if nested == (MotesOptions,) else ignored)
    if (
        ignored is not None
        and kind is Message
        and "content" not in kept
        and isinstance(refusal := value.get("refusal"), str)
    ):
        kept["content"] = refusal  # what the assistant said instead
    return kept


@cache
def _fields(kind: type[BaseModel]) -> dict[str, tuple[FieldInfo, tuple[type[BaseModel], ...]]]:
    """The fields of a model by the names that clients use, with the models of the objects that they hold."""
    return {
        field.alias or name: (field, tuple(forms_in(field.annotation))) for name, field in kind.model_fields.items()
    }
