"""The families of process reward models in common use, and how a checkpoint is known to be of one.

A family is a declaration, and adding one is writing one. Each opens with its checkpoints, the source of its form, and
what is read: question Q, steps S1 and S2. `motes.rewards.format` makes tokens of it.
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
"""What turns the state at a position into a score in [0, 1]. "pair": the softmax of two logits, bad and good; "value":
the sigmoid of one number; `NextToken`: the softmax of the logits of two words of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the process reward models of a family have in common.

    `prompt`, `turn`, `first` and `step` are templates. In braces stand what comes from outside (`question`; `role` and
    `content`; `step`), which is only text, whatever it spells; what the tokenizer gives (`start`: what it puts before
    every text; `bos`; and of its chat template `opening`: all before the first text of the user, `reply`: what stands
    between it and the assistant's, `next`: between that and the user's next); and anything else is a token, of that
    spelling.

    Attributes:
        name: what it is called by, as in `hf:PATH?format=NAME`.
        prompt: what comes before the first step.
        first, step: the first step and each further one, up to the token where its score is read.
        head: what gives the score there.
        turn: a message, in families that read conversations: `prompt` comes after all of them. The other families know
            one question alone.
        system: the system prompt that such a family was trained with, for conversations that have none.
        label: what a step begins with, with its `number`; put there unless the step says it itself.
        by_line: each line of a step stands in the template by itself; the score is read at the last one's end.
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
    # A chat in which the user writes "Q S1", then "S2", and the assistant answers "+" each time, whatever it would
    # have said: the score is the probability of that "+" where the assistant's turn begins.
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
    # <bos>Q\nS1\nS2\n, each line encoded by itself: the newline after it never melts into a token such as ".\n".
    name="skywork",
    prompt="{bos}{question}\n",
    first="{step}{\n}",
    step="{step}{\n}",
    by_line=True,
    head="value",
)

VERSAPRM = Family(
    # UW-Madison-Lee-Lab/VersaPRM and its kin, Llama-PRM800K, Qwen-PRM800K: arXiv 2502.06737 and its repository,
    # where training, too, encodes the question and each step by itself.
    # Q \n\nS1 \n\n\n\nS2 \n\n\n\n
    name="versaprm",
    prompt="{start}{question} \n\n",
    first="{step}{ \n\n\n\n}",
    step="{step}{ \n\n\n\n}",
    head=NextToken(good="+", bad="-"),
)

FAMILIES = {family.name: family for family in (QWEN, RLHFLOW, MATH_SHEPHERD, SKYWORK, VERSAPRM)}

ARCHITECTURES = {"Qwen2ForProcessRewardModel": QWEN, "Qwen2ForPrmModel": SKYWORK}
"""Those that say all."""

NAMES = {
    r"llama3\.1-8b-prm-(deepseek|mistral)-data": RLHFLOW,
    r"math-shepherd.*prm": MATH_SHEPHERD,
    r"skywork-o1-open-prm": SKYWORK,
    r"versaprm|\b(llama|qwen)-prm800k": VERSAPRM,
}
"""Of checkpoints in the layout of a language model, which says nothing."""


def family(name: str | Family) -> Family:
    """The family of that name; one of your own is returned as is.

    Raises:
        UnknownNameError: there is none.
    """
    if isinstance(name, Family):
        return name
    if name not in FAMILIES:
        raise UnknownNameError("format", name, FAMILIES)
    return FAMILIES[name]


def recognise(path: str, config: Mapping[str, Any]) -> Family:
    """The family that a checkpoint is of.

    Args:
        path: its folder, in the hub's cache or elsewhere, or its name.
        config: its config.json.

    Raises:
        ConfigurationError: neither its architecture nor its name says it.
    """
    architectures = config.get("architectures") or ["none"]
    for architecture in architectures:
        if architecture in ARCHITECTURES:
            return ARCHITECTURES[architecture]
    for name in map(_name, (path, str(config.get("_name_or_path", "")))):
        for pattern, known in NAMES.items():
            if re.search(pattern, name):
                return known
    raise ConfigurationError(
        f"cannot tell which family of reward models {path!r} is of: its architecture is {architectures[0]}, and its "
        f"name says nothing. If it is one, say which, as in 'hf:{path}?format=NAME'; known are {', '.join(FAMILIES)}"
    )


def _name(path: str) -> str:
    """What a checkpoint is called: the last part of its path, or in the hub's cache the part that has the name."""
    parts = PurePath(path.lower()).parts or ("",)
    return next((part for part in parts if part.startswith("models--")), parts[-1])
