"""Answers as server-sent events, in OpenAI's chunks.

Text is sent as soon as it is certain, before the run ends. If a method has one population, or draws its answers
independently, its answer begins with the common beginning of all its particles. While nothing is certain, comments keep
the connection alive.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from motes.core import Record, Result, Trajectory, Usage
from motes.gateway import tracing
from motes.gateway.answering import ParsedRequest
from motes.gateway.errors import CLIENT_CLOSED_REQUEST, response_to_error
from motes.gateway.logs import RequestLog
from motes.gateway.replies import finish_reason, head, run_summary, usage
from motes.gateway.wire import ChatRequest
from motes.lab.run.traces import Particles, Tree
from motes.methods.run import MethodTraits, Observer, ProgressCallback, Run
from motes.text import json_line

T = TypeVar("T")
Solve = Callable[[ParsedRequest, Observer, ProgressCallback], Awaitable[Result]]

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": the particles are at work\n\n"


class Chunks:
    """The events of one answer, each with a chunk."""

    def __init__(self, request: ParsedRequest) -> None:
        body = request.body
        self._request, self._is_chat, self._progress = request, isinstance(body, ChatRequest), body.motes.progress
        self._with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._head = head(body, "chat.completion.chunk")
        self._one_population = MethodTraits(request.method).one_population
        self._tree = Tree() if self._progress == "particles" else None
        self._sent = ""

    def opening(self) -> bytes:
        """The role, which begins a chat."""
        return self._piece(0, "", role="assistant") if self._is_chat else b""

    def round(self, record: Record) -> bytes:
        """The text that a round has made certain and, if the request asks for it, the state of the particles."""
        text = self._certain_text(record.trajectories) if self._one_population else b""
        return text + self._state(record) if self._progress else text

    def partial_answers(self, trajectories: Sequence[Trajectory]) -> bytes:
        """Like `round`, for answers that are drawn independently, without rounds and weights."""
        text, n = self._certain_text(trajectories), len(trajectories)
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

    def ending(self, result: Result) -> bytes:
        """The rest of each answer, its finish reason, and the fields beside the answers. Raises the errors of
        `ParsedRequest.answers`."""
        answers, events = self._request.answers(result), b""
        if self._tree is not None:
            final = {"answers": result.answers, **self._particles(self._tree, self._tree.final(result))}
            events += self._piece(0, "", motes={"final": final})
        for i, trajectory in enumerate(answers):
            if i and self._is_chat:
                events += self._piece(i, "", role="assistant")
            if rest := trajectory.text.removeprefix("" if i else self._sent):
                events += self._piece(i, rest)
        *others, last = enumerate(answers)
        for i, trajectory in others:
            events += self._piece(i, None, finish_reason=finish_reason(trajectory))
        summary = run_summary(self._request, result, answers)
        events += self._piece(last[0], None, finish_reason=finish_reason(last[1]), motes=summary)
        if self._with_usage:
            events += self._chunk([], usage=usage(result))
        return events + DONE

    def _certain_text(self, trajectories: Sequence[Trajectory]) -> bytes:
        """A chunk with the part of the common beginning of all texts that has not been sent yet."""
        texts = [trajectory.text for trajectory in trajectories if trajectory.error is None]
        if not texts:
            return b""
        first, last = min(texts), max(texts)  # the common beginning of these two is that of all
        end = sent = len(self._sent)
        while end < len(first) and first[end] == last[end]:  # only at new characters, as there are many rounds
            end += 1
        if end == sent:
            return b""
        self._sent = first[:end]
        return self._piece(0, first[sent:end])

    def _state(self, record: Record, **more: Any) -> bytes:
        """The state of the particles after a round."""
        progress = {
            "round": int(max(t.depth for t in record.trajectories)),
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
        return self._piece(0, "", motes={"progress": progress})

    def _particles(self, tree: Tree, particles: Particles) -> dict[str, Any]:
        """A population in the format of traces, with its new nodes. Clients do not learn why a model failed."""
        errors = dict.fromkeys(particles.errors, "a model failed")
        return {
            "population": dataclasses.asdict(dataclasses.replace(particles, errors=errors)),
            "nodes": {place: dataclasses.asdict(node) for place, node in tree.news().items()},
        }

    def _piece(
        self, index: int, text: str | None, *, role: str | None = None, finish_reason: str | None = None, **fields: Any
    ) -> bytes:
        """A chunk with a piece of one answer."""
        content: dict[str, Any] = {"text": text or ""}
        if self._is_chat:
            delta = {"role": role, "content": text}
            content = {"delta": {name: value for name, value in delta.items() if value is not None}}
        return self._chunk([{"index": index, **content, "logprobs": None, "finish_reason": finish_reason}], **fields)

    def _chunk(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        empty = {"usage": None} if self._with_usage else {}
        return event({**self._head, "choices": choices, **empty, **fields})


def event(data: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json_line(data, compact=True)}\n\n".encode()


async def _events(request: ParsedRequest, solve: Solve, entry: RequestLog, heartbeat: float) -> AsyncGenerator[bytes]:
    """The events of a run, while it goes on. An error is an event, too."""
    chunks = Chunks(request)
    queue: asyncio.Queue[Record | Sequence[Trajectory] | None] = asyncio.Queue()
    latest: Sequence[Trajectory] = ()  # partial answers; earlier ones that were not sent yet are skipped

    def keep_round(run: Run, record: Record) -> None:
        queue.put_nowait(record)

    def keep_latest(trajectories: Sequence[Trajectory]) -> None:
        nonlocal latest
        if not latest:
            queue.put_nowait(())
        latest = trajectories

    task = asyncio.ensure_future(solve(request, keep_round, keep_latest))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        if opening := chunks.opening():
            yield opening
        while True:
            try:
                item = await asyncio.wait_for(queue.get(), heartbeat)
            except TimeoutError:
                yield HEARTBEAT
                continue
            if item is None:
                break
            if isinstance(item, Record):
                new = chunks.round(item)
            else:
                new, latest = chunks.partial_answers(latest), ()
            if new:
                yield new
        yield chunks.ending(task.result())
    except Exception as error:
        entry.status, body, _ = response_to_error(error, entry.request)
        tracing.note({"motes.status": entry.status})
        yield event(body) + DONE
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class EventStream(StreamingResponse):
    """Sends the events of a run until they end or the client disconnects, which cancels the run.

    Args:
        solve: runs the request.
        heartbeat: seconds without an event after which a comment is sent.
        resources: closed at the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self, request: ParsedRequest, solve: Solve, entry: RequestLog, heartbeat: float, resources: AsyncExitStack
    ) -> None:
        self._events, self._entry, self._resources = _events(request, solve, entry, heartbeat), entry, resources
        super().__init__(self._events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources, aclosing(self._events):
            try:
                await unless_disconnected(self.stream_response(send), receive)
            except ClientDisconnect:
                self._entry.status = CLIENT_CLOSED_REQUEST
            except asyncio.CancelledError:  # the server stops, and the run has not ended when it had to
                self._entry.status = 503
                raise


async def unless_disconnected(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects: then it raises ClientDisconnect."""
    task = asyncio.ensure_future(work)

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    disconnect = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait([task, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for future in (task, disconnect):
            future.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)
