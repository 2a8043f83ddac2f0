"""Scripted servers of reward models: each engine's routes and manners, over tiny checkpoints that plain transformers
computes (prm_families.py), so that scores can be compared with those of the local reward model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
from transformers import AutoTokenizer

from engines import VLLM, Engine, LlamaCpp, SGLang, no_sleep
from motes.rewards.served.model import ServedPRM
from motes.transport import Address, Client, Retries
from prm_families import PUBLISHED

ELSEWHERE = 3.0
"""How much more likely than good and bad together everything else is: neither is among the first."""


@cache
def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@cache
def good(folder: Path, family: str, ids: tuple[int, ...]) -> tuple[float, ...]:
    """(n,) the score at each token."""
    return tuple(PUBLISHED[family].score(folder, tokenizer_of(folder), list(ids)).tolist())


@dataclass
class Served:
    """A checkpoint behind a server.

    Attributes:
        folder, family: of the checkpoint.
        score: (n,) at each token of a text, instead of the checkpoint's.
    """

    folder: Path
    family: str
    score: Callable[[tuple[int, ...]], Sequence[float]] | None = None

    def at(self, ids: Sequence[int]) -> Sequence[float]:
        return self.score(tuple(ids)) if self.score else good(self.folder, self.family, tuple(ids))

    def logprobs(self, ids: Sequence[int]) -> tuple[float, float]:
        """Of the next token, bad and good, where most of the probability is elsewhere."""
        p = self.at(ids)[-1]
        return tuple(math.log(max(q, 1e-30)) - ELSEWHERE for q in (1 - p, p))

    def text(self, ids: Sequence[int]) -> str:
        return tokenizer_of(self.folder).decode(ids)


class OfRewards(Engine):
    """What scripted servers of reward models share. `asked` are the bodies of what asked for scores."""

    def __init__(self, served: Served, **options: Any) -> None:
        super().__init__(**{"context": 512, **options})
        self.served = served

    @property
    def asked(self) -> list[dict[str, Any]]:
        scoring = ("pooling", "completions", "completion", "generate")
        return [body for path, body in self.requests if path.rpartition("/")[2] in scoring and body]

    def too_long(self, ids: Sequence[int], more: int = 0) -> httpx2.Response | None:
        if len(ids) + more <= self.context:
            return None
        return self.refused(
            f"This model's maximum context length is {self.context} tokens. However, your prompt contains {len(ids)} "
            "input tokens, which exceeds this limit even without any output tokens."
        )


class VLLMRewards(OfRewards, VLLM):
    """vLLM tells where it has its model from."""

    tells_context = True

    def v1_models(self, body: dict[str, Any]) -> Any:
        entry = {"id": self.model, "owned_by": "vllm", "root": str(self.served.folder)}
        return {"data": [{**entry, "max_model_len": self.context if self.tells_context else None}]}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"prompt": self.served.text(body["tokens"])}


class VLLMPooling(VLLMRewards):
    """`--runner pooling`: a row for each tag (`step_tag_id`), or for each token."""

    def __init__(self, served: Served, tag: int | None = None, **options: Any) -> None:
        super().__init__(served, **options)
        self.tag = tag

    def v1_completions(self, body: dict[str, Any]) -> Any:
        return httpx2.Response(404, json={"detail": "Not Found"})

    def pooling(self, body: dict[str, Any]) -> Any:
        if not body:
            return httpx2.Response(405, json={"detail": "Method Not Allowed"})
        assert body["task"] == "token_classify"
        assert body["use_activation"] is True
        assert body["add_special_tokens"] is False
        for ids in body["input"]:
            if refused := self.too_long(ids):
                return refused
        data = [{"index": i, "object": "pooling", "data": self.rows(ids)} for i, ids in enumerate(body["input"])]
        total = sum(map(len, body["input"]))
        usage = {"prompt_tokens": total, "total_tokens": total, "prompt_tokens_details": None}
        return {"object": "list", "model": self.model, "data": data[::-1], "usage": usage}

    def rows(self, ids: list[int]) -> list[list[float]]:
        chosen = zip(ids, self.served.at(ids), strict=True)
        return [[1 - p, p] for token, p in chosen if self.tag is None or token == self.tag]


class VLLMNext(VLLMRewards):
    """A plain language model."""

    def v1_completions(self, body: dict[str, Any]) -> Any:
        assert body["max_tokens"] == body["temperature"] == body["repetition_penalty"] == 1
        assert body["add_special_tokens"] is False
        assert body["return_tokens_as_token_ids"] is True
        for ids in body["prompt"]:
            if refused := self.too_long(ids, 1):
                return refused
        choices = []
        for i, ids in enumerate(body["prompt"]):
            told = {"token_id:7": -0.1, **self.told(ids, body)}
            choices.append({"index": i, "text": "x", "logprobs": {"top_logprobs": [told]}, "finish_reason": "length"})
        details = None if self.cached is None else {"cached_tokens": self.cached * len(body["prompt"])}
        usage = {"prompt_tokens": sum(map(len, body["prompt"])), "prompt_tokens_details": details}
        return {"choices": choices[::-1], "usage": usage}

    def told(self, ids: list[int], body: dict[str, Any]) -> dict[str, float]:
        bad, good_ = self.served.logprobs(ids)
        return dict(zip([f"token_id:{token}" for token in body["logprob_token_ids"]], (bad, good_), strict=True))


class OldVLLM(VLLMNext):
    """As versions before `logprob_token_ids`, which take no notice of it."""

    def told(self, ids: list[int], body: dict[str, Any]) -> dict[str, float]:
        return {"token_id:8": -0.2}


class SGLangNext(OfRewards, SGLang):
    def v1_models(self, body: dict[str, Any]) -> Any:
        return {"data": [{"id": self.model, "owned_by": "sglang", "max_model_len": self.context}]}

    def server_info(self, body: dict[str, Any]) -> Any:
        return {"version": "0.5.23", "model_path": "x", "tokenizer_path": str(self.served.folder)}

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"text": self.served.text(body["tokens"])}

    def generate(self, body: dict[str, Any]) -> Any:
        assert body["return_logprob"]
        assert body["logprob_start_len"] == -1, "the prefix cache is not read otherwise"
        assert body["sampling_params"]["max_new_tokens"] == body["sampling_params"]["temperature"] == 1
        if refused := self.too_long(body["input_ids"], 1):
            return refused
        told = zip(self.served.logprobs(body["input_ids"]), body["token_ids_logprob"], strict=True)
        rows = [[value, token, None] for value, token in told]
        return {
            "text": "x",
            "output_ids": [7],
            "meta_info": {
                "output_token_ids_logprobs": [rows[::-1]],
                "prompt_tokens": len(body["input_ids"]),
                "cached_tokens": 5,
            },
        }


class LlamaCppNext(OfRewards, LlamaCpp):
    """Tells the likeliest tokens only, after sampling where that is asked for."""

    slots = 4
    unsaid = ()

    def detokenize(self, body: dict[str, Any]) -> Any:
        return {"content": self.served.text(body["tokens"])}

    def completion(self, body: dict[str, Any]) -> Any:
        ids = body["prompt"]
        assert body["n_predict"] == body["temperature"] == 1
        assert body["samplers"] == ["temperature"]
        assert body["cache_prompt"]
        if len(ids) > self.context:
            return self.refused(f"request ({len(ids)} tokens) exceeds the available context size")
        bias = dict(map(tuple, body["logit_bias"]))
        logits = {7: 0.0, 8: -1.0, **dict(zip(bias, self.served.logprobs(ids), strict=True))}
        biased = {token: math.exp(value + bias.get(token, 0) - 100) for token, value in logits.items()}
        first = sorted(biased, key=biased.__getitem__)[: -1 - body["n_probs"] : -1]
        probs = [{"id": token, "token": "?", "prob": biased[token] / sum(biased.values())} for token in first]
        assert body["post_sampling_probs"]
        return {
            "content": "x",
            "completion_probabilities": [{"id": first[0], "prob": 1.0, "top_probs": probs}],
            "tokens_evaluated": len(ids),
            "timings": {"cache_n": 4, "prompt_n": len(ids) - 4},
        }


async def connect(engine: Engine, *, base: str = "http://server.test", **options: Any) -> ServedPRM:
    """The reward model that a scripted server is."""
    address = Address.parse(base)
    client = Client(
        address.base,
        transport=httpx2.MockTransport(engine),
        sleep=no_sleep,
        retries=Retries(attempts=3),
    )
    with patch.object(Client, "open", return_value=client):
        prm = ServedPRM.open(base, **options)
    engine.requests.clear()
    return prm
