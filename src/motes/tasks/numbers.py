r"""Decides what a mathematical answer is, before any part of it is left out: a number, or something else.

3,125   3{,}125   3\,125   $3125.0$     the number 3125
3, 125                                  a list of two
1 2                                     two numbers
0,5                                     no number in every country
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from itertools import accumulate

from motes.tasks.characters import folded

_SPACE = r"(?:\s|~|\\[,;:!> ]|\\q?quad(?![A-Za-z]))"
SEPARATOR = r",|\{,\}|,\\!|\\[,;: ]|~|[\u00a0\u2009\u202f]"
_THOUSANDS = rf"[1-9]\d{{0,2}}(?P<separator>{SEPARATOR})\d{{3}}(?:(?P=separator)\d{{3}})*"
_REPEATING = r"(?:\\(?:overline|bar)\s?\{\s?(?P<repeating>\d+)\s?\})"
_NUMBER = re.compile(
    rf"(?P<sign>[+\-−]?){_SPACE}*"
    rf"(?:(?P<whole>{_THOUSANDS}|\d+)(?:(?P<decimals>\.\d*){_REPEATING}?)?|(?P<point>\.\d+)"
    rf"|(?P<numerator>\d+)\s*/\s*(?P<denominator>\d+)"
    r"|\\[dt]?frac\s?\{\s?(?P<above>\d+)\s?\}\s?\{\s?(?P<below>\d+)\s?\})"
)
_SURROUNDINGS = re.compile(rf"^(?:{_SPACE}|\\?\$|\\\()+|(?<![\s~$.!,;:>\\])(?:{_SPACE}|\\\)|\\?\$|\.)+\Z")
_BRACKETS_AND_THOUSANDS = re.compile(
    rf"(?P<opens>\\\{{|[(\[])|(?P<closes>\\\}}|[)\]])|(?<![\w.,\\]){_THOUSANDS}(?!(?P=separator)?\d)", re.ASCII
)


def number(answer: str) -> Fraction | None:
    """The value of an answer that is a number; None for any other. A number is an integer, with or without marks
    between its thousands, a decimal (perhaps repeating) or a fraction (perhaps in TeX). It has no exponents:
    1e999999999 would fill the memory."""
    match = _NUMBER.fullmatch(_SURROUNDINGS.sub("", answer))
    if match is None:
        return None
    try:
        if (numerator := match["numerator"] or match["above"]) is not None:
            value = Fraction(int(numerator), int(match["denominator"] or match["below"]))
        else:
            whole = re.sub(r"\D", "", match["whole"] or "0")
            decimals = match["decimals"] or match["point"] or ""
            value = Fraction(whole + decimals.rstrip("."))
            if repeating := match["repeating"]:
                value += Fraction(int(repeating), (10 ** len(repeating) - 1) * 10 ** (len(decimals) - 1))
    except (ValueError, ZeroDivisionError):  # more digits than Python converts; a zero denominator
        return None
    return -value if match["sign"] in ("-", "−") else value


_BLANKS = re.compile(rf"(?P<between_numbers>(?<=\d){_SPACE}++(?=\d))|{_SPACE}+")
_DOLLAR = re.compile(r"\\?\$")


def plain(answer: str) -> str:
    """An answer without spaces, dollar signs and a final full stop. A space stays if numbers would be joined."""
    text = _DOLLAR.sub("", answer).strip()
    return _BLANKS.sub(lambda blanks: " " if blanks["between_numbers"] else "", text).rstrip(".")


MAX_CHARACTERS = 4000
"""Maximum length of an answer that is read as mathematics; a longer one is a model's loop."""
MAX_DEPTH = 20
"""Maximum depth of nested groups and brackets in such an answer: the time to read them grows without bound."""
_INTRODUCTION = re.compile(
    r"\A\s*(?:\\text(?:rm|bf|it)?\s?\{)?\s*(?:the\s+)?(?:final\s+)?answer(?:\s+is\s*:?|\s*:)\s*\}?\s*(?=.)",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\A\s*(\*\*|__|`)(.+)\1\s*\Z", re.DOTALL)
_END = re.compile(r"(?<!\\right)(?<![\s.,;\\])[\s.,;\\]+\Z")
"""The end of a sentence or of a line of a formula."""
_MIXED = re.compile(r"\A\s*([+-]?\d+)\s+(\d+)/(\d+)\s*\Z")
_SIDE_BY_SIDE = re.compile(r"\s*[+-]?[\d.]+(?:\s+[+-]?[\d.]+)+\s*")
_ROOT = re.compile(r"√\s*(?:(\d+|[A-Za-z])|\(([^()]*)\)|\{([^{}]*)\})")
_SUPERSCRIPTS = re.compile("[²³¹⁰ⁱ⁴-⁹⁺⁻ⁿ]+")
_SUBSCRIPTS = re.compile("[₀-₉₊₋]+")
_COMMANDS = str.maketrans(
    {"°": r"^\circ ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "≈": r"\approx "}
    | {"∅": r"\emptyset "}
)
_MATRIX = re.compile(
    r"\\left\s?[(\[]\s*\\begin\{array\}\s*(?:\{[^{}]*\})?(.*?)\\end\{array\}\s*\\right\s?[)\]]", re.DOTALL
)
_BRACES = re.compile(r"\\([lr])brace(?![A-Za-z])\s?")
_CONJUNCTION = re.compile(
    rf"(?<=\d){_SPACE}*+(?:,{_SPACE}*+)?(?:\\text(?:rm)?\s?\{{\s*(?:and|or)\s*\}}|(?:and|or)(?![A-Za-z])){_SPACE}*+"
    r"(?=[+\-]?\.?\d)"
)
_CURRENCIES = "USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD"
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\(?:text)?color\s?\{[^{}]*\}"), ""),
    (re.compile(r"\A\s*\\(?:text(?:bf|it|rm)?|math(?:bf|rm)|boldsymbol|underline)\s?\{([^{}A-Za-z]*)\}\s*\Z"), r"\1"),
    (re.compile(r"\A\s*\{([^{},A-Za-z]*)\}\s*\Z"), r"\1"),
    (re.compile(r"(?<![\w\\^_{])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w^.])"), r"\1\\times 10^{\2}"),
    (re.compile(r"\^\\circ\s?([CF])(?![A-Za-z])"), r"^\\circ\\text{\1}"),
    (re.compile(r"\\degree(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(rf"(?<=\d){_SPACE}*+(?:\\text\s?\{{\s*)?(?:{_CURRENCIES})\}}?(?={_SPACE}*\\?\$?\Z)"), ""),
    (
        re.compile(rf"(?<=\d){_SPACE}*+(mm|cm|dm|km|in|ft|yd|mi)\s?\^\s?\{{?([23])\}}?(?={_SPACE}*\\?\$?\Z)"),
        r"\\text{ \1}^\2",
    ),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])"), r"\\cup "),
)
"""Notations that Math-Verify does not read, and their replacements, which it reads."""


def is_excessive(answer: str) -> bool:
    """Whether an answer is too long or too deeply nested, so that only its text is compared."""
    if len(answer) > MAX_CHARACTERS:
        return True
    steps = (1 if character in "{([" else -1 for character in answer if character in "{}()[]")
    return max(accumulate(steps), default=0) > MAX_DEPTH


def tidied(answer: str) -> str:
    """An answer in the TeX that Math-Verify reads, without bold face or words such as "the answer is" around it, and
    with numbers that have no marks between thousands."""
    answer = answer.strip()
    if len(answer) > MAX_CHARACTERS:
        return answer
    answer = _END.sub("", _INTRODUCTION.sub("", _BOLD.sub(r"\2", answer), count=1))
    answer = _join_thousands(answer)
    if not answer.isascii():
        answer = _in_tex(folded(answer))
    answer = _BRACES.sub(lambda brace: r"\{" if brace[1] == "l" else r"\}", answer)
    answer = _CONJUNCTION.sub(", ", answer)  # Math-Verify replaces it by a comma: 100,200 would be one number
    for pattern, form in _REWRITES:
        answer = pattern.sub(form, answer)
    answer = _MATRIX.sub(lambda array: rf"\begin{{pmatrix}}{array[1]}\end{{pmatrix}}", answer)
    if _SIDE_BY_SIDE.fullmatch(answer):  # Math-Verify would add the numbers up
        return ", ".join(answer.split())
    return _MIXED.sub(r"\1\\frac{\2}{\3}", answer)


def _join_thousands(answer: str) -> str:
    """An answer without marks between thousands. A comma within brackets separates two numbers: (1,234) is a point."""
    depth = 0

    def join(match: re.Match[str]) -> str:
        nonlocal depth
        depth += bool(match["opens"]) - bool(match["closes"])
        separates = match["separator"] == "," and (depth > 0 or answer[match.end() : match.end() + 1].isalpha())
        return match[0] if match["separator"] is None or separates else re.sub(r"\D", "", match[0])

    return _BRACKETS_AND_THOUSANDS.sub(join, answer)


def _in_tex(text: str) -> str:
    """A folded text with TeX's commands instead of signs."""
    text = _SUPERSCRIPTS.sub(lambda digits: f"^{{{unicodedata.normalize('NFKC', digits[0])}}}", text)
    text = _SUBSCRIPTS.sub(lambda digits: f"_{{{unicodedata.normalize('NFKC', digits[0])}}}", text)
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text).translate(_COMMANDS)
    return "".join(map(_character_in_tex, text))


def _character_in_tex(character: str) -> str:
    if unicodedata.category(character) == "Sc" and character != "$":  # another currency
        return ""
    numerator, is_fraction, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}" if is_fraction and numerator and denominator else character
