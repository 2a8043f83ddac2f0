"""The formats of engines that say more in their own than in OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from motes.errors import BadResponseError
from motes.models.served.wires import Chat, Completions, Delta, Drawn, Request, Wire, counted, stops
from motes.types import StepEnd


class LlamaCpp(Wire):
    """llama.cpp's own format. Text ends before a stop string; the tokens hold it.

    Its log-probabilities leave out the tokens of a stop string, and so are not those of a step: they are not asked for.
    A stream leaves out tokens that end within a character.
    """

    streams = True

    @property
    def url(self) -> str:
        return f"{self.address.root}/completion"

    def body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": request.prompts[0].wired,
            "n_predict": request.limit,
            "stop": stops(request),
            "return_tokens": True,
            "cache_prompt": True,
            # The order of every other engine: temperature first, then what it leaves over is filtered.
            "samplers": ["temperature", "top_k", "top_p", "min_p"],
            **self.profile.sampling_fields(request.sampling),
        }
        if request.n > 1 and self.profile.choices:
            body[self.profile.choices] = request.n
        if request.seed is not None:
            body["seed"] = request.seed
        return body

    def streamed(self, request: Request) -> dict[str, Any]:
        return {**self.body(request), "stream": True}

    def delta(self, event: dict[str, Any]) -> list[tuple[int, Delta]]:
        tokens = tuple(int(token) for token in event.get("tokens") or ())
        delta = Delta(str(event["content"]), tokens, count=int(event["tokens_predicted"]))
        index = int(event.get("index") or 0)
        if not event["stop"]:
            return [(index, delta)]
        usage = {
            "prompt_tokens": event["tokens_evaluated"],
            "prompt_tokens_details": {"cached_tokens": (event.get("timings") or {}).get("cache_n")},
        }
        finish = {"eos": "stop", "limit": "length"}[event["stop_type"]]
        return [*counted(usage), (index, replace(delta, finish=finish))]

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        answers = sorted(answer if isinstance(answer, list) else [answer], key=lambda one: int(one.get("index") or 0))
        return [self._drawn(one, first=i == 0) for i, one in enumerate(answers)]

    def _drawn(self, answer: Mapping[str, Any], first: bool) -> Drawn:
        ends: Mapping[str, StepEnd] = {"eos": "eos", "word": "step", "limit": "length"}
        timings = answer.get("timings") or {}
        return Drawn(
            text=str(answer["content"]) + str(answer.get("stopping_word") or ""),
            end=ends[answer["stop_type"]],
            token_ids=tuple(int(token) for token in answer.get("tokens") or ()),
            num_tokens=int(answer["tokens_predicted"]),
            whole=False,
            prompt_tokens=int(answer["tokens_evaluated"]) if first else None,
            cached_tokens=int(timings["cache_n"]) if first and "cache_n" in timings else None,
        )


class SGLang(Wire):
    """SGLang's own format. A stream says again with every event all that is drawn so far, unless the server was started
    to send what is added only."""

    streams = True

    @property
    def url(self) -> str:
        return f"{self.address.root}/generate"

    def body(self, request: Request) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            **self.profile.sampling_fields(request.sampling),
            "max_new_tokens": request.limit,
            "stop": stops(request),
            "no_stop_trim": True,
            "n": request.n,
        }
        if request.seed is not None:
            sampling["sampling_seed"] = request.seed
        wired = request.prompts[0].wired
        prompt = {"text": wired} if isinstance(wired, str) else {"input_ids": wired}
        return {**prompt, "sampling_params": sampling, "return_logprob": request.logprobs, "stream": False}

    def streamed(self, request: Request) -> dict[str, Any]:
        return {**self.body(request), "stream": True}

    def delta(self, event: dict[str, Any]) -> list[tuple[int, Delta]]:
        told = event["meta_info"]
        ids = tuple(int(token) for token in event["output_ids"])
        delta = Delta(
            text=str(event["text"] or ""),
            token_ids=ids,
            logprobs=tuple(float(value[0]) for value in told.get("output_token_logprobs") or ()),
            finish=None if told["finish_reason"] is None else str(told["finish_reason"]["type"]),
            so_far=len(ids) == int(told["completion_tokens"]),
            count=int(told["completion_tokens"]),
        )
        usage = {
            "prompt_tokens": told["prompt_tokens"],
            "prompt_tokens_details": {"cached_tokens": told.get("cached_tokens")},
        }
        return [*counted(usage), (int(event.get("index") or 0), delta)]

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        answers = answer if isinstance(answer, list) else [answer]
        return [self._drawn(one, first=i == 0) for i, one in enumerate(answers)]

    def _drawn(self, answer: Mapping[str, Any], first: bool) -> Drawn:
        told = answer["meta_info"]
        reason = told["finish_reason"]
        end: StepEnd = "length"
        if reason["type"] == "stop":
            end = "step" if isinstance(reason.get("matched"), str) else "eos"
        elif reason["type"] != "length":
            raise BadResponseError(f"{self.url} broke off: {reason}")
        drawn = told.get("output_token_logprobs")
        return Drawn(
            text=str(answer["text"]),
            end=end,
            token_ids=tuple(int(token) for token in answer.get("output_ids") or ()),
            num_tokens=int(told["completion_tokens"]),
            logprob=sum(float(value[0]) for value in drawn) if drawn else None,
            prompt_tokens=int(told["prompt_tokens"]) if first else None,
            cached_tokens=int(told["cached_tokens"]) if first and "cached_tokens" in told else None,
        )


class TGI(Wire):
    """Text Generation Inference's own format. Prompts are text."""

    @property
    def url(self) -> str:
        return f"{self.address.root}/generate"

    def body(self, request: Request) -> dict[str, Any]:
        s = request.sampling
        fields = self.profile.sampling_fields(s)
        parameters: dict[str, Any] = {
            "do_sample": s.temperature > 0,  # its temperature must be above 0, its top_p below 1, its top_k above 0
            "temperature": fields["temperature"] or None,
            "top_p": fields["top_p"] if s.top_p < 1 else None,
            "top_k": fields["top_k"] or None,
            "typical_p": None,
            "repetition_penalty": None,
            "frequency_penalty": None,
            "max_new_tokens": request.limit,
            "stop": stops(request),
            "details": True,
            "return_full_text": False,
            "truncate": None,
            "seed": request.seed,
        }
        return {"inputs": request.prompts[0].wired, "parameters": parameters}

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        one = answer[0] if isinstance(answer, list) else answer
        details = one["details"]
        ends: Mapping[str, StepEnd] = {"eos_token": "eos", "stop_sequence": "step", "length": "length"}
        end = ends[details["finish_reason"]]
        tokens = details.get("tokens") or []
        text = "".join(str(token["text"]) for token in tokens if not token.get("special")) or str(one["generated_text"])
        return [
            Drawn(
                text=text,
                end=end,
                num_tokens=int(details["generated_tokens"]),
                logprob=sum(float(token["logprob"]) for token in tokens) if tokens else None,
                prompt_tokens=len(details["prefill"]) if details.get("prefill") else None,
            )
        ]


class Ollama(Wire):
    """Ollama's own format, its template switched off. It does not tell what ended an answer: cut on this side."""

    streams = True

    @property
    def url(self) -> str:
        return f"{self.address.root}/api/generate"

    def body(self, request: Request) -> dict[str, Any]:
        options = {**self.profile.sampling_fields(request.sampling), "num_predict": request.limit}
        if sent := stops(request):
            options["stop"] = sent
        if request.seed is not None:
            options["seed"] = request.seed
        return {
            "model": self.model,
            "prompt": request.prompts[0].wired,
            "raw": True,
            "stream": request.cut,
            "options": options,
        }

    def streamed(self, request: Request) -> dict[str, Any]:
        return self.body(request)

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        ends: Mapping[str, StepEnd] = {"stop": "eos", "length": "length"}
        return [
            Drawn(
                text=str(answer["response"]),
                end=ends[answer["done_reason"]],
                num_tokens=int(answer["eval_count"]),
                prompt_tokens=int(answer["prompt_eval_count"]) if "prompt_eval_count" in answer else None,
            )
        ]

    def delta(self, event: dict[str, Any]) -> list[tuple[int, Delta]]:
        text = str(event.get("response") or "")
        if not event.get("done"):
            return [(0, Delta(text))]
        usage = {"completion_tokens": event.get("eval_count"), "prompt_tokens": event.get("prompt_eval_count")}
        return [(0, Delta(text, finish=event["done_reason"])), *counted(usage)]


WIRES: Mapping[str, type[Wire]] = MappingProxyType(
    {
        "completions": Completions,
        "chat": Chat,
        "llama.cpp": LlamaCpp,
        "sglang": SGLang,
        "tgi": TGI,
        "ollama": Ollama,
    }
)
"""The formats by name."""
