"""What is known of each engine in advance. `probe` finds out whether it holds for a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from motes.core import Sampling
from motes.errors import ConfigurationError
from motes.transport.server import UNKNOWN

NO_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True)
class Profile:
    """One engine.

    Attributes:
        wire: the format of requests that continue a prompt, a name in `WIRES`; None: it has chats only, and continues
            no message.
        filters: which of `top_k` and `min_p` a request can set. Setting one that is missing is an error.
        keep_all: its value of top_k that keeps every token.
        packed_as: the field with all parameters of sampling, as JSON with `do_sample`; None: a field for each.
        neutral: fields of every request that switch off the server's and the model's own defaults.
        max_stops: stop strings of a request at most; this side finds the ends of steps with more delimiters. None: any
            number.
        tells_end: whether its format says which of a delimiter and the end of sequence ended an answer.
        keeps_stop: the field that makes OpenAI's formats keep the stop string at the end of an answer, and so say that
            it ended the answer; None: there is none, and these formats do not say it.
        seeds: whether the seed of a request decides its tokens; `seed_below`: the smallest number that is no seed.
        choices: its name for the number of answers to one prompt; None: there is one answer.
        most_choices: answers to one prompt at most; `slots`: the field of the server's info that may lower that.
        choices_differ: whether several answers to one prompt differ where the request has a seed.
        several_prompts: whether a request can have several prompts.
        stream_interval: whether a request can ask for a stream in large pieces.
        takes_ids: whether prompts can be token ids.
        logprobs: whether log-probabilities cost little, so that all requests ask for them. Otherwise only those at
            temperature 1 without filters do, where methods can use them.
        logprobs_of_stops: whether they include those of the tokens of a stop string.
        prefill: fields of a chat request that make the server continue the last message; None: a trial has to show
            whether it does.
        chat_limit: its name for the limit on tokens in a chat request.
        shares_prefixes: whether it keeps what it has computed of a prompt for the next one, by default.
    """

    wire: str | None = "completions"
    filters: tuple[str, ...] = ()
    keep_all: int = 0
    packed_as: str | None = None
    neutral: Mapping[str, Any] = field(default_factory=dict)
    max_stops: int | None = 4
    tells_end: bool = False
    keeps_stop: str | None = None
    seeds: bool = False
    seed_below: int = 2**63
    choices: str | None = None
    most_choices: int = 1024
    slots: str | None = None
    choices_differ: bool = False
    several_prompts: bool = False
    stream_interval: bool = False
    takes_ids: bool = False
    logprobs: bool = False
    logprobs_of_stops: bool = True
    prefill: Mapping[str, Any] | None = None
    chat_limit: str = "max_tokens"
    shares_prefixes: bool = False

    def sampling_fields(self, sampling: Sampling) -> dict[str, Any]:
        """The fields of a request for these parameters, limits and delimiters left out.

        Raises:
            ConfigurationError: the engine has no such field.
        """
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, **self.neutral}
        for name, value in (("top_k", sampling.top_k), ("min_p", sampling.min_p)):
            if name in self.filters:
                fields[name] = self.keep_all if name == "top_k" and not value else value
            elif value:
                raise ConfigurationError(f"this server cannot sample with {name}: leave it out, or use another server")
        if self.packed_as is not None:
            packed = {"do_sample": True, **fields} if sampling.temperature > 0 else {"do_sample": False}
            return {self.packed_as: json.dumps(packed)}
        return fields


BOTH = ("top_k", "min_p")

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "vllm": Profile(
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
            stream_interval=True,
            takes_ids=True,
            logprobs=True,
            prefill={"add_generation_prompt": False, "continue_final_message": True},
        ),
        "sglang": Profile(
            wire="sglang",
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
            wire="llama.cpp",
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
        "tgi": Profile(wire="tgi", filters=("top_k",), tells_end=True, seeds=True, logprobs=True),
        # Its field `temperature` alone has no effect: the model's own configuration says whether to sample.
        "transformers": Profile(filters=BOTH, packed_as="generation_config", neutral={"repetition_penalty": 1.0}),
        "ollama": Profile(
            wire="ollama",
            filters=BOTH,
            neutral={**NO_PENALTIES, "repeat_penalty": 1.0, "typical_p": 1.0},
            max_stops=None,
            seeds=True,
            seed_below=2**31,
            prefill={},
        ),
        "openai": Profile(
            wire=None,
            neutral=NO_PENALTIES,
            choices="n",
            most_choices=128,
            chat_limit="max_completion_tokens",
        ),
        UNKNOWN: Profile(),
    }
)
"""The engines of `motes.transport.server.SIGNS` by name. Requests to an unknown server have portable fields only."""
