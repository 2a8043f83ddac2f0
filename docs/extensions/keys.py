"""The directive `keys`: what a table of the gateway's file may say, its type and its default, from the class itself."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ANNOTATED = re.compile(r"Annotated\[(.*), Field\(.*\)\]")


class Keys(SphinxDirective):
    """A row for each field of MODULE:CLASS, with its default, or its help where it has one."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        cls = getattr(importlib.import_module(module), name)
        if issubclass(cls, BaseModel):
            heading, rows = "default", {key: _default(field.default) for key, field in cls.model_fields.items()}
        else:
            heading, rows = "", {field.name: _escaped(field.metadata["help"]) for field in dataclasses.fields(cls)}
        lines = [f"| key | type | {heading} |", "|---|---|---|"]
        for key, text in rows.items():
            kind = ANNOTATED.sub(r"\1", cls.__annotations__[key]).replace("|", "\\|")
            lines.append(f"| `{key}` | `{kind}` | {text} |")
        return self.parse_text_to_nodes("\n".join(lines))


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None or value == () or isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return ""
    return f"`{json.dumps(value)}`"


def without_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str, None] | None:
    return ("", None) if isinstance(obj, type) and issubclass(obj, BaseModel) else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("keys", Keys)
    app.connect("autodoc-process-signature", without_signature)
    return {"parallel_read_safe": True}
