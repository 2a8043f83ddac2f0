"""Every test is a fixed computation: hypothesis draws the same examples each time, and no clock decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from chromium import Chromium

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    """A headless Chromium; without one, tests of pages are skipped."""
    import chromium

    binary = chromium.find()
    if binary is None:
        pytest.skip(chromium.REASON)
    with chromium.Chromium(binary) as browser:
        yield browser
