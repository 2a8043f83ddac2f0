"""The formats of engines that say more in their own than in OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from motes.models.served.ends import end_of
from motes.models.served.messages import Piece, Writer, pieces_of
from motes.models.served.wires import (
    Chat,
    Completions,
    Delta,
    Drawn,
    Request,
    Wire,
    cached_tokens,
    number,
    of_the_call,
    stops,
)


class LlamaCpp(Wire):
    """llama.cpp's own format. Text ends before a stop string; the tokens hold it.

    Its log-probabilities are those of the model at temperature 1, whatever is drawn from. They leave out as many tokens
    as a stop string has: where they are wanted, steps are cut on this side (`Profile.logprobs_of_stops`). A stream
    leaves out tokens that end within a character, and nothing tells their log-probabilities.
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
        if request.logprobs:
            body |= {"n_probs": 1, "post_sampling_probs": False}
        if request.n > 1 and self.profile.choices:
            body[self.profile.choices] = request.n
        if request.seed is not None:
            body["seed"] = request.seed
        return body

    def streamed(self, request: Request) -> dict[str, Any]:
        return {**self.body(request), "stream": True}

    def delta(self, event: dict[str, Any]) -> list[tuple[int | None, Delta]]:
        if "content" not in event:
            return []
        tokens = tuple(int(token) for token in event.get("tokens") or ())
        told = () if event.get("stop") else self._logprobs(event, tokens)
        count = number(event.get("tokens_predicted"))
        delta = Delta(str(event["content"]), token_ids=tokens, logprobs=told, count=count)
        index = number(event.get("index"))
        if not event.get("stop"):
            return [(index, delta)]
        return [*of_the_call(self._usage(event)), (index, replace(delta, finish=event["stop_type"]))]

    def spent(self, answer: Any) -> tuple[int, int]:
        answers = answer if isinstance(answer, list) else [answer]
        totals = [super(LlamaCpp, self).spent({"usage": self._usage(one)}) for one in answers if isinstance(one, dict)]
        return max((prompt for prompt, _ in totals), default=0), sum(drawn for _, drawn in totals)

    def _usage(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """In OpenAI's form."""
        return {
            "prompt_tokens": answer.get("tokens_evaluated"),
            "completion_tokens": answer.get("tokens_predicted"),
            "prompt_tokens_details": {"cached_tokens": (answer.get("timings") or {}).get("cache_n")},
        }

    def _logprobs(self, answer: Mapping[str, Any], tokens: tuple[int, ...]) -> tuple[float, ...]:
        """Those of the tokens, where each of them has one."""
        told = answer.get("completion_probabilities") or ()
        if tuple(int(token["id"]) for token in told) != tokens:
            return ()
        return tuple(float(token["logprob"]) for token in told)

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        answers = sorted(answer if isinstance(answer, list) else [answer], key=lambda one: int(one.get("index") or 0))
        return [self._drawn(one, first=i == 0) for i, one in enumerate(answers)]

    def _drawn(self, answer: Mapping[str, Any], first: bool) -> Drawn:
        usage = self._usage(answer) if first else {}
        tokens = tuple(int(token) for token in answer.get("tokens") or ())
        logprobs = self._logprobs(answer, tokens)
        return Drawn(
            text=str(answer["content"]) + str(answer.get("stopping_word") or ""),
            end=end_of(answer["stop_type"], self.url, by_text=answer["stop_type"] == "word"),
            token_ids=tokens,
            logprob=sum(logprobs) if logprobs else None,
            num_tokens=number(answer.get("tokens_predicted")) or 0,
            whole=False,
            prompt_tokens=number(usage.get("prompt_tokens")),
            cached_tokens=cached_tokens(usage),
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

    def delta(self, event: dict[str, Any]) -> list[tuple[int | None, Delta]]:
        if "meta_info" not in event:
            return []
        told = event["meta_info"]
        ids = tuple(int(token) for token in event["output_ids"])
        count = number(told.get("completion_tokens"))
        reason, stop = self._reason(told)
        delta = Delta(
            text=str(event["text"] or ""),
            token_ids=ids,
            logprobs=self._logprobs(told),
            finish=reason,
            stop=stop,
            so_far=len(ids) == count,
            count=count,
        )
        return [*of_the_call(self._usage(told)), (number(event.get("index")), delta)]

    def spent(self, answer: Any) -> tuple[int, int]:
        answers = answer if isinstance(answer, list) else [answer]
        told = [one["meta_info"] for one in answers if isinstance(one, dict) and isinstance(one.get("meta_info"), dict)]
        totals = [super(SGLang, self).spent({"usage": self._usage(one)}) for one in told]
        return max((prompt for prompt, _ in totals), default=0), sum(drawn for _, drawn in totals)

    def _usage(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """In OpenAI's form."""
        return {
            **{name: told.get(name) for name in ("prompt_tokens", "completion_tokens")},
            "prompt_tokens_details": {"cached_tokens": told.get("cached_tokens")},
        }

    def _reason(self, told: Mapping[str, Any]) -> tuple[str | None, str | int | None]:
        """Why an answer ended, and the text or token that ended it."""
        reason = told["finish_reason"]
        if isinstance(reason, dict):
            return str(reason["type"]), reason.get("matched")
        return reason, None

    def _logprobs(self, told: Mapping[str, Any]) -> tuple[float, ...]:
        values = [entry[0] for entry in told.get("output_token_logprobs") or ()]
        return () if None in values else tuple(float(value) for value in values)

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        answers = answer if isinstance(answer, list) else [answer]
        return [self._drawn(one, request, first=i == 0) for i, one in enumerate(answers)]

    def _drawn(self, answer: Mapping[str, Any], request: Request, first: bool) -> Drawn:
        told = answer["meta_info"]
        reason, stop = self._reason(told)
        if reason is None:
            raise ValueError("an answer that has not ended")
        logprobs = self._logprobs(told)
        num_tokens = number(told.get("completion_tokens")) or 0
        usage = self._usage(told) if first else {}
        return Drawn(
            text=str(answer["text"] or ""),
            end=Delta(finish=reason, stop=stop).end(request, self.url, num_tokens),
            token_ids=tuple(int(token) for token in answer.get("output_ids") or ()),
            num_tokens=num_tokens,
            logprob=sum(logprobs) if logprobs else None,
            prompt_tokens=number(usage.get("prompt_tokens")),
            cached_tokens=cached_tokens(usage),
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
        reason = details["finish_reason"]
        tokens = details.get("tokens") or []
        num_tokens = number(details.get("generated_tokens")) or len(tokens)
        by_text = reason == "stop_sequence" and bool(stops(request))
        text = "".join(str(token["text"]) for token in tokens if not token.get("special")) or str(one["generated_text"])
        logprobs = [token.get("logprob") for token in tokens]
        return [
            Drawn(
                text=text,
                end=end_of(reason, self.url, is_full=num_tokens >= request.limit, by_text=by_text),
                num_tokens=num_tokens,
                logprob=None if None in logprobs or not logprobs else sum(map(float, logprobs)),
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
        drawn = number(answer.get("eval_count")) or 0
        reason = answer.get("done_reason") if "response" in answer else answer["response"]
        end = end_of(reason, self.url, is_full=drawn >= request.limit)
        writer = Writer()
        text = writer.write(self._pieces(answer))
        return [
            Drawn(
                text=text if end == "length" else text + writer.close(),
                end=end,
                num_tokens=drawn,
                prompt_tokens=number(answer.get("prompt_eval_count")),
            )
        ]

    def delta(self, event: dict[str, Any]) -> list[tuple[int | None, Delta]]:
        pieces = self._pieces(event)
        if not event.get("done"):
            return [(None, Delta(pieces=pieces))]
        finish = event.get("done_reason") or "stop"  # older ones say no more than that it is done
        return [(None, Delta(pieces=pieces, finish=finish)), *of_the_call(self._usage(event))]

    def spent(self, answer: Any) -> tuple[int, int]:
        return super().spent({"usage": self._usage(answer)} if isinstance(answer, dict) else {})

    def _usage(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """In OpenAI's form."""
        return {"completion_tokens": answer.get("eval_count"), "prompt_tokens": answer.get("prompt_eval_count")}

    def _pieces(self, answer: Mapping[str, Any]) -> tuple[Piece, ...]:
        return pieces_of({"thinking": answer.get("thinking"), "content": answer.get("response")})


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
