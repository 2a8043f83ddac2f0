"""Prompts of conversations and tokens of texts, made by the server or by a tokenizer on this side."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from motes.core import Problem, Trajectory
from motes.errors import BadResponseError, ServerError, UnknownFormError
from motes.models.served.profiles import PROFILES
from motes.models.served.wires import Prompt
from motes.steps import opening
from motes.threads import in_thread_if_long
from motes.transport import Address, Client, excerpt

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary

Rendering = Literal["server", "tokenizer", "messages"]
"""What makes a prompt of a conversation: the server, or a tokenizer on this side. "messages": nothing does, requests
contain the messages."""

MAX_TEXTS = 10_000
"""Tokens, or pairs of tokens, whose texts a renderer remembers."""


class Renderer:
    """Makes prompts of conversations. This base class leaves them as messages, for chats."""

    def __init__(self, client: Client, address: Address, model: str) -> None:
        self.client = client
        self.address = address
        self.model = model
        self._prompts: WeakKeyDictionary[Problem, Prompt] = WeakKeyDictionary()
        self._texts: dict[tuple[int, ...], str] = {}

    async def prompt(self, problem: Problem) -> Prompt:
        """The conversation up to where the answer begins. The server renders each problem once."""
        if problem not in self._prompts:
            prompt = await self._prompt(problem)
            text = prompt.text or ""
            if prompt.ids is not None:
                with suppress(ServerError):  # few templates open anything, and all prompts of a model end alike
                    text = await self._text_of(prompt.ids[-4:])
            self._prompts[problem] = replace(prompt, before=opening(text))
        return self._prompts[problem]

    async def extended(self, trajectory: Trajectory) -> Prompt:
        """The conversation with the answer so far."""
        prompt = await self.prompt(trajectory.problem)
        before = prompt.before if trajectory.step is None else trajectory.step.ahead
        if prompt.ids is None:
            answer = (trajectory.text + before).removeprefix(prompt.before)
            text = None if prompt.text is None else prompt.text + answer
            return Prompt(text=text, messages=prompt.messages, prefix=answer, before=before)
        ids = list(prompt.ids)
        for node in trajectory.path:
            assert node.step is not None
            opened = "" if node.depth > 1 else prompt.before
            ids.extend(node.step.token_ids or await self.encode(node.added.removeprefix(opened)))
        return Prompt(ids=tuple(ids), before=before)

    async def rest_of_token(self, text: str, ids: tuple[int, ...]) -> str:
        """The last token's text behind the end of `text`, which ends with a delimiter.

        The last two tokens nearly always decide it, and few pairs of tokens end steps, so that few requests are needed.
        """
        for length in (2, len(ids)):
            tail = ids[-length:]
            last = await self._text_of(tail[-1:])
            before = (await self._text_of(tail)).removesuffix(last) if len(tail) > 1 else ""
            ends = {k: before + last[:k] for k in range(1, len(last) + 1)}
            places = [k for k, end in ends.items() if len(tail) == len(ids) and text == end]
            places = places or [k for k, end in ends.items() if text.endswith(end)]
            if len(places) == 1:
                return last[places[0] :]
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
        """Token ids of a piece of text, without additional tokens. Where the server allows it, special tokens in the
        text are plain text."""
        raise NotImplementedError

    async def decode(self, ids: tuple[int, ...]) -> str:
        """The text of tokens, without special ones."""
        raise NotImplementedError

    async def count(self, text: str) -> int | None:
        """Number of tokens of a prompt, as the server reads the text; None if it is unknown."""
        return None

    async def _post(self, route: str, key: str, body: dict[str, Any]) -> Any:
        """The field `key` of the response."""

        def read(response: Any) -> Any:
            if not isinstance(response, dict) or key not in response:
                raise UnknownFormError(
                    f"the response of {self.address.root}/{route} has no {key!r}: {excerpt(response)}"
                )
            return response[key]

        return await self.client.post(f"{self.address.root}/{route}", body, read=read)

    async def _tokenize(self, body: dict[str, Any]) -> tuple[int, ...]:
        ids = await self._post("tokenize", "tokens", body)
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise BadResponseError(f"token ids were expected, not {excerpt(ids)}")
        return tuple(ids)


class VLLMRenderer(Renderer):
    """vLLM's /tokenize takes messages. SGLang's takes text only; if a later version takes messages, this works."""

    text_key = "prompt"

    async def _prompt(self, problem: Problem) -> Prompt:
        options = {"add_generation_prompt": True, "add_special_tokens": False}
        return Prompt(ids=await self._tokenize({"model": self.model, "messages": problem.messages, **options}))

    async def encode(self, text: str) -> tuple[int, ...]:
        return await self._tokenize({"model": self.model, "prompt": text, "add_special_tokens": False})

    async def decode(self, ids: tuple[int, ...]) -> str:
        return str(await self._post("detokenize", self.text_key, {"model": self.model, "tokens": list(ids)}))


class SGLangRenderer(VLLMRenderer):
    text_key = "text"


class LlamaCppRenderer(Renderer):
    async def _prompt(self, problem: Problem) -> Prompt:
        text = str(await self._post("apply-template", "prompt", {"messages": problem.messages}))
        body = {"content": text, "add_special": True, "parse_special": True}
        ids = await self._tokenize(body)
        if ids[:1] == ids[1:2]:  # the template writes the token that begins a text, and the server adds it, too
            alone = await self._tokenize({**body, "add_special": False})
            ids = alone if alone[:1] == ids[:1] else ids
        return Prompt(ids=ids)

    async def encode(self, text: str) -> tuple[int, ...]:
        return await self._tokenize({"content": text, "add_special": False, "parse_special": False})

    async def decode(self, ids: tuple[int, ...]) -> str:
        return str(await self._post("detokenize", "content", {"tokens": list(ids)}))


class TGIRenderer(Renderer):
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
        """The tokens that the server makes of a prompt, with those that it adds."""
        url = f"{self.address.root}/tokenize"
        tokens = await self.client.post(url, {"inputs": text}, attempts=2)
        if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
            raise BadResponseError(f"{url} returned no list of tokens: {excerpt(tokens)}")
        return tokens


class TokenizerRenderer(Renderer):
    """By a tokenizer on this side.

    Args:
        ids: whether the server takes token ids; otherwise prompts are text.
    """

    def __init__(self, client: Client, address: Address, model: str, vocabulary: Vocabulary, *, ids: bool) -> None:
        super().__init__(client, address, model)
        self.vocabulary = vocabulary
        self.ids = ids
        self._num_added = 0  # tokens that the server puts before a text

    async def _prompt(self, problem: Problem) -> Prompt:
        await self.vocabulary.prepare(problem)
        ids = tuple(self.vocabulary.prompt(problem))
        return Prompt(ids=ids) if self.ids else Prompt(text=self._text(ids))

    def _text(self, ids: tuple[int, ...]) -> str:
        """The text that a server reads as these tokens. The tokenizer, and so the server, may put the token that begins
        a text before it: then the text leaves that token out."""
        tokenizer = self.vocabulary.tokenizer
        text, begins = str(tokenizer.decode(list(ids))), getattr(tokenizer, "bos_token", None)
        if begins and text.startswith(begins):
            rest = text.removeprefix(begins)
            if list(tokenizer.encode(rest, verbose=False)) == list(ids):
                self._num_added = 1
                return rest
        return text

    async def count(self, text: str) -> int | None:
        return len(await in_thread_if_long(len(text), self.vocabulary.encode, text)) + self._num_added

    async def encode(self, text: str) -> tuple[int, ...]:
        encode = partial(self.vocabulary.encode, special=False)
        return tuple(await in_thread_if_long(len(text), encode, text))

    async def decode(self, ids: tuple[int, ...]) -> str:
        return self.vocabulary.decode(ids)


RENDERERS: dict[str, type[Renderer]] = {
    "vllm": VLLMRenderer,
    "sglang": SGLangRenderer,
    "llama.cpp": LlamaCppRenderer,
    "tgi": TGIRenderer,
}
"""By engine."""


def renderer(
    kind: Rendering, client: Client, address: Address, engine: str, model: str, vocabulary: Vocabulary | None
) -> Renderer:
    """The renderer of a kind."""
    if kind == "tokenizer" and vocabulary is not None:
        return TokenizerRenderer(client, address, model, vocabulary, ids=PROFILES[engine].takes_ids)
    return (RENDERERS.get(engine, Renderer) if kind == "server" else Renderer)(client, address, model)
