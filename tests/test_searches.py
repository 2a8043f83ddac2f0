"""Beam search, DVTS and REBASE: by hand on a small tree, by their rules on random ones.

In the tree every node has children 1, 2, 3, …, and the language model is one that gives the k-th continuation of a
parent in a round the k-th child: so what a search visits is decided by its selection alone. Texts are the child's
number with a comma; a node is named by the numbers on its path, "21" is the first child of the second.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import motes
from checkpoints import local
from exact import UNEVEN, path_of, prefixes
from motes import (
    DVTS,
    BeamSearch,
    FunctionReward,
    ParticleFilter,
    Rebase,
    Result,
    Sampling,
    Step,
    TabularLanguageModel,
    TabularReward,
    Trajectory,
)
from motes.errors import ConfigurationError, UnknownNameError
from motes.methods import method, searches
from motes.methods.population import AGGREGATIONS
from mutations import mutant


class Tree:
    """The k-th continuation of a node in one call is its k-th child; children in `leaves` end with their answer."""

    def __init__(self, leaves: Mapping[str, str] | None = None) -> None:
        self.leaves = leaves or {}

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        seen: Counter[str] = Counter()
        steps = []
        for trajectory in trajectories:
            seen[trajectory.text] += 1
            child = str(seen[trajectory.text])
            answer = self.leaves.get(trajectory.text.replace(",", "") + child)
            steps.append(
                Step(f"{child},", "step", (1,)) if answer is None else Step(f"{child},\\boxed{{{answer}}}", "eos", (1,))
            )
        return steps


def name(trajectory: Trajectory) -> str:
    return "".join(step.text.partition(",")[0] for step in trajectory.steps)


def search(made: Any, scores: Mapping[str, float], leaves: Mapping[str, str] | None = None, **sampling: Any) -> Result:
    """On the tree, where a node's score is as given, else 0.1."""

    def score(problem: motes.Problem, text: str) -> float:
        return scores.get("".join(part[-1] for part in text.split("\\boxed")[0].split(",") if part), 0.1)

    return motes.solve("?", lm=Tree(leaves), reward=FunctionReward(score), method=made, sampling=Sampling(**sampling))


def rounds(result: Result) -> list[list[str]]:
    return [list(map(name, record.trajectories)) for record in result.records]


# --------------------------------------------------------------------------------------------------- worked by hand


def test_beam_search_by_hand():
    """N = 4, M = 2.

    round 1   1 .2   2 .9   3 .3   4 .8         the best 4/2 = 2 are 2 and 4, continued twice each
    round 2   21 .5  22 .7! 41 .6  42 .1        22 has finished: 3 places left, ⌈3/2⌉ = 2 kept: 41 twice, 21 once
    round 3   211 .4!  22!  411 .9!  412 .3     one place left: 412
    round 4   211!  22!  411!  4121 .2!         answers  211: a .4   22: b .7   411: a .9   4121: b .2
    vote: a 1.3, b .9. argmax: 411
    """
    scores = {"1": 0.2, "2": 0.9, "3": 0.3, "4": 0.8, "21": 0.5, "22": 0.7, "41": 0.6, "42": 0.1}
    scores |= {"211": 0.4, "411": 0.9, "412": 0.3, "4121": 0.2}
    leaves = {"22": "b", "211": "a", "411": "a", "4121": "b"}
    result = search(BeamSearch(4, 2), scores, leaves)
    assert rounds(result) == [
        ["1", "2", "3", "4"],
        ["21", "22", "41", "42"],
        ["211", "22", "411", "412"],
        ["211", "22", "411", "4121"],
    ]
    assert [record.ancestors.tolist() for record in result.records] == [
        [0, 1, 2, 3],
        [1, 1, 3, 3],
        [0, 1, 2, 2],
        [0, 1, 2, 3],
    ]
    assert result.posterior == pytest.approx({"a": 1.3 / 2.2, "b": 0.9 / 2.2})
    assert (result.answer, name_of(result)) == ("a", "411")
    assert (result.usage.lm_calls, result.usage.reward_calls) == (4 + 4 + 3 + 1,) * 2
    assert search(BeamSearch(4, 2, selector="argmax"), {**scores, "22": 0.95}, leaves).answer == "b"


def name_of(result: Result) -> str:
    return next(name(t) for t in result.trajectories if t.text == result.text)


def test_dvts_by_hand():
    """N = 4, M = 2: subtrees of places {1, 2} and {3, 4}.

    round 1   1 .2   2 .3 | 3 .9   4 .8         each keeps its best: 2 and 3. (Beam search would keep 3 and 4.)
    round 2   21 .5  22 .1 | 31 .6!  32 .2      31 has finished: its subtree continues 32, once
    round 3   211 .1! 212 .7! | 31!  321 .3     the left subtree has ended
    round 4   211!  212! | 31!  3211 .4!        answers  211: a .1   212: b .7   31: a .6   3211: c .4
    """
    scores = {"1": 0.2, "2": 0.3, "3": 0.9, "4": 0.8, "21": 0.5, "22": 0.1, "31": 0.6, "32": 0.2}
    scores |= {"211": 0.1, "212": 0.7, "321": 0.3, "3211": 0.4}
    result = search(DVTS(4, 2), scores, {"31": "a", "211": "a", "212": "b", "3211": "c"})
    assert rounds(result) == [
        ["1", "2", "3", "4"],
        ["21", "22", "31", "32"],
        ["211", "212", "31", "321"],
        ["211", "212", "31", "3211"],
    ]
    assert result.posterior == pytest.approx({"a": 0.7 / 1.8, "b": 0.7 / 1.8, "c": 0.4 / 1.8})
    assert result.usage.lm_calls == 4 + 4 + 3 + 1


def test_rebase_by_hand():
    """N = 6, τ = 0.1; e^{(r − max)/τ} beside the scores.

    round 1   1 .5 (.135)  2 .7 (1)  3 .6 (.368)  4 .1 (.002)  5 .6 (.368)  6 .2 (.007)
              2: 6 · 1/1.880 = 3.19 → 3;  3 left of .880: 3 · .368/.880 = 1.25 → 1;  5: 2 · .368/.512 = 1.44 → 1;
              1: 1 · .135/.144 = .94 → 1;  none left
    round 2   11 .1  21 .4!  22 .4  23 .3  31 .9!  51 .4         4 left for 11 (.050), 22 (1), 23 (.368), 51 (1)
              22: 4 · 1/2.418 = 1.65 → 2;  51: 2 · 1/1.418 = 1.41 → 1;  23: 1 · .368/.418 = .88 → 1
    """
    scores = {"1": 0.5, "2": 0.7, "3": 0.6, "4": 0.1, "5": 0.6, "6": 0.2}
    scores |= {"11": 0.1, "21": 0.4, "22": 0.4, "23": 0.3, "31": 0.9, "51": 0.4}
    result = search(Rebase(6), scores, {"21": "a", "31": "b"}, max_steps=3)
    assert rounds(result) == [
        ["1", "2", "3", "4", "5", "6"],
        ["11", "21", "22", "23", "31", "51"],
        ["221", "21", "222", "231", "31", "511"],
    ]
    assert [t.finished for t in result.trajectories] == [
        "max_steps",
        "eos",
        "max_steps",
        "max_steps",
        "eos",
        "max_steps",
    ]
    assert result.answer == "b"
    assert result.posterior == pytest.approx({"b": 0.9 / 1.7, "a": 0.4 / 1.7}), "who was cut off holds its score"


def test_rebase_rounds_halves_up_and_shares_what_is_left():
    """Weights 1, 1, e^-5: 3 · 1/2.007 = 1.495 → 1, then 2 · 1/1.007 = 1.987 → 2. Weights 1, 1, 0: 3 · 1/2 = 1.5 → 2,
    then 1. Weights 1, 0, 0, 0: all 4, however many follow."""
    for scores, temperature, continued in (
        ([0.9, 0.9, 0.4], 0.1, [0, 1, 1]),
        ([1.0, 0.0, 1.0], 1e-4, [0, 0, 2]),
        ([0.0, 1.0, 0.0, 0.0], 1e-4, [1, 1, 1, 1]),
        ([0.3] * 4, 0.1, [0, 1, 2, 3]),
    ):
        made = Rebase(4, balance_temperature=temperature)
        assert made._allocate_slots(np.array(scores)).tolist() == continued


@pytest.mark.parametrize("made", [BeamSearch(8), BeamSearch(8, 2), DVTS(8), DVTS(8, 2), Rebase(8)])
def test_when_no_candidate_states_an_answer_there_is_none(made: Any):
    result = search(made, {}, max_steps=3)
    assert (result.answer, result.posterior, result.confidence) == (None, {}, 0.0)
    assert result.text in {t.text for t in result.trajectories}, "the likeliest text says more than none"
    assert {t.finished for t in result.trajectories} == {"max_steps"}
    assert result.usage.lm_calls == 8 * 3


@pytest.mark.parametrize("made", [BeamSearch(4), DVTS(4, 2), Rebase(4)])
def test_scores_of_zero_choose_among_equals(made: Any):
    lm, reward = UNEVEN.lm, TabularReward({}, default=0.0)
    result = motes.solve("?", lm=lm, reward=reward, method=made, task=Last())
    assert len(result.trajectories) == 4
    assert sum(result.posterior.values()) == pytest.approx(1.0)
    assert result.answer in result.posterior


class Last:
    """The last letter is the answer."""

    def answer(self, text: str) -> str | None:
        return None if len(text) < 2 else text[-1]

    def equivalent(self, first: str, second: str) -> bool:
        return first == second


# --------------------------------------------------------------------------------------------- rules, on random trees


def beam_rule(live: list[int], scores: list[float], width: int) -> Counter[int]:
    """Places given out one by one: the best takes `width`, then the next."""
    places, given = len(live), Counter[int]()
    for i in sorted(live, key=lambda i: (-scores[i], i)):
        given[i] = min(width, places - given.total())
    return +given


def rebase_rule(live: list[int], scores: list[float]) -> Counter[int]:
    given = Counter[int]()
    waiting = sorted(live, key=lambda i: (-scores[i], i))
    while waiting and (left := len(live) - given.total()):
        shares = [np.exp(scores[i] / 0.1) for i in waiting]
        given[waiting.pop(0)] = int(left * shares[0] / sum(shares) + 0.5)
    return +given


def expected(made: Any, live: list[int], scores: list[float]) -> Counter[int]:
    if isinstance(made, Rebase):
        return rebase_rule(live, scores)
    if isinstance(made, DVTS):
        subtrees: dict[int, list[int]] = {}
        for i in live:
            subtrees.setdefault(i // made.width, []).append(i)
        return sum((beam_rule(subtree, scores, made.width) for subtree in subtrees.values()), Counter())
    return beam_rule(live, scores, made.width)


SEARCHES = [
    *(BeamSearch(8), BeamSearch(8, 2), BeamSearch(8, 2, aggregation="min"), BeamSearch(3)),
    *(DVTS(8), DVTS(8, 2), DVTS(8, 2, aggregation="prod"), DVTS(2)),
    *(Rebase(8), Rebase(8, aggregation="mean"), Rebase(5), Rebase(1)),
]
RNG = np.random.default_rng(5)
LM = TabularLanguageModel.random(RNG, steps=("a", "b", "c"), depth=6)
REWARD = TabularReward.random(RNG, prefixes(LM))


@pytest.mark.parametrize("made", SEARCHES, ids=repr)
def test_every_round_follows_the_rule(made: Any):
    rounds_with_a_pool = check_rules(made, made)
    assert rounds_with_a_pool > 10 or made.n < 3


def check_rules(made: Any, rules: Any) -> int:
    """Whether runs of `made` follow the rules of `rules`; in how many rounds there was a pool already."""
    rounds_with_a_pool = 0
    for seed in range(30):
        result = solve(made, seed)
        spent = 0
        for before, after in itertools.pairwise(result.records):
            live = [i for i, t in enumerate(before.trajectories) if t.finished is None]
            assert live, "no round after the last"
            given = expected(rules, live, before.scores.tolist())
            assert Counter(after.ancestors[live].tolist()) == given
            assert given.total() == len(live) == after.usage.lm_calls == after.usage.reward_calls
            for i, (ancestor, trajectory) in enumerate(zip(after.ancestors, after.trajectories, strict=True)):
                if i in live:
                    assert trajectory.parent is before.trajectories[ancestor]
                else:
                    assert trajectory is before.trajectories[i], "the pool stays as it is"
            assert after.resampled
            rounds_with_a_pool += len(live) < rules.n
            spent += len(live)
            for trajectory, score in zip(after.trajectories, after.scores, strict=True):
                steps = [REWARD[path_of(node)] for node in trajectory.path]
                assert score == pytest.approx(AGGREGATIONS[rules.aggregation](np.array(steps)))
        assert result.usage.lm_calls == rules.n + spent
        assert len(result.trajectories) == rules.n == rules.budget
        assert all(t.finished for t in result.trajectories)
        assert np.exp(result.log_weights) == pytest.approx(result.scores)
        assert result.scores.tolist() == result.records[-1].scores.tolist()
    return rounds_with_a_pool


def same(first: Result, second: Result) -> bool:
    return [list(map(path_of, r.trajectories)) for r in first.records] == [
        list(map(path_of, r.trajectories)) for r in second.records
    ]


def solve(made: Any, seed: int = 0) -> Result:
    return motes.solve("?", lm=LM, reward=REWARD, method=made, seed=seed)


@pytest.mark.parametrize("seed", range(10))
def test_relatives_agree(seed: int):
    filtered = solve(ParticleFilter(8, ess_threshold=0.0), seed)  # N samples that never meet
    assert same(solve(BeamSearch(8, 1), seed), filtered), "with M = 1 nothing is dropped"
    assert same(solve(DVTS(8, 1), seed), filtered)
    assert same(solve(Rebase(8, balance_temperature=1e9), seed), filtered), "even shares drop nothing"
    assert same(solve(BeamSearch(8, 8), seed), solve(DVTS(8, 8), seed)), "one subtree is a beam search"
    assert same(solve(BeamSearch(8, 8), seed), solve(Rebase(8, balance_temperature=1e-4), seed)), (
        "only the best goes on"
    )
    assert same(solve(BeamSearch(3, 4), seed), solve(BeamSearch(3, 3), seed)), "below M, the beam is as wide as N"


MUTATIONS = {
    "the worst are continued": (
        "BeamSearch(8, 2)",
        'np.argsort(-scores, kind="stable")\n        return np.sort',
        'np.argsort(scores, kind="stable")\n        return np.sort',
    ),
    "the best take everything": (
        "BeamSearch(8, 2)",
        "np.repeat(best_first, self.width)",
        "np.repeat(best_first, len(scores))",
    ),
    "the budget's places are M for all": (
        "BeamSearch(8, 2)",
        "np.repeat(best_first, self.width)[: len(scores)]",
        "np.tile(best_first, self.width)[: len(scores)]",
    ),
    "the finished compete": ("BeamSearch(8, 2)", "live = subtree[alive[subtree]]", "live = subtree"),
    "scores are those of other places": (
        "BeamSearch(8, 2)",
        "self._allocate_slots(scores[live])",
        "self._allocate_slots(scores[: len(live)])",
    ),
    "subtrees meet": ("DVTS(8, 2)", "return self.n // self.width", "return 1"),
    "subtrees are twice as many": ("DVTS(8, 4)", "return self.n // self.width", "return 2 * self.n // self.width"),
    "shares are not sharpened": ("Rebase(8)", ") / self.balance_temperature)", "))"),
    "shares are rounded up": ("Rebase(8)", "(weight / rest) + 0.5)", "(weight / rest) + 0.999999)"),
    "shares are of everything": (
        "Rebase(8)",
        "counts[i] = np.floor(open_slots *",
        "counts[i] = np.floor(len(scores) *",
    ),
    "selected before the first step": ("Rebase(8)", "bool(run.records)", "True"),
    "places are given once only": ("DVTS(8, 2)", "bool(run.records)", "len(run.records) == 1"),
    "the vote is by head": (
        "DVTS(8, 2)",
        "weights = score_weights(population, self.aggregation)",
        "weights = Weights.uniform(self.n)",
    ),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str):
    made, old, new = MUTATIONS[mistake]
    wrong = eval(made, vars(mutant(searches, old, new)))
    try:
        check_rules(wrong, eval(made))
    except (AssertionError, ValueError, IndexError):
        return
    pytest.fail("the mistake went unnoticed")


@pytest.mark.parametrize("made", [BeamSearch(8), DVTS(8), Rebase(8)])
def test_the_engine_computes_no_prefix_twice(made: Any):
    """What continuations of one parent share is read from the cache: only the prompt is ever computed."""
    lm, sampling = local(), Sampling(temperature=1.0, max_step_tokens=8, max_steps=4, delimiter=None)
    usage = motes.solve("What is 2+2?", lm=lm, reward=TabularReward({}), method=made, sampling=sampling).usage
    assert usage.lm_calls > 8
    assert usage.prefill_tokens < len(lm.vocabulary.prompt(motes.Problem("What is 2+2?"))) < usage.prefill_tokens_cached


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("cls", [BeamSearch, DVTS])
def test_a_budget_that_is_no_multiple_names_the_remedy(cls: type[BeamSearch]):
    with pytest.raises(ConfigurationError, match=r"6 is not one of 4: use n=4 or n=8, or another beam_width"):
        cls(6)
    assert [cls(n).width for n in (1, 2, 3, 4, 8, 128)] == [1, 2, 3, 4, 4, 4]
    assert [DVTS(n).num_subtrees for n in (1, 2, 3, 4, 8, 128)] == [1, 1, 1, 1, 2, 32]
    for width in (0, -1, 2.0):
        with pytest.raises(ConfigurationError, match="beam_width must be a whole number of at least 1"):
            cls(8, width)


@pytest.mark.parametrize("cls", [BeamSearch, DVTS, Rebase])
def test_values_out_of_range_are_refused(cls: Any):
    for n in (0, -4, 4.0):
        with pytest.raises(ConfigurationError, match="n must be a whole number of at least 1"):
            cls(n)
    with pytest.raises(UnknownNameError, match="did you mean 'argmax'"):
        cls(4, selector="argmin")
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        cls(4, aggregation="meen")


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_the_balance_must_be_finite(temperature: float):
    with pytest.raises(ConfigurationError, match="balance_temperature must be finite and greater than 0"):
        Rebase(4, balance_temperature=temperature)


def test_by_id():
    assert method("beam", 8, beam_width=2) == BeamSearch(8, 2)
    assert method("dvts", 8) == DVTS(8, 4)
    assert method("rebase", 8) == Rebase(8, balance_temperature=0.1)
