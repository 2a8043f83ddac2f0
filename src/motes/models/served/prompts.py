"""Prompts, and the renderers that turn conversations into prompts: on the server, or by a tokenizer on this side."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from motes.core import Problem, Trajectory
from motes.errors import BadResponseError, ServerError, UnknownFormError
from motes.steps import IN_HARMONY, opening
from motes.text import put_placeholders, split_at_placeholders
from motes.thoughts import THINKING, restored, split_at_marks
from motes.threads import in_thread_if_long
from motes.transport import Address, Client, excerpt

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary

MAX_TEXTS = 10_000
"""Maximum number of token sequences, mostly single tokens and pairs, whose texts a renderer remembers."""


def estimate(texts: Iterable[str]) -> int:
    """About how many tokens these texts are, four characters to a token."""
    return -(-sum(map(len, texts)) // 4)


@dataclass(frozen=True)
class Prompt:
    """A conversation and the answer so far: as token ids, as text, or as messages and a prefix of the answer.

    `before` is text at the end of the prompt that belongs to the next step: the overrun of the previous step, which is
    its last token's text after its end, or the tag with which a chat template opens the answer.
    """

    ids: tuple[int, ...] | None = None
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    prefix: str = ""
    before: str = ""
    length: int | None = None  # number of tokens of `text`, if it is known
    in_harmony: bool = False  # whether the answer is written in harmony, whose special tokens its text needs

    @property
    def content(self) -> list[int] | str:
        """The token ids or the text, as a request contains them."""
        return list(self.ids) if self.ids is not None else self.text or ""

    @property
    def known_tokens(self) -> int | None:
        return self.length if self.ids is None else len(self.ids)

    @property
    def num_tokens(self) -> int:
        """The number of tokens, or an estimate where it is unknown."""
        texts = (self.text or "", self.prefix, *(message["content"] for message in self.messages))
        return estimate(texts) if self.known_tokens is None else self.known_tokens


class Renderer:
    """Makes prompts of conversations. This base class leaves them as messages, for chats."""

    def __init__(self) -> None:
        self._prompts: WeakKeyDictionary[Problem, Prompt] = WeakKeyDictionary()
        self._texts: dict[tuple[int, ...], str] = {}

    async def prompt(self, problem: Problem) -> Prompt:
        """The conversation up to where the answer begins. The server renders each problem once."""
        if problem not in self._prompts:
            prompt = await self._prompt(problem)
            text = prompt.text or ""
            if prompt.ids is not None:
                # An error seldom matters: few templates open an answer. All prompts of a model have these tokens.
                with suppress(ServerError):
                    text = await self._text_of(prompt.ids[-4:])
            in_harmony = IN_HARMONY.search(text) is not None
            self._prompts[problem] = replace(prompt, before=opening(text), in_harmony=in_harmony)
        return self._prompts[problem]

    def known_ids(self, problem: Problem) -> tuple[int, ...]:
        """The token ids of a problem that has been rendered; empty if there are none."""
        prompt = self._prompts.get(problem)
        return () if prompt is None or prompt.ids is None else prompt.ids

    async def extended(self, trajectory: Trajectory) -> Prompt:
        """The conversation with the answer so far."""
        prompt = await self.prompt(trajectory.problem)
        before = prompt.before if trajectory.step is None else trajectory.step.overrun
        if prompt.ids is None:
            answer = (trajectory.text + before).removeprefix(prompt.before)
            if prompt.in_harmony:
                answer = restored(answer)
            text = None if prompt.text is None else prompt.text + answer
            return replace(prompt, text=text, prefix=answer, before=before)
        ids = list(prompt.ids)
        for node in trajectory.path:
            assert node.step is not None
            in_prompt = "" if node.depth > 1 else prompt.before
            ids.extend(node.step.token_ids or await self.encode(node.added.removeprefix(in_prompt)))
            if node.step.token_ids and node.step.appended:
                ids.extend(await self.encode(node.step.appended))
        return Prompt(ids=tuple(ids), before=before, in_harmony=prompt.in_harmony)

    async def rest_of_token(self, text: str, ids: tuple[int, ...]) -> str:
        """The last token's text after the end of `text`, which ends with a delimiter; "" if that is ambiguous.

        The last two tokens nearly always decide it, and few pairs of tokens end steps, so that few requests are needed.
        """
        for length in (2, len(ids)):
            tail = ids[-length:]
            last = await self._text_of(tail[-1:])
            before = (await self._text_of(tail)).removesuffix(last) if len(tail) > 1 else ""
            # The text includes the first k characters of the last token; find k.
            ends = {k: before + last[:k] for k in range(1, len(last) + 1)}
            matches = [k for k, end in ends.items() if text.endswith(end)]
            if tail == ids:  # these are all tokens of the text: prefer an exact match
                matches = [k for k in matches if text == ends[k]] or matches
            if len(matches) == 1:
                return last[matches[0] :]
        return ""

    async def _text_of(self, ids: tuple[int, ...]) -> str:
        if ids not in self._texts:
            if len(self._texts) > MAX_TEXTS:
                self._texts.clear()
            self._texts[ids] = await self.decode(ids)
        return self._texts[ids]

    async def _prompt(self, problem: Problem) -> Prompt:
        return Prompt(messages=problem.messages)

    async def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of an answer, without additional tokens. The marks around thoughts are their tokens;
        other special tokens in the text are plain text where the server allows it."""
        raise NotImplementedError

    async def decode(self, ids: tuple[int, ...]) -> str:
        """The text of tokens; not every server leaves out special ones."""
        raise NotImplementedError

    async def count(self, text: str) -> int | None:
        """Number of tokens of a prompt, as the server reads the text; None if it is unknown."""
        return None


class ServerRenderer(Renderer):
    """Lets the server render prompts."""

    def __init__(self, client: Client, address: Address, model: str) -> None:
        super().__init__()
        self.client = client
        self.root = address.root
        self.model = model

    async def _post(self, route: str, key: str, body: dict[str, Any]) -> Any:
        """The field `key` of the response."""
        url = f"{self.root}/{route}"

        def read(response: Any) -> Any:
            if not isinstance(response, dict) or key not in response:
                raise UnknownFormError(f"the response of {url} has no {key!r}: {excerpt(response)}")
            return response[key]

        return await self.client.post(url, body, read=read)

    async def _tokenize(self, body: dict[str, Any]) -> tuple[int, ...]:
        ids = await self._post("tokenize", "tokens", body)
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
            raise BadResponseError(f"token ids were expected, not {excerpt(ids)}")
        return tuple(ids)


SPELLING = re.compile(r"<[^<>\[\]\s]{1,60}>|\[[^<>\[\]\s]{1,60}\]")
"""A text in the form of a special token."""


class VLLMRenderer(ServerRenderer):
    """vLLM's /tokenize takes messages. SGLang's takes text only; this class works if a later version takes messages."""

    text_key = "prompt"

    async def _prompt(self, problem: Problem) -> Prompt:
        """Only the template may use special tokens: users' messages are text, as for `Vocabulary.prompt`.

        /tokenize reads a token's spelling in a message as that token, and cannot be told otherwise. So each spelling is
        sent as spelling, nonce, spelling, which no template writes; and then the ids of these three are replaced by
        those of the spelling's characters. If a tokenizer makes other ids of the three, spellings are tokens after all.
        """
        special = await self._special_tokens([message["content"] for message in problem.messages])
        if not special:
            return Prompt(ids=await self._render(problem.messages))
        nonce = secrets.token_hex(8)
        marked = {token: f"{token}.{nonce}.{token}" for token in special}
        pattern = re.compile("|".join(map(re.escape, special)))
        contents = [pattern.sub(lambda match: marked[match[0]], message["content"]) for message in problem.messages]
        ids = await self._render([{**m, "content": c} for m, c in zip(problem.messages, contents, strict=True)])
        for token in special:
            as_text = await self.encode(token[:1]) + await self.encode(token[1:])
            ids = _replaced(ids, await self.encode(marked[token]), as_text)
        is_left = nonce in await self.decode(ids)
        return Prompt(ids=await self._render(problem.messages) if is_left else ids)

    async def _render(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        options = {"add_generation_prompt": True, "add_special_tokens": False}
        return await self._tokenize({"model": self.model, "messages": messages, **options})

    async def _special_tokens(self, texts: Sequence[str]) -> list[str]:
        """The special tokens that texts spell; none if the server does not return the texts of tokens."""
        spellings = {match for text in texts for match in SPELLING.findall(text)}.difference(THINKING)
        if not spellings:
            return []
        body = {"model": self.model, "prompt": "\n".join(sorted(spellings)), "add_special_tokens": False}
        tokens = await self.client.post(f"{self.root}/tokenize", {**body, "return_token_strs": True}, read=_token_strs)
        return sorted(spellings.intersection(tokens))

    async def encode(self, text: str) -> tuple[int, ...]:
        return await self._tokenize({"model": self.model, "prompt": text, "add_special_tokens": False})

    async def decode(self, ids: tuple[int, ...]) -> str:
        return str(await self._post("detokenize", self.text_key, {"model": self.model, "tokens": list(ids)}))


class SGLangRenderer(VLLMRenderer):
    text_key = "text"

    async def decode(self, ids: tuple[int, ...]) -> str:
        body = {"model": self.model, "tokens": list(ids), "skip_special_tokens": False}
        return str(await self._post("detokenize", self.text_key, body))


def _token_strs(response: Any) -> set[str]:
    """The texts of the tokens in a response of vLLM's /tokenize."""
    tokens = response.get("token_strs") if isinstance(response, dict) else None
    return {token for token in tokens if isinstance(token, str)} if isinstance(tokens, list) else set()


def _replaced(ids: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """Token ids in which one sequence is replaced by another."""
    replaced: list[int] = []
    place = 0
    while place < len(ids):
        is_old = bool(old) and ids[place : place + len(old)] == old
        replaced += new if is_old else ids[place : place + 1]
        place += len(old) if is_old else 1
    return tuple(replaced)


MAY_BE_SPECIAL = re.compile(r"[<\[|｜]")
"""A character that every special token of the known models has."""


class LlamaCppRenderer(ServerRenderer):
    async def _prompt(self, problem: Problem) -> Prompt:
        """Only the template may use special tokens: users' messages are text, as for `Vocabulary.prompt`."""
        contents = [message["content"] for message in problem.messages]
        special = await self._special_tokens("\n".join(contents))
        placeholders: dict[str, str] = {}
        if special:
            contents, placeholders = put_placeholders(re.compile("|".join(map(re.escape, special))), contents)
        messages = [{**m, "content": content} for m, content in zip(problem.messages, contents, strict=True)]
        text = str(await self._post("apply-template", "prompt", {"messages": messages}))
        first, *rest = split_at_placeholders(text, placeholders)
        body = {"content": first, "add_special": True, "parse_special": True}
        ids = await self._tokenize(body)
        if ids[:1] == ids[1:2]:  # the template writes the token that begins a text, and the server adds it, too
            alone = await self._tokenize({**body, "add_special": False})
            ids = alone if alone[:1] == ids[:1] else ids
        for part in rest:
            if part in placeholders:  # cut in two: some tokenizers find special tokens in any text
                ids += await self.encode(placeholders[part][:1]) + await self.encode(placeholders[part][1:])
            elif part:
                ids += await self._tokenize({**body, "content": part, "add_special": False})
        return Prompt(ids=ids)

    async def _special_tokens(self, text: str) -> list[str]:
        """The special tokens that a text spells, the longest first."""
        if not MAY_BE_SPECIAL.search(text):
            return []
        found: list[str] = []
        for token in sorted(set(await self._parsed(text)) - set(await self.encode(text))):
            spelling = await self._text_of((token,))
            is_one = spelling in text and await self._parsed(spelling) == (token,)
            if is_one and spelling not in THINKING and await self.encode(spelling) != (token,):
                found.append(spelling)
        return sorted(found, key=len, reverse=True)

    async def _parsed(self, text: str) -> tuple[int, ...]:
        return await self._tokenize({"content": text, "add_special": False, "parse_special": True})

    async def encode(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece, is_mark in split_at_marks(text):
            ids += await self._tokenize({"content": piece, "add_special": False, "parse_special": is_mark})
        return tuple(ids)

    async def decode(self, ids: tuple[int, ...]) -> str:
        return str(await self._post("detokenize", "content", {"tokens": list(ids)}))


class TGIRenderer(ServerRenderer):
    async def _prompt(self, problem: Problem) -> Prompt:
        text = str(await self._post("chat_tokenize", "templated_text", {"messages": problem.messages}))
        with suppress(ServerError):  # older versions have no /tokenize
            tokens = await self._tokens(text)
            if len(tokens) > 1 and tokens[0].get("id") == tokens[1].get("id"):  # the server puts it before every text
                text = text.removeprefix(str(tokens[1].get("text")))
        return Prompt(text=text)

    async def count(self, text: str) -> int | None:
        with suppress(ServerError):
            return len(await self._tokens(text))
        return None

    async def _tokens(self, text: str) -> list[dict[str, Any]]:
        """The tokens of a prompt on the server, including those that it adds."""
        url = f"{self.root}/tokenize"
        tokens = await self.client.post(url, {"inputs": text}, attempts=2)
        if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
            raise BadResponseError(f"{url} returned no list of tokens: {excerpt(tokens)}")
        return tokens


class TokenizerRenderer(Renderer):
    """Renders prompts by a tokenizer on this side: as token ids where the server takes these, otherwise as text."""

    def __init__(self, vocabulary: Vocabulary, *, takes_ids: bool) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.takes_ids = takes_ids
        self._num_added = 0  # tokens that the server puts before a text

    async def _prompt(self, problem: Problem) -> Prompt:
        await self.vocabulary.prepare(problem)
        ids = tuple(self.vocabulary.prompt(problem))
        return Prompt(ids=ids) if self.takes_ids else Prompt(text=self._text(ids))

    def _text(self, ids: tuple[int, ...]) -> str:
        """The text that a server reads as these tokens: without the token that begins a text, if the tokenizer, and so
        the server, adds that by itself."""
        tokenizer = self.vocabulary.tokenizer
        text = str(tokenizer.decode(list(ids)))
        bos = getattr(tokenizer, "bos_token", None)
        if bos and text.startswith(bos):
            rest = text.removeprefix(bos)
            if list(tokenizer.encode(rest, verbose=False)) == list(ids):
                self._num_added = 1
                return rest
        return text

    async def count(self, text: str) -> int | None:
        return len(await in_thread_if_long(len(text), self.vocabulary.encode, text)) + self._num_added

    async def encode(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece, is_mark in split_at_marks(text):
            ids += await in_thread_if_long(len(piece), partial(self.vocabulary.encode, special=is_mark), piece)
        return tuple(ids)

    async def decode(self, ids: tuple[int, ...]) -> str:
        return self.vocabulary.decode(ids)
