"""How requests ask for scores, and what a response contains: one small class per format.

    pooling       POST /pooling           vLLM, `--runner pooling`: two numbers at each token or each tag
    completions   POST /v1/completions    vLLM, a plain language model: `logprob_token_ids`
    generate      POST /generate          SGLang, a plain language model: `token_ids_logprob`
    completion    POST /completion        llama.cpp, a plain language model: `logit_bias`

The last three request the probabilities of two next tokens after the text up to each step. The server has the text
before the step in its prefix cache. A text with several new steps takes one request after the other, because prefixes
that a server reads side by side do not find each other in the cache.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any, ClassVar

from motes.core import Usage
from motes.errors import BadResponseError
from motes.rewards.reading import Reading
from motes.transport import MALFORMED, Address, Client, unknown_form, value_at, whole_number_of

BIAS = 100.0
"""Number that is added to the two logits, so that they become the two largest."""


class Route(ABC):
    """A way to score texts. `words` are the tokens of bad and good, if the head is a language model's."""

    path: ClassVar[str]  # below the server's root
    start: ClassVar[str]  # the command that starts a server with this route
    texts_per_call: ClassVar[int] = 1
    extra_tokens: ClassVar[int] = 1  # of the context, which a request takes in addition to its text
    has_cache: ClassVar[bool] = True  # whether the server's prefix cache serves this route

    def __init__(self, client: Client, address: Address, model: str, words: tuple[int, int] | None) -> None:
        self.client = client
        self.address = address
        self.model = model
        self.words = words or (0, 0)
        self.counts_cached = False  # whether the last response contained the number of tokens from the cache

    @property
    def url(self) -> str:
        return f"{self.address.root}/{self.path}"

    def rounds(self, reading: Reading) -> int:
        """Number of requests for a text, one after the other. Texts with the same number share requests."""
        return len(reading.positions)

    @abstractmethod
    async def read(self, readings: Sequence[Reading]) -> list[list[float]]:
        """The scores at each text's positions. Sets `Reading.usage`, the cost of reading it.

        Raises:
            UnknownFormError: a response has another form.
            BadResponseError: it contains no scores.
        """


class Pooling(Route):
    """A head of two logits at each token. The prefix cache does not serve this route: it reads whole texts."""

    path = "pooling"
    start = "vllm serve MODEL --runner pooling"
    texts_per_call = 64
    extra_tokens = 0
    has_cache = False

    def rounds(self, reading: Reading) -> int:
        return 1

    async def read(self, readings: Sequence[Reading]) -> list[list[float]]:
        body = {
            "model": self.model,
            "task": "token_classify",
            "input": [reading.ids for reading in readings],
            "add_special_tokens": False,
            "use_activation": True,
            "encoding_format": "float",
        }

        def read(response: Any) -> list[list[float]]:
            try:
                rows = [entry["data"] for entry in _in_order(response["data"])]
                return [self._scores_at_positions(row, reading) for row, reading in zip(rows, readings, strict=True)]
            except MALFORMED as error:
                raise unknown_form(self.url, f"{type(error).__name__}: {error}", response) from error

        num_tokens = sum(len(reading.ids) for reading in readings)
        scores: list[list[float]] = await self.client.post(self.url, body, read=read, num_tokens=num_tokens)
        for reading in readings:
            reading.usage = Usage(reward_tokens=len(reading.ids))
        return scores

    def _scores_at_positions(self, rows: Sequence[Sequence[float]], reading: Reading) -> list[float]:
        """(positions,) scores, from a row for each token or for each tag, depending on how the server was started."""
        tag = reading.ids[reading.positions[-1]]
        if len(rows) == len(reading.ids):
            selected = [rows[position] for position in reading.positions]
        else:
            tags = [position for position, token in enumerate(reading.ids) if token == tag]
            if len(rows) != len(tags):
                raise BadResponseError(
                    f"{self.url} gave {len(rows)} rows for a text of {len(reading.ids)} tokens with {len(tags)} tags: "
                    f"start the server with --pooler-config '{{\"step_tag_id\": {tag}}}'"
                )
            selected = [rows[tags.index(position)] for position in reading.positions]
        return [self._probability(row) for row in selected]

    def _probability(self, row: Sequence[float]) -> float:
        bad, good = map(float, row)
        if not (0 <= bad <= 1 and 0 <= good <= 1 and abs(bad + good - 1) < 0.02):
            raise BadResponseError(
                f"{self.url} gave {list(row)} instead of the probabilities of bad and good: is it a process "
                "reward model of Qwen's family, and is no other activation set by --pooler-config?"
            )
        return good


class NextTokenRoute(Route):
    """The probability of one token against another after the text up to each position."""

    async def read(self, readings: Sequence[Reading]) -> list[list[float]]:
        values: list[list[float]] = [[] for _ in readings]
        for turn in range(len(readings[0].positions)):
            prompts = [reading.ids[: reading.positions[turn] + 1] for reading in readings]
            read = partial(self._read, prompts=prompts)
            lengths = [len(prompt) for prompt in prompts]
            scores, num_cached = await self.client.post(
                self.url, self.body(prompts), read=read, num_tokens=sum(lengths)
            )
            self.counts_cached = num_cached is not None
            cached = _shares(num_cached or 0, lengths)
            for i, (reading, prompt) in enumerate(zip(readings, prompts, strict=True)):
                values[i].append(scores[i])
                reading.usage += Usage(reward_tokens=len(prompt) - cached[i], reward_tokens_cached=cached[i])
        return values

    def _read(self, response: Any, prompts: Sequence[list[int]]) -> tuple[list[float], int | None]:
        """The scores of these texts, and the number of tokens from the cache, if the response contains it."""
        try:
            pairs, cached = self.logprobs(response)
            scores = [1 / (1 + math.exp(min(bad - good, 700.0))) for bad, good in pairs]
            num_cached = whole_number_of(cached)
        except MALFORMED as error:
            raise unknown_form(self.url, f"{type(error).__name__}: {error}", response) from error
        if len(scores) != len(prompts) or not all(map(math.isfinite, scores)):
            raise unknown_form(self.url, f"{len(scores)} answers instead of {len(prompts)}", response)
        return scores, num_cached

    @abstractmethod
    def body(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """The JSON body of a request for these texts, at most `texts_per_call`."""

    @abstractmethod
    def logprobs(self, response: Any) -> tuple[list[tuple[float, float]], Any]:
        """The log-probabilities of bad and good for each text, up to a common addend; and the server's number of tokens
        from the cache, for all texts together, of any type."""

    def pair(self, logprobs: Mapping[int, float]) -> tuple[float, float]:
        """The log-probabilities of the two tokens, bad and good."""
        bad, good = self.words
        return float(logprobs[bad]), float(logprobs[good])


class Completions(NextTokenRoute):
    """vLLM. Its option `--logprobs-mode` chooses log-probabilities before or after the sampling parameters. Neutral
    parameters make both equal."""

    start = "vllm serve MODEL"
    texts_per_call = 64

    @property
    def url(self) -> str:
        return f"{self.address.base}/completions"

    def body(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(prompts),
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": len(self.words),
            "logprob_token_ids": list(self.words),
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }

    def logprobs(self, response: Any) -> tuple[list[tuple[float, float]], Any]:
        pairs = []
        for choice in _in_order(response["choices"]):
            first = choice["logprobs"]["top_logprobs"][0]
            logprobs = {int(name.removeprefix("token_id:")): value for name, value in first.items()}
            if not logprobs.keys() >= set(self.words):
                raise BadResponseError(
                    f"{self.url} does not return the probabilities of the requested tokens "
                    "(logprob_token_ids): use a newer vLLM"
                )
            pairs.append(self.pair(logprobs))
        return pairs, value_at(response, ("usage", "prompt_tokens_details", "cached_tokens"))


class Generate(NextTokenRoute):
    """SGLang."""

    path = "generate"
    start = "python -m sglang.launch_server --model-path MODEL"

    def body(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
        return {
            "input_ids": prompts[0],
            "sampling_params": {"max_new_tokens": 1, **neutral},
            "return_logprob": True,
            "logprob_start_len": -1,
            "token_ids_logprob": list(self.words),
            "stream": False,
        }

    def logprobs(self, response: Any) -> tuple[list[tuple[float, float]], Any]:
        meta = response["meta_info"]
        logprobs = {int(token): value for value, token, *_ in meta["output_token_ids_logprobs"][0]}
        return [self.pair(logprobs)], meta.get("cached_tokens")


class Completion(NextTokenRoute):
    """llama.cpp. It returns the likeliest tokens only. Adding the same number to both logits makes these two the
    likeliest, and does not change the ratio of their probabilities."""

    path = "completion"
    start = "llama-server -m MODEL.gguf"

    def body(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        return {
            "prompt": prompts[0],
            "n_predict": 1,
            "n_probs": len(self.words),
            "post_sampling_probs": True,
            "logit_bias": [[token, BIAS] for token in self.words],
            "samplers": ["temperature"],
            "temperature": 1.0,
            "cache_prompt": True,
        }

    def logprobs(self, response: Any) -> tuple[list[tuple[float, float]], Any]:
        tokens = response["completion_probabilities"][0]["top_probs"]
        logprobs = {int(token["id"]): math.log(max(float(token["prob"]), 1e-45)) for token in tokens}
        return [self.pair(logprobs)], value_at(response, ("timings", "cache_n"))


ROUTES: Mapping[str, Mapping[str, type[Route]]] = MappingProxyType(
    {
        "vllm": {"pair": Pooling, "next": Completions},
        "sglang": {"next": Generate},
        "llama.cpp": {"next": Completion},
    }
)
"""The routes by engine, then by the kind of head."""


def _in_order(items: Sequence[Any]) -> list[Any]:
    """The items of a response in the order of their texts. Raises ValueError if an index is missing or occurs twice."""
    by_index = {int(item["index"]): item for item in items}
    if len(by_index) != len(items) or by_index.keys() != set(range(len(items))):
        raise ValueError("the indices are not those of the texts")
    return [by_index[index] for index in range(len(items))]


def _shares(total: int, lengths: Sequence[int]) -> list[int]:
    """(n,) whole numbers that add up to `total`, in proportion to `lengths`, and none larger than its length."""
    total = min(total, sum(lengths))
    ends = [total * end // sum(lengths) for end in accumulate(lengths)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
