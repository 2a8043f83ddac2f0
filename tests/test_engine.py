"""What the local language model and the local reward model share: damaged weights, models that the engine computes
wrongly, threads that fail, queues that starve, memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from checkpoints import local, local_prm, random_language_model, vocabulary
from motes import Problem, Sampling, Step, Trajectory
from motes.errors import EngineError, RewardError
from motes.models.local import LocalLanguageModel
from motes.rewards.prm import LocalPRM

QUESTION = "Ben owns 7 pears. Rosa has 5 more than Ben. How many does Rosa have?"
ROOT = Trajectory(Problem(QUESTION))


def ask(lm: LocalLanguageModel) -> Step:
    (step,) = asyncio.run(lm.extend([ROOT], Sampling(max_step_tokens=4), [0]))
    return step


def read(prm: LocalPRM) -> list[float]:
    ((score,),) = asyncio.run(prm.score([ROOT.extend(Step("7+5=12.", "step"))]))
    return [score]


# Numbers


@pytest.mark.parametrize("damage", [torch.nan, torch.inf, 1e30])  # the last one overflows on the way
@pytest.mark.parametrize(("make", "use", "error"), [(local, ask, EngineError), (local_prm, read, RewardError)])
def test_logits_that_are_no_numbers_are_an_error_that_says_what_to_try(
    damage: float, make: Callable[[], LocalLanguageModel], use: Callable[[object], object], error: type[Exception]
) -> None:
    engine = make()
    sound = use(engine)
    norm = engine._runner.body.norm.weight
    weights = norm.clone()
    norm.data.mul_(1e30).mul_(damage)
    with pytest.raises(error, match=r"not numbers in float32 on cpu: try dtype=.*device=cpu.*fetch the checkpoint"):
        use(engine)
    norm.data.copy_(weights)
    assert use(engine) == sound  # nothing spoilt is kept
    engine.check_integrity()


def test_a_spoilt_prefix_is_forgotten() -> None:
    engine = local()
    sound = ask(engine)
    engine.tree.clear()
    weight = engine._runner.body.layers[0].self_attn.v_proj.weight
    kept = weight.clone()
    weight.data.fill_(torch.nan)
    with pytest.raises(EngineError, match="not numbers"):
        ask(engine)
    weight.data.copy_(kept)
    assert ask(engine) == sound
    engine.check_integrity()


def test_float16_that_overflows_is_an_error() -> None:
    model = random_language_model()
    model.lm_head.weight.data *= 1e4
    with pytest.raises(EngineError, match="not numbers in float16"):
        ask(LocalLanguageModel(model.half(), vocabulary()))
