"""How conversations become prompts, and text tokens, on whichever side can do it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from motes.errors import BadResponseError, ServerError, UnknownFormError
from motes.http import Address, Client, excerpt
from motes.models.served.wires import Prompt
from motes.steps import opening
from motes.threads import in_thread_if_long
from motes.types import Problem, Trajectory

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary


class Renderer:
    """Turns conversations into prompts by the server's own routes.

    Here without any: prompts are the messages themselves.
    """

    name = "messages"

    def __init__(self, client: Client, address: Address, model: str) -> None:
        self.client = client
        self.address = address
        self.model = model
        self._prompts: WeakKeyDictionary[Problem, Prompt] = WeakKeyDictionary()
        self._rests: dict[tuple[int, ...], str] = {}

    async def prompt(self, problem: Problem) -> Prompt:
        """The conversation up to where the answer begins. Asked for once."""
        if problem not in self._prompts:
            prompt = await self._prompt(problem)
            text = prompt.text or ""
            if prompt.ids is not None:
                with suppress(ServerError):  # few prompts open anything, and all of a model end in the same tokens
                    text = await self._decoded(prompt.ids[-4:])
            self._prompts[problem] = replace(prompt, before=opening(text))
        return self._prompts[problem]

    async def extended(self, trajectory: Trajectory) -> Prompt:
        """The conversation with what is written of the answer."""
        prompt = await self.prompt(trajectory.problem)
        before = prompt.before if trajectory.step is None else trajectory.step.ahead
        if prompt.ids is None:
            written = (trajectory.text + before).removeprefix(prompt.before)
            text = None if prompt.text is None else prompt.text + written
            return Prompt(text=text, messages=prompt.messages, prefix=written, before=before)
        ids = list(prompt.ids)
        for node in trajectory.path:
            assert node.step is not None
            opened = "" if node.depth > 1 else prompt.before
            ids.extend(node.step.token_ids or await self.encode(node.added.removeprefix(opened)))
        return Prompt(ids=tuple(ids), before=before)

    async def rest_of_token(self, text: str, ids: tuple[int, ...]) -> str:
        """What stands behind the end of `text`, which a delimiter cut, in the last of the tokens it was drawn as.

        Two tokens say it nearly always, and few pairs end steps, so that the server is asked rarely.
        """
        for length in (2, len(ids)):
            tail = ids[-length:]
            last = await self._decoded(tail[-1:])
            before = (await self._decoded(tail)).removesuffix(last) if len(tail) > 1 else ""
            ends = {k: before + last[:k] for k in range(1, len(last) + 1)}
            places = [k for k, end in ends.items() if len(tail) == len(ids) and text == end]
            places = places or [k for k, end in ends.items() if text.endswith(end)]
            if len(places) == 1:
                return last[places[0] :]
        return ""

    async def _decoded(self, ids: tuple[int, ...]) -> str:
        if ids not in self._rests:
            if len(self._rests) > 10_000:
                self._rests.clear()
            self._rests[ids] = await self.decode(ids)
        return self._rests[ids]

    async def _prompt(self, problem: Problem) -> Prompt:
        return Prompt(messages=problem.messages)

    async def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of text, none added; special tokens that it spells are text, where that can be said."""
        raise NotImplementedError

    async def decode(self, ids: tuple[int, ...]) -> str:
        """Text of tokens, special ones left out."""
        raise NotImplementedError

    async def count(self, text: str) -> int | None:
        """The tokens of a prompt of text, as the server reads it; None: they cannot be counted."""
        return None

    async def _post(self, route: str, key: str, body: dict[str, Any]) -> Any:
        def read(answer: Any) -> Any:
            if not isinstance(answer, dict) or key not in answer:
                raise UnknownFormError(f"{self.address.root}/{route} answered without {key!r}: {excerpt(answer)}")
            return answer[key]

        return await self.client.post(f"{self.address.root}/{route}", body, read=read)


class OfVLLM(Renderer):
    """vLLM's /tokenize takes messages. (SGLang's takes text; should it learn to, this finds out.)"""

    name = "server"

    async def _prompt(self, problem: Problem) -> Prompt:
        messages = [dict(message) for message in problem.messages]
        body = {"model": self.model, "messages": messages, "add_generation_prompt": True, "add_special_tokens": False}
        return Prompt(ids=_ids(await self._post("tokenize", "tokens", body)))

    async def encode(self, text: str) -> tuple[int, ...]:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return _ids(await self._post("tokenize", "tokens", body))

    async def decode(self, ids: tuple[int, ...]) -> str:
        return str(await self._post("detokenize", "prompt", {"model": self.model, "tokens": list(ids)}))


class OfSGLang(OfVLLM):
    async def decode(self, ids: tuple[int, ...]) -> str:
        return str(await self._post("detokenize", "text", {"model": self.model, "tokens": list(ids)}))


class OfLlamaCpp(Renderer):
    name = "server"

    async def _prompt(self, problem: Problem) -> Prompt:
        messages = [dict(message) for message in problem.messages]
        text = str(await self._post("apply-template", "prompt", {"messages": messages}))
        body = {"content": text, "add_special": True, "parse_special": True}
        ids = _ids(await self._post("tokenize", "tokens", body))
        if ids[:1] == ids[1:2]:  # the template writes the token that begins a text, which was added before it
            alone = _ids(await self._post("tokenize", "tokens", {**body, "add_special": False}))
            ids = alone if alone[:1] == ids[:1] else ids
        return Prompt(ids=ids)

    async def encode(self, text: str) -> tuple[int, ...]:
        body = {"content": text, "add_special": False, "parse_special": False}
        return _ids(await self._post("tokenize", "tokens", body))

    async def decode(self, ids: tuple[int, ...]) -> str:
        return str(await self._post("detokenize", "content", {"tokens": list(ids)}))


class OfTGI(Renderer):
    name = "server"

    async def _prompt(self, problem: Problem) -> Prompt:
        messages = [dict(message) for message in problem.messages]
        text = str(await self._post("chat_tokenize", "templated_text", {"messages": messages}))
        with suppress(ServerError):  # older ones do not tokenise
            tokens = await self._tokens(text)
            if len(tokens) > 1 and tokens[0].get("id") == tokens[1].get("id"):  # the server puts it before every text
                text = text.removeprefix(str(tokens[1].get("text")))
        return Prompt(text=text)

    async def count(self, text: str) -> int | None:
        with suppress(ServerError):
            return len(await self._tokens(text))
        return None

    async def _tokens(self, text: str) -> list[dict[str, Any]]:
        """As it reads a prompt: with what it adds."""
        url = f"{self.address.root}/tokenize"
        told = await self.client.post(url, {"inputs": text}, attempts=2)
        if not isinstance(told, list) or not all(isinstance(token, dict) for token in told):
            raise BadResponseError(f"{url} answered no list of tokens: {excerpt(told)}")
        return told


class OfTokenizer(Renderer):
    """By a tokenizer on this side.

    Args:
        ids: whether the server takes token ids; otherwise prompts are text.
    """

    name = "tokenizer"

    def __init__(self, client: Client, address: Address, model: str, vocabulary: Vocabulary, *, ids: bool) -> None:
        super().__init__(client, address, model)
        self.vocabulary = vocabulary
        self.ids = ids
        self._added = 0  # tokens that the server puts before a text

    async def _prompt(self, problem: Problem) -> Prompt:
        await self.vocabulary.prepare(problem)
        ids = tuple(self.vocabulary.prompt(problem))
        return Prompt(ids=ids) if self.ids else Prompt(text=self._text(ids))

    def _text(self, ids: tuple[int, ...]) -> str:
        """The text that a server reads as these tokens: without the one that begins every text, where the tokenizer,
        and so the server, puts it before a text by itself."""
        tokenizer = self.vocabulary.tokenizer
        text, begins = str(tokenizer.decode(list(ids))), getattr(tokenizer, "bos_token", None)
        if begins and text.startswith(begins):
            rest = text.removeprefix(begins)
            if list(tokenizer.encode(rest, verbose=False)) == list(ids):
                self._added = 1
                return rest
        return text

    async def count(self, text: str) -> int | None:
        return len(await in_thread_if_long(len(text), self.vocabulary.encode, text)) + self._added

    async def encode(self, text: str) -> tuple[int, ...]:
        as_text = partial(self.vocabulary.encode, special=False)
        return tuple(await in_thread_if_long(len(text), as_text, text))

    async def decode(self, ids: tuple[int, ...]) -> str:
        return self.vocabulary.decode(ids)


RENDERERS: dict[str, type[Renderer]] = {
    "vllm": OfVLLM,
    "sglang": OfSGLang,
    "llama.cpp": OfLlamaCpp,
    "tgi": OfTGI,
}
"""By engine."""


def renderer(
    engine: str, client: Client, address: Address, model: str, vocabulary: Vocabulary | None, *, kind: str, ids: bool
) -> Renderer:
    """The renderer of a kind that probing found: "server", "tokenizer" or "messages"."""
    if kind == "tokenizer" and vocabulary is not None:
        return OfTokenizer(client, address, model, vocabulary, ids=ids)
    return (RENDERERS.get(engine, Renderer) if kind == "server" else Renderer)(client, address, model)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(token, int) for token in value):
        raise BadResponseError(f"token ids were expected, not {excerpt(value)}")
    return tuple(value)
