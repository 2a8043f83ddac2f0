"""The tokenizer in a GGUF file, with the same token ids as in llama.cpp.

A GGUF file has the tokens, their types and the merges. It does not have the rule by which a text is cut into words
before the merges apply: "tokenizer.ggml.pre" names the rule, and programs know rules by name. transformers' own reader
does not know all of them (SmolLM2's is missing) and takes GPT-2's instead, which gives other tokens at digits. So the
rules are here, and a file with an unknown one is refused. `tests/servers/on_smollm2.py` compares each with llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from motes.gguf.header import DamagedError, Header

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Types of tokens, `gguf.TokenType`."""

END_TOKENS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<｜end▁of▁sentence｜>"),
    )
)
"""Tokens that end an answer, whatever else a file says. A GGUF file names one or two of those that a checkpoint's
generation_config.json lists; llama.cpp finds the others by their names, and so does this module."""

MAX_TOKEN = 1 << 12
"""Maximum number of characters of a token: the time to find the merges of sentencepiece's grows with its square."""

# 1. The rules by which texts are cut into words. Each is a sequence of expressions that cut what the ones before left.

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"

GPT_2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
DIGITS = (r"\p{N}", *GPT_2)
LLAMA_3 = (rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}",)
QWEN_2 = (rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}",)
TEKKEN = (CASED % ("", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",)
GPT_4O = (CASED % (f"{CONTRACTION}?", f"{CONTRACTION}?") + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",)

LLAMA_3_NAMES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0")
RULES: dict[str, Sequence[str]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "exaone4", "trillion"), GPT_2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys((*LLAMA_3_NAMES, "dbrx", "smaug-bpe"), LLAMA_3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), QWEN_2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), GPT_4O),
    "tekken": TEKKEN,
}

CASED_RULES = frozenset(rule for rule, expressions in RULES.items() if expressions in (TEKKEN, GPT_4O))
"""Rules that depend on letter case and combining marks. Beyond ASCII, llama.cpp itself only comes close to them."""

WHOLE_WORDS = (*LLAMA_3_NAMES, "tekken")
"""Rules with which a word that is a token is that token, even if no merges lead to it. These models' texts begin with
the token that begins a text, unless their file says otherwise."""

# 2. Tokenizers.


def build_tokenizer(header: Header) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a GGUF file.

    Raises:
        ValueError: the file has no tokenizer, or one of an unknown kind; if it is damaged, a DamagedError.
    """
    kind, tokens = header.get("tokenizer.ggml.model", str), header.items("tokenizer.ggml.tokens", str)
    if kind in (None, "none", "no_vocab") or not tokens:
        raise ValueError("it has no tokenizer")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    types = header.items("tokenizer.ggml.token_type", int) or [NORMAL] * len(tokens)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise DamagedError("it is damaged: its tokens are not distinct, or some of them have no type")
    if (length := max(map(len, tokens))) > MAX_TOKEN:
        raise DamagedError(f"it is damaged: a token has {length:,} characters")
    types = [CONTROL if token in END_TOKENS else type_ for token, type_ in zip(tokens, types, strict=True)]
    if kind == "gpt2":
        tokenizer, begins_with_bos = _byte_level(header, tokens, types)
    elif kind == "llama":
        tokenizer, begins_with_bos = _sentencepiece(header, tokens, types)
    else:
        raise ValueError(f"its tokenizer is of the kind {kind!r}, and only gpt2 and llama are known")
    for kinds, is_special in (((CONTROL, UNKNOWN), True), ((USER_DEFINED,), False)):
        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=is_special)
                for token, type_ in zip(tokens, types, strict=True)
                if type_ in kinds
            ]
        )
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named = {name: tokens[i] for name, key in keys.items() if (i := _token_id(header, key, tokens)) is not None}
    if header.metadata.get("tokenizer.ggml.add_bos_token", begins_with_bos) and (bos := named.get("bos_token")):
        ids = [(bos, tokens.index(bos))]
        tokenizer.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=ids)
    template = header.get("tokenizer.chat_template", str)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False, **named
    )


def end_token_ids(header: Header) -> list[int]:
    """The tokens that end an answer: those that the file names, and those with a name in `END_TOKENS`."""
    tokens = header.items("tokenizer.ggml.tokens", str)
    named = {i for key in ("eos", "eot", "eom") if (i := _token_id(header, key, tokens)) is not None}
    known = {token: i for i, token in enumerate(tokens) if token in END_TOKENS}
    if {"<|return|>", "<|call|>"} <= known.keys():  # harmony: there, "<|end|>" ends a message, not the answer
        known.pop("<|end|>", None)
    return sorted({*named, *known.values()})


def _token_id(header: Header, key: str, tokens: Sequence[str]) -> int | None:
    i = header.get(f"tokenizer.ggml.{key}_token_id", int)
    return i if i is not None and i < len(tokens) else None


def _byte_level(header: Header, tokens: Sequence[str], types: Sequence[int]) -> tuple[Tokenizer, bool]:
    """GPT-2's kind: merges of bytes within words. The flag says whether texts begin with the token for that."""
    rule = header.get("tokenizer.ggml.pre", str)
    if rule not in RULES:
        name = (
            "does not name the rule by which its tokenizer cuts"
            if rule is None
            else f"has a tokenizer that cuts by {rule!r}"
        )
        raise ValueError(f"it {name} texts into words")
    merges = [_pair(merge) for merge in header.items("tokenizer.ggml.merges", str)]
    merged = {part for left, right in merges for part in (left, right, left + right)}
    vocab = {
        token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED or token in merged
    }
    tokenizer = _bpe(vocab, merges, ignore_merges=rule in WHOLE_WORDS)
    words = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in RULES[rule]]
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule in WHOLE_WORDS


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocab, merges, **options))
    except Exception as error:  # the library raises nothing else
        raise DamagedError(f"it is damaged: {error}") from error


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(header: Header, tokens: Sequence[str], types: Sequence[int]) -> tuple[Tokenizer, bool]:
    """Sentencepiece's kind: two pieces merge if together they are a token, those with the highest score first."""
    scores = header.items("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise DamagedError("it is damaged: its tokens have no scores")
    vocab = {token: i for i, token in enumerate(tokens)}
    plain = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    ranked = sorted(plain, key=lambda token: (-scores[vocab[token]], vocab[token]))
    merges = [pair for token in ranked for pair in _splits(token, plain)]
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    tokenizer = _bpe(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if header.metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer, True


def _splits(token: str, known: set[str]) -> Iterable[tuple[str, str]]:
    pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
    return (pair for pair in pairs if pair[0] in known and pair[1] in known)
