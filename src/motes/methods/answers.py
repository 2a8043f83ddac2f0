"""The answers of trajectories. The task's rule runs in a thread, since it may wait for another process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from motes.core import Trajectory
from motes.methods.limits import Limits
from motes.protocols import AnswerRule, AnswerRuleTraits, Reading, canonical_form
from motes.threads import abandoned, in_thread

GRACE = 0.5
"""Seconds that a rule always has, even after the deadline: most rules need milliseconds."""

QUICK_CHARACTERS, QUICK_TRAJECTORIES = 20_000, 16
"""Limits up to which a quick rule runs without a thread, which would cost a short run more than the rule itself."""


def answer_of(trajectory: Trajectory, rule: AnswerRule) -> str | None:
    """The answer of a trajectory; None if it states none, was dropped, stopped or cut off by a limit on the run, or if
    the rule needs texts that the model ended itself and this is not one."""
    if trajectory.is_cut_off:
        return None
    traits = AnswerRuleTraits(rule)
    if traits.needs_end and trajectory.finished != "eos":
        return None
    if trajectory.finished in ("max_steps", "max_tokens") and (read := traits.answer_when_cut) is not None:
        return read(trajectory.text)
    return rule.answer(trajectory.text)


async def state_final_answers(trajectories: Sequence[Trajectory], rule: AnswerRule) -> list[bool]:
    """(B,) whether each trajectory is unfinished and states an answer that no further step can change.

    A rule that reads each step once is quick. A rule that reads the whole text after every step runs in a thread; any
    answer is final for it.
    """
    read = AnswerRuleTraits(rule).read
    if read is not None:
        return [t.finished is None and _is_final(t, read) and rule.answer(t.text) is not None for t in trajectories]
    return await in_thread(lambda: [t.finished is None and rule.answer(t.text) is not None for t in trajectories])


def _is_final(trajectory: Trajectory, read: Callable[[str, Reading | None], Reading]) -> bool:
    """Whether the reading of a trajectory is final. Reads only steps not read before."""
    unread: list[Trajectory] = []
    node: Trajectory | None = trajectory
    while node is not None and node.step is not None and node.reading is None:
        unread.append(node)
        node = node.parent
    reading: Reading | None = None if node is None else node.reading
    for node in reversed(unread):
        assert node.step is not None
        node.reading = reading = read(node.step.text, reading)
    return reading is not None and reading.is_final


class Answers:
    """The answers of one run's trajectories; each trajectory is read once, each pair of answers compared once.

    The rule is not called after the run's deadline, or `GRACE` seconds after the call if that is later: answers not
    compared by then are different unless their texts are equal, trajectories not read state no answer, and the run
    counts as stopped by its deadline.
    """

    def __init__(self, rule: AnswerRule) -> None:
        self._rule = rule
        self._stated: dict[Trajectory, str | None] = {}
        self._names: dict[str, str] = {}  # for each answer, the first equivalent one

    async def of(self, trajectories: Sequence[Trajectory], limits: Limits) -> list[str | None]:
        """(N,) the answer of each trajectory, named by the first equivalent one; None if it states none. Dropped
        trajectories state none."""
        read = [trajectory for trajectory in trajectories if trajectory.finished != "failed"]
        stated, names = self._stated.copy(), self._names.copy()  # an abandoned thread may still write to its copies
        if not all(t in stated and (stated[t] is None or stated[t] in names) for t in read):
            try:
                async with limits.timeout(GRACE) as timeout:
                    if is_quick(self._rule, read):
                        _read_and_compare(self._rule, read, stated, names)
                    else:
                        await in_thread(_read_and_compare, self._rule, read, stated, names)
            except TimeoutError:
                if not timeout.expired():
                    raise  # raised by the rule itself
                limits.stopped = limits.stopped or "deadline"
            self._stated, self._names = stated, names = stated.copy(), names.copy()
        answers = [stated.get(trajectory) for trajectory in trajectories]
        first: dict[str, str] = {}  # of each equivalence class in this population
        return [None if a is None else first.setdefault(names.get(a, a), a) for a in answers]


def is_quick(rule: AnswerRule, trajectories: Sequence[Trajectory]) -> bool:
    """Whether a rule may run on the event loop for these trajectories. A subclass must declare `is_quick` itself, as it
    may compare answers in another way."""
    if "is_quick" not in vars(type(rule)) or not rule.is_quick or len(trajectories) > QUICK_TRAJECTORIES:  # type: ignore[attr-defined]
        return False
    return sum(len(trajectory.text) for trajectory in trajectories) <= QUICK_CHARACTERS


def _read_and_compare(
    rule: AnswerRule, trajectories: Sequence[Trajectory], stated: dict[Trajectory, str | None], names: dict[str, str]
) -> None:
    """Add missing answers and names one by one: a caller that stops waiting has all results up to then."""
    for trajectory in trajectories:
        if trajectory not in stated:
            answer = answer_of(trajectory, rule)
            if abandoned():  # the rule may have given up for lack of time
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
        rule: decides what is equivalent, by its canonical form if it has one.
        names: of existing classes.
    """

    def __init__(self, rule: AnswerRule, names: Iterable[str] = ()) -> None:
        self._rule = rule
        self._form = canonical_form(rule)
        self._key: Callable[[str], str] = self._form or str
        self._names: dict[str, str] = {}  # by canonical form; by themselves if the rule has none
        for name in names:
            self._names.setdefault(self._key(name), name)

    def name(self, answer: str) -> str:
        """The name of an answer's class; an answer without a class founds one, named by itself."""
        if self._form is None and (name := self.find(answer)) is not None:
            return name
        return self._names.setdefault(self._key(answer), answer)

    def find(self, answer: str) -> str | None:
        """The name of the class that an answer belongs to; None if it belongs to none, or the caller is gone."""
        if self._form is not None:
            return self._names.get(self._form(answer))
        for name in self._names:
            same = self._rule.equivalent(name, answer)
            if abandoned():
                return None
            if same:
                return name
        return None
