"""How a process reward model wants to read: the prompt, each step, and the tag where a step's score is read."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from motes.errors import ConfigurationError
from motes.kv.vocabulary import Vocabulary
from motes.types import Problem


class QwenFormat:
    """The form of Qwen2.5-Math-PRM: ChatML, the answer's steps each followed by `<extra_0>`.

    Text that comes from outside is only text: a tag or a turn marker that it spells does not act as one.

    Raises:
        ConfigurationError: the tokenizer lacks one of the form's tokens.
    """

    system = "Please reason step by step, and put your final answer within \\boxed{}."
    tag = "<extra_0>"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tag = self._token(self.tag)
        self._open, self._close = self._token("<|im_start|>"), self._token("<|im_end|>")
        self._newline = vocabulary.encode("\n")
        self._prompts: WeakKeyDictionary[Problem, list[int]] = WeakKeyDictionary()

    def prompt(self, problem: Problem) -> list[int]:
        """Tokens up to the opening of the assistant's turn. The system prompt is the one that the model was trained
        with, unless the problem has its own."""
        if problem not in self._prompts:
            turns = [(message["role"], message["content"]) for message in problem.messages]
            if problem.system is None:
                turns.insert(0, ("system", self.system))
            ids: list[int] = []
            for role, content in turns:
                ids += [self._open, *self._text(f"{role}\n{content}"), self._close, *self._newline]
            self._prompts[problem] = [*ids, self._open]
        return self._prompts[problem]

    def step(self, text: str, *, first: bool) -> list[int]:
        """Tokens of a step, the tag, where its score is read, last. The first one follows the assistant's name."""
        return [*self._text(("assistant\n" if first else "") + text.strip()), self._tag]

    def _text(self, text: str) -> list[int]:
        return self._vocabulary.encode(text, special=False)

    def _token(self, text: str) -> int:
        ids = self._vocabulary.encode(text)
        if len(ids) != 1:
            raise ConfigurationError(f"the tokenizer does not know the token {text}: not a reward model of this family")
        return ids[0]
