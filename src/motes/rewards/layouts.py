"""The layouts of reward models' checkpoints: the classes that load them, and their heads."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen2PreTrainedModel,
)
from transformers.modeling_outputs import TokenClassifierOutput

from motes.errors import ConfigurationError
from motes.rewards.families import PAIR_SUFFIX, Head


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """Qwen2 with a two-way head, in the layout of Qwen2.5-Math-PRM: weights `model.*`, `score.0.*`, `score.2.*`.

    We have our own class: the code published with those weights does not run on transformers 5 and is remote code.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = _two_way_head(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, **options: Any) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=self.score(self.model(input_ids, **options).last_hidden_state))


def _two_way_head(config: PretrainedConfig) -> nn.Sequential:
    return nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, 2))


class ProcessRewardModel:
    """A language model of any architecture with the same two-way head, in the same layout: what `motes train` makes of
    language models other than Qwen2. An architecture is named after the language model's:
    "LlamaForProcessRewardModel"."""

    @classmethod
    def from_pretrained(cls, path: str, **options: Any) -> Any:
        """Load a checkpoint as transformers' classes do. Of a language model's, the head is new."""
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
        return pair_class(type(config)).from_pretrained(path, **options)


def pair_class(config: type[PretrainedConfig]) -> Any:
    """The class of models with a two-way head, for a language model's class of configurations.

    Raises:
        ConfigurationError: the language model's weights are in no layout that it could share.
    """
    if config is Qwen2Config:
        return Qwen2ForProcessRewardModel
    body: Any = MODEL_MAPPING.get(config, None)
    base = next((each for each in getattr(body, "__mro__", ()) if each.__name__.endswith("PreTrainedModel")), None)
    if base is None or base is PreTrainedModel or base.base_model_prefix != "model":
        raise ConfigurationError(
            f"no reward model can be made of a {config.model_type!r} model: take a Llama, a Qwen or a Mistral"
        )

    def make(self: Any, config: PretrainedConfig) -> None:
        base.__init__(self, config)
        self.model, self.score = body(config), _two_way_head(config)
        self.post_init()

    name = base.__name__.removesuffix("PreTrainedModel") + PAIR_SUFFIX
    return type(name, (base,), {"__init__": make, "forward": Qwen2ForProcessRewardModel.forward})


class Qwen2ForPrmModel(Qwen2PreTrainedModel):
    """Qwen2 with a value head, in the layout of Skywork-o1-Open-PRM: weights `model.*`, `v_head.summary.*`.

    Their `lm_head.*` is not read: a score does not need it.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = nn.Sequential(OrderedDict(summary=nn.Linear(config.hidden_size, 1)))  # as TRL names it
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, **options: Any) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=self.v_head(self.model(input_ids, **options).last_hidden_state))


def model_class(head: Head) -> Any:
    """The class that loads a checkpoint with such a head."""
    if head == "pair":
        return ProcessRewardModel
    return Qwen2ForPrmModel if head == "value" else AutoModelForCausalLM


def head_of(model: PreTrainedModel, words: tuple[int, int] | None) -> nn.Module:
    """The module that computes a model's logits from its hidden states: (…, hidden) → (…, 2), bad and good, or (…, 1).

    Args:
        words: of a language model, the tokens whose logits are needed. Its head is narrowed to them, permanently: all
            others would be computed, and kept in memory, for nothing.
    """
    if words is None:
        head: nn.Module = model.v_head if isinstance(model, Qwen2ForPrmModel) else model.score  # type: ignore[assignment]
        return head
    full = model.get_output_embeddings()
    with torch.no_grad():
        narrow = nn.Linear(
            full.in_features, 2, bias=full.bias is not None, device=full.weight.device, dtype=full.weight.dtype
        )
        narrow.weight.copy_(full.weight[list(words)])
        if full.bias is not None:
            narrow.bias.copy_(full.bias[list(words)])
    model.set_output_embeddings(narrow.requires_grad_(False))
    return narrow


def probability(logits: Tensor) -> Tensor:
    """(n,) probabilities of "good", from a head's logits: (n, 2), bad and good, or (n, 1)."""
    logits = logits.float()
    return logits.softmax(-1)[:, 1] if logits.shape[-1] == 2 else logits.sigmoid()[:, 0]
