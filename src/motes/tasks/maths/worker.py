"""The grader's own process: reads one request per line, writes one reply per line, both in JSON.

    ["verify", GOLD, PREDICTION]    {"value": true}        Math-Verify's judgement
    ["canonical", ANSWER]           {"value": "1/2"}       a name that answers of the same value share, null without one

`motes.tasks.maths.workers` runs it as a file. It imports nothing of motes, so that it starts alone and fast. The
process that sends the requests kills it if a reply takes too long. If that process is gone, its own alarm ends it.
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
"""Maximum number of bytes of address space: some answers are numbers that no memory can hold."""
DIGITS = 20
"""Number of digits in the name of a number that is not rational."""


@lru_cache(maxsize=4096)
def parse(answer: str) -> Any:
    return math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)


def verify(gold: str, prediction: str) -> bool:
    # Without Math-Verify's time limits, which are signals, and with its errors, which it would otherwise call wrong.
    return bool(math_verify.verify(parse(gold), parse(prediction), timeout_seconds=None, raise_on_error=True))


def canonical(answer: str) -> str | None:
    """A name for the answer's value: the value of a number, the value of an expression at a point that the names of its
    symbols determine, the elements of a set. Equal values have equal names, in whatever form they are written; unequal
    values have different names, unless 20 digits agree by accident.
    """
    expressions = [result for result in parse(answer) if not isinstance(result, str)]
    return name(expressions[0]) if expressions else None


def name(expression: Any) -> str:
    match expression:
        case Eq(lhs=Symbol()):  # the answer x = 5 means 5
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
    """The names of a set's elements. Values of one unknown, x_1 = 2 and x_2 = 3, have names without the unknown; values
    of several, x = 2 and y = 3, have names with it."""
    values = [entry for entry in expression.args if isinstance(entry, Eq) and isinstance(entry.lhs, Symbol)]
    unknowns = {entry.lhs.name.partition("_")[0] for entry in values}
    if len(unknowns) < 2:
        return [name(entry) for entry in expression.args]
    return [f"{entry.lhs} = {name(entry)}" if entry in values else name(entry) for entry in expression.args]


def relation(expression: Any) -> str:
    """The name of an equation, up to a factor, or of an inequality in either direction."""
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
    values = {}
    for symbol in exact.free_symbols:
        digest = hashlib.sha256(f"{symbol.name} {point}".encode()).digest()
        values[symbol] = Rational(int.from_bytes(digest[:2], "big") + 1, 2**15 + 3)
    return exact.subs(values)


def number(expression: Any) -> str:
    """The name of a number: "p/q" if it is rational, otherwise its digits; of anything without a value, its text."""
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


def alarm(seconds: float) -> None:
    """Let the signal's default action end this process after so many seconds; 0: cancel that."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main(timeout: float) -> None:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):  # some systems do not have it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    canonical("\\frac{1}{2}x")  # loads everything that its first use loads, before any request's time begins
    print(json.dumps({"value": "ready"}), file=replies, flush=True)
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        alarm(2 * timeout)
        try:
            reply = {"value": OPERATIONS[operation](*arguments)}
        except Exception as error:  # of any kind, from deep within sympy; the reply reports it
            reply = {"error": f"{type(error).__name__}: {error}"}
        alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]))
    except BrokenPipeError:  # the other process has ended, perhaps while this one started
        os._exit(1)
