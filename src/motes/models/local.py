"""The local engine: any causal language model of transformers, with shared prefixes and continuous batching.

Trajectories fork without recomputing anything: a child begins with its parent's keys and values. Calls of any number
of concurrent runs decode together; a sequence leaves the batch the moment its step ends, and another takes its place.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from motes.arguments import whole_number
from motes.core import Certainty, Problem, Reads, Sampling, Step, StepEnd, Trajectory, Usage
from motes.core.hidden import StepStates
from motes.core.thinking import count_tokens
from motes.errors import ConfigurationError, ContextLengthError, EngineError
from motes.kv.checkpoint import open_checkpoint
from motes.kv.engine import Engine, take_similar
from motes.models.batch import Batch, Extension
from motes.models.sampler import Sampler, uniforms
from motes.models.states import MAX_ROWS, StateReading, read_states
from motes.steps import end_at_limit, first_cut, split_at_end, step_in_overrun, thought_opening
from motes.threads import in_thread_if_long
from motes.vocabulary import TextEnds, Vocabulary

MAX_TEXT_ENDS = 64
"""Maximum number of sets of delimiters and stop texts for which a `TextEnds` is kept."""

FEW_TEXTS = 8
"""Maximum number of delimiters and stop texts whose `TextEnds` is made without a thread."""


class LocalLanguageModel(Engine[Extension | StateReading]):
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
    gives_hidden = True
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
        self._waiting: deque[Extension] = deque()
        self._readings: list[StateReading] = []
        self._batch = Batch()
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
        layers = self._resolve(sampling.hidden_layers)
        steps: list[Step | None] = [None] * len(trajectories)
        requests: list[Extension] = []
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
                thoughts = trajectory.thinking.reading
                requests.append(Extension(ids, sampling, seed, limit, ends, thoughts, before, layers=layers))
        results = iter(await self.submit(requests))
        return [next(results) if step is None else step for step in steps]

    async def read_states(
        self, trajectories: Sequence[Trajectory], layers: Sequence[int], *, first: Sequence[int] | None = None
    ) -> list[StepStates]:
        """The states of steps, by a pass over their tokens: what steps have that are sampled with
        `Sampling.hidden_layers`, up to rounding.

        Args:
            trajectories: (B,) with at least one step each.
            first: (B,) for each, the number of its first steps whose states are not needed; by default 0.

        Raises:
            ConfigurationError: there is no such layer.
            ContextLengthError: an answer does not fit the model's context.
        """
        resolved, readings = self._resolve(layers), []
        for problem in {trajectory.problem for trajectory in trajectories}:
            await self.vocabulary.prepare(problem)
        for trajectory, skipped in zip(trajectories, first or [0] * len(trajectories), strict=True):
            reading = await in_thread_if_long(len(trajectory.text), self._state_reading, trajectory, resolved, skipped)
            readings.append(reading)
        return await self.submit(readings)

    def _state_reading(self, trajectory: Trajectory, layers: tuple[int, ...], skipped: int) -> StateReading:
        ids = list(self.vocabulary.prompt(trajectory.problem))
        prompt, spans, ends = len(ids), [], []
        for sampled, appended in self._step_ids(trajectory):
            spans.append((len(ids), len(ids) + len(sampled)))
            ids += [*sampled, *appended]
            ends.append(len(ids))
        self.require_known(ids)
        if len(ids) > self.context_length:
            raise ContextLengthError(
                f"the prompt and the answer have {len(ids)} tokens, and {self.name!r} a context of "
                f"{self.context_length}"
            )
        reads = Reads(prompt, tuple(len(ids) - end for end in (0, *ends)))
        return StateReading(ids, spans[skipped:], layers, reads)

    def _resolve(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The numbers of layers, of which negative ones count from the end, in ascending order.

        Raises:
            ConfigurationError: there is no such layer.
        """
        count = self._runner.config.num_hidden_layers + 1
        for layer in layers:
            if not -count <= layer < count:
                raise ConfigurationError(
                    f"{self.name!r} has no layer {layer}: hidden_layers are numbers from {-count} to {count - 1}"
                )
        return tuple(sorted({layer % count for layer in layers}))

    async def thought_opening(self, problem: Problem) -> str:
        """See `motes.protocols.LanguageModelTraits`."""
        await self.vocabulary.prepare(problem)
        return thought_opening(self.vocabulary.decode(self.vocabulary.prompt(problem)[-4:]))

    async def prompt_text(self, problem: Problem) -> str:
        """See `motes.protocols.LanguageModelTraits`. Without special tokens."""
        await self.vocabulary.prepare(problem)
        return self.vocabulary.decode(self.vocabulary.prompt(problem))

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
        """All tokens of the prompt and the partial answer, and the number of tokens that were sampled."""
        prompt = self.vocabulary.prompt(trajectory.problem)
        if len(prompt) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and {self.name!r} a context of {self.context_length}: "
                "shorten the question"
            )
        ids, num_appended = list(prompt), 0
        for sampled, appended in self._step_ids(trajectory):
            ids += [*sampled, *appended]
            num_appended += len(appended)
        self.require_known(ids)
        return ids, len(ids) - len(prompt) - num_appended

    def _step_ids(self, trajectory: Trajectory) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """For each step the tokens that were sampled, and those of what was appended to them."""
        for node in trajectory.path:
            assert node.step is not None
            if node.step.token_ids:
                yield (
                    node.step.token_ids,
                    self.vocabulary.encode_answer(node.step.appended) if node.step.appended else (),
                )
            else:  # the step has only a text
                opening = "" if node.depth > 1 else self.vocabulary.opening(node.problem)
                yield self.vocabulary.encode_answer(node.added.removeprefix(opening)), ()

    def prompt_ids(self, problem: Problem) -> list[int]:
        """The token ids of a problem's prompt."""
        return self.vocabulary.prompt(problem)

    # In the worker's thread:

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._readings or self._batch)

    def work(self, arrived: list[Extension | StateReading]) -> None:
        for request in arrived:
            if isinstance(request, StateReading):
                self._readings.append(request)
            else:
                self._waiting.append(request)
        if readings := take_similar(self._readings, MAX_ROWS, self.max_batch_tokens):
            read_states(self._runner, self.tree, readings)
        self._admit()
        if self._batch:
            self._decode()
            self._remove_rows(np.flatnonzero([request.settled for request in self._batch.requests]))

    def abandon(self) -> None:
        self._waiting.clear()
        self._readings.clear()
        self._batch = Batch()
        self._sampler = None
        super().abandon()

    def _admit(self) -> None:
        """Give rows to waiting requests, as many as fit, and compute the parts of their prefixes that are not stored.

        If several requests need the same missing prefix, one computes it; the others are admitted in the next round.
        """
        # 1) take requests from the queue
        workspace = self._runner.workspace
        longest = max((request.longest for request in self._batch.requests), default=0)
        admitted: list[Extension] = []
        stored: list[torch.Tensor] = []
        missing: list[list[int]] = []
        postponed: list[Extension] = []
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
            batch.set_layers()
        # 2) sample
        tokens = torch.from_numpy(batch.token)[:, None]
        hidden, states = self._runner.forward_with_states(0, tokens, batch.layers)
        logits = self._head(hidden[:, -1])
        tokens, logprobs, proposals = self._sampler(logits, uniforms(batch.seed, batch.count))
        self._runner.require_numbers(logprobs)  # NaN or an infinity among a row's logits leaves no finite logprob
        # 3) record the tokens, except for those before which a step ends
        token = tokens.cpu().numpy()
        ends_before = self._ends_before(logits)
        is_recorded = ~ends_before
        batch.widen("step_tokens")
        batch.token = token
        batch.step_tokens[np.arange(len(batch)), batch.count] = token
        if self._sampler.most_top_logprobs:
            batch.record_certainty(logprobs.cpu().numpy(), self._sampler.top_logprobs(logits).cpu().numpy())
        if batch.layers:
            batch.record_states(states[:, -1].cpu().numpy(), is_recorded)
        batch.count += is_recorded
        batch.logprob += np.where(is_recorded, logprobs.double().cpu().numpy(), 0.0)
        batch.proposal_logprob += np.where(is_recorded, proposals.cpu().numpy(), 0.0)
        # 4) find the steps that end
        has_cut = np.zeros(len(batch), dtype=bool)  # whether its text contains the end of the step, or of the answer
        for ends, rows in self._rows_by_text_ends:
            for row in rows[ends.completes[token[rows]] & is_recorded[rows]]:
                has_cut[row] = ends.completed_by_last(batch.step_tokens[row, : batch.count[row]])
        for row in self._rows_with_pattern:
            has_cut[row] = self._completes_step(batch.requests[row], int(token[row]))
        is_eos = self._is_eos[token] & is_recorded
        ends_step = is_eos | has_cut | ends_before | (batch.count >= batch.limit)
        if ends_step.any():
            self._finish(np.flatnonzero(ends_step), is_eos, has_cut, ends_before)

    def _ends_before(self, logits: torch.Tensor) -> npt.NDArray[np.bool_]:
        """(B,) whether a row's step ends before its next token, because the token is uncertain.

        Args:
            logits: (B, V) of the next tokens.
        """
        assert self._sampler is not None
        batch = self._batch
        if not self._sampler.any_step_entropy:
            return np.zeros(len(batch), dtype=bool)
        least = np.array([request.sampling.min_step_tokens for request in batch.requests])
        return np.asarray((batch.count >= least) & self._sampler.is_uncertain(logits).cpu().numpy())

    def _completes_step(self, request: Extension, token: int) -> bool:
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
        self,
        rows: npt.NDArray[np.intp],
        is_eos: npt.NDArray[np.bool_],
        has_cut: npt.NDArray[np.bool_],
        ends_before: npt.NDArray[np.bool_],
    ) -> None:
        """Resolve the requests of rows whose step has ended, and remove the rows. `is_eos`, `has_cut` and
        `ends_before`, (batch rows,): whether the last token ends the answer, whether the text contains the end of the
        step or answer, and whether the step ends before a token that was not recorded."""
        requests = {row: self._batch.requests[row] for row in rows.tolist()}
        tokens = {row: self._batch.step_tokens[row, : self._batch.count[row]].tolist() for row in requests}
        steps = {
            row: self._build_step(row, tokens[row], is_eos[row], has_cut[row], ends_before[row]) for row in requests
        }
        unfinished = [row for row in requests if not is_eos[row]]  # a finished answer is never extended
        self._runner.store(self.tree, unfinished, [requests[row].ids + tokens[row][:-1] for row in unfinished])
        self._remove_rows(rows)
        for row, request in requests.items():
            request.resolve(steps[row])

    def _build_step(self, row: int, tokens: list[int], is_eos: bool, has_cut: bool, ends_before: bool) -> Step:
        batch = self._batch
        request = batch.requests[row]
        visible = tokens[:-1] if is_eos else tokens  # the tokenizer does not leave out every end token
        text, overrun = request.before + self.vocabulary.decode_more(request.ids, visible), ""
        end: StepEnd = "eos"
        thought_tokens = count_tokens(
            request.thoughts,
            text,
            len(request.before),
            len(tokens),
            lambda: [*map(self.vocabulary.reader(request.ids), visible), *([""] * is_eos)],
        )
        if has_cut and not is_eos:
            text, overrun, end = split_at_end(text, request.sampling, len(request.before))
        elif not is_eos:
            end = "step" if ends_before else end_at_limit(request.sampling, request.limit)
        usage = request.prompt_usage + Usage(generated_tokens=len(tokens))
        logprob, proposal_logprob = float(batch.logprob[row]), float(batch.proposal_logprob[row])
        certainty = None
        if k := min(request.sampling.top_logprobs, len(self._is_eos)):
            certainty = Certainty(batch.certainty[row, : len(tokens)].copy(), k)
        return Step(
            text,
            end,
            tuple(tokens),
            logprob,
            usage,
            proposal_logprob,
            overrun,
            len(request.prefix),
            thought_tokens=thought_tokens,
            certainty=certainty,
            hidden=batch.states_of(row),
        )

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
