r"""Numbers in running text, and answers that are a number with a unit.

    1,000   1{,}000   1 000 (thin space)   1'000   10,00,000   1.234.567      marks between digits
    3.50   3,50   1.234,50   .5                                               decimals; a comma that cannot stand
                                                                              between thousands is a decimal comma
    3/4   1 1/2   2½   \frac{3}{4}   \frac{-3}{4}   1\frac12                  fractions and mixed numbers
    2^10   10⁶   3e8   3 × 10^8   3\times 10^{8}                              powers
    -5   −5   -$5   = - 5                                                     signs; no sign: 5-3, 10 - 4, "- 5 apples"

No number: the exponent of x^2, the index of x_1, digits in a name (H2O, cm2), the mark of a list's item ("2. Add").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from motes.tasks.characters import folded
from motes.tasks.numbers import SEPARATOR

MAX_DIGITS = 400
"""Maximum number of digits of a number. A longer one has no value: to compare it would take too long."""

_THOUSANDS = (
    rf"[1-9]\d{{0,2}}(?P<separator>{SEPARATOR}|['_])\d{{3}}(?:(?P=separator)\d{{3}})*+(?:\.\d++)?+"
    r"|[1-9]\d{0,2}(?:\ 000)++(?:\.\d++)?+"  # 1 2 and 100 200 are two numbers
    r"|[1-9]\d?(?:,\d\d(?!\d))++,\d{3}(?:\.\d++)?+"  # as in India
)
_POINTS = r"[1-9]\d{0,2}(?:\.\d{3})++(?:,\d++|(?<=\.\d{3}\.\d{3}))"
_DIGITS = rf"(?P<point>{_POINTS})(?![.,]?\d)|(?P<thousands>{_THOUSANDS})(?![.,]?\d)"
_FRACTION_SIGNS = "¼½¾⅐-⅞"
_FRACTIONS = (
    r"(?:(?P<tex_whole>\d++)\s?)?\\[dt]?frac\s?(?:\{\s?(?P<above>[-+]?\d++)\s?\}\s?\{\s?(?P<below>[-+]?\d++)\s?\}"
    r"|(?P<above_1>\d)\s?(?P<below_1>\d))"
    r"|(?:(?P<whole>\d++)\ )?(?<!/)(?P<numerator>\d++)/(?P<denominator>-?\d++)(?!/)"
    rf"|(?:(?P<sign_whole>\d++)\ ?)?(?P<fraction_sign>[{_FRACTION_SIGNS}])"
)
_DECIMALS = r"(?<!\d,)(?P<comma>\d++,\d++)(?!,\d)|(?P<decimal>\d++(?:\.\d++)?+|(?<![\w.)\]])\.\d++)"
_POWERS = (
    r"[eE](?P<e>[-+]?\d++)(?![\w.])"
    r"|\s?(?:×|\\times|\\cdot|[*x·])\s?10\s?(?:(?:\^|\*\*)\s?\{?\s?(?P<ten>[-+]?\d++)\s?\}?"
    r"|(?P<ten_raised>[⁰¹²³⁴-⁹⁺⁻]{1,5}))"
    r"|\s?(?:\^|\*\*)\s?\{?\s?(?P<power>[-+]?\d++)\s?\}?|(?P<raised>[⁰¹²³⁴-⁹⁺⁻]{1,5})"
)
_BEFORE = (
    rf"(?=[\d{_FRACTION_SIGNS}]|\.\d|\\[dt]?frac|[-+]\ ?\\?[$€£¥₹]?[.\d\\{_FRACTION_SIGNS}])"
    r"(?<![A-Za-z0-9_^])(?<![_^]\{)(?<!\^-)(?<!\^\{-)(?<!\d\.)"
)
_SIGN = r"(?P<sign>(?<![\w)\]}%.,])[-+](?:\\?[$€£¥₹])?|(?<=[=(,:<>]\ )[-+]\ )?"
NUMBER = re.compile(rf"{_BEFORE}{_SIGN}(?:{_FRACTIONS}|{_DIGITS}|{_DECIMALS})(?:{_POWERS})?+")
"""A number, in a text whose characters are `folded`."""

_LIST_MARK = re.compile(r"(?:[.)]|\*\*[.)]|[.)]\*\*)[ \t]+\S")
_MAX_MARKS = 12
"""Maximum number of characters before the mark of a list's item on its line."""
_BEFORE_LIST_MARK = " \t>#*-"


class Numeral(NamedTuple):
    """A number in a text: its place, its text and its value."""

    start: int
    text: str
    value: Fraction


def numerals(text: str, start: int = 0) -> Iterator[Numeral]:
    """The numbers of a folded text that begin at `start` or later, in order."""
    for match in NUMBER.finditer(text, start):
        if not _is_list_mark(match, text) and (value := _value(match)) is not None:
            sign = (match["sign"] or "").strip(" $€£¥₹\\+")
            yield Numeral(match.start(), sign + match[0][len(match["sign"] or "") :], value)


WINDOW, MARGIN = 2048, 128
"""Number of characters at the end of a text that are searched first; and at their beginning those in which a number may
be a part of one that begins before."""


def last_numeral(text: str) -> Numeral | None:
    """The last number of a text; None if it has none. Searches from the end, so that a long text costs no more."""
    size = WINDOW
    while True:
        tail = text[-size:]
        last: Numeral | None = None
        for last in numerals(folded(tail)):  # noqa: B007 (the last one is wanted)
            pass
        if size >= len(text) or (last is not None and last.start >= MARGIN):
            return last
        size *= 4


def _is_list_mark(match: re.Match[str], text: str) -> bool:
    """Whether a number is the mark of a list's item, "2. Add", at the beginning of a line."""
    if len(match[0]) > 3 or not match[0].isdigit() or not _LIST_MARK.match(text, match.end()):
        return False
    before = text[max(0, match.start() - _MAX_MARKS) : match.start()]
    begins_line = "\n" in before or match.start() <= _MAX_MARKS
    return begins_line and not before.rpartition("\n")[2].strip(_BEFORE_LIST_MARK)


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a number; None if it is too large, or has a denominator of zero."""
    if len(match[0]) > 2 * MAX_DIGITS:
        return None
    try:
        value = _scaled(_unsigned(match), match)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return -value if "-" in (match["sign"] or "") else value


def _unsigned(match: re.Match[str]) -> Fraction:
    above, below = match["above"] or match["above_1"], match["below"] or match["below_1"]
    if above is not None:
        return int(match["tex_whole"] or 0) + Fraction(int(above), int(below))
    if match["numerator"] is not None:
        return int(match["whole"] or 0) + Fraction(int(match["numerator"]), int(match["denominator"]))
    if (sign := match["fraction_sign"]) is not None:
        above, _, below = unicodedata.normalize("NFKC", sign).partition("⁄")
        return int(match["sign_whole"] or 0) + Fraction(int(above), int(below))
    if (point := match["point"]) is not None:
        digits = point.replace(".", "").replace(",", ".")
    elif (thousands := match["thousands"]) is not None:
        digits = re.sub(r"[^\d.]", "", thousands)
    else:
        digits = (match["comma"] or match["decimal"]).replace(",", ".")
    return Fraction(digits)


def _scaled(value: Fraction, match: re.Match[str]) -> Fraction:
    """The value with the power of ten after it, or raised to the power after it."""
    ten, power = match["e"] or match["ten"], match["power"]
    if raised := match["ten_raised"]:
        ten = unicodedata.normalize("NFKC", raised).replace("−", "-")
    if raised := match["raised"]:
        power = unicodedata.normalize("NFKC", raised).replace("−", "-")
    if ten is not None:
        return value * _limited(Fraction(10), int(ten))
    return value if power is None else _limited(value, int(power))


def _limited(base: Fraction, exponent: int) -> Fraction:
    """A power. Raises OverflowError if it has more than `MAX_DIGITS` digits."""
    if abs(exponent) * len(str(base)) > MAX_DIGITS:
        raise OverflowError
    return base**exponent


_UNIT_WORD = r"[^\W\d_]{2,}(?:(?:\^?\{?[23]\}?|[²³])(?!\w))?"
_UNIT = re.compile(
    r"\s*\\?%|\s*(?:°|\^\{?\\circ\}?|\\degree)(?:\s?[CFK]\b)?|\s*[€£¥₹]|\s+[mgshlLNJWVAKCFt](?:\^?\{?[23]\}?|[²³])?(?!\w)"
    rf"|[\s~-]*{_UNIT_WORD}(?:(?:\s?/\s?|\s+per\s+|[\s-]+|·)(?:{_UNIT_WORD}|[mgshl](?:\^?\{{?[23]\}}?|[²³])?(?!\w))){{0,3}}"
)
_REMARK = re.compile(r"(?<!\s)\s\([^\W\d_]{3,}(?:[ ,-]{1,2}[^\W\d_]+)*+\)\Z")
"""Words in brackets after a number: 12 (twelve)."""
_NO_UNITS = frozenset(
    "or and to plus minus times mod modulo than dozen hundred thousand million billion trillion lakh crore pi sqrt "  # noqa: SIM905
    "root squared cubed less more fewer am pm ad bc is are was not but if then with divided over by".split()
)
"""Words after a number that make it something else than the number with a unit."""


def quantity(answer: str) -> Fraction | None:
    """The value of an answer that is one number, perhaps with a currency or a unit, which does not count; None for any
    other answer."""
    text = re.sub(r"^\\?[$€£¥₹]\s?", "", answer)
    text = re.sub(r"^([-+]?)\s?(?:[A-Z]{1,3}\$|Rs\.?|[A-Z]{3}|[€£¥₹])\s?(?=\d)", r"\1", text)
    text = re.sub(r"^([-+])\s+(?=\\?[$€£¥₹]?[\d.])", r"\1", text)
    text = re.sub(r"^([-+]?\d+)\s+/\s+(?=\d)", r"\1/", text)
    match = NUMBER.match(text)
    if match is None or (value := _value(match)) is None:
        return None
    rest = text[match.end() :].strip(" .$")
    if not rest:
        return value
    unit = _REMARK.sub("", text[match.end() :].rstrip(" .$"))
    words = re.findall(r"[^\W\d_]+", rest.casefold())
    return value if (not unit or _UNIT.fullmatch(unit)) and _NO_UNITS.isdisjoint(words) else None
