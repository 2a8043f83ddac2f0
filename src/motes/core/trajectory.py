"""Partial answers: a tree of trajectories whose edges are steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from motes.arguments import fit
from motes.core.problem import Problem
from motes.core.usage import Usage
from motes.errors import MotesError

StepEnd = Literal["step", "eos", "length"]
Stop = Literal["deadline", "token_budget"]
STOPS: tuple[Stop, ...] = get_args(Stop)
"""Limits on a whole run. A trajectory that a limit cut off is finished with the limit's name as the reason."""
Finish = Literal["eos", "answer", "max_steps", "max_tokens", "deadline", "token_budget", "failed"]


@dataclass(frozen=True, eq=False)
class Failure:
    """Stands in a model's results for a trajectory that it could not extend or score.

    Attributes:
        error: why.
        usage: what the attempt cost.
    """

    error: MotesError
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Step:
    """A piece of an answer: the text up to where a step ends (see `motes.steps`), or up to the end of the answer.

    Attributes:
        text: as generated; the concatenation of a trajectory's steps is its text. Without the end-of-sequence token.
        end: "step" (it is complete), "eos" (the model ended its answer) or "length" (a limit on tokens cut it).
        token_ids: every token sampled, the end-of-sequence token included; empty where the engine knows only text.
        logprob: sum of the tokens' log-probabilities under the model at temperature 1, where the engine knows it.
        usage: what making it cost, where the engine knows more than the number of tokens.
        proposal_logprob: sum of the tokens' log-probabilities under the distributions that they were drawn from, at the
            sampling's temperature, filtered and renormalised (0 for greedy tokens), where the engine knows it.
        ahead: text that was drawn behind the step's end, because a token went on or a pattern had to look ahead. The
            next step begins with it.
        prefix_tokens: tokens of the prompt and of the answer before this step, whether computed or cached; None: what
            `usage` says of them.
    """

    text: str
    end: StepEnd
    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    usage: Usage | None = field(default=None, compare=False, repr=False)
    proposal_logprob: float | None = None
    ahead: str = ""
    prefix_tokens: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, given in (("text", self.text), ("ahead", self.ahead)):
            if type(given) is not str or not given.isascii():  # one of very many: what is plain is not looked at
                object.__setattr__(self, name, fit(name, given, str))

    @property
    def num_tokens(self) -> int:
        """Tokens sampled, as the engine counted them where it knows no ids."""
        return len(self.token_ids) or (self.usage.generated_tokens if self.usage is not None else 0)


class Trajectory:
    """A partial answer: an immutable node of a tree whose edges are steps.

    Forking is free: a child points to its parent and shares everything before its own step. Equality is identity.

    Attributes:
        finished: why nothing follows, None as long as something may. "failed": a model could not extend or score it,
            and `error` says why. Such a particle is dropped: its weight is zero and it gives no answer.
        depth: number of steps.
        num_tokens: tokens generated on the whole path.
        reading: what the run's answer rule knows of the text up to here, once it was asked; see `AnswerRule`.
    """

    __slots__ = (
        "__weakref__",
        "_text",
        "depth",
        "error",
        "finished",
        "num_tokens",
        "parent",
        "problem",
        "reading",
        "step",
    )

    problem: Problem
    parent: Trajectory | None
    step: Step | None
    finished: Finish | None
    error: MotesError | None
    depth: int
    num_tokens: int
    reading: Any

    def __init__(
        self,
        problem: Problem,
        parent: Trajectory | None = None,
        step: Step | None = None,
        finished: Finish | None = None,
        error: MotesError | None = None,
    ) -> None:
        self.problem = problem
        self.parent = parent
        self.step = step
        self.finished = finished
        self.error = error
        self.depth = 0 if parent is None else parent.depth + 1
        self.num_tokens = (0 if parent is None else parent.num_tokens) + (0 if step is None else step.num_tokens)
        self.reading = None
        self._text: str | None = None

    def extend(self, step: Step, finished: Finish | None = None) -> Trajectory:
        """The child that `step` leads to; finished for the given reason, or by end of sequence.

        Raises:
            ValueError: this trajectory is finished already.
        """
        if self.finished is not None:
            raise ValueError(f"a finished trajectory ({self.finished}) cannot be extended")
        return Trajectory(self.problem, self, step, finished or ("eos" if step.end == "eos" else None))

    def finish(self, reason: Finish) -> Trajectory:
        """The same partial answer, finished."""
        return Trajectory(self.problem, self.parent, self.step, reason)

    def fail(self, error: MotesError) -> Trajectory:
        """The same partial answer, which could not be extended."""
        return Trajectory(self.problem, self.parent, self.step, "failed", error)

    @property
    def path(self) -> tuple[Trajectory, ...]:
        """The nodes from the first step to this one; the empty root is left out."""
        nodes: list[Trajectory] = []
        node: Trajectory | None = self
        while node is not None and node.step is not None:
            nodes.append(node)
            node = node.parent
        return tuple(reversed(nodes))

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(node.step for node in self.path if node.step is not None)

    @property
    def text(self) -> str:
        """The texts of all steps. It is kept once the trajectory is finished, and made anew each time before: if every
        node of the tree kept its own, memory would grow with the square of the number of steps."""
        if self._text is not None:
            return self._text
        text = "".join(step.text for step in self.steps)
        if self.finished is not None:
            self._text = text
        return text

    @property
    def added(self) -> str:
        """What the last step's tokens added to what was drawn before: text that a step has ahead was drawn with it,
        and not again with the next one, which begins with it."""
        if self.step is None:
            return ""
        before = self.parent.step.ahead if self.parent is not None and self.parent.step is not None else ""
        return (self.step.text + self.step.ahead).removeprefix(before)

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and pickles are made from: the parent, which is another node's, too, in the copy as here.

        Both go from a node to its parent by recursion. Every so many nodes one names those like it before it, the first
        of them first, so that the recursion ends at the last of these, however long the answer is.
        """
        anchors: list[Trajectory] = []
        if self.depth % ANCHORED == 0:
            node = self.parent
            while node is not None:
                if node.depth % ANCHORED == 0:
                    anchors.append(node)
                node = node.parent
        made = _node, (tuple(reversed(anchors)), self.problem, self.parent, self.step, self.finished)
        # An error may hold the result that holds this node: it follows when the node is there.
        return made if self.error is None else (*made, (None, {"error": self.error}))

    def __repr__(self) -> str:
        return f"Trajectory(depth={self.depth}, finished={self.finished!r}, text={self.text[-60:]!r})"


ANCHORED = 32
"""Steps between two nodes that name those like them; see `Trajectory.__reduce__`."""


def _node(
    anchors: Sequence[Trajectory],
    problem: Problem,
    parent: Trajectory | None,
    step: Step | None,
    finished: Finish | None,
) -> Trajectory:
    return Trajectory(problem, parent, step, finished)
