"""The bundled task: word problems about how many things each person has, in plain English.

A verbatim example, level 3 (three operations; the facts are shuffled, Emma's is a distractor):

    Some friends collect pears. Ben has twice as many as Rosa. Emma has 4 fewer than Ben. Rosa owns 6.
    Jack has 5 more than Ben. How many do Rosa and Jack have together?

    Now Ben has twice Rosa's 6: 6*2=12, so Ben owns 12.

    Now Jack has 5 more than Ben's 12: 12+5=17, so Jack owns 17.

    Together Rosa's 6 and Jack's 17 are 6+17=23.

    The answer is \\boxed{23}.

`motes.tasks.stories` tells, parses and checks them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

from motes.core import Problem
from motes.errors import UnknownNameError
from motes.tasks.boxed import BoxedAnswers
from motes.tasks.stories import Computation as Computation
from motes.tasks.stories import Fact, QueryKind, RelationKind, Split, Story, parse

LEVELS = (1, 2, 3, 4, 5)
"""A problem's level is the number of arithmetic operations that its answer needs."""

LONG_LEVELS = (10, 11, 12, 13, 14)
"""The levels of the splits with long chains, which are in the paper's regime (docs/when.md)."""

NAMES = "Anna Ben Carl Dora Emma Finn Hugo Iris Jack Kate Leo Mia Noah Paul Rosa Tina".split()  # noqa: SIM905
MORE_NAMES = (  # noqa: SIM905
    "Adam Bea Cora Dan Eric Fay Gina Hans Ivan June Karl Lucy Max Nora Otto Pia Ruth Sam Tom Una"
).split()
"""More people for problems beyond level 5, which need more than `NAMES` has."""
ITEMS = "apples pears plums books pens coins cards shells".split()  # noqa: SIM905

MAX_VALUE = 60
MAX_NUMBER = 12
_NUMBERS: Mapping[RelationKind, range] = {
    "more": range(2, MAX_NUMBER + 1),
    "fewer": range(2, MAX_NUMBER + 1),
    "times": range(2, 5),
    "share": range(3, 6),
}
_NUM_DISTRACTORS = (0, 1, 1, 2)


def generate(level: int, split: Split, rng: random.Random) -> Story:
    """A random story of `level` operations from `split`, with up to two distractors.

    Up to level 5 the facts are in random order, so that a solver has to find out which quantity can be derived next.
    Beyond, each fact comes after those that it needs: a long answer is then one step of the same kind after another.
    Beyond level 14 there may not be enough people.
    """
    while True:
        with contextlib.suppress(ValueError):
            story = _try_to_generate(level, rng)
            if story.level == level and story.split == split:
                return story


def _try_to_generate(level: int, rng: random.Random) -> Story:
    """A random story. Raises ValueError if its quantities do not work out."""
    people = NAMES if level <= LEVELS[-1] else [*NAMES, *MORE_NAMES]
    names = rng.sample(people, len(people))
    values: dict[str, int] = {}
    facts: list[Fact] = []

    def add(fact: Fact) -> str:
        value = fact.value(values)
        if value > MAX_VALUE:
            raise ValueError(f"{value} is too many")
        facts.append(fact)
        values[fact.person] = value
        return fact.person

    def base() -> str:
        return add(Fact(names.pop(), "base", rng.randint(2, 20)))

    def derive(source: str) -> str:
        for _ in range(20):
            with contextlib.suppress(ValueError):
                add(_random_relation(names[-1], source, values, rng))
                return names.pop()
        raise ValueError(f"no relation to {source} works out")

    # 1) a chain of derived facts, each from the one before
    query: QueryKind = rng.choices(("value", "sum", "difference"), (3, 1, 1))[0]
    head = base()
    for _ in range(level - (query != "value")):
        if rng.random() < 0.2:  # a separate branch, so that sums do not only use earlier people of the chain
            base()
        head = derive(head)
    # 2) a question about its last person, and perhaps another one
    asked = [head]
    if query != "value":
        others = [person for person in values if person != head]
        other = rng.choice(others) if others else base()
        asked = [head, other] if rng.random() < 0.5 else [other, head]
        if query == "difference":
            asked.sort(key=values.__getitem__, reverse=True)
            if values[asked[0]] == values[asked[1]]:
                raise ValueError("the difference is 0")
        elif values[head] + values[other] > MAX_VALUE:
            raise ValueError("the sum is too large")
    # 3) facts that the answer does not need
    for _ in range(rng.choice(_NUM_DISTRACTORS)):
        if rng.random() < 0.4:
            base()
        else:
            derive(rng.choice(list(values)))
    if level <= LEVELS[-1]:
        rng.shuffle(facts)
    else:
        facts = _shuffled_with_sources_first(facts, rng)
    return Story(rng.choice(ITEMS), tuple(facts), query, tuple(asked))


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
    kinds: tuple[RelationKind, ...] = ("more", "fewer", "times", "half", "share", "sum")
    kind = rng.choices(kinds, (4, 4, 3, 2, 2, 3))[0]
    others = [other for other in values if other != source]
    if kind in _NUMBERS:
        return Fact(person, kind, rng.choice(_NUMBERS[kind]), (source,))
    if kind == "sum" and others:
        pair = [source, rng.choice(others)]
        rng.shuffle(pair)
        return Fact(person, kind, 0, tuple(pair))
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


FIXED: Mapping[str, tuple[Split, tuple[int, ...], int]] = MappingProxyType(
    {
        "test": ("test", LEVELS, 100),
        "validation": ("validation", LEVELS, 100),
        "long": ("test", LONG_LEVELS, 40),
        "long-validation": ("validation", LONG_LEVELS, 40),
    }
)
"""The splits of the task: the split of their stories, their levels, and the number of problems of each level."""


@lru_cache
def _fixed_problems(name: str) -> tuple[Problem, ...]:
    split, levels, per_level = FIXED[name]
    streams = {level: stories(level, split, seed=0) for level in levels}
    problems: list[Problem] = []
    for i in range(per_level):
        for level, stream in streams.items():
            story = next(stream)
            identifier = f"{Arithmetic.name}/{name}/{level}-{i:03}"
            problems.append(Problem(story.question, id=identifier, answer=str(story.answer)))
    return tuple(problems)


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
        """The problem's level, from its id; None if it is not one of these problems."""
        level = (problem.id or "").rpartition("/")[2].partition("-")[0]
        return int(level) if level.isdigit() else None

    def recognizes(self, question: str) -> bool:
        """Whether this is a question of the kind on which the bundled models were trained."""
        return parse(question) is not None

    def check_step(self, problem: Problem, step: str) -> bool:
        """Whether a step of any solution is right, see `Story.check_step`. Raises ValueError for other problems."""
        story = parse(problem.question)
        if story is None:
            raise ValueError(f"not a question of this task: {problem.question!r}")
        return story.check_step(step)


def note_on_question(model: object, question: str) -> str | None:
    """A warning, if the model is the bundled one, and was not trained for questions of this kind."""
    if str(model).partition("?")[0] != "tiny" or parse(question) is not None:
        return None
    return "tiny knows nothing but stories of who has how many (`motes demo` shows one): do not believe the answer"
