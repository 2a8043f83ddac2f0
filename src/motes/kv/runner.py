"""Runs a transformer whose keys and values are in a workspace of ours.

Any causal model of transformers that supports attention backends works (Llama, Qwen2, Qwen2.5, Qwen3, Mistral and most
others): its layers call the attention function registered here, which reads and writes the workspace that the call
passes along. The model has no cache of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PretrainedConfig

from motes.errors import ConfigurationError
from motes.kv.tree import Part, PrefixTree, TokenPool

BACKEND = "motes"

SERVE = "Serve it (vLLM, llama.cpp, …), and name the server as the model, 'http://HOST:PORT/v1'"
"""What to do with a model that this engine cannot run."""

PASS_TOKENS = 8192
"""Maximum rows × tokens of one forward pass over many tokens: bounds the memory of activations."""

PASS_PAIRS = 1 << 26
"""Maximum rows × tokens × length × query heads per key head of such a pass: bounds its mask to 256 MiB in float32."""

COPY_TOKENS = 1 << 14
"""Maximum number of tokens whose keys and values are copied at once, between pool and rows or between rows."""

SMALLEST_STATE = 1e-6
"""Root mean square by which a hidden state is divided at least."""

PART_ROWS = 32
"""Number of rows that attend together where lengths differ much. (On a GPU all rows do: more kernel launches would
cost more than they save.)"""

UNSUPPORTED = ("attn_logit_softcapping", "final_logit_softcapping")
"""Settings that this engine does not implement, and that `self_check` may miss where logits are small. Models with such
a setting are refused, and so are models with other than full or sliding attention."""

ROPES = {"default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"}
"""Rotary embeddings whose angles do not change within `Runner.context_length`, whatever else is in the batch. Others
may change them in long texts, which `self_check` does not see: such models are refused."""


class Workspace:
    """Keys and values of the sequences in the batch, one row each, contiguous, so that decoding gathers nothing.

    Rows 0 … num_rows−1 are in use; removing a row moves the last one into its place. The space grows on demand, and to
    more than that while rows × length stays within `max_tokens`. After `clear` it grows at once to the longest row yet.

    Attributes:
        data: (layers, 2, rows, kv_heads, length, head_dim)
        lengths: (num_rows,) number of tokens in each row.
    """

    def __init__(self, like: TokenPool, max_tokens: int) -> None:
        self.pool = like
        self.max_tokens = max_tokens
        self.data = self._zeros(0, 0)
        self.lengths: list[int] = []
        self._longest = 0  # greatest length ever reserved

    def _zeros(self, rows: int, length: int) -> Tensor:
        layers, two, heads, _, dim = self.pool.data.shape
        # Zeros instead of uninitialised memory: attention gives unwritten places weight 0, and 0 · NaN is NaN.
        return self.pool.data.new_zeros(layers, two, rows, heads, length, dim)

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens."""
        have_rows, have_length = self.data.shape[2], self.data.shape[4]
        if rows <= have_rows and length <= have_length:
            return
        used = max(self.lengths, default=0)
        if rows <= have_rows:  # longer rows: do not keep unused ones
            grown_rows = min(have_rows, max(rows, 2 * self.num_rows))
        else:
            grown_rows = max(rows, have_rows * 3 // 2)
        self._longest = max(self._longest, length)
        grown_length = have_length if length <= have_length else max(self._longest, have_length * 5 // 4)
        if grown_rows * grown_length > self.max_tokens:  # many short rows, and now a long one: do not make all long
            grown_rows = max(rows, self.num_rows)
            grown_length = max(length, used, min(grown_length, self.max_tokens // grown_rows))
        grown = self._zeros(grown_rows, grown_length)
        grown[:, :, : self.num_rows, :, :used] = self.data[:, :, : self.num_rows, :, :used]
        self.data = grown

    def clear(self) -> None:
        """Remove all rows and free the memory."""
        self.lengths.clear()
        self.data = self._zeros(0, 0)

    def append(self, stored: Sequence[Tensor]) -> None:
        """Add a row for each element of `stored`. It begins with the tokens in these slots of the pool."""
        first, lengths = self.num_rows, list(map(len, stored))
        self.reserve(first + len(stored), max(lengths, default=0))
        for start, stop in self._pieces(lengths):
            slots = pad_sequence(list(stored[start:stop]), batch_first=True, padding_value=-1)
            slots[slots < 0] = slots.max()  # padding after a row's own tokens: any valid slot
            read = self.pool.read(slots.flatten())
            rows = read.view(*read.shape[:3], *slots.shape, -1).transpose(2, 3)
            self.data[:, :, first + start : first + stop, :, : slots.shape[1]] = rows
        self.lengths += lengths

    def remove(self, rows: npt.NDArray[np.intp]) -> None:
        """Remove rows; the last rows take their places, see `moves`."""
        sources, targets = moves(rows, self.num_rows)
        for start, stop in self._pieces([self.lengths[source] for source in sources]):
            length = max(self.lengths[source] for source in sources[start:stop])
            to_rows = torch.from_numpy(targets[start:stop]).to(self.data.device)
            from_rows = torch.from_numpy(sources[start:stop]).to(self.data.device)
            tokens = self.data[:, :, :, :, :length]
            tokens.index_copy_(2, to_rows, tokens.index_select(2, from_rows))
        for source, target in zip(sources, targets, strict=True):
            self.lengths[target] = self.lengths[source]
        del self.lengths[self.num_rows - len(rows) :]

    @staticmethod
    def _pieces(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Ranges of neighbouring rows, (start, stop), to copy together, so that a copy stays small. Ranges of empty
        rows are left out."""
        start = 0
        while start < len(lengths):
            stop, longest = start, 0
            while stop < len(lengths):
                new_longest = max(longest, lengths[stop])
                if stop > start and (stop + 1 - start) * new_longest > COPY_TOKENS:
                    break
                stop, longest = stop + 1, new_longest
            if longest:
                yield start, stop
            start = stop

    def values(self, rows: Tensor, places: Tensor) -> Tensor:
        """(layers, 2, kv_heads, tokens, head_dim), keys and values of the tokens at `places` of `rows`."""
        return self.data[:, :, rows, :, places].permute(1, 2, 3, 0, 4)


def moves(rows: npt.NDArray[np.intp], num_rows: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The rows that fill the gaps, and the gaps, when `rows` (no duplicates) are removed: (sources, targets)."""
    left = num_rows - len(rows)
    stay = np.ones(num_rows, dtype=bool)
    stay[rows] = False
    return np.flatnonzero(stay[left:]) + left, np.flatnonzero(~stay[:left])


class _View:
    """The part of a workspace that one forward pass uses: rows `first` … `first` + B − 1, each with its own length."""

    def __init__(self, workspace: Workspace, first: int, positions: Tensor, ends: Sequence[int], groups: int) -> None:
        size, n = positions.shape  # (B, n)
        length = max(ends)
        self.parts = _parts(ends) if positions.device.type == "cpu" else [(slice(None), length)]
        self.data = workspace.data[:, :, first : first + size, :, :length]
        self.rows = torch.arange(size, device=positions.device)[:, None]
        self.positions = positions
        visible = torch.arange(length, device=positions.device) <= positions[:, :, None]  # (B, n, length)
        mask = torch.zeros(size, 1, n, length, dtype=self.data.dtype, device=positions.device)
        mask.masked_fill_(~visible[:, None], -torch.inf)
        # Query heads that share a key head become rows of queries, so that keys need not be repeated.
        self.mask = mask[:, :, None].expand(size, 1, groups, n, length).reshape(size, 1, groups * n, length)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, kv_heads, n, head_dim); returns all keys and values, (B, kv_heads, length, head_dim)."""
        keys, values = self.data[layer]
        keys[self.rows, :, self.positions] = key.transpose(1, 2)
        values[self.rows, :, self.positions] = value.transpose(1, 2)
        return keys, values


def _parts(ends: Sequence[int]) -> list[tuple[slice, int]]:
    """Groups of rows that attend together, each with the length of its longest row: all rows in one group, or groups of
    `PART_ROWS` neighbours where this saves much. One long row must not make all others long."""
    starts = range(0, len(ends), PART_ROWS)
    groups = [(slice(i, i + PART_ROWS), max(ends[i : i + PART_ROWS])) for i in starts]
    work = sum(len(ends[rows]) * length for rows, length in groups)
    return groups if work < 0.8 * len(ends) * max(ends) else [(slice(None), max(ends))]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    view: _View,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over the workspace. query (B, heads, n, head_dim) → (B, n, heads, head_dim)"""
    keys, values = view.write(module.layer_idx, key, value)  # type: ignore[arg-type]
    size, heads, n, dim = query.shape
    grouped = query.reshape(size, keys.shape[1], -1, dim)
    outs = [
        scaled_dot_product_attention(
            grouped[rows],
            keys[rows, :, :length],
            values[rows, :, :length],
            attn_mask=view.mask[rows, ..., :length],
            scale=scaling,
        )
        for rows, length in view.parts
    ]
    out = torch.cat(outs) if len(outs) > 1 else outs[0]
    return out.reshape(size, heads, n, dim).transpose(1, 2), None


AttentionInterface.register(BACKEND, attend)


def _ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The rotary embeddings of a model: none, one, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]


class Runner:
    """Runs the body of a causal transformer over a workspace.

    Args:
        body: the model without its head, in evaluation mode: `model(input_ids=…)` returns hidden states.
        pool: keeps finished prefixes; its shape is the workspace's.
        max_batch_tokens: rows × length up to which the workspace grows beyond the demand; default: the pool's capacity.

    Raises:
        ConfigurationError: the model's attention cannot be replaced, or it uses a setting that is not implemented.
    """

    def __init__(self, body: nn.Module, pool: TokenPool, max_batch_tokens: int | None = None) -> None:
        self.config: PretrainedConfig = body.config  # type: ignore[assignment]
        if not getattr(body, "_supports_attention_backend", False):
            raise ConfigurationError(
                f"{type(body).__name__} does not support attention backends: the local engine cannot run it. {SERVE}"
            )
        unsupported = [name for name in UNSUPPORTED if getattr(self.config, name, None) not in (None, 0, 1)]
        layer_types = getattr(self.config, "layer_types", None) or []
        unsupported += sorted(set(layer_types) - {"full_attention", "sliding_attention"})
        rope_types = {rope["rope_type"] for rope in _ropes(self.config)}
        unsupported += sorted(f"rope_type {kind!r}" for kind in rope_types - ROPES)
        if unsupported:
            settings = ", ".join(unsupported)
            raise ConfigurationError(f"{type(body).__name__} uses {settings}: the local engine cannot run it. {SERVE}")
        body.set_attn_implementation(BACKEND)  # type: ignore[operator]
        self.body = body
        self.workspace = Workspace(pool, max_batch_tokens or pool.capacity)
        self.device = pool.data.device
        self._groups = self.config.num_attention_heads // pool.data.shape[2]

    @staticmethod
    def pool_for(config: PretrainedConfig, capacity: int, dtype: torch.dtype, device: torch.device) -> TokenPool:
        """A pool for a model's keys and values."""
        heads = config.num_attention_heads
        return TokenPool(
            capacity,
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype,
            device,
        )

    @staticmethod
    def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
        """Memory of one token's keys and values."""
        pool_of_one = Runner.pool_for(config, 1, dtype, torch.device("meta"))
        return pool_of_one.data.numel() * dtype.itemsize

    @staticmethod
    def context_length(config: PretrainedConfig) -> int:
        """Length of a sequence up to which every layer sees all earlier tokens, at angles that do not change."""
        bounds = [int(config.max_position_embeddings)]  # beyond this, "dynamic" changes all angles
        window = getattr(config, "sliding_window", None)
        if window and any("sliding" in kind for kind in getattr(config, "layer_types", None) or ["sliding"]):
            bounds.append(int(window))
        for rope in _ropes(config):
            if rope["rope_type"] == "longrope":  # beyond this, all angles change, also those of stored keys
                bounds.append(int(rope["original_max_position_embeddings"]))
        return min(bounds)

    def forward(self, first: int, tokens: Sequence[Sequence[int]] | Tensor) -> Tensor:
        """Append new tokens to rows `first` … `first` + B − 1. Rows may get different numbers of tokens.

        Returns:
            (B, n, hidden), n the largest number of tokens; values beyond a row's own tokens are meaningless.
        """
        return self.forward_with_states(first, tokens, ())[0]

    def forward_with_states(
        self, first: int, tokens: Sequence[Sequence[int]] | Tensor, layers: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Like `forward`; returns also the states of these layers (see `motes.core.HiddenStates`), each divided by its
        root mean square: (B, n, L, hidden) float32.
        """
        starts = self.workspace.lengths[first : first + len(tokens)]
        if isinstance(tokens, Tensor):
            ids, counts = tokens, [tokens.shape[1]] * len(tokens)
        else:
            counts = [len(row) for row in tokens]
            ids = torch.zeros(len(tokens), max(counts), dtype=torch.long)
            for i, row in enumerate(tokens):
                ids[i, : len(row)] = torch.as_tensor(row)
        n = ids.shape[1]
        ends = [start + n for start in starts]
        self.workspace.reserve(self.workspace.num_rows, max(ends))
        places = torch.tensor(starts)[:, None] + torch.arange(n)  # of keys; padding is written after a row's own tokens
        positions = places
        if min(counts) < n:
            # For the model, padding has the position of its row's last token: some models have no positions beyond
            # their context, and in some the largest position of a batch changes all angles.
            last = torch.tensor([max(start + count - 1, 0) for start, count in zip(starts, counts, strict=True)])
            positions = places.minimum(last[:, None])
        view = _View(self.workspace, first, places.to(self.device), ends, self._groups)
        output = self.body(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            use_cache=False,
            view=view,
            **({"output_hidden_states": True} if layers else {}),
        )
        for i, count in enumerate(counts):
            self.workspace.lengths[first + i] += count
        hidden: Tensor = output.last_hidden_state
        if not layers:
            return hidden, hidden.new_zeros(*hidden.shape[:2], 0, hidden.shape[2])
        states = torch.stack([output.hidden_states[layer] for layer in layers], dim=2).float()
        return hidden, states / states.square().mean(-1, keepdim=True).sqrt().clamp_min(SMALLEST_STATE)

    def feed(
        self, first: int, tokens: Sequence[Sequence[int]], layers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Like `forward`, for any number of tokens, in passes of bounded size.

        A pass has at most `PASS_TOKENS` tokens (rows × tokens of the row with the most), a mask of at most `PASS_PAIRS`
        entries, and at least one token.

        Args:
            layers: yield the states of these layers instead, see `forward_with_states`.

        Yields:
            (i, at, hidden): the hidden states, (count, hidden) or (count, L, hidden), of tokens[i][at : at + count].
        """
        at = [0] * len(tokens)
        while any(done < len(row) for done, row in zip(at, tokens, strict=True)):
            # 1) the next pass starts at the first row that lacks tokens
            start = next(i for i, (done, row) in enumerate(zip(at, tokens, strict=True)) if done < len(row))
            stop, width, longest = start, 0, 0
            # 2) it takes following rows as long as they fit, with at most `width` new tokens each
            while stop < len(tokens):
                new_longest = max(longest, self.workspace.lengths[first + stop])
                wanted = min(self._max_new_tokens_per_row(1, new_longest), len(tokens[stop]) - at[stop])
                new_width = max(width, wanted)
                if stop > start and new_width > self._max_new_tokens_per_row(stop + 1 - start, new_longest):
                    break
                stop, width, longest = stop + 1, new_width, new_longest
            # 3) run it; rows that lack no tokens get an empty piece
            pieces = [row[done : done + width] for done, row in zip(at[start:stop], tokens[start:stop], strict=True)]
            last, states = self.forward_with_states(first + start, pieces, layers or ())
            hidden = last if layers is None else states
            for i, piece in enumerate(pieces, start):
                if piece:
                    yield i, at[i], hidden[i - start, : len(piece)]
                    at[i] += len(piece)

    def _max_new_tokens_per_row(self, rows: int, length: int) -> int:
        """The largest number of new tokens per row that fits one pass, where the longest row has `length` tokens; at
        least 1 for a single row."""
        pairs = PASS_PAIRS // (rows * self._groups)
        within_pairs = (math.isqrt(length * length + 4 * pairs) - length) // 2  # n (length + n) ≤ pairs
        return max(int(rows == 1), min(PASS_TOKENS // rows, within_pairs))

    def require_numbers(self, values: Tensor) -> None:
        """Check that a head's output has no NaN and no infinite values.

        Raises:
            FloatingPointError: it has some; the message says what to try.
        """
        if not values.isfinite().all():
            dtype = str(self.workspace.data.dtype).removeprefix("torch.")
            raise FloatingPointError(
                f"its logits are not numbers in {dtype} on {self.device.type}: try dtype=float32 (or bfloat16, whose "
                "range is that of float32) or device=cpu; if that does not help, the weights are damaged: fetch the "
                "checkpoint again"
            )

    def store(self, tree: PrefixTree, rows: Sequence[int], sequences: Sequence[Sequence[int]]) -> None:
        """Store the sequences, whose keys and values are in `rows`, in a tree over the same pool."""

        def values(parts: list[Part]) -> Tensor:
            row_of_token = torch.tensor([rows[i] for i, start, stop in parts for _ in range(start, stop)])
            places = torch.tensor([place for _, start, stop in parts for place in range(start, stop)])
            return self.workspace.values(row_of_token.to(self.device), places.to(self.device))

        tree.insert(sequences, values)
