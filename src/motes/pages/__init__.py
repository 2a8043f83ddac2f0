"""Pages of one file each, and the parts that they share: above all a population, drawn as an interactive genealogy.

A page is an HTML template with its head, stylesheets and scripts written into it, plain modules of JavaScript that
share one scope; there is no build step. A policy in the page lets nothing but these scripts run. What models, problems
and people say is text, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

COMMON = {"css": ("page",), "js": ("elements", "genealogy", "drawing", "particles")}
"""Files of this package, in every page before its own."""


def page(
    package: str,
    template: str,
    *,
    styles: Iterable[str],
    scripts: Iterable[str],
    title: str,
    connects: bool = False,
    data: Mapping[str, str] | None = None,
) -> str:
    """The HTML of a page, from files of a package: a template, stylesheets and scripts (the latter without suffix).

    `title` is text; `data` has other fields of the template, as HTML. `connects`: whether the page may send requests to
    its own server, and have an icon."""
    style = _concatenate(package, styles, "css")
    script = _concatenate(package, scripts, "js")
    sources = {"default-src": "'none'", "style-src": f"'{_digest(style)}'", "script-src": f"'{_digest(script)}'"}
    sources |= {"base-uri": "'none'", "form-action": "'none'"}
    if connects:
        sources |= {"connect-src": "'self'", "img-src": "data:"}
    head = Template(_source(__name__, "head.html")).substitute(
        policy="; ".join(f"{name} {value}" for name, value in sources.items()), title=escape(title), style=style
    )
    return Template(_source(package, template)).substitute(head=head.rstrip(), script=script, **(data or {}))


def _source(package: str, name: str) -> str:
    """The text of a file of a package."""
    return (files(package) / name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: characters that could end it, or mean something to HTML, are escaped."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _concatenate(package: str, names: Iterable[str], kind: str) -> str:
    """The text of the common files, and after them of a package's own."""
    parts = [(__name__, name) for name in COMMON[kind]] + [(package, name) for name in names]
    return "\n".join(_source(owner, f"{name}.{kind}") for owner, name in parts)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
