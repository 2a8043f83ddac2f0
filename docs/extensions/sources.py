"""Links to the repository's sources: to where `repository` says that they can be read, or to a page that shows one."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx

LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".sh": "bash", ".txt": "text"}


def link(app: Sphinx, doctree: nodes.document) -> None:
    """What would be a download becomes a link, before Sphinx copies the file."""
    for download in list(doctree.findall(download_reference)):
        relative, path = app.env.relfn2path(download["reftarget"], app.env.docname)
        if Path(path).suffix not in LANGUAGES:
            continue
        if app.config.repository:
            uri = f"{app.config.repository}/{relative}"
        else:
            shown(app)[relative] = path
            uri = app.builder.get_relative_uri(app.env.docname, f"source/{relative}")
        download.replace_self(nodes.reference("", "", *download.children, refuri=uri))


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that is linked to."""
    for relative, path in sorted(shown(app).items()):
        text = Path(path).read_text(encoding="utf-8")
        code = app.builder.highlighter.highlight_block(text, LANGUAGES[Path(path).suffix], location=relative)
        title = f"<h1><code>{escape(relative)}</code></h1>"
        yield f"source/{relative}", {"title": relative, "body": title + code, "parents": []}, "page.html"


def shown(app: Sphinx) -> dict[str, str]:
    """The files that pages link to: where they are in the repository, and here."""
    if not hasattr(app.env, "motes_sources"):
        app.env.motes_sources = {}
    return app.env.motes_sources


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("repository", "", "env", str)
    app.connect("doctree-read", link, priority=400)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False}
