"""What a request chooses of its run: in the field `motes`, in headers, or in the model's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import Headers

from motes.gateway.errors import RefusedError
from motes.gateway.wire import MotesOptions

T = TypeVar("T")

HEADERS = {"method": "X-Motes-Method", "particles": "X-Motes-Particles", "deadline": "X-Motes-Deadline"}
"""For clients that cannot add a field to the body. The field `motes` takes precedence, then the headers."""

SUFFIX = re.compile(r"(?:(?P<method>.+?)-)?(?P<particles>[1-9][0-9]{0,8})|(?P<only_method>.+)")
"""What may follow a model's name and a colon: METHOD-PARTICLES, PARTICLES or METHOD."""


def find_model(models: Mapping[str, T], name: str) -> tuple[T, dict[str, Any]]:
    """The model of a name, with the options after the first colon that follows a known name: "math:pf-32".

    Raises:
        RefusedError: there is no model of that name, or none that this caller may use.
    """
    if name in models:
        return models[name], {}
    for place in (match.start() for match in re.finditer(":", name)):
        if (model := models.get(name[:place])) is not None and (match := SUFFIX.fullmatch(name[place + 1 :])):
            method, particles = match["method"] or match["only_method"], match["particles"]
            options = {"method": method, "particles": None if particles is None else int(particles)}
            return model, {field: value for field, value in options.items() if value is not None}
    message = f"there is no model {name!r}; there are {', '.join(models) or 'none for this key'}"
    raise RefusedError(message, "model", status=404, code="model_not_found")


def chosen_options(body: MotesOptions, headers: Headers, in_name: Mapping[str, Any]) -> MotesOptions:
    """The options of a request: those of its body, else those of its headers, else those in the model's name.

    Raises:
        RefusedError: a header has no such value.
    """
    in_headers: dict[str, Any] = {}
    for field, header in HEADERS.items():
        if (text := headers.get(header)) is not None:
            try:
                value = text if field == "method" else int(text) if field == "particles" else float(text)
                MotesOptions.model_validate({field: value})
            except (ValueError, ValidationError):
                expected = {"method": "a method", "particles": "a number of particles", "deadline": "seconds"}[field]
                raise RefusedError(f"{header} should be {expected}, not {text[:100]!r}", header) from None
            in_headers[field] = value
    return MotesOptions.model_validate({**in_name, **in_headers, **body.model_dump(exclude_none=True)})
