"""Weights as values, and the resampling schemes.

The statistical tests here are one family: two-sided z-tests on fixed seeds, Bonferroni over all of them. With the
normal approximation the whole family raises a false alarm with probability below 1e-6 over the choice of seeds.
test_mutations.py shows that it can fail.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exact import z_limit, z_scores
from motes.errors import UnknownNameError
from motes.smc import RESAMPLING, Weights, resample
from motes.smc.weights import log_sum_exp

log_weights = arrays(np.float64, st.integers(1, 12), elements=st.floats(-50, 50) | st.just(-np.inf))
SCHEMES = tuple(RESAMPLING)

# ----------------------------------------------------------------------------------------------------------- weights


@given(log_weights)
def test_weights_agree_with_their_definitions(values: np.ndarray):
    weights = Weights(values)
    w = np.exp(values)
    if w.sum() == 0:
        assert weights.degenerate
        assert weights.ess == 0.0
        assert weights.log_mean == -np.inf
        with pytest.raises(ValueError, match="every weight is zero"):
            _ = weights.normalized
    else:
        np.testing.assert_allclose(weights.normalized, w / w.sum())
        np.testing.assert_allclose(weights.ess, w.sum() ** 2 / (w**2).sum())
        np.testing.assert_allclose(weights.log_mean, np.log(w.mean()), atol=1e-12)


@given(log_weights, st.floats(-1e5, 1e5))
def test_only_ratios_of_weights_matter(values: np.ndarray, shift: float):
    weights, shifted = Weights(values), Weights(values).add(shift)
    assert weights.degenerate == shifted.degenerate
    np.testing.assert_allclose(shifted.log_mean, weights.log_mean + shift, atol=1e-9)
    np.testing.assert_allclose(shifted.ess, weights.ess, rtol=1e-6)


def test_ess_runs_from_one_to_n():
    assert Weights(np.array([0.0, -np.inf, -np.inf])).ess == 1.0
    assert Weights.uniform(5).ess == pytest.approx(5.0)
    assert len(Weights.uniform(5)) == 5


@pytest.mark.parametrize("values", [[np.nan], [0.0, np.nan], [np.inf], [0.0, np.inf]])
def test_nan_and_infinite_weights_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="NaN"):
        Weights(np.array(values))
    with pytest.raises(ValueError, match="NaN"):
        Weights.uniform(len(values)).add(values)


@pytest.mark.parametrize("values", [np.zeros(0), np.zeros((2, 2)), np.float64(0)])
def test_weights_of_another_shape_are_refused(values: np.ndarray):
    with pytest.raises(ValueError, match="shape"):
        Weights(values)


def test_weights_are_a_value():
    given_array = np.zeros(3)
    weights = Weights(given_array)
    given_array[0] = 7.0
    assert weights.log_weights.tolist() == [0.0, 0.0, 0.0]
    added = weights.add([1.0, 2.0, 3.0])
    assert weights.log_weights.tolist() == [0.0, 0.0, 0.0]
    assert added.log_weights.tolist() == [1.0, 2.0, 3.0]
    for array in (weights.log_weights, weights.normalized, added.log_weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_log_sum_exp_of_nothing_is_minus_infinity():
    assert log_sum_exp(np.zeros(0)) == -np.inf
    assert log_sum_exp(np.full(3, -np.inf)) == -np.inf
    assert log_sum_exp(np.array([1000.0, 1000.0])) == pytest.approx(1000.0 + np.log(2))


# -------------------------------------------------------------------------------------------------------- resampling

W = {
    "even": np.full(8, 1 / 8),
    "skewed": np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.015, 0.005]),
    "zeros": np.array([0.0, 0.3, 0.0, 0.0, 0.45, 0.25, 0.0]),
    "one": np.array([0.0, 0.0, 1.0]),
    "more": np.array([0.7, 0.2, 0.1]),  # resampled to more offspring than there are particles
}
N_OFFSPRING = {"even": 8, "skewed": 8, "zeros": 7, "one": 3, "more": 10}
RUNS = 3000
LIMIT = z_limit(len(SCHEMES) * sum(map(len, W.values())))


def offspring(rng: np.random.Generator, weights: np.ndarray, n: int, scheme: str) -> np.ndarray:
    ancestors = resample(rng, weights, n, scheme)
    assert ancestors.shape == (n,)
    return np.bincount(ancestors, minlength=weights.size)


@pytest.mark.parametrize("name", W)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_expected_offspring_is_n_times_weight(scheme: str, name: str):
    rng = np.random.default_rng(1)
    weights, n = W[name], N_OFFSPRING[name]
    samples = np.array([offspring(rng, weights, n, scheme) for _ in range(RUNS)])
    assert np.abs(z_scores(samples, n * weights)).max() < LIMIT
    assert (samples[:, weights == 0] == 0).all()


distributions = arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)).filter(lambda w: w.sum() > 1e-3)


@given(distributions, st.integers(1, 20), st.integers(0, 2**32))
def test_bounds_that_hold_for_every_draw(weights: np.ndarray, n: int, seed: int):
    weights = weights / weights.sum()
    expected = n * weights
    drawn = {scheme: offspring(np.random.default_rng(seed), weights, n, scheme) for scheme in SCHEMES}
    for counts in drawn.values():
        assert counts.sum() == n
        assert (counts[weights == 0] == 0).all()
    slack = 1e-9  # of a product that rounding puts on the other side of a whole number
    assert (drawn["systematic"] >= np.floor(expected - slack)).all()
    assert (drawn["systematic"] <= np.ceil(expected + slack)).all()
    assert (drawn["stratified"] > expected - 2 - slack).all()
    assert (drawn["stratified"] < expected + 2 + slack).all()
    assert (drawn["residual"] >= np.floor(expected - slack)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_same_generator_state_same_ancestors(scheme: str):
    first, second, other = (resample(np.random.default_rng(s), W["skewed"], 50, scheme) for s in (3, 3, 4))
    assert first.tolist() == second.tolist() == sorted(first)
    if scheme != "systematic":
        assert first.tolist() != other.tolist()


class Stub:
    """A generator whose every uniform is `value`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, size: int | None = None) -> float | np.ndarray:
        return self.value if size is None else np.full(size, self.value)


SHORT = np.array([*[0.1] * 10, 0.0])  # ends in a particle of weight zero
JUST_UNDER_ONE = np.nextafter(1.0, 0.0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [1, 3, 10, 11])
def test_cumulative_sums_under_one_do_not_run_off_the_end(scheme: str, n: int):
    assert np.cumsum(SHORT)[-1] <= JUST_UNDER_ONE  # so that the largest uniform lies at or beyond the last sum
    ancestors = resample(Stub(JUST_UNDER_ONE), SHORT, n, scheme)  # type: ignore[arg-type]
    assert ancestors.max() == 9, "the last particle that has weight"
    first = resample(Stub(0.0), np.array([0.0, 0.5, 0.5]), n, scheme)  # type: ignore[arg-type]
    assert first.min() == 1, "the first particle that has weight"


def test_residual_keeps_whole_parts_that_rounding_left_just_under():
    weights = np.array([0.1 + 0.2, 0.7]) / (0.1 + 0.2 + 0.7)  # 10·W is (3, 7) up to rounding
    tenths = np.array([0.29, 0.57, 0.14])  # 100·0.29 = 28.999…996
    assert np.floor(100 * tenths).sum() < 100
    for seed in range(50):
        assert offspring(np.random.default_rng(seed), weights, 10, "residual").tolist() == [3, 7]
        assert offspring(np.random.default_rng(seed), tenths, 100, "residual").tolist() == [29, 57, 14]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_that_are_no_distribution_are_refused(scheme: str):
    for bad in ([0.5, 0.4], [1.5, -0.5], [[1.0]], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="weights must"):
            resample(np.random.default_rng(0), bad, 2, scheme)


def test_an_unknown_scheme_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'systematic'"):
        resample(np.random.default_rng(0), [1.0], 1, "systemic")
