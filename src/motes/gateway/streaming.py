"""Answers as server-sent events, in OpenAI's chunks.

Text is sent as soon as it is certain, before the run ends. If a method has one population, or draws its answers
independently, its answer begins with the common beginning of all its particles. While nothing is certain, comments keep
the connection alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from motes.core import Record, Result, Trajectory, Usage
from motes.errors import MissingExtraError
from motes.gateway.answering import ParsedRequest
from motes.gateway.replies import FINGERPRINT, finish_reason, identifier, run_summary, usage
from motes.gateway.wire import Progress
from motes.lab.run.traces import Particles, Tree
from motes.methods.run import MethodTraits, Observer, ProgressCallback
from motes.text import json_line

try:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError("the gateway", "serve") from error

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": the particles are at work\n\n"


class Chunks:
    """The chunks of one answer.

    Args:
        name: the model's name.
        chat: whether the request is a chat or a completion.
        with_usage: whether the last chunk has the usage.
        progress: what is sent after each round, see `wire.MotesOptions`.
    """

    def __init__(self, name: str, chat: bool, request: ParsedRequest, *, with_usage: bool, progress: Progress) -> None:
        self._chat, self._request, self._with_usage, self._progress = chat, request, with_usage, progress
        self._frame = {
            "id": identifier(chat),
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": FINGERPRINT,
        }
        self._one_population = MethodTraits(request.method).one_population
        self._tree = Tree() if progress == "particles" else None
        self._sent = ""

    def opening(self) -> list[bytes]:
        """The chunk with the role, which begins a chat."""
        return [self._chunk([self._choice(0, "", role="assistant")])] if self._chat else []

    def round(self, record: Record) -> list[bytes]:
        """The text that a round has made certain and, if the request asks for it, the state of the particles."""
        certain = self._certain(record.trajectories) if self._one_population else []
        return [*certain, *(self._progressed(record) if self._progress else [])]

    def partial_answers(self, trajectories: Sequence[Trajectory]) -> list[bytes]:
        """The same for answers that are drawn independently, without rounds and weights."""
        certain, n = self._certain(trajectories), len(trajectories)
        if not self._progress:
            return certain
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
        return [*certain, *self._progressed(record, apart=True)]

    def _certain(self, trajectories: Sequence[Trajectory]) -> list[bytes]:
        """The part of the common beginning of all texts that has not been sent yet."""
        texts = [trajectory.text for trajectory in trajectories if trajectory.error is None]
        if not texts:
            return []
        first, last = min(texts), max(texts)  # the common beginning of these two is that of all
        end = sent = len(self._sent)
        while end < len(first) and first[end] == last[end]:  # looks at new characters only: there are many rounds
            end += 1
        if end == sent:
            return []
        self._sent = first[:end]
        return [self._chunk([self._choice(0, first[sent:end])])]

    def _progressed(self, record: Record, **more: Any) -> list[bytes]:
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
        return [self._chunk([self._choice(0, "")], motes={"progress": progress})]

    def _particles(self, tree: Tree, particles: Particles) -> dict[str, Any]:
        """A population in the format of traces, with its new nodes. Clients do not learn why a model failed."""
        errors = dict.fromkeys(particles.errors, "a model failed")
        return {
            "population": dataclasses.asdict(dataclasses.replace(particles, errors=errors)),
            "nodes": {place: dataclasses.asdict(node) for place, node in tree.news().items()},
        }

    def ending(self, result: Result, answers: Sequence[Trajectory]) -> list[bytes]:
        """The rest of each answer, its finish reason, and the fields beside the answers."""
        chunks = []
        if self._tree is not None:
            final = {"answers": result.answers, **self._particles(self._tree, self._tree.final(result))}
            chunks.append(self._chunk([self._choice(0, "")], motes={"final": final}))
        for i, trajectory in enumerate(answers):
            if i and self._chat:
                chunks.append(self._chunk([self._choice(i, "", role="assistant")]))
            rest = trajectory.text.removeprefix(self._sent) if i == 0 else trajectory.text
            if rest:
                chunks.append(self._chunk([self._choice(i, rest)]))
        summary = run_summary(self._request, result, answers)
        for i, trajectory in enumerate(answers):
            end = {**self._choice(i, None), "finish_reason": finish_reason(trajectory)}
            chunks.append(self._chunk([end], **({"motes": summary} if i == len(answers) - 1 else {})))
        if self._with_usage:
            chunks.append(self._chunk([], usage=usage(result)))
        return [*chunks, DONE]

    def _choice(self, index: int, text: str | None, **delta: Any) -> dict[str, Any]:
        if self._chat:
            content = {"delta": {**delta, **({} if text is None else {"content": text})}}
        else:
            content = {"text": text or ""}  # type: ignore[dict-item]
        return {"index": index, **content, "logprobs": None, "finish_reason": None}

    def _chunk(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        empty = {"usage": None} if self._with_usage else {}
        return event({**self._frame, "choices": choices, **empty, **fields})


def event(data: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json_line(data, compact=True)}\n\n".encode()


async def events(
    chunks: Chunks,
    solve: Callable[[Observer, ProgressCallback], Awaitable[Result]],
    answers_of: Callable[[Result], Sequence[Trajectory]],
    error_body: Callable[[Exception], Any],
    heartbeat: float,
) -> AsyncIterator[bytes]:
    """The events of a run, while it goes on.

    Args:
        solve: starts the run with two callbacks, for its rounds and for answers that are drawn independently.
        answers_of: returns the answers that a client sees.
        error_body: returns the body for an error, in OpenAI's format.
        heartbeat: seconds without an event after which a comment is sent.
    """
    queue: asyncio.Queue[Record | Sequence[Trajectory] | None] = asyncio.Queue()
    latest: Sequence[Trajectory] = ()  # partial answers; earlier ones that were not sent yet are skipped

    def keep_latest(trajectories: Sequence[Trajectory]) -> None:
        nonlocal latest
        if not latest:
            queue.put_nowait(())
        latest = trajectories

    task = asyncio.ensure_future(solve(lambda run, record: queue.put_nowait(record), keep_latest))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        for chunk in chunks.opening():
            yield chunk
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
            for chunk in new:
                yield chunk
        try:
            result = task.result()
            last = chunks.ending(result, answers_of(result))
        except Exception as error:
            last = [event(error_body(error)), DONE]
        for chunk in last:
            yield chunk
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class EventStream(Response):
    """Sends events until they end or the client disconnects, then closes them.

    Args:
        resources: closed at the end.
        on_disconnect: called if the client disconnects before the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], resources: contextlib.AsyncExitStack, on_disconnect: Callable[[], None]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._resources, self._on_disconnect = events, resources, on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_events() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def wait_for_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(send_events()), asyncio.ensure_future(wait_for_disconnect())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                self._on_disconnect()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()  # type: ignore[attr-defined]  # it is a generator
            await self._resources.aclose()
