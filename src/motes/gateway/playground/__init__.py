"""The page at `/`: ask, and watch the particles until the answer and its posterior are there.

It knows nothing but what the gateway's own endpoints tell it: `GET /v1/models` of the models that one may ask for, and
the stream of `POST /v1/chat/completions` with `motes.progress = "particles"` of what happens.
"""

from __future__ import annotations

from functools import cache

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
    )
