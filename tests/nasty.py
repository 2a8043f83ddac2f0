"""Servers whose responses have one wrong value, anywhere: numbers, texts and structures that no engine sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
from hypothesis import strategies as st

from engines import Engine


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


SCALARS = (
    None, True, False, -1, 0, 1, 1.5, 2**31, 2**53, 10**30, -(10**30), float("nan"), float("inf"), float("-inf"), 1e308,
    "", "x", "7", "-3", "NaN", "9" * 5000, "\ud83d",
)  # fmt: skip
STRUCTURES = ([], [None], [[]], [1e308], [-1], {}, {"a": [1]}, {"index": 0}, nested(200), nested(900))
VALUES = st.one_of(
    st.sampled_from(SCALARS),
    st.sampled_from(STRUCTURES),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.floats(), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a JSON value, of the first few of long lists."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:6]):
            yield from places(inner, (*path, index))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


class Nasty:
    """A scripted server, in whose responses of one route, or in each event of a stream, the value at one place is
    replaced, while it `is_on`. `place` is a number; the places of a response are counted in order, and around."""

    def __init__(self, engine: Engine, route: str, place: int, value: Any, *, is_on: bool = True) -> None:
        self.engine, self.route, self.place, self.value, self.is_on = engine, route, place, value, is_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        response = await self.engine(request)
        if not (self.is_on and response.status_code == 200 and request.url.path.rpartition("/")[2] == self.route):
            return response
        lines = (await response.aread()).decode().split("\n")
        return httpx2.Response(200, content="\n".join(map(self._changed, lines)).encode())

    def _changed(self, line: str) -> str:
        field = "data: " if line.startswith("data: ") else ""
        try:
            value = json.loads(line.removeprefix(field))
        except ValueError:
            return line
        paths = list(places(value))
        return field + json.dumps(replaced(value, paths[self.place % len(paths)], self.value))
