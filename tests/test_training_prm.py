"""Process reward models are trained, saved in the layout that engines read, and calibrated."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import motes
from checkpoints import random_language_model, save, vocabulary
from motes import Problem
from motes.errors import ConfigurationError
from motes.rewards.format import Format
from motes.rewards.layouts import Qwen2ForProcessRewardModel
from motes.rewards.prm import LocalPRM
from motes.training.calibrate import fit_platt
from motes.training.examples import Example, examples_of_labels, measure
from motes.training.outcomes import Answer, Labels, Outcomes
from motes.training.prm import Settings, collate, open_backbone, rows_of, train_prm

GOOD, BAD = "Ben has 7 pears.\n\n", "Mia has 3 coins.\n\n"


def examples(problems: int, seed: int = 0) -> list[Example]:
    """Answers of three steps. One that has a bad step ends wrong; after good ones, two of three end right."""
    rng, labels = random.Random(seed), Labels()
    for problem in range(problems):
        for _ in range(4):
            steps = tuple(BAD if rng.random() < 0.3 else GOOD for _ in range(3))
            labels.add(Answer(f"{seed}/{problem}", steps, BAD not in steps and rng.random() < 2 / 3))
    return examples_of_labels(labels, lambda name: Problem(f"How many pears are in box {name}?"))


def scores_of(prm: LocalPRM, held_out: list[Example]) -> list:
    return list(asyncio.run(prm.score([example.answer for example in held_out])))


@pytest.mark.parametrize(("family", "rank"), [("qwen2", 0), ("llama", 0), ("qwen2", 4)])
def test_it_learns_and_is_read_like_the_original(family: str, rank: int, tmp_path: Path):
    save(random_language_model(family), tmp_path / "lm")
    out = tmp_path / "prm"
    settings = Settings(epochs=4, learning_rate=3e-3, lora_rank=rank, batch=16)
    seen: list[tuple[int, int, float | None]] = []
    train_prm(str(tmp_path / "lm"), examples(60), examples(30, 1), out, settings, lambda *each: seen.append(each))
    losses = [loss for *_, loss in seen if loss is not None]
    assert losses[-1] < losses[0]
    prm = motes.reward_model(f"hf:{out}")
    assert isinstance(prm, LocalPRM)
    assert prm.format.family.name == "qwen"
    held_out = examples(30, 2)
    quality = measure(held_out, scores_of(prm, held_out))
    assert quality.within.value > 0.65
    assert quality.calibration < 0.12
    names = set(load_file(out / "model.safetensors"))
    assert {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias", "model.norm.weight"} <= names
    assert all(name.startswith(("model.", "score.")) for name in names)
    if family == "qwen2":
        assert prm.origin == str(out)
        again = Qwen2ForProcessRewardModel.from_pretrained(out)
        assert torch.equal(again.score[2].weight, load_file(out / "model.safetensors")["score.2.weight"])
    motes.check_reward_model(prm)


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path):
    save(random_language_model(), tmp_path / "lm")
    settings = Settings(epochs=1, learning_rate=1e-3, batch=16, evaluations=4)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    train_prm(str(tmp_path / "lm"), examples(40), examples(20, 1), whole, settings)

    class StopError(Exception):
        pass

    def stop(step: int, steps: int, loss: float | None) -> None:
        if step == steps // 2 + 1:
            raise StopError

    with pytest.raises(StopError):
        train_prm(str(tmp_path / "lm"), examples(40), examples(20, 1), halved, settings, stop)
    steps: list[int] = []
    train_prm(
        str(tmp_path / "lm"), examples(40), examples(20, 1), halved, settings, lambda step, *_: steps.append(step)
    )
    assert min(steps) > 1
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, halved))
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-4, atol=1e-5, msg=name)


def test_rows_are_what_the_reward_model_reads(tmp_path: Path):
    save(random_language_model(), tmp_path / "lm")
    _, words, family = open_backbone(str(tmp_path / "lm"), 0)
    form = Format(family, words)
    labelled = examples(2)
    rows = rows_of(form, labelled, 4096)
    tag = words.tokenizer.convert_tokens_to_ids("<extra_0>")
    for row, example in zip(rows, [each for each in labelled if each.counts.any()], strict=True):
        assert [row.ids[place] for place in row.tags] == [tag] * 3
        assert row.counts.tolist() == example.counts.tolist()
    batch = collate(rows)
    assert batch["labels"].sum() == sum(row.counts.sum() for row in rows)
    assert rows_of(form, labelled, 10) == []
    with pytest.raises(ConfigurationError, match="raise max_tokens"):
        train_prm(str(tmp_path / "lm"), labelled, labelled, tmp_path / "out", Settings(max_tokens=10))


def test_a_tokenizer_without_the_tag_gets_it(tmp_path: Path):
    words = vocabulary().tokenizer
    save(random_language_model("llama"), tmp_path / "lm")
    folder = tmp_path / "lm"
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace("<extra_0>", "<other>").replace("<|im_start|>", "<|start|>"))
    for path in folder.glob("*.jinja"):
        path.write_text(path.read_text().replace("<|im_start|>", "<|start|>"))
    model, again, family = open_backbone(str(folder), 0)
    assert family.name == "chat"
    tag = again.tokenizer.convert_tokens_to_ids("<extra_0>")
    assert tag == len(words)
    assert model.get_input_embeddings().num_embeddings > tag
    ids = Format(family, again).prompt(Problem("How many?"))
    assert again.decode(ids).startswith("user") or "How many?" in again.decode(ids)


class TestPlatt:
    def test_it_recovers_slope_and_shift(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=20_000) * 2
        p = 1 / (1 + np.exp(-(0.5 * logits - 1)))
        right = rng.random(20_000) < p
        slope, shift = fit_platt(logits, np.stack([~right, right], axis=1))
        assert slope == pytest.approx(0.5, abs=0.05)  # five standard errors
        assert shift == pytest.approx(-1, abs=0.1)

    def test_perfect_separation_stays_finite(self):
        logits = np.array([-2.0, -1.0, 1.0, 2.0])
        counts = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
        slope, shift = fit_platt(logits, counts)
        assert 1 < slope < 10
        assert shift == pytest.approx(0, abs=1e-6)

    def test_an_order_is_never_inverted(self):
        slope, _ = fit_platt(np.array([-9.0, 9.0]), np.array([[0, 99], [99, 0]]))
        assert slope == 0.01

    def test_large_logits(self):
        slope, shift = fit_platt(np.array([-1e4, 1e4]), np.array([[50, 50], [50, 50]]))
        assert np.isfinite([slope, shift]).all()


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"learning_rate": 0.0}, {"lora_rank": -1}, {"batch": 0}])
def test_settings_are_checked(settings: dict):
    with pytest.raises(ConfigurationError):
        Settings(**settings)


def test_counts_of_completions_are_the_weights():
    one = Example("p", (), (Outcomes(3, 4),))
    assert one.counts.tolist() == [[1, 3]]
