"""Stories about how many things each person has, as data and as text. `motes.tasks.arithmetic` has an example.

Everything is exact and stateless: a question is parsed back into its `Story`, so the checker needs no hidden key. The
same parser decides whether a text is a question of this kind at all.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from graphlib import TopologicalSorter
from operator import add, floordiv, mul, sub
from typing import Literal, TypeVar

Split = Literal["train", "validation", "test"]
RelationKind = Literal["base", "more", "fewer", "times", "half", "share", "sum"]
QueryKind = Literal["value", "sum", "difference"]
Computation = Callable[[int, str, int], int]
KindT = TypeVar("KindT")


_NUMBER = r"(?P<k>\d{1,9})"
_WORDS = {name: rf"(?P<{name}>[A-Z][a-z]+)" for name in ("who", "a", "b")}
_WORDS |= {"k": _NUMBER, "times": rf"(?:twice|{_NUMBER} times)"}


@dataclass(frozen=True)
class _Form:
    """The sentence of a fact or a question, and the step that works it out: `who` is the person of a fact, `a` and `b`
    are its sources or the people in the question, `k` is the number of a fact, `left` and `right` are the operands."""

    sentence: str
    operator: str = ""
    step: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"[.?]", r"\\\g<0>", self.sentence).format(**_WORDS))


_RELATIONS: Mapping[RelationKind, _Form] = {
    "base": _Form("{who} owns {k}."),
    "more": _Form("{who} has {k} more than {a}.", "+", "{k} more than {a}'s {left}"),
    "fewer": _Form("{who} has {k} fewer than {a}.", "-", "{k} fewer than {a}'s {left}"),
    "times": _Form("{who} has {times} as many as {a}.", "*", "{times} {a}'s {left}"),
    "half": _Form("{who} has half as many as {a}.", "/", "half of {a}'s {left}"),
    "share": _Form("{who} has one of {k} equal shares of what {a} has.", "/", "one of {k} shares of {a}'s {left}"),
    "sum": _Form("{who} has as many as {a} and {b} together.", "+", "{a}'s {left} and {b}'s {right}"),
}
_CONCLUSION = "The answer is \\boxed{{{value}}}."
_QUERIES: Mapping[QueryKind, _Form] = {
    "value": _Form("How many does {a} have?"),
    "sum": _Form("How many do {a} and {b} have together?", "+", "Together {a}'s {left} and {b}'s {right} are"),
    "difference": _Form("How many more does {a} have than {b}?", "-", "Now {a}'s {left} less {b}'s {right} is"),
}


@dataclass(frozen=True)
class Fact:
    """One sentence of a story: how the quantity of `person` follows from the quantities of `sources` and `number`."""

    person: str
    kind: RelationKind
    number: int = 0
    sources: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        return self._fill_in(_RELATIONS[self.kind].sentence)

    def operation(self, values: Mapping[str, int]) -> tuple[int, str, int]:
        """Left operand, operator and right operand of the step that derives this fact (not for `base`)."""
        match self.kind:
            case "sum":
                right = values[self.sources[1]]
            case "half":
                right = 2
            case _:
                right = self.number
        return values[self.sources[0]], _RELATIONS[self.kind].operator, right

    def value(self, values: Mapping[str, int]) -> int:
        """The quantity of `person`, given those of `sources`. Raises ValueError if it is not a positive integer."""
        return self.number if self.kind == "base" else apply(*self.operation(values))

    def step(self, values: Mapping[str, int], result: int) -> str:
        """The step that derives this fact: the relation, the people it refers to, the operation and its `result`."""
        left, operator, right = self.operation(values)
        relation = self._fill_in(_RELATIONS[self.kind].step, left=left, right=right)
        return f"Now {self.person} has {relation}: {left}{operator}{right}={result}, so {self.person} owns {result}."

    def _fill_in(self, text: str, **operands: int) -> str:
        times = "twice" if self.number == 2 else f"{self.number} times"
        people = dict(zip("ab", self.sources, strict=False))
        return text.format(who=self.person, k=self.number, times=times, **people, **operands)


@dataclass(frozen=True)
class Story:
    """A problem as data: the facts in the order of the text, the kind of question, and the people in the question."""

    item: str
    facts: tuple[Fact, ...]
    query: QueryKind
    asked: tuple[str, ...]

    @cached_property
    def question(self) -> str:
        facts = " ".join(fact.sentence for fact in self.facts)
        query = _QUERIES[self.query].sentence.format(a=self.asked[0], b=self.asked[-1])
        return f"Some friends collect {self.item}. {facts} {query}"

    @cached_property
    def values(self) -> dict[str, int]:
        """The true quantity of each person. Raises ValueError if the facts contradict each other, are circular, or do
        not stay in the positive integers."""
        facts = {fact.person: fact for fact in self.facts}
        if len(facts) != len(self.facts):
            raise ValueError("two facts define the same person")
        if not facts.keys() >= {source for fact in self.facts for source in fact.sources}:
            raise ValueError("the facts do not determine every quantity")
        values: dict[str, int] = {}
        for person in TopologicalSorter({fact.person: fact.sources for fact in self.facts}).static_order():
            values[person] = facts[person].value(values)
        return values

    @cached_property
    def answer(self) -> int:
        values = [self.values[person] for person in self.asked]
        return values[0] if self.query == "value" else apply(values[0], _QUERIES[self.query].operator, values[1])

    @cached_property
    def needed(self) -> tuple[Fact, ...]:
        """The derived facts that the answer needs, each after the facts that it needs itself."""
        facts = {fact.person: fact for fact in self.facts}
        order: list[Fact] = []

        def visit(person: str) -> None:
            fact = facts[person]
            if fact in order or fact.kind == "base":
                return
            for source in fact.sources:
                visit(source)
            order.append(fact)

        for person in self.asked:
            visit(person)
        return tuple(order)

    @cached_property
    def level(self) -> int:
        return len(self.needed) + (self.query != "value")

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """The reference solution, one operation per step, without delimiters."""
        return self.work_out(self.needed)

    def work_out(self, order: Iterable[Fact], compute: Computation | None = None) -> tuple[str, ...]:
        """The steps of a solution, without delimiters. It derives facts in a given order and then answers the question.

        Args:
            order: derived facts, each after those that it needs; they include all `needed` ones.
            compute: (left, operator, right) → result, for every operation; by default the correct one. Later steps use
                its results.
        """
        compute = compute or apply
        values = {fact.person: fact.number for fact in self.facts if fact.kind == "base"}
        steps: list[str] = []
        for fact in order:
            values[fact.person] = result = compute(*fact.operation(values))
            steps.append(fact.step(values, result))
        return (*steps, *self._final_steps(self.asked, values, compute))

    def _final_steps(self, people: tuple[str, ...], values: Mapping[str, int], compute: Computation) -> tuple[str, ...]:
        if self.query == "value":
            return (_CONCLUSION.format(value=values[people[0]]),)
        left, right = (values[person] for person in people)
        form = _QUERIES[self.query]
        result = compute(left, form.operator, right)
        statement = form.step.format(a=people[0], b=people[1], left=left, right=right)
        return f"{statement} {left}{form.operator}{right}={result}.", _CONCLUSION.format(value=result)

    @property
    def in_order(self) -> tuple[Fact, ...]:
        """The derived facts in the order of the text, up to the last one that the answer needs. Beyond level 5, each
        comes after those that it needs."""
        last = max((self.facts.index(fact) for fact in self.needed), default=-1)
        return tuple(fact for fact in self.facts[: last + 1] if fact.kind != "base")

    def detour(self, rng: random.Random, chance: float) -> tuple[Fact, ...]:
        """The facts that a correct solution with detours derives, in order: before each needed step, it derives with
        probability `chance` a fact that the answer does not need."""
        needed = list(self.needed)
        others = [fact for fact in self.facts if fact.kind != "base" and fact not in self.needed]
        derived = {fact.person for fact in self.facts if fact.kind == "base"}
        order: list[Fact] = []
        while needed:
            possible = [fact for fact in others if derived.issuperset(fact.sources)]
            if possible and rng.random() < chance:
                others.remove(fact := rng.choice(possible))
            else:
                fact = needed.pop(0)
            order.append(fact)
            derived.add(fact.person)
        return tuple(order)

    @property
    def solution(self) -> str:
        return "\n\n".join(self.steps)

    @cached_property
    def _correct_steps(self) -> frozenset[str]:
        facts = [fact for fact in self.facts if fact.kind != "base"]
        facts += [replace(fact, sources=fact.sources[::-1]) for fact in facts if fact.kind == "sum"]
        steps = [fact.step(self.values, self.values[fact.person]) for fact in facts]
        steps += self._final_steps(self.asked, self.values, apply)
        if self.query == "sum":
            steps += self._final_steps(self.asked[::-1], self.values, apply)
        return frozenset(steps)

    def check_step(self, step: str) -> bool:
        """Whether `step`, a step of any solution, is right. A right step derives a fact, or answers the question, by
        the operation on the true quantities and with the true result; or it boxes the true answer. Sums may have either
        order. Steps that the answer does not need may be right, too."""
        return step.strip() in self._correct_steps

    @property
    def key(self) -> str:
        """A text that stories with the same facts share, whatever the order of the facts."""
        facts = sorted(f"{f.person} {f.kind} {f.number} {' '.join(f.sources)}" for f in self.facts)
        return "|".join([self.item, *facts, self.query, *self.asked])

    @property
    def split(self) -> Split:
        """The split of this story, which its key determines: no two splits share a story."""
        bucket = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big") % 100
        if bucket < 5:
            return "test"
        return "validation" if bucket < 10 else "train"


_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}


def apply(left: int, operator: str, right: int) -> int:
    """The result of an operation. Raises ValueError if it is not a positive integer."""
    if operator == "/" and left % right:
        raise ValueError(f"{left}/{right} is not whole")
    value = _OPERATIONS[operator](left, right)
    if value < 1:
        raise ValueError(f"{left}{operator}{right} is not positive")
    return value


_OPENING = re.compile(r"Some friends collect ([a-z]+)\.")


@lru_cache(maxsize=4096)
def parse(question: str) -> Story | None:
    """The story that `question` tells; None if it is not a question of this kind, or has no answer."""
    sentences = re.split(r"(?<=[.?])\s+", question.strip())
    opening = _OPENING.fullmatch(sentences[0])
    if opening is None or len(sentences) < 3:
        return None
    facts: list[Fact] = []
    for sentence in sentences[1:-1]:
        if (fact := _read(sentence, _RELATIONS)) is None:
            return None
        kind, number, (person, *sources) = fact
        facts.append(Fact(person, kind, number, tuple(sources)))
    if (query := _read(sentences[-1], _QUERIES)) is None:
        return None
    story = Story(opening[1], tuple(facts), query[0], query[2])
    try:
        story.answer  # noqa: B018  (raises if the facts have no solution)
    except (ValueError, KeyError, ZeroDivisionError):
        return None
    return story


def _read(sentence: str, forms: Mapping[KindT, _Form]) -> tuple[KindT, int, tuple[str, ...]] | None:
    """The kind of a sentence, its number, and the people it names in order; None if it has no such form."""
    for kind, form in forms.items():
        if match := form.pattern.fullmatch(sentence):
            words = match.groupdict()
            number = words.pop("k", "0") or "2"  # twice
            return kind, int(number), tuple(words.values())
    return None
