"""A headless Chromium to look at pages with, driven by Playwright.

python tests/chromium.py PAGE OUT.png [HASH] [WIDTH HEIGHT]     a picture of a page
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
REASON = "no Chromium: install one (Debian: apt-get install chromium), or name its binary in MOTES_CHROMIUM"
T = TypeVar("T")
FLAGS = ("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update")


def find() -> str | None:
    """The browser's binary: the one named in MOTES_CHROMIUM, or else the first that is there."""
    if named := os.environ.get("MOTES_CHROMIUM"):
        return named
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """A browser with one page at a time; a context manager.

    It lives in a thread of its own, as Playwright's event loop would forbid `asyncio.run` in the tests' thread.

    Attributes:
        complaints: errors that pages threw, and what browsers log of them: broken policies, things not found.
        requested: addresses that pages asked for.
    """

    def __init__(self, binary: str) -> None:
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._thread = ThreadPoolExecutor(1)
        self._page = self._do(lambda: self._start(binary))

    def _start(self, binary: str) -> Page:
        self._playwright = sync_playwright().start()
        browser = self._playwright.chromium.launch(executable_path=binary, args=list(FLAGS))
        page = browser.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        page.on("request", lambda request: self.requested.append(request.url))
        return page

    def _do(self, what: Callable[[], T]) -> T:
        return self._thread.submit(what).result()

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._playwright.stop)
        self._thread.shutdown()

    @contextmanager
    def undisturbed(self, *addresses: str) -> Iterator[None]:
        """It must have nothing to complain of meanwhile, and ask for nothing but what begins with these."""
        self.complaints.clear()
        self.requested.clear()
        yield
        assert self.complaints == [], self.complaints
        assert all(url.startswith(addresses) for url in self.requested)

    def js(self, expression: str) -> Any:
        """What an expression comes to, as JSON; promises are waited for."""
        return self._do(lambda: self._page.evaluate(expression))

    def until(self, condition: str) -> None:
        """Wait for what the page makes of its own accord; half a minute at most."""
        # Playwright's own waiting evaluates text, which a page's policy may forbid.
        late = json.dumps(f"half a minute without: {condition}")
        look = f"({condition}) ? done() : performance.now() > last ? failed(new Error({late})) : setTimeout(look, 20)"
        self.js(
            f"new Promise((done, failed) => {{ const last = performance.now() + 3e4, look = () => {look}; look(); }})"
        )

    def open(
        self, page: Path | str, hash: str = "", *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Show a file, or what stands at an address, in a window of that size; wait until it says that it is ready."""
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self._do(lambda: self._page.set_viewport_size({"width": width, "height": height}))
        self._do(lambda: self._page.emulate_media(color_scheme="dark" if dark else "light"))
        self._do(lambda: self._page.mouse.move(0, 0))
        for url in ("about:blank", address + hash):  # a change of the hash alone would load nothing
            self._do(lambda url=url: self._page.goto(url))
        self.until("document.documentElement.dataset.ready === 'true'")

    def point_at(self, selector: str, *, click: bool = False, covered: bool = False) -> None:
        """Move the mouse to the middle of the first element that the selector finds. Others may lie over a `covered`
        one."""
        found = self._page.locator(selector).first
        self._do(found.click if click else lambda: found.hover(force=covered))

    def type(self, text: str) -> None:
        """Where the focus is."""
        self._do(lambda: self._page.keyboard.insert_text(text))

    def press(self, key: str) -> None:
        self._do(lambda: self._page.keyboard.press(key))

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of what is seen, or of the whole page."""
        self._do(lambda: self._page.screenshot(path=path, full_page=whole))


if __name__ == "__main__":
    page, out, *more = sys.argv[1:]
    binary = find() or sys.exit(REASON)
    sizes = dict(zip(("width", "height"), map(int, more[1:]), strict=False))
    with Chromium(binary) as browser:
        browser.open(Path(page), more[0] if more else "", **sizes)
        browser.picture(Path(out))
