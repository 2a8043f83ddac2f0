"""GGUF files in this process and on llama.cpp's own server: the same tokens, the same log-probabilities.

The files are made here, with random weights. `make test-llama-cpp` names this file; a plain `pytest` does not find it.
"""

from __future__ import annotations

import asyncio
import json
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import ggufs
import motes
import real_servers
from hostile_texts import HOSTILE, mixtures
from motes import Problem, Sampling, Trajectory
from motes.gguf import open_header
from motes.gguf.tokenizer import CASED_RULES, END_TOKENS, RULES, end_token_ids
from motes.kv.checkpoint import open_checkpoint
from motes.vocabulary import Vocabulary
from real_servers import Server

TEXTS = [*HOSTILE, *mixtures(250, seed=2), " foobarqux foobarqux", "[PAD0]", "a<｜User｜>b"]


@contextmanager
def tokenizing(path: Path) -> Iterator[Callable[[str, bool], list[int]]]:
    """llama.cpp's tokenizer of a file."""
    with real_servers.llama_cpp(path, slots=1, name="llama-cpp-files") as server:

        def tokenize(text: str, special: bool) -> list[int]:
            body = {"content": text, "add_special": False, "parse_special": special}
            return post(server, "tokenize", body)["tokens"]

        yield tokenize


def post(server: Server, route: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{server.root}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def is_cut_alike(text: str) -> bool:
    """Whether llama.cpp cuts a text by letter case as the tokenizers do that it imitates: it knows neither combining
    marks nor the case of letters beyond ASCII."""
    return all(c.isascii() or unicodedata.category(c) not in ("Mn", "Mc", "Me", "Lu", "Ll", "Lt") for c in text)


@pytest.mark.parametrize("rule", RULES)
def test_texts_are_cut_into_the_same_words(rule: str, tmp_path: Path):
    path = ggufs.byte_level(tmp_path / "tokens.gguf", rule)
    vocabulary = Vocabulary.load(str(path))
    texts = filter(is_cut_alike, TEXTS) if rule in CASED_RULES else TEXTS
    with tokenizing(path) as tokenize:
        for text in texts:
            for special in (False, True):
                assert vocabulary.encode(text, special=special) == tokenize(text, special), (text, special)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_has_the_same_tokens(prefix: bool, tmp_path: Path):
    """Except that llama.cpp takes the spelling of a byte's token, and without `parse_special` that of a special token,
    for the token itself where merges lead to it."""
    path = ggufs.sentencepiece(tmp_path / "tokens.gguf", **{"tokenizer.ggml.add_space_prefix": prefix})
    tokenizer = Vocabulary.load(str(path)).tokenizer
    with tokenizing(path) as tokenize:
        for text in TEXTS:
            if "\x00" not in text and "<0x" not in text:
                assert tokenizer.encode(text, add_special_tokens=False) == tokenize(text, True), text


ROPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama with frequencies": ("llama", {}, {"rope_freqs.weight": np.array([1, 1, 1.5, 2, 4, 8, 8, 8], np.float32)}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "linear": ("qwen2", {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}, {}),
    "yarn": (
        "qwen2",
        {
            "qwen2.rope.scaling.type": "yarn",
            "qwen2.rope.scaling.factor": 4.0,
            "qwen2.rope.scaling.original_context_length": 128,
        },
        {},
    ),
}


@pytest.mark.parametrize("name", ROPES)
def test_log_probabilities_are_the_same(name: str, tmp_path: Path):
    """Of single tokens after prompts of 150 to 400 tokens; llama.cpp has none within a character. These models magnify
    rounding: their differences are up to 0.03, and their mean square 0.01²; with other angles it is about 1."""
    family, metadata, tensors = ROPES[name]
    plain = ggufs.random_gguf(tmp_path, family, max_position_embeddings=512)
    path = ggufs.copied(plain, tmp_path / "changed.gguf", metadata, tensors)
    model, vocabulary = open_checkpoint(AutoModelForCausalLM, str(path))
    roots = [Trajectory(Problem(f"How many are {i} and {i}? " * (8 + i % 9))) for i in range(48)]
    sampling = Sampling(temperature=1.0, max_step_tokens=1, delimiter=None)
    with real_servers.llama_cpp(path, name="llama-cpp-files", cache="F32") as server:
        lm = motes.language_model(f"{server.root}/v1")
        steps = asyncio.run(lm.extend(roots, sampling, range(len(roots))))
    differences = []
    for root, step in zip(roots, steps, strict=True):
        assert isinstance(step, motes.Step)
        if step.logprob is None or len(step.token_ids) != 1:
            continue
        with torch.inference_mode():
            logprobs = model(torch.tensor([vocabulary.prompt(root.problem)])).logits[0, -1].log_softmax(-1)
        differences.append(step.logprob - float(logprobs[step.token_ids[0]]))
    assert len(differences) >= 12
    assert np.sqrt(np.mean(np.square(differences))) < 0.03


def test_answers_end_at_the_same_tokens(tmp_path: Path):
    """At those that the file names, and those that have the name of such a token."""
    ends = [*sorted(END_TOKENS), "<|eot|>", "<|endofprompt|>", "<|im_start|>"]
    tokens = ["a", *ends, "b"]
    named = {"tokenizer.ggml.eos_token_id": tokens.index("<|eot|>"), "tokenizer.ggml.bos_token_id": 0}
    path = ggufs.with_tokens(
        tmp_path / "ends.gguf",
        "gpt2",
        tokens,
        [1, *[3] * len(ends), 1],
        {"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["a b"], **named},
    )
    found = set()
    with real_servers.llama_cpp(path, slots=1, name="llama-cpp-files") as server:
        for i in range(len(tokens)):
            body = {"prompt": [0], "n_predict": 2, "logit_bias": [[i, 1e4]]}
            if post(server, "completion", body)["stop_type"] == "eos":
                found.add(i)
    assert set(end_token_ids(open_header(path))) == found
