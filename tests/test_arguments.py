"""Arguments of the wrong type are refused when they are given, by their names; others become what is declared."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

import motes
from motes.arguments import _hints, fit, fit_fields
from motes.core import Problem, Sampling, Step
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab import Evaluation, method_from_spec
from motes.lab.run.prices import Prices
from motes.methods import METHODS

WRONG = (2.5, 3.0, "4", True, math.nan, None, [4], ("a",), b"a", object(), {"a": 1})
"""Values of many types: whatever a field takes, some of these are wrong."""

TAKES: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),
    str: (str,),
    type(None): (type(None),),
    re.Pattern[str]: (re.Pattern,),
}


def takes(hint: Any, value: Any) -> bool:
    """Whether a field of that type takes a value: what `motes.arguments` says, written anew."""
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, (list, tuple)) and all(takes(typing.get_args(hint)[0], one) for one in value)
    if hint in TAKES:
        return type(value) in TAKES[hint] and value == value
    return any(takes(one, value) for one in typing.get_args(hint))


CONFIGURATIONS: dict[type, dict[str, Any]] = {cls: {} for cls in METHODS.values()} | {Sampling: {}}
for _cls in METHODS.values():
    _first = next(field.name for field in dataclasses.fields(_cls) if not field.kw_only)  # type: ignore[arg-type]
    CONFIGURATIONS[_cls] = {_first: 1 if _cls is motes.Greedy else 8}

FIELDS = [(cls, field.name) for cls in CONFIGURATIONS for field in dataclasses.fields(cls)]


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=[f"{cls.__name__}.{field}" for cls, field in FIELDS])
def test_every_field_of_every_method_and_of_sampling_refuses_what_is_not_of_its_type(cls: type, field: str):
    hint = typing.get_type_hints(cls)[field]
    wrong = [value for value in WRONG if not takes(hint, value)]
    assert len(wrong) > 5
    for value in wrong:
        with pytest.raises(ConfigurationError, match=rf"\b{field}\b"):
            cls(**{**CONFIGURATIONS[cls], field: value})


@pytest.mark.parametrize("value", [2.5, "4", True, None, math.nan])
@pytest.mark.parametrize("name", METHODS)
def test_budgets_are_whole_numbers(name: str, value: Any):
    if name == "greedy":  # of one answer, whatever the budget
        return
    with pytest.raises(ConfigurationError):
        motes.methods.method(name, value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: motes.methods.method("pt", 16, num_sweeps="4"),
        lambda: motes.methods.method("pt", 16, ladder=1.0),
        lambda: motes.methods.method("pt", 16, ladder=(1.0, "0.5")),
        lambda: motes.methods.method("islands", 16, num_islands=2.0),
        lambda: motes.methods.method("pg", 16, num_sweeps=None),
        lambda: motes.ParticleFilter.paper("8"),
    ],
)
def test_other_constructors_of_methods_refuse_wrong_types_too(make: Callable[[], object]):
    with pytest.raises(ConfigurationError, match="must be"):
        make()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"question": 3}, "question must be a text or None, not 3"),
        ({"question": ["a"]}, "question must be a text"),
        ({"question": "?", "answer": 3}, "answer must be a text or None, not 3"),
        ({"question": "?", "answer": math.nan}, "answer must be a text"),
        ({"question": "?", "id": 7}, "id must be a text or None, not 7"),
        ({"question": "?", "system": True}, "system must be a text"),
        ({"messages": "Hello"}, "messages must be several, each a dict"),
        ({"messages": [("user", "?")]}, "messages must be several, each a dict"),
        ({"messages": [{"content": "?"}]}, "must end with"),
        ({"messages": [{"content": "?"}, {"role": "user", "content": "?"}]}, r"messages\[0\]\['role'\] must be one of"),
        (
            {"messages": [{"role": "human", "content": "?"}, {"role": "user", "content": "?"}]},
            r"unknown messages\[0\]\['role'\] 'human'",
        ),
        ({"messages": [{"role": "user", "content": None}]}, r"needs a `content` that is text.*\[0\] is None"),
        ({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": 5}]}, r"messages\[1\]"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "tool", "content": "3"}]}, "must end with"),
        ({"messages": []}, "must end with"),
    ],
)
def test_problems_are_made_of_texts(arguments: dict[str, Any], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        Problem(**arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"seed": np.int64(-1)}, "seed must be 0 or more"),
        ({"deadline": "1"}, "deadline must be a number"),
        ({"deadline": math.nan}, "deadline must be finite"),
        ({"deadline": True}, "deadline must be a number"),
        ({"token_budget": 1.5}, "token_budget must be a whole number"),
        ({"token_budget": True}, "token_budget must be a whole number"),
        ({"method": "pf"}, "method must be .* or another Method"),
        ({"method": motes.ParticleFilter}, "method must be .* or another Method"),
        ({"sampling": {"temperature": 1}}, "sampling must be a Sampling or None"),
        ({"task": 500}, "task must be .* or another AnswerRule"),
        ({"rule": 500}, "rule must be .* or another AnswerRule"),
        ({"task": "math-501"}, "did you mean 'math-500'"),
        ({"lm": 5}, "lm must be 'tiny' or another LanguageModel"),
        ({"lm": None}, "lm must be 'tiny' or another LanguageModel"),
        ({"lm": motes.TabularLanguageModel}, "lm must be 'tiny' or another LanguageModel"),
        ({"reward": 5}, "reward must be 'tiny' or another RewardModel"),
        ({"outcome_reward": lambda problem, text: 1.0}, "reward must be 'tiny' or another RewardModel"),
        ({"problem": 5}, "problem must be a Problem or a text"),
        ({"problem": None}, "problem must be a Problem or a text"),
        ({"observe": 3}, "observe must be"),
        ({"on_progress": "x"}, "on_progress must be"),
    ],
)
def test_solve_refuses_wrong_types_before_anything_is_computed(arguments: dict[str, Any], complaint: str):
    lm, reward = motes.TabularLanguageModel({(): {r"\boxed{1}": 1.0}}), motes.TabularReward({})
    usual: dict[str, Any] = {"problem": "?", "lm": lm, "reward": reward, "method": motes.ParticleFilter(2)}
    with pytest.raises(ConfigurationError, match=complaint):
        motes.solve(**{**usual, **arguments})


def test_numbers_of_numpy_are_pythons_own():
    method = motes.ParticleFilter(np.int64(4), beta=np.float32(0.5), ess_threshold=np.float64(1))
    assert (type(method.num_particles), type(method.beta), type(method.ess_threshold)) == (int, float, float)
    assert method == motes.ParticleFilter(4, beta=0.5, ess_threshold=1.0)
    assert motes.ParallelTempering(2, ladder=np.array([1.0, 0.5])).ladder == (1.0, 0.5)  # type: ignore[arg-type]
    assert type(motes.EntropicParticleFilter(4, annealing=np.bool_(True)).annealing) is bool
    lm = motes.TabularLanguageModel({(): {r"\boxed{1}": 0.5, r"\boxed{2}": 0.5}})
    drawn = [motes.solve("?", lm=lm, method=motes.Majority(1), seed=seed).text for seed in (np.int32(3), 3)]  # type: ignore[arg-type]
    assert drawn[0] == drawn[1]


def test_whole_numbers_stay_whole_where_a_number_is_wanted():
    assert type(motes.ParticleFilter(4, beta=2).beta) is int


def test_lists_of_texts_are_what_tuples_are():
    sampling = Sampling(stop=["a", "b"], delimiter=["\n\n", ";"])  # type: ignore[arg-type]
    assert sampling == Sampling(stop=("a", "b"), delimiter=("\n\n", ";"))
    assert hash(sampling) == hash(Sampling(stop=("a", "b"), delimiter=("\n\n", ";")))


def test_texts_become_well_formed():
    assert Sampling(stop="\ud83d").stop == "�"
    assert Sampling(delimiter=("\ud83d\ude00", "\n")).delimiter == ("😀", "\n")


def test_a_name_that_is_nearly_one_is_suggested():
    with pytest.raises(UnknownNameError, match="did you mean 'increment'"):
        motes.ParticleFilter(4, potential="incremental")  # type: ignore[arg-type]


def test_a_potential_is_a_name_or_a_share():
    assert motes.ParticleFilter(4, potential=1).potential == 1.0
    for potential in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match=r"potential"):
            motes.ParticleFilter(4, potential=potential)
    assert method_from_spec("pf:potential=0.5", 4) == motes.ParticleFilter(4, potential=0.5)


def test_a_long_value_is_not_repeated():
    with pytest.raises(ConfigurationError, match=r"^n must be a whole number, not a list$"):
        fit("n", list(range(1000)), int)


def test_a_method_of_ones_own_whose_types_nobody_can_resolve_still_has_its_bases_checked():
    @dataclasses.dataclass(frozen=True)
    class Mine(motes.ParticleFilter):
        more: Unheard = 3  # type: ignore[name-defined]  # noqa: F821

    assert Mine(4, more="anything").more == "anything"
    with pytest.raises(ConfigurationError, match="num_particles"):
        Mine("4")  # type: ignore[arg-type]


def test_types_that_say_nothing_of_values_take_all():
    @dataclasses.dataclass
    class Anything:
        any: Any
        model: motes.LanguageModel
        call: Callable[[], int]

    _hints.cache_clear()
    anything = Anything(3, 4, len)  # type: ignore[arg-type]
    fit_fields(anything)
    anything.call = 3  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="call must be a Callable"):
        fit_fields(anything)


REWARD, LM = motes.TabularReward({}), motes.TabularLanguageModel({(): {r"\boxed{1}": 1.0}})
RUBRIC = {"name": "mine", "prompt": "{question} {solution}"}


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: motes.FunctionReward("score"), "fn must be a Callable"),  # type: ignore[call-overload]
        (lambda: motes.FunctionReward(len, batched=1), "batched must be True or False"),  # type: ignore[call-overload]
        (lambda: motes.FunctionReward(len, outcome="yes"), "outcome must be True or False"),  # type: ignore[call-overload]
        (lambda: motes.TabularReward({("a",): "0.5"}), "must be a number"),  # type: ignore[dict-item]
        (lambda: motes.TabularReward({}, default=None), "must be a number"),  # type: ignore[arg-type]
        (lambda: motes.Judge("tiny"), "lm must be .* or another LanguageModel"),  # type: ignore[arg-type]
        (lambda: motes.Judge(LM, num_verdicts=True), "num_verdicts must be a whole number"),
        (lambda: motes.Judge(LM, seed=1.0), "seed must be a whole number"),  # type: ignore[arg-type]
        (lambda: motes.Judge(LM, max_retries=None), "max_retries must be a whole number"),  # type: ignore[arg-type]
        (lambda: motes.Rubric(**RUBRIC, critique_tokens=1.5), "critique_tokens must be a whole number"),
        (lambda: motes.Rubric(**RUBRIC, temperature="1"), "temperature must be a number"),
        (lambda: motes.Rubric(**RUBRIC, verdicts={"Yes": "1", "No": 0}), "the score of 'Yes' must be a number"),
        (lambda: motes.Rubric(**RUBRIC, verdicts=("Yes", "No")), "verdicts must be a dict"),
        (lambda: motes.Rubric(**RUBRIC, outcome="no"), "outcome must be True or False"),
        (lambda: motes.Prompt(question=3), "question must be a text"),  # type: ignore[arg-type]
        (lambda: motes.Prompt(sampling={}), "sampling must be a Sampling"),  # type: ignore[arg-type]
        (lambda: Evaluation(methods="pf"), "methods must be several, each a text"),  # type: ignore[arg-type]
        (lambda: Evaluation(budgets=(4.0,)), "budgets must be several, each a whole number"),  # type: ignore[arg-type]
        (lambda: Evaluation(budgets=4), "budgets must be several"),  # type: ignore[arg-type]
        (lambda: Evaluation(seeds=(None,)), "seeds must be several, each a whole number"),  # type: ignore[arg-type]
        (lambda: Evaluation(limit="3"), "limit must be a whole number or None"),  # type: ignore[arg-type]
        (lambda: Evaluation(sampling=None), "sampling must be a Sampling"),  # type: ignore[arg-type]
        (lambda: Prices(generated="1"), "the price of generated tokens must be a number"),  # type: ignore[arg-type]
        (lambda: Prices(reward=True), "the price of reward tokens must be a number"),
        (lambda: motes.language_model("tiny", max_batch_size=2.5), "max_batch_size must be a whole number"),
        (lambda: motes.language_model("tiny?max_batch_size=two"), "max_batch_size must be a whole number"),
        (lambda: motes.language_model("tiny?max_cached_tokens=1.5"), "max_cached_tokens must be a whole number"),
        (lambda: motes.reward_model("tiny?num_threads=x"), "num_threads must be a whole number"),
    ],
)
def test_models_rubrics_prompts_and_evaluations_refuse_wrong_types_too(make: Callable[[], object], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        make()


def test_an_evaluation_takes_lists():
    evaluation = Evaluation(methods=["pf"], budgets=[np.int64(4), 1], seeds=range(2), limit=3)  # type: ignore[arg-type]
    assert (evaluation.methods, evaluation.budgets, evaluation.seeds) == (("pf",), (1, 4), (0, 1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"text": None}, "text must be a text"), ({"overrun": 3}, "overrun must be a text")],
)
def test_a_step_of_somebodys_model(fields: dict[str, Any], said: str):
    with pytest.raises(ConfigurationError, match=said):
        Step(**{"text": "So", "end": "step", **fields})
