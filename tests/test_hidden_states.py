"""The states of the model's layers that steps carry, against transformers' own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from checkpoints import FAMILIES, local, random_language_model
from motes import Problem, Sampling, Step, Trajectory
from motes.core import HiddenStates
from motes.core.hidden import join_states
from motes.errors import ConfigurationError, ContextLengthError
from motes.models.local import LocalLanguageModel

QUESTIONS = ["How many pears has Ben?", "Rosa has 5 more than Ben. How many does Rosa have?", "Who has most?"]
SAMPLING = Sampling(temperature=1.0, max_step_tokens=9, delimiter=("e", "\n"))
ROUNDING = 2e-3


def expected(lm: LocalLanguageModel, family: str, node: Trajectory, layers: Sequence[int]) -> np.ndarray:
    """(L, 2, d), by transformers, of the last step of a partial answer."""
    ids, _ = lm._ids(node)
    assert node.step is not None
    with torch.inference_mode():
        output = random_language_model(family)(torch.tensor([ids]), output_hidden_states=True)
    num_tokens = len(node.step.token_ids)
    states = np.stack([output.hidden_states[layer][0, -num_tokens - 1 : -1].numpy() for layer in layers])
    states /= np.sqrt((states**2).mean(-1, keepdims=True))
    return np.stack([states[:, -1], states.mean(1)], axis=1)


def grown(lm: LocalLanguageModel, samplings: Sequence[Sampling], rounds: int = 3) -> list[Trajectory]:
    """Answers, one for each sampling, whose steps are sampled concurrently."""

    async def grow(number: int, sampling: Sampling) -> Trajectory:
        node = Trajectory(Problem(QUESTIONS[number % len(QUESTIONS)]))
        for seed in range(rounds):
            (step,) = await lm.extend([node], sampling, [100 * number + seed])
            if step.end == "eos":
                break
            node = node.extend(step)
        return node

    async def all_of_them() -> list[Trajectory]:
        return await asyncio.gather(*(grow(number, sampling) for number, sampling in enumerate(samplings)))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_transformers(family: str):
    lm = local(family)
    for answer in grown(lm, [SAMPLING.replace(hidden_layers=(-1, 0, 1))] * 3):
        for node in answer.path:
            assert node.step is not None
            assert node.step.hidden is not None
            assert node.step.hidden.layers == (0, 1, 2)
            assert_allclose(
                node.step.hidden.values, expected(lm, family, node, (0, 1, 2)), atol=ROUNDING, rtol=ROUNDING
            )
    lm.check_integrity()


def test_each_row_of_a_batch_has_its_own_layers():
    lm = local()
    wanted = [(), (2,), (0, 1), (1, 2), (), (0,), (2,), (1,)]
    answers = grown(lm, [SAMPLING.replace(hidden_layers=layers) for layers in wanted], rounds=5)
    assert [answer.text for answer in answers] == [answer.text for answer in grown(lm, [SAMPLING] * 8, rounds=5)]
    for answer, layers in zip(answers, wanted, strict=True):
        for node in answer.path:
            assert node.step is not None
            if not layers:
                assert node.step.hidden is None
                continue
            assert node.step.hidden is not None
            assert node.step.hidden.layers == layers
            assert_allclose(node.step.hidden.values, expected(lm, "qwen2", node, layers), atol=ROUNDING, rtol=ROUNDING)


def test_they_can_be_read_later():
    lm = local()
    answers = grown(lm, [SAMPLING.replace(hidden_layers=(0, 2))] * 12)

    async def read(lm: LocalLanguageModel, first: list[int]) -> list:
        busy = asyncio.create_task(lm.extend([Trajectory(Problem(QUESTIONS[0]))] * 4, SAMPLING, range(4)))
        found = await lm.read_states(answers, (0, 2), first=first)
        await busy
        return found

    for reader, whole in ((lm, False), (local(), True)):  # with and without stored prefixes
        first = [0 if whole else min(number % 3, answer.depth - 1) for number, answer in enumerate(answers)]
        for answer, skipped, found in zip(answers, first, asyncio.run(read(reader, first)), strict=True):
            assert len(found.steps) == answer.depth - skipped
            for step, states in zip(answer.steps[skipped:], found.steps, strict=True):
                assert states is not None
                assert step.hidden is not None
                assert states.layers == step.hidden.layers == (0, 2)
                assert_allclose(states.values, step.hidden.values, atol=ROUNDING, rtol=ROUNDING)
            ids, _ = reader._ids(answer)
            assert found.usage.reward_tokens + found.usage.reward_tokens_cached == len(ids) - 1
        reader.check_integrity()


def test_text_alone_and_appended_text():
    lm = local()
    root = Trajectory(Problem(QUESTIONS[0]))
    (step,) = asyncio.run(lm.extend([root], SAMPLING.replace(delimiter=None, hidden_layers=(1,)), [0]))
    sampled = root.extend(step)
    cut = root.extend(Step(step.text + " So", "step", step.token_ids, appended=" So"))
    text = root.extend(Step("Ben owns 7.\n\n", "step")).extend(Step("", "length"))
    of_sampled, of_cut, of_text = asyncio.run(lm.read_states([sampled, cut, text], (1,)))
    assert_allclose(of_cut.steps[0].values, of_sampled.steps[0].values, atol=ROUNDING)
    assert of_text.steps[0] is not None
    assert of_text.steps[1] is None, "a step without tokens was sampled from no state"


def test_what_is_refused():
    lm = local()
    node = Trajectory(Problem(QUESTIONS[0]))
    for layer in (3, -4):
        with pytest.raises(ConfigurationError, match=f"no layer {layer}: hidden_layers are numbers from -3 to 2"):
            asyncio.run(lm.extend([node], SAMPLING.replace(hidden_layers=(layer,)), [0]))
    long = node.extend(Step("pears " * 600, "step"))
    with pytest.raises(ContextLengthError):
        asyncio.run(lm.read_states([long], (0,)))


def test_some_of_the_layers():
    values = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    states = HiddenStates((1, 4, 9), values)
    assert states.of((9, 1)).values.tolist() == values[[2, 0]].tolist()
    assert states.of((4,)).last.tolist() == [[4, 5]]
    assert states.mean.tolist() == [[2, 3], [6, 7], [10, 11]]
    with pytest.raises(KeyError):
        states.of((1, 2))


def test_settings_without_layers_are_as_before():
    assert "hidden_layers" not in Sampling().to_dict()
    assert Sampling(hidden_layers=(1,)).to_dict()["hidden_layers"] == (1,)


def test_a_step_of_two_calls_has_the_states_of_one():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(7, 1, 4))  # of one layer

    def of(part: np.ndarray) -> HiddenStates:
        return HiddenStates((3,), np.stack([part[-1], part.mean(0)], axis=1).astype(np.float16))

    joined = join_states(of(tokens[:5]), of(tokens[5:]), (5, 2))
    assert joined is not None
    assert joined.layers == (3,)
    assert_allclose(joined.values, of(tokens).values, atol=2e-3)
    whole = of(tokens)
    assert join_states(None, whole, (0, 7)) is whole
    assert join_states(whole, None, (7, 0)) is whole
