"""Follows every link of the site that was built: to pages, files and places in pages. A dead one is a warning."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


class Page(HTMLParser):
    """The links that a page has, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("id", "name"):
                self.places.add(value)
            elif value and name in ("href", "src"):
                (self.links if tag == "a" else self.loaded).add(value)


def check(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    page = cache(Page)
    outdir = Path(app.outdir)
    for path in sorted(set(outdir.rglob("*.html")) - set(outdir.glob("_static/**/*.html"))):
        for link in sorted(page(path).links | page(path).loaded):
            if complaint := fault(path, link, page):
                logger.warning("%s: %s: %s", path.relative_to(outdir), link, complaint, type="motes", subtype="link")


def fault(path: Path, link: str, page: type[Page]) -> str | None:
    """What is wrong with a link of a page; None where nothing is, or it leads elsewhere."""
    address, place = urldefrag(link)
    if urlsplit(address).scheme:
        return None if link not in page(path).loaded or address.startswith("data:") else "comes from another host"
    local = unquote(urlsplit(address).path)
    target = (path.parent / local).resolve() if local else path
    if not target.is_file():
        return "there is no such file"
    if place and target.suffix == ".html" and unquote(place) not in page(target).places and "=" not in place:
        return "there is no such place on that page"
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
