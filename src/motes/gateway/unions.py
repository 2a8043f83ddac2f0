"""Objects that may have several forms, which their field `type` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


def forms_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that the type of a field mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from forms_in(argument)


def form_of(value: Mapping[str, Any], forms: Sequence[type[BaseModel]]) -> type[BaseModel] | None:
    """The form of an object: the only one, or the one that its field `type` names; None if there is none."""
    if len(forms) == 1:
        return forms[0]
    for form in forms:
        field = form.model_fields["type"]
        name = value.get("type")
        if (field.default if name is None else name) in get_args(field.annotation):
            return form
    return None


class ByType:
    """Validates a value of a union of models as the one that its field `type` names. Errors then have one place, the
    client's, instead of one for each member of the union."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        forms = tuple(forms_in(source))
        names = ", ".join(name for form in forms for name in get_args(form.model_fields["type"].annotation))

        def validate(value: Any, _: Any) -> BaseModel:
            if not isinstance(value, dict):
                raise ValueError("Input should be a JSON object")
            form = form_of(value, forms)
            if form is None:
                raise ValueError(f"its type should be one of {names}, not {str(value.get('type'))[:64]!r}")
            return form.model_validate(value)

        return core_schema.no_info_wrap_validator_function(validate, handler(source))
