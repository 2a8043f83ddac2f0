"""The engines: a profile of each, and the formats of the engines whose own format returns more than OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from motes.models.served.messages import pieces_of
from motes.models.served.prompts import LlamaCppRenderer, SGLangRenderer, TGIRenderer, VLLMRenderer
from motes.models.served.wires import (
    Chat,
    Completions,
    Delta,
    Profile,
    Request,
    Wire,
    certainty_of,
    logprobs_of,
    token_ids_of,
)
from motes.thoughts import HARMONY
from motes.transport import whole_number_of
from motes.transport.server import UNKNOWN


class LlamaCpp(Wire):
    """llama.cpp's own format. The text ends before a stop string, the tokens contain it.

    Its log-probabilities are those of the model at temperature 1, whatever the temperature of sampling. The last tokens
    have none, as many as a stop string has: where steps need them, this side cuts the steps (`logprobs_of_stops`).
    A stream leaves out the ids and log-probabilities of tokens that end within a character.
    """

    route = "completion"
    limit_field = "n_predict"
    event_key = "content"
    count_paths = ("tokens_evaluated", "tokens_predicted", "timings.cache_n")

    def _body(self, request: Request) -> dict[str, Any]:
        body = {
            "prompt": request.prompts[0].content,
            "stop": [],
            "return_tokens": True,
            "cache_prompt": True,
            # The order of all other engines: temperature first, then filters on what it leaves.
            "samplers": ["temperature", "top_k", "top_p", "min_p"],
            "stream": request.is_streamed,
            **self._options(request),
        }
        if request.in_harmony:
            body["preserved_tokens"] = [token for token in HARMONY if token not in ("<|return|>", "<|call|>")]
        if request.logprobs:
            body |= {"n_probs": max(1, request.sampling.top_logprobs), "post_sampling_probs": False}
        return body

    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        tokens = token_ids_of(item.get("tokens"))
        probabilities = (item.get("completion_probabilities") or [])[: len(tokens)]
        is_complete = tuple(int(token["id"]) for token in probabilities) == tokens
        is_last = bool(item.get("stop", True))  # false in all pieces of a stream but the last
        finish = item["stop_type"] if is_last else None
        stop = str(item.get("stopping_word") or "")
        return Delta(
            index=whole_number_of(item.get("index")),
            pieces=pieces_of(str(item["content"]) + stop),
            token_ids=tokens,
            logprobs=logprobs_of([token["logprob"] for token in probabilities]) if is_complete else (),
            certainty=certainty_of(
                [token["logprob"] for token in probabilities],
                [[each["logprob"] for each in token.get("top_logprobs") or ()] for token in probabilities],
                request,
            ),
            finish=finish,
            stop=stop if finish == "word" else None,
            num_tokens=whole_number_of(item.get("tokens_predicted")),
        )


class SGLang(Wire):
    """SGLang's own format. Each event of a stream repeats the whole answer so far, unless the server was started to
    send new tokens only."""

    route = "generate"
    limit_field = "max_new_tokens"
    seed_field = "sampling_seed"
    has_whole_tokens = True
    event_key = "meta_info"
    count_paths = ("meta_info.prompt_tokens", "meta_info.completion_tokens", "meta_info.cached_tokens")

    def _body(self, request: Request) -> dict[str, Any]:
        prompt, text = request.prompts[0], {"skip_special_tokens": False} if request.in_harmony else {}
        return {
            "text" if prompt.ids is None else "input_ids": prompt.content,
            "sampling_params": {"stop": [], "no_stop_trim": True, "n": 1, **text, **self._options(request)},
            "return_logprob": request.logprobs,
            "top_logprobs_num": request.sampling.top_logprobs,
            "stream": request.is_streamed,
        }

    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        meta = item["meta_info"]
        reason = meta["finish_reason"]
        finish, matched = reason, None
        if isinstance(reason, dict):
            finish, matched = str(reason["type"]), reason.get("matched")
        # In a stream, the number of ids shows whether the text is the whole answer so far.
        ids = token_ids_of(item["output_ids"] if request.is_streamed else item.get("output_ids"))
        num_tokens = whole_number_of(meta.get("completion_tokens"))
        logprobs = [entry[0] for entry in meta.get("output_token_logprobs") or ()]
        tops = [[entry[0] for entry in top or ()] for top in meta.get("output_top_logprobs") or ()]
        return Delta(
            index=whole_number_of(item.get("index")),
            pieces=pieces_of(str(item["text"] or "")),
            token_ids=ids,
            logprobs=logprobs_of(logprobs),
            certainty=certainty_of(logprobs, tops, request),
            finish=finish,
            stop=matched,
            is_cumulative=len(ids) == num_tokens,
            num_tokens=num_tokens,
        )


class TGI(Wire):
    """Text Generation Inference's own format. Prompts are text."""

    route = "generate"
    limit_field = "max_new_tokens"
    streams = False
    count_paths = ("", "details.generated_tokens", "")

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        parameters = {
            "stop": [],
            "seed": None,
            **self._options(request),
            "do_sample": sampling.temperature > 0,
            # TGI refuses a temperature of 0, a top_p of 1 and a top_k of 0.
            "temperature": sampling.temperature or None,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "top_k": sampling.top_k or None,
            "typical_p": None,
            "repetition_penalty": None,
            "frequency_penalty": None,
            "details": True,
            "top_n_tokens": sampling.top_logprobs or None,
            "return_full_text": False,
            "truncate": None,
        }
        return {"inputs": request.prompts[0].content, "parameters": parameters}

    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        details = item["details"]
        tokens = details.get("tokens") or []
        text = "".join(str(token["text"]) for token in tokens if request.in_harmony or not token.get("special"))
        return Delta(
            pieces=pieces_of(text or str(item["generated_text"])),
            logprobs=logprobs_of([token.get("logprob") for token in tokens]),
            certainty=certainty_of(
                [token.get("logprob") for token in tokens],
                [[each.get("logprob") for each in top] for top in details.get("top_tokens") or ()],
                request,
            ),
            finish=details["finish_reason"],
            stop="" if details["finish_reason"] == "stop_sequence" else None,  # some stop string, it does not say which
            num_tokens=whole_number_of(details.get("generated_tokens")) or len(tokens),
        )


class Ollama(Wire):
    """Ollama's own format, without its template. It does not report stop strings: this side cuts the answer."""

    route = "api/generate"
    limit_field = "num_predict"
    count_paths = ("prompt_eval_count", "eval_count", "")

    def _body(self, request: Request) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": request.prompts[0].content,
            "raw": True,
            "stream": request.is_streamed,
            "options": self._options(request),
        }

    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        response = item.get("response") if request.is_streamed else item["response"]
        num_tokens = whole_number_of(item.get("eval_count"))
        finish = item.get("done_reason")
        if item.get("done") and not finish:  # older versions only say that the answer is done
            finish = "length" if (num_tokens or 0) >= request.limit else "stop"
        pieces = pieces_of({"thinking": item.get("thinking"), "content": response})
        return Delta(pieces=pieces, finish=finish, num_tokens=num_tokens)


BOTH = ("top_k", "min_p")
NO_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "vllm": Profile(
            Completions,
            VLLMRenderer,
            filters=BOTH,
            keep_all=-1,
            neutral={**NO_PENALTIES, "repetition_penalty": 1.0},
            tells_end=True,
            keeps_stop="include_stop_str_in_output",
            seeds=True,
            choices="n",
            choices_differ=True,  # answer i has the seed + i
            shares_prefixes=True,
            several_prompts=True,
            takes_ids=True,
            logprobs=True,
            prefill={"add_generation_prompt": False, "continue_final_message": True},
            thinking_field="thinking_token_budget",
        ),
        "sglang": Profile(
            SGLang,
            SGLangRenderer,
            filters=BOTH,
            keep_all=-1,
            neutral={**NO_PENALTIES, "repetition_penalty": 1.0},
            max_stops=None,
            tells_end=True,
            keeps_stop="no_stop_trim",
            seed_below=2**31,  # `seeds` in deterministic mode only, see `probe`
            shares_prefixes=True,
            choices="n",
            takes_ids=True,
            logprobs=True,
            prefill={"continue_final_message": True},
        ),
        "llama.cpp": Profile(
            LlamaCpp,
            LlamaCppRenderer,
            filters=BOTH,
            neutral={**NO_PENALTIES, "repeat_penalty": 1.0, "typical_p": 1.0},
            max_stops=None,
            tells_end=True,
            seeds=True,
            seed_below=2**32 - 1,  # this number itself asks for a random seed
            choices="n_cmpl",
            slots="total_slots",
            shares_prefixes=True,
            choices_differ=True,
            takes_ids=True,
            logprobs_of_stops=False,
            prefill={},
        ),
        "tgi": Profile(
            TGI, TGIRenderer, filters=("top_k",), tells_end=True, seeds=True, logprobs=True, most_top_logprobs=5
        ),
        # Its field `temperature` alone has no effect: the model's own configuration says whether to sample.
        "transformers": Profile(
            Completions, filters=BOTH, packed_as="generation_config", neutral={"repetition_penalty": 1.0}
        ),
        "ollama": Profile(
            Ollama,
            filters=BOTH,
            neutral={**NO_PENALTIES, "repeat_penalty": 1.0, "typical_p": 1.0},
            max_stops=None,
            seeds=True,
            seed_below=2**31,
            prefill={},
        ),
        "openai": Profile(
            Chat,
            neutral=NO_PENALTIES,
            choices="n",
            most_choices=128,
            chat_limit="max_completion_tokens",
        ),
        UNKNOWN: Profile(Completions),
    }
)
"""The engines of `motes.transport.server.SIGNS` by name. Requests to an unknown server have portable fields only."""
