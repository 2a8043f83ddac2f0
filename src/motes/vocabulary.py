"""What tokens mean as bytes: chat prompts, text, and where a delimiter ends, in whatever way tokens cut it."""

from __future__ import annotations

import codecs
import json
import re
import secrets
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from motes.core import Problem
from motes.errors import ConfigurationError
from motes.steps import THINKING, opening
from motes.threads import in_thread_if_long

SHORT, REMEMBERED = 256, 1 << 14
"""Characters of a text whose tokens are remembered, at most, and how many such texts are: particles that are alike take
the same steps."""


class Vocabulary:
    """A checkpoint's tokenizer, with what the engines ask of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        self.pieces = _pieces(tokenizer.get_vocab(), spec)
        self._inner = tokenizer
        if _forget_edges(spec):
            self._inner = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
        _ = self._spelled  # now, not with the first request
        special = sorted((t["content"] for t in spec["added_tokens"] if t["special"]), key=len, reverse=True)
        spoken = "|".join(re.escape(token) for token in special if token and token not in THINKING)
        self._special = re.compile(spoken) if spoken else None
        self._prompts: WeakKeyDictionary[Problem, list[int]] = WeakKeyDictionary()
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._locked)
        self._lock = threading.Lock()  # a tokenizer that is set up for one call must not serve another one

    @classmethod
    def load(cls, path: str) -> Vocabulary:
        """Raises whatever the libraries that read these files raise."""
        vocabulary = cls(AutoTokenizer.from_pretrained(path))
        ids = vocabulary.encode("1 a\n\nB")
        if not ids:  # an empty one is what transformers makes of a folder without the file
            raise ValueError("its tokenizer knows no tokens: is tokenizer.json missing?")
        theirs = vocabulary.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if vocabulary.decode(ids).strip() != str(theirs).strip():
            raise ValueError("its tokenizer is neither of the byte-level nor of the sentencepiece kind")
        return vocabulary

    def prompt(self, problem: Problem) -> list[int]:
        """Token ids of the conversation up to where the answer begins. Without a chat template: the bare question.

        Raises:
            ConfigurationError: the model has no form for such a conversation.
        """
        if problem not in self._prompts:
            with self._lock:
                if problem not in self._prompts:  # in another thread meanwhile
                    self._prompts[problem] = self._prompt(problem)
        return self._prompts[problem]

    async def prepare(self, problem: Problem) -> None:
        """Let `prompt` know a long prompt without holding up the event loop.

        Raises:
            ConfigurationError: as `prompt`.
        """
        if problem not in self._prompts:
            length = sum(len(message["content"]) for message in problem.messages)
            await in_thread_if_long(length, self.prompt, problem)

    def _prompt(self, problem: Problem) -> list[int]:
        contents, spoken = self._without_special(problem)
        if self.tokenizer.chat_template:
            return self._with_special(self._conversation(problem, contents), spoken, add_special_tokens=False)
        if len(problem.messages) == 1:
            return self._with_special(contents[-1], spoken)
        raise ConfigurationError(
            "the model has no chat template, so it knows neither system prompts nor conversations: ask the "
            "question alone, or use a checkpoint that was trained to chat"
        )

    def opening(self, problem: Problem) -> str:
        """What the answer's text begins with before anything is drawn, see `motes.steps.opening`."""
        return opening(self.decode(self.prompt(problem)[-4:]))

    def _without_special(self, problem: Problem) -> tuple[list[str], dict[str, str]]:
        """The messages' contents, with a mark for each special token that they spell, and what the marks stand for.

        Only the template speaks in special tokens: what a user writes is text. Nobody can guess a mark.
        """
        contents = [message["content"] for message in problem.messages]
        if self._special is None or not any(map(self._special.search, contents)):
            return contents, {}
        nonce, spoken = secrets.token_hex(8), dict[str, str]()

        def mark(found: re.Match[str]) -> str:
            spoken[name := f"[{nonce}:{len(spoken)}]"] = found[0]
            return name

        return [self._special.sub(mark, content) for content in contents], spoken

    def _with_special(self, text: str, spoken: Mapping[str, str], **options: Any) -> list[int]:
        """Token ids of a whole text, with what its marks stand for as text."""
        marks = "|".join(map(re.escape, spoken))
        first, *rest = re.split(f"({marks})", text) if spoken else [text]
        ids: list[int] = self.tokenizer.encode(first, verbose=False, **options)
        for part in rest:
            if part in spoken:  # cut in two: some tokenizers find special tokens in any text
                ids += self._encode(spoken[part][:1], special=False) + self._encode(spoken[part][1:], special=False)
            else:
                ids += self._encode(part, special=True)
        return ids

    def _conversation(self, problem: Problem, contents: Sequence[str]) -> str:
        messages = [
            {**message, "content": content} for message, content in zip(problem.messages, contents, strict=True)
        ]
        try:
            text = str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the model's chat template refuses the conversation ({error}): "
                + ("put the system prompt into the question" if problem.system else "use another checkpoint")
            ) from error
        if problem.system and contents[0].strip() not in text:
            raise ConfigurationError("the model's chat template leaves the system prompt out: put it into the question")
        return text

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a piece of text, none added: of text that continues a text, so no space is put before it.

        Special tokens that it spells are recognised, or only text.
        """
        return list(self._remembered(text, special)) if len(text) <= SHORT else self._locked(text, special)

    def _locked(self, text: str, special: bool) -> list[int]:
        with self._lock:
            return self._encode(text, special=special)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # Whether it is too long is for the engines to say: the tokenizer's own warning is silenced.
        ids: list[int] = self._inner.encode(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False
        )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out; an incomplete character at the end is left out, too.

        The text of a prefix is a prefix of the text, whatever bytes the tokens hold.
        """
        return codecs.getincrementaldecoder("utf-8")("replace").decode(self._bytes(ids))

    def decode_more(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` add to the text of the tokens before them: decode(before + ids) without decode(before)."""
        return self._decoder(before).decode(self._bytes(ids))

    def reader(self, before: Sequence[int]) -> Callable[[int], str]:
        """A function that is told one token after another and says what each adds to the text of those before it."""
        decoder = self._decoder(before)
        return lambda token: decoder.decode(self._bytes([token]))

    def _decoder(self, before: Sequence[int]) -> codecs.IncrementalDecoder:
        """One that has read the tokens before: they may end within a character."""
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

    @cached_property
    def _spelled(self) -> _Spelled:
        return _Spelled.of(self.pieces)

    def text_ends(self, texts: Sequence[str], num_tokens: int = 0) -> TextEnds:
        """What finds, among tokens, where one of some texts is complete.

        Args:
            num_tokens: of the model, which may know more tokens than the vocabulary; they have no bytes.
        """
        targets = tuple(dict.fromkeys(text.encode() for text in texts))
        completes = np.zeros(max(num_tokens, len(self.pieces)), dtype=bool)
        spelled = self._spelled
        for target in targets:
            completes[spelled.holding(target)] = True
            for n in range(1, min(len(target), spelled.longest) + 1):
                completes[spelled.beginning_with(target[-n:])] = True
        return TextEnds(self.pieces, targets, completes)


@dataclass(frozen=True, eq=False)
class _Spelled:
    """The tokens that have bytes, in the order of these.

    Attributes:
        tokens: (n,) their ids.
        written: all of their bytes, 0xFF between them, which no text has; `starts`: (n,) where each begins.
        longest: bytes of one.
    """

    pieces: list[bytes]
    tokens: npt.NDArray[np.int64]
    written: bytes
    starts: npt.NDArray[np.int64]
    longest: int

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> Self:
        order = sorted((i for i, piece in enumerate(pieces) if piece), key=pieces.__getitem__)
        spelled = [pieces[i] for i in order]
        sizes = np.array([len(piece) for piece in spelled], dtype=np.int64)
        starts = np.cumsum(sizes + 1) - sizes - 1
        return cls(spelled, np.array(order, np.int64), b"\xff".join(spelled), starts, int(sizes.max(initial=0)))

    def beginning_with(self, text: bytes) -> npt.NDArray[np.int64]:
        first = bisect_left(self.pieces, text)
        last = bisect_left(self.pieces, True, first, key=lambda piece: not piece.startswith(text))
        return self.tokens[first:last]

    def holding(self, text: bytes) -> npt.NDArray[np.int64]:
        places = [found.start() for found in re.finditer(re.escape(text), self.written)]
        return self.tokens[np.searchsorted(self.starts, places, side="right") - 1]


@dataclass(frozen=True, eq=False)
class TextEnds:
    """Finds, among tokens, where one of some texts is complete, in whatever way tokens cut it.

    Attributes:
        completes: (tokens,) whether a token can complete one. Most cannot, and so most steps of decoding look at no
            text at all.
    """

    pieces: Sequence[bytes]
    targets: tuple[bytes, ...]
    completes: npt.NDArray[np.bool_]

    def completed_by_last(self, ids: npt.NDArray[np.int64]) -> bool:
        """Whether the last of these tokens completes one of the texts."""
        if not self.completes[ids[-1]]:
            return False
        reach = max(map(len, self.targets))
        new = len(self.pieces[ids[-1]])
        seen = self._bytes(ids[-reach:])
        if len(seen) < reach - 1 + new:  # some tokens have no bytes
            seen = self._bytes(ids)
        return any(seen.find(target, max(0, len(seen) - new - len(target) + 1)) >= 0 for target in self.targets)

    def _bytes(self, ids: npt.NDArray[np.int64]) -> bytes:
        return b"".join([self.pieces[i] for i in ids.tolist() if i < len(self.pieces)])


def _pieces(vocabulary: dict[str, int], spec: dict[str, Any]) -> list[bytes]:
    """Each token's bytes, by id; special tokens have none, as they have no text (thinking tags are text always), and
    neither have ids without token.

    Args:
        spec: of a fast tokenizer, as in tokenizer.json.
    """
    decoders = _parts(spec["decoder"]) or [
        part for part in _parts(spec["pre_tokenizer"]) if part["type"] == "ByteLevel"
    ]
    byte_of = _bytes_of_characters()

    def spelled(token: str) -> bytes:
        for part in decoders:
            match part["type"]:
                case "ByteLevel" if all(character in byte_of for character in token):
                    return bytes(byte_of[character] for character in token)
                case "ByteFallback" if written := re.fullmatch("<0x([0-9A-F]{2})>", token):
                    return bytes.fromhex(written[1])
                case "Metaspace":
                    token = token.replace(part["replacement"], " ")
                case "Replace" if "String" in part["pattern"]:
                    token = token.replace(part["pattern"]["String"], part["content"])
        return token.encode()

    added = {token["id"]: token for token in spec["added_tokens"]}
    pieces = [b""] * (1 + max(vocabulary.values(), default=-1))
    for token, i in vocabulary.items():
        if i not in added:
            pieces[i] = spelled(token)
        elif not added[i]["special"] or token in THINKING:
            pieces[i] = token.encode()
    return pieces


def _forget_edges(spec: dict[str, Any]) -> bool:
    """Take out of a fast tokenizer what it does to the ends of a text only; returns whether there was anything."""
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
    """Whether a replacement is one of the beginning only. (Tokenizers made of sentencepiece files double a space.)"""
    return part["type"] == "Replace" and str(part["pattern"].get("Regex", "")).startswith(("\\A", "^"))


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a tokenizer's normalizer, pre-tokenizer or decoder, sequences taken apart."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(value for value in part.values() if isinstance(value, list))
    return [leaf for each in inner for leaf in _parts(each)]


def _bytes_of_characters() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE vocabularies use for bytes (GPT-2's table, inverted)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
