"""What tokens mean as bytes: chat prompts, text, and where a delimiter ends, in whatever way tokens cut it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from motes.errors import ConfigurationError
from motes.types import Problem

HIT = -1


class Vocabulary:
    """A checkpoint's tokenizer, with what the engines ask of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._prompts: WeakKeyDictionary[Problem, list[int]] = WeakKeyDictionary()
        self.automaton = lru_cache(maxsize=32)(self._automaton)

    @classmethod
    def load(cls, path: str) -> Vocabulary:
        """Raises whatever the libraries that read these files raise."""
        vocabulary = cls(AutoTokenizer.from_pretrained(path))
        if not vocabulary.encode("1"):  # an empty one is what transformers makes of a folder without the file
            raise ValueError("its tokenizer knows no tokens: is tokenizer.json missing?")
        return vocabulary

    def prompt(self, problem: Problem) -> list[int]:
        """Token ids of the conversation up to where the answer begins. Without a chat template: the bare question.

        Raises:
            ConfigurationError: the model has no form for such a conversation.
        """
        if problem not in self._prompts:
            if self.tokenizer.chat_template:
                ids = self.encode(self._conversation(problem))
            elif len(problem.messages) == 1:
                ids = self.tokenizer.encode(problem.question)
            else:
                raise ConfigurationError(
                    "the model has no chat template, so it knows neither system prompts nor conversations: ask the "
                    "question alone, or use a checkpoint that was trained to chat"
                )
            self._prompts[problem] = ids
        return self._prompts[problem]

    def _conversation(self, problem: Problem) -> str:
        messages = [dict(message) for message in problem.messages]
        try:
            text = str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the model's chat template refuses the conversation ({error}): "
                + ("put the system prompt into the question" if problem.system else "use another checkpoint")
            ) from error
        if problem.system and problem.system.strip() not in text:
            raise ConfigurationError("the model's chat template leaves the system prompt out: put it into the question")
        return text

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a piece of text, none added. Special tokens that it spells are recognised, or only text."""
        # Whether it is too long is for the engines to say: the tokenizer's own warning is silenced.
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False
        )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out; an incomplete character at the end is left out, too."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).rstrip("\ufffd")

    def token_bytes(self) -> list[bytes]:
        """Each token's bytes, by id; special tokens have none, as they have no text."""
        spec: dict[str, Any] = json.loads(self.tokenizer.backend_tokenizer.to_str())
        byte_level = "ByteLevel" in json.dumps(spec.get("decoder")) or "ByteLevel" in json.dumps(
            spec.get("pre_tokenizer")
        )
        of_character = _bytes_of_characters()
        pieces = [b""] * len(self.tokenizer)
        added = {token["id"]: token for token in spec.get("added_tokens", [])}
        for token, i in self.tokenizer.get_vocab().items():
            if i in added:
                pieces[i] = b"" if added[i]["special"] else token.encode()
            elif byte_level:
                pieces[i] = bytes(of_character[c] for c in token if c in of_character)
            elif len(token) == 6 and token.startswith("<0x"):
                pieces[i] = bytes([int(token[3:5], 16)])
            else:
                pieces[i] = token.replace("▁", " ").encode()
        return pieces

    def _automaton(self, delimiters: tuple[str, ...]) -> npt.NDArray[np.int32]:
        """(states, vocabulary) → the next state, or `HIT` where the token completes a delimiter.

        State 0 is where a step begins. Built on bytes, so it does not matter how tokens cut a delimiter, or what a
        token holds before or after it. (Aho and Corasick, 1975.)
        """
        targets = [delimiter.encode() for delimiter in delimiters]
        prefixes = sorted({b"", *(target[:i] for target in targets for i in range(len(target)))}, key=len)
        number = {prefix: i for i, prefix in enumerate(prefixes)}

        @cache
        def after(state: int, byte: int) -> int:
            seen = prefixes[state] + bytes([byte])
            if any(seen.endswith(target) for target in targets):
                return HIT
            return next(number[seen[i:]] for i in range(len(seen) + 1) if seen[i:] in number)

        pieces = self.token_bytes()
        table = np.zeros((len(prefixes), len(pieces)), dtype=np.int32)
        for state in range(len(prefixes)):
            for token, piece in enumerate(pieces):
                at = state
                for byte in piece:
                    if (at := after(at, byte)) == HIT:
                        break
                table[state, token] = at
        return table


def _bytes_of_characters() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE vocabularies use for bytes (GPT-2's table, inverted)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
