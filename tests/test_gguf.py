"""GGUF files in this process: found, opened like the checkpoints that they were made of, or refused with what to do."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ggufs
import motes
import to_gguf
from checkpoints import random_language_model, save
from motes import Problem, Sampling, Step, Trajectory, bundled
from motes.checkpoint import checkpoint_config
from motes.errors import ConfigurationError, MissingExtraError
from motes.gguf import find_gguf, open_header
from motes.kv.checkpoint import open_checkpoint
from motes.kv.gguf import apply_settings, require_readable
from motes.lab.run import identity
from motes.models.local import LocalLanguageModel

ROOTS = [Trajectory(Problem(f"What is {n}+{n}?")) for n in range(3)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled language model."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    to_gguf.convert(bundled.path("lm"), path)
    return path


def steps(lm: motes.LanguageModel) -> list[Step]:
    sampling = Sampling(temperature=1.0, max_step_tokens=12)
    return [step for step in asyncio.run(lm.extend(ROOTS, sampling, [1, 2, 3])) if isinstance(step, Step)]


def opened(path: Path | str) -> LocalLanguageModel:
    model = motes.language_model(f"hf:{path}")
    assert isinstance(model, LocalLanguageModel)
    return model


# 1. Models


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_it_is_the_model_that_it_was_made_of(family: str, tmp_path: Path):
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}, "rms_norm_eps": 1e-5}
    path = ggufs.random_gguf(tmp_path, family, **theta)
    mine, theirs = steps(opened(path)), steps(opened(tmp_path / "checkpoint"))
    assert [step.token_ids for step in mine] == [step.token_ids for step in theirs]
    assert [step.logprob for step in mine] == pytest.approx([step.logprob for step in theirs], abs=1e-4)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_its_weights_are_dequantised(quantisation: str, tmp_path: Path):
    path = ggufs.random_gguf(tmp_path, quantisation=quantisation)
    model, _ = open_checkpoint(AutoModelForCausalLM, str(path))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, there in (("model.layers.1.mlp.up_proj", "blk.1.ffn_up"), ("model.embed_tokens", "token_embd")):
        tensor = tensors[f"{there}.weight"]
        assert tensor.tensor_type.name == quantisation
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert model.get_submodule(name).weight.numpy() == pytest.approx(expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_bundled_model(tiny: Path, capfd: pytest.CaptureFixture[str]):
    mine, theirs = opened(tiny), motes.language_model("tiny")
    assert isinstance(theirs, LocalLanguageModel)
    assert steps(mine) == steps(theirs)
    assert mine.vocabulary.pieces == theirs.vocabulary.pieces
    assert mine.num_parameters == theirs.num_parameters
    assert mine.context_length == theirs.context_length
    assert (mine.name, mine.dtype) == ("tiny.gguf", "float32")
    assert opened(f"{tiny}?dtype=bfloat16").dtype == "bfloat16"
    assert "".join(capfd.readouterr()) == "", "nothing shows progress"


def test_answers_end_at_every_token_that_ends_one(tiny: Path, tmp_path: Path):
    ends = {"<|endoftext|>", "<|im_end|>"}
    model = opened(tiny)
    assert set(model.vocabulary.tokenizer.convert_ids_to_tokens(np.flatnonzero(model._is_eos))) == ends
    path = ggufs.copied(tiny, tmp_path / "ends.gguf", {"tokenizer.ggml.eot_token_id": 7})
    assert set(np.flatnonzero(opened(path)._is_eos)) == {7, *np.flatnonzero(model._is_eos)}


def test_the_contract(tiny: Path):
    motes.check_language_model(opened(tiny), questions=["What is 2+2?"], rounds=2)


def test_frequencies_of_the_rotary_embedding(tmp_path: Path):
    """Llama 3.1 and later: a file has the divisors that transformers computes from "rope_type": "llama3"."""
    rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    scaled = random_language_model("llama", hidden_size=64, rope_parameters=rope)
    plain = ggufs.random_gguf(tmp_path, "llama")
    inverse = scaled.model.rotary_emb.inv_freq
    divisors = (10_000.0 ** -(torch.arange(0, 16, 2) / 16) / inverse).numpy().astype(np.float32)
    assert len(set(divisors.tolist())) > 3
    path = ggufs.copied(plain, tmp_path / "scaled.gguf", tensors={"rope_freqs.weight": divisors})
    ids = torch.arange(3, 203)[None]
    with torch.inference_mode():
        expected = scaled(ids).logits
        model, _ = open_checkpoint(AutoModelForCausalLM, str(path))
        assert model(ids).logits == pytest.approx(expected, abs=1e-3)
        without, _ = open_checkpoint(AutoModelForCausalLM, str(plain))
        assert without(ids).logits != pytest.approx(expected, abs=1e-1)
    opened(path)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_rotary_embeddings(kind: str, tmp_path: Path):
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    scaled = random_language_model("qwen2", hidden_size=64, rope_parameters=rope)
    changes = {"type": kind, "factor": 4.0, "original_context_length": 128, "finetuned": True}
    metadata = {f"qwen2.rope.scaling.{key}": value for key, value in changes.items()}
    path = ggufs.copied(ggufs.random_gguf(tmp_path), tmp_path / "scaled.gguf", metadata)
    model, _ = open_checkpoint(AutoModelForCausalLM, str(path))
    ids = torch.arange(3, 203)[None]
    with torch.inference_mode():
        assert model(ids).logits == pytest.approx(scaled(ids).logits, abs=1e-3)
    opened(path)


def test_heads_of_another_size_than_usual(tmp_path: Path):
    """transformers does not read it for Qwen3, and takes 128."""
    path = ggufs.random_gguf(tmp_path, "qwen3", head_dim=32)
    assert steps(opened(path)) == steps(opened(tmp_path / "checkpoint"))


def test_a_file_of_the_same_name_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for seed in (0, 1):
        model = random_language_model(seed=seed, hidden_size=64)
        (tmp_path / str(seed)).mkdir()
        ggufs.written(model, tmp_path / str(seed))
    there = steps(opened(tmp_path / "1" / "model.gguf"))
    monkeypatch.chdir(tmp_path / "0")
    assert steps(opened(tmp_path / "1" / "model.gguf")) == there
    assert steps(opened("model.gguf")) != there


# 2. Names


def test_a_folder_with_one_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(tiny, tmp_path / "Tiny.GGUF")
    (tmp_path / "README.md").write_text("…")
    (tmp_path / "config.json").write_text("{}")
    assert find_gguf(str(tmp_path)) == tmp_path / "Tiny.GGUF"
    assert steps(opened(tmp_path)) == steps(opened(tiny))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_gguf("~") == find_gguf("~/Tiny.GGUF") == tmp_path / "Tiny.GGUF"
    monkeypatch.chdir(tmp_path)
    assert find_gguf("Tiny.GGUF") == Path("Tiny.GGUF")


def test_a_folder_with_several_files(tiny: Path, tmp_path: Path):
    for name in ("b.gguf", "a.gguf"):
        shutil.copy(tiny, tmp_path / name)
    with pytest.raises(ConfigurationError, match=r"several .* as in 'hf:.*/a\.gguf'\. They are a\.gguf, b\.gguf"):
        opened(tmp_path)
    assert opened(tmp_path / "b.gguf").name == "b.gguf"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_folder_with_other_weights_is_a_checkpoint(weights: str, tmp_path: Path):
    (tmp_path / weights).write_bytes(b"")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert find_gguf(str(tmp_path)) is None


def test_names_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "notes.gguf").write_text("GGML")
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "gone")
    for name, message in (
        ("notes.gguf", "is no GGUF file: name one, or the folder"),
        ("dangling.gguf", "dangling.gguf cannot be read: No such file"),
        ("q4.gguf", r"there is no file '.*q4\.gguf': name one in '.*', or write its whole path"),
        ("note.gguf", r"there is no file '.*note\.gguf': did you mean '.*/notes\.gguf'\?"),
        ("models/llama/none.gguf", "there is no file"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            opened(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(
        ConfigurationError, match=r"there is no file 'models/llama/none\.gguf': name one in '.*/models/llama'"
    ):
        opened("models/llama/none.gguf")
    with pytest.raises(ConfigurationError, match=re.escape(f"did you mean 'hf:{tmp_path}/notes.gguf'?")):
        motes.language_model(f"{tmp_path}/notes.gguf")
    with pytest.raises(ConfigurationError, match=re.escape("did you mean 'hf:owner/name/file.gguf'?")):
        motes.language_model("owner/name/file.gguf")


def test_a_file_without_a_suffix(tiny: Path, tmp_path: Path):
    """As other programs store them, under their digest."""
    shutil.copy(tiny, tmp_path / "sha256-1234")
    assert steps(opened(tmp_path / "sha256-1234")) == steps(opened(tiny))


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub's package, which has one file of one repository. There is no network."""
    snapshot = tmp_path / "models--owner--Name-GGUF" / "snapshots" / ("0123456789" * 4)
    (snapshot / "sub").mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    shutil.copy(tiny, snapshot / "tiny.Q4.gguf")
    shutil.copy(tiny, snapshot / "sub" / "tiny.gguf")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_file_on_the_hub(hub: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    found = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *names: found(*names, cache_dir=hub.parents[2], local_files_only=True),
    )
    assert find_gguf("owner/Name-GGUF/tiny.Q4.gguf") == hub / "tiny.Q4.gguf"
    assert find_gguf("owner/Name-GGUF/sub/tiny.gguf") == hub / "sub" / "tiny.gguf"
    model = opened("owner/Name-GGUF/tiny.Q4.gguf")
    assert steps(model) == steps(opened(tiny))
    assert model.revision == hub.name
    assert identity.of_model(model)["weights"]
    with pytest.raises(ConfigurationError, match=r"no file 'owner/Name-GGUF/other\.gguf' here, and the hub"):
        opened("owner/Name-GGUF/other.gguf")
    with pytest.raises(ConfigurationError, match=r"a-00001-of-00003\.gguf' is one of 3 parts of a model"):
        opened("owner/Name-GGUF/a-00001-of-00003.gguf")
    for name in ("owner/Name-GGUF", "owner/Name-GGUF:Q4_K_M"):
        with pytest.raises(ConfigurationError, match=r"name one: 'hf:owner/Name-GGUF/FILE\.gguf'"):
            opened(name)


# 3. Refusals


def changed(**metadata: Any) -> Callable[[Path, Path], Path]:
    dotted = {key.replace("__", "."): value for key, value in metadata.items()}
    return lambda source, target: ggufs.copied(source, target, dotted)


def without_tensors(source: Path, target: Path) -> Path:
    return ggufs.copied(source, target, tensors=dict.fromkeys(t.name for t in gguf.GGUFReader(source).tensors))


def with_a_bias(source: Path, target: Path) -> Path:
    return ggufs.copied(source, target, tensors={"blk.0.attn_output.bias": np.ones(192, np.float32)})


def without_a_norm(source: Path, target: Path) -> Path:
    return ggufs.copied(source, target, tensors={"blk.0.ffn_norm.weight": None})


def of_another_shape(source: Path, target: Path) -> Path:
    return ggufs.copied(source, target, tensors={"blk.0.ffn_norm.weight": np.ones(96, np.float32)})


def with_odd_frequencies(source: Path, target: Path) -> Path:
    return ggufs.copied(source, target, tensors={"rope_freqs.weight": np.ones(5, np.float32)})


SERVE = r"\. llama\.cpp may run it: serve it \(`llama-server -m FILE`\), and name the server .*'http://HOST:PORT/v1'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(general__architecture="mamba3"), "mamba3.*not supported.*" + SERVE),
        (changed(tokenizer__ggml__model="rwkv"), "tokenizer is of the kind 'rwkv'.*" + SERVE),
        (changed(tokenizer__ggml__model=None), "it has no tokenizer.*" + SERVE),
        (changed(tokenizer__ggml__model="no_vocab"), "it has no tokenizer.*" + SERVE),
        (changed(tokenizer__ggml__tokens=None), "it has no tokenizer.*" + SERVE),
        (changed(tokenizer__ggml__pre="kimi-k2"), "a tokenizer that cuts by 'kimi-k2'.*" + SERVE),
        (changed(tokenizer__ggml__pre=None), "does not name the rule by which.*" + SERVE),
        (changed(tokenizer__ggml__tokens=["a", "a"]), "damaged: its tokens are not distinct.*: fetch the file again"),
        (changed(tokenizer__ggml__token_type=[1, 1]), "damaged.* some of them have no type: fetch the file again"),
        (changed(tokenizer__ggml__tokens=[1, 2]), "damaged: 'tokenizer.ggml.tokens' is no list of texts"),
        (changed(tokenizer__ggml__tokens="a"), "damaged: 'tokenizer.ggml.tokens' is no list of texts"),
        (changed(tokenizer__ggml__merges=[1, 2]), "damaged: 'tokenizer.ggml.merges' is no list of texts"),
        (changed(tokenizer__ggml__token_type=["a"]), "'tokenizer.ggml.token_type' is no list of numbers"),
        (changed(qwen2__rope__scaling__type="longrope"), r"qwen2\.rope\.scaling\.type = 'longrope'" + SERVE),
        (changed(qwen2__attention__sliding_window=64), r"does not apply .*sliding_window = 64" + SERVE),
        (changed(qwen2__attention__scale=0.5), r"does not apply .*attention\.scale = 0\.5" + SERVE),
        (changed(qwen2__rope__dimension_count=8), r"does not apply .*rope\.dimension_count = 8" + SERVE),
        (changed(qwen2__attention__head_count=[6, 6, 6, 6, 6]), "num_attention_heads.*" + SERVE),
        (with_a_bias, "Qwen2ForCausalLM of [0-9,]+ of its [0-9,]+ weights" + SERVE),
        (without_a_norm, "it lacks .*post_attention_layernorm.*belong together"),
        (of_another_shape, "another shape of .*post_attention_layernorm.*belong together"),
        (with_odd_frequencies, r"does not apply its tensor rope_freqs\.weight" + SERVE),
        (without_tensors, r"is no model: its type is 'model', and it has 0 tensors"),
        (changed(general__type="mmproj"), "the part of a model that sees pictures: name the language model's file"),
        (changed(general__architecture="clip"), "the part of a model that sees pictures"),
        (changed(general__type="adapter"), r"an adapter, not a model: merge it into its model \(`llama-export-lora`\)"),
        (changed(general__type="imatrix"), "is no model: its type is 'imatrix'"),
        (changed(split__count=3), r"one of 3 parts of a model: join them \(`llama-gguf-split --merge`\)"),
    ],
)
def test_files_that_cannot_be_opened(
    tiny: Path, tmp_path: Path, change: Callable[[Path, Path], Path], message: str
) -> None:
    path = change(tiny, tmp_path / "changed.gguf")
    with pytest.raises(ConfigurationError, match=message) as caught:
        opened(path)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, MissingExtraError)


def test_settings_that_transformers_reads_otherwise(tiny: Path):
    """As another version may."""
    config = AutoConfig.from_pretrained(tiny.parent, gguf_file=tiny.name)
    apply_settings(config, open_header(tiny))
    config.max_position_embeddings = 512
    with pytest.raises(ValueError, match=r"does not apply its setting qwen2\.context_length = 1024"):
        apply_settings(config, open_header(tiny))


def test_settings_that_change_nothing(tiny: Path, tmp_path: Path):
    metadata = {"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0, "rope.scaling.finetuned": True}
    metadata = {f"qwen2.{key}": value for key, value in metadata.items()} | {"split.count": 1}
    path = ggufs.copied(tiny, tmp_path / "neutral.gguf", metadata)
    assert steps(opened(path)) == steps(opened(tiny))


def test_quantisations_that_are_unknown(tiny: Path, tmp_path: Path):
    path = tmp_path / "unknown.gguf"
    content = tiny.read_bytes()
    name = b"blk.0.ffn_norm.weight"
    at = content.index(name) + len(name) + 4 + 8  # after the number of dimensions, and the one that there is
    path.write_bytes(content[:at] + (99).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(ConfigurationError, match=r"'blk\.0\.ffn_norm\.weight' has the unknown quantisation 99" + SERVE):
        opened(path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (b"\0\0\0\3", r"order of big-endian machines: convert it \(`gguf-convert-endian FILE little`.*, or fetch the"),
        (b"\1\0\0\0", r"version 1, which no current program reads: fetch a newer file$"),
        (b"\4\0\0\0", r"version 4, and only 2 and 3 are known" + SERVE),
    ],
)
def test_other_versions(version: bytes, message: str, tiny: Path, tmp_path: Path):
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF" + version + tiny.read_bytes()[8:])
    with pytest.raises(ConfigurationError, match=message):
        opened(path)


def test_a_model_that_is_too_large_for_the_machine(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """Before the system ends the process, or swaps for hours."""
    pages = {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("motes.kv.gguf.os.sysconf", pages.__getitem__)
    with pytest.raises(ConfigurationError, match=r"take 0 GB as float32, and this machine has 0 GB" + SERVE):
        opened(tiny)


def test_damaged_files(tiny: Path, tmp_path: Path):
    """Wherever it is cut, and whichever byte of the header is another one: an error, soon, and no other than ours."""
    content = tiny.read_bytes()
    path = tmp_path / "damaged.gguf"
    rng = np.random.default_rng(0)
    header = open_header(tiny).tensors[0].start
    for size in [*range(0, 64, 3), *rng.integers(64, header, 60), *rng.integers(header, len(content) - 1, 20)]:
        path.write_bytes(content[:size])
        with pytest.raises(ConfigurationError, match=r"no GGUF file|damaged.*: fetch the file again"):
            find_and_check(path)
    for at in [*range(4, 64), *rng.integers(64, header, 300)]:
        broken = bytearray(content)
        broken[at] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        with contextlib.suppress(ConfigurationError):
            find_and_check(path)


def find_and_check(path: Path) -> None:
    """What precedes transformers' reading."""
    from motes.gguf import refusal
    from motes.gguf.tokenizer import build_tokenizer

    found = find_gguf(str(path))
    assert found is not None
    header = open_header(found)
    try:
        require_readable(header)
        build_tokenizer(header)
    except ValueError as error:
        raise refusal(path, error) from error


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package(package: str, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    with pytest.raises(MissingExtraError, match=r"pip install 'motes\[gguf\]'"):
        opened(tiny)


def test_what_the_engine_cannot_run(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("motes.kv.runner.ROPES", set())
    with pytest.raises(ConfigurationError, match=r"the local engine cannot run it\. Serve it .*'http://HOST:PORT/v1'"):
        opened(tiny)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigurationError, match="cannot be read: Permission denied"):
        find_gguf(str(tmp_path))


def test_a_pipe_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ConfigurationError, match=r"pipe\.gguf cannot be read: it is not a regular file"):
        opened(tmp_path / "pipe.gguf")


# 4. Reward models, judges, identities


def test_a_language_model_is_no_reward_model(tiny: Path):
    with pytest.raises(ConfigurationError, match="architecture is qwen2, and its name says nothing"):
        motes.reward_model(f"hf:{tiny}")
    for family in ("qwen", "skywork"):
        with pytest.raises(ConfigurationError, match=f"a GGUF file, .* family {family} have a head of their own: use"):
            motes.reward_model(f"hf:{tiny}?format={family}")


def test_a_reward_model_with_the_head_of_a_language_model(tiny: Path, tmp_path: Path):
    name = {"general.name": "Llama3.1 8B PRM Deepseek Data"}
    path = ggufs.copied(tiny, tmp_path / "prm.gguf", name)
    trajectories = [root.extend(step) for root, step in zip(ROOTS, steps(opened(tiny)), strict=True)]
    mine = asyncio.run(motes.reward_model(f"hf:{path}").score(trajectories))
    theirs = asyncio.run(motes.reward_model(f"hf:{bundled.path('lm')}?format=rlhflow").score(trajectories))
    assert mine == theirs
    assert checkpoint_config(str(path))["architectures"] == ["qwen2"]
    shutil.copy(tiny, named := tmp_path / "math-shepherd-mistral-7b-prm.Q4.gguf")
    assert "math-shepherd" in checkpoint_config(str(named))["_name_or_path"]


def test_a_judge(tiny: Path):
    judge = motes.reward_model(f"judge:hf:{tiny}?num_verdicts=2")
    assert isinstance(judge, motes.Judge)
    assert isinstance(judge.lm, LocalLanguageModel)


def test_its_identity_is_that_of_its_content(tiny: Path, tmp_path: Path):
    shutil.copy(tiny, tmp_path / "tiny.gguf")
    (tmp_path / "generation_config.json").write_text("{}")  # of whatever
    mine = identity.of_model(opened(tiny))
    assert mine["weights"]
    assert mine == identity.of_model(opened(tmp_path)) == identity.of_model(opened(tmp_path / "tiny.gguf"))
    ggufs.copied(tiny, tmp_path / "tiny.gguf", {"general.name": "another"})
    assert identity.of_model(opened(tmp_path)) != mine


@pytest.mark.parametrize("prefix", ["", "judge:"])
def test_a_file_that_changes_is_opened_again(prefix: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from motes.opening import open_once, reward_model

    path = tmp_path / "tiny.gguf"
    shutil.copy(tiny, path)
    open_model = reward_model if prefix else motes.language_model
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        for place, spec in enumerate((path, "~/tiny.gguf", tmp_path)):
            first = open_once(open_model, f"{prefix}hf:{spec}")
            assert open_once(open_model, f"{prefix}hf:{spec}") is first
            os.utime(path, (place, place))
            assert open_once(open_model, f"{prefix}hf:{spec}") is not first
    finally:
        motes.close_models()


def test_a_tokenizer_beside_a_server(tiny: Path):
    from motes.vocabulary import Vocabulary

    text = "Ben owns 7 pears.<|im_end|>"
    assert Vocabulary.load(str(tiny)).encode(text) == Vocabulary.load(str(bundled.path("lm"))).encode(text)


def test_the_converter_refuses_other_architectures(tmp_path: Path):
    save(random_language_model(), tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "gemma2"}))
    with pytest.raises(SystemExit, match=r"gemma2: use llama\.cpp's own converter"):
        to_gguf.convert(tmp_path / "other", tmp_path / "other.gguf")
