"""The bundled models are what they promise to be."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import motes
from motes import bundled
from motes.lab.measure.reliability import auroc
from motes.tasks import Arithmetic
from motes.tasks.arithmetic import LEVELS, parse

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def lm() -> motes.LanguageModel:
    return motes.language_model("tiny")


@pytest.fixture(scope="module")
def reward() -> motes.RewardModel:
    return motes.reward_model("tiny")


def shapes(role: str) -> dict[str, tuple[int, ...]]:
    with safe_open(bundled.path(role) / "model.safetensors", framework="pt") as file:
        assert all(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def parameters(role: str) -> int:
    total = 0
    for shape in shapes(role).values():
        size = 1
        for n in shape:
            size *= n
        total += size
    return total


def test_they_are_small() -> None:
    folders = [bundled.path(role) for role in ("lm", "prm")]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= 16 * MEBIBYTE
    assert all(parameters(role) <= 6_000_000 for role in ("lm", "prm"))


def test_each_has_a_card_that_says_how_it_was_made() -> None:
    for role in ("lm", "prm"):
        card = (bundled.path(role) / "README.md").read_text()
        assert all(word in card for word in ("recipes/train_tiny.py", "pass@1" if role == "lm" else "AUROC"))


def test_the_language_model_is_a_standard_checkpoint() -> None:
    config = json.loads((bundled.path("lm") / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    model, info = AutoModelForCausalLM.from_pretrained(bundled.path("lm"), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.num_parameters() == parameters("lm")


def test_the_reward_model_has_the_layout_of_qwens() -> None:
    names = shapes("prm")
    hidden = json.loads((bundled.path("prm") / "config.json").read_text())["hidden_size"]
    heads = {name: shape for name, shape in names.items() if not name.startswith("model.")}
    assert heads == {
        "score.0.weight": (hidden, hidden),
        "score.0.bias": (hidden,),
        "score.2.weight": (2, hidden),
        "score.2.bias": (2,),
    }


def test_both_keep_their_contracts(lm: motes.LanguageModel, reward: motes.RewardModel) -> None:
    motes.check_language_model(lm)
    motes.check_reward_model(reward)
    motes.check_reward_model(motes.reward_model("tiny", prefix="whole"))


def test_right_steps_score_above_wrong_ones(lm: motes.LanguageModel, reward: motes.RewardModel) -> None:
    """Within a level, so that it does not count to know which problems are hard. On fixed seeds; the cards have the
    numbers for all problems."""
    task = Arithmetic()
    scores: dict[int, list[float]] = {level: [] for level in LEVELS}
    right: dict[int, list[bool]] = {level: [] for level in LEVELS}

    async def sample(problem: motes.Problem) -> None:
        result = await motes.asolve(problem, lm=lm, reward=reward, method=motes.BestOfN(8), task=task, seed=0)
        story = parse(problem.question)
        readable = [trajectory for trajectory in result.trajectories if trajectory.error is None]
        for trajectory, values in zip(readable, await reward.score(readable), strict=True):
            so_far = np.cumprod([story.check_step(step.text) for step in trajectory.steps]).astype(bool)
            right[story.level] += so_far.tolist()
            scores[story.level] += values

    async def sample_all() -> None:
        await asyncio.gather(*map(sample, task.problems("validation")[:30]))

    asyncio.run(sample_all())
    for level in (2, 3, 4, 5):  # of the first, nearly all steps are right
        assert auroc(scores[level], right[level]) > (0.7 if level < 5 else 0.6), level


def test_particles_help(lm: motes.LanguageModel, reward: motes.RewardModel) -> None:
    """On fixed seeds. The measured difference on all 500 problems is in the README."""
    task = Arithmetic()
    problems = task.problems()[:20]

    async def accuracy(particles: int) -> float:
        method = motes.ParticleFilter(particles)
        results = await asyncio.gather(
            *(motes.asolve(p, lm=lm, reward=reward, method=method, task=task, seed=0) for p in problems)
        )
        graded = [r.answer is not None and task.grade(p, r.answer) for p, r in zip(problems, results, strict=True)]
        return sum(graded) / len(problems)

    assert asyncio.run(accuracy(16)) > asyncio.run(accuracy(1)) + 0.1
