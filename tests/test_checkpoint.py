"""Opening what cannot be opened, and asking what cannot be asked: every failure is typed and says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import motes
from checkpoints import random_language_model, random_prm, save, vocabulary
from motes import Problem
from motes.errors import ConfigurationError


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save(random_language_model("llama"), tmp_path_factory.mktemp("sound")))


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def edited(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def half_of_it(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    weights = {"model.norm.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("model.safetensors", 5000), r"not fully covered\. .* fetch it again"),
        (cut("model.safetensors", 20), "header.* fetch it again"),
        (cut("model.safetensors", 0), "header.* fetch it again"),
        (without("model.safetensors"), r"model\.safetensors.* fetch it again"),
        (half_of_it, r"model-2\.safetensors.* fetch it again"),
        (without("config.json"), r"config\.json.* fetch it again"),
        (cut("config.json", 100), "JSON.* fetch it again"),
        (edited("config.json", '"llama"', '"lama"'), "lama.* fetch it again"),
        (edited("config.json", '"intermediate_size": 96', '"intermediate_size": 112'), "another shape of .*belong"),
        (edited("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3'), "it lacks .*belong"),
        (without("tokenizer.json"), r"tokenizer\.json missing.* fetch it again"),
        (cut("tokenizer.json", 1000), "fetch it again"),
    ],
)
def test_damaged_checkpoints(sound: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = copied(sound, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ConfigurationError, match=message) as caught:
        motes.language_model(f"hf:{folder}")
    assert str(folder) in str(caught.value)


def test_a_damaged_reward_model(tmp_path: Path) -> None:
    folder = Path(save(random_prm(), tmp_path / "prm"))
    cut("model.safetensors", 5000)(folder)
    with pytest.raises(ConfigurationError, match="fetch it again"):
        motes.reward_model(f"hf:{folder}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["foo", "cuda", "cuda:7", "0", "mps:9"])
def test_devices_that_are_not_there(sound: Path, device: str) -> None:
    named = device if device == "0" else re.escape(repr(device))
    with pytest.raises(ConfigurationError, match=rf"cannot use device {named} .*: use device=cpu, or leave it out"):
        motes.language_model(f"hf:{sound}?device={device}")


@pytest.mark.parametrize("dtype", ["float12", "int8", "16", "nn"])
def test_dtypes_that_are_none(sound: Path, dtype: str) -> None:
    with pytest.raises(ConfigurationError, match="use float32, bfloat16 or float16"):
        motes.language_model(f"hf:{sound}?dtype={dtype}")


# Conversations

BRIEF = Problem("What is 2+2?", system="Be brief.")
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def prompt(template: str | None, problem: Problem) -> str:
    words = vocabulary()
    words.tokenizer.chat_template = template
    return words.decode(words.prompt(problem))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template.* ask the question alone, or use a checkpoint that was trained to chat"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            + TURNS,
            "refuses the conversation .System role not supported.: put the system prompt into the question",
        ),
        ("{{ messages[1].content }}", "leaves the system prompt out: put it into the question"),
        ("{% if %}", "refuses the conversation"),
        ("{{ messages + 1 }}", "refuses the conversation"),
    ],
)
def test_templates_that_cannot_say_a_system_prompt(template: str | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        prompt(template, BRIEF)


def test_templates_that_can() -> None:
    assert prompt(TURNS, BRIEF) == "<system>Be brief.<user>What is 2+2?<assistant>"
    assert prompt(None, Problem("What is 2+2?")) == "What is 2+2?"


def test_a_conversation_that_a_template_refuses_is_the_callers_error(sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, tmp_path / "lm")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only one turn') }}")
    with pytest.raises(ConfigurationError, match=r"only one turn.: use another checkpoint"):
        motes.solve("Hi", lm=f"hf:{folder}", reward=None, method=motes.Greedy())
