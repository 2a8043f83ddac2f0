"""What is known of each engine before it is asked. Whether it holds of the server at hand is probed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from motes.errors import ConfigurationError
from motes.http.server import UNKNOWN
from motes.types import Sampling

NO_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True)
class Profile:
    """One engine.

    Attributes:
        wire: the format of requests that continue a prompt, a name in `WIRES`; None: only chat.
        names: what it calls `top_k` and `min_p`; what is missing cannot be sent, and is refused unless it is neutral.
        keep_all: the value of top_k that keeps every token.
        packed_as: the field that all of these stand in, as JSON and with `do_sample`; None: each is a field of its own.
        neutral: sent with every request, so that nothing is left to the server's or the model's own defaults.
        max_stops: stop strings it takes; more delimiters than that are found on this side, None: any number.
        tells_end: whether its wire says which of a delimiter and the end of sequence ended an answer.
        keeps_stop: what asks OpenAI's formats to keep the stop string that ended an answer, and so to say that one
            did; None: there is no such thing, and these formats do not tell.
        seeds: whether a request's seed decides its tokens; `seed_below`: seeds it takes.
        choices: what it calls the number of answers to one prompt; None: one at a time.
        most_choices: answers to one prompt at most; `slots`: where what the engine tells of itself lowers that.
        choices_differ: whether several answers that one seed draws differ.
        several_prompts: whether one request takes several prompts.
        stream_interval: whether it can be told to send a stream in large pieces.
        takes_ids: whether prompts may be token ids.
        logprobs: whether log-probabilities of drawn tokens are cheap enough to ask for always. Otherwise they are asked
            for where they can be of use: at temperature 1, unfiltered.
        logprobs_of_stops: whether those of a stop string's tokens are among them.
        prefill: what a chat request says so that the last message is continued; None: whether it is must be tried.
        closed: whether it is known to continue nothing: not tried.
        chat_limit: what a chat request calls the limit on tokens.
        shares_prefixes: whether it keeps what it has computed of a prompt for the next one, unless it is told not to.
    """

    wire: str | None = "completions"
    names: Mapping[str, str] = field(default_factory=dict)
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
    closed: bool = False
    chat_limit: str = "max_tokens"
    shares_prefixes: bool = False

    def sampling_fields(self, sampling: Sampling) -> dict[str, Any]:
        """Every field of a sampling but its limits and delimiters.

        Raises:
            ConfigurationError: the engine has no such field.
        """
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, **self.neutral}
        for name, value in (("top_k", sampling.top_k), ("min_p", sampling.min_p)):
            if name in self.names:
                fields[self.names[name]] = self.keep_all if name == "top_k" and not value else value
            elif value:
                raise ConfigurationError(f"this server cannot sample with {name}: leave it out, or use another server")
        if self.packed_as is not None:
            drawn = {"do_sample": True, **fields} if sampling.temperature > 0 else {"do_sample": False}
            return {self.packed_as: json.dumps(drawn)}
        return fields


BOTH = {"top_k": "top_k", "min_p": "min_p"}

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "vllm": Profile(
            names=BOTH,
            keep_all=-1,
            neutral={**NO_PENALTIES, "repetition_penalty": 1.0},
            tells_end=True,
            keeps_stop="include_stop_str_in_output",
            seeds=True,
            choices="n",
            choices_differ=True,  # child i is drawn by seed + i
            shares_prefixes=True,
            several_prompts=True,
            stream_interval=True,
            takes_ids=True,
            logprobs=True,
            prefill={"add_generation_prompt": False, "continue_final_message": True},
        ),
        "sglang": Profile(
            wire="sglang",
            names=BOTH,
            keep_all=-1,
            neutral={**NO_PENALTIES, "repetition_penalty": 1.0},
            max_stops=None,
            tells_end=True,
            keeps_stop="no_stop_trim",
            seed_below=2**31,  # seeds: in deterministic mode only, which is probed
            shares_prefixes=True,
            choices="n",
            takes_ids=True,
            logprobs=True,
            prefill={"continue_final_message": True},
        ),
        "llama.cpp": Profile(
            wire="llama.cpp",
            names=BOTH,
            neutral={**NO_PENALTIES, "repeat_penalty": 1.0, "typical_p": 1.0},
            max_stops=None,
            tells_end=True,
            seeds=True,
            seed_below=2**32 - 1,  # the largest one means: a random one
            choices="n_cmpl",
            slots="total_slots",
            shares_prefixes=True,
            choices_differ=True,
            takes_ids=True,
            logprobs_of_stops=False,
            prefill={},
        ),
        "tgi": Profile(wire="tgi", names={"top_k": "top_k"}, tells_end=True, seeds=True, logprobs=True),
        # Its field `temperature` alone draws nothing: whether it draws is the model's own default.
        "transformers": Profile(names=BOTH, packed_as="generation_config", neutral={"repetition_penalty": 1.0}),
        "ollama": Profile(
            wire="ollama",
            names=BOTH,
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
            closed=True,
            chat_limit="max_completion_tokens",
        ),
        UNKNOWN: Profile(),
    }
)
"""The engines by name, those of `motes.http.server.SIGNS`. An unknown server is asked for the portable core only."""
