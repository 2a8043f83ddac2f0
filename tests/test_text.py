"""Text from outside, made fit for what it is written to."""

from __future__ import annotations

import itertools
import unicodedata

import pytest

from motes.text import visible, well_formed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("naïve 😀", "naïve 😀"),
        ("\ud83d", "�"),
        ("b\ude00", "b�"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("right\rwrong\b\x7f\0", r"right\rwrong\x08\x7f\x00"),
        ("\u202egnp.exe\u202c", r"\u202egnp.exe\u202c"),
        ("\u2066a\u2069\u200e\u200f\u061c", r"\u2066a\u2069\u200e\u200f\u061c"),
        ("ze\u200bro\ufeff\u2060\xad", r"ze\u200bro\ufeff\u2060\xad"),
        ("a\u200db", r"a\u200db"),
        ("\u200da", r"\u200da"),
        ("\U000e0048\U000e0069", r"\U000e0048\U000e0069"),
        ("😀\ufe0f\ufe01\ufe02", "😀\ufe0f" + r"\ufe01\ufe02"),
        ("line\u2028line\x85", r"line\u2028line\x85"),
        ("half \ud83d", r"half \ud83d"),
        ("one\ntwo\tthree\r\nfour", r"one\ntwo\tthree\r\nfour"),
    ],
)
def test_what_acts_on_a_terminal_is_shown(text: str, expected: str):
    assert visible(text) == expected == visible(expected)


@pytest.mark.parametrize(
    "text",
    [
        "plain, [/red] [bold]",
        r"\boxed{\frac12} \x1b",
        "e\u0301 naïve “–” 的 ￥ π ≤ ½",
        "שלום עליכם, مرحبا",
        "می\u200cخواهم",  # Persian: the joiner parts letters
        "क्\u200dष ന്\u200d",  # Devanagari; the last a letter of Malayalam
        "👩🏽\u200d💻 ❤\ufe0f\u200d🔥 🏳\ufe0f\u200d🌈 1\ufe0f\u20e3 🇩🇪",
        "\ue0a0 �",
    ],
)
def test_ordinary_text_is_shown_as_it_is(text: str):
    assert visible(text) == text


def test_texts_of_several_lines_keep_their_lines():
    assert visible("a\r\nb\tc\n\rd\x1b", newlines=True) == "a\nb\tc\n" + r"\rd\x1b"


def test_nothing_that_unicode_calls_a_control_or_a_format_is_left():
    signs = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in signs:
            assert visible(f"a{chr(code)}b").isascii(), hex(code)
