"""Stored prefixes and what tokens mean as bytes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from checkpoints import TOKENIZER, vocabulary
from motes.kv import PrefixTree, TokenPool
from motes.kv.runner import Workspace, moves
from motes.kv.tree import Part
from motes.vocabulary import Vocabulary

VOCABULARY = vocabulary()


def pool(capacity: int) -> TokenPool:
    return TokenPool(capacity, layers=1, kv_heads=1, head_dim=1, dtype=torch.float32, device=torch.device("cpu"))


def values_of(*sequences: list[int]):
    """A "key" that depends on the whole prefix, as a real one does, so that a slot mixed up would show."""

    def values(parts: list[Part]) -> torch.Tensor:
        prefixes = [sequences[i][: place + 1] for i, start, stop in parts for place in range(start, stop)]
        keys = torch.tensor([float(hash(tuple(prefix)) % 100_003) for prefix in prefixes])
        return keys.expand(1, 2, 1, -1)[..., None]

    return values


def insert(tree: PrefixTree, *sequences: list[int]) -> None:
    tree.insert(sequences, values_of(*sequences))


def assert_stored(tree: PrefixTree, ids: list[int]) -> int:
    slots = tree.match(ids)
    found = tree.pool.read(slots)
    assert torch.equal(found, values_of(ids)([(0, 0, len(slots))]))
    return len(slots)


def test_match_returns_the_longest_stored_prefix() -> None:
    tree = PrefixTree(pool(100))
    insert(tree, [1, 2, 3, 4])
    insert(tree, [1, 2, 7])
    assert tree.num_tokens == 5  # the common beginning is stored once
    for ids, longest in (([1, 2, 3, 4, 5], 4), ([1, 2, 3], 3), ([1, 2, 7, 8], 3), ([1, 9], 1), ([2], 0), ([], 0)):
        assert assert_stored(tree, ids) == longest
    tree.check_integrity()


def test_what_is_stored_is_not_asked_for_again() -> None:
    tree = PrefixTree(pool(100))
    insert(tree, [1, 2, 3])
    sequences = [[1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 3, 4, 6]]
    asked: list[Part] = []

    def values(parts: list[Part]) -> torch.Tensor:
        asked.extend(parts)
        return values_of(*sequences)(parts)

    tree.insert(sequences, values)
    assert asked == [(0, 3, 5), (2, 4, 5)]
    for ids in sequences:
        assert assert_stored(tree, ids) == len(ids)
    tree.check_integrity()


def test_sequences_that_are_stored_together_do_not_make_room_for_each_other() -> None:
    tree = PrefixTree(pool(5))
    insert(tree, [9, 9, 9])
    insert(tree, [1, 1], [2, 2], [3, 3], [4])
    assert [assert_stored(tree, ids) for ids in ([9], [1, 1], [2, 2], [3, 3], [4])] == [0, 2, 2, 1, 0]
    tree.check_integrity()


def test_least_recently_used_prefixes_make_room() -> None:
    tree = PrefixTree(pool(6))
    for ids in ([1, 1], [2, 2], [3, 3]):
        insert(tree, ids)
    tree.match([1, 1])
    insert(tree, [4, 4])
    assert [len(tree.match([i, i])) for i in (1, 2, 3, 4)] == [2, 0, 2, 2]
    tree.check_integrity()


def test_a_prefix_longer_than_the_pool_is_stored_as_far_as_it_fits() -> None:
    tree = PrefixTree(pool(4))
    ids = list(range(10))
    insert(tree, ids)
    assert assert_stored(tree, ids) == 4
    tree.check_integrity()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(4, 60))
def test_any_history_keeps_the_tree_sound(seed: int, capacity: int) -> None:
    rng = random.Random(seed)
    tree = PrefixTree(pool(capacity))
    for _ in range(60):
        insert(tree, *([rng.randrange(3) for _ in range(rng.randrange(12))] for _ in range(rng.randrange(4))))
        assert_stored(tree, [rng.randrange(3) for _ in range(rng.randrange(12))])
        tree.check_integrity()
    tree.clear()
    assert tree.pool.num_free == capacity
    tree.check_integrity()


def test_integrity_check_finds_a_lost_slot() -> None:
    tree = PrefixTree(pool(4))
    insert(tree, [1, 2])
    tree.pool.allocate(1)
    with pytest.raises(AssertionError, match="lost"):
        tree.check_integrity()


# Workspace


@pytest.mark.parametrize(
    ("rows", "sources", "targets"),
    [([], [], []), ([4], [], []), ([0], [4], [0]), ([1, 3], [4], [1]), ([4, 0, 1], [2, 3], [0, 1]), (range(5), [], [])],
)
def test_the_last_rows_fill_the_gaps(rows: list[int], sources: list[int], targets: list[int]) -> None:
    assert [places.tolist() for places in moves(np.array(rows, dtype=int), 5)] == [sources, targets]


@pytest.mark.parametrize("moved", [1, 7, 1 << 14])  # tokens at once
def test_rows_that_come_and_go_hold_what_is_theirs(moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motes.kv.runner.COPY_TOKENS", moved)
    rng = random.Random(0)
    kept = pool(64)
    kept.data[:] = torch.arange(64.0)[:, None] + torch.tensor([0.0, 0.5])[:, None, None, None]
    workspace, expected = Workspace(kept, 1000), []
    for _ in range(40):
        stored = [
            torch.tensor(rng.sample(range(64), rng.randrange(9)), dtype=torch.long) for _ in range(rng.randrange(5))
        ]
        workspace.append(stored)
        expected += [slots.tolist() for slots in stored]
        out = np.array(rng.sample(range(len(expected)), rng.randrange(len(expected) + 1)), dtype=int)
        workspace.remove(out)
        sources, targets = moves(out, len(expected))
        for source, target in zip(sources, targets, strict=True):
            expected[target] = expected[source]
        del expected[len(expected) - len(out) :]
        assert workspace.lengths == [len(slots) for slots in expected]
        for row, slots in enumerate(expected):
            found = workspace.values(torch.full((len(slots),), row), torch.arange(len(slots)))
            assert found.shape == (1, 2, 1, len(slots), 1)
            assert found[0, 0, 0, :, 0].tolist() == slots
            assert found[0, 1, 0, :, 0].tolist() == [slot + 0.5 for slot in slots]


# Vocabulary


def test_the_tokenizer_gives_the_ids_that_the_models_were_trained_with() -> None:
    raw = VOCABULARY.tokenizer.backend_tokenizer
    for text in ("Ben has 12+5=17.\n\nThe answer is \\boxed{17}.", "Ünïcode — 東京 🍐", "  two  spaces\n\n\nlines\t"):
        assert VOCABULARY.encode(text) == raw.encode(text, add_special_tokens=False).ids
        assert AutoTokenizer.from_pretrained(TOKENIZER).encode(text) == VOCABULARY.encode(text)
        assert VOCABULARY.decode(VOCABULARY.encode(text)) == text
    assert len(VOCABULARY.encode("2026")) == 4  # one token a digit


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_the_bytes_of_its_tokens(text: str) -> None:
    ids = VOCABULARY.encode(text, special=False)
    normal = VOCABULARY.tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert b"".join(PIECES[i] for i in ids) == normal.encode(errors="surrogatepass")


PIECES = VOCABULARY.pieces


def test_special_tokens_in_a_text_are_text_unless_asked_for() -> None:
    tag = VOCABULARY.tokenizer.convert_tokens_to_ids("<extra_0>")
    assert VOCABULARY.encode("<extra_0>") == [tag]
    assert tag not in VOCABULARY.encode("<extra_0>", special=False)


class Pieces(Vocabulary):
    """A vocabulary of given byte strings."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces


def first_hit(vocabulary: Vocabulary, delimiters: tuple[str, ...], ids: list[int]) -> int | None:
    ends, drawn = vocabulary.text_ends(delimiters), np.array(ids)
    hits = (i for i in range(len(ids)) if ends.completed_by_last(drawn[: i + 1]))
    return next(hits, None)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(["\n\n", "ab", "aab", "\n\n\n", "ba\n"]), min_size=1, max_size=3),
    st.lists(st.text("ab\n", min_size=0, max_size=5), min_size=1, max_size=12),
)
def test_a_step_ends_with_the_token_that_completes_a_delimiter(delimiters: list[str], pieces: list[str]) -> None:
    """However tokens cut the text: delimiters inside a token, split over several, overlapping one another."""
    text, expected = "", None
    for i, piece in enumerate(pieces):
        text += piece
        if any(delimiter in text for delimiter in delimiters):
            expected = i
            break
    vocabulary = Pieces([piece.encode() for piece in pieces])
    assert first_hit(vocabulary, tuple(delimiters), list(range(len(pieces)))) == expected


def test_no_delimiter_never_ends_a_step() -> None:
    assert not Pieces([b"a", b"\n\n"]).text_ends(()).completes.any()


def test_most_tokens_cannot_complete_a_text() -> None:
    """Those that can: that begin with one of its ends, or hold all of it. No text is looked at for the others."""
    words = Pieces([b"", b"an:", b"n: so", b":", b"Human:", b"a Human: b", b"Hum", b"uma", b"man", b" n:", b"a"])
    completes = words.text_ends(("Human:",), num_tokens=13).completes
    assert completes.nonzero()[0].tolist() == [1, 2, 3, 4, 5]
    assert completes.shape == (13,)


def test_tokens_without_bytes_hide_no_text() -> None:
    words = Pieces([b"a", b"", b"bc"])
    assert first_hit(words, ("abc",), [0, 1, 1, 1, 1, 1, 1, 2]) == 7
    assert first_hit(words, ("abc",), [0, 0, 1, 0]) is None


def test_finding_texts_costs_what_they_and_the_vocabulary_are_long() -> None:
    """Not their product: an end of a text that no token is as long as is not looked up."""

    class Counted(bytes):
        looks = 0

        def startswith(self, text: bytes) -> bool:  # type: ignore[override]
            Counted.looks += 1
            return bytes.startswith(self, text)

    words = Pieces([Counted([a, b]) for a in range(97, 123) for b in range(97, 123)] * 4)
    words.text_ends(("abcdefghij" * 100,))
    assert 0 < Counted.looks < 100
