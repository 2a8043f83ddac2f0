"""The local engine: any causal language model of transformers, with shared prefixes and continuous batching.

Trajectories fork without recomputing anything: a child begins with its parent's keys and values. Calls of any number
of concurrent runs decode together; a sequence leaves the batch the moment its step ends, and the next one takes its
place.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from motes.arguments import whole_number
from motes.core import Sampling, Step, StepEnd, Trajectory, Usage
from motes.errors import ConfigurationError, ContextLengthError, EngineError
from motes.kv.checkpoint import open_checkpoint
from motes.kv.engine import Engine
from motes.kv.runner import moves
from motes.kv.worker import Request
from motes.models.sampler import Sampler, uniforms
from motes.steps import divided, drawn_before, end_at_limit, first_cut
from motes.threads import in_thread_if_long
from motes.vocabulary import TextEnds, Vocabulary

KEPT_ENDS = 64
"""Sets of delimiters and stop texts for which it is remembered which tokens can complete them."""

FEW_TEXTS = 8
"""Delimiters and stop texts that are made ready at once."""


@dataclass(eq=False)
class _Extension(Request):
    """One trajectory to be extended by a step: a request and, once it has a row, a sequence in the batch."""

    ids: list[int]  # every token so far; the last one is fed first
    sampling: Sampling
    seed: int
    limit: int  # tokens that this step may have
    ends: TextEnds | None = None  # finds delimiters and stop texts; None: there are none, or a pattern is looked for
    before: str = ""  # what the step's text begins with: drawn with the last step, or opened by the prompt
    prompt_usage: Usage = field(default_factory=Usage)
    text: str = ""  # of the step so far, where a pattern is looked for in it
    read: Callable[[int], str] | None = None  # what a token adds to that text

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values must be there before the first token can be drawn."""
        return self.ids[:-1]

    @property
    def longest(self) -> int:
        return len(self.ids) + self.limit


class _Batch:
    """The sequences that decode together, row by row as in the workspace, as arrays."""

    def __init__(self) -> None:
        self.requests: list[_Extension] = []
        self.token = np.zeros(0, dtype=np.int64)  # the last token of each, to be fed next
        self.count = np.zeros(0, dtype=np.int64)  # tokens drawn
        self.limit = np.zeros(0, dtype=np.int64)
        self.seed = np.zeros(0, dtype=np.uint64)
        self.logprob = np.zeros(0)
        self.proposal_logprob = np.zeros(0)
        self.drawn = np.zeros((0, 0), dtype=np.int64)  # (rows, longest limit so far)

    def __len__(self) -> int:
        return len(self.requests)

    def append(self, requests: Sequence[_Extension]) -> None:
        self.requests.extend(requests)
        n = len(requests)
        self.token = np.append(self.token, [request.ids[-1] for request in requests])
        self.count = np.append(self.count, np.zeros(n, dtype=np.int64))
        self.limit = np.append(self.limit, [request.limit for request in requests])
        self.seed = np.append(self.seed, np.array([request.seed for request in requests], dtype=np.uint64))
        self.logprob = np.append(self.logprob, np.zeros(n))
        self.proposal_logprob = np.append(self.proposal_logprob, np.zeros(n))
        self.drawn = np.concatenate([self.drawn, np.zeros((n, self.drawn.shape[1]), dtype=np.int64)])

    def remove(self, rows: npt.NDArray[np.intp]) -> None:
        """Take rows out; the last ones take their places, as in the workspace."""
        sources, targets = moves(rows, len(self))
        left = len(self) - len(rows)
        for source, target in zip(sources, targets, strict=True):
            self.requests[target] = self.requests[source]
        del self.requests[left:]
        for name in ("token", "count", "limit", "seed", "logprob", "proposal_logprob", "drawn"):
            array = getattr(self, name)
            array[targets] = array[sources]
            setattr(self, name, array[:left])


class LocalLanguageModel(Engine[_Extension]):
    """A causal language model of transformers, on CPU or GPU.

    Args:
        model: in evaluation mode.
        vocabulary: its tokenizer.
        max_batch_size: sequences that decode together.
        max_cached_tokens, max_batch_tokens, num_threads: see `motes.kv.engine.Engine`.

    The same (trajectory, sampling, seed) gives the same tokens whatever else is in the batch, up to rounding: products
    of matrices of other shapes round differently in the last bit, and a draw that falls within that bit of the
    boundary between two tokens can differ (in float32 about once in a million tokens, more often in half precision).
    """

    merges_calls = True
    shares_prefixes = True
    role, error = "language model", EngineError

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        max_batch_size: int = 256,
        max_cached_tokens: int | None = None,
        max_batch_tokens: int | None = None,
        num_threads: int | None = None,
        name: str = "local",
    ) -> None:
        whole_number("max_batch_size", max_batch_size, least=1)
        head = model.get_output_embeddings()
        super().__init__(
            model,
            head,
            vocabulary,
            max_cached_tokens=max_cached_tokens,
            max_batch_tokens=max_batch_tokens,
            num_threads=num_threads,
            name=name,
        )
        self.max_batch_size = max_batch_size
        self._waiting: deque[_Extension] = deque()
        self._batch = _Batch()
        self._sampler: Sampler | None = None
        self._text_ends: dict[tuple[str, ...], TextEnds] = {}  # of texts asked for lately
        self._making_ends = threading.Lock()
        self._with_ends: list[tuple[TextEnds, npt.NDArray[np.intp]]] = []  # each with its rows
        self._with_pattern: list[int] = []  # rows
        self._is_eos = np.zeros(head.weight.shape[0], dtype=bool)  # (tokens,), of the model
        self._is_eos[[token for token in _end_tokens(model, vocabulary) if token < len(self._is_eos)]] = True

    @classmethod
    def open(
        cls, path: str, *, device: str | None = None, dtype: str | None = None, **options: Any
    ) -> LocalLanguageModel:
        """Open a checkpoint: a folder, or a name that the hub knows.

        Args:
            device: "cpu", "cuda", …; by default a GPU where there is one.
            dtype: of weights and arithmetic; by default float32 on a CPU, bfloat16 on a GPU.

        Raises:
            ConfigurationError: there is no such checkpoint, or it is not a causal language model.
        """
        model, vocabulary = open_checkpoint(AutoModelForCausalLM, path, device, dtype)
        return cls(model, vocabulary, name=Path(path).name, **options)

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        """See `motes.protocols.LanguageModel`. Concurrent calls decode in one batch."""
        ends = await self._ends_of(sampling)
        steps: list[Step | None] = [None] * len(trajectories)
        requests: list[_Extension] = []
        for problem in {trajectory.problem for trajectory in trajectories}:
            await self.vocabulary.prepare(problem)
        for i, (trajectory, seed) in enumerate(zip(trajectories, seeds, strict=True)):
            before = self._before(trajectory)
            steps[i] = drawn_before(before, sampling)
            if steps[i] is not None:
                continue
            unread = (node for node in trajectory.path if node.step is None or not node.step.token_ids)
            ids, drawn = await in_thread_if_long(sum(len(node.added) for node in unread), self._ids, trajectory)
            limit = min(sampling.max_step_tokens, self.context_length - len(ids))
            if sampling.max_tokens is not None:
                limit = min(limit, sampling.max_tokens - drawn)
            if limit < 1:
                steps[i] = Step("", "length")
            else:
                requests.append(_Extension(ids, sampling, seed, limit, ends, before))
        results = iter(await self.submit(requests))
        return [step or next(results) for step in steps]

    async def _ends_of(self, sampling: Sampling) -> TextEnds | None:
        """What finds the texts that end a step or the answer. Made once, never by the thread that decodes: a few
        texts take milliseconds, many a thread of their own."""
        texts = (*sampling.delimiters, *sampling.stops)
        if sampling.pattern is not None or not texts:
            return None
        if texts not in self._text_ends and len(texts) > FEW_TEXTS:
            return await asyncio.to_thread(self._make_ends, texts)
        return self._make_ends(texts)

    def _make_ends(self, texts: tuple[str, ...]) -> TextEnds:
        with self._making_ends:
            if texts not in self._text_ends:
                ends = self.vocabulary.text_ends(texts, len(self._is_eos))
                if len(self._text_ends) >= KEPT_ENDS:
                    del self._text_ends[next(iter(self._text_ends))]
                self._text_ends[texts] = ends
            return self._text_ends[texts]

    def _ids(self, trajectory: Trajectory) -> tuple[list[int], int]:
        """Every token of a partial answer, prompt first; and how many of them are the answer's."""
        prompt = self.vocabulary.prompt(trajectory.problem)
        if len(prompt) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and {self.name!r} a context of {self.context_length}: "
                "shorten the question"
            )
        ids = list(prompt)
        for node in trajectory.path:
            assert node.step is not None
            ids.extend(node.step.token_ids or self._encoded(node))
        self.require_known(ids)
        return ids, len(ids) - len(prompt)

    def _encoded(self, node: Trajectory) -> list[int]:
        """The tokens of a step that is known as text only: special ones that it spells are text, as no step's text
        holds others."""
        opened = "" if node.depth > 1 else self.vocabulary.opening(node.problem)
        return self.vocabulary.encode(node.added.removeprefix(opened), special=False)

    def _before(self, trajectory: Trajectory) -> str:
        """What the next step's text begins with."""
        return self.vocabulary.opening(trajectory.problem) if trajectory.step is None else trajectory.step.ahead

    # In the worker's thread:

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batch)

    def work(self, arrived: list[_Extension]) -> None:
        self._waiting.extend(arrived)
        self._admit()
        if self._batch:
            self._decode()
            self._take_out(np.flatnonzero([request.settled for request in self._batch.requests]))

    def abandon(self) -> None:
        self._waiting.clear()
        self._batch = _Batch()
        self._sampler = None
        super().abandon()

    def _admit(self) -> None:
        """Give rows to waiting requests, as many as fit, and compute what of their prefixes is not stored.

        Of several that need the same missing prefix one computes it; the others are admitted in the next round.
        """
        workspace = self._runner.workspace
        longest = max((request.longest for request in self._batch.requests), default=0)
        admitted: list[_Extension] = []
        stored: list[torch.Tensor] = []
        missing: list[list[int]] = []
        postponed: list[_Extension] = []
        computing: set[tuple[int, ...]] = set()
        while self._waiting and len(self._batch) + len(admitted) < self.max_batch_size:
            request = self._waiting[0]
            rows = len(self._batch) + len(admitted) + 1
            longest = max(longest, request.longest)
            if rows > 1 and rows * longest > self.max_batch_tokens:
                break
            self._waiting.popleft()
            if request.settled:
                continue
            prefix = request.prefix
            slots = self.tree.match(prefix)
            todo = prefix[len(slots) :]
            if todo:
                if (key := tuple(prefix)) in computing:
                    postponed.append(request)
                    continue
                computing.add(key)
            admitted.append(request)
            stored.append(slots)
            missing.append(todo)
            request.prompt_usage = Usage(prefill_tokens=len(todo), prefill_tokens_cached=len(slots))
        self._waiting.extendleft(reversed(postponed))
        if not admitted:
            return
        first = len(self._batch)
        self._batch.append(admitted)
        self._sampler = None
        workspace.reserve(len(self._batch), 64 + max(len(request.ids) for request in admitted))
        workspace.append(stored)
        for _ in self._runner.feed(first, missing):
            pass
        computed = [i for i, todo in enumerate(missing) if todo]
        self._runner.store(self.tree, [first + i for i in computed], [admitted[i].prefix for i in computed])

    def _decode(self) -> None:
        """One token for every row; rows whose step ends leave."""
        batch = self._batch
        if self._sampler is None:
            self._sampler = Sampler([request.sampling for request in batch.requests], self._runner.device)
            self._with_ends = self._rows_by_ends()
            self._with_pattern = [row for row, request in enumerate(batch.requests) if request.sampling.pattern]
        hidden = self._runner.forward(0, torch.from_numpy(batch.token)[:, None])
        tokens, logprobs, proposals = self._sampler(self._head(hidden[:, -1]), uniforms(batch.seed, batch.count))
        self._runner.require_numbers(logprobs)  # which no row of logits with a NaN or an infinity among them has
        token = tokens.cpu().numpy()
        if batch.drawn.shape[1] <= batch.count.max():
            wider = np.zeros((len(batch), max(32, 2 * batch.drawn.shape[1])), dtype=np.int64)
            wider[:, : batch.drawn.shape[1]] = batch.drawn
            batch.drawn = wider
        batch.token = token
        batch.drawn[np.arange(len(batch)), batch.count] = token
        batch.count += 1
        batch.logprob += logprobs.double().cpu().numpy()
        batch.proposal_logprob += proposals.cpu().numpy()
        found = np.zeros(len(batch), dtype=bool)  # the end of a step or an answer, in the text
        for ends, rows in self._with_ends:
            for row in rows[ends.completes[token[rows]]]:
                found[row] = ends.completed_by_last(batch.drawn[row, : batch.count[row]])
        for row in self._with_pattern:
            found[row] = self._matches(batch.requests[row], int(token[row]))
        eos = self._is_eos[token]
        ended = eos | found | (batch.count >= batch.limit)
        if ended.any():
            self._finish(np.flatnonzero(ended), eos, found)

    def _matches(self, request: _Extension, token: int) -> bool:
        """Whether the token completes the end of a step that its pattern is looked for in."""
        if request.read is None:
            request.text, request.read = request.before, self.vocabulary.reader(request.ids)
        seen = len(request.text)
        request.text += request.read(token)
        return first_cut(request.text, request.sampling, seen) is not None

    def _rows_by_ends(self) -> list[tuple[TextEnds, npt.NDArray[np.intp]]]:
        rows: dict[TextEnds, list[int]] = {}
        for row, request in enumerate(self._batch.requests):
            if request.ends is not None:
                rows.setdefault(request.ends, []).append(row)
        return [(ends, np.array(of)) for ends, of in rows.items()]

    def _finish(self, rows: npt.NDArray[np.intp], eos: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> None:
        """Take out rows whose step has ended, and resolve their requests.

        Args:
            eos, found: of each row of the batch, whether its answer has ended, and whether its text says that its step
                has.
        """
        batch = self._batch
        ids = {row: batch.requests[row].ids + batch.drawn[row, : batch.count[row]].tolist() for row in rows.tolist()}
        steps = [(batch.requests[row], self._step(row, ids[row], eos[row], found[row])) for row in ids]
        going_on = [row for row in ids if not eos[row]]  # an ended answer is never extended
        self._runner.store(self.tree, going_on, [ids[row][:-1] for row in going_on])
        self._take_out(rows)
        for request, step in steps:
            request.resolve(step)

    def _step(self, row: int, ids: list[int], eos: bool, found: bool) -> Step:
        batch = self._batch
        request = batch.requests[row]
        drawn = ids[len(request.ids) :]
        written = drawn[:-1] if eos else drawn  # not every end token is one that the tokenizer leaves out
        text, ahead = request.before + self.vocabulary.decode_more(request.ids, written), ""
        end: StepEnd = "eos"
        if found and not eos:
            text, ahead, end = divided(text, request.sampling, len(request.before))
        elif not eos:
            end = end_at_limit(request.sampling, request.limit)
        usage = request.prompt_usage + Usage(generated_tokens=len(drawn))
        logprob, proposal_logprob = float(batch.logprob[row]), float(batch.proposal_logprob[row])
        return Step(text, end, tuple(drawn), logprob, usage, proposal_logprob, ahead, len(request.prefix))

    def _take_out(self, rows: npt.NDArray[np.intp]) -> None:
        if len(rows):
            self._batch.remove(rows)
            self._runner.workspace.remove(rows)
            self._sampler = None


def _end_tokens(model: PreTrainedModel, vocabulary: Vocabulary) -> list[int]:
    """Every token that ends an answer: the checkpoint may name several, the tokenizer one more."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = getattr(model.config, "eos_token_id", None)
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    if (own := vocabulary.tokenizer.eos_token_id) is not None:
        ids.append(own)
    if not ids:
        raise ConfigurationError("the checkpoint names no end-of-sequence token: set eos_token_id in its config")
    return sorted(set(ids))
