"""The local engine: any causal language model of transformers, with shared prefixes and continuous batching.

Trajectories fork without recomputing anything: a child begins with its parent's keys and values. Calls of any number
of concurrent runs decode together; a sequence leaves the batch the moment its step ends, and another takes its place.
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
from motes.steps import end_at_limit, first_cut, split_at_end, step_in_overrun
from motes.threads import in_thread_if_long
from motes.vocabulary import TextEnds, Vocabulary

MAX_TEXT_ENDS = 64
"""Maximum number of sets of delimiters and stop texts for which a `TextEnds` is kept."""

FEW_TEXTS = 8
"""Maximum number of delimiters and stop texts whose `TextEnds` is made without a thread."""


@dataclass(eq=False)
class _Extension(Request):
    """A request to extend one trajectory by a step. Once it is admitted, it is a sequence in the batch."""

    ids: list[int]  # all tokens so far; the last one is fed first
    sampling: Sampling
    seed: int
    limit: int  # maximum number of tokens of this step
    ends: TextEnds | None = None  # finds delimiters and stop texts; None: there are none, or there is a pattern
    before: str = ""  # the beginning of the step's text: the last step's overrun, or the opening in the prompt
    prompt_usage: Usage = field(default_factory=Usage)
    text: str = ""  # the step's text so far, if the sampling has a pattern
    read: Callable[[int], str] | None = None  # returns the text that a token adds

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values are needed before the first token can be sampled."""
        return self.ids[:-1]

    @property
    def longest(self) -> int:
        return len(self.ids) + self.limit


class _Batch:
    """The sequences that decode together, as arrays with the workspace's rows."""

    def __init__(self) -> None:
        self.requests: list[_Extension] = []
        self.token = np.zeros(0, dtype=np.int64)  # the last token of each row, which is fed next
        self.count = np.zeros(0, dtype=np.int64)  # number of tokens sampled in this step
        self.limit = np.zeros(0, dtype=np.int64)
        self.seed = np.zeros(0, dtype=np.uint64)
        self.logprob = np.zeros(0)
        self.proposal_logprob = np.zeros(0)
        self.step_tokens = np.zeros((0, 0), dtype=np.int64)  # (rows, longest limit so far)

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
        self.step_tokens = np.concatenate([self.step_tokens, np.zeros((n, self.step_tokens.shape[1]), dtype=np.int64)])

    def remove(self, rows: npt.NDArray[np.intp]) -> None:
        """Remove rows; the last rows take their places, as in the workspace."""
        sources, targets = moves(rows, len(self))
        left = len(self) - len(rows)
        for source, target in zip(sources, targets, strict=True):
            self.requests[target] = self.requests[source]
        del self.requests[left:]
        for name in ("token", "count", "limit", "seed", "logprob", "proposal_logprob", "step_tokens"):
            array = getattr(self, name)
            array[targets] = array[sources]
            setattr(self, name, array[:left])


class LocalLanguageModel(Engine[_Extension]):
    """A causal language model of transformers, on CPU or GPU.

    Args:
        model: in evaluation mode.
        vocabulary: its tokenizer.
        max_batch_size: maximum number of sequences that decode together.
        max_cached_tokens, max_batch_tokens, num_threads: see `motes.kv.engine.Engine`.

    The same (trajectory, sampling, seed) gives the same tokens whatever else is in the batch, up to rounding: products
    of matrices of other shapes round differently in the last bit, which changes a token if its uniform number is that
    close to the boundary between two tokens (in float32 about once in a million tokens, more often in half precision).
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
        super().__init__(model, head, vocabulary, max_cached_tokens, max_batch_tokens, num_threads, name)
        self.max_batch_size = max_batch_size
        self._waiting: deque[_Extension] = deque()
        self._batch = _Batch()
        self._sampler: Sampler | None = None
        self._text_ends: dict[tuple[str, ...], TextEnds] = {}  # for the latest sets of texts
        self._text_ends_lock = threading.Lock()
        self._rows_by_text_ends: list[tuple[TextEnds, npt.NDArray[np.intp]]] = []
        self._rows_with_pattern: list[int] = []
        self._is_eos = np.zeros(head.weight.shape[0], dtype=bool)  # (tokens of the model,)
        self._is_eos[[token for token in _end_token_ids(model, vocabulary) if token < len(self._is_eos)]] = True

    @classmethod
    def open(
        cls, path: str, *, device: str | None = None, dtype: str | None = None, **options: Any
    ) -> LocalLanguageModel:
        """Open a checkpoint: a folder, a GGUF file (extra `gguf`), or a name on the hub.

        Args:
            device: "cpu", "cuda", …; by default a GPU if there is one.
            dtype: of weights and arithmetic; by default float32 on a CPU, bfloat16 on a GPU.

        Raises:
            ConfigurationError: there is no such checkpoint, or it is not a causal language model that this engine runs.
        """
        model, vocabulary = open_checkpoint(AutoModelForCausalLM, path, device, dtype)
        return cls(model, vocabulary, name=Path(path).name, **options)

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        """See `motes.protocols.LanguageModel`. Concurrent calls decode in one batch."""
        ends = await self._prepare_text_ends(sampling)
        steps: list[Step | None] = [None] * len(trajectories)
        requests: list[_Extension] = []
        for problem in {trajectory.problem for trajectory in trajectories}:
            await self.vocabulary.prepare(problem)
        for i, (trajectory, seed) in enumerate(zip(trajectories, seeds, strict=True)):
            before = self.vocabulary.opening(trajectory.problem) if trajectory.step is None else trajectory.step.overrun
            steps[i] = step_in_overrun(before, sampling)
            if steps[i] is not None:
                continue
            text_only = (node for node in trajectory.path if node.step is None or not node.step.token_ids)
            num_characters = sum(len(node.added) for node in text_only)  # which `_ids` tokenizes
            ids, num_sampled = await in_thread_if_long(num_characters, self._ids, trajectory)
            limit = min(sampling.max_step_tokens, self.context_length - len(ids))
            if sampling.max_tokens is not None:
                limit = min(limit, sampling.max_tokens - num_sampled)
            if limit < 1:
                steps[i] = Step("", "length")
            else:
                requests.append(_Extension(ids, sampling, seed, limit, ends, before))
        results = iter(await self.submit(requests))
        return [next(results) if step is None else step for step in steps]

    async def _prepare_text_ends(self, sampling: Sampling) -> TextEnds | None:
        """The finder of the delimiters and stop texts; None if there are none, or if a pattern ends the steps. It is
        made once, and never in the thread that decodes: a few texts take milliseconds, many get another thread."""
        texts = (*sampling.delimiters, *sampling.stops)
        if sampling.pattern is not None or not texts:
            return None
        if texts not in self._text_ends and len(texts) > FEW_TEXTS:
            return await asyncio.to_thread(self._get_text_ends, texts)
        return self._get_text_ends(texts)

    def _get_text_ends(self, texts: tuple[str, ...]) -> TextEnds:
        with self._text_ends_lock:
            if texts not in self._text_ends:
                ends = self.vocabulary.text_ends(texts, len(self._is_eos))
                if len(self._text_ends) >= MAX_TEXT_ENDS:
                    del self._text_ends[next(iter(self._text_ends))]
                self._text_ends[texts] = ends
            return self._text_ends[texts]

    def _ids(self, trajectory: Trajectory) -> tuple[list[int], int]:
        """All tokens of the prompt and the partial answer, and the number of the answer's tokens."""
        prompt = self.vocabulary.prompt(trajectory.problem)
        if len(prompt) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and {self.name!r} a context of {self.context_length}: "
                "shorten the question"
            )
        ids = list(prompt)
        for node in trajectory.path:
            assert node.step is not None
            if node.step.token_ids:
                ids += node.step.token_ids
            else:  # the step has only a text; a special token that it spells is plain text, as in every step
                opening = "" if node.depth > 1 else self.vocabulary.opening(node.problem)
                ids += self.vocabulary.encode(node.added.removeprefix(opening), special=False)
        self.require_known(ids)
        return ids, len(ids) - len(prompt)

    # In the worker's thread:

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batch)

    def work(self, arrived: list[_Extension]) -> None:
        self._waiting.extend(arrived)
        self._admit()
        if self._batch:
            self._decode()
            self._remove_rows(np.flatnonzero([request.settled for request in self._batch.requests]))

    def abandon(self) -> None:
        self._waiting.clear()
        self._batch = _Batch()
        self._sampler = None
        super().abandon()

    def _admit(self) -> None:
        """Give rows to waiting requests, as many as fit, and compute the parts of their prefixes that are not stored.

        If several requests need the same missing prefix, one computes it; the others are admitted in the next round.
        """
        # 1) take requests from the queue
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
            rest = prefix[len(slots) :]
            if rest:
                if (key := tuple(prefix)) in computing:
                    postponed.append(request)
                    continue
                computing.add(key)
            admitted.append(request)
            stored.append(slots)
            missing.append(rest)
            request.prompt_usage = Usage(prefill_tokens=len(rest), prefill_tokens_cached=len(slots))
        self._waiting.extendleft(reversed(postponed))
        if not admitted:
            return
        # 2) give them rows, which begin with the stored keys and values
        first = len(self._batch)
        self._batch.append(admitted)
        self._sampler = None
        workspace.reserve(len(self._batch), 64 + max(len(request.ids) for request in admitted))
        workspace.append(stored)
        # 3) compute and store the rest of their prefixes
        for _ in self._runner.feed(first, missing):
            pass
        computed = [i for i, rest in enumerate(missing) if rest]
        self._runner.store(self.tree, [first + i for i in computed], [admitted[i].prefix for i in computed])

    def _decode(self) -> None:
        """Sample one token for every row; remove the rows whose step ends."""
        batch = self._batch
        # 1) find out which rows need what, if the batch has changed
        if self._sampler is None:
            self._sampler = Sampler([request.sampling for request in batch.requests], self._runner.device)
            self._rows_by_text_ends = self._group_rows_by_text_ends()
            self._rows_with_pattern = [row for row, request in enumerate(batch.requests) if request.sampling.pattern]
        # 2) sample
        hidden = self._runner.forward(0, torch.from_numpy(batch.token)[:, None])
        tokens, logprobs, proposals = self._sampler(self._head(hidden[:, -1]), uniforms(batch.seed, batch.count))
        self._runner.require_numbers(logprobs)  # NaN or an infinity among a row's logits leaves no finite logprob
        # 3) record the tokens
        token = tokens.cpu().numpy()
        if batch.step_tokens.shape[1] <= batch.count.max():
            wider = np.zeros((len(batch), max(32, 2 * batch.step_tokens.shape[1])), dtype=np.int64)
            wider[:, : batch.step_tokens.shape[1]] = batch.step_tokens
            batch.step_tokens = wider
        batch.token = token
        batch.step_tokens[np.arange(len(batch)), batch.count] = token
        batch.count += 1
        batch.logprob += logprobs.double().cpu().numpy()
        batch.proposal_logprob += proposals.cpu().numpy()
        # 4) find the steps that end
        has_cut = np.zeros(len(batch), dtype=bool)  # whether its text contains the end of the step, or of the answer
        for ends, rows in self._rows_by_text_ends:
            for row in rows[ends.completes[token[rows]]]:
                has_cut[row] = ends.completed_by_last(batch.step_tokens[row, : batch.count[row]])
        for row in self._rows_with_pattern:
            has_cut[row] = self._completes_step(batch.requests[row], int(token[row]))
        is_eos = self._is_eos[token]
        ends_step = is_eos | has_cut | (batch.count >= batch.limit)
        if ends_step.any():
            self._finish(np.flatnonzero(ends_step), is_eos, has_cut)

    def _completes_step(self, request: _Extension, token: int) -> bool:
        """Whether the token completes a step that a pattern ends."""
        if request.read is None:
            request.text, request.read = request.before, self.vocabulary.reader(request.ids)
        num_searched = len(request.text)
        request.text += request.read(token)
        return first_cut(request.text, request.sampling, num_searched) is not None

    def _group_rows_by_text_ends(self) -> list[tuple[TextEnds, npt.NDArray[np.intp]]]:
        rows: dict[TextEnds, list[int]] = {}
        for row, request in enumerate(self._batch.requests):
            if request.ends is not None:
                rows.setdefault(request.ends, []).append(row)
        return [(ends, np.array(its_rows)) for ends, its_rows in rows.items()]

    def _finish(
        self, rows: npt.NDArray[np.intp], is_eos: npt.NDArray[np.bool_], has_cut: npt.NDArray[np.bool_]
    ) -> None:
        """Resolve the requests of rows whose step has ended, and remove the rows. `is_eos` and `has_cut`, (batch
        rows,): whether the last token ends the answer, and whether the text contains the end of the step or answer."""
        requests = {row: self._batch.requests[row] for row in rows.tolist()}
        tokens = {row: self._batch.step_tokens[row, : self._batch.count[row]].tolist() for row in requests}
        steps = {row: self._build_step(row, tokens[row], is_eos[row], has_cut[row]) for row in requests}
        unfinished = [row for row in requests if not is_eos[row]]  # a finished answer is never extended
        self._runner.store(self.tree, unfinished, [requests[row].ids + tokens[row][:-1] for row in unfinished])
        self._remove_rows(rows)
        for row, request in requests.items():
            request.resolve(steps[row])

    def _build_step(self, row: int, tokens: list[int], is_eos: bool, has_cut: bool) -> Step:
        batch = self._batch
        request = batch.requests[row]
        visible = tokens[:-1] if is_eos else tokens  # the tokenizer does not leave out every end token
        text, overrun = request.before + self.vocabulary.decode_more(request.ids, visible), ""
        end: StepEnd = "eos"
        if has_cut and not is_eos:
            text, overrun, end = split_at_end(text, request.sampling, len(request.before))
        elif not is_eos:
            end = end_at_limit(request.sampling, request.limit)
        usage = request.prompt_usage + Usage(generated_tokens=len(tokens))
        logprob, proposal_logprob = float(batch.logprob[row]), float(batch.proposal_logprob[row])
        return Step(text, end, tuple(tokens), logprob, usage, proposal_logprob, overrun, len(request.prefix))

    def _remove_rows(self, rows: npt.NDArray[np.intp]) -> None:
        if len(rows):
            self._batch.remove(rows)
            self._runner.workspace.remove(rows)
            self._sampler = None


def _end_token_ids(model: PreTrainedModel, vocabulary: Vocabulary) -> list[int]:
    """All tokens that end an answer: the checkpoint may name several, the tokenizer one more."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = getattr(model.config, "eos_token_id", None)
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    if (own := vocabulary.tokenizer.eos_token_id) is not None:
        ids.append(own)
    if not ids:
        raise ConfigurationError("the checkpoint names no end-of-sequence token: set eos_token_id in its config")
    return sorted(set(ids))
