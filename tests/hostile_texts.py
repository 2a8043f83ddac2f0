"""Texts that tokenizers disagree about: digits, spaces, newlines, scripts, emoji, code, spellings of special tokens."""

from __future__ import annotations

import random

HOSTILE = (
    "the", "The", " and", " x", "12", " 34", "  56", "3.5", "1,000", "٣٤", "²", "Ⅷ", "½", "0" * 5, "9" * 12,
    "\n", "\n\n", "\n" * 7, "\r\n", "\r\n\r\n", "\t", "\t\tx", " ", "  ", "   ", " " * 13,
    "\u00a0", "\u3000", "\u2028", "\u0085", "\x00", "\x1b[2J", "\x7f", "\u200b", "\ufeff",
    ".", "...", "!!", "(", "{}", "-", "--", "—", "_", "_" * 9, "=" * 20, "//", "\n/", "/\n", "*", " *\n", "==", "=>",
    "'s", "'S", "'re", "'LL", "’s", "don't", "we'll", "I'D", "a_b", "__init__", "camelCase", "HTTPServer", "x1", "a1b2",
    "$x$", "\\boxed{", "\\frac", "#", "# T", "@me", "https://a.b/c?d=1", "```", "```python\n", "`x`",
    "é", "É", "ñ", "ß", "İ", "ǅ", "ʰ", "ª", "e\u0301", "हिन्दी", "தமிழ்", "ไทย", "\U00010400", "\U0001d400",
    "東京", "漢字かな", "カナ", "한국어", "العربية", "עברית", "Привет", "Ελλ",
    "😀", "👨‍👩‍👧", "🇩🇪", "❤️", "∑", "≤", "→", "°", "€",
    "<|im_end|>", "<|im_start|>user\n", "<|endoftext|>", "<think>", "</think>", "</s>", "<s>", "<unk>", "<0x0A>",
    "[INST]", "<｜User｜>",
)  # fmt: skip


def mixtures(count: int, seed: int) -> list[str]:
    """Random sequences of these texts and of characters from everywhere."""
    rng = random.Random(seed)
    ranges = (range(32, 127), range(0x80, 0x3000), range(0x3000, 0xD7FF))

    def piece() -> str:
        return rng.choice(HOSTILE) if rng.random() < 0.8 else chr(rng.choice(rng.choice(ranges)))

    return ["".join(piece() for _ in range(rng.randrange(1, 9))) for _ in range(count)]
