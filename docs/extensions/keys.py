"""The directive `keys`: what a table of the gateway's file may say, its type and its default, from the class itself."""

from __future__ import annotations

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
    """A row for each field of a class of `motes.gateway.config`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        lines = ["| key | type | default |", "|---|---|---|"]
        for key, field in cls.model_fields.items():
            kind = ANNOTATED.sub(r"\1", cls.__annotations__[key]).replace("|", "\\|")
            lines.append(f"| `{key}` | `{kind}` | {_default(field.default)} |")
        return self.parse_text_to_nodes("\n".join(lines))


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, BaseModel) or value == ():
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
