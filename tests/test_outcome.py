"""An outcome reward model beside a process reward model: one weighs partial answers, the other chooses the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import motes
import worlds
from exact import EVEN, path_of
from motes import (
    BestOfN,
    FunctionReward,
    Greedy,
    Majority,
    ParticleFilter,
    Problem,
    Result,
    Scores,
    TabularLanguageModel,
    TabularReward,
    Trajectory,
    Usage,
    WeightedBestOfN,
)
from motes.cli import main
from motes.core import Failure
from motes.errors import ConfigurationError, NoParticlesError, RewardError
from motes.lab import Evaluation, Report, evaluate, read_records
from motes.methods import METHODS, method
from motes.tasks import Arithmetic
from virtual_time import timed

LM = TabularLanguageModel(  # one step, then an answer, or none
    {(): {"a": 0.5, "b": 0.5}, **{(x,): {"\\boxed{1}": 0.4, "\\boxed{2}": 0.4, "no idea": 0.2} for x in "ab"}}
)
PRM = TabularReward({("a",): 0.6, ("a", "\\boxed{1}"): 0.9, ("b", "\\boxed{1}"): 0.8}, default=0.4)  # prefers 1
ORM = TabularReward({("a", "\\boxed{2}"): 0.7, ("b", "\\boxed{2}"): 0.95}, default=0.01)  # prefers 2, after b


class Recorder(TabularReward):
    """Keeps what it was asked for, and has a price."""

    def __init__(self, table: Any = ORM.table, default: float = 0.01) -> None:
        super().__init__(table, default)
        self.asked: list[Trajectory] = []

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        self.asked += trajectories
        scores = await super().score(trajectories)
        return [Scores(values, Usage(reward_tokens=100)) for values in scores]


def solve(made: Any, outcome_reward: Any = None, seed: int = 0, **options: Any) -> Result:
    models = {"lm": LM, "reward": PRM, "outcome_reward": outcome_reward}
    return motes.solve("?", **{**models, "method": made, "seed": seed, **options})


OTHERS = ("greedy", "majority", "asc", "deepconf", "bon", "wbon", "pf", "power", "pdr")
"""Methods that have no scores of `PRM`, or are there already."""


@pytest.mark.parametrize(
    "made",
    [
        BestOfN(16),
        WeightedBestOfN(16),
        ParticleFilter(16),
        ParticleFilter(16, selector="argmax", potential="absolute"),
        *(method(name, 64 if name == "refine" else 16) for name in METHODS if name not in OTHERS),
    ],
    ids=lambda made: type(made).__name__,
)
def test_it_changes_the_answer_and_nothing_before_it(made: Any):
    alone, both = solve(made), solve(made, Recorder())
    assert (alone.answer, both.answer) == ("1", "2")
    assert both.text == max((t.text for t in both.trajectories), key=lambda text: ORM[text[:1], text[1:]])
    assert [path_of(t) for t in both.trajectories] == [path_of(t) for t in alone.trajectories]
    assert len(both.records) == len(alone.records)
    for record, other in zip(both.records, alone.records, strict=True):
        assert record.log_weights.tolist() == other.log_weights.tolist()
    assert (both.log_evidence, both.swap_rates) == (alone.log_evidence, alone.swap_rates)


def test_weights_take_it_as_a_last_factor():
    made = ParticleFilter(12, ess_threshold=0.0)
    alone, both = solve(made, seed=3), solve(made, ORM, seed=3)
    old, new = (np.exp(r.log_weights) / np.exp(r.log_weights).sum() for r in (alone, both))
    stated = np.array(["boxed" in t.text for t in alone.trajectories])
    assert 0 < stated.sum() < 12
    outcomes = np.array([ORM[path_of(t)] for t in alone.trajectories])
    expected = old * outcomes * old[stated].sum() / (old * outcomes)[stated].sum()
    assert new[stated] == pytest.approx(expected[stated])
    assert new[~stated] == pytest.approx(old[~stated]), "who states no answer keeps their share"
    assert sum(both.posterior.values()) == pytest.approx(sum(alone.posterior.values()))
    assert both.confidence == pytest.approx(new[["2}" in t.text for t in both.trajectories]].sum())
    assert both.scores[stated] == pytest.approx(outcomes[stated])
    assert np.isnan(both.scores[~stated]).all()


def test_each_complete_answer_is_read_and_paid_for_once():
    made = ParticleFilter(32, ess_threshold=1.0, potential="absolute")
    reward = Recorder()
    alone, both = solve(made), solve(made, reward)
    read = {id(t) for t in both.trajectories if "boxed" in t.text}
    assert {id(t) for t in reward.asked} == read
    assert len(reward.asked) == len(read)
    spent = both.usage - alone.usage
    cost = 100 * len(read)
    assert spent == Usage(reward_tokens=cost, computed_reward_tokens=cost, reward_calls=len(read))


def test_particles_that_share_an_answer_are_scored_once_and_all_weigh():
    lm = TabularLanguageModel({(): {"a": 0.5, "b": 0.5}, **{(x,): {"\\boxed{1}": 1.0} for x in "ab"}})
    longer = TabularLanguageModel({**lm.table, ("b",): {"c": 1.0}, ("b", "c"): {"\\boxed{2}": 1.0}})
    made = ParticleFilter(16, ess_threshold=1.0, potential="absolute")  # the short answers are resampled once more
    reward = Recorder({}, default=0.5)
    result = motes.solve("?", lm=longer, reward=PRM, outcome_reward=reward, method=made, seed=1)
    assert len(reward.asked) < 16
    assert not np.isnan(result.scores).any()


@pytest.mark.parametrize("made", [Greedy(), Majority(8), ParticleFilter(8, selector="majority")])
def test_where_the_majority_decides_nothing_is_asked(made: Any):
    reward = Recorder()
    assert solve(made, reward).answer == solve(made).answer
    assert reward.asked == []


def test_a_filter_without_a_process_reward_may_have_one():
    lm = TabularLanguageModel({(): {"\\boxed{1}": 0.7, "\\boxed{2}": 0.3}})
    reward = TabularReward({("\\boxed{2}",): 0.9}, default=0.01)
    models = {"lm": lm, "reward": None, "method": method("power", 16)}
    assert motes.solve("?", **models).answer == "1"
    assert motes.solve("?", **models, outcome_reward=reward).answer == "2"


def test_scores_of_zero_for_all_have_no_say():
    nothing = TabularReward({}, default=0.0)
    for made in (ParticleFilter(8), BestOfN(8)):
        alone, both = solve(made, seed=2), solve(made, nothing, seed=2)
        assert dict(both.posterior) == pytest.approx(dict(alone.posterior))


def test_a_run_without_answers_stays_one():
    lm = TabularLanguageModel({(): {"no idea": 1.0}})
    reward = Recorder()
    result = motes.solve("?", lm=lm, reward=PRM, outcome_reward=reward, method=BestOfN(4))
    assert (result.answer, dict(result.posterior), reward.asked) == (None, {}, [])


class Picky(Recorder):
    """Cannot score what holds `text`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def score(self, trajectories: Sequence[Trajectory]) -> Any:
        failure = Failure(RewardError("I will not read that"), Usage(reward_tokens=7))
        scores = await super().score(trajectories)
        return [failure if self.text in t.text else values for t, values in zip(trajectories, scores, strict=True)]


def test_answers_that_it_cannot_score_are_dropped_and_what_that_cost_is_counted():
    made = ParticleFilter(16)
    alone, result = solve(made), solve(made, Picky("b\\boxed"))
    assert (result.answer, result.text) == ("2", "a\\boxed{2}")
    dropped = [t for t in result.trajectories if t.error is not None]
    assert {str(t.error) for t in dropped} == {"I will not read that"}
    assert set(result.dropped) == set(dropped)
    assert all(np.isneginf(w) for t, w in zip(result.trajectories, result.log_weights, strict=True) if t.error)
    lost = len({t.parent for t in dropped})
    scored = len({id(t) for t in result.trajectories if "boxed" in t.text and not t.error})
    spent = result.usage - alone.usage
    assert (spent.reward_tokens, spent.failed_reward_tokens) == (100 * scored, 7 * len(dropped))
    assert lost


def test_answers_are_named_as_in_the_posterior_where_some_are_dropped():
    lm = TabularLanguageModel({(): {"\\boxed{1}": 0.4, "\\boxed{1.0}": 0.3, "\\boxed{2}": 0.3}})
    reward = Picky("\\boxed{1}")
    for seed in range(10):
        result = motes.solve("?", lm=lm, reward=PRM, outcome_reward=reward, method=BestOfN(8), seed=seed)
        assert set(result.answers) - {None} == set(result.posterior) == set(result.texts()) <= {"1.0", "2"}
        assert [a is None for a in result.answers] == [t.error is not None for t in result.trajectories]


def test_what_was_dropped_before_is_not_read():
    reward = Recorder()
    prm = Picky("a\\boxed")
    result = solve(ParticleFilter(16), reward, reward=prm)
    assert any("boxed" in t.text for t in result.dropped)
    assert reward.asked
    assert not any("a\\boxed" in t.text for t in reward.asked)


def test_none_that_can_be_scored_is_an_error_with_what_was_computed():
    with pytest.raises(NoParticlesError, match=r"could score none of \d+ complete answers; .* not read that") as caught:
        solve(ParticleFilter(16), Picky("boxed"))
    assert caught.value.result is not None
    assert caught.value.result.records


def test_a_model_that_does_not_exist_is_refused_before_anything_is_drawn():
    lm = TabularLanguageModel({(): {"\\boxed{1}": 1.0}})
    lm.extend = None  # type: ignore[assignment,method-assign]
    with pytest.raises(ConfigurationError, match="names no model"):
        motes.solve("?", lm=lm, reward=PRM, outcome_reward="nowhere")


class Slow(Recorder):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        await asyncio.sleep(5)
        return await super().score(trajectories)


def test_at_the_deadline_the_answer_is_that_of_the_process_reward():
    options = {"lm": LM, "reward": PRM, "method": ParticleFilter(16)}
    result = timed(lambda: motes.asolve("?", **options, outcome_reward=Slow(), deadline=2.0))[0]
    assert (result.answer, result.stopped) == ("1", "deadline")
    result = timed(lambda: motes.asolve("?", **options, outcome_reward=Slow(), deadline=20.0))[0]
    assert (result.answer, result.stopped) == ("2", None)


# ------------------------------------------------------------------------------------------ the command line, the lab

FAKE = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_solve_names_it(capsys: Any):
    question = Arithmetic().problems()[2].question
    code, out, err = run(capsys, "solve", question, *FAKE, "--outcome-reward", "worlds:contrary", "-n", 8, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    models = {"lm": worlds.language_model(), "reward": worlds.reward_model(), "outcome_reward": worlds.contrary()}
    again = motes.solve(question, **models, method=ParticleFilter(8), seed=0)
    assert (told["outcome_reward"], told["answer"]) == ("worlds:contrary", again.answer)
    assert (
        told["answer"] != motes.solve(question, **{**models, "outcome_reward": None}, method=ParticleFilter(8)).answer
    )
    code, out, err = run(capsys, "solve", question, *FAKE, "--outcome-reward", "nowhere")
    assert (code, out) == (2, "")
    assert "names no model" in err


def test_an_evaluation_with_one_is_another_evaluation(capsys: Any, tmp_path: Any):
    ask = ["eval", "--methods", "pf,majority", "--budgets", "8", "--limit", 5, *FAKE, "--out"]
    with_it = [*ask, tmp_path / "with", "--outcome-reward", "worlds:contrary"]
    assert run(capsys, *with_it)[0] == run(capsys, *ask, tmp_path / "without")[0] == 0
    old, new = (
        {record.key: record for record in read_records(tmp_path / name / "records.jsonl")}
        for name in ("without", "with")
    )
    assert any(old[key].answer != new[key].answer for key in old if key[1] == "pf")
    assert all(old[key].answer == new[key].answer for key in old if key[1] == "majority")
    assert "outcome reward model worlds:contrary" in Report.load(tmp_path / "with").models
    assert "outcome" not in (tmp_path / "without" / "config.json").read_text()
    code, _, err = run(capsys, *ask, tmp_path / "with")
    assert code == 2
    assert "outcome_reward is only in one of them" in err


def test_sizes_are_unknown_where_two_models_share_a_count(tmp_path: Any):
    reward = worlds.reward_model()
    reward.num_parameters = 10
    settings = {"methods": ("bon",), "budgets": (1,), "limit": 1}
    for name, outcome in (("one", None), ("two", worlds.contrary())):
        evaluation = Evaluation(**settings, outcome_reward=None if outcome is None else "worlds:contrary")
        models = {"lm": worlds.language_model(), "reward": reward, "outcome_reward": outcome}
        asyncio.run(evaluate(evaluation, tmp_path / name, **models))
    assert json.loads((tmp_path / "one" / "models.json").read_text())["reward"] == {"num_parameters": 10}
    assert not (tmp_path / "two" / "models.json").exists()


def test_any_reward_model_can_be_one():
    for reward in (FunctionReward(lambda problem, text: "a" in text, outcome=True), EVEN.reward):
        result = motes.solve(Problem("?"), lm=LM, reward=PRM, outcome_reward=reward, method=ParticleFilter(4))
        assert result.answer in result.posterior
