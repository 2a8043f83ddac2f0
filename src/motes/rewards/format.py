"""How a process reward model reads a partial answer: its family's declaration, in the tokens of a vocabulary.

A text is encoded in pieces, the prompt and then each step, and joined as tokens. So the tokens of a step never depend
on the text after it, and a step is read once. The published code of some families encodes the whole text instead; the
tokens are the same, because the pieces meet where no token reaches across: at special tokens, before a space, at a
newline. This module needs no torch, and does not depend on where the model runs: served models read the same tokens.
"""

from __future__ import annotations

import re
from itertools import takewhile
from string import Formatter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from motes.core import Problem
from motes.errors import ConfigurationError
from motes.rewards.families import Family, NextToken

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary

CONTENT = ("question", "role", "content", "step")
CHAT = ("opening", "reply", "next")


class Format:
    """A family's format in the tokens of a vocabulary.

    Text that comes from outside is only text: a tag or a turn marker that it spells does not act as one. It keeps its
    letters, encoded as other tokens.

    Attributes:
        words: the tokens whose logits give the score, bad and good, if the head is a language model's.

    Raises:
        ConfigurationError: the tokenizer lacks one of the format's tokens, or its chat template does not fit.
    """

    def __init__(self, family: Family, vocabulary: Vocabulary) -> None:
        self.family = family
        self._vocabulary = vocabulary
        self._slots: dict[str, tuple[list[int], str]] = {}  # tokens and the text after them, by a slot's name
        self._spellings: dict[int, list[int]] = {}  # the tokens that spell a token of the format as text
        for template in (family.turn or "", family.prompt, family.first, family.step):
            for _, slot, _, _ in Formatter().parse(template):
                if slot and slot not in CONTENT and slot not in self._slots:
                    self._slots[slot] = self._resolve(slot)
        head = family.head
        self.words = (self._token_id(head.bad), self._token_id(head.good)) if isinstance(head, NextToken) else None
        self._prompts: WeakKeyDictionary[Problem, list[int]] = WeakKeyDictionary()

    def prompt(self, problem: Problem) -> list[int]:
        """The tokens up to the beginning of the first step.

        Raises:
            ConfigurationError: the problem is a conversation, and the family reads a single question. (A system prompt
                is no error. Such a family leaves it out: its models were trained without one.)
        """
        problem = problem.plain  # without the language model's prompt: a reward model was trained with its own
        if problem not in self._prompts:
            self._prompts[problem] = self._encode_problem(problem)
        return self._prompts[problem]

    def step(self, text: str, number: int) -> list[int]:
        """The tokens of an answer's step number 1, 2, …; its score is read at the last one."""
        family, text = self.family, text.strip()
        label = family.label.format(number=number)
        if not text.startswith(label):
            text = f"{label} {text}".strip()
        lines = [line for line in text.split("\n") if line.strip()] if family.by_line else []
        template = family.first if number == 1 else family.step
        return [token for line in lines or [text] for token in self._encode(template, step=line)]

    def _encode_problem(self, problem: Problem) -> list[int]:
        family = self.family
        if family.turn is not None:
            turns = [(message["role"], message["content"]) for message in problem.messages]
            if problem.system is None:
                turns.insert(0, ("system", family.system))
            encoded = [self._encode(family.turn, role=role, content=content) for role, content in turns]
            return [token for ids in encoded for token in ids] + self._encode(family.prompt)
        if len(problem.messages) - (problem.system is not None) > 1:
            raise ConfigurationError(
                f"a reward model of the family {family.name} reads one question, not a conversation: ask the "
                "question alone, or use one that reads conversations (qwen)"
            )
        return self._encode(family.prompt, question=problem.question.strip())

    def _encode(self, template: str, **content: str) -> list[int]:
        """The tokens of a template. Adjacent texts in it are encoded as one."""
        ids: list[int] = []
        text = ""
        for literal, slot, _, _ in Formatter().parse(template):
            text += literal
            if slot in content:
                text += content[slot]
            elif slot is not None:
                tokens, text_after = self._slots[slot]
                ids += self._encode_text(text) + tokens
                text = text_after
        return ids + self._encode_text(text)

    def _encode_text(self, text: str) -> list[int]:
        ids = self._vocabulary.encode(text, special=False)
        if self._spellings.keys().isdisjoint(ids):
            return ids
        return [token for i in ids for token in self._spellings.get(i, [i])]

    def _resolve(self, slot: str) -> tuple[list[int], str]:
        """The tokens for which a slot stands, and the text after them."""
        if slot == "start":
            return _text_start(self._vocabulary)
        if slot == "bos":
            if (bos := self._vocabulary.tokenizer.bos_token) is None:
                raise ConfigurationError(
                    f"the tokenizer names no bos_token: not a reward model of the family {self.family.name}"
                )
            return [self._token_id(bos)], ""
        if slot in CHAT:
            return self._vocabulary.encode(_chat_parts(self._vocabulary)[CHAT.index(slot)]), ""
        token = self._token_id(slot)
        self._spellings[token] = [i for character in slot for i in self._vocabulary.encode(character, special=False)]
        return [token], ""

    def _token_id(self, text: str) -> int:
        ids = self._vocabulary.encode(text)
        if len(ids) != 1:
            raise ConfigurationError(
                f"the tokenizer does not know the token {text!r}: not a reward model of the family {self.family.name}"
            )
        return ids[0]


def _text_start(vocabulary: Vocabulary) -> tuple[list[int], str]:
    """The special tokens and the text, perhaps a space, that a tokenizer puts before every text."""
    ids = vocabulary.tokenizer.encode("x", verbose=False)
    special_tokens = list(takewhile(lambda i: not vocabulary.decode([i]), ids))
    return special_tokens, vocabulary.decode(ids).removesuffix("x")


def _chat_parts(vocabulary: Vocabulary) -> tuple[str, str, str]:
    """The parts of a chat template before the user's first text, between that and the assistant's text, and between
    that and the user's next text."""
    from jinja2 import TemplateError  # not needed by formats that have their own turns

    texts = "First-7261", "Second-8372", "Third-9483"
    messages = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), texts, strict=True)
    ]
    try:
        chat = str(vocabulary.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the tokenizer has no chat template for turns of a user and an assistant: {error}"
        ) from error
    between = re.split("|".join(texts), chat)
    if len(between) != 4 or between[3] != between[1]:
        raise ConfigurationError(
            "the tokenizer's chat template writes something else before a new answer than before an existing one: not "
            f"a reward model that reads chats. Between the turns it writes {between}"
        )
    return between[0], between[1], between[2]
