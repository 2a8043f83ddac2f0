"""Tokens and their bytes: chat prompts, text, and the ends of delimiters, however tokens split them."""

from __future__ import annotations

import codecs
import json
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from motes.core import Problem
from motes.errors import ConfigurationError
from motes.gguf import Header, find_gguf, open_header
from motes.gguf.tokenizer import build_tokenizer
from motes.steps import opening
from motes.text import put_placeholders, split_at_placeholders
from motes.thoughts import THINKING, tokens_of_marks
from motes.threads import in_thread_if_long

CONTROL = re.compile(r"<([|｜]).+\1>", re.DOTALL)
"""The form of the tokens that a chat template writes between turns. Some checkpoints do not call theirs special
(DeepSeek-R1's "<｜User｜>"); llama.cpp's converter goes by their form, too."""

MAX_CACHED_LENGTH, CACHE_SIZE = 256, 1 << 14
"""Maximum length of a text whose tokens are cached, in characters, and number of these texts: similar particles have
the same steps."""


class Vocabulary:
    """A checkpoint's tokenizer, with the operations that engines need.

    Args:
        begins_chats: whether the token that begins every text also begins a prompt whose chat template does not write
            it, as on llama.cpp; in transformers, the template alone decides.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, begins_chats: bool = False) -> None:
        self.tokenizer = tokenizer
        self._begins_chats = begins_chats
        spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        self._ids = tokenizer.get_vocab()
        self._marks = tokens_of_marks(self._ids)
        self.pieces = _pieces(self._ids, spec, self._marks)
        self._inner = tokenizer
        if _remove_edge_rules(spec):
            self._inner = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
        added = {t["content"] for t in spec["added_tokens"] if t["special"] or CONTROL.fullmatch(t["content"])}
        special = sorted(added.difference(THINKING, [""]), key=len, reverse=True)
        pattern = "|".join(map(re.escape, special))
        self._special = re.compile(pattern) if pattern else None
        self._mark = re.compile(f"({'|'.join(map(re.escape, sorted(self._marks)))})") if self._marks else None
        self._prompts: WeakKeyDictionary[Problem, list[int]] = WeakKeyDictionary()
        self._encode_cached = lru_cache(maxsize=CACHE_SIZE)(self._encode)
        _ = self._sorted_pieces  # compute it now, not with the first request
        self._lock = threading.RLock()  # each call changes the tokenizer's settings, so calls take turns

    @cached_property
    def _sorted_pieces(self) -> _SortedPieces:
        return _SortedPieces(self.pieces)

    @classmethod
    def load(cls, path: str) -> Vocabulary:
        """Load the tokenizer of a checkpoint or a GGUF file, see `motes.gguf.find_gguf`.

        Raises any error of the libraries that read its files.
        """
        gguf = find_gguf(path)
        return cls._checked(AutoTokenizer.from_pretrained(path)) if gguf is None else cls.of_gguf(open_header(gguf))

    @classmethod
    def of_gguf(cls, header: Header) -> Vocabulary:
        """Load the tokenizer of a GGUF file. Raises a ValueError if it cannot be made."""
        return cls._checked(build_tokenizer(header), begins_chats=True)

    @classmethod
    def _checked(cls, tokenizer: PreTrainedTokenizerBase, *, begins_chats: bool = False) -> Vocabulary:
        vocabulary = cls(tokenizer, begins_chats=begins_chats)
        ids = vocabulary.encode("1 a\n\nB")
        if not ids:  # transformers makes an empty tokenizer if the file is missing
            raise ValueError("its tokenizer knows no tokens: is tokenizer.json missing?")
        theirs = vocabulary.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if vocabulary.decode(ids).strip() != str(theirs).strip():
            raise ValueError("its tokenizer is neither of the byte-level nor of the sentencepiece kind")
        return vocabulary

    def prompt(self, problem: Problem) -> list[int]:
        """Token ids of the conversation up to the beginning of the answer; without a chat template, of the question.

        Raises:
            ConfigurationError: the model's prompt format does not support the conversation.
        """
        if problem not in self._prompts:
            with self._lock:
                if problem not in self._prompts:  # another thread may have added it
                    self._prompts[problem] = self._prompt(problem)
        return self._prompts[problem]

    async def prepare(self, problem: Problem) -> None:
        """Compute `prompt` in advance, with its errors; a long one does not block the event loop."""
        if problem not in self._prompts:
            length = sum(len(message["content"]) for message in problem.messages)
            await in_thread_if_long(length, self.prompt, problem)

    def _prompt(self, problem: Problem) -> list[int]:
        contents, marks = self._mark_special(problem)
        if self.tokenizer.chat_template:
            text, bos = self._apply_template(problem, contents), self.tokenizer.bos_token
            is_begun = not self._begins_chats or bool(bos and text.startswith(bos))
            return self._encode_marked(text, marks, add_special_tokens=not is_begun)
        if len(problem.messages) == 1:
            return self._encode_marked(contents[-1], marks)
        raise ConfigurationError(
            "the model has no chat template, so it knows neither system prompts nor conversations: ask the "
            "question alone, or use a checkpoint that was trained to chat"
        )

    def opening(self, problem: Problem) -> str:
        """The beginning of the answer that the prompt ends with, see `motes.steps.opening`."""
        return opening(self.decode(self.prompt(problem)[-4:]))

    def _mark_special(self, problem: Problem) -> tuple[list[str], dict[str, str]]:
        """Replace special tokens in the messages by marks: (contents, special token of each mark).

        Only the template may use special tokens: users' messages are text.
        """
        contents = [message["content"] for message in problem.messages]
        return (contents, {}) if self._special is None else put_placeholders(self._special, contents)

    def _encode_marked(self, text: str, marks: Mapping[str, str], **options: Any) -> list[int]:
        """Token ids of a whole text, in which each mark becomes its special token's characters as text."""
        first, *rest = split_at_placeholders(text, marks)
        ids: list[int] = self.tokenizer.encode(first, verbose=False, **options)
        for part in rest:
            if part in marks:  # cut in two: some tokenizers find special tokens in any text
                ids += self._encode(marks[part][:1], False) + self._encode(marks[part][1:], False)
            else:
                ids += self._encode(part, True)
        return ids

    def _apply_template(self, problem: Problem, contents: Sequence[str]) -> str:
        messages = [
            {**message, "content": content} for message, content in zip(problem.messages, contents, strict=True)
        ]
        try:
            text = str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program
            raise ConfigurationError(
                f"the model's chat template refuses the conversation ({error}): "
                + ("put the system prompt into the question" if problem.system else "use another checkpoint")
            ) from error
        if problem.system and contents[0].strip() not in text:
            raise ConfigurationError("the model's chat template leaves the system prompt out: put it into the question")
        return text

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text that continues another one: no special token and no space is added at its beginning.
        Unless `special`, special tokens in the text are text."""
        encode = self._encode_cached if len(text) <= MAX_CACHED_LENGTH else self._encode
        return list(encode(text, special))

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a text that the model may have written after another one: tags of thoughts, and harmony's
        special tokens, are their tokens; other special tokens are text."""
        parts = self._mark.split(text) if self._mark is not None else [text]
        ids: list[int] = []
        for part in filter(None, parts):
            ids += [self._ids[part]] if part in self._marks else self.encode(part, special=False)
        return ids

    def _encode(self, text: str, special: bool) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": not special}
        with self._lock:
            # verbose=False: engines check the length, the tokenizer shall not warn
            ids: list[int] = self._inner.encode(text, verbose=False, **options)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special tokens and without an incomplete character at the end.

        The text of a prefix is a prefix of the text, whatever bytes the tokens have.
        """
        return codecs.getincrementaldecoder("utf-8")("replace").decode(self._bytes(ids))

    def decode_more(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add to the tokens before them: decode(before + ids) without decode(before)."""
        return self._decoder(before).decode(self._bytes(ids))

    def reader(self, before: Sequence[int]) -> Callable[[int], str]:
        """A function that takes one token after the other and returns the text that each adds to the tokens before."""
        decoder = self._decoder(before)
        return lambda token: decoder.decode(self._bytes([token]))

    def _decoder(self, before: Sequence[int]) -> codecs.IncrementalDecoder:
        """A decoder that has decoded the tokens `before`, which may end within a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token in reversed(before):
            tail = self._bytes([token]) + tail
            if len(tail) >= 3:  # an incomplete character has no more bytes
                break
        decoder.decode(tail)
        return decoder

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join([self.pieces[i] for i in ids if i < len(self.pieces)])

    def text_ends(self, texts: Sequence[str], num_tokens: int = 0) -> TextEnds:
        """A search for the tokens that complete one of the texts. The model may have more tokens (`num_tokens`) than
        the vocabulary; these have no bytes."""
        targets = tuple(dict.fromkeys(text.encode() for text in texts))
        completes = np.zeros(max(num_tokens, len(self.pieces)), dtype=bool)
        pieces = self._sorted_pieces
        for target in targets:
            completes[pieces.tokens_containing(target)] = True
            for n in range(1, min(len(target), pieces.longest) + 1):
                completes[pieces.tokens_starting_with(target[-n:])] = True
        return TextEnds(self.pieces, targets, completes)


class _SortedPieces:
    """The tokens that have bytes, sorted by their bytes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        order = sorted((i for i, piece in enumerate(pieces) if piece), key=pieces.__getitem__)
        self._tokens = np.array(order, np.int64)  # (n,) ids
        self._pieces = [pieces[i] for i in order]
        self._joined = b"\xff".join(self._pieces)  # 0xFF occurs in no text
        sizes = np.array([len(piece) for piece in self._pieces], np.int64)
        self._starts = np.cumsum(sizes + 1) - sizes - 1  # (n,) offsets in `_joined`
        self.longest = int(sizes.max(initial=0))

    def tokens_starting_with(self, text: bytes) -> npt.NDArray[np.int64]:
        first = bisect_left(self._pieces, text)
        last = bisect_left(self._pieces, True, first, key=lambda piece: not piece.startswith(text))
        return self._tokens[first:last]

    def tokens_containing(self, text: bytes) -> npt.NDArray[np.int64]:
        places = [match.start() for match in re.finditer(re.escape(text), self._joined)]
        return self._tokens[np.searchsorted(self._starts, places, side="right") - 1]


@dataclass(frozen=True, eq=False)
class TextEnds:
    """Finds the token that completes one of the texts, however tokens split it. Most tokens cannot, so most steps of
    decoding need not look at any text."""

    pieces: Sequence[bytes]  # by token id
    targets: tuple[bytes, ...]  # the texts
    completes: npt.NDArray[np.bool_]  # (tokens,) whether a token can complete a text

    def completed_by_last(self, ids: npt.NDArray[np.int64]) -> bool:
        """Whether the last of these tokens completes one of the texts."""
        if not self.completes[ids[-1]]:
            return False
        reach = max(map(len, self.targets))
        new = len(self.pieces[ids[-1]])
        text = self._bytes(ids[-reach:])
        if len(text) < reach - 1 + new:  # some tokens have no bytes
            text = self._bytes(ids)
        return any(text.find(target, max(0, len(text) - new - len(target) + 1)) >= 0 for target in self.targets)

    def _bytes(self, ids: npt.NDArray[np.int64]) -> bytes:
        return b"".join([self.pieces[i] for i in ids.tolist() if i < len(self.pieces)])


def _pieces(vocabulary: dict[str, int], spec: dict[str, Any], marks: Container[str]) -> list[bytes]:
    """The bytes of each token, by id; empty for ids without a token and for special tokens, except for the marks around
    thoughts, which are always text. `spec` is the content of tokenizer.json."""
    decoders = _parts(spec["decoder"]) or [
        part for part in _parts(spec["pre_tokenizer"]) if part["type"] == "ByteLevel"
    ]
    byte_of = _bytes_of_characters()

    def bytes_of(token: str) -> bytes:
        for part in decoders:
            match part["type"]:
                case "ByteLevel" if all(character in byte_of for character in token):
                    return bytes(byte_of[character] for character in token)
                case "ByteFallback" if match := re.fullmatch("<0x([0-9A-F]{2})>", token):
                    return bytes.fromhex(match[1])
                case "Metaspace":
                    token = token.replace(part["replacement"], " ")
                case "Replace" if "String" in part["pattern"]:
                    token = token.replace(part["pattern"]["String"], part["content"])
        return token.encode()

    added = {token["id"]: token for token in spec["added_tokens"]}
    pieces = [b""] * (1 + max(vocabulary.values(), default=-1))
    for token, i in vocabulary.items():
        if i not in added:
            pieces[i] = bytes_of(token)
        elif not added[i]["special"] or token in marks:
            pieces[i] = token.encode()
    return pieces


def _remove_edge_rules(spec: dict[str, Any]) -> bool:
    """Remove the rules of a fast tokenizer that change only the ends of a text. Returns whether there were any."""
    before = json.dumps(spec)
    normalizers = _parts(spec["normalizer"])
    inner = [part for part in normalizers if part["type"] not in ("Prepend", "Strip") and not _is_anchored(part)]
    if len(inner) < len(normalizers):
        spec["normalizer"] = {"type": "Sequence", "normalizers": inner}
    for part in _parts(spec["pre_tokenizer"]):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    return json.dumps(spec) != before


def _is_anchored(part: dict[str, Any]) -> bool:
    """Whether a replacement applies to the beginning only. (Tokenizers made of sentencepiece files double a space.)"""
    return part["type"] == "Replace" and str(part["pattern"].get("Regex", "")).startswith(("\\A", "^"))


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a tokenizer's normalizer, pre-tokenizer or decoder, with nested sequences flattened."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(value for value in part.values() if isinstance(value, list))
    return [leaf for child in inner for leaf in _parts(child)]


def _bytes_of_characters() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE vocabularies use for bytes (GPT-2's table, inverted)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
