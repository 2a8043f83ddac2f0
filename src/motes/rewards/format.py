"""How a process reward model reads a partial answer: its family's declaration, in the tokens of a vocabulary.

A text is encoded in pieces, the prompt and then each step, and joined as tokens. So the tokens of a step never depend
on what follows it, and a step is read once. The published code of some families encodes the whole text instead; the
tokens are the same, because the pieces meet where no token reaches across: at special tokens, before a space, at a
newline. Nothing here knows torch, or where the model runs: what reads at a server asks for the same tokens.
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
    """A family's form in the tokens of a vocabulary.

    Text that comes from outside is only text: a tag or a turn marker that it spells does not act as one. It keeps its
    letters, spelt by other tokens.

    Attributes:
        words: the tokens whose logits decide, bad and good, where the head is a language model's.

    Raises:
        ConfigurationError: the tokenizer lacks one of the form's tokens, or its chat template is none of this form.
    """

    def __init__(self, family: Family, vocabulary: Vocabulary) -> None:
        self.family = family
        self._vocabulary = vocabulary
        self._given: dict[str, tuple[list[int], str]] = {}
        self._spelt: dict[int, list[int]] = {}
        for template in (family.turn or "", family.prompt, family.first, family.step):
            for slot in {slot for _, slot, _, _ in Formatter().parse(template) if slot} - {*CONTENT, *self._given}:
                self._given[slot] = self._resolve(slot)
        head = family.head
        self.words = (self._token(head.bad), self._token(head.good)) if isinstance(head, NextToken) else None
        self._prompts: WeakKeyDictionary[Problem, list[int]] = WeakKeyDictionary()

    def prompt(self, problem: Problem) -> list[int]:
        """Tokens up to where the first step begins.

        Raises:
            ConfigurationError: the problem is a conversation, and the family knows one question alone. (A system
                prompt is left out there: these models were trained without.)
        """
        problem = problem.plain  # a language model's prompt is no business of a model that was trained with its own
        if problem not in self._prompts:
            turn = self.family.turn
            self._prompts[problem] = self._question(problem) if turn is None else self._conversation(problem, turn)
        return self._prompts[problem]

    def step(self, text: str, number: int) -> list[int]:
        """Tokens of an answer's step number 1, 2, …; its score is read at the last one."""
        family, text = self.family, text.strip()
        label = family.label.format(number=number)
        if not text.startswith(label):
            text = f"{label} {text}".strip()
        lines = [line for line in text.split("\n") if line.strip()] if family.by_line else []
        template = family.first if number == 1 else family.step
        return [token for line in lines or [text] for token in self._encode(template, step=line)]

    def _conversation(self, problem: Problem, turn: str) -> list[int]:
        turns = [(message["role"], message["content"]) for message in problem.messages]
        if problem.system is None:
            turns.insert(0, ("system", self.family.system))
        before = [self._encode(turn, role=role, content=content) for role, content in turns]
        return [token for ids in before for token in ids] + self._encode(self.family.prompt)

    def _question(self, problem: Problem) -> list[int]:
        if len(problem.messages) - (problem.system is not None) > 1:
            raise ConfigurationError(
                f"a reward model of the family {self.family.name} reads one question, not a conversation: ask the "
                "question alone, or use one that reads conversations (qwen)"
            )
        return self._encode(self.family.prompt, question=problem.question.strip())

    def _encode(self, template: str, **content: str) -> list[int]:
        """Tokens of a template. Texts that meet in it are encoded as one."""
        ids: list[int] = []
        text = ""
        for literal, slot, _, _ in Formatter().parse(template):
            text += literal
            if slot in content:
                text += content[slot]
            elif slot is not None:
                given, after = self._given[slot]
                ids += self._text(text) + given
                text = after
        return ids + self._text(text)

    def _text(self, text: str) -> list[int]:
        ids = self._vocabulary.encode(text, special=False)
        if self._spelt.keys().isdisjoint(ids):
            return ids
        return [token for i in ids for token in self._spelt.get(i, [i])]

    def _resolve(self, slot: str) -> tuple[list[int], str]:
        """What a slot stands for: tokens, and text after them."""
        if slot == "start":
            return _beginning(self._vocabulary)
        if slot == "bos":
            if (bos := self._vocabulary.tokenizer.bos_token) is None:
                raise ConfigurationError(
                    f"the tokenizer names no bos_token: not a reward model of the family {self.family.name}"
                )
            return [self._token(bos)], ""
        if slot in CHAT:
            return self._vocabulary.encode(_turns(self._vocabulary)[CHAT.index(slot)]), ""
        token = self._token(slot)
        self._spelt[token] = [i for character in slot for i in self._vocabulary.encode(character, special=False)]
        return [token], ""

    def _token(self, text: str) -> int:
        ids = self._vocabulary.encode(text)
        if len(ids) != 1:
            raise ConfigurationError(
                f"the tokenizer does not know the token {text!r}: not a reward model of the family {self.family.name}"
            )
        return ids[0]


def _beginning(vocabulary: Vocabulary) -> tuple[list[int], str]:
    """What a tokenizer puts before every text: special tokens, and a space where it does that."""
    ids = vocabulary.tokenizer.encode("x", verbose=False)
    return list(takewhile(lambda i: not vocabulary.decode([i]), ids)), vocabulary.decode(ids).removesuffix("x")


def _turns(vocabulary: Vocabulary) -> tuple[str, str, str]:
    """What a chat template writes before the user's first text, from there to the assistant's, and from there to the
    user's next."""
    from jinja2 import TemplateError  # not needed by formats that bring their own turns

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
            "the tokenizer's chat template does not ask for an answer by what it writes before one that is there: not "
            f"a reward model that is read in a chat. Between the turns it writes {between}"
        )
    return between[0], between[1], between[2]
