"""Answers as server-sent events, in OpenAI's chunks.

What is certain is sent before the run has ended: where a method has one population, or draws its answers apart,
whatever it will answer begins with what all of its particles begin with. While nothing is certain, comments keep the
connection alive.
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
from motes.gateway.answering import Asked
from motes.gateway.replies import FINGERPRINT, about, finish_reason, identifier, usage
from motes.gateway.wire import Progress
from motes.lab.run.traces import Particles, Tree
from motes.methods.run import Follower, MethodTraits, Observer
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
        name: of the model. chat: of a conversation, or of a completion. asked: the request.
        with_usage: a last chunk holds the usage. progress: what is told of each round, see `wire.Own`.
    """

    def __init__(self, name: str, chat: bool, asked: Asked, *, with_usage: bool, progress: Progress) -> None:
        self._chat, self._asked, self._with_usage, self._progress = chat, asked, with_usage, progress
        self._frame = {
            "id": identifier(chat),
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": FINGERPRINT,
        }
        self._one_population = MethodTraits.of(asked.method).one_population
        self._tree = Tree() if progress == "particles" else None
        self._sent = ""

    def opening(self) -> list[bytes]:
        """Who speaks."""
        return [self._chunk([self._said(0, "", role="assistant")])] if self._chat else []

    def round(self, record: Record) -> list[bytes]:
        """What a round has made certain, and, if that was asked for, how the particles are."""
        certain = self._certain(record.trajectories) if self._one_population else []
        return [*certain, *(self._progressed(record) if self._progress else [])]

    def standing(self, trajectories: Sequence[Trajectory]) -> list[bytes]:
        """The same of answers that are drawn apart, which have neither rounds nor weights."""
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
        """What all begin with, as far as it has not been sent."""
        texts = [trajectory.text for trajectory in trajectories if trajectory.error is None]
        if not texts:
            return []
        first, last = min(texts), max(texts)  # what these two begin with, all do
        end = sent = len(self._sent)
        while end < len(first) and first[end] == last[end]:  # never more than the new letters: rounds are many
            end += 1
        if end == sent:
            return []
        self._sent = first[:end]
        return [self._chunk([self._said(0, first[sent:end])])]

    def _progressed(self, record: Record, **more: Any) -> list[bytes]:
        """How the particles are."""
        told = {
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
            told |= self._particles(self._tree, self._tree.round(record))
        return [self._chunk([self._said(0, "")], motes={"progress": told})]

    def _particles(self, tree: Tree, particles: Particles) -> dict[str, Any]:
        """A population as traces have it, with the nodes that came with it. Why a model failed is not for clients."""
        errors = dict.fromkeys(particles.errors, "a model failed")
        return {
            "population": dataclasses.asdict(dataclasses.replace(particles, errors=errors)),
            "nodes": {place: dataclasses.asdict(node) for place, node in tree.news().items()},
        }

    def ending(self, result: Result, shown: Sequence[Trajectory]) -> list[bytes]:
        """What is left of each answer, why it ended, and what is known besides."""
        chunks = []
        if self._tree is not None:
            told = {"answers": result.answers, **self._particles(self._tree, self._tree.final(result))}
            chunks.append(self._chunk([self._said(0, "")], motes={"final": told}))
        for i, trajectory in enumerate(shown):
            if i and self._chat:
                chunks.append(self._chunk([self._said(i, "", role="assistant")]))
            rest = trajectory.text.removeprefix(self._sent) if i == 0 else trajectory.text
            if rest:
                chunks.append(self._chunk([self._said(i, rest)]))
        known = about(self._asked, result, shown)
        for i, trajectory in enumerate(shown):
            ended = {**self._said(i, None), "finish_reason": finish_reason(trajectory)}
            chunks.append(self._chunk([ended], **({"motes": known} if i == len(shown) - 1 else {})))
        if self._with_usage:
            chunks.append(self._chunk([], usage=usage(result)))
        return [*chunks, DONE]

    def _said(self, index: int, text: str | None, **delta: Any) -> dict[str, Any]:
        if self._chat:
            said = {"delta": {**delta, **({} if text is None else {"content": text})}}
        else:
            said = {"text": text or ""}  # type: ignore[dict-item]
        return {"index": index, **said, "logprobs": None, "finish_reason": None}

    def _chunk(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        empty = {"usage": None} if self._with_usage else {}
        return event({**self._frame, "choices": choices, **empty, **fields})


def event(data: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json_line(data, compact=True)}\n\n".encode()


async def events(
    chunks: Chunks,
    solve: Callable[[Observer, Follower], Awaitable[Result]],
    shown: Callable[[Result], Sequence[Trajectory]],
    failed: Callable[[Exception], Any],
    heartbeat: float,
) -> AsyncIterator[bytes]:
    """The events of a run, as it goes.

    Args:
        solve: begins the run, with those who are told of its rounds and of answers drawn apart.
        shown: the answers that a client sees. failed: an error, in OpenAI's shape.
        heartbeat: seconds without an event after which one is sent that means nothing.
    """
    told: asyncio.Queue[Record | Sequence[Trajectory] | None] = asyncio.Queue()
    standing: Sequence[Trajectory] = ()  # the latest; those that nobody came to tell of are passed over

    def follow(trajectories: Sequence[Trajectory]) -> None:
        nonlocal standing
        if not standing:
            told.put_nowait(())
        standing = trajectories

    task = asyncio.ensure_future(solve(lambda run, record: told.put_nowait(record), follow))
    task.add_done_callback(lambda _: told.put_nowait(None))
    try:
        for chunk in chunks.opening():
            yield chunk
        while True:
            try:
                news = await asyncio.wait_for(told.get(), heartbeat)
            except TimeoutError:
                yield HEARTBEAT
                continue
            if news is None:
                break
            if isinstance(news, Record):
                now = chunks.round(news)
            else:
                now, standing = chunks.standing(standing), ()
            for chunk in now:
                yield chunk
        try:
            result = task.result()
            last = chunks.ending(result, shown(result))
        except Exception as error:
            last = [event(failed(error)), DONE]
        for chunk in last:
            yield chunk
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class EventStream(Response):
    """Sends events until they end or the client leaves, whichever comes first; then they are closed.

    Args:
        events: what is sent.
        held: what is let go of at the end. left: told if the client leaves before it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], held: contextlib.AsyncExitStack, left: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._held, self._left = events, held, left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(tell()), asyncio.ensure_future(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                self._left()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()  # type: ignore[attr-defined]  # it is a generator
            await self._held.aclose()
