"""The families of process reward models in common use, and how to recognise a checkpoint's family.

A family is a declaration; to add one, write a declaration. Each begins with its checkpoints, the source of its format,
and the text that its models read: question Q, steps S1 and S2. `motes.rewards.format` turns it into tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from motes.errors import ConfigurationError, UnknownNameError


class NextToken(NamedTuple):
    """A language model's head: the probability that one token follows, against another. Each text is one token."""

    good: str
    bad: str


Head = NextToken | Literal["pair", "value"]
"""How the state at a position becomes a score in [0, 1]. "pair": the softmax of two logits, bad and good; "value": the
sigmoid of one number; `NextToken`: the softmax of the logits of two words of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The declaration of a family of process reward models.

    `prompt`, `turn`, `first` and `step` are templates. A name in braces stands for one of these:

    - a text from outside, which is plain text, whatever it spells: `question`; `role` and `content`; `step`;
    - a part that the tokenizer provides: `start`, which it puts before every text; `bos`; and three parts of its chat
      template: `opening`, before the user's first text; `reply`, between that and the assistant's text; `next`, between
      that and the user's next text;
    - anything else: the token with that spelling.

    Attributes:
        name: as in `hf:PATH?format=NAME`.
        prompt: the part before the first step.
        first: the first step, up to the token at which its score is read.
        step: each further step, up to the token at which its score is read.
        head: how the score is computed there.
        turn: a message, in families that read conversations (`prompt` comes after all). Others read a single question.
        system: the system prompt with which such a family was trained, for conversations that have none.
        label: the beginning of a step, with its `number`; added unless the step begins with it already.
        by_line: the template is applied to each line of a step; the score is read at the end of the last line.
    """

    name: str
    prompt: str
    first: str
    step: str
    head: Head
    turn: str | None = None
    system: str = ""
    label: str = ""
    by_line: bool = False


QWEN = Family(
    # Qwen2.5-Math-PRM-7B and -72B, Qwen2.5-Math-7B-PRM800K: their model cards; arXiv 2501.07301.
    # <|im_start|>system\n…<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nS1<extra_0>S2<extra_0>
    name="qwen",
    turn="{<|im_start|>}{role}\n{content}{<|im_end|>}\n",
    system="Please reason step by step, and put your final answer within \\boxed{}.",
    prompt="{<|im_start|>}",
    first="assistant\n{step}{<extra_0>}",
    step="{step}{<extra_0>}",
    head="pair",
)

RLHFLOW = Family(
    # RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and -Mistral-Data: RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py.
    # A chat in which the user writes "Q S1", then "S2", and the assistant's turn is always "+": the score is the
    # model's probability of that "+".
    name="rlhflow",
    prompt="{opening}{question}",
    first=" {step}{reply}",
    step="+{next}{step}{reply}",
    head=NextToken(good="+", bad="-"),
)

MATH_SHEPHERD = Family(
    # peiyi9979/math-shepherd-mistral-7b-prm: its model card; arXiv 2312.08935.
    # Q Step 1: S1 ки\nStep 2: S2 ки
    # The tokens of the tag and of the two verdicts have a space before them: "▁ки", "▁+", "▁-".
    name="math-shepherd",
    prompt="{start}{question}",
    first=" {step}{ ки}",
    step="\n{step}{ ки}",
    label="Step {number}:",
    head=NextToken(good=" +", bad=" -"),
)

SKYWORK = Family(
    # Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B: SkyworkAI/skywork-o1-prm-inference, model_utils/io_utils.py.
    # <bos>Q\nS1\nS2\n, each line encoded by itself: the newline after it is never part of a token such as ".\n".
    name="skywork",
    prompt="{bos}{question}\n",
    first="{step}{\n}",
    step="{step}{\n}",
    by_line=True,
    head="value",
)

VERSAPRM = Family(
    # UW-Madison-Lee-Lab/VersaPRM and the related Llama-PRM800K, Qwen-PRM800K: arXiv 2502.06737 and its repository,
    # whose training, too, encodes the question and each step by itself.
    # Q \n\nS1 \n\n\n\nS2 \n\n\n\n
    name="versaprm",
    prompt="{start}{question} \n\n",
    first="{step}{ \n\n\n\n}",
    step="{step}{ \n\n\n\n}",
    head=NextToken(good="+", bad="-"),
)

CHAT = Family(
    # What `motes train` makes of language models without <|im_start|>: the language model's own chat template.
    # <opening>Q<reply>S1<extra_0>S2<extra_0>
    name="chat",
    prompt="{opening}{question}{reply}",
    first="{step}{<extra_0>}",
    step="{step}{<extra_0>}",
    head="pair",
)

FAMILIES = {family.name: family for family in (QWEN, RLHFLOW, MATH_SHEPHERD, SKYWORK, VERSAPRM, CHAT)}

PAIR_SUFFIX = "ForProcessRewardModel"
"""The end of the names of architectures with a two-way head, see `motes.rewards.layouts.ProcessRewardModel`."""
FORMAT_FIELD = "reward_format"
"""The field of config.json in which `motes train` names the family."""

ARCHITECTURES = {"Qwen2ForProcessRewardModel": QWEN, "Qwen2ForPrmModel": SKYWORK}
"""The architectures that identify a family."""

NAMES = {
    r"llama3\.1-8b-prm-(deepseek|mistral)-data": RLHFLOW,
    r"math-shepherd.*prm": MATH_SHEPHERD,
    r"skywork-o1-open-prm": SKYWORK,
    r"versaprm|\b(llama|qwen)-prm800k": VERSAPRM,
}
"""Patterns of names, for checkpoints with the architecture of a language model, which identifies no family."""


def family(name: str | Family) -> Family:
    """The family of that name; your own declaration is returned as it is.

    Raises:
        UnknownNameError: there is no such family.
    """
    if isinstance(name, Family):
        return name
    if name not in FAMILIES:
        raise UnknownNameError("format", name, FAMILIES)
    return FAMILIES[name]


def recognise(path: str, config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint.

    Args:
        path: its folder, in the hub's cache or elsewhere, or its name.
        config: its config.json.

    Raises:
        ConfigurationError: neither its architecture nor its name identifies one.
    """
    if config.get(FORMAT_FIELD) in FAMILIES:
        return FAMILIES[config[FORMAT_FIELD]]
    architectures = config.get("architectures") or ["none"]
    for architecture in architectures:
        if architecture in ARCHITECTURES:
            return ARCHITECTURES[architecture]
    for name in map(_checkpoint_name, (path, str(config.get("_name_or_path", "")))):
        for pattern, candidate in NAMES.items():
            if re.search(pattern, name):
                return candidate
    raise ConfigurationError(
        f"cannot tell which family of reward models {path!r} is of: its architecture is {architectures[0]}, and its "
        f"name says nothing. If it is one, say which, as in 'hf:{path}?format=NAME'; known are {', '.join(FAMILIES)}"
    )


def _checkpoint_name(path: str) -> str:
    """A checkpoint's name: the last part of its path, or in the hub's cache the part that has the name."""
    parts = PurePath(path.lower()).parts or ("",)
    return next((part for part in parts if part.startswith("models--")), parts[-1])
