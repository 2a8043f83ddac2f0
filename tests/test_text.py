"""Text from outside, made fit for what it is written to."""

from __future__ import annotations

import itertools
import json
import unicodedata
from pathlib import Path

import pytest

from motes.gateway.config import Config
from motes.lab.measure.calibration import read_labelled
from motes.lab.run.evaluation import read_configuration
from motes.prompts import prompt
from motes.rewards.calibration import Calibration
from motes.tasks.rows import read_jsonl
from motes.text import json_line, parse_json, read_text, visible, well_formed


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


def test_json_is_read_with_well_formed_texts():
    assert parse_json(r'{"\ud83d": ["\ud83d\ude00", {"a": "\uDE00"}, 1, null]}') == {"�": ["😀", {"a": "�"}, 1, None]}
    assert parse_json(b'"\xc3\xa9 \\\\ud83d"') == r"é \ud83d"  # a stroke, and letters
    assert parse_json("[0.50]", parse_float=str) == ["0.50"]


def test_a_line_of_json_is_one_line_for_everybody():
    value = {"a\u2028": "b\x85c\u2029\n\x0b\x1cé\ud83d", "n": [1, 0.5]}
    for line in (json_line(value), json_line(value, compact=True)):
        assert len(line.splitlines()) == 1
        assert json.loads(line.encode()) == {"a\u2028": "b\x85c\u2029\n\x0b\x1cé�", "n": [1, 0.5]}
    assert json_line({"a": 1, "b": "é"}) == '{"a": 1, "b": "é"}'
    assert json_line({"a": 1, "b": "é"}, compact=True) == '{"a":1,"b":"é"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line(float("nan"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])  # as editors save it; the last two with a mark
def test_text_files_of_any_editor(tmp_path: Path, encoding: str):
    path = tmp_path / "a.txt"
    path.write_bytes("é\r\n😀\ufeff\u2028.\rb\n".encode(encoding))
    assert read_text(path) == "é\n😀\ufeff\u2028.\nb\n"


def test_a_file_that_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"a\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")


MARK = b"\xef\xbb\xbf"


def marked(path: Path, text: str) -> Path:
    path.write_bytes(MARK + text.encode())
    return path


def test_an_editors_mark_is_accepted_wherever_a_person_may_have_left_one(tmp_path: Path):
    rows = read_jsonl(marked(tmp_path / "p.jsonl", '{"question": "?", "answer": 1}\n'))
    assert rows == [(1, {"question": "?", "answer": 1})]
    labelled = marked(tmp_path / "l.jsonl", '{"label": 1, "score": 0.5, "text": "a\u2028b\x85c"}\n')
    assert [answer.score for answer in read_labelled(labelled)] == [0.5]
    assert prompt(marked(tmp_path / "mine.toml", 'system = "Be brief."\n')).system == "Be brief."
    assert Config.load(marked(tmp_path / "motes.toml", '[models.a]\nlm = "tiny"\nreward = "tiny"\n')).models
    (tmp_path / "run").mkdir()
    marked(tmp_path / "run" / "config.json", '{"task": "arithmetic"}')
    assert read_configuration(tmp_path / "run") == {"task": "arithmetic"}
    marked(tmp_path / "c.json", '{"format": "motes calibration 1", "slope": 0, "scores": [0.5], "probabilities": [1]}')
    assert Calibration.load(str(tmp_path / "c.json")).scores == (0.5,)
