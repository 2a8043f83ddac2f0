"""Scripted servers: each engine's routes and manners over one and the same small language model, without a network.

What is simulated is what the engines were seen to do, or what their sources say (docs/servers.md tells which). The
model's tokens cut delimiters in awkward ways: some hold more behind a delimiter, some only half of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx2

from motes.models.served import HTTPLanguageModel
from motes.models.served.probe import probe
from motes.transport import Address, Client, Retries

WORDS = (
    "one ", "two ", "so ", "then\n\n", "add\n", "\n", "\n\n", "\n\n\n", ".\n\nAnd ", ";", "; or ", "3 ",
    "\\boxed{1}", "\\boxed{2}",
)  # fmt: skip
SPECIAL = ("<eos>", "<user>", "<end>", "<assistant>")
CHARACTERS = tuple(chr(i) for i in range(32, 127))
VOCABULARY = (*SPECIAL, *WORDS, *CHARACTERS, "<think>")
EOS = 0
FIRST_WORD, LAST_WORD = len(SPECIAL), len(SPECIAL) + len(WORDS)


def encode(text: str) -> list[int]:
    """The longest token first."""
    ids = []
    while text:
        token = max(
            (i for i, piece in enumerate(VOCABULARY) if text.startswith(piece)), key=lambda i: len(VOCABULARY[i])
        )
        ids.append(token)
        text = text[len(VOCABULARY[token]) :]
    return ids


def decode(ids: list[int]) -> str:
    return "".join(VOCABULARY[i] for i in ids if i >= len(SPECIAL))


def render(messages: list[dict[str, str]], generate: bool = True) -> str:
    turns = "".join(f"<{m['role']}>{m['content']}<end>" for m in messages).replace("<system>", "<user>")
    return turns + ("<assistant>" if generate else "")


@dataclass
class Draw:
    """One answer of the model: `end` is "eos", "stop" or "length"; the text goes to the end of the last token."""

    ids: list[int]
    end: str
    stop: str | None
    logprobs: list[float]
    tops: list[list[tuple[int, float]]]  # for each token all tokens in its place and their log-probabilities

    @property
    def text(self) -> str:
        return decode(self.ids)

    @property
    def kept(self) -> str:
        """With the stop string, without what stands behind it."""
        return self.text if self.stop is None else self.text[: self.text.index(self.stop) + len(self.stop)]

    def top(self, place: int, k: int) -> list[tuple[int, float]]:
        """The k likeliest tokens in a place, the likeliest first."""
        return sorted(self.tops[place], key=lambda pair: -pair[1])[:k]

    @property
    def trimmed(self) -> str:
        return self.kept.removesuffix(self.stop or "")


def weights(ids: tuple[int, ...]) -> list[float]:
    """(tokens,) of the next token: words and the end of sequence, by what was said."""
    chance = random.Random(hashlib.sha256(repr(ids[-3:]).encode()).digest())
    return [0.4, *(0.1 + chance.random() for _ in WORDS)]


def draw(ids: list[int], *, limit: int, stops: list[str], temperature: float, seed: int) -> Draw:
    written: list[int] = []
    logprobs: list[float] = []
    tops: list[list[tuple[int, float]]] = []
    chance = random.Random(f"{seed}")
    while True:
        w = weights((*ids, *written))
        tokens = [EOS, *range(FIRST_WORD, LAST_WORD)]
        u = chance.random()
        if temperature == 0:
            chosen = max(range(len(w)), key=lambda i: w[i])
        else:
            heated = [value ** (1 / temperature) for value in w]
            chosen, left = 0, u * sum(heated)
            while left >= heated[chosen]:
                left -= heated[chosen]
                chosen += 1
        written.append(tokens[chosen])
        logprobs.append(math.log(w[chosen] / sum(w)))
        tops.append([(token, math.log(value / sum(w))) for token, value in zip(tokens, w, strict=True)])
        text = decode(written)
        found = (
            min((text.index(stop) + len(stop), stop) for stop in stops if stop in text)
            if any(s in text for s in stops)
            else None
        )
        if written[-1] == EOS:
            return Draw(written, "eos", None, logprobs, tops)
        if found:
            return Draw(written, "stop", found[1], logprobs, tops)
        if len(written) >= limit:
            return Draw(written, "length", None, logprobs, tops)


@dataclass
class Engine:
    """A server. Every request is kept in `requests`, as (path, body); `fail` may answer in its place.

    Attributes:
        model: the name of its only model.
        context: tokens.
        fails: called with (path, body); what it returns, if anything, is the answer.
    """

    model: str = "tiny"
    context: int = 4096
    fails: Callable[[str, dict[str, Any]], httpx2.Response | None] = lambda path, body: None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sent: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(7))

    owned_by = "someone"

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        self.requests.append((path, body))
        if (failed := self.fails(path, body)) is not None:
            return failed
        method = getattr(self, path.strip("/").replace("/", "_").replace("-", "_"), None)
        if method is None or path.startswith("__"):
            return httpx2.Response(404, json={"error": {"message": "Not Found"}})
        answer = method(body)
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies that asked for tokens."""
        generating = ("completions", "completion", "generate")
        return [body for path, body in self.requests if path.rpartition("/")[2] in generating]

    def v1_models(self, body: dict[str, Any]) -> Any:
        return {"data": [{"id": self.model, "object": "model", "owned_by": self.owned_by}]}

    def seed(self, seed: int | None) -> int:
        return self.random.getrandbits(60) if seed is None else seed

    def draw(self, ids: list[int], body: dict[str, Any], *, limit: int, stops: Any, seed: int | None) -> Draw:
        return draw(
            ids, limit=limit, stops=list(stops or ()), temperature=body.get("temperature", 1.0), seed=self.seed(seed)
        )

    def refused(self, message: str, status: int = 400) -> httpx2.Response:
        return httpx2.Response(status, json={"error": {"message": message, "code": status}})

    async def stream(self, events: list[dict[str, Any]]) -> AsyncIterator[bytes]:
        for event in events:
            yield f"data: {json.dumps(event)}\n\n".encode()
        yield b"data: [DONE]\n\n"


class OpenAICompatible(Engine):
    """The portable core: stop strings are cut off, and nothing says what ended an answer. Nothing else is known."""

    fields = frozenset({"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "stop", "stream", "seed"})
    continues = True
    completes = True

    def v1_completions(self, body: dict[str, Any]) -> Any:
        if not self.completes:
            return self.refused("no completions here", 404)
        return self.answer(body, [encode(body["prompt"])], chat=False)

    def v1_chat_completions(self, body: dict[str, Any]) -> Any:
        *_, last = body["messages"]
        continued = last["role"] == "assistant" and self.continues
        if last["content"].startswith("1, 2, 3") and continued:
            return self.answer(body, [], chat=True, text=" 12, 13")
        text = render(body["messages"], generate=not continued)
        return self.answer(body, [encode(text.removesuffix("<end>") if continued else text)], chat=True)

    def answer(self, body: dict[str, Any], prompts: list[list[int]], *, chat: bool, text: str | None = None) -> Any:
        if unknown := body.keys() - self.fields:
            return self.refused(f"unknown fields {sorted(unknown)}", 422)
        if len(body.get("stop") or ()) > 4:
            return self.refused("at most 4 stop strings")
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        prompts = [ids for ids in prompts for _ in range(body.get("n", 1))]
        drawn = [self.draw(ids, body, limit=limit, stops=body.get("stop"), seed=body.get("seed")) for ids in prompts]
        texts = [text] if text is not None else [one.trimmed for one in drawn]
        finish = ["length" if one.end == "length" else "stop" for one in drawn] or ["length"]
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": sum(len(one.ids) for one in drawn)}
        if not body.get("stream"):
            key = (lambda t: {"message": {"role": "assistant", "content": t}}) if chat else (lambda t: {"text": t})
            choices: list[dict[str, Any]] = [
                {"index": i, **key(t), "finish_reason": f} for i, (t, f) in enumerate(zip(texts, finish, strict=True))
            ]
            if body.get("logprobs"):
                for choice, one in zip(choices, drawn, strict=True):
                    choice["logprobs"] = {"content": self.logprobs(one, body["top_logprobs"])}
            return {"choices": choices, "usage": usage}
        events = []
        for i, one in enumerate(drawn):
            for token in one.ids:
                piece = decode([token])
                events.append(
                    {
                        "choices": [
                            {
                                "index": i,
                                **({"delta": {"content": piece}} if chat else {"text": piece}),
                                "finish_reason": None,
                            }
                        ]
                    }
                )
            events.append(
                {"choices": [{"index": i, **({"delta": {}} if chat else {"text": ""}), "finish_reason": finish[i]}]}
            )
        events.append({"choices": [], "usage": usage})
        return httpx2.Response(200, content=self.stream(events))

    @staticmethod
    def logprobs(one: Draw, k: int) -> list[dict[str, Any]]:
        return [
            {
                "token": VOCABULARY[token],
                "logprob": one.logprobs[i],
                "top_logprobs": [{"token": VOCABULARY[other], "logprob": value} for other, value in one.top(i, k)],
            }
            for i, token in enumerate(one.ids)
        ]


class Closed(OpenAICompatible):
    """A chat that begins a new message where one is to be continued."""

    continues = False
    completes = False
    fields = OpenAICompatible.fields | {
        *("max_completion_tokens", "presence_penalty", "frequency_penalty", "n", "logprobs", "top_logprobs")
    }


class VLLM(Engine):
    owned_by = "vllm"
    cached: int | None = 5

    def v1_models(self, body: dict[str, Any]) -> Any:
        return {"data": [{"id": self.model, "owned_by": "vllm", "max_model_len": self.context}]}

    def version(self, body: dict[str, Any]) -> Any:
        return {"version": "0.33.0"}

    def tokenize(self, body: dict[str, Any]) -> Any:
        assert body["add_special_tokens"] is False
        text = render(body["messages"], body["add_generation_prompt"]) if "messages" in body else body["prompt"]
        return {"tokens": encode(text), "count": 1, "max_model_len": self.context}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"prompt": decode(body["tokens"])}

    def v1_completions(self, body: dict[str, Any]) -> Any:
        many = isinstance(body["prompt"][0], list)
        prompts = body["prompt"] if many else [body["prompt"]]
        prompts = [encode(p) if isinstance(p, str) else p for p in prompts]
        if any(len(ids) + body["max_tokens"] > self.context for ids in prompts):
            return self.refused(f"This model's maximum context length is {self.context} tokens")
        n, seed = body.get("n", 1), body.get("seed")
        drawn = [
            self.draw(
                ids,
                body,
                limit=body["max_tokens"],
                stops=body.get("stop"),
                seed=None if seed is None else seed + child,  # every prompt with the same seeds
            )
            for ids in prompts
            for child in range(n)
        ]
        choices = [{"index": i, **self.choice(one, body)} for i, one in enumerate(drawn)]
        details = None if self.cached is None else {"cached_tokens": self.cached}
        usage = {
            "prompt_tokens": sum(map(len, prompts)),
            "completion_tokens": sum(len(one.ids) for one in drawn),
            "prompt_tokens_details": details,
        }
        if not body.get("stream"):
            return {"choices": choices, "usage": usage}
        events = []
        for i, one in sorted(enumerate(drawn), key=lambda pair: len(pair[1].ids)):
            if body.get("stream_interval"):
                events.append({"choices": [choices[i]]})
                continue
            for k, token in enumerate(one.ids):
                last = k == len(one.ids) - 1
                end = {k: choices[i][k] for k in ("finish_reason", "stop_reason")} if last else {"finish_reason": None}
                text = one.kept[len(decode(one.ids[:k])) : len(decode(one.ids[: k + 1]))]
                if "logprobs" in body:
                    end["logprobs"] = self.logprobs(one, body, slice(k, k + 1))
                events.append({"choices": [{"index": i, "text": text, "token_ids": [token], **end}]})
        events.append({"choices": [], "usage": usage})
        return httpx2.Response(200, content=self.stream(events))

    def choice(self, one: Draw, body: dict[str, Any]) -> dict[str, Any]:
        assert body["return_token_ids"]
        assert body.get("include_stop_str_in_output") or not body.get("stop")
        return {
            "text": one.kept,
            "token_ids": one.ids,
            "finish_reason": "length" if one.end == "length" else "stop",
            "stop_reason": one.stop,
            "logprobs": self.logprobs(one, body, slice(None)) if "logprobs" in body else None,
        }

    @staticmethod
    def logprobs(one: Draw, body: dict[str, Any], part: slice) -> dict[str, Any]:
        """As vLLM has them: with the sampled token beside the likeliest ones, by their texts."""
        places = range(len(one.ids))[part]
        tops = [
            {
                VOCABULARY[token]: value
                for token, value in [(one.ids[i], one.logprobs[i]), *one.top(i, body["logprobs"])]
            }
            for i in places
        ]
        return {
            "token_logprobs": one.logprobs[part],
            "tokens": [VOCABULARY[one.ids[i]] for i in places],
            "top_logprobs": tops if body["logprobs"] else None,
        }


@dataclass
class LlamaCpp(Engine):
    """Attributes:
    unsaid: tokens that a stream leaves out, as those that end within a character; their text comes with the next.
    """

    owned_by = "llamacpp"
    slots: int = 16
    unsaid: tuple[int, ...] = ()

    def v1_models(self, body: dict[str, Any]) -> Any:
        return {"data": [{"id": self.model, "owned_by": "llamacpp", "meta": {"n_ctx": self.context}}]}

    def props(self, body: dict[str, Any]) -> Any:
        told = {"build_info": "b11549-abc", "default_generation_settings": {"n_ctx": self.context}}
        return {**told, "total_slots": self.slots}

    def apply_template(self, body: dict[str, Any]) -> Any:
        return {"prompt": render(body["messages"])}

    def tokenize(self, body: dict[str, Any]) -> Any:
        return {"tokens": encode(body["content"])}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"content": decode(body["tokens"])}

    def completion(self, body: dict[str, Any]) -> Any:
        ids = encode(body["prompt"]) if isinstance(body["prompt"], str) else body["prompt"]
        if len(ids) > self.context:
            return self.refused(
                f"request ({len(ids)} tokens) exceeds the available context size ({self.context} tokens)"
            )
        n, seed = body.get("n_cmpl", 1), body.get("seed")
        if n > self.slots:
            return self.refused(f"Field 'n_cmpl': Value must be between 1 <= value <= {self.slots}, but got {n}")
        assert seed is None or 0 <= seed < 2**32 - 1
        answers, events = [], []
        for i in range(n):
            one = self.draw(
                ids, body, limit=body["n_predict"], stops=body["stop"], seed=seed if seed is None else seed + i
            )
            events += self.pieces(one, i, body)
            answer = {
                "index": i,
                "content": one.trimmed,
                "tokens": one.ids if body["return_tokens"] else [],
                "stop_type": {"eos": "eos", "stop": "word", "length": "limit"}[one.end],
                "stopping_word": one.stop or "",
                "tokens_predicted": len(one.ids),
                "tokens_evaluated": len(ids),
                "timings": {"cache_n": 3, "prompt_n": len(ids) - 3},
            }
            if body.get("n_probs"):
                lost = 0 if one.stop is None else len(encode(one.stop))  # as many as the stop string has by itself
                answer["completion_probabilities"] = self.probabilities(one, body)[: len(one.ids) - lost]
            answers.append(answer)
            events.append({**answer, "content": "", "tokens": [], "stop": True})
        if body.get("stream"):
            return httpx2.Response(200, content=self.stream(events))
        return answers[::-1] if n > 1 else answers[0]

    def pieces(self, one: Draw, index: int, body: dict[str, Any]) -> list[dict[str, Any]]:
        pieces, text = [], ""
        for k, token in enumerate(one.ids, start=1):
            text += decode([token])
            if token not in self.unsaid:
                told = {"completion_probabilities": self.probabilities(one, body)[k - 1 : k]}
                pieces.append(
                    {"index": index, "content": text, "tokens": [token], "stop": False, "tokens_predicted": k, **told}
                )
                text = ""
        return pieces

    def probabilities(self, one: Draw, body: dict[str, Any]) -> list[dict[str, Any]]:
        k = body.get("n_probs", 0)
        return [
            {
                "id": token,
                "logprob": one.logprobs[i],
                "top_logprobs": [{"id": other, "logprob": value} for other, value in one.top(i, k)],
            }
            for i, token in enumerate(one.ids)
        ]


class SGLang(Engine):
    owned_by = "sglang"
    deterministic = True
    incremental = False

    def v1_models(self, body: dict[str, Any]) -> Any:
        return {"data": [{"id": self.model, "owned_by": "sglang", "max_model_len": self.context}]}

    def server_info(self, body: dict[str, Any]) -> Any:
        return {"version": "0.5.23", "model_path": "x", "enable_deterministic_inference": self.deterministic}

    def tokenize(self, body: dict[str, Any]) -> Any:
        if "prompt" not in body:
            return self.refused("prompt: Field required", 422)
        return {"tokens": encode(body["prompt"])}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"text": decode(body["tokens"])}

    def generate(self, body: dict[str, Any]) -> Any:
        sampling = body["sampling_params"]
        assert sampling["no_stop_trim"]
        seed = sampling.get("sampling_seed") if self.deterministic else None
        answers, events = [], []
        for i in range(sampling["n"]):
            one = self.draw(
                body["input_ids"], sampling, limit=sampling["max_new_tokens"], stops=sampling["stop"], seed=seed
            )
            reason: dict[str, Any] = {"type": "stop", "matched": one.stop or EOS}
            told = {
                "finish_reason": reason if one.end != "length" else {"type": "length", "length": len(one.ids)},
                "completion_tokens": len(one.ids),
                "prompt_tokens": len(body["input_ids"]),
                "cached_tokens": 2,
            }
            if body["return_logprob"]:
                told["output_token_logprobs"] = [[v, i, None] for v, i in zip(one.logprobs, one.ids, strict=True)]
                if k := body["top_logprobs_num"]:
                    tops = [[[v, i, None] for i, v in one.top(place, k)] for place in range(len(one.ids))]
                    told["output_top_logprobs"] = tops
            answers.append({"text": one.text, "output_ids": one.ids, "meta_info": told})
            events += self.pieces(one, i, told)
        if body["stream"]:
            return httpx2.Response(200, content=self.stream(events))
        return answers if sampling["n"] > 1 else answers[0]

    def pieces(self, one: Draw, index: int, told: dict[str, Any]) -> list[dict[str, Any]]:
        pieces = []
        for k in range(1, len(one.ids) + 1):
            part = slice(k - 1 if self.incremental else 0, k)
            now = {**told, "completion_tokens": k}
            if k < len(one.ids):
                now["finish_reason"] = None
            for name in {"output_token_logprobs", "output_top_logprobs"} & told.keys():
                now[name] = told[name][part]
            ids = one.ids[part]
            pieces.append({"index": index, "text": decode(ids), "output_ids": ids, "meta_info": now})
        return pieces


class SGLangThatRenders(SGLang):
    """As a version might be whose /tokenize takes messages."""

    def tokenize(self, body: dict[str, Any]) -> Any:
        return {"tokens": encode(render(body["messages"]) if "messages" in body else body["prompt"])}


class TGI(OpenAICompatible):
    owned_by = "tiny"
    fields = OpenAICompatible.fields | {"top_k"}

    def info(self, body: dict[str, Any]) -> Any:
        return {"version": "3.3.6", "model_id": self.model, "max_total_tokens": self.context}

    def tokenize(self, body: dict[str, Any]) -> Any:
        return [{"id": i, "text": VOCABULARY[i], "start": 0, "stop": 0} for i in encode(body["inputs"])]

    def chat_tokenize(self, body: dict[str, Any]) -> Any:
        return {"templated_text": render(body["messages"]), "tokenize_response": []}

    def generate(self, body: dict[str, Any]) -> Any:
        p = body["parameters"]
        assert p["do_sample"] == (p["temperature"] is not None)
        assert p["top_p"] is None or p["top_p"] < 1
        assert p["top_k"] is None or p["top_k"] > 0
        if len(p["stop"]) > 4:
            return self.refused("Input validation error: at most 4 stop sequences", 422)
        ids = encode(body["inputs"])
        if len(ids) + p["max_new_tokens"] > self.context:
            return self.refused("Input validation error: too much", 422)
        heat = {"temperature": p["temperature"] or 0.0}
        one = self.draw(ids, heat, limit=p["max_new_tokens"], stops=p["stop"], seed=p["seed"])
        tokens = [
            {"id": i, "text": VOCABULARY[i], "logprob": v, "special": i == EOS}
            for i, v in zip(one.ids, one.logprobs, strict=True)
        ]
        reason = {"eos": "eos_token", "stop": "stop_sequence", "length": "length"}[one.end]
        details = {"finish_reason": reason, "generated_tokens": len(one.ids), "tokens": tokens, "prefill": []}
        if k := p["top_n_tokens"]:
            tops = [[{"id": i, "logprob": v} for i, v in one.top(place, k)] for place in range(len(one.ids))]
            details["top_tokens"] = tops
        return {"generated_text": one.kept, "details": details}


class Ollama(Engine):
    owned_by = "library"

    def v1_models(self, body: dict[str, Any]) -> Any:
        return {"data": [{"id": f"{self.model}:latest", "owned_by": "library"}]}

    def api_version(self, body: dict[str, Any]) -> Any:
        return {"version": "0.20.1"}

    def api_generate(self, body: dict[str, Any]) -> Any:
        assert body["raw"]
        o = body["options"]
        ids = encode(body["prompt"])
        one = self.draw(ids, o, limit=o["num_predict"], stops=o.get("stop"), seed=o.get("seed"))
        end = {
            "done": True,
            "done_reason": "length" if one.end == "length" else "stop",
            "eval_count": len(one.ids),
            "prompt_eval_count": len(ids),
        }
        if not body["stream"]:
            return {"response": one.trimmed, **end}
        return httpx2.Response(
            200, content=self.lines([{"response": decode([i]), "done": False} for i in one.ids], end)
        )

    async def lines(self, events: list[dict[str, Any]], end: dict[str, Any]) -> AsyncIterator[bytes]:
        for event in (*events, {"response": "", **end}):
            self.sent += 1
            yield json.dumps(event).encode() + b"\n"

    def v1_chat_completions(self, body: dict[str, Any]) -> Any:
        return OpenAICompatible.v1_chat_completions(_Chatting(self), body)  # type: ignore[arg-type]


class _Chatting(OpenAICompatible):
    """Ollama's chat: lenient about fields."""

    def __init__(self, ollama: Ollama) -> None:
        super().__init__()
        self.random = ollama.random
        self.fields = self.fields | {
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repeat_penalty",
            "typical_p",
        }


class Tokenizer:
    """A tokenizer on this side: what `Vocabulary` is to the served models."""

    class tokenizer:  # noqa: N801
        @staticmethod
        def decode(ids: list[int]) -> str:
            return "".join(VOCABULARY[i] for i in ids)

    async def prepare(self, problem: Any) -> None:
        pass

    def prompt(self, problem: Any) -> list[int]:
        return encode(render([dict(message) for message in problem.messages]))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return encode(text)

    def decode(self, ids: list[int]) -> str:
        return decode(ids)


async def no_sleep(seconds: float) -> None:
    pass


async def connect(
    engine: Engine,
    *,
    name: str | None = None,
    vocabulary: Any = None,
    base: str = "http://server.test/v1",
    retries: Retries | None = None,
    **options: Any,
) -> HTTPLanguageModel:
    """The language model that a scripted server is."""
    address = Address.parse(base)
    client = Client(
        base, transport=httpx2.MockTransport(engine), sleep=no_sleep, retries=retries or Retries(attempts=3)
    )
    found = await probe(client, address, engine=name, vocabulary=vocabulary)
    engine.requests.clear()
    return HTTPLanguageModel(client, address, found, vocabulary=vocabulary, **options)


async def talk(engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer what comes on a connection. An engine that raises ConnectionError breaks it off."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            content = await reader.readexactly(int(headers.get("content-length", 0)))
            request = httpx2.Request(method, f"http://{headers['host']}{path}", headers=headers, content=content)
            response = await engine(request)
            kind = response.headers.get("content-type", "application/json")
            head = f"HTTP/1.1 {response.status_code} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head.encode())
            async for piece in response.stream:  # type: ignore[union-attr]
                if piece:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        writer.transport.abort()


@contextlib.contextmanager
def on_a_socket(engine: Engine) -> Iterator[str]:
    """The engine on a real socket, in a thread of its own; gives its address."""
    loop = asyncio.new_event_loop()

    server = loop.run_until_complete(asyncio.start_server(partial(talk, engine), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:

        async def stop() -> None:
            server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
