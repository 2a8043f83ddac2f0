"""Docstrings are Markdown here; names in code spans become links.

Sphinx reads docstrings as reStructuredText, so what differs is translated: code spans, indented blocks, backslashes.
On pages and in docstrings, a code span that is the name of something documented becomes a link to it, and
`motes COMMAND` one to the command's help. A name that begins with `motes.` and means nothing is a warning.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_annotation, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import mock
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from extensions.commands import COMMANDS

logger = logging.getLogger(__name__)

SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
ABSOLUTE = re.compile(r"motes(\.[A-Za-z_]\w*)+")
FILES = (".toml",)
REQUEST_FIELDS = (
    "motes.method",
    "motes.particles",
    "motes.deadline",
    "motes.progress",
)  # of the gateway, no names here
COMMAND = re.compile(r"motes ([a-z]+)\b.*")
HISTORY = ("CHANGELOG",)  # may name what is gone
LONGEST_VALUE = 60
COMMANDS_PAGE = "docs/reference/command-line"


# 1. Docstrings, from Markdown to reStructuredText.


def translate(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [line for block in _blocks(lines) for line in block]
    if what in ("attribute", "data", "property"):  # whose words before a colon napoleon takes for a type
        app.env.temp_data[name] = GoogleDocstring(lines, app.config, app, "method", name).lines()
        lines.clear()


def restore(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = app.env.temp_data.pop(name, lines)


def shorten(app: Sphinx, doctree: nodes.document) -> None:
    """Takes long values of constants out."""
    for value in list(doctree.findall(desc_annotation)):
        if value.astext().startswith(" = ") and len(value.astext()) > LONGEST_VALUE:
            value.parent.remove(value)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Paragraphs as text; blocks that are indented deeper than the paragraph before them as code."""
    paragraph: list[str] = []
    indent, in_code = 0, False  # of the last paragraph of text
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            if _indent(paragraph[0]) <= indent:
                in_code = False
            elif not in_code:
                in_code = True
                yield [" " * indent + "::", ""]
            yield [*(paragraph if in_code else _text(paragraph)), ""]
            indent = indent if in_code else _indent(paragraph[-1])
            paragraph = []


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _text(paragraph: list[str]) -> list[str]:
    text, parts, start = "\n".join(paragraph), [], 0
    for span in SPAN.finditer(text):
        code = re.sub(r"\s*\n\s*", " ", span[2])
        parts += [_plain(text[start : span.start()]), f":name:`{code.replace(chr(92), chr(92) * 2)}`"]
        if text[span.end() : span.end() + 1].isalnum():  # no white space ends the role
            parts.append(r"\ ")
        start = span.end()
    return "".join([*parts, _plain(text[start:])]).split("\n")


def _plain(text: str) -> str:
    return re.sub(r"(\w)_(?!\w)", r"\1\\_", text.replace("\\", "\\\\").replace("|", "\\|"))


# 2. Code spans, to references that the end of the build resolves.


def name_role(
    role: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A code span of a docstring."""
    code = nodes.unescape(text)
    return [_reference(code, inliner.document.settings.env) or nodes.literal(code, code)], []


class CodeSpans(SphinxTransform):
    """The code spans of Markdown pages."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            code = literal.astext()
            absolute = ABSOLUTE.match(code) or COMMAND.fullmatch(code)
            if absolute and not isinstance(literal.parent, nodes.reference | pending_xref):
                reference = _reference(code, self.env)
                if reference is not None:
                    literal.replace_self(reference)


def _reference(code: str, env: BuildEnvironment) -> pending_xref | None:
    name = ABSOLUTE.match(code) or NAME.fullmatch(code)
    command = COMMAND.fullmatch(code)
    if (name is None and command is None) or code.endswith(FILES) or code in REQUEST_FIELDS:
        return None
    return pending_xref(
        "",
        nodes.literal(code, code),
        refdomain="",
        reftype="command" if command else "name",
        reftarget=command[1] if command else name[0],  # type: ignore[index]
        refdoc=env.docname,
        module=env.ref_context.get("py:module", ""),
    )


# 3. References, resolved.


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Node | None:
    kind, target = node["reftype"], node["reftarget"]
    if kind == "command":
        if target not in COMMANDS:
            return content
        return make_refnode(app.builder, node["refdoc"], COMMANDS_PAGE, f"motes-{target}", content)
    if kind != "name":
        return None
    documented = env.domains.python_domain.objects
    names = list(_meanings(target, node["module"]))
    if names and (last := target.rpartition(".")[2]).isupper():  # a constant does not say where it comes from
        names += [name for name in documented if name.endswith(f".{last}")]
    for name in names:
        if name in documented:
            entry = documented[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)
    if not names and ABSOLUTE.fullmatch(target) and node["refdoc"] not in HISTORY:
        logger.warning("there is no %s", target, location=node, type="motes", subtype="name")
    return content


def _meanings(name: str, module: str) -> Iterator[str]:
    """The full names under which what a name means may be documented."""
    if ABSOLUTE.fullmatch(name):
        yield from _full_names(name)
    elif name[0].isupper() or "." in name:  # others are parameters, and plain words
        for scope in (module, "motes"):
            yield from _full_names(f"{scope}.{name}")


def _full_names(name: str) -> Iterator[str]:
    """The name, where the object was defined, and the class that holds it; nothing if there is no such object."""
    with mock(MOCKED):
        found, origin, rest = _module(name.split("."))
    for part in rest:
        if not hasattr(found, part) and part not in _fields(found):
            return
        found = getattr(found, part, None)
        is_own = isinstance(found, type | FunctionType) and found.__module__.startswith("motes")
        origin = f"{found.__module__}.{found.__qualname__}" if is_own else f"{origin}.{part}"
    yield from (name, origin, *([origin.rpartition(".")[0]] if len(rest) > 1 else []))


def _module(parts: list[str]) -> tuple[Any, str, list[str]]:
    """The longest beginning of a name that is a module, its name, and what follows."""
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        try:
            return importlib.import_module(name), name, parts[length:]
        except ImportError:
            continue
    return None, "", parts


def _fields(cls: Any) -> set[str]:
    """What a class's annotations and the section "Attributes" of its docstring name."""
    _, _, section = (getattr(cls, "__doc__", None) or "").partition("Attributes:\n")
    return {*getattr(cls, "__annotations__", {}), *re.findall(r"\w+", section)}


# 4. What a package offers, as a table.


class Public(SphinxDirective):
    """The directive `public`: each name in a package's `__all__` with the first sentence of its docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = importlib.import_module(self.arguments[0])
        lines = ["| | |", "|---|---|"]
        for name in sorted(package.__all__, key=str.casefold):
            text = inspect.getdoc(getattr(package, name)) or ""
            sentence = " ".join(re.split(r"(?<=[^.]\.)\s", text, maxsplit=1)[0].split())
            lines.append(f"| `{package.__name__}.{name}` | {sentence} |")
        return self.parse_text_to_nodes("\n".join(lines))


MOCKED: list[str] = []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("name", name_role)
    app.add_directive("public", Public)
    app.add_transform(CodeSpans)
    app.connect("config-inited", lambda app, config: MOCKED.extend(config.autodoc_mock_imports))
    app.connect("autodoc-process-docstring", translate, priority=400)  # before Google's sections are read,
    app.connect("autodoc-process-docstring", restore, priority=600)  # and after
    app.connect("doctree-read", shorten)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
