"""The ground: problems, the tree of partial answers, what sampling means, what things cost, what a run returns."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from motes.arguments import fit, fit_fields
from motes.errors import ConfigurationError, MotesError
from motes.text import well_formed

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

StepEnd = Literal["step", "eos", "length"]
Stop = Literal["deadline", "token_budget"]
STOPS: tuple[Stop, ...] = get_args(Stop)
"""Limits on a whole run. What they cut off ends with the limit's name."""
Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["eos", "answer", "max_steps", "max_tokens", "deadline", "token_budget", "failed"]


@dataclass(frozen=True, init=False)
class Problem:
    """What is asked.

    Args:
        question: the last user turn.
        id: a name that is unique within its task.
        answer: the reference answer, where there is one. Models never see it.
        system: a system prompt.
        messages: a whole conversation instead of `question` and `system`: dicts with `role` and `content`, the last
            one from the user.

    Texts are made well-formed (`motes.text.well_formed`): half of a surrogate pair becomes U+FFFD.

    Raises:
        ConfigurationError: the question is empty, `messages` is given beside it or does not end with the user, or
            something is no text.
    """

    question: str
    id: str | None
    answer: str | None
    messages: tuple[Mapping[str, str], ...]
    _plain: Problem | None = field(compare=False, repr=False)

    def __init__(
        self,
        question: str | None = None,
        *,
        id: str | None = None,
        answer: str | None = None,
        system: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        if messages is not None:
            if question is not None or system is not None:
                raise ConfigurationError("give either `messages`, or `question` and `system`, not both")
            turns = _turns(messages)
        else:
            instruction = fit("system", system, str | None)
            before = ({"role": "system", "content": instruction},) if instruction else ()
            turns = (*before, {"role": "user", "content": fit("question", question, str | None) or ""})
        if not turns[-1]["content"].strip():
            raise ConfigurationError("the question is empty: ask something")
        object.__setattr__(self, "question", turns[-1]["content"])
        object.__setattr__(self, "id", fit("id", id, str | None))
        object.__setattr__(self, "answer", fit("answer", answer, str | None))
        object.__setattr__(self, "messages", turns)
        object.__setattr__(self, "_plain", None)

    def asked_as(self, messages: Sequence[Mapping[str, str]]) -> Problem:
        """The same problem, put to a language model in other words. `plain` stays what it was."""
        asked = Problem(messages=messages, id=self.id, answer=self.answer)
        object.__setattr__(asked, "_plain", self.plain)
        return asked

    def __hash__(self) -> int:
        return hash((self.question, self.id))

    @property
    def plain(self) -> Problem:
        """The problem as it was before a prompt was put around it (`motes.prompts`): what reward models read, which
        have forms of their own. Without a prompt: the problem itself."""
        return self._plain or self

    @property
    def system(self) -> str | None:
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None


def _turns(messages: Sequence[Mapping[str, str]]) -> tuple[Mapping[str, str], ...]:
    """A conversation as problems hold it.

    Raises:
        ConfigurationError: it is none, or its last word is not the user's.
    """
    turns = fit("messages", messages, tuple[Mapping[str, str], ...])
    if not turns or turns[-1].get("role") != "user":
        raise ConfigurationError("`messages` must end with a message whose role is 'user'")
    for i, turn in enumerate(turns):
        fit(f"messages[{i}]['role']", turn.get("role"), Role)
        if not isinstance(turn.get("content"), str):
            raise ConfigurationError(
                f"every message needs a `content` that is text: that of messages[{i}] is {turn.get('content')!r}"
            )
    return tuple({name: well_formed(v) if isinstance(v, str) else v for name, v in turn.items()} for turn in turns)


@dataclass(frozen=True)
class Usage:
    """What was spent, pruned particles included. Additive: `a + b`.

    What a run *needs by itself* is the same whenever it is run with the same seed: it depends neither on what else is
    in flight nor on what was cached before it began. What is shared within the run, as a prompt is by its particles,
    counts once. What was *really computed* this time may be less, where another run had the same text, or more, where a
    cache was full. What failed or was cancelled is a third, and in none of the other counts.

    Attributes:
        generated_tokens: sampled from the language model.
        prefill_tokens: prompt and prefix tokens that the run needs the language model to compute.
        prefill_tokens_cached: prompt and prefix tokens that it is spared, since it has computed them before.
        reward_tokens: tokens that the run needs the reward model to compute.
        reward_tokens_cached: tokens that it is spared.
        computed_prefill_tokens, computed_reward_tokens: those that were really computed this time.
        lm_calls, reward_calls: steps asked for, and trajectories scored.
        failed_generated_tokens, failed_prefill_tokens, failed_reward_tokens: of attempts that broke off, gave nothing
            that can be used or were cancelled at a deadline, as far as they are known.

    A model knows of no run: in the usage of a `Step`, `Scores` or `Failure`, `prefill_tokens` and `reward_tokens` are
    what it computed, and the cached ones what its cache spared it, whoever filled that.
    """

    generated_tokens: int = 0
    prefill_tokens: int = 0
    prefill_tokens_cached: int = 0
    reward_tokens: int = 0
    reward_tokens_cached: int = 0
    lm_calls: int = 0
    reward_calls: int = 0
    failed_generated_tokens: int = 0
    failed_prefill_tokens: int = 0
    failed_reward_tokens: int = 0
    computed_prefill_tokens: int = 0
    computed_reward_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return self._combined(operator.add, other)

    def __sub__(self, other: Usage) -> Usage:
        return self._combined(operator.sub, other)

    def _combined(self, how: Callable[[int, int], int], other: Usage) -> Usage:
        """Made without its constructor, as a run adds up very many."""
        usage = object.__new__(Usage)
        usage.__dict__.update(
            zip(self.__dict__, map(how, self.__dict__.values(), other.__dict__.values()), strict=True)
        )
        return usage

    @property
    def total_tokens(self) -> int:
        """Every token that the run needs computed, by whichever model."""
        return self.generated_tokens + self.prefill_tokens + self.reward_tokens

    @property
    def computed_tokens(self) -> int:
        """Every token that was really computed, but for those of failed attempts."""
        return self.generated_tokens + self.computed_prefill_tokens + self.computed_reward_tokens

    @property
    def failed_tokens(self) -> int:
        """Every token of attempts that failed or were cancelled."""
        return self.failed_generated_tokens + self.failed_prefill_tokens + self.failed_reward_tokens

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


NEUTRAL = 0.5
"""The score of what an outcome reward model has no say about, an answer that is not finished: odds of one, so that
weights stay as they are."""


@dataclass(frozen=True)
class Reads:
    """The tokens that a reward model has to read to score a trajectory of T steps, whatever it has cached.

    Attributes:
        prompt: those of the problem, as far as all trajectories share them; they are in `after[0]`.
        after: (T + 1,) after[t]: those to be read where the scores of the first t steps are known; after[T] = 0.
    """

    prompt: int
    after: tuple[int, ...]


class Scores(tuple[float, ...]):
    """One trajectory's scores, one in [0, 1] per step, and what computing them cost.

    Attributes:
        usage: what the model computed, and what its cache spared it.
        reads: what scoring it takes, where the model knows; otherwise a run takes it that nothing is shared.
    """

    usage: Usage
    reads: Reads | None

    def __new__(cls, values: Iterable[float], usage: Usage, reads: Reads | None = None) -> Scores:
        scores = super().__new__(cls, values)
        scores.usage, scores.reads = usage, reads
        return scores

    def __getnewargs__(self) -> tuple[tuple[float, ...], Usage, Reads | None]:
        """What copies are made from."""
        return tuple(self), self.usage, self.reads


@dataclass(frozen=True, eq=False)
class Failure:
    """Stands in a model's results for a trajectory that it could not extend or score.

    Attributes:
        error: why.
        usage: what the attempt cost.
    """

    error: MotesError
    usage: Usage = Usage()


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


MOST_TEXTS = 64
"""Delimiters and stop texts of one `Sampling`."""
LONGEST_TEXT = 1024
"""Characters of one of them."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the language model is sampled, and where a step and an answer end. Every field is sent to every engine.

    Attributes:
        temperature: of the language model; 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: keep the k likeliest tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        max_step_tokens: tokens of one step.
        max_tokens: tokens of one whole answer; None leaves it to the model's context.
        max_steps: steps of one answer.
        delimiter: what ends a step, as `motes.steps` says to the letter. A text, which belongs to the step, or several.
            Or a compiled regular expression, `re.compile(…)`: the step ends where a match ends. None: a step is
            `max_step_tokens` tokens.
        stop: a text, or several, that ends the answer as an end-of-sequence token does, and like it is no part of it.
            It is looked for within a step.

    Raises:
        ConfigurationError: a field is out of its range, the pattern matches empty text, there are more than 64
            delimiters and stop texts or one is longer than 1,024 characters, or no stop text could ever be found
            because a step ends before it.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_step_tokens: int = 1024
    max_tokens: int | None = None
    max_steps: int = 40
    delimiter: str | tuple[str, ...] | re.Pattern[str] | None = "\n\n"
    stop: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fit_fields(self, "Sampling: ")

        def require(holds: bool, what: str) -> None:
            if not holds:
                raise ConfigurationError(f"Sampling: {what}")

        require(self.temperature >= 0 and math.isfinite(self.temperature), "temperature must be 0 or more")
        require(0 < self.top_p <= 1, "top_p must lie in (0, 1]")
        require(self.top_k >= 0, "top_k must be 0 (keep all) or more")
        require(0 <= self.min_p <= 1, "min_p must lie in [0, 1]")
        require(self.max_step_tokens >= 1, "max_step_tokens must be at least 1")
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens must be at least 1, or None")
        require(self.max_steps >= 1, "max_steps must be at least 1")
        require(all(self.delimiters), "a delimiter must not be empty; None makes steps of max_step_tokens tokens")
        if self.pattern is not None:
            require(isinstance(self.pattern.pattern, str), "the delimiter's pattern must be one of text, not of bytes")
            require(not self.pattern.search(""), f"the delimiter {self.pattern.pattern!r} matches empty text")
        require(all(self.stops), "a stop text must not be empty")
        texts = (*self.delimiters, *self.stops)
        require(len(texts) <= MOST_TEXTS, f"at most {MOST_TEXTS} delimiters and stop texts, not {len(texts)}")
        longest = max(map(len, texts), default=0)
        require(
            longest <= LONGEST_TEXT,
            f"a delimiter or stop text has at most {LONGEST_TEXT:,} characters, not {longest:,}: its beginning will do",
        )
        for stop in self.stops:
            for delimiter in self.delimiters:
                holds = f"the stop text {stop!r} holds the delimiter {delimiter!r}: a step ends before it is complete"
                require(delimiter not in stop, holds)

    @property
    def delimiters(self) -> tuple[str, ...]:
        """The texts that end a step; empty where a pattern or a number of tokens does."""
        if self.delimiter is None or isinstance(self.delimiter, re.Pattern):
            return ()
        return (self.delimiter,) if isinstance(self.delimiter, str) else tuple(self.delimiter)

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """The pattern that ends a step, where one does."""
        return self.delimiter if isinstance(self.delimiter, re.Pattern) else None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def replace(self, **changes: Any) -> Sampling:
        return dataclasses.replace(self, **changes)


def _finite(numbers: Iterable[float | None]) -> list[float | None]:
    """Numbers as JSON has them."""
    return [float(number) if number is not None and math.isfinite(number) else None for number in numbers]


def _named(error: MotesError | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, eq=False)
class Record:
    """One round of a run.

    Attributes:
        trajectories: (N,) the population after the round.
        ancestors: (N,) the index in the previous population that each one comes from.
        log_weights: (N,) accumulated since the last resampling, unnormalised, after the round.
        scores: (N,) the reward model's score of each trajectory, NaN where it has none.
        step_scores: (N,) the scores it is made of, one per step; empty where nothing was scored.
        ess: effective sample size of `log_weights`, in [1, N].
        resampled: whether the round began by resampling.
        log_evidence: of the sweep so far; of the run, for methods that have one sweep.
        usage: spent in this round.
        sweep: which pass over the answer the round belongs to, from 0; methods of one pass have no other.
        chain: which of the run's parts side by side, from 0: a temperature of the ladder, an island.

    A particle that was dropped, because a model could not extend or score it, has log-weight −inf.
    """

    trajectories: tuple[Trajectory, ...]
    ancestors: IntArray
    log_weights: FloatArray
    scores: FloatArray
    ess: float
    resampled: bool
    log_evidence: float
    usage: Usage
    step_scores: tuple[Sequence[float], ...] = ()
    sweep: int = 0
    chain: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The round in numbers, as JSON can hold it; see `Result.to_dict`."""
        return {
            "sweep": self.sweep,
            "chain": self.chain,
            "ancestors": [int(i) for i in self.ancestors],
            "log_weights": _finite(self.log_weights),
            "scores": _finite(self.scores),
            "ess": _finite([self.ess])[0],
            "resampled": bool(self.resampled),
            "log_evidence": _finite([self.log_evidence])[0],
            "usage": self.usage.to_dict(),
        }

    @property
    def failures(self) -> dict[int, MotesError]:
        """The places of particles that are dropped, and why."""
        return {i: t.error for i, t in enumerate(self.trajectories) if t.error is not None}


@dataclass(frozen=True, eq=False)
class Result:
    """What a run returns.

    Attributes:
        problem, method, seed: what was run.
        answer: the selected answer, None where no trajectory gave one.
        selector: how it was chosen among the weighted trajectories, see `motes.methods.SELECTORS`.
        text: the text of the trajectory that the answer is taken from; without an answer, the likeliest text that the
            model wrote, "" where it wrote none.
        posterior: normalised weight of each distinct answer, largest first. What is missing from 1 is the weight of
            trajectories without an answer.
        answers: (N,) what each trajectory answers, named as in the posterior; None for those without.
        trajectories: (N,) the final population, that of several sweeps or islands together where the method pools
            them; `log_weights`: (N,) theirs, unnormalised; `scores`: (N,) theirs, NaN where there is none.
            Where an outcome reward model had the last word, both are what it led to.
        log_evidence: estimate of the log normalising constant; None for methods that have none.
        records: one per round, in the order of (sweep, chain, round).
        usage: everything spent.
        swap_rates: (K − 1,) of parallel tempering: the share of proposed swaps between inverse temperatures k and
            k + 1 that were accepted, NaN where none was proposed. Empty for other methods.
        stopped: "deadline" or "token_budget" where that limit cut the run short: the answer is the best of what there
            was, weights, posterior and log_evidence are those of that moment, and unfinished trajectories, finished by
            the limit's name, carry no answer. At a deadline, answers that there was no time to compare are different
            ones unless their texts are equal. None: the run is complete.
        error: why the run failed, where it did; such a result is only ever found on the error that was raised.
    """

    problem: Problem
    method: str
    seed: int
    answer: str | None = None
    selector: str | None = None
    text: str = ""
    posterior: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[str | None, ...] = field(default=(), repr=False)
    trajectories: tuple[Trajectory, ...] = field(default=(), repr=False)
    log_weights: FloatArray = field(default_factory=lambda: np.zeros(0), repr=False)
    scores: FloatArray = field(default_factory=lambda: np.zeros(0), repr=False)
    log_evidence: float | None = None
    records: tuple[Record, ...] = field(default=(), repr=False)
    usage: Usage = field(default_factory=Usage)
    stopped: Stop | None = None
    error: MotesError | None = None
    swap_rates: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it: numbers that are none, and infinite ones, are None.

        Fields:
            problem: `id`, `question`, `messages`, `answer` (the reference).
            method, seed, answer, selector, text, confidence, log_evidence, stopped, answers, scores, log_weights,
            swap_rates, posterior: as the attributes.
            trajectories: (N,) each a dict of `text`, `steps` (their texts), `finished` and `error`.
            records: each a dict of `sweep`, `chain`, `ancestors`, `log_weights`, `scores`, `ess`, `resampled`,
                `log_evidence`, `usage`; what its particles say is in none.
            usage: see `Usage`. error: the name of its class and its message, None where there is none.
        """
        same = ("method", "seed", "answer", "selector", "text", "stopped")
        return {
            "problem": {
                "id": self.problem.id,
                "question": self.problem.question,
                "messages": [dict(turn) for turn in self.problem.messages],
                "answer": self.problem.answer,
            },
            **{name: getattr(self, name) for name in same},
            "confidence": float(self.confidence),
            "posterior": {answer: float(mass) for answer, mass in self.posterior.items()},
            "answers": list(self.answers),
            "log_weights": _finite(self.log_weights),
            "scores": _finite(self.scores),
            "log_evidence": _finite([self.log_evidence])[0],
            "trajectories": [
                {
                    "text": trajectory.text,
                    "steps": [step.text for step in trajectory.steps],
                    "finished": trajectory.finished,
                    "error": _named(trajectory.error),
                }
                for trajectory in self.trajectories
            ],
            "records": [record.to_dict() for record in self.records],
            "swap_rates": _finite(self.swap_rates),
            "usage": self.usage.to_dict(),
            "error": _named(self.error),
        }

    def _repr_html_(self) -> str:
        """What a notebook shows, see `motes.results_html`."""
        from motes.results_html import html

        return html(self)

    @cached_property
    def dropped(self) -> tuple[Trajectory, ...]:
        """Every trajectory that a model could not extend or score, as recorded; its `error` says why."""
        populations = [*(record.trajectories for record in self.records), self.trajectories]
        return tuple(dict.fromkeys(t for trajectories in populations for t in trajectories if t.error is not None))

    def texts(self) -> dict[str, str]:
        """For each answer of the posterior, largest first, a text that gives it: the result's own, or the one that
        scores best. Dropped trajectories give no answer."""
        scores = np.nan_to_num(self.scores, nan=-np.inf).tolist()
        best: dict[str | None, int] = {}
        for i, answer in enumerate(self.answers):
            if answer not in best or scores[i] > scores[best[answer]]:
                best[answer] = i
        texts = {answer: self.trajectories[best[answer]].text for answer in self.posterior if answer != self.answer}
        return {answer: texts.get(answer, self.text) for answer in self.posterior}

    @cached_property
    def confidence(self) -> float:
        """Posterior mass of the answer given, in [0, 1]; 0 without an answer."""
        return self.posterior.get(self.answer, 0.0) if self.answer is not None else 0.0
