"""Answers as streams of server-sent events.

Text is sent as soon as it is certain, before the run ends. If a method has one population, or draws its answers
independently, its answer begins with the common beginning of all its particles. While nothing is certain, heartbeats
keep the connection alive.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from motes.core import Record, Result, Trajectory, Usage
from motes.gateway import tracing
from motes.gateway.answering import ParsedRequest
from motes.gateway.disconnects import unless_disconnected
from motes.gateway.errors import CLIENT_CLOSED_REQUEST, response_to_error
from motes.gateway.logs import RequestLog
from motes.gateway.replies import reply_to
from motes.gateway.thoughts import ThoughtSplitter
from motes.gateway.writers import Writer
from motes.lab.run.tree import Particles, Round, Tree
from motes.methods.method import MethodTraits
from motes.methods.run import Observer, ProgressCallback, Run

Solve = Callable[
    [ParsedRequest, Observer, ProgressCallback, Callable[[], bool]], Awaitable[tuple[ParsedRequest, Result]]
]


class Narrator:
    """Tells a run's progress as the events of a writer."""

    def __init__(self, request: ParsedRequest, writer: Writer) -> None:
        self._request, self._writer, self._progress = request, writer, request.body.motes.progress
        self._is_text = request.turns is None  # a whole turn may have tool calls, and is certain at the end
        self._one_population = MethodTraits(request.method).one_population
        self._independent = MethodTraits(request.method).independent  # otherwise whole answers may be replaced
        self._tree = Tree(request.problem) if self._progress == "particles" else None
        self._num_rounds = 0
        self._sent = ""  # the beginning of the first answer that has been sent
        self._splitter = ThoughtSplitter()
        self.has_text = False  # whether the events so far contain text

    def round(self, record: Record) -> bytes:
        """The text that a round has made certain and, if the request asks for it, the state of the particles."""
        text = self._certain_text(record.trajectories) if self._one_population else b""
        self._num_rounds += 1
        return text + self._state(record) if self._progress else text

    def partial_answers(self, trajectories: Sequence[Trajectory]) -> bytes:
        """Like `round`, for answers that are being drawn whole, without weights."""
        text, n = self._certain_text(trajectories) if self._independent else b"", len(trajectories)
        if not self._progress:
            return text
        record = Record(
            trajectories=tuple(trajectories),
            ancestors=np.arange(n),
            log_weights=np.zeros(n),
            scores=np.full(n, np.nan),
            ess=n,
            resampled=False,
            log_evidence=np.nan,
            usage=Usage(),
        )
        return text + self._state(record, apart=True)

    @property
    def has_begun(self) -> bool:
        """Whether something of the answer has been sent."""
        return bool(self._sent)

    def ending(self, request: ParsedRequest, result: Result) -> bytes:
        """The rest of each answer, and what follows the answers. Raises the errors of `ParsedRequest.answers`."""
        reply, events = reply_to(request, result), b""
        if self._tree is not None:
            final = {"answers": result.answers, **self._particles(self._tree, self._tree.final(result))}
            events += self._writer.state(final=final)
        for i, answer in enumerate(reply.answers):
            if answer.thoughts and not self._is_text:
                events += self._writer.text(i, answer.thoughts, in_thought=True)
            events += self._text(i, answer.text.removeprefix("" if i else self._sent), is_last=True)
        return events + self._writer.ending(reply)

    def _certain_text(self, trajectories: Sequence[Trajectory]) -> bytes:
        """The part of the common beginning of all texts that has not been sent yet."""
        texts = [trajectory.text for trajectory in trajectories if trajectory.error is None]
        if not (texts and self._is_text):
            return b""
        first, last = min(texts), max(texts)  # the common beginning of these two is that of all
        sent = len(self._sent)
        end = common_length(first, last, sent)  # only at new characters, as there are many rounds
        if end == sent:
            return b""
        self._sent = first[:end]
        return self._text(0, first[sent:end])

    def _text(self, index: int, text: str, *, is_last: bool = False) -> bytes:
        """A piece of an answer's text: the first answer comes piece by piece, the others whole. That of a whole turn is
        without thoughts."""
        self.has_text = self.has_text or text != ""
        if not (self._request.separates_thoughts and self._is_text):
            return self._writer.text(index, text, in_thought=False) if text else b""
        splitter = ThoughtSplitter() if index else self._splitter
        parts = splitter.feed(text, is_last=is_last)
        return b"".join(self._writer.text(index, part, in_thought=in_thought) for in_thought, part in parts)

    def _state(self, record: Record, **more: Any) -> bytes:
        """The state of the particles after a round."""
        progress = {
            "round": self._num_rounds if record.moves else int(max(t.depth for t in record.trajectories)),
            "sweep": record.sweep,
            "chain": record.chain,
            "ess": record.ess,
            "resampled": record.resampled,
            "particles": len(record.trajectories),
            "finished": sum(t.finished is not None for t in record.trajectories),
            "survivors": len(set(record.ancestors.tolist())),
            **more,
        }
        if self._tree is not None:
            progress |= self._particles(self._tree, self._tree.round(record))
        return self._writer.state(progress=progress)

    def _particles(self, tree: Tree, particles: Particles) -> dict[str, Any]:
        """A population in the format of traces, with its new nodes. Clients do not learn why a model failed."""
        particles = dataclasses.replace(particles, errors=dict.fromkeys(particles.errors, "a model failed"))
        if isinstance(particles, Round) and (moves := particles.moves) is not None:
            moves = dataclasses.replace(moves, errors=dict.fromkeys(moves.errors, "a model failed"))
            particles = dataclasses.replace(particles, moves=moves)
        return {
            "population": dataclasses.asdict(particles),
            "nodes": {place: dataclasses.asdict(node) for place, node in tree.news().items()},
        }


def common_length(first: str, second: str, start: int) -> int:
    """The length of the common beginning of two texts, which are the same up to `start`. It bisects: comparing slices
    is much faster than comparing characters, and texts may have megabytes while the event loop waits."""
    end, most = start, min(len(first), len(second))
    while end < most:
        middle = (end + most + 1) // 2
        if first[end:middle] == second[end:middle]:
            end = middle
        else:
            most = middle - 1
    return end


class EventStream(StreamingResponse):
    """Sends the events of a run until they end or the client disconnects, which cancels the run. An error is an event,
    too.

    Args:
        writer: writes the events.
        solve: runs the request.
        heartbeat: seconds without an event after which a comment is sent.
        resources: released when the run ends, even if nobody has read its events.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: ParsedRequest,
        writer: Writer,
        solve: Solve,
        entry: RequestLog,
        heartbeat: float,
        resources: AsyncExitStack,
    ) -> None:
        self._writer, self._narrator = writer, Narrator(request, writer)
        self._entry, self._heartbeat = entry, heartbeat
        self._request, self._solve, self._resources = request, solve, resources
        self._queue: asyncio.Queue[Record | Sequence[Trajectory] | None] = asyncio.Queue()  # None: the run has ended
        self._latest: Sequence[Trajectory] = ()  # partial answers; earlier ones that were not sent yet are skipped
        self._events = self._write_events()
        super().__init__(self._events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._run = asyncio.ensure_future(self._solve_and_release())
        self._run.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            async with aclosing(self._events):
                await unless_disconnected(self.stream_response(send), receive)
        except (ClientDisconnect, OSError):
            self._entry.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:  # the server stops, and the run has not ended when it had to
            self._entry.status = 503
            raise
        finally:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)

    async def _solve_and_release(self) -> tuple[ParsedRequest, Result]:
        async with self._resources:
            return await self._solve(
                self._request, self._keep_round, self._keep_latest, lambda: not self._narrator.has_begun
            )

    def _keep_round(self, run: Run, record: Record) -> None:
        self._queue.put_nowait(record)

    def _keep_latest(self, trajectories: Sequence[Trajectory]) -> None:
        if not self._latest:
            self._queue.put_nowait(())
        self._latest = trajectories

    async def _write_events(self) -> AsyncGenerator[bytes]:
        writer, narrator = self._writer, self._narrator
        try:
            if opening := writer.opening():
                yield opening
            while True:
                try:
                    async with asyncio.timeout(self._heartbeat):  # `wait_for` of Python 3.11 loses cancellations
                        item = await self._queue.get()
                except TimeoutError:
                    yield writer.heartbeat
                    continue
                if item is None:
                    break
                if isinstance(item, Record):
                    new = narrator.round(item)
                else:
                    new, self._latest = narrator.partial_answers(self._latest), ()
                if narrator.has_text:
                    self._entry.note_text()
                if new:
                    yield new
            ending = narrator.ending(*self._run.result())
            if narrator.has_text:
                self._entry.note_text()
            yield ending
        except Exception as error:
            self._entry.status, body, _ = response_to_error(error, self._entry.request)
            self._entry.note_error(body)
            tracing.note({"motes.status": self._entry.status})
            yield writer.failure(self._entry.status, body)
