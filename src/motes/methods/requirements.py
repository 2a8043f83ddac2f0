"""Requirements of methods on the language model and the sampling, checked before the first token."""

from __future__ import annotations

from motes.core import Sampling
from motes.errors import ConfigurationError
from motes.protocols import LanguageModel, LanguageModelTraits, RewardModel, RewardModelTraits


def sampling_for(sampling: Sampling, *rewards: RewardModel | None) -> Sampling:
    """The sampling with which steps have all that the reward models read."""
    traits = list(map(RewardModelTraits, rewards))
    most = max([sampling.top_logprobs, *(each.top_logprobs for each in traits)])
    layers = {*sampling.hidden_layers, *(layer for each in traits for layer in each.hidden_layers)}
    if (most, layers) == (sampling.top_logprobs, set(sampling.hidden_layers)):
        return sampling
    return sampling.replace(top_logprobs=most, hidden_layers=tuple(sorted(layers)))


def require_certainty(lm: LanguageModel, sampling: Sampling) -> None:
    """Raise `ConfigurationError` if the sampling asks for `Step.certainty`, and the model declares that its steps lack
    it."""
    gives_certainty = LanguageModelTraits(lm).gives_certainty
    if sampling.top_logprobs and gives_certainty is not None and not gives_certainty(sampling):
        raise ConfigurationError(
            f"{lm!r} gives no log-probabilities of the likeliest tokens, from which its confidence is computed: use "
            "another reward model or method, a local model, or a server that returns them (`motes doctor URL`)"
        )


def require_hidden(lm: LanguageModel, sampling: Sampling) -> None:
    """Raise `ConfigurationError` if the sampling asks for `Step.hidden`, and the model's steps lack it."""
    if sampling.hidden_layers and not LanguageModelTraits(lm).gives_hidden:
        raise ConfigurationError(
            f"{lm!r} gives no hidden states, which a probe reads: use the local engine (hf:…), or let a copy of the "
            "model read the answers (probe:FOLDER?lm=hf:…)"
        )


def require_steps(lm: LanguageModel, sampling: Sampling) -> None:
    """Raise `ConfigurationError` if the model writes whole answers only, and an answer may have several steps."""
    if sampling.max_steps > 1 and not LanguageModelTraits(lm).continues_prefixes:
        raise ConfigurationError(
            f"{lm!r} writes whole answers only, it cannot continue one step by step: use a method that needs "
            "nothing else (greedy, majority, asc, bon, wbon, refine, pdr), or a server that completes a prefix "
            "(`motes doctor URL`)"
        )


def require_thinking(lm: LanguageModel, sampling: Sampling) -> None:
    """Raise `ConfigurationError` if thoughts have bounds, and the model writes whole answers without taking them."""
    traits = LanguageModelTraits(lm)
    if not sampling.bounds_thinking or traits.continues_prefixes:
        return
    if sampling.min_thinking_tokens or not traits.takes_thinking_budget:
        what = "min_thinking_tokens" if sampling.min_thinking_tokens else "max_thinking_tokens"
        raise ConfigurationError(
            f"{lm!r} writes whole answers only, and nothing here can bound its thoughts: leave out {what}, use a "
            "server that completes a prefix (`motes doctor URL`)"
            + (
                ""
                if sampling.min_thinking_tokens
                else ", or name the field of its requests that takes the budget, ?thinking_field=NAME"
            )
        )


def require_logprobs(lm: LanguageModel, sampling: Sampling) -> None:
    """Raise `ConfigurationError` if the model declares that its steps lack log-probabilities, of the model or of the
    proposal."""
    traits = LanguageModelTraits(lm)
    if traits.gives_logprobs is not None and not traits.gives_logprobs(sampling):
        raise ConfigurationError(
            f"{lm!r} gives no log-probabilities of its steps: open it with logprobs=1 where its server has them "
            "(`motes doctor URL`), end steps by texts instead of a pattern, or use another method"
        )
    if not (traits.proposal_logprobs or draws_from_the_model(sampling)):
        raise ConfigurationError(
            f"{lm!r} gives log-probabilities of the model alone, not of draws that a temperature or a filter changes: "
            "sample at temperature 1, without top_p, top_k, min_p, or use another method"
        )


def draws_from_the_model(sampling: Sampling) -> bool:
    """Whether steps are sampled from the model's own distribution: at temperature 1, unfiltered."""
    return (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
