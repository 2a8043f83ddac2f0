"""Partial answers: a tree of trajectories whose edges are steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from motes.arguments import fit
from motes.core.certainty import Certainty
from motes.core.hidden import HiddenStates
from motes.core.problem import Problem
from motes.core.thinking import Thinking
from motes.core.usage import Usage
from motes.errors import MotesError
from motes.thoughts import split

StepEnd = Literal["step", "eos", "length"]
Stop = Literal["deadline", "token_budget"]
STOPS: tuple[Stop, ...] = get_args(Stop)
"""Limits on a whole run. A trajectory that a limit cut off is finished with the limit's name as the reason."""
Finish = Literal["eos", "answer", "max_steps", "max_tokens", "low_confidence", "deadline", "token_budget", "failed"]

CUT_OFF: tuple[Finish, ...] = ("failed", "low_confidence", *STOPS)
"""Reasons for which a trajectory is finished without an answer."""


@dataclass(frozen=True, eq=False)
class Failure:
    """Returned by a model in the place of a step or of scores, for a trajectory that it could not extend or score.

    Attributes:
        error: the reason.
        usage: the cost of the attempt.
    """

    error: MotesError
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Step:
    """A piece of an answer: its text up to the end of a step (see `motes.steps`), or up to the end of the answer.

    Attributes:
        text: without the end-of-sequence token. The text of a trajectory is the concatenation of its steps' texts.
        end: "step" (the step is complete), "eos" (the model ended its answer) or "length" (cut by a limit on tokens).
        token_ids: all sampled tokens, the end-of-sequence token included; empty if the engine knows only text.
        logprob: sum of the tokens' log-probabilities under the model at temperature 1; None if unknown.
        usage: the cost of the step; None if the engine knows only the number of tokens.
        proposal_logprob: sum of the tokens' log-probabilities under the distributions that they were sampled from: at
            the sampling's temperature, filtered and renormalised (0 for greedy tokens); None if unknown.
        overrun: text already sampled past this step's end (the last token, or the pattern's lookahead, reached
            further); the next step starts with it. After a stop text that ended the answer: that text, if the engine
            returns it, and what follows it.
        prefix_tokens: number of tokens of the prompt and of the answer before this step, computed or cached; None: see
            `usage`.
        certainty: how certain the model was of the sampled tokens, or of those of them for which the engine knows it;
            None if the sampling did not ask for it (`Sampling.top_logprobs`), or nothing is known.
        hidden: states of the model's layers; None if the sampling did not ask for them (`Sampling.hidden_layers`), or
            the engine does not have them.
        thought_tokens: number of its tokens that are thought, see `motes.core.thinking`; None: estimated by the share
            of the characters.
        appended: text at its end that was not sampled: the end of a thought that a limit closes, see
            `motes.methods.thinking`. It has no token in `token_ids`.
    """

    text: str
    end: StepEnd
    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    usage: Usage | None = field(default=None, compare=False, repr=False)
    proposal_logprob: float | None = None
    overrun: str = ""
    prefix_tokens: int | None = field(default=None, compare=False, repr=False)
    certainty: Certainty | None = field(default=None, compare=False, repr=False)
    thought_tokens: int | None = field(default=None, compare=False, repr=False)
    appended: str = ""
    hidden: HiddenStates | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("text", self.text), ("overrun", self.overrun)):
            if type(value) is not str or not value.isascii():  # there are very many steps: plain text is not checked
                object.__setattr__(self, name, fit(name, value, str))

    @property
    def num_tokens(self) -> int:
        """Number of sampled tokens; the engine's own count if it knows no ids."""
        return len(self.token_ids) or (self.usage.generated_tokens if self.usage is not None else 0)

    @property
    def ahead(self) -> str:
        """Deprecated: use `overrun`."""
        warnings.warn("Step.ahead is deprecated: use Step.overrun", DeprecationWarning, stacklevel=2)
        return self.overrun


class Trajectory:
    """A partial answer: an immutable node of a tree whose edges are steps.

    Forking is free: a child points to its parent and shares everything before its own step. Equality is identity.

    Attributes:
        finished: the reason why the answer is finished; None while it is not. "failed": a model could not extend or
            score it, and `error` says why. Such a particle is dropped: it has weight zero and no answer.
            "low_confidence": its method stopped it (`DeepConf`), and it has no answer either.
        depth: number of steps.
        num_tokens: number of tokens generated on the whole path.
        reading: the answer rule's reading of the text up to here, once there is one; see `AnswerRuleTraits`.
    """

    __slots__ = (
        "__weakref__",
        "_text",
        "_thinking",
        "depth",
        "error",
        "finished",
        "num_tokens",
        "parent",
        "problem",
        "reading",
        "step",
    )

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
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.num_tokens: int = (0 if parent is None else parent.num_tokens) + (0 if step is None else step.num_tokens)
        self.reading: Any = None
        self._text: str | None = None
        self._thinking: Thinking | None = None

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
        finished = Trajectory(self.problem, self.parent, self.step, reason)
        finished._thinking = self._thinking
        return finished

    def fail(self, error: MotesError) -> Trajectory:
        """The same partial answer, which could not be extended."""
        return Trajectory(self.problem, self.parent, self.step, "failed", error)

    @property
    def is_cut_off(self) -> bool:
        """Whether it was dropped, stopped by its method, or cut off by a limit on the run: such a text is no answer."""
        return self.finished in CUT_OFF

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
        """The texts of all steps. Only a finished trajectory keeps it: if every node of the tree did, memory would grow
        with the square of the number of steps."""
        if self._text is not None:
            return self._text
        text = "".join(step.text for step in self.steps)
        if self.finished is not None:
            self._text = text
        return text

    @property
    def thinking(self) -> Thinking:
        """The state as to thoughts: whether one is open, and the number of tokens of thought so far."""
        unread: list[Trajectory] = []
        node: Trajectory | None = self
        while node is not None and node.step is not None and node._thinking is None:
            unread.append(node)
            node = node.parent
        state = (None if node is None else node._thinking) or Thinking()
        for each in reversed(unread):
            step, parent = each.step, each.parent
            assert step is not None
            before = 0 if parent is None else parent.num_tokens
            head = 0 if parent is None or parent.step is None else len(parent.step.overrun)
            state = state.after(step.text, len(step.appended), step.num_tokens, step.thought_tokens, before, head)
            each._thinking = state
        return state

    @property
    def thought_tokens(self) -> int:
        """Number of tokens of thought on the whole path, see `motes.core.thinking`."""
        return self.thinking.tokens

    @property
    def thoughts(self) -> str:
        """What the model thinks, without the tags, see `motes.thoughts.split`."""
        return split(self.text)[0]

    @property
    def content(self) -> str:
        """What the model says: the text without its thoughts."""
        return split(self.text)[1]

    @property
    def added(self) -> str:
        """The text of the last step's own tokens: with its overrun, but without the overrun of the step before, whose
        tokens it comes from."""
        if self.step is None:
            return ""
        before = self.parent.step.overrun if self.parent is not None and self.parent.step is not None else ""
        return (self.step.text + self.step.overrun).removeprefix(before)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles, in which nodes share their parents as they do here.

        Both recurse from a node to its parent, which would exceed Python's limit for a long answer. So every 32nd node
        (`ANCHORED`) lists the earlier 32nd nodes, first to last, and recursion ends at the last of them.
        """
        anchors = self.path[ANCHORED - 1 : -1 : ANCHORED] if self.depth % ANCHORED == 0 else ()
        reduced = _node, (anchors, self.problem, self.parent, self.step, self.finished)
        # An error may hold the result that holds this node, so it is set when the node exists.
        return reduced if self.error is None else (*reduced, (None, {"error": self.error}))

    def __repr__(self) -> str:
        return f"Trajectory(depth={self.depth}, finished={self.finished!r}, text={self.text[-60:]!r})"


ANCHORED = 32
"""Number of steps between two nodes that list earlier ones; see `Trajectory.__reduce__`."""


def _node(
    anchors: Sequence[Trajectory],
    problem: Problem,
    parent: Trajectory | None,
    step: Step | None,
    finished: Finish | None,
) -> Trajectory:
    return Trajectory(problem, parent, step, finished)
