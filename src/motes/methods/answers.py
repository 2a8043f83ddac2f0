"""What trajectories answer. The task's rule reads and compares in a thread, since it may wait for another process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from motes.core import STOPS, Trajectory
from motes.methods.limits import Limits
from motes.protocols import AnswerRule, AnswerRuleTraits, canonical_form
from motes.threads import abandoned, in_thread

GRACE = 0.5
"""Seconds that a rule always gets, after the deadline too: most rules need milliseconds."""

QUICK_CHARACTERS, QUICK_TRAJECTORIES = 20_000, 16
"""What a quick rule reads and compares without a thread, which costs a short run more than the work itself."""


def answer_of(trajectory: Trajectory, rule: AnswerRule) -> str | None:
    """What a trajectory answers; None where it states nothing, was dropped or cut off by a limit on the run, or was not
    ended by the model and the rule needs that."""
    if trajectory.finished == "failed" or trajectory.finished in STOPS:
        return None
    if AnswerRuleTraits.of(rule).needs_end and trajectory.finished != "eos":
        return None
    return rule.answer(trajectory.text)


def states_final_answer(trajectory: Trajectory, rule: AnswerRule) -> bool:
    """Whether a trajectory states an answer that stands, whatever follows. Only steps that were not read yet are."""
    read = AnswerRuleTraits.of(rule).read
    if read is None:  # the rule takes whatever text states an answer for complete
        return rule.answer(trajectory.text) is not None
    unread: list[Trajectory] = []
    node: Trajectory | None = trajectory
    while node is not None and node.step is not None and node.reading is None:
        unread.append(node)
        node = node.parent
    reading = None if node is None else node.reading
    for node in reversed(unread):
        assert node.step is not None
        node.reading = reading = read(node.step.text, reading)
    return reading is not None and reading.is_final and rule.answer(trajectory.text) is not None


async def state_final_answers(trajectories: Sequence[Trajectory], rule: AnswerRule) -> list[bool]:
    """(B,) which of the unfinished ones state an answer that stands; False for those that are finished.

    A rule that is given each step once is quick. One that reads the whole text after every step need not be: it reads
    in a thread.
    """

    def read() -> list[bool]:
        return [t.finished is None and states_final_answer(t, rule) for t in trajectories]

    return read() if AnswerRuleTraits.of(rule).read is not None else await in_thread(read)


class Answers:
    """The answers of one run's trajectories, each read once, and each pair of them compared once.

    At the run's deadline, or `GRACE` after the call where that is later, the rule is asked nothing more: answers that
    it has not compared are different unless their texts are equal, trajectories that it has not read state no answer,
    and the run counts as stopped by its deadline.
    """

    def __init__(self, rule: AnswerRule) -> None:
        self._rule = rule
        self._stated: dict[Trajectory, str | None] = {}
        self._names: dict[str, str] = {}  # of each answer, the first one that is equivalent to it

    async def of(self, trajectories: Sequence[Trajectory], limits: Limits) -> list[str | None]:
        """(N,) the answer of each trajectory, named by the first that is equivalent; None where it states none. Dropped
        trajectories state none."""
        read = [trajectory for trajectory in trajectories if trajectory.finished != "failed"]
        stated, names = self._stated.copy(), self._names.copy()  # an abandoned thread may still write to its own
        if not all(t in stated and (stated[t] is None or stated[t] in names) for t in read):
            now = asyncio.get_running_loop().time()
            latest = None if limits.deadline is None else max(limits.deadline, now + GRACE)
            try:
                async with asyncio.timeout_at(latest) as timeout:
                    if is_quick(self._rule, read):
                        _read_and_compare(self._rule, read, stated, names)
                    else:
                        await in_thread(_read_and_compare, self._rule, read, stated, names)
            except TimeoutError:
                if not timeout.expired():
                    raise  # the rule's own
                limits.stopped = limits.stopped or "deadline"
            self._stated, self._names = stated, names = stated.copy(), names.copy()
        answers = [stated.get(trajectory) for trajectory in trajectories]
        first: dict[str, str] = {}  # in this population, of each equivalence class
        return [None if a is None else first.setdefault(names.get(a, a), a) for a in answers]


def is_quick(rule: AnswerRule, trajectories: Sequence[Trajectory]) -> bool:
    """Whether a rule can be asked about these trajectories on the event loop. A subclass has to say for itself that it
    is quick: it may compare answers in another way."""
    if "is_quick" not in vars(type(rule)) or not rule.is_quick or len(trajectories) > QUICK_TRAJECTORIES:  # type: ignore[attr-defined]
        return False
    return sum(len(trajectory.text) for trajectory in trajectories) <= QUICK_CHARACTERS


def _read_and_compare(
    rule: AnswerRule, trajectories: Sequence[Trajectory], stated: dict[Trajectory, str | None], names: dict[str, str]
) -> None:
    """Add what is not known yet, one by one, so that whoever stops waiting has all that was found until then."""
    for trajectory in trajectories:
        if trajectory not in stated:
            answer = answer_of(trajectory, rule)
            if abandoned():  # the rule may have said so for want of time
                return
            stated[trajectory] = answer
    classes = Classes(rule, dict.fromkeys(names.values()))
    for answer in dict.fromkeys(stated[trajectory] for trajectory in trajectories):
        if answer is None or answer in names:
            continue
        name = classes.name(answer)
        if abandoned():
            return
        names[answer] = name


class Classes:
    """Equivalence classes of answers, each named by one of them.

    Args:
        rule: says what is equivalent; by its canonical form, where it has one.
        names: of the classes that there are already.
    """

    def __init__(self, rule: AnswerRule, names: Iterable[str] = ()) -> None:
        self._rule = rule
        self._form = canonical_form(rule)
        self._names: dict[str, str] = {}  # by canonical form; by themselves where there is none
        for name in names:
            self._names.setdefault(self._key(name), name)

    def name(self, answer: str) -> str:
        """The name of the class that an answer belongs to: its own, from now on, where there was none."""
        if self._form is None and (name := self.find(answer)) is not None:
            return name
        return self._names.setdefault(self._key(answer), answer)

    def find(self, answer: str) -> str | None:
        """The name of the class that an answer belongs to; None where it belongs to none, or the caller has gone."""
        if self._form is not None:
            return self._names.get(self._form(answer))
        for name in self._names:
            same = self._rule.equivalent(name, answer)
            if abandoned():
                return None
            if same:
                return name
        return None

    def _key(self, name: str) -> str:
        return name if self._form is None else self._form(name)
