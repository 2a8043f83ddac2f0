"""The bundled models are what they promise to be."""

from __future__ import annotations

import asyncio
import json

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import motes
from motes import bundled
from motes.tasks import Arithmetic

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


def test_a_right_step_scores_above_a_wrong_one(reward: motes.RewardModel) -> None:
    problem = motes.Problem(
        "Some friends collect pears. Ben owns 7. Emma owns 12. Rosa has 5 more than Ben. How many does Rosa have?"
    )

    def score(step: str) -> float:
        trajectory = motes.Trajectory(problem).extend(motes.Step(f"{step}\n\n", "step"))
        return asyncio.run(reward.score([trajectory]))[0][0]

    right = score("Now Rosa has 5 more than Ben's 7: 7+5=12, so Rosa owns 12.")
    for wrong in (
        "Now Rosa has 5 more than Ben's 7: 7+5=19, so Rosa owns 19.",  # the sum
        "Now Rosa has 5 more than Ben's 12: 12+5=17, so Rosa owns 17.",  # somebody else's number
        "Now Rosa has 5 more than Emma's 12: 12+5=17, so Rosa owns 17.",  # than somebody else
    ):
        assert right > score(wrong) + 0.3, wrong


def test_particles_help(lm: motes.LanguageModel, reward: motes.RewardModel) -> None:
    """On fixed seeds. The measured difference on all 500 problems is in the README."""
    task = Arithmetic()
    problems = task.problems()[:40]

    async def accuracy(particles: int) -> float:
        method = motes.ParticleFilter(particles)
        results = await asyncio.gather(
            *(motes.asolve(p, lm=lm, reward=reward, method=method, task=task, seed=0) for p in problems)
        )
        return (
            sum(r.answer is not None and task.grade(p, r.answer) for p, r in zip(problems, results, strict=True)) / 40
        )

    assert asyncio.run(accuracy(16)) > asyncio.run(accuracy(1)) + 0.1
