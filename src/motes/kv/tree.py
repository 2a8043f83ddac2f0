"""Computed prefixes: a radix tree of token ids over a bounded pool of slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Part = tuple[int, int, int]
"""Part of one of several sequences: (its index, start, stop)."""


class TokenPool:
    """Keys and values of up to `capacity` tokens, one slot a token, for every layer.

    Attributes:
        data: (layers, 2, kv_heads, capacity, head_dim), keys and values.
    """

    def __init__(
        self, capacity: int, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity = capacity
        self.data = torch.empty(layers, 2, kv_heads, capacity, head_dim, dtype=dtype, device=device)
        self.clear()

    def clear(self) -> None:
        """Free every slot."""
        self._free = torch.arange(self.capacity)
        self.num_free = self.capacity

    def allocate(self, n: int) -> Tensor:
        """(n,) slots. The caller must make sure that n ≤ `num_free`."""
        assert n <= self.num_free
        self.num_free -= n
        return self._free[self.num_free : self.num_free + n].clone()

    def release(self, slots: Tensor) -> None:
        n = len(slots)
        self._free[self.num_free : self.num_free + n] = slots
        self.num_free += n

    def read(self, slots: Tensor) -> Tensor:
        """(layers, 2, kv_heads, n, head_dim)"""
        return self.data.index_select(3, slots.to(self.data.device))

    def write(self, slots: Tensor, values: Tensor) -> None:
        self.data.index_copy_(3, slots.to(self.data.device), values)


@dataclass(eq=False, slots=True)
class Node:
    """An edge of the tree: consecutive tokens and the slots of their keys and values."""

    tokens: list[int]
    slots: Tensor
    parent: Node | None
    last_used: int = 0
    children: dict[int, Node] = field(default_factory=dict)


class PrefixTree:
    """Look-up of the longest stored prefix. The least recently used prefixes make room for new ones."""

    def __init__(self, pool: TokenPool) -> None:
        self.pool = pool
        self.root = Node([], torch.empty(0, dtype=torch.long), None)
        self._clock = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens stored."""
        return self.pool.capacity - self.pool.num_free

    def match(self, ids: Sequence[int]) -> Tensor:
        """(n,) slots of the longest stored prefix of `ids`."""
        parts = [node.slots[:used] for node, used in self._walk(ids)]
        return torch.cat(parts) if parts else self.root.slots

    def insert(self, sequences: Sequence[Sequence[int]], values: Callable[[list[Part]], Tensor]) -> None:
        """Store the keys and values of sequences, as far as they are not stored yet.

        If the pool cannot hold all of them, their beginnings are stored; no sequence evicts another one of the call.

        Args:
            values: returns the keys and values of the missing parts, one part after the other: (layers, 2, kv_heads,
                tokens of all parts, head_dim).
        """
        before = self._clock
        parts: list[Part] = []
        places: list[Tensor] = []
        for i, ids in enumerate(sequences):
            start, slots = self._allot(ids, before)
            if len(slots):
                parts.append((i, start, start + len(slots)))
                places.append(slots)
            elif start < len(ids):
                break  # the pool is full
        if parts:
            self.pool.write(torch.cat(places), values(parts))

    def _allot(self, ids: Sequence[int], before: int) -> tuple[int, Tensor]:
        """Add an edge for the part of `ids` that is not stored, or for as much of its beginning as fits. Edges used
        after `before` are not evicted. Returns where the edge begins, and its slots, to be written by the caller."""
        path = self._walk(ids)
        start = sum(used for _, used in path)
        node = self.root
        if path:
            node, used = path[-1]
            if used < len(node.tokens) and start < len(ids):
                node = self._split(node, used)
        if start < len(ids):
            self._make_room(len(ids) - start, before)
        stop = start + min(len(ids) - start, self.pool.num_free)
        slots = self.pool.allocate(stop - start)
        if stop > start:
            tokens = list(ids[start:stop])
            node.children[tokens[0]] = Node(tokens, slots, node, self._clock)
        return start, slots

    def _walk(self, ids: Sequence[int]) -> list[tuple[Node, int]]:
        """The nodes of the longest stored prefix, each with the number of its tokens that belong to the prefix."""
        self._clock += 1
        path: list[tuple[Node, int]] = []
        node, at = self.root, 0
        while at < len(ids) and (child := node.children.get(ids[at])) is not None:
            size = len(child.tokens)
            if child.tokens == list(ids[at : at + size]):
                used = size
            else:
                used = next(
                    (i for i, (a, b) in enumerate(zip(child.tokens, ids[at:], strict=False)) if a != b),
                    min(size, len(ids) - at),
                )
            child.last_used = self._clock
            path.append((child, used))
            at += used
            if used < size:
                break
            node = child
        return path

    def _split(self, node: Node, at: int) -> Node:
        """Split an edge in two; returns the upper part."""
        assert node.parent is not None
        upper = Node(node.tokens[:at], node.slots[:at], node.parent, node.last_used)
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.slots, node.parent = node.tokens[at:], node.slots[at:], upper
        upper.children[node.tokens[0]] = node
        return upper

    def _make_room(self, needed: int, before: int) -> None:
        """Evict leaves last used at `before` or earlier, least recently used first, until `needed` slots are free or
        there are no such leaves."""
        if needed <= self.pool.num_free:
            return
        # Searching the tree is costly: free many at once.
        needed = min(self.pool.capacity, max(needed, self.pool.capacity // 16))
        while needed > self.pool.num_free:
            leaves = [node for node in self._nodes() if not node.children and node.last_used <= before]
            if not leaves:
                return
            for leaf in sorted(leaves, key=lambda leaf: leaf.last_used):
                self._remove(leaf)
                if needed <= self.pool.num_free:
                    return

    def _remove(self, leaf: Node) -> None:
        assert leaf.parent is not None
        del leaf.parent.children[leaf.tokens[0]]
        self.pool.release(leaf.slots)

    def _nodes(self) -> Iterator[Node]:
        pending = list(self.root.children.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def clear(self) -> None:
        """Remove all prefixes."""
        self.root.children.clear()
        self.pool.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError if a slot is neither free nor in exactly one node, or an edge is inconsistent."""
        held = [slot for node in self._nodes() for slot in node.slots.tolist()]
        free = self.pool._free[: self.pool.num_free].tolist()
        assert sorted(held + free) == list(range(self.pool.capacity)), "a slot is lost or held twice"
        for node in self._nodes():
            assert node.tokens, "an edge without tokens"
            assert len(node.tokens) == len(node.slots), "tokens and slots of an edge differ in number"
            assert node.parent is not None, "an edge without a parent"
            assert node.parent.children[node.tokens[0]] is node, "an edge that its parent does not know"
