"""The page at `/`: ask a question, and watch the particles until the answer and its posterior appear.

It uses only the gateway's own endpoints: `GET /v1/models` for the models, and the stream of `POST /v1/chat/completions`
with `motes.progress = "particles"` for the run.
"""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.metadata import metadata

from motes.pages import page


@cache
def html() -> str:
    """The page, which is the same for everybody."""
    return page(
        __name__,
        "playground.html",
        styles=("playground",),
        scripts=("stream", "live", "playground"),
        title="motes",
        connects=True,
        data={"links": links()},
    )


def links() -> str:
    """Links to the description of the endpoints, and to the places that the package names, such as its repository."""
    named = [entry.partition(", ")[::2] for entry in metadata("motes").get_all("Project-URL") or ()]
    places = [("API", "/openapi.json"), *named]
    return " · ".join(f'<a href="{escape(address)}" rel="noreferrer">{escape(name)}</a>' for name, address in places)
