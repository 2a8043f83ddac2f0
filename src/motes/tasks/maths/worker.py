"""The grader's own process: reads a request a line, writes a reply a line, both JSON.

    ["verify", GOLD, PREDICTION]    {"value": true}        Math-Verify's judgement
    ["canonical", ANSWER]           {"value": "1/2"}       a name that answers of the same value share, null without one

Run as a file by `motes.tasks.maths.workers`; it imports nothing of motes, so that it starts alone and fast. Whoever
asks kills it when a reply takes too long. Its own alarm is for the case that nobody is left to do so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import math_verify
from sympy import Eq, FiniteSet, Interval, MatrixBase, Rational, Symbol, Tuple, Union, nsimplify
from sympy.core.relational import GreaterThan, LessThan, Relational, StrictGreaterThan

MEMORY = 4 << 30
"""Bytes of address space: some answers are numbers that no memory holds."""
DIGITS = 20
"""Of a number that is not rational, in its name."""


@lru_cache(maxsize=4096)
def parse(answer: str) -> Any:
    return math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)


def verify(gold: str, prediction: str) -> bool:
    # Without Math-Verify's time limits, which are signals, and with its errors, which it would otherwise call wrong.
    parsed = parse(gold), parse(prediction)
    return bool(math_verify.verify(*parsed, timeout_seconds=None, raise_on_error=True))


def canonical(answer: str) -> str | None:
    """The answer as an expression, evaluated: a number by its value, an expression by its value at a point drawn from
    the names of its symbols, a set by what it holds. Equal values have equal names, in whatever form they are written;
    unequal ones differ, but for an accident of 20 digits.
    """
    expressions = [found for found in parse(answer) if not isinstance(found, str)]
    return name(expressions[0]) if expressions else None


def name(expression: Any) -> str:
    match expression:
        case Eq(lhs=Symbol()):  # who answers x = 5 answers 5
            return name(expression.rhs)
        case Relational():
            return relation(expression)
        case MatrixBase():
            return f"matrix {expression.shape} {[name(entry) for entry in expression]}"
        case Interval():
            ends = [name(expression.start), name(expression.end)]
            return f"interval {ends} {bool(expression.left_open)} {bool(expression.right_open)}"
        case FiniteSet() | Union():
            return f"{type(expression).__name__} {sorted(entries(expression))}"
        case Tuple():
            return f"tuple {[name(entry) for entry in expression]}"
    return number(at_a_point(expression, 0))


def entries(expression: Any) -> list[str]:
    """The names of what a set holds. Values of one unknown, x_1 = 2 and x_2 = 3, are named alone; of several, x = 2 and
    y = 3, with the unknown."""
    values = [entry for entry in expression.args if isinstance(entry, Eq) and isinstance(entry.lhs, Symbol)]
    unknowns = {entry.lhs.name.partition("_")[0] for entry in values}
    if len(unknowns) < 2:
        return [name(entry) for entry in expression.args]
    return [f"{entry.lhs} = {name(entry)}" if entry in values else name(entry) for entry in expression.args]


def relation(expression: Any) -> str:
    """An equation, up to a factor, or an inequality, from either side."""
    difference = expression.lhs - expression.rhs
    if isinstance(expression, Eq):
        return f"{number(at_a_point(difference, 0) / at_a_point(difference, 1))} = 0"
    if isinstance(expression, (GreaterThan, StrictGreaterThan)):
        difference = -difference
    sign = "<=" if isinstance(expression, (LessThan, GreaterThan)) else "<"
    return f"{number(at_a_point(difference, 0))} {sign} 0"


def at_a_point(expression: Any, point: int) -> Any:
    """The expression with its decimals made exact and its symbols replaced by rational numbers between 0 and 2."""
    exact = nsimplify(expression.doit(), rational=True)
    where = {}
    for symbol in exact.free_symbols:
        drawn = hashlib.sha256(f"{symbol.name} {point}".encode()).digest()
        where[symbol] = Rational(int.from_bytes(drawn[:2], "big") + 1, 2**15 + 3)
    return exact.subs(where)


def number(expression: Any) -> str:
    """A rational number as "p/q"; another one by its digits; what has no value as it is written."""
    if expression.is_Rational:
        return str(expression)
    real, imaginary = expression.evalf(DIGITS + 10, chop=True).as_real_imag()
    if not (real.is_Number and imaginary.is_Number and real.is_finite and imaginary.is_finite):
        return str(expression)
    return digits(real) if imaginary == 0 else f"{digits(real)} + {digits(imaginary)} i"


def digits(real: Any) -> str:
    if abs(real) < 10**DIGITS:
        exact = Fraction(str(real))
        simple = exact.limit_denominator(10**6)  # (√2 + 1)(√2 − 1) is 1
        if abs(exact - simple) <= abs(exact) / 10**DIGITS:
            return str(simple)
    return str(real.n(DIGITS))


OPERATIONS: dict[str, Callable[..., Any]] = {"verify": verify, "canonical": canonical}


def limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def alarm(seconds: float) -> None:
    """End this process after so many seconds, by the signal's default action; 0: do not."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main(timeout: float) -> None:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    limit_memory()
    canonical("\\frac{1}{2}x")  # what is loaded when first used, before any request's time begins to run
    print(json.dumps({"value": "ready"}), file=replies, flush=True)
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        alarm(2 * timeout)
        try:
            reply = {"value": OPERATIONS[operation](*arguments)}
        except Exception as error:  # of any kind, from deep within sympy: whoever asked is told
            reply = {"error": f"{type(error).__name__}: {error}"}
        alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]))
    except BrokenPipeError:  # whoever asked has ended, while this process started perhaps
        os._exit(1)
