"""The power filter against exact numbers: its target p(x)^α by enumeration, its steps drawn from another model.

The z-tests are one family on fixed seeds (Bonferroni over all): a correct filter fails one with probability below 1e-6
over the choice of seeds, by the normal approximation. The mutations show that they can fail.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import motes
from engines import TGI, VLLM, OpenAICompatible, connect
from exact import FUNCTIONS, UNEVEN, mean_of, path_of, z_limit, z_scores
from motes import PowerFilter, Result, Sampling, Step, TabularLanguageModel, Trajectory, asolve
from motes.errors import ConfigurationError, NoParticlesError, UnknownNameError
from motes.methods import power
from mutations import mutant
from test_served import server

ALPHAS = (0.5, 2.5)
THRESHOLDS = (0.0, 0.9, 1.0)
LIMIT = z_limit((len(ALPHAS) * len(THRESHOLDS) * 2 * 2 + 1) * len(FUNCTIONS))
P = UNEVEN.lm  # answers of one to three steps


class Tempered(TabularLanguageModel):
    """Draws from its table at the sampling's temperature, step by step, as an engine does from its tokens; with
    top_k, from the k likeliest. Says so: `logprob` is the table's, `proposal_logprob` that of the draw."""

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        drawn = await TabularLanguageModel(self.tempered(sampling)).extend(trajectories, sampling, seeds)
        rows = [self.table[path_of(trajectory)] for trajectory in trajectories]
        return [
            dataclasses.replace(step, logprob=float(np.log(row[step.text])), proposal_logprob=step.logprob)
            for step, row in zip(drawn, rows, strict=True)
        ]

    def tempered(self, sampling: Sampling) -> dict[tuple[str, ...], dict[str, float]]:
        table = {}
        for prefix, row in self.table.items():
            kept = sorted(row, key=lambda text: -row[text])[: sampling.top_k or None]
            powers = {text: row[text] ** (1 / sampling.temperature) for text in kept}
            table[prefix] = {text: value / sum(powers.values()) for text, value in powers.items()}
        return table


def target(alpha: float, reachable: TabularLanguageModel = P) -> np.ndarray:
    """Z·E[f] of each function under p^α over the answers that can be drawn."""
    paths = [path for path, probability in reachable.paths() if probability > 0]
    probability = dict(P.paths())
    return np.sum([probability[x] ** alpha * np.array([f(x) for f in FUNCTIONS]) for x in paths], axis=0)


def estimates(method: Any, runs: int, sampling: Sampling) -> np.ndarray:
    """(runs, functions) of Ẑ·ΣWf."""

    async def every() -> list[Result]:
        lm = Tempered(P.table)
        return [await asolve("?", lm=lm, reward=None, method=method, sampling=sampling, seed=s) for s in range(runs)]

    return np.array(
        [np.exp(r.log_evidence) * np.array([mean_of(r, f) for f in FUNCTIONS]) for r in asyncio.run(every())]
    )


def z_of(method: Any, sampling: Sampling, runs: int = 150) -> float:
    expected = target(method.alpha, TabularLanguageModel(Tempered(P.table).tempered(sampling)))
    return float(np.abs(z_scores(estimates(method, runs, sampling), expected)).max())


@pytest.mark.parametrize("temperature", [0.6, 1.6])
@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_evidence_and_weighted_means_are_unbiased_at_any_temperature(alpha: float, scheme: str, temperature: float):
    for threshold in THRESHOLDS:
        method = PowerFilter(3, alpha, threshold, scheme)
        assert z_of(method, Sampling(temperature=temperature)) < LIMIT, threshold


def test_what_is_filtered_out_is_not_in_the_sum():
    sampling = Sampling(temperature=1.2, top_k=2)
    kept = TabularLanguageModel(Tempered(P.table).tempered(sampling))
    assert target(2.0, kept)[0] < target(2.0)[0]
    assert z_of(PowerFilter(3, 2.0, 0.9), sampling) < LIMIT


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_one_particle_weighs_its_path(temperature: float):
    """Ẑ = p(x)^α / q(x)."""
    lm, sampling = Tempered(P.table), Sampling(temperature=temperature)
    p, q = dict(P.paths()), dict(TabularLanguageModel(lm.tempered(sampling)).paths())
    for seed in range(20):
        result = motes.solve("?", lm=lm, reward=None, method=PowerFilter(1, 3.0), sampling=sampling, seed=seed)
        path = path_of(result.trajectories[0])
        assert np.exp(result.log_evidence) == pytest.approx(p[path] ** 3 / q[path])


def test_alpha_one_without_temperature_is_the_model_itself():
    result = motes.solve("?", lm=P, reward=None, method=PowerFilter(8, 1.0, ess_threshold=0.9))
    assert result.log_evidence == 0.0
    assert not result.log_weights.any()
    assert not any(record.resampled for record in result.records)


def test_at_temperature_one_over_alpha_only_normalisers_are_left_in_the_weights():
    """q(x_t) = p(x_t)^α / Σ p^α: G_t is the sum, whichever step was drawn."""
    lm = Tempered({(): {"a": 0.7, "b": 0.2, "c": 0.1}})
    result = motes.solve("?", lm=lm, reward=None, method=PowerFilter(8, 4.0), sampling=Sampling(temperature=0.25))
    assert result.log_weights == pytest.approx(np.log(0.7**4 + 0.2**4 + 0.1**4))


class Silent(TabularLanguageModel):
    """Leaves out what some engines leave out."""

    def __init__(self, table: Any, *missing: str) -> None:
        super().__init__(table)
        self.missing = dict.fromkeys(missing)

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
        return [dataclasses.replace(s, **self.missing) for s in await super().extend(trajectories, sampling, seeds)]


def test_at_temperature_one_the_proposal_is_the_model():
    method, plain = PowerFilter(6, 2.0), Sampling(temperature=1.0)
    silent = motes.solve("?", lm=Silent(P.table, "proposal_logprob"), reward=None, method=method, sampling=plain)
    full = motes.solve("?", lm=P, reward=None, method=method, sampling=plain)
    assert silent.log_weights.tolist() == full.log_weights.tolist()
    for other in (Sampling(), Sampling(temperature=1.0, top_p=0.9), Sampling(temperature=1.0, min_p=0.1)):
        with pytest.raises(ConfigurationError, match="sample at temperature 1, without top_p"):
            motes.solve("?", lm=Silent(P.table, "proposal_logprob"), reward=None, method=method, sampling=other)
    with pytest.raises(ConfigurationError, match="use another engine"):
        motes.solve("?", lm=Silent(P.table, "logprob", "proposal_logprob"), reward=None, method=method, sampling=plain)


class Partly(Silent):
    """Says that it gives log-probabilities, and lacks those of some steps, as llama.cpp does."""

    def __init__(self, *texts: str) -> None:
        super().__init__({(): {"a": 0.5, "b": 0.3, "c": 0.2}}, "logprob", "proposal_logprob")
        self.texts = texts

    def gives_logprobs(self, sampling: Sampling) -> bool:
        return True

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
        said = await TabularLanguageModel(self.table).extend(trajectories, sampling, seeds)
        silent = await super().extend(trajectories, sampling, seeds)
        return [without if step.text in self.texts else step for step, without in zip(said, silent, strict=True)]


def test_a_particle_is_dropped_where_its_step_has_no_log_probability():
    """The others have the weights that they have without it."""
    method, plain = PowerFilter(32, 2.0), Sampling(temperature=1.0)
    full = motes.solve("?", lm=Partly(), reward=None, method=method, sampling=plain)
    result = motes.solve("?", lm=Partly("b"), reward=None, method=method, sampling=plain)
    lost = np.array([trajectory.text == "b" for trajectory in full.trajectories])
    assert 0 < lost.sum() < 32
    assert (result.log_weights == -np.inf).tolist() == lost.tolist()
    kept = np.exp(full.log_weights[~lost])
    assert np.exp(result.log_weights[~lost]) == pytest.approx(kept)
    assert result.log_evidence == pytest.approx(np.log(kept.sum() / 32)), "a dropped particle counts as zero"
    assert len(result.records[0].failures) == lost.sum()
    assert "no log-probability of a step" in str(result.records[0].failures)
    with pytest.raises(NoParticlesError, match="no log-probability of a step"):
        motes.solve("?", lm=Partly("a", "b", "c"), reward=None, method=method, sampling=plain)


class Untouched(TabularLanguageModel):
    """Says of itself what `facts` say; drawing anything would be too late."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(P.table)
        vars(self).update(facts)

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
        raise AssertionError("a step was drawn")


@pytest.mark.parametrize(
    ("facts", "changes", "says"),
    [
        ({}, {"temperature": 0.0}, "temperature above 0 .*, or use greedy"),
        ({}, {"temperature": 0.0, "top_k": 3}, "temperature above 0"),
        ({"gives_logprobs": lambda sampling: False}, {}, "no log-probabilities .* another method"),
        ({"gives_logprobs": lambda sampling: sampling.top_k != 3}, {"top_k": 3}, "no log-probabilities"),
        ({"proposal_logprobs": False}, {"temperature": 0.8}, "sample at temperature 1, without top_p"),
        ({"proposal_logprobs": False}, {"top_k": 3}, "sample at temperature 1, without top_p"),
        ({"continues_prefixes": False}, {}, "whole answers only"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_drawn(facts: Any, changes: dict[str, Any], says: str):
    lm, sampling = Untouched(**facts), Sampling(temperature=1.0).replace(**changes)
    for method in (PowerFilter(4), motes.methods.method("power", 4, alpha=1.0)):
        with pytest.raises(ConfigurationError, match=says):
            motes.methods.require(method, lm, sampling)
        with pytest.raises(ConfigurationError, match=says):
            motes.solve("?", lm=lm, reward=None, method=method, sampling=sampling)


def test_what_a_method_does_not_need_is_not_asked_of_it():
    """Where the model gives log-probabilities of the model alone, temperature 1 is enough; other methods need none."""
    motes.methods.require(PowerFilter(4), Untouched(proposal_logprobs=False), Sampling(temperature=1.0))
    silent = Untouched(gives_logprobs=lambda sampling: False, proposal_logprobs=False)
    for name in motes.methods.METHODS.keys() - {"power"}:
        motes.methods.require(motes.methods.method(name, 16), silent, Sampling(temperature=0.0))


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        (VLLM, {"temperature": 0.8}),
        (VLLM, {"temperature": 1.0, "top_p": 0.9}),
        (TGI, {"temperature": 1.0, "delimiter": re.compile("[.]")}),
    ],
)
def test_servers_are_not_asked_for_what_they_cannot_give(engine: type[OpenAICompatible], changes: dict[str, Any]):
    """No server gives the log-probabilities of draws at other temperatures; some give none in a stream."""

    async def main() -> None:
        lm = await connect(engine())
        plain = Sampling(temperature=1.0, max_step_tokens=8, max_steps=2)
        assert (await asolve("How many?", lm=lm, reward=None, method=PowerFilter(2), sampling=plain)).usage.lm_calls
        asked = len(server(lm).asked)
        with pytest.raises(ConfigurationError):
            await asolve("How many?", lm=lm, reward=None, method=PowerFilter(2), sampling=plain.replace(**changes))
        assert len(server(lm).asked) == asked

    asyncio.run(main())


@pytest.mark.parametrize("name", sorted(motes.methods.METHODS))
def test_methods_of_steps_are_refused_by_models_of_whole_answers(name: str):
    method, lm = motes.methods.method(name, 16), Untouched(continues_prefixes=False)
    one_step = Sampling(max_steps=1)
    motes.methods.require(method, lm, one_step)
    if name in ("greedy", "majority", "asc", "deepconf", "bon", "wbon", "refine", "pdr"):
        motes.methods.require(method, lm, Sampling())
    else:
        with pytest.raises(ConfigurationError, match="whole answers only"):
            motes.methods.require(method, lm, Sampling())


def test_values_out_of_range_are_refused():
    for alpha in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigurationError, match="alpha must be finite and greater than 0"):
            PowerFilter(4, alpha)
    with pytest.raises(ConfigurationError, match="use one of majority, sample, vote"):
        PowerFilter(4, selector="argmax")
    with pytest.raises(ConfigurationError, match="num_particles must be a whole number of at least 1"):
        PowerFilter(0)
    with pytest.raises(UnknownNameError, match="did you mean 'residual'"):
        PowerFilter(4, resampling="residuals")
    assert PowerFilter(5).budget == 5


MUTATIONS = {
    "the proposal is not corrected for": ("self.alpha * target - proposal", "self.alpha * target - target"),
    "the proposal is raised to the power too": ("self.alpha * target - proposal", "self.alpha * (target - proposal)"),
    "the power is forgotten": ("self.alpha * target - proposal", "target - proposal"),
    "a finished answer counts again": ("if extended and t.step", "if t.step"),
    "the sampling is another's": ("self._filter(run.sampling)", "self._filter(Sampling())"),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str):
    wrong = mutant(power, *MUTATIONS[mistake]).PowerFilter
    if mistake == "the sampling is another's":
        with pytest.raises(ConfigurationError):
            motes.solve(
                "?",
                lm=Silent(P.table, "proposal_logprob"),
                reward=None,
                method=wrong(4),
                sampling=Sampling(temperature=1.0),
            )
    else:
        assert z_of(wrong(3, 2.5, 1.0, "multinomial"), Sampling(temperature=1.6), runs=400) > LIMIT
