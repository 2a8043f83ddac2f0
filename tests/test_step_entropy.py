"""Steps that end where the next token is uncertain."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import motes
from engines import VLLM, connect
from motes import Problem, Sampling, Trajectory, bundled
from motes.core import SamplingOptions
from motes.errors import ConfigurationError

STORY = "Some friends collect pears. Ben owns 7. Rosa has 5 more than Ben. Leo has 3 fewer than Rosa. How many has Leo?"


def entropies(lm: Any, ids: list[int]) -> np.ndarray:
    """(n,) of the distribution of the token behind each of these."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = AutoModelForCausalLM.from_pretrained(bundled.path("lm"), dtype=torch.float32)
    with torch.inference_mode():
        logprobs = checkpoint(torch.tensor([ids])).logits[0].log_softmax(-1)
    return np.asarray(-(logprobs.exp() * logprobs).sum(-1))


def written(lm: Any, sampling: Sampling, seed: int = 0) -> Trajectory:
    trajectory = Trajectory(Problem(STORY))
    while trajectory.finished is None and trajectory.depth < 60:
        (step,) = asyncio.run(lm.extend([trajectory], sampling, [seed + trajectory.depth]))
        trajectory = trajectory.extend(step)
    return trajectory


@pytest.mark.parametrize(("threshold", "least"), [(0.5, 1), (0.5, 6), (1.2, 3)])
def test_a_step_ends_before_every_uncertain_token_and_no_other(threshold: float, least: int):
    lm: Any = motes.language_model("tiny")
    sampling = Sampling(temperature=1.0, delimiter=None, step_entropy=threshold, min_step_tokens=least, top_logprobs=2)
    answer = written(lm, sampling)
    prompt = lm.vocabulary.prompt(answer.problem)
    tokens = [token for step in answer.steps for token in step.token_ids]
    uncertain = entropies(lm, [*prompt, *tokens])[len(prompt) - 1 : -1] > threshold  # (n,) of each token
    lengths, length = [], 0
    for is_uncertain in uncertain:
        if is_uncertain and length >= least:
            lengths.append(length)
            length = 0
        length += 1
    assert [len(step.token_ids) for step in answer.steps] == [*lengths, length]
    assert len(lengths) > 1
    assert [step.end for step in answer.steps] == ["step"] * len(lengths) + ["eos"]
    for step in answer.steps:  # the token that was not recorded counts nowhere
        assert step.usage is not None
        assert step.usage.generated_tokens == len(step.token_ids)
        assert step.certainty is not None
        assert len(step.certainty) == len(step.token_ids)
        assert step.logprob == pytest.approx(step.certainty.logprobs.sum(), abs=1e-3)
    assert answer.text == lm.vocabulary.decode(tokens[:-1])


def test_they_do_not_change_what_is_written():
    """At temperature 0; with delimiters beside; in a batch with other steps."""
    lm: Any = motes.language_model("tiny")
    whole = written(lm, Sampling(temperature=0).whole())
    for delimiter in (None, "\n\n"):
        parts = written(lm, Sampling(temperature=0, delimiter=delimiter, step_entropy=0.3, min_step_tokens=2))
        assert parts.text == whole.text
        assert parts.depth > 3
    root = Trajectory(Problem(STORY))
    samplings = [Sampling(step_entropy=0.3, min_step_tokens=2), Sampling(), Sampling(delimiter=None, max_step_tokens=9)]

    async def both() -> list[Any]:
        alone = [await lm.extend([root] * 3, sampling, range(3)) for sampling in samplings]
        together = await asyncio.gather(*(lm.extend([root] * 3, sampling, range(3)) for sampling in samplings))
        return [alone, together]

    alone, together = asyncio.run(both())
    assert [[step.token_ids for step in steps] for steps in alone] == [
        [step.token_ids for step in steps] for steps in together
    ]


def test_a_filter_runs_over_them():
    sampling = Sampling(delimiter=None, step_entropy=0.5, min_step_tokens=4)
    result = motes.solve(
        STORY, lm="tiny", reward="confidence:", method=motes.ParticleFilter(4), sampling=sampling, seed=1
    )
    assert result.answer is not None
    assert len(result.records) > 2


def test_a_step_that_is_too_long_is_cut():
    lm: Any = motes.language_model("tiny")
    sampling = Sampling(delimiter=None, step_entropy=100.0, max_step_tokens=5)
    (step,) = asyncio.run(lm.extend([Trajectory(Problem(STORY))], sampling, [0]))
    assert (step.end, len(step.token_ids)) == ("length", 5)


def test_other_engines_refuse_it():
    sampling = Sampling(step_entropy=1.0)

    async def served() -> None:
        await (await connect(VLLM())).extend([Trajectory(Problem("?"))], sampling, [0])

    with pytest.raises(ConfigurationError, match="only a local model can: end them by a number of tokens"):
        asyncio.run(served())
    table = motes.TabularLanguageModel({(): {"a": 1.0}})
    with pytest.raises(ConfigurationError, match="cannot end steps by a pattern or an entropy"):
        motes.solve("?", lm=table, reward=motes.TabularReward({}, default=0.5), sampling=sampling)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"step_entropy": 0.0}, "more than 0"),
        ({"step_entropy": 1.0, "min_step_tokens": 0}, "at least 1"),
        ({"step_entropy": 1.0, "pattern": "a"}, "both say what ends a step"),
        ({"step_entropy": 1.0, "delimiter": "a"}, "both say what ends a step"),
        ({"step_entropy": 1.0, "step_tokens": 5}, "both say what ends a step"),
    ],
)
def test_settings_that_contradict_are_refused(options: Any, fault: str):
    with pytest.raises(ConfigurationError, match=fault):
        SamplingOptions(**options).apply(Sampling())


def test_options_set_them():
    sampling = SamplingOptions(step_entropy=1.5, min_step_tokens=8).apply(Sampling())
    assert (sampling.step_entropy, sampling.min_step_tokens, sampling.delimiter) == (1.5, 8, None)
    assert sampling.whole().step_entropy is None
    back = SamplingOptions(delimiter="a").apply(sampling)
    assert (back.step_entropy, back.delimiter) == (None, "a")
