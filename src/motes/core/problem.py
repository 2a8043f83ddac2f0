"""A problem: the question or conversation that a language model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from motes.arguments import fit
from motes.errors import ConfigurationError
from motes.text import well_formed

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, init=False)
class Problem:
    """A question, or a conversation, that a language model answers.

    Args:
        question: the last user turn.
        id: a name that is unique within its task.
        answer: the reference answer; None if there is none. Models never see it.
        system: a system prompt.
        messages: a whole conversation instead of `question` and `system`: dicts with `role` and `content`, the last
            one from the user.

    Texts are made well-formed (`motes.text.well_formed`): half of a surrogate pair becomes U+FFFD.

    Raises:
        ConfigurationError: the question is empty, `messages` is given beside it or does not end with the user, or an
            argument has the wrong type.
    """

    question: str
    id: str | None
    answer: str | None
    messages: tuple[Mapping[str, str], ...]
    _plain: Problem | None = field(compare=False, repr=False)

    def __init__(
        self,
        question: str | None = None,
        *,
        id: str | None = None,
        answer: str | None = None,
        system: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        if messages is not None:
            if question is not None or system is not None:
                raise ConfigurationError("give either `messages`, or `question` and `system`, not both")
            turns = _turns(messages)
        else:
            instruction = fit("system", system, str | None)
            before = ({"role": "system", "content": instruction},) if instruction else ()
            turns = (*before, {"role": "user", "content": fit("question", question, str | None) or ""})
        if not turns[-1]["content"].strip():
            raise ConfigurationError("the question is empty: ask something")
        object.__setattr__(self, "question", turns[-1]["content"])
        object.__setattr__(self, "id", fit("id", id, str | None))
        object.__setattr__(self, "answer", fit("answer", answer, str | None))
        object.__setattr__(self, "messages", turns)
        object.__setattr__(self, "_plain", None)

    def asked_as(self, messages: Sequence[Mapping[str, str]]) -> Problem:
        """The same problem with these messages, which a prompt has made from it. `plain` does not change."""
        prompted = Problem(messages=messages, id=self.id, answer=self.answer)
        object.__setattr__(prompted, "_plain", self.plain)
        return prompted

    def __hash__(self) -> int:
        return hash((self.question, self.id))

    @property
    def plain(self) -> Problem:
        """The problem without the prompt around it (`motes.prompts`). Reward models read this one, because they have
        prompt formats of their own."""
        return self._plain or self

    @property
    def system(self) -> str | None:
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None


def _turns(messages: Sequence[Mapping[str, str]]) -> tuple[Mapping[str, str], ...]:
    """The messages, well-formed. Raises a `ConfigurationError` if they are invalid or do not end with the user."""
    turns = fit("messages", messages, tuple[Mapping[str, str], ...])
    if not turns or turns[-1].get("role") != "user":
        raise ConfigurationError("`messages` must end with a message whose role is 'user'")
    for i, turn in enumerate(turns):
        fit(f"messages[{i}]['role']", turn.get("role"), Role)
        if not isinstance(turn.get("content"), str):
            raise ConfigurationError(
                f"every message needs a `content` that is text: that of messages[{i}] is {turn.get('content')!r}"
            )
    return tuple({name: well_formed(v) if isinstance(v, str) else v for name, v in turn.items()} for turn in turns)
