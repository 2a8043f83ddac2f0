"""Probes: what they compute, what they cost, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import motes
from checkpoints import local
from motes import ParticleFilter, Problem, Sampling, Step, TabularLanguageModel, Trajectory
from motes.core import NEUTRAL, Failure, HiddenStates, Scores
from motes.errors import ConfigurationError, RewardError
from motes.lab.run.identity import of_model
from motes.opening import check_spec
from motes.rewards.probe import SETTINGS, WEIGHTS, Probe, ProbeReward

WIDTH, LAYERS = 48, (1, 2)  # of `checkpoints.local()`
QUESTION = Problem("Rosa has 5 more than Ben. How many does Rosa have?")
SAMPLING = Sampling(max_step_tokens=8, max_steps=4, delimiter="e")


def probe(members: int = 3, hidden: int = 5, width: int = WIDTH, layers: tuple[int, ...] = LAYERS, **more) -> Probe:
    rng = np.random.default_rng(0)
    size = 2 * width * len(layers)
    shapes = {
        "center": (size,), "inner": (members, hidden, size), "inner_bias": (members, hidden),
        "outer": (members, hidden or size), "outer_bias": (members,),
    }  # fmt: skip
    weights = {name: (rng.normal(size=shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}
    weights["scale"] = rng.uniform(0.5, 2, size).astype(np.float32)
    return Probe(layers, weights, **more)


def states(seed: int, width: int = WIDTH, layers: tuple[int, ...] = LAYERS) -> HiddenStates:
    values = np.random.default_rng(seed).normal(size=(len(layers), 2, width))
    return HiddenStates(layers, values.astype(np.float16))


def score(reward: ProbeReward, *trajectories: Trajectory) -> list:
    return asyncio.run(reward.score(trajectories))


# ------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("hidden", [0, 5])
def test_scores_are_what_the_definition_says(hidden: int):
    one = probe(hidden=hidden, slope=1.3, shift=-0.2, temper=0.5)
    found = one.scores(np.stack([one.features(states(seed)) for seed in range(4)]))
    weights = one.weights
    for seed, value in enumerate(found):
        z = (states(seed).values.astype(np.float64).reshape(-1) - weights["center"]) / weights["scale"]
        logits = []
        for member in range(3):
            inner = z
            if hidden:
                inner = np.maximum(weights["inner"][member] @ z + weights["inner_bias"][member], 0)
            logits.append(weights["outer"][member] @ inner + weights["outer_bias"][member])
        shrunk = np.mean(logits) / math.sqrt(1 + 0.5 * np.var(logits))
        assert value == pytest.approx(1 / (1 + math.exp(-(1.3 * shrunk - 0.2))), rel=1e-4)


def test_where_members_disagree_the_score_is_nearer_to_even():
    features = np.stack([probe().features(states(seed)) for seed in range(20)])
    plain, tempered = (np.array(probe(temper=temper).scores(features)) for temper in (0.0, math.pi / 8))
    assert ((plain > 0.5) == (tempered > 0.5)).all()
    assert (np.abs(tempered - 0.5) < np.abs(plain - 0.5)).all()


def test_other_layers_may_be_there_and_their_order_does_not_matter():
    one = probe(layers=(2,))
    both = states(0, layers=(1, 2))
    assert one.features(both).tolist() == one.features(both.of((2,))).tolist()


def test_it_is_kept_in_a_folder(tmp_path: Path):
    one = probe(slope=1.5, shift=0.25, temper=0.1, provenance={"model": "a model", "auroc": 0.9})
    one.save(tmp_path / "mine")
    again = Probe.load(tmp_path / "mine")
    features = np.stack([one.features(states(seed)) for seed in range(4)])
    assert again.scores(features) == one.scores(features)
    assert (again.layers, again.provenance, again.num_parameters) == (one.layers, one.provenance, one.num_parameters)


# ---------------------------------------------------------------------------------------------------- how it rides


def test_a_filter_rides_on_it_without_reading_a_token(tmp_path: Path):
    probe().save(tmp_path)
    lm, reward = local(), motes.reward_model(f"probe:{tmp_path}")
    method = ParticleFilter(8)
    result = motes.solve(QUESTION, lm=lm, reward=reward, method=method, sampling=SAMPLING, seed=3)
    assert result.usage.reward_tokens == 0
    assert result.usage.reward_calls > 0
    found = [scores for record in result.records for scores in record.step_scores]
    assert len({round(score, 6) for scores in found for score in scores}) > 4
    reader = ProbeReward(probe(), reader=lm)
    for trajectory, scores in zip(result.trajectories, score(ProbeReward(probe()), *result.trajectories), strict=True):
        (read,) = score(reader, trajectory)
        assert_allclose(read, scores, atol=2e-3)
    again = motes.solve(QUESTION, lm=lm, reward=reader, method=method, sampling=SAMPLING, seed=3)
    assert again.text == result.text
    assert again.usage.reward_tokens > 0


def test_a_reader_reads_each_step_once():
    lm = local()
    reader = ProbeReward(probe(), reader=lm)
    node = Trajectory(QUESTION)
    num_read = []
    for _ in range(4):
        node = node.extend(Step("Ben owns 7.\n\n", "step"))
        (scores,) = score(reader, node)
        assert isinstance(scores, Scores)
        assert scores.reads is not None
        num_read.append(scores.usage.reward_tokens)
        assert len(scores) == len(scores.reads.after) - 1 == node.depth
    assert num_read[1] == num_read[2] == num_read[3] == len(lm.vocabulary.encode("Ben owns 7.\n\n", special=False))
    (again,) = score(reader, node)
    assert again.usage.reward_tokens == 0
    (fresh,) = score(ProbeReward(probe(), reader=local()), node)
    assert_allclose(again, fresh, atol=2e-3)


def test_the_contract_of_a_reward_model():
    motes.check_reward_model(ProbeReward(probe(), reader=local()), tolerance=2e-3)


def test_a_step_without_tokens_has_the_score_of_the_text_before_it():
    first = Trajectory(QUESTION).extend(Step("a", "step", (1,), hidden=states(0)))
    before, after = score(ProbeReward(probe()), first, first.extend(Step("", "length")))
    assert list(after) == [before[0], before[0]]
    assert list(score(ProbeReward(probe()), Trajectory(QUESTION).extend(Step("", "length")))[0]) == [NEUTRAL]


# --------------------------------------------------------------------------------------------------- what is refused


def test_models_without_hidden_states_are_refused_before_the_first_token(tmp_path: Path):
    probe().save(tmp_path)
    lm = TabularLanguageModel({(): {"\\boxed{1}": 1.0}})
    with pytest.raises(ConfigurationError, match=r"gives no hidden states.*probe:FOLDER\?lm=hf"):
        motes.solve(QUESTION, lm=lm, reward=f"probe:{tmp_path}", method=ParticleFilter(2))


def test_an_answer_without_states_has_no_score():
    root = Trajectory(QUESTION)
    lacking = root.extend(Step("a", "step", (1, 2))).extend(Step("b", "step", (1,), hidden=states(0)))
    other = root.extend(Step("b", "step", (1,), hidden=states(0)))
    failure, scores = score(ProbeReward(probe()), lacking, other)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, RewardError)
    assert "probe:FOLDER?lm=hf" in str(failure.error)
    assert len(scores) == 1


def test_another_models_states_are_refused():
    for other, message in (
        (states(0, width=WIDTH + 2), "trained on another language model"),
        (states(0, layers=(1, 3)), "reads layer 2"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            score(ProbeReward(probe()), Trajectory(QUESTION).extend(Step("a", "step", (1,), hidden=other)))


def test_an_answer_that_does_not_fit_fails_alone():
    reader = ProbeReward(probe(), reader=local())
    root = Trajectory(QUESTION)
    long, short = score(reader, root.extend(Step("pears " * 600, "step")), root.extend(Step("Ben.", "eos")))
    assert isinstance(long, Failure)
    assert len(short) == 1


def test_damaged_files_are_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="there is no probe in"):
        motes.reward_model(f"probe:{tmp_path}")
    probe().save(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (SETTINGS, WEIGHTS)}
    settings = json.loads(whole[SETTINGS])
    for name, content in (
        (SETTINGS, b"{"),
        (SETTINGS, b"[]"),
        (SETTINGS, json.dumps({**settings, "format": "another"}).encode()),
        (SETTINGS, json.dumps({**settings, "slope": "NaN"}).encode()),
        (SETTINGS, json.dumps({**settings, "layers": [1, 2, 3, 4, 5]}).encode()),
        (SETTINGS, json.dumps({**settings, "temper": -1}).encode()),
        (WEIGHTS, whole[WEIGHTS][:-100]),
        (WEIGHTS, b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"damaged|cannot have"):
            Probe.load(tmp_path)
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ConfigurationError, match="damaged"):
        Probe.load(tmp_path)


def test_specs(tmp_path: Path):
    probe().save(tmp_path)
    check_spec("prm", f"probe:{tmp_path}?lm=tiny")
    for options, message in (("lm=http://host/v1", "local model"), ("lm=3", "local model"), ("lb=tiny", "lb")):
        for check in (motes.reward_model, lambda spec: check_spec("prm", spec)):
            with pytest.raises(ConfigurationError, match=message):
                check(f"probe:{tmp_path}?{options}")


def test_its_identity_is_that_of_its_weights():
    one, other = probe(), probe(temper=0.1)
    assert of_model(ProbeReward(one)) == of_model(ProbeReward(probe())) == {"kind": "probe", "probe": one.digest}
    assert of_model(ProbeReward(other)) != of_model(ProbeReward(one))
    assert "reader" in of_model(ProbeReward(one, reader=local()))
