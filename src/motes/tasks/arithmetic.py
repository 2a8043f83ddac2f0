"""The bundled task: word problems about how many things each person has, in plain English.

A verbatim example, level 3 (three operations; the facts are shuffled, Emma's is a distractor):

    Some friends collect pears. Ben has twice as many as Rosa. Emma has 4 fewer than Ben. Rosa owns 6.
    Jack has 5 more than Ben. How many do Rosa and Jack have together?

    Now Ben has twice Rosa's 6: 6*2=12, so Ben owns 12.

    Now Jack has 5 more than Ben's 12: 12+5=17, so Jack owns 17.

    Together Rosa's 6 and Jack's 17 are 6+17=23.

    The answer is \\boxed{23}.

Everything is exact and stateless: a question is parsed back into its `Story`, so the checker needs no hidden key. The
same parser decides whether a text is a question of this kind at all.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Literal

from motes.core import Problem
from motes.errors import UnknownNameError
from motes.tasks.boxed import BoxedAnswers

Split = Literal["train", "validation", "test"]

LEVELS = (1, 2, 3, 4, 5)
"""A problem's level is the number of arithmetic operations that its answer needs."""

LONG_LEVELS = (10, 11, 12, 13, 14)
"""The levels of the splits with long chains, which are in the paper's regime (docs/when.md)."""

NAMES = (  # noqa: SIM905
    "Anna Ben Carl Dora Emma Finn Hugo Iris Jack Kate Leo Mia Noah Paul Rosa Tina"
).split()
MORE_NAMES = (  # noqa: SIM905
    "Adam Bea Cora Dan Eric Fay Gina Hans Ivan June Karl Lucy Max Nora Otto Pia Ruth Sam Tom Una"
).split()
"""More people for problems beyond level 5, which need more than `NAMES` has."""
ITEMS = "apples pears plums books pens coins cards shells".split()  # noqa: SIM905

MAX_VALUE = 60
MAX_NUMBER = 12
_MULTIPLES = (2, 3, 4)
_SHARES = (2, 3, 4, 5)
_NUM_DISTRACTORS = (0, 1, 1, 2)

RelationKind = Literal["base", "more", "fewer", "times", "half", "share", "sum"]
QueryKind = Literal["value", "sum", "difference"]
Computation = Callable[[int, str, int], int]


@dataclass(frozen=True)
class Fact:
    """One sentence of a story: how the quantity of `person` follows from the quantities of `sources` and `number`."""

    person: str
    kind: RelationKind
    number: int = 0
    sources: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        k, who = self.number, self.person
        match self.kind:
            case "base":
                return f"{who} owns {k}."
            case "more" | "fewer":
                return f"{who} has {k} {self.kind} than {self.sources[0]}."
            case "times":
                return f"{who} has {'twice' if k == 2 else f'{k} times'} as many as {self.sources[0]}."
            case "half":
                return f"{who} has half as many as {self.sources[0]}."
            case "share":
                return f"{who} has one of {k} equal shares of what {self.sources[0]} has."
            case "sum":
                return f"{who} has as many as {self.sources[0]} and {self.sources[1]} together."

    def operation(self, values: dict[str, int]) -> tuple[int, str, int]:
        """Left operand, operator and right operand of the step that derives this fact (not for `base`)."""
        left = values[self.sources[0]]
        match self.kind:
            case "more":
                return left, "+", self.number
            case "fewer":
                return left, "-", self.number
            case "times":
                return left, "*", self.number
            case "half":
                return left, "/", 2
            case "share":
                return left, "/", self.number
            case "sum":
                return left, "+", values[self.sources[1]]
            case "base":
                raise ValueError("a base fact is given, not derived")

    def step(self, values: dict[str, int], compute: Computation | None = None) -> str:
        """The step that derives this fact: the relation, the people it refers to, the operation and the result.

        Args:
            values: the quantities of its sources.
            compute: (left, operator, right) → result; by default the correct one.
        """
        left, operator, right = self.operation(values)
        k, source = self.number, f"{self.sources[0]}'s {left}"
        match self.kind:
            case "more" | "fewer":
                how = f"{k} {self.kind} than {source}"
            case "times":
                how = f"{'twice' if k == 2 else f'{k} times'} {source}"
            case "half":
                how = f"half of {source}"
            case "share":
                how = f"one of {k} shares of {source}"
            case _:
                how = f"{source} and {self.sources[1]}'s {right}"
        value = (compute or _apply)(left, operator, right)
        return f"Now {self.person} has {how}: {left}{operator}{right}={value}, so {self.person} owns {value}."


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
        return f"Some friends collect {self.item}. {facts} {self._question_sentence()}"

    def _question_sentence(self) -> str:
        match self.query:
            case "value":
                return f"How many does {self.asked[0]} have?"
            case "sum":
                return f"How many do {self.asked[0]} and {self.asked[1]} have together?"
            case "difference":
                return f"How many more does {self.asked[0]} have than {self.asked[1]}?"

    @cached_property
    def values(self) -> dict[str, int]:
        """The true quantity of each person.

        Raises:
            ValueError: the facts contradict each other, are circular, or do not stay in the positive integers.
        """
        facts = {fact.person: fact for fact in self.facts}
        if len(facts) != len(self.facts):
            raise ValueError("two facts define the same person")
        values: dict[str, int] = {}
        pending = list(self.facts)
        while pending:
            ready = [fact for fact in pending if all(source in values for source in fact.sources)]
            if not ready:
                raise ValueError("the facts do not determine every quantity")
            for fact in ready:
                if fact.kind == "base":
                    values[fact.person] = fact.number
                else:
                    values[fact.person] = _apply(*fact.operation(values))
            pending = [fact for fact in pending if fact.person not in values]
        return values

    @cached_property
    def answer(self) -> int:
        if self.query == "value":
            return self.values[self.asked[0]]
        left, right = (self.values[person] for person in self.asked)
        return _apply(left, "+" if self.query == "sum" else "-", right)

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
        values = {fact.person: fact.number for fact in self.facts if fact.kind == "base"}
        steps: list[str] = []
        for fact in order:
            result = (compute or _apply)(*fact.operation(values))
            steps.append(fact.step(values, lambda *_, result=result: result))
            values[fact.person] = result
        return (*steps, *self._final_steps(self.asked, values, compute))

    def _final_steps(
        self, people: tuple[str, ...], values: dict[str, int], compute: Computation | None = None
    ) -> tuple[str, ...]:
        if self.query == "value":
            return (_boxed(values[people[0]]),)
        (first, left), (second, right) = ((person, values[person]) for person in people)
        operator = "+" if self.query == "sum" else "-"
        result = (compute or _apply)(left, operator, right)
        if self.query == "sum":
            return (f"Together {first}'s {left} and {second}'s {right} are {left}+{right}={result}.", _boxed(result))
        return (f"Now {first}'s {left} less {second}'s {right} is {left}-{right}={result}.", _boxed(result))

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
        steps = set(self._final_steps(self.asked, self.values))
        if self.query == "sum":
            steps.update(self._final_steps(self.asked[::-1], self.values))
        for fact in self.facts:
            if fact.kind != "base":
                steps.add(fact.step(self.values))
            if fact.kind == "sum":
                steps.add(replace(fact, sources=fact.sources[::-1]).step(self.values))
        return frozenset(steps)

    def check_step(self, step: str) -> bool:
        """Whether `step`, a step of any solution, is right: a true statement that follows from the facts.

        A right step states one of the derived facts (or the fact that answers the question), its operation on true
        quantities and the true result; or it boxes the true answer. Sums may have either order. Steps about people whom
        the answer does not need may be right, too.
        """
        return step.strip() in self._correct_steps

    @property
    def key(self) -> str:
        """A text that stories with the same facts share, whatever the order of the facts."""
        facts = sorted(f"{f.person} {f.kind} {f.number} {' '.join(f.sources)}" for f in self.facts)
        return "|".join([self.item, *facts, self.query, *self.asked])

    @property
    def split(self) -> Split:
        """The one split that this story can belong to: splits are disjoint by construction, not by luck."""
        bucket = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big") % 100
        return "test" if bucket < 5 else "validation" if bucket < 10 else "train"


def _boxed(value: int) -> str:
    return f"The answer is \\boxed{{{value}}}."


def _apply(left: int, operator: str, right: int) -> int:
    match operator:
        case "+":
            value = left + right
        case "-":
            value = left - right
        case "*":
            value = left * right
        case _:
            value, rest = divmod(left, right)
            if rest:
                raise ValueError(f"{left}/{right} is not whole")
    if value < 1:
        raise ValueError(f"{left}{operator}{right} is not positive")
    return value


_NAME = r"([A-Z][a-z]+)"
_NUMBER = r"(?P<k>\d{1,9})"
_OPENING = re.compile(r"Some friends collect ([a-z]+)\.")
_FACT_PATTERNS: tuple[tuple[RelationKind, re.Pattern[str]], ...] = (
    ("base", re.compile(rf"{_NAME} owns {_NUMBER}\.")),
    ("more", re.compile(rf"{_NAME} has {_NUMBER} more than {_NAME}\.")),
    ("fewer", re.compile(rf"{_NAME} has {_NUMBER} fewer than {_NAME}\.")),
    ("times", re.compile(rf"{_NAME} has (?:twice|{_NUMBER} times) as many as {_NAME}\.")),
    ("half", re.compile(rf"{_NAME} has half as many as {_NAME}\.")),
    ("share", re.compile(rf"{_NAME} has one of {_NUMBER} equal shares of what {_NAME} has\.")),
    ("sum", re.compile(rf"{_NAME} has as many as {_NAME} and {_NAME} together\.")),
)
_QUERY_PATTERNS: tuple[tuple[QueryKind, re.Pattern[str]], ...] = (
    ("value", re.compile(rf"How many does {_NAME} have\?")),
    ("sum", re.compile(rf"How many do {_NAME} and {_NAME} have together\?")),
    ("difference", re.compile(rf"How many more does {_NAME} have than {_NAME}\?")),
)


def _people(match: re.Match[str]) -> tuple[str, ...]:
    named = set(match.re.groupindex.values())
    return tuple(match[i] for i in range(1, match.re.groups + 1) if i not in named)


@lru_cache(maxsize=4096)
def parse(question: str) -> Story | None:
    """The story that `question` tells; None if it is not a question of this kind, or has no answer."""
    sentences = re.split(r"(?<=[.?])\s+", question.strip())
    opening = _OPENING.fullmatch(sentences[0])
    if opening is None or len(sentences) < 3:
        return None
    facts: list[Fact] = []
    for sentence in sentences[1:-1]:
        for kind, pattern in _FACT_PATTERNS:
            if match := pattern.fullmatch(sentence):
                number = int(match.groupdict().get("k") or (2 if kind == "times" else 0))
                person, *sources = _people(match)
                facts.append(Fact(person, kind, number, tuple(sources)))
                break
        else:
            return None
    for query, pattern in _QUERY_PATTERNS:
        if match := pattern.fullmatch(sentences[-1]):
            story = Story(opening[1], tuple(facts), query, _people(match))
            try:
                story.answer  # noqa: B018  (raises if the facts have no solution)
            except (ValueError, KeyError, ZeroDivisionError):
                return None
            return story
    return None


def generate(level: int, split: Split, rng: random.Random) -> Story:
    """A random story of `level` operations from `split`, with up to two distractors.

    Up to level 5 the facts are in random order, so that a solver has to find out which quantity can be derived next.
    Beyond, each fact comes after those that it needs: a long answer is then one step of the same kind after another.
    Beyond level 14 there may not be enough people.
    """
    while True:
        story = _try_to_generate(level, rng)
        if story is not None and story.level == level and story.split == split:
            return story


def _try_to_generate(level: int, rng: random.Random) -> Story | None:
    """A random story; None if its quantities do not work out."""
    people = NAMES if level <= LEVELS[-1] else [*NAMES, *MORE_NAMES]
    names = rng.sample(people, len(people))
    values: dict[str, int] = {}
    facts: list[Fact] = []

    def add(fact: Fact) -> str | None:
        try:
            value = fact.number if fact.kind == "base" else _apply(*fact.operation(values))
        except ValueError:
            return None
        if value > MAX_VALUE:
            return None
        facts.append(fact)
        values[fact.person] = value
        return fact.person

    def base() -> str:
        person = add(Fact(names.pop(), "base", rng.randint(2, 20)))
        assert person is not None
        return person

    def derive(source: str) -> str | None:
        for _ in range(20):
            if person := add(_random_relation(names[-1], source, values, rng)):
                names.pop()
                return person
        return None

    # 1) a chain of derived facts, each from the one before
    query: QueryKind = rng.choices(("value", "sum", "difference"), (3, 1, 1))[0]
    head: str | None = base()
    for _ in range(level - (query != "value")):
        assert head is not None
        if rng.random() < 0.2:  # a separate branch, so that sums do not only use earlier people of the chain
            base()
        if (head := derive(head)) is None:
            return None
    assert head is not None
    # 2) a question about its last person, and perhaps another one
    subjects: tuple[str, ...] = (head,)
    if query != "value":
        others = [person for person in values if person != head]
        other = rng.choice(others) if others else base()
        pair = [head, other] if rng.random() < 0.5 else [other, head]
        if query == "difference":
            pair.sort(key=values.__getitem__, reverse=True)
            if values[pair[0]] == values[pair[1]]:
                return None
        subjects = tuple(pair)
        if query == "sum" and values[head] + values[other] > MAX_VALUE:
            return None
    # 3) facts that the answer does not need
    for _ in range(rng.choice(_NUM_DISTRACTORS)):
        if rng.random() < 0.4:
            base()
        elif derive(rng.choice(list(values))) is None:
            return None
    if level <= LEVELS[-1]:
        rng.shuffle(facts)
    else:
        facts = _shuffled_with_sources_first(facts, rng)
    return Story(rng.choice(ITEMS), tuple(facts), query, subjects)


def _shuffled_with_sources_first(facts: list[Fact], rng: random.Random) -> list[Fact]:
    """The facts in random order, but each after those that it needs."""
    order: list[Fact] = []
    remaining, people = list(facts), set[str]()
    while remaining:
        fact = rng.choice([fact for fact in remaining if people.issuperset(fact.sources)])
        remaining.remove(fact)
        order.append(fact)
        people.add(fact.person)
    return order


def _random_relation(person: str, source: str, values: dict[str, int], rng: random.Random) -> Fact:
    kinds: Sequence[RelationKind] = ("more", "fewer", "times", "half", "share", "sum")
    kind = rng.choices(kinds, (4, 4, 3, 2, 2, 3))[0]
    others = [other for other in values if other != source]
    match kind:
        case "more" | "fewer":
            return Fact(person, kind, rng.randint(2, MAX_NUMBER), (source,))
        case "times":
            return Fact(person, kind, rng.choice(_MULTIPLES), (source,))
        case "share":
            return Fact(person, kind, rng.choice(_SHARES[1:]), (source,))
        case "sum" if others:
            pair = [source, rng.choice(others)]
            rng.shuffle(pair)
            return Fact(person, kind, 0, tuple(pair))
        case _:
            return Fact(person, "half", 0, (source,))


def stories(level: int, split: Split, seed: int) -> Iterator[Story]:
    """An endless, reproducible stream of distinct stories of one level and split."""
    rng = random.Random(f"{split}/{level}/{seed}")
    keys: set[str] = set()
    while True:
        story = generate(level, split, rng)
        if story.key not in keys:
            keys.add(story.key)
            yield story


@dataclass(frozen=True)
class _FixedSet:
    """A fixed set of problems: `per_level` problems of each level, whose stories belong to `split`."""

    split: Split
    levels: tuple[int, ...]
    per_level: int


FIXED: Mapping[str, _FixedSet] = MappingProxyType(
    {
        "test": _FixedSet("test", LEVELS, 100),
        "validation": _FixedSet("validation", LEVELS, 100),
        "long": _FixedSet("test", LONG_LEVELS, 40),
        "long-validation": _FixedSet("validation", LONG_LEVELS, 40),
    }
)
"""The splits of the task."""


@lru_cache
def _fixed_problems(name: str) -> tuple[Problem, ...]:
    fixed = FIXED[name]
    streams = {level: stories(level, fixed.split, seed=0) for level in fixed.levels}
    return tuple(
        Problem(story.question, id=f"{Arithmetic.name}/{name}/{level}-{i:03}", answer=str(story.answer))
        for i in range(fixed.per_level)
        for level in fixed.levels
        for story in [next(streams[level])]
    )


class Arithmetic(BoxedAnswers):
    """The bundled task: 100 fixed problems of each level in each of the splits "test" and "validation", and 40 of each
    long level in each of the splits "long" and "long-validation"."""

    name = "arithmetic"
    is_quick = True

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        """The fixed problems, in an order that takes the levels in turn, so that any limit covers all of them evenly.

        Raises:
            UnknownNameError: there is no such split (the train split is endless, see `stories`).
        """
        if split not in FIXED:
            raise UnknownNameError("split", split, FIXED)
        return list(_fixed_problems(split)[:limit])

    def grade(self, problem: Problem, answer: str) -> bool:
        return problem.answer is not None and self.matches(problem.answer, answer)

    def level(self, problem: Problem) -> int | None:
        """The problem's level, which its id states; None if it is not one of these problems."""
        level = (problem.id or "").rpartition("/")[2].partition("-")[0]
        return int(level) if level.isdigit() else None

    def recognizes(self, question: str) -> bool:
        """Whether this is a question of the kind on which the bundled models were trained."""
        return parse(question) is not None

    def check_step(self, problem: Problem, step: str) -> bool:
        """Whether a step of any solution is right: see `Story.check_step`.

        Raises:
            ValueError: the problem is not of this task.
        """
        story = parse(problem.question)
        if story is None:
            raise ValueError(f"not a question of this task: {problem.question!r}")
        return story.check_step(step)
