"""Several servers of one language model, as one model."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from motes.concurrency import ORIGIN, first_result, gather
from motes.core import Failure, Problem, Sampling, Step, Trajectory, Usage
from motes.errors import (
    ConfigurationError,
    MotesError,
    RejectedError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
)
from motes.protocols import LanguageModel, LanguageModelTraits, RequestObserver

T = TypeVar("T")
K = TypeVar("K")

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds until a server that has failed is checked again: doubled with each failure in a row, up to the longest."""
MAX_HOMES = 1024
"""Maximum number of runs of whole turns whose server is remembered."""


@dataclass(eq=False)
class Member:
    """One of the servers.

    Args:
        name: its address and model, for messages.
        open: opens the model; raises a MotesError if the server does not answer.

    Attributes:
        lm: None while it has not been opened yet.
        in_flight: number of steps that it is working on.
        failures: number of failures since it last did its work.
        is_ejected: whether no run uses it until it answers a check.
        check_at: time of the next check.
        check: the latest check.
    """

    name: str
    open: Callable[[], LanguageModel]
    lm: LanguageModel | None = None
    in_flight: int = 0
    failures: int = 0
    is_ejected: bool = False
    check_at: float = 0.0
    check: asyncio.Task[None] | None = None

    @property
    def is_healthy(self) -> bool:
        return self.lm is not None and not self.is_ejected

    def eject(self, error: Exception, now: float) -> None:
        """Stop using it, because of this error, until it answers the next check."""
        if not self.is_ejected:
            log.warning("the server %s is not used until it answers a check: %s", self.name, self._describe(error))
        self.failures, self.is_ejected = self.failures + 1, True
        self.check_at = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.failures - 1))

    def use_again(self) -> None:
        """Let runs use it: it answered a check."""
        if self.is_ejected:
            log.info("the server %s is used again", self.name)
        self.is_ejected = False

    def reinstate(self) -> None:
        """Note that it did its work."""
        self.use_again()
        self.failures = 0

    def _describe(self, error: Exception) -> str:
        """An error for the log. The texts of most errors of requests may quote a conversation."""
        is_safe = self.lm is None or isinstance(error, (UnreachableError, UnauthorizedError))
        return f"{type(error).__name__}: {error}" if is_safe else type(error).__name__


class Fleet:
    """Several servers of one language model.

    - A run stays on one server, so that the server's prefix cache has its prefixes. The server is chosen when the run
      begins: the one with the fewest steps in flight.
    - A request that fails for a reason of the server's is sent to another server, and the run stays there. A request
      that is refused itself would be refused elsewhere, too.
    - A server that cannot be reached, or fails, is ejected: no run uses it until it answers a check, one second later,
      then two, four, … up to 30. If all are ejected, each is tried. The log has a warning when a server is ejected, and
      a line when it is used again.

    Seeds give the same steps on all servers as far as the servers guarantee it.

    Args:
        specs: of the servers' models, as `motes.language_model` takes them.
        open: opens a spec.
        clock: returns seconds.

    Raises:
        ConfigurationError: there is no server, or one twice.
        MotesError: no server can be opened: the error of the first.
    """

    merges_calls = True

    def __init__(
        self,
        specs: Sequence[str],
        open: Callable[[str], LanguageModel],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not specs:
            raise ConfigurationError("a list of servers needs at least one: write http://HOST:PORT/v1#MODEL")
        if len(set(specs)) < len(specs):
            raise ConfigurationError("a list of servers names one twice")
        self._clock = clock
        self.members = [Member(_name(spec), lambda spec=spec: open(spec)) for spec in specs]  # type: ignore[misc]
        self._observer: RequestObserver | None = None
        self._homes: dict[int, Member] = {}  # by the identity of a run's problem
        self._homes_of_turns: dict[str | None, Member] = {}  # by a run's id
        errors = []
        for member in self.members:
            try:
                self._open(member)
            except MotesError as error:
                member.eject(error, self._clock())
                errors.append(error)
        if len(errors) == len(self.members):
            raise errors[0]

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Step | Failure]:
        """See `motes.protocols.LanguageModel`."""
        groups: dict[int, list[int]] = {}
        for i, trajectory in enumerate(trajectories):
            groups.setdefault(id(trajectory.problem), []).append(i)
        outcomes: list[Step | Failure | None] = [None] * len(trajectories)

        async def extend_group(places: Sequence[int]) -> None:
            parts = [(trajectories[i], seeds[i]) for i in places]
            for i, outcome in zip(places, await self._extend_run(parts, sampling), strict=True):
                outcomes[i] = outcome

        await gather(extend_group(places) for places in groups.values())
        return [outcome for outcome in outcomes if outcome is not None]

    async def draw_turn(self, fields: Mapping[str, Any], sampling: Sampling, seed: int) -> Any:
        """See `motes.protocols.LanguageModelTraits`."""
        tried: list[Member] = []
        run = ORIGIN.get().run
        homes = {} if run is None else self._homes_of_turns
        while True:
            member = self._home(homes, run, tried)
            draw: Any = LanguageModelTraits(member.lm).draw_turn
            try:
                turn = await self._working(member, 1, draw(fields, sampling, seed))
            except (ServerError, UnauthorizedError) as error:
                tried.append(member)
                self._note_failures(member, [error])
                if not _is_servers_fault(error) or len(tried) == len(self._opened):
                    raise
            else:
                member.reinstate()
                while len(homes) > MAX_HOMES:
                    del homes[next(iter(homes))]
                return turn

    async def _extend_run(self, parts: Sequence[tuple[Trajectory, int]], sampling: Sampling) -> list[Step | Failure]:
        """A step for each trajectory and seed; the trajectories are of one run."""
        problem = parts[0][0].problem
        wasted = [Usage()] * len(parts)  # of failed attempts
        left = list(range(len(parts)))
        done: dict[int, Step | Failure] = {}
        tried: list[Member] = []
        while left:
            member = self._home_of_run(problem, tried)
            tried.append(member)
            assert member.lm is not None
            extending = member.lm.extend([parts[i][0] for i in left], sampling, [parts[i][1] for i in left])
            try:
                outcomes = await self._working(member, len(left), extending)
            except (ServerError, UnauthorizedError) as error:
                outcomes = [Failure(error) for _ in left]
            done.update(zip(left, outcomes, strict=True))
            failures = {i: outcome for i in left if isinstance(outcome := done[i], Failure)}
            left = [i for i, failure in failures.items() if _is_servers_fault(failure.error)]
            self._note_failures(member, [failures[i].error for i in left])
            if not left:
                member.reinstate()
            elif len(tried) == len(self._opened):
                break
            else:
                for i in left:
                    wasted[i] += failures[i].usage
                self._homes.pop(id(problem), None)
        return [_with_usage(done[i], wasted[i]) for i in range(len(parts))]

    async def _working(self, member: Member, steps: int, work: Awaitable[T]) -> T:
        member.in_flight += steps
        try:
            return await work
        finally:
            member.in_flight -= steps

    @property
    def _opened(self) -> list[Member]:
        return [member for member in self.members if member.lm is not None]

    def _home_of_run(self, problem: Problem, tried: Collection[Member]) -> Member:
        """The server of a run."""
        if id(problem) not in self._homes:
            weakref.finalize(problem, self._homes.pop, id(problem), None)
        return self._home(self._homes, id(problem), tried)

    def _home(self, homes: dict[K, Member], key: K, tried: Collection[Member]) -> Member:
        for member in self.members:
            self._check_if_due(member)
        home = homes.get(key)
        if home is None or home in tried or not home.is_healthy:
            candidates = [member for member in self._opened if member not in tried]
            healthy = [member for member in candidates if member.is_healthy]
            home = homes[key] = min(healthy or candidates, key=lambda member: member.in_flight)
        return home

    def _note_failures(self, member: Member, errors: Sequence[MotesError]) -> None:
        """Eject a server that failed, unless it is only busy. The failures of requests that were in flight together
        count once."""
        failures = [error for error in errors if _is_servers_fault(error) and not getattr(error, "is_busy", False)]
        if failures and not member.is_ejected:
            member.eject(failures[0], self._clock())

    def _check_if_due(self, member: Member) -> None:
        """Start to check an ejected server, if it is time."""
        is_being_checked = member.check is not None and not member.check.done()
        if not member.is_healthy and not is_being_checked and self._clock() >= member.check_at:
            member.check = asyncio.ensure_future(self._check(member))

    async def _check(self, member: Member) -> None:
        try:
            if member.lm is None:
                await asyncio.to_thread(self._open, member)
            else:
                await _require_ready(member)
        except Exception as error:  # whatever it is, the next check has to wait
            member.eject(error, self._clock())
        else:
            member.use_again()

    def _open(self, member: Member) -> None:
        """Open a server's model. Raises the MotesError of `Member.open`."""
        member.lm = member.open()
        self._watch(member)

    # The traits that all servers have.

    @property
    def continues_prefixes(self) -> bool:
        return all(LanguageModelTraits(member.lm).continues_prefixes for member in self._opened)

    async def thought_opening(self, problem: Problem) -> str:
        """That of the first server; all have the same model."""
        function = LanguageModelTraits(self._opened[0].lm).thought_opening
        return "" if function is None else await function(problem)

    @property
    def takes_thinking_budget(self) -> bool:
        return all(LanguageModelTraits(member.lm).takes_thinking_budget for member in self._opened)

    @property
    def shares_prefixes(self) -> bool:
        return all(LanguageModelTraits(member.lm).shares_prefixes for member in self._opened)

    def prompt_ids(self, problem: Problem) -> Sequence[int]:
        functions = [LanguageModelTraits(member.lm).prompt_ids for member in self._opened]
        return next((ids for function in functions if function is not None and (ids := function(problem))), ())

    @property
    def proposal_logprobs(self) -> bool:
        return all(LanguageModelTraits(member.lm).proposal_logprobs for member in self._opened)

    @property
    def num_parameters(self) -> int | None:
        return LanguageModelTraits(self._opened[0].lm).num_parameters

    def gives_logprobs(self, sampling: Sampling) -> bool:
        functions = [LanguageModelTraits(member.lm).gives_logprobs for member in self._opened]
        return all(function is None or function(sampling) for function in functions)

    def gives_certainty(self, sampling: Sampling) -> bool:
        functions = [LanguageModelTraits(member.lm).gives_certainty for member in self._opened]
        return all(function is None or function(sampling) for function in functions)

    def watch_requests(self, observer: RequestObserver) -> None:
        """Set the observer of requests to all servers."""
        self._observer = observer
        for member in self._opened:
            self._watch(member)

    def _watch(self, member: Member) -> None:
        watch = LanguageModelTraits(member.lm).watch_requests
        if watch is not None and self._observer is not None:
            watch(self._observer)

    async def ready(self) -> None:
        """Check that a server answers. Raises the error of the first if none does."""
        await first_result((_require_ready(member) for member in self._opened), MotesError)

    def __repr__(self) -> str:
        return f"Fleet({', '.join(member.name for member in self.members)})"


async def _require_ready(member: Member) -> None:
    """Raise a MotesError if a server does not answer."""
    if (ready := LanguageModelTraits(member.lm).ready) is not None:
        await ready()


def _name(spec: str) -> str:
    """A spec for messages: without its options and what precedes an "@", either of which may contain a key."""
    return re.sub(r"(?s)//.*@", "//…@", spec.partition("?")[0].strip())


def _is_servers_fault(error: MotesError) -> bool:
    """Whether another server may do what this one could not."""
    return isinstance(error, (ServerError, UnauthorizedError)) and not isinstance(error, RejectedError)


def _with_usage(outcome: Step | Failure, wasted: Usage) -> Step | Failure:
    if wasted == Usage():
        return outcome
    if isinstance(outcome, Step):
        return replace(outcome, usage=(outcome.usage or Usage(generated_tokens=outcome.num_tokens)) + wasted)
    return replace(outcome, usage=outcome.usage + wasted)
