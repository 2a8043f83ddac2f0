"""The model's certainty of its tokens, from every engine, and the rewards and methods that use it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import motes
from engines import TGI, VLLM, Closed, LlamaCpp, SGLang, Tokenizer, connect, draw, encode, render
from motes import ConfidenceReward, DeepConf, ParticleFilter, Problem, Sampling, Step, Trajectory, bundled
from motes.confidence import Confidence, Confidences, measure_trajectory, score_of, window_means
from motes.core import Certainty
from motes.core.certainty import LEAST_LOGPROB, certainty_of_pairs
from motes.errors import ConfigurationError, RewardError
from motes.opening import check_spec

QUESTION = Problem("How many?", system="Be brief.")
PROMPT = encode(render([dict(message) for message in QUESTION.messages]))
ROOT = Trajectory(QUESTION)
STORY = "Some friends collect pears. Ben owns 7. Rosa has 5 more than Ben. How many does Rosa have?"


def certainty(confidences: Any, entropies: Any = None, k: int = 4) -> Certainty:
    confidences = np.asarray(confidences, dtype=np.float32)
    entropies = np.zeros_like(confidences) if entropies is None else np.asarray(entropies, dtype=np.float32)
    return Certainty(np.stack([np.zeros_like(confidences), entropies, confidences], axis=-1), k)


def answer(*steps: Any, k: int = 4) -> Trajectory:
    """An answer whose steps have these confidences."""
    node = ROOT
    for confidences in steps:
        tokens = tuple(range(len(confidences)))
        node = node.extend(Step("a\n\n", "step", tokens, certainty=certainty(confidences, k=k)))
    return node


# -------------------------------------------------------------------------------------------------- of a token


def test_certainty_is_what_its_definition_says():
    p = np.array([0.5, 0.25, 0.15, 0.1])
    found = Certainty.of([math.log(0.25), math.log(0.1)], np.log([p[:2], p[:2][::-1]]))
    rest = 0.25
    entropy = -(0.5 * math.log(0.5) + 0.25 * math.log(0.25) + rest * math.log(rest))
    assert found.k == 2
    assert_allclose(found.logprobs, np.log([0.25, 0.1]), rtol=1e-6)
    assert_allclose(found.entropies, [entropy, entropy], rtol=1e-6)
    assert_allclose(found.confidences, [-math.log(0.5 * 0.25) / 2] * 2, rtol=1e-6)


def test_with_all_tokens_the_entropy_is_exact_and_a_uniform_distribution_has_the_least_confidence():
    p = np.random.default_rng(0).dirichlet(np.ones(9), size=50)
    found = Certainty.of(np.log(p[:, 0]), np.log(p))
    assert_allclose(found.entropies, -(p * np.log(p)).sum(axis=-1), rtol=1e-5)
    assert (found.confidences > math.log(9)).all()
    even = Certainty.of([math.log(1 / 9)], np.log(np.full((1, 9), 1 / 9)))
    assert_allclose([even.entropies[0], even.confidences[0]], math.log(9), rtol=1e-6)


def test_impossible_tokens_are_bounded():
    found = Certainty.of([-math.inf, 0.003], [[0.0, -math.inf], [-1e9, 0.003]])
    assert_allclose(found.confidences, -LEAST_LOGPROB / 2)
    assert_allclose(found.entropies, 0.0, atol=1e-6)
    assert_allclose(found.logprobs, [LEAST_LOGPROB, 0.0])


def test_of_what_a_server_returns_the_likeliest_count_and_incomplete_places_do_not():
    pairs = [(-1.0, [-3.0, -1.0, -2.0]), (-0.5, [-0.5, -2.0]), (-2.0, [])]
    found = certainty_of_pairs(pairs, 2)
    assert found is not None
    assert len(found) == 2
    assert_allclose(found.confidences, [1.5, 1.25])
    found = certainty_of_pairs(pairs, 3)
    assert found is not None
    assert (len(found), found.k) == (1, 3)
    pairs = [(math.nan, [-1.0, -2.0]), (-1.0, [-1.0, math.nan]), (-1.0, [-1.0, -2.0])]
    found = certainty_of_pairs(pairs, 2)
    assert found is not None
    assert_allclose(found.confidences, [1.5])
    assert certainty_of_pairs([(-1.0, [])], 2) is None
    assert certainty_of_pairs([], 2) is None


def test_parts_can_be_cut_and_joined():
    both = Certainty.concatenate([certainty([1, 2], k=8), certainty([]), certainty([3], k=4)])
    assert both is not None
    assert both.confidences.tolist() == [1, 2, 3]
    assert both.k == 4
    assert both[1:].confidences.tolist() == [2, 3]
    assert Certainty.concatenate([]) is None


# ---------------------------------------------------------------------------------------- what engines return

SERVERS: dict[str, Any] = {
    "vllm": (VLLM, {}, 20),
    "llama.cpp": (LlamaCpp, {}, 20),
    "llama.cpp, cut on this side": (LlamaCpp, {"logprobs": True}, 20),
    "sglang": (SGLang, {"vocabulary": Tokenizer()}, 20),
    "tgi": (TGI, {}, 5),
}


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("k", [2, 5])
def test_servers_return_it(name: str, k: int):
    """Of every token, except for those of a delimiter where the server leaves them out."""
    engine, options, _ = SERVERS[name]
    sampling = Sampling(temperature=0.9, max_step_tokens=5, top_logprobs=k)

    async def main() -> None:
        lm = await connect(engine(), seeds="particle", **options)
        steps = await lm.extend([ROOT] * 60, sampling, range(60))
        assert {step.end for step in steps} == {"eos", "length", "step"}
        for seed, step in enumerate(steps):
            drawn = draw(PROMPT, limit=5, stops=["\n\n"], temperature=0.9, seed=seed)
            assert step.certainty is not None
            n = len(step.certainty)
            lost = len(encode("\n\n")) if name == "llama.cpp" and step.end == "step" else 0
            assert n == len(drawn.ids) - lost
            if not n:
                continue
            top = [[value for _, value in drawn.top(i, k)] for i in range(n)]
            assert_allclose(step.certainty.values, Certainty.of(drawn.logprobs[:n], top).values, rtol=1e-5)

    asyncio.run(main())


@pytest.mark.parametrize("incremental", [False, True])
def test_streams_return_it(incremental: bool):
    """Those of steps that a pattern ends, which this side cuts: whole answers so far, or new tokens only."""

    async def main() -> None:
        import re

        engine = SGLang()
        engine.incremental = incremental
        lm = await connect(engine, seeds="particle", vocabulary=Tokenizer())
        sampling = Sampling(temperature=0.9, max_step_tokens=5, top_logprobs=3, delimiter=re.compile(r"\n\n"))
        steps = await lm.extend([ROOT] * 12, sampling, range(12))
        assert engine.asked[-1]["stream"]
        for step in steps:
            assert step.certainty is not None
            assert len(step.certainty) == step.num_tokens

    asyncio.run(main())


def test_a_chat_returns_it_for_whole_answers():
    async def main() -> None:
        lm = await connect(Closed(), name="openai")
        sampling = Sampling(temperature=0.9, top_logprobs=3).whole()
        steps = await lm.extend([ROOT] * 3, sampling, range(3))
        assert lm.gives_certainty(sampling)
        lengths = []
        for step in steps:
            assert step.certainty is not None
            assert step.certainty.k == 3
            lengths.append(len(step.certainty))
        assert sum(lengths) == sum(step.num_tokens for step in steps) > 3

    asyncio.run(main())


def test_nobody_asks_for_it_in_vain():
    """Without top_logprobs requests are as before, and steps have none."""

    async def main() -> None:
        for engine, options in ((VLLM(), {}), (LlamaCpp(), {}), (SGLang(), {"vocabulary": Tokenizer()})):
            lm = await connect(engine, **options)
            (step,) = await lm.extend([ROOT], Sampling(max_step_tokens=3), [0])
            assert step.certainty is None
            assert not lm.gives_certainty(Sampling())
            body = engine.asked[-1]
            assert not any(body.get(name) for name in ("logprobs", "n_probs", "top_logprobs_num"))

    asyncio.run(main())


def test_a_server_that_returns_fewer_says_how_many():
    async def main() -> None:
        lm = await connect(TGI())
        with pytest.raises(ConfigurationError, match="of at most 5 tokens in each place, not of 20"):
            await lm.extend([ROOT], Sampling(top_logprobs=20), [0])

    asyncio.run(main())


def test_the_local_engine_returns_it():
    """From its own logits, whatever else is in the batch."""
    import torch
    from transformers import AutoModelForCausalLM

    lm: Any = motes.language_model("tiny")
    checkpoint = AutoModelForCausalLM.from_pretrained(bundled.path("lm"), dtype=torch.float32)
    root = Trajectory(Problem(STORY))
    samplings = [Sampling(temperature=0.7, top_k=5, top_logprobs=k) for k in (0, 3, 20)]

    async def main() -> list[list[Step]]:
        return list(await asyncio.gather(*(lm.extend([root] * 4, sampling, range(4)) for sampling in samplings)))

    without, *others = asyncio.run(main())
    assert {step.certainty for step in without} == {None}
    for sampling, steps in zip(samplings[1:], others, strict=True):
        assert [step.token_ids for step in steps] == [step.token_ids for step in without]
        for step in steps:
            prompt = lm.vocabulary.prompt(root.problem)
            with torch.inference_mode():
                logits = checkpoint(torch.tensor([[*prompt, *step.token_ids]])).logits[0]
            logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            sampled = logprobs[torch.arange(len(step.token_ids)), torch.tensor(step.token_ids)]
            expected = Certainty.of(sampled.numpy(), logprobs.topk(sampling.top_logprobs, -1).values.numpy())
            assert step.certainty is not None
            assert step.certainty.k == sampling.top_logprobs
            assert_allclose(step.certainty.values, expected.values, atol=2e-4)


# --------------------------------------------------------------------------------------------------- of a text


def test_windows():
    values = np.array([1.0, 5.0, 3.0, 7.0])
    assert_allclose(window_means(values, 2), [3.0, 4.0, 5.0])
    assert_allclose(window_means(values, 4), [4.0])
    assert_allclose(window_means(values, 9), [4.0])
    assert_allclose(window_means(values, 1), values)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 100])
def test_running_measures_are_those_of_the_whole_text(window: int):
    """However the tokens are divided into steps."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        values = rng.uniform(2, 12, size=rng.integers(1, 30))
        entropies = rng.uniform(0, 2, size=len(values))
        summary = Confidence(window)
        for part in np.split(np.arange(len(values)), np.sort(rng.integers(0, len(values), size=4))):
            summary = summary.add(certainty(values[part], entropies[part]))
        means = window_means(values, window)
        expected = {
            "certainty": values.mean(),
            "entropy": -entropies.mean(),
            "tail": values[-window:].mean(),
            "lowest": means.min(),
        }
        assert {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()} == {
            name: summary.measure(name)  # type: ignore[arg-type]
            for name in expected
        }
        assert sum(map(len, summary.recent[1:])) < window


def test_summaries_of_prefixes_share_the_numbers_of_their_steps():
    """With a window each, their memory would grow with the square of a text."""
    node, confidences = answer(*np.random.default_rng(3).uniform(2, 12, size=(20, 5))), Confidences(window=42)
    for each in node.path:
        recent = confidences.of(each).recent
        assert len(recent) == min(each.depth, 9)
        for part, step in zip(recent, each.steps[-len(recent) :], strict=True):
            assert step.certainty is not None
            assert np.shares_memory(part, step.certainty.values)


def test_of_the_lowest_tenth():
    values = np.random.default_rng(2).uniform(2, 12, size=47)
    trajectory = answer(values[:20], [], values[20:])
    means = np.sort(window_means(values, 3))
    found = measure_trajectory(trajectory, "bottom", Confidences(3))
    assert found == pytest.approx(means[:5].mean(), rel=1e-5)  # of 45 windows
    assert math.isnan(measure_trajectory(ROOT, "bottom", Confidences(3)))


def test_scores_lie_between_no_preference_and_certainty():
    assert score_of(math.log(20), "certainty", 20) == 0
    assert score_of(math.log(20) * 2, "tail", 20) == pytest.approx(1 - 1 / math.e)
    assert score_of(1e9, "lowest", 20) == 1
    assert score_of(1.0, "certainty", 20) == 0  # rounding below the least
    assert score_of(-0.5, "entropy", 20) == pytest.approx(math.exp(-0.5))
    assert score_of(0.1, "entropy", 20) == 1
    assert score_of(math.nan, "entropy", 0) == 0.5


# ---------------------------------------------------------------------------------------------------- as a reward


def scores(reward: motes.RewardModel, *trajectories: Trajectory) -> list[list[float]]:
    return [list(values) for values in asyncio.run(reward.score(trajectories))]  # type: ignore[arg-type]


def test_a_reward_scores_each_prefix_and_costs_nothing():
    reward = ConfidenceReward("tail", window=2)
    whole = answer([2.0, 4.0], [6.0], [])
    ((first, second, third),) = scores(reward, whole)
    assert first == pytest.approx(score_of(3.0, "tail", 4), rel=1e-6)
    assert second == third == pytest.approx(score_of(5.0, "tail", 4), rel=1e-6)
    assert scores(reward, answer([2.0, 4.0], [6.0])) == [[first, second]]  # whatever it has read before
    (result,) = asyncio.run(reward.score([whole]))
    assert result.usage == motes.Usage()  # type: ignore[attr-defined]
    assert reward.num_parameters == 0


def test_a_prefix_without_tokens_is_neutral():
    opened = ROOT.extend(Step("<think>", "step"))
    assert scores(ConfidenceReward(), opened) == [[0.5]]
    step = Step("a", "eos", (1,), certainty=certainty([5.0]))
    assert scores(ConfidenceReward(), opened.extend(step))[0][1] > 0.5


def test_without_the_certainty_of_a_step_there_is_no_score():
    """The others have one, and the error says what to do."""
    one = Step("a", "eos", (1,), certainty=certainty([0.1], k=1))  # of one token nothing follows
    unknown = [ROOT.extend(Step("a", "eos", (1,))), ROOT.extend(one)]
    *failures, known = asyncio.run(ConfidenceReward().score([*unknown, answer([5.0])]))
    for failure in failures:
        assert isinstance(failure, motes.Failure)
        assert isinstance(failure.error, RewardError)
        assert "returned no log-probabilities of the likeliest tokens with a step: use" in str(failure.error)
    assert known == pytest.approx((score_of(5.0, "certainty", 4),))


@pytest.mark.parametrize(
    ("spec", "measure", "window"),
    [
        ("confidence:", "certainty", 2048),
        ("confidence:tail", "tail", 2048),
        ("confidence:lowest?window=32&top_logprobs=5", "lowest", 32),
    ],
)
def test_its_spec(spec: str, measure: str, window: int):
    reward: Any = motes.reward_model(spec)
    assert (reward.measure, reward.window) == (measure, window)
    check_spec("prm", spec)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("confidence:tails", "did you mean 'tail'"),
        ("confidence:bottom", "measure of confidence"),  # not token by token
        ("confidence:tail?windows=3", "did you mean 'window'"),
        ("confidence:tail?window=0", "window must be a whole number of at least 1"),
        ("confidence:?top_logprobs=1", "top_logprobs must be a whole number of at least 2"),
    ],
)
def test_its_faults(spec: str, fault: str):
    for check in (motes.reward_model, lambda spec: check_spec("prm", spec)):
        with pytest.raises(ConfigurationError, match=fault):
            check(spec)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_run_asks_for_what_its_reward_reads(wrapped: bool):
    """Also as an outcome reward, and inside of another one."""
    reward: motes.RewardModel = ConfidenceReward()
    if wrapped:
        reward = motes.CalibratedReward(reward, motes.Calibration((0.2, 0.9), (0.1, 0.8)))
    result = motes.solve(STORY, lm="tiny", reward=reward, method=ParticleFilter(4), seed=1)
    assert result.answer is not None
    assert np.isfinite(result.scores).all()
    assert result.usage.reward_tokens == 0
    majority = motes.BestOfN(4)
    outcome = motes.solve(STORY, lm="tiny", reward="tiny", outcome_reward=reward, method=majority, seed=1)
    assert np.isfinite(outcome.scores).all()
    assert outcome.usage.reward_tokens > 0


class NoLogprobs:
    """A model of somebody else's, without log-probabilities, which says so or does not."""

    def __init__(self, says_so: bool) -> None:
        if says_so:
            self.gives_certainty = lambda sampling: False

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
        return [Step(r"\boxed{1}", "eos", (1,)) for _ in trajectories]


@pytest.mark.parametrize("method", [DeepConf(4), ParticleFilter(4), DeepConf(4, mode="offline")])
def test_a_model_that_returns_none_is_refused(method: Any):
    with pytest.raises(ConfigurationError, match="gives no log-probabilities of the likeliest tokens"):
        motes.solve(STORY, lm=NoLogprobs(True), reward=ConfidenceReward(), method=method)
    with pytest.raises(motes.MotesError, match="returned no log-probabilities of the likeliest tokens with a step"):
        motes.solve(STORY, lm=NoLogprobs(False), reward=ConfidenceReward(), method=method)
