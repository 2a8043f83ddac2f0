"""The engines: their formats, and what is known of each in advance."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from motes.models.served.native import TGI, LlamaCpp, Ollama, SGLang
from motes.models.served.prompts import LlamaCppRenderer, SGLangRenderer, TGIRenderer, VLLMRenderer
from motes.models.served.wires import Chat, Completions, Profile
from motes.transport.server import UNKNOWN

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
            seed_below=2**32 - 1,  # which stands for a random seed
            choices="n_cmpl",
            slots="total_slots",
            shares_prefixes=True,
            choices_differ=True,
            takes_ids=True,
            logprobs_of_stops=False,
            prefill={},
        ),
        "tgi": Profile(TGI, TGIRenderer, filters=("top_k",), tells_end=True, seeds=True, logprobs=True),
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
