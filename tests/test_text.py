"""Text from outside, made fit for what it is written to."""

from __future__ import annotations

import itertools

import pytest

from motes.text import well_formed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("naïve 😀", "naïve 😀"),
        ("\ud83d", "�"),
        ("\ude00", "�"),
        ("a\ud83d", "a�"),
        ("\ud83d b", "� b"),
        ("\ud83d\ude00", "😀"),
        ("\ude00\ud83d", "��"),
        ("\ud83d\ud83d\ude00", "�😀"),
        ("run-\udcff.json", "run-�.json"),
        ("\x00\ufeff\u2028\x85", "\x00\ufeff\u2028\x85"),
    ],
)
def test_halves_of_a_pair_are_joined_or_replaced(text: str, expected: str):
    assert well_formed(text) == expected


def test_every_short_text_becomes_well_formed_and_keeps_its_characters():
    high, low = "\ud83d", "\ude00"
    for text in map("".join, itertools.product(("a", "é", "😀", high, low), repeat=5)):
        expected = text.replace(high + low, "😀").replace(high, "�").replace(low, "�")
        assert well_formed(text) == expected == well_formed(expected)
