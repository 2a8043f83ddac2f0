r"""Functions that are defined case by case, which Math-Verify takes for one another, and for 0.

f(x) = \begin{cases} x & x > 0 \\ 0 & \text{otherwise} \end{cases}
\left\{\begin{array}{ll} 0 & \text{otherwise} \\ x & x > 0 \end{array}\right.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TABLE = re.compile(r"\\begin\{([dr]?cases|array)\}\s*(?:\{[^{}]*\})?(.*?)\\end\{\1\}", re.DOTALL)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-z])")
_BETWEEN = re.compile(r"\\text(?:rm)?\s?\{\s*(?:if|for|when|where|,|\s)*\s*\}|\\q?quad(?![a-z])|\\[,;: ]|~")

Row = tuple[str, ...]


def cases(answer: str) -> list[Row] | None:
    """The cases of an answer, each a value and when it is the value; None where it has no cases."""
    table = _TABLE.search(answer)
    if table is None:
        return None
    rows = (tuple(_cell(cell) for cell in row.split("&")) for row in _ROW_END.split(table[2]))
    return [row for row in rows if any(row)]


def same_cases(first: list[Row], second: list[Row], same: Callable[[str, str], bool]) -> bool:
    """Whether two answers have the same cases, in whatever order, by a comparison of values and conditions."""
    left = list(second)
    for row in first:
        found = next((i for i, other in enumerate(left) if _same_row(row, other, same)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_row(first: Row, second: Row, same: Callable[[str, str], bool]) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def _cell(cell: str) -> str:
    return _BETWEEN.sub(" ", cell).strip().rstrip(",.;").strip()
