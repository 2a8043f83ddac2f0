"""The front door: solve, asolve, opening models, and errors that say what to do."""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import Callable

import pytest

import motes
from exact import UNEVEN, path_of
from motes import Greedy, Majority, ParticleFilter, Problem, Result, TabularLanguageModel
from motes.api import partial_result
from motes.errors import ConfigurationError, MissingExtraError, MotesError, UnknownNameError
from motes.tasks import TASKS, Arithmetic, task

MODELS = {"lm": UNEVEN.lm, "reward": UNEVEN.reward}


class Initials:
    """An answer rule of one's own."""

    def answer(self, text: str) -> str | None:
        return "C" if text.endswith("c") else None

    def equivalent(self, first: str, second: str) -> bool:
        return first == second


def test_solve_and_asolve_are_the_same():
    first = motes.solve("?", **MODELS, method=ParticleFilter(4), seed=3)
    second = asyncio.run(motes.asolve(Problem("?"), **MODELS, method=ParticleFilter(4), seed=3))
    assert first.problem == second.problem == Problem("?")
    assert (first.method, first.seed, first.error) == ("ParticleFilter", 3, None)
    assert list(map(path_of, first.trajectories)) == list(map(path_of, second.trajectories))
    assert first.log_evidence == second.log_evidence


def test_sixteen_particles_are_the_default():
    result = motes.solve("?", **MODELS)
    assert (result.method, len(result.trajectories), result.seed) == ("ParticleFilter", 16, 0)


def test_an_answer_rule_of_ones_own():
    lm = TabularLanguageModel({(): {"a": 1.0}, ("a",): {"c": 1.0}, ("a", "c"): {"d": 1.0}})
    result = motes.solve("?", lm=lm, reward=UNEVEN.reward, task=Initials())
    assert (result.answer, result.text, result.confidence) == ("C", "ac", pytest.approx(1.0))
    assert {t.finished for t in result.trajectories} == {"answer"}


def test_solve_inside_a_running_loop_names_the_remedy():
    async def inside() -> Result:
        return motes.solve("?", **MODELS)

    with pytest.raises(ConfigurationError, match=r"await motes\.asolve"):
        asyncio.run(inside())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"problem": ""}, "the question is empty"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"lm": "gpt"}, "'gpt' names no model: use 'tiny'"),
        ({"lm": "hf:"}, "names no model"),
        ({"reward": "nothing"}, "'nothing' names no model"),
        ({"reward": None}, "give `reward=`"),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, object], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        motes.solve(**{"problem": "?", **MODELS, **arguments})


def test_an_error_of_the_run_carries_what_was_computed():
    with pytest.raises(MotesError) as caught:
        motes.solve("?", lm=UNEVEN.lm, reward=None, method=ParticleFilter(4), seed=5)
    partial = caught.value.result
    assert partial is not None
    assert (partial.seed, partial.method, partial.records, partial.error) == (5, "ParticleFilter", (), caught.value)


class OwnResultError(Exception):
    """Has a `result` of its own."""

    result = "theirs"


class ClosedResultError(Exception):
    @property
    def result(self) -> None:
        return None


@pytest.mark.parametrize(
    ("error", "told"), [(ZeroDivisionError("a bug"), True), (OwnResultError(), False), (ClosedResultError(), False)]
)
def test_whatever_ends_a_run_carries_it_where_it_can(error: Exception, told: bool):
    class Broken:
        async def score(self, trajectories: object) -> list[float]:
            raise error

    with pytest.raises(type(error)) as caught:
        motes.solve("?", lm=UNEVEN.lm, reward=Broken(), method=ParticleFilter(4))
    assert caught.value is error
    result = partial_result(error)
    assert (result is not None) == told
    assert result is None or (result.usage.lm_calls, result.error) == (4, error)


@pytest.mark.parametrize("method", [Greedy(), Majority(3)])
def test_methods_that_do_not_score_need_no_reward_model(method: Greedy):
    assert motes.solve("?", lm=UNEVEN.lm, reward=None, method=method).usage.reward_calls == 0


@pytest.mark.parametrize("open_", [motes.language_model, motes.reward_model])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, open_: Callable[[str], object]):
    for module in ("motes.models.local", "motes.rewards.prm"):
        monkeypatch.setitem(sys.modules, module, None)  # as where its own imports fail
    with pytest.raises(MissingExtraError, match=r"pip install 'motes\[local\]'"):
        open_("tiny")
    with pytest.raises(ConfigurationError, match="names no model") as caught:
        open_("nonsense")
    assert not isinstance(caught.value, MissingExtraError)


def test_a_model_is_opened_as_itself():
    assert motes.language_model(UNEVEN.lm) is UNEVEN.lm
    assert motes.reward_model(UNEVEN.reward) is UNEVEN.reward


def test_tasks_have_names():
    assert isinstance(task("arithmetic"), Arithmetic)
    assert set(TASKS) == {"arithmetic"}
    with pytest.raises(UnknownNameError, match="did you mean 'arithmetic'"):
        task("arithmetics")


def test_every_error_is_a_motes_error_and_a_usual_one():
    for name in vars(motes.errors):
        error = getattr(motes.errors, name)
        if isinstance(error, type) and issubclass(error, Exception) and error is not MotesError:
            assert issubclass(error, MotesError)
            assert any(base.__name__ in vars(builtins) and base is not Exception for base in error.__mro__[:-3]), name


def test_no_reward_model_is_opened_for_methods_that_never_score():
    """`reward=` names one that does not exist."""
    lm = motes.TabularLanguageModel({(): {"\\boxed{1}": 1.0}})
    for method in (motes.Majority(2), motes.Greedy()):
        assert motes.solve("What?", lm=lm, reward="nowhere", method=method).answer == "1"
    with pytest.raises(ConfigurationError, match="nowhere"):
        motes.solve("What?", lm=lm, reward="nowhere", method=motes.BestOfN(2))
