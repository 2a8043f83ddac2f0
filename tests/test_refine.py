"""Refinement of whole answers: its targets, against enumeration; and its rules, with scripted models.

The z-tests and exact binomial tests are one family on fixed seeds, which raises a false alarm with probability below
1e-6 over the choice of seeds.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

import motes
from engines import Closed, connect
from exact import FUNCTIONS, UNEVEN, World, path_of, unbiased_estimates, z_limit, z_scores
from motes import FunctionReward, Problem, Refine, Result, Sampling, Step, TabularReward, Trajectory
from motes.core import Failure
from motes.errors import ConfigurationError, ContextLengthError, ServerError, UnknownNameError, UnreadableFileError
from motes.methods import method, refine, refinement
from motes.methods.refinement import REFINE, REFINE_BY_CRITIQUE, asked, fill, read_prompt
from motes.smc import Weights
from mutations import mutant, mutate
from scripted import CHECKER, QUESTION, RIGHT, Scripted, box, drafts, reading, solve
from virtual_time import timed

NUM_TESTS = 200

# ------------------------------------------------------------------------------- answers that are refined, enumerated

NAMES = ("A", "B", "C")
P = np.array([0.5, 0.3, 0.2])
SCORES = np.array([0.2, 0.5, 0.8])
Q = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.5, 0.4, 0.1]])
"""Q[x, y]: the probability that the model makes y of x. Not reversible with respect to P."""
PROMPT = "{question} or rather {answer}"


class Refiner:
    """Draws an answer by P, or by the row of Q of the answer that it is to refine."""

    merges_calls = False

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        steps = []
        for trajectory, seed in zip(trajectories, seeds, strict=True):
            question, refined, answer = trajectory.problem.question.partition(" or rather ")
            assert question == "?"
            row = Q[NAMES.index(answer)] if refined else P
            steps.append(Step(NAMES[np.random.default_rng(seed).choice(3, p=row)], "eos", (0,)))
        return steps


REFINED = World(Refiner(), TabularReward({(name,): r for name, r in zip(NAMES, SCORES, strict=True)}))  # type: ignore[arg-type]
OF_NAMES = tuple(lambda path, name=name: float(path[0] == name) for name in NAMES)


def phi(made: Refine) -> np.ndarray:
    return {"odds": SCORES / (1 - SCORES), "probability": SCORES, "exponential": np.exp(SCORES)}[made.link] ** made.beta


def kernel(made: Refine) -> np.ndarray:
    """K, the move with its acceptance, written anew."""
    potential = phi(made)
    move = np.zeros((3, 3))
    for x in range(3):
        for y in range(3):
            chance = {
                "always": 1.0,
                "better": float(SCORES[y] > SCORES[x]),
                "metropolis": min(1.0, potential[y] / potential[x]),
            }[made.accept]
            move[x, y] += Q[x, y] * chance
            move[x, x] += Q[x, y] * (1 - chance)
        if SCORES[x] >= made.settled:
            move[x] = np.eye(3)[x]
    return move


def estimates(made: Refine, runs: int, world: World = REFINED, functions: Any = OF_NAMES) -> np.ndarray:
    """(runs, 1 + functions) of Ẑ and Ẑ·ΣWf."""
    rows = []

    async def every() -> None:
        for seed in range(runs):
            result = await motes.asolve("?", lm=world.lm, reward=world.reward, method=made, seed=seed)
            weights = Weights(result.log_weights).normalized
            paths = list(map(path_of, result.trajectories))
            means = [sum(w * f(path) for w, path in zip(weights, paths, strict=True)) for f in functions]
            rows.append(np.exp(result.log_evidence) * np.array([1.0, *means]))

    asyncio.run(every())
    return np.array(rows)


REFINING = [
    Refine(3, 2, accept, ess_threshold=threshold, link=link, beta=beta, prompt=PROMPT, settled=settled)
    for accept, threshold, link, beta, settled in [
        ("always", 0.0, "probability", 1.0, 1.0),
        ("always", 0.7, "probability", 1.0, 1.0),
        ("always", 1.0, "odds", 0.5, 1.0),
        ("better", 0.7, "probability", 1.0, 1.0),
        ("better", 1.0, "exponential", 2.0, 1.0),
        ("metropolis", 0.0, "odds", 1.0, 1.0),
        ("metropolis", 0.7, "probability", 1.0, 1.0),
        ("metropolis", 1.0, "probability", 2.0, 1.0),
        ("always", 0.7, "probability", 1.0, 0.8),  # C is good enough
        ("metropolis", 1.0, "odds", 0.5, 0.5),  # B, too
    ]
]


@pytest.mark.parametrize(
    "made", REFINING, ids=lambda made: f"{made.accept}-{made.ess_threshold}-{made.link}-{made.settled}"
)
def test_the_target_is_that_of_answers_refined_r_times(made: Refine):
    check_target(made, runs=300)


def check_target(made: Refine, runs: int) -> None:
    mass = P @ np.linalg.matrix_power(kernel(made), made.rounds) * phi(made)
    expected = np.array([mass.sum(), *mass])
    assert np.abs(z_scores(estimates(made, runs), expected)).max() < z_limit(NUM_TESTS)


@pytest.mark.parametrize("resampling", ["multinomial", "stratified", "residual"])
def test_whatever_the_scheme(resampling: str):
    made = Refine(4, 1, "always", ess_threshold=1.0, resampling=resampling, prompt=PROMPT)
    check_target(made, runs=250)


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.0])
def test_new_drafts_by_the_rule_of_metropolis_leave_the_target_as_it_is(rounds: int, threshold: float):
    check_fresh(Refine(3, rounds, move="fresh", ess_threshold=threshold, link="odds"), runs=300)


def check_fresh(made: Refine, runs: int) -> None:
    mass = [p * UNEVEN.phi(path, made.link, made.beta) for path, p in UNEVEN.lm.paths()]
    terms = [m * np.array([f(path) for f in FUNCTIONS]) for m, (path, _) in zip(mass, UNEVEN.lm.paths(), strict=True)]
    drawn = unbiased_estimates(UNEVEN, made, runs)  # type: ignore[arg-type]
    assert np.abs(z_scores(drawn, np.sum(terms, axis=0))).max() < z_limit(NUM_TESTS)


@pytest.mark.parametrize("rounds", [1, 4])
def test_and_a_single_chain_has_the_law_of_its_kernel(rounds: int):
    """An independence sampler over three answers, that starts in P: P K^R, which tends to P·φ."""
    check_chain(rounds, runs=600)


def check_chain(rounds: int, runs: int) -> None:
    table = motes.TabularLanguageModel({(): dict(zip(NAMES, P, strict=True))})
    made = Refine(1, rounds, move="fresh", beta=2.0)
    move = np.minimum(1.0, phi(made)[None, :] / phi(made)[:, None]) * P
    move += np.diag(1 - move.sum(axis=1))
    assert np.allclose(P * phi(made) @ move, P * phi(made)), "the target is invariant"

    async def every() -> list[str]:
        results = [
            await motes.asolve("?", lm=table, reward=REFINED.reward, method=made, seed=seed) for seed in range(runs)
        ]
        return [result.trajectories[0].text for result in results]

    drawn = asyncio.run(every())
    for name, chance in zip(NAMES, P @ np.linalg.matrix_power(move, rounds), strict=True):
        assert binomtest(drawn.count(name), runs, float(chance)).pvalue > 1e-6 / NUM_TESTS, name


def test_without_rounds_it_is_weighted_best_of_n():
    options: dict[str, Any] = {"lm": UNEVEN.lm, "reward": UNEVEN.reward, "seed": 4}
    one = motes.solve("?", method=Refine(6, 0), **options)
    other = motes.solve("?", method=motes.WeightedBestOfN(6), **options)
    assert list(map(path_of, one.trajectories)) == list(map(path_of, other.trajectories))
    assert one.log_weights.tolist() == other.log_weights.tolist()
    assert (one.answer, one.text, one.usage) == (other.answer, other.text, other.usage)


# --------------------------------------------------------------------------------------------------- scripted models


def test_a_model_that_improves_its_answers():
    """And a checker that refuses all drafts: they are refined, and once they are right they are left alone."""
    draw = drafts(3, 4)
    lm = Scripted(lambda prompt, seed: box(2) if reading(prompt) else draw(seed))
    for reward in (RIGHT, CHECKER):
        for accept in ("metropolis", "better", "always"):
            result = solve(lm, Refine(4, 2, accept), reward)
            assert (result.answer, result.confidence) == ("2", 1.0)
            assert result.posterior == {"2": pytest.approx(1.0)}
    first = [record.moves for record in result.records]
    assert first[0] is None
    assert first[1].accepted.all()
    assert len(result.records) == 2, "every answer is settled after one round"
    assert result.usage.lm_calls == 8


def test_a_model_that_makes_answers_worse():
    """The right answers, a minority, survive, where what is worse is not always accepted."""
    draw = drafts(2, 3, 4, 5)
    lm = Scripted(lambda prompt, seed: box(3 + seed % 2) if reading(prompt) else draw(seed))
    before = solve(lm, Refine(8, 0))
    assert 0 < before.posterior["2"] < 0.7
    assert solve(lm, Refine(8, 3, "better")).answer == "2"
    assert solve(lm, Refine(8, 3, "metropolis", beta=4.0)).answer == "2"
    assert solve(lm, Refine(8, 3, "always")).posterior.get("2", 0.0) == 0.0
    assert solve(lm, Refine(8, 3, "always", elites=1)).posterior["2"] > 0.1
    assert 0 < solve(lm, Refine(8, 3, "always", pool="all")).posterior["2"] == pytest.approx(before.posterior["2"] / 4)


def test_a_model_that_parrots_changes_nothing():
    lm = Scripted(lambda prompt, seed: reading(prompt) or drafts(2, 3)(seed))
    for accept in ("metropolis", "better", "always"):
        before, after = solve(lm, Refine(4, 0)), solve(lm, Refine(4, 3, accept, ess_threshold=0.0))
        assert [t.text for t in after.trajectories] == [t.text for t in before.trajectories]
        assert after.log_weights == pytest.approx(before.log_weights)
        assert (after.answer, after.log_evidence) == (before.answer, pytest.approx(before.log_evidence))
        assert after.records[-1].moves.accepted.all() == (accept != "better")


# ------------------------------------------------------------------------------------------------------- the prompt


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": QUESTION},
]


def test_the_prompt_keeps_the_conversation_and_the_form_of_answers():
    lm = Scripted(lambda prompt, seed: f"<think>{box(7)}</think>{drafts(3, 4)(seed)}")
    problem = motes.prompt("boxed").problem(Problem(messages=CONVERSATION, id="p", answer="2"))
    result = solve(lm, Refine(4, 1, "always"), problem=problem)
    assert len(lm.refinements) == 4
    for prompt in lm.refinements:
        assert [dict(turn) for turn in prompt.messages[:-1]] == CONVERSATION[:-1]
        assert prompt.system == "Be brief."
        assert prompt.question.startswith(f"{QUESTION}\n\nPlease reason step by step, and put your final answer within")
        assert reading(prompt.question) in (box(3), box(4)), "without its thoughts"
        assert (prompt.id, prompt.answer) == ("p", "2")
        assert prompt.plain is problem.plain
    assert result.problem is problem
    assert all(t.problem in lm.refinements for t in result.trajectories)


def test_reward_models_read_the_plain_problem():
    asked_of: list[str] = []
    reward = FunctionReward(lambda problem, text: asked_of.append(problem.question) or 0.5)
    lm = Scripted(lambda prompt, seed: drafts(3, 4)(seed))
    solve(lm, Refine(4, 2), reward, motes.prompt("boxed").problem(QUESTION))
    assert set(asked_of) == {QUESTION}


def test_copies_of_an_answer_share_their_prompt():
    lm = Scripted(lambda prompt, seed: box(2) if seed % 4 else box(3))
    reward = FunctionReward(lambda problem, text: 0.9 if "boxed{3}" in text else 0.01)
    result = solve(lm, Refine(8, 1, ess_threshold=1.0), reward)
    ancestors = result.records[1].ancestors.tolist()
    assert len(set(ancestors)) < 8
    prompts = [trajectory.problem for trajectory in result.records[1].moves.trajectories]
    assert len({id(prompt) for prompt in prompts}) == len(set(ancestors))
    seeds = {t.text for t in result.records[1].moves.trajectories}
    assert seeds == {box(2), box(3)}, "but each is refined by a seed of its own"


def test_an_answer_of_which_only_thoughts_are_left_is_drawn_anew():
    lm = Scripted(lambda prompt, seed: "<think>I wonder")
    solve(lm, Refine(3, 1, "always"))
    assert len(lm.prompts) == 6
    assert lm.refinements == []


def test_a_prompt_of_ones_own(tmp_path):
    lm = Scripted(lambda prompt, seed: box(3))
    text = "Score {score}. Earlier: {answer} Asked: {question} Use \\boxed{} and {braces}.{critique}"
    solve(lm, Refine(1, 1, prompt=text))
    expected = f"Score 0.30. Earlier: {box(3)} Asked: {QUESTION} Use \\boxed{{}} and {{braces}}."
    assert [prompt.question for prompt in lm.refinements] == [expected]
    file = tmp_path / "mine.txt"
    file.write_text(text)
    assert Refine(1, prompt=str(file)) == Refine(1, prompt=text), "a file is its text, also where it is recorded"


def test_fields_in_values_are_text():
    problem = asked(Problem("{answer} {question}"), "{question}|{answer}", answer="{question} \\1")
    assert problem.question == "{answer} {question}|{question} \\1"
    assert fill("{a}{b}", {"a": "{b}", "b": "x"}) == "{b}x"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("Improve {answer}", r"\{question\} stands for what is filled in: put it there"),
        ("{question}", r"\{answer\} stands for"),
        ("{score}", r"\{question\} and \{answer\}"),
        ("a text\nwithout fields", r"\{question\} and \{answer\}"),
    ],
)
def test_a_prompt_without_its_fields_is_refused(value: str, complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        Refine(4, prompt=value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("{question} {answer}")
    with pytest.raises(UnreadableFileError, match=r"did you mean .*mine\.txt"):
        Refine(4, prompt=str(tmp_path / "mien.txt"))
    for text in ("", "\0", "x" * 5000):
        with pytest.raises(ConfigurationError):
            Refine(4, prompt=text)
    (tmp_path / "other.txt").write_text("nothing to fill in")
    with pytest.raises(ConfigurationError, match="stands for"):
        read_prompt("prompt", str(tmp_path / "other.txt"), ("question",))


# ------------------------------------------------------------------------------------------------------------ critiques


class Critic(FunctionReward):
    """A reward model with words."""

    def __init__(self) -> None:
        super().__init__(lambda problem, text: 0.9 if "boxed{2}" in text else 0.3)

    def critique(self, trajectory: Trajectory) -> str | None:
        return None if "boxed{4}" in trajectory.text else f"I doubt {trajectory.text}"


def test_the_critique_of_a_reward_model_is_passed_on():
    draw = drafts(3, 4)
    lm = Scripted(lambda prompt, seed: box(2) if reading(prompt) else draw(seed))
    solve(lm, Refine(6, 1), Critic())
    assert {prompt.question for prompt in lm.refinements} == {
        fill(REFINE_BY_CRITIQUE, {"question": QUESTION, "answer": box(3), "critique": f"I doubt {box(3)}"}),
        fill(REFINE, {"question": QUESTION, "answer": box(4)}),
    }


def test_and_that_of_a_reward_model_within_another():
    lm = Scripted(lambda prompt, seed: box(3))
    calibrated = motes.CalibratedReward(Critic(), motes.Calibration((0.0, 1.0), (0.0, 1.0)))
    for reward, is_told in ((calibrated, True), (RIGHT, False)):
        lm.prompts.clear()
        solve(lm, Refine(1, 1), reward)
        assert ["I doubt" in prompt.question for prompt in lm.refinements] == [is_told]


# --------------------------------------------------------------------------------------- what cannot be refined stays


@pytest.mark.parametrize("merges_calls", [True, False])
@pytest.mark.parametrize(
    "refusal",
    [
        Failure(ServerError("the server is ill: call a doctor")),
        ContextLengthError("the prompt is too long: shorten the question"),
        Step("", "length"),  # no room is left in the context
        "nothing that I could put into a box",
    ],
    ids=["failure", "context", "no room", "no answer"],
)
def test_a_particle_that_cannot_be_refined_stays(refusal: Any, merges_calls: bool):
    draw = drafts(3, 4)

    def answer(prompt: str, seed: int) -> Any:
        return draw(seed) if (old := reading(prompt)) is None else box(2) if old == box(3) else refusal

    result = solve(Scripted(answer, merges_calls=merges_calls), Refine(6, 1, ess_threshold=0.0))
    before, after = result.records
    kept = [i for i, t in enumerate(before.trajectories) if t.text == box(4)]
    assert 0 < len(kept) < 6
    assert after.moves.accepted.tolist() == [i not in kept for i in range(6)]
    assert [t.text for t in after.trajectories] == [box(4) if i in kept else box(2) for i in range(6)]
    assert all(after.trajectories[i] is before.trajectories[i] for i in kept)
    assert after.log_weights[kept] == pytest.approx(before.log_weights[kept])
    assert not after.failures
    assert result.dropped == ()
    for i in kept:
        error = after.moves.trajectories[i].error
        assert (error is None) == isinstance(refusal, (str, Step))
        assert isinstance(error, ContextLengthError) == isinstance(refusal, ContextLengthError)


def test_a_question_that_does_not_fit_fails_the_run():
    lm = Scripted(lambda prompt, seed: ContextLengthError("the prompt is too long: shorten the question"))
    with pytest.raises(ContextLengthError):
        solve(lm, Refine(3, 2))
    fits_once = iter([True])
    lm = Scripted(
        lambda prompt, seed: box(3) if next(fits_once, False) else ContextLengthError("too long"), merges_calls=False
    )
    with pytest.raises(ContextLengthError):
        solve(lm, Refine(1, 2, move="fresh"))


def test_an_answer_that_cannot_be_scored_is_not_accepted():
    def score(problem: Problem, text: str) -> float:
        if "boxed{2}" in text:
            raise motes.errors.RewardError("I refuse to read this: write another")
        return 0.4

    result = solve(Scripted(lambda prompt, seed: box(2) if reading(prompt) else box(3)), Refine(3, 2), _Refusing(score))
    assert result.answer == "3"
    assert [record.moves.accepted.any() for record in result.records[1:]] == [False, False]
    assert {str(t.error) for t in result.records[1].moves.trajectories} == {"I refuse to read this: write another"}


class _Refusing(FunctionReward):
    """Refuses answers one by one, as models do that read each by itself."""

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Any]:
        return [(await super(_Refusing, self).score([trajectory]))[0] for trajectory in trajectories]


def test_a_dropped_draft_stays_dropped():
    ill = Failure(ServerError("the server is ill: call a doctor"))
    lm = Scripted(lambda prompt, seed: box(2) if reading(prompt) else ill if seed % 3 == 0 else box(3))
    result = solve(lm, Refine(8, 2, ess_threshold=0.0))
    failed = [t.error is not None for t in result.records[0].trajectories]
    assert 0 < sum(failed) < 8
    for record in result.records:
        assert [t.error is not None for t in record.trajectories] == failed
        assert np.isneginf(record.log_weights).tolist() == failed
    assert len(lm.refinements) == 2 * (8 - sum(failed)) - 8 * 0
    replaced = solve(lm, Refine(8, 1, ess_threshold=1.0))
    assert not replaced.records[1].failures, "but it has no offspring"


# --------------------------------------------------------------------------------------------- limits on a whole run


class Slow(Scripted):
    """Takes a second for a draft; for refinements, the number among those of a round, and one more, in seconds."""

    def __init__(self, answer: Callable[[str, int], Any], *, merges_calls: bool = True) -> None:
        super().__init__(answer, merges_calls=merges_calls)
        self.calls = 0

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
        self.calls += 1
        await asyncio.sleep(1.0 if reading(trajectories[0].problem.question) is None else 1.0 + self.calls % 4)
        return await super().extend(trajectories, sampling, seeds)


def within(deadline: float | None, **options: Any) -> tuple[Result, float]:
    """The result of four drafts of 3 that are refined to 2, then to 4, and the seconds that it took."""
    texts = {box(3): box(2), box(2): box(4)}
    lm = Slow(lambda prompt, seed: texts.get(reading(prompt) or "", box(3)), **options)
    reward = FunctionReward(lambda problem, text: {"2": 0.5, "3": 0.25, "4": 1.0}[text[-3]])
    made = Refine(4, 2, "always", ess_threshold=0.0)
    return timed(lambda: motes.asolve(QUESTION, lm=lm, reward=reward, method=made, seed=1, deadline=deadline))


@pytest.mark.parametrize(
    ("deadline", "rounds", "posterior"),
    [
        (1.5, 2, {"3": 1.0}),  # during the first round, before any refinement is there
        (3.5, 2, {"2": 2 / 3, "3": 1 / 3}),  # two are there: weights 0.5, 0.5 and 0.25, 0.25
        (5.5, 3, {"2": 1.0}),  # during the second round
        (7.5, 3, {"4": 2 / 3, "2": 1 / 3}),
        (9.5, 3, {"4": 1.0}),
    ],
)
def test_at_a_deadline_what_is_there_counts(deadline: float, rounds: int, posterior: dict[str, float]):
    result, seconds = within(deadline)
    assert result.posterior == pytest.approx(posterior)
    assert len(result.records) == rounds
    assert seconds == pytest.approx(min(deadline, 9.0))
    assert result.stopped == ("deadline" if deadline < 9 else None)
    cut = [t for record in result.records[1:] for t in record.moves.trajectories if t.finished == "deadline"]
    assert bool(cut) == (deadline < 9), "what was cut off is recorded"
    assert all(t.finished == "eos" for t in result.trajectories), "and no particle is one of these"


def test_where_calls_are_not_merged_a_round_is_whole_or_not_there():
    result, _ = within(2.5, merges_calls=False)
    assert (result.answer, len(result.records), result.stopped) == ("3", 2, "deadline")
    assert not result.records[1].moves.accepted.any()


def test_before_the_first_score_every_draft_counts_the_same():
    result, _ = within(0.5)
    assert (result.answer, result.stopped, len(result.records)) == (None, "deadline", 1)
    assert result.log_evidence is None
    assert result.log_weights.tolist() == [0.0] * 4


def test_a_token_budget_ends_a_round_early():
    whole, _ = within(None)
    per_answer = len(box(3))
    assert whole.usage.generated_tokens == 12 * per_answer
    for budget, answer, records in ((per_answer, "3", 1), (4 * per_answer + 1, "2", 2), (8 * per_answer, "2", 2)):
        lm = Scripted(lambda prompt, seed: box(2) if reading(prompt) else box(3))
        result = solve(lm, Refine(4, 2, "always", settled=2.0, ess_threshold=0.0), token_budget=budget)
        assert (result.answer, len(result.records), result.stopped) == (answer, records, "token_budget")


# ------------------------------------------------------------------------------------------------------------- settings


def test_the_budget_counts_what_is_drawn():
    made = method("refine", 16)
    assert made == Refine(4, 3)
    assert (made.budget, Refine(5, 2).budget) == (16, 15)
    lm = Scripted(lambda prompt, seed: box(3 + seed % 7))
    assert solve(lm, made).usage.lm_calls == 16
    assert method("refine", 12, rounds=2, accept="better") == Refine(4, 2, "better")
    with pytest.raises(ConfigurationError, match=r"a budget of 6 has no 4 equal parts: .* or set rounds"):
        method("refine", 6)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_particles": 0}, "num_particles must be a whole number of at least 1"),
        ({"rounds": -1}, "rounds must be a whole number of at least 0"),
        ({"beta": -1.0}, "beta must be finite"),
        ({"beta": float("inf")}, "beta must be finite"),
        ({"ess_threshold": 1.5}, "ess_threshold is a fraction"),
        ({"settled": -0.1}, "settled is a score"),
        ({"settled": float("nan")}, "settled is a score"),
        ({"elites": 4}, "elites must be at least 0 and less than num_particles"),
        ({"elites": -1}, "elites must be"),
        ({"accept": "maybe"}, "unknown accept 'maybe'"),
        ({"move": "refin"}, "did you mean 'refine'"),
        ({"pool": "first"}, "unknown pool 'first'"),
        ({"resampling": "systmatic"}, "did you mean 'systematic'"),
        ({"selector": "votes"}, "did you mean 'vote'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        Refine(**{"num_particles": 4, **settings})
    assert issubclass(UnknownNameError, ConfigurationError)


def test_a_reward_model_is_needed():
    lm = Scripted(lambda prompt, seed: box(3))
    with pytest.raises(ConfigurationError, match="give `reward=`"):
        solve(lm, Refine(3), None)
    assert lm.prompts == []


def test_elites_are_neither_resampled_nor_moved():
    draw = drafts(2, 3, 4, 5)
    lm = Scripted(lambda prompt, seed: box(9) if reading(prompt) else draw(seed))
    reward = FunctionReward(lambda problem, text: {"2": 0.99, "3": 0.5, "4": 0.4, "5": 0.3}.get(text[-3], 0.01))
    for threshold in (0.0, 1.0):
        result = solve(lm, Refine(8, 2, "always", elites=2, ess_threshold=threshold), reward, seed=2)
        best = sorted(range(8), key=lambda i: -result.records[0].scores[i])[:2]
        elites = [result.records[0].trajectories[i] for i in best]
        for record in result.records:
            assert set(elites) <= set(record.trajectories)
        assert [t.text for t in result.trajectories].count(box(9)) == 6
        assert result.log_evidence is None
        assert np.isnan(result.records[1].log_evidence)
        assert result.usage.lm_calls == 8 + 2 * 6


def test_settled_answers_cost_nothing_more():
    draw = drafts(2, 3)
    lm = Scripted(lambda prompt, seed: box(4) if reading(prompt) else draw(seed))
    result = solve(lm, Refine(6, 1, "always", settled=0.9, ess_threshold=0.0))
    settled = [t.text == box(2) for t in result.records[0].trajectories]
    assert 0 < sum(settled) < 6
    assert result.records[1].moves.accepted.tolist() == [not is_settled for is_settled in settled]
    assert result.usage.lm_calls == 6 + 6 - sum(settled)
    assert result.usage.reward_calls == result.usage.lm_calls
    unsettled = solve(lm, Refine(6, 1, "always", settled=2.0, ess_threshold=0.0))
    assert unsettled.records[1].moves.accepted.all()


def test_all_populations_can_vote():
    draw = drafts(3, 4)
    lm = Scripted(lambda prompt, seed: box(5) if reading(prompt) else draw(seed))
    flat = FunctionReward(lambda problem, text: 0.5)
    made = Refine(4, 2, "always", pool="all")
    result = solve(lm, made, flat)
    assert len(result.trajectories) == made.budget
    assert result.posterior["5"] == pytest.approx(2 / 3)
    assert result.posterior == pytest.approx({"5": 2 / 3, **dict.fromkeys(result.posterior.keys() - {"5"}, 1 / 6)}) or (
        sum(result.posterior.values()) == pytest.approx(1)
    )
    last = solve(lm, dataclasses.replace(made, pool="last"), flat)
    assert last.posterior == {"5": pytest.approx(1.0)}


def test_answers_can_be_followed_while_they_are_drawn():
    seen: list[tuple[Trajectory, ...]] = []
    draw = drafts(3, 4)
    lm = Scripted(lambda prompt, seed: box(2) if reading(prompt) else draw(seed))
    result = solve(lm, Refine(3, 1), on_progress=seen.append)
    assert [len(trajectories) for trajectories in seen] == [3, 3]
    assert seen[0] == result.records[0].trajectories
    assert seen[1] == result.records[1].moves.trajectories


@pytest.mark.parametrize("merges_calls", [True, False])
def test_the_same_seed_gives_the_same_result(merges_calls: bool):
    """Whatever else is in flight, and however calls are merged."""
    lm = Scripted(lambda prompt, seed: box(2 + seed % 5), merges_calls=merges_calls)

    async def together() -> list[Result]:
        made = Refine(6, 3, ess_threshold=0.9)
        runs = [motes.asolve(QUESTION, lm=lm, reward=RIGHT, method=made, seed=seed) for seed in (5, 1, 5)]
        return await asyncio.gather(*runs)

    first, other, again = asyncio.run(together())
    texts = [[t.text for record in result.records for t in record.trajectories] for result in (first, other, again)]
    assert texts[0] == texts[2] != texts[1]
    assert first.log_weights.tolist() == again.log_weights.tolist()
    alone = solve(Scripted(lm.answer), Refine(6, 3, ess_threshold=0.9), seed=5)
    assert [t.text for record in alone.records for t in record.trajectories] == texts[0]


def test_the_records_tell_one_story():
    draw = drafts(2, 3, 4, 5)
    lm = Scripted(lambda prompt, seed: box(2 + seed % 6) if reading(prompt) else draw(seed))
    reward = FunctionReward(lambda problem, text: 1 / (2 + int(text[-3])))
    made = Refine(8, 4, ess_threshold=0.95, settled=0.25)
    result = solve(lm, made, reward, seed=3)
    assert len(result.records) == 5
    assert any(record.resampled for record in result.records)
    log_evidence, weights = 0.0, result.records[0].log_weights
    assert weights == pytest.approx(np.log(result.records[0].scores))
    for before, record in zip(result.records, result.records[1:], strict=False):
        assert record.resampled == (before.ess < 0.95 * 8)
        if record.resampled:
            log_evidence += np.log(np.exp(weights).mean())
            weights = np.zeros(8)
        else:
            assert record.ancestors.tolist() == list(range(8))
        old = [before.trajectories[a] for a in record.ancestors]
        scores = before.scores[record.ancestors]
        for i, (trajectory, proposal) in enumerate(zip(record.trajectories, record.moves.trajectories, strict=True)):
            assert trajectory is (proposal if record.moves.accepted[i] else old[i])
            assert (proposal is old[i]) == (scores[i] >= 0.25)
        weights = weights + np.where(record.moves.accepted, np.log(record.scores / scores), 0.0)
        assert record.log_weights == pytest.approx(weights)
        assert record.log_evidence == pytest.approx(log_evidence + np.log(np.exp(weights).mean()))
        assert record.to_dict()["accepted"] == record.moves.accepted.tolist()
    assert "accepted" not in result.records[0].to_dict()
    assert result.log_evidence == pytest.approx(result.records[-1].log_evidence)
    assert sum((record.usage for record in result.records), motes.Usage()) == result.usage


def test_it_works_on_a_server_that_writes_whole_answers():
    """It gets each prompt as the messages of a chat."""
    problem = Problem(messages=CONVERSATION)

    async def run() -> tuple[Result, list[Any]]:
        lm = await connect(server := Closed())
        assert not lm.continues_prefixes
        reward = FunctionReward(lambda problem, text: 0.4)
        sampling = Sampling(max_tokens=40)
        result = await motes.asolve(problem, lm=lm, reward=reward, method=Refine(2, 1, "always"), sampling=sampling)
        return result, [body["messages"] for body in server.asked if body.get("messages")]

    result, asked = asyncio.run(run())
    said = [t.text for t in result.records[0].trajectories]
    refining = [messages for messages in asked if "<solution>" in messages[-1]["content"]]
    assert refining
    for messages in refining:
        assert messages[:-1] == CONVERSATION[:-1]
        assert any(text.strip() in messages[-1]["content"] for text in said)
    assert result.usage.lm_calls == 4


def test_it_runs_on_the_bundled_pair():
    (problem,) = motes.api.task("arithmetic").problems("test", 1)
    for made in (Refine(3, 1), motes.ParallelDistillRefine(3, 1)):
        result = motes.solve(problem, method=made, task=motes.api.task("arithmetic"))
        assert len(result.records) == 2
        assert result.answer is not None
        again = motes.solve(problem, method=made, task=motes.api.task("arithmetic"))
        assert (again.text, again.posterior) == (result.text, result.posterior)


# ----------------------------------------------------------------------------------------------------------- mutations


EVIDENCE = "log_evidence, weights = log_evidence + weights.log_mean, Weights.uniform(n)"
IS_EXACT = 'return self.move == "fresh" and self.accept == "metropolis"'
RATIO = "log_ratio = self._log_phi(proposals) - self._log_phi(population)"
DUE = "self.ess_threshold >= 1.0 or weights.ess < self.ess_threshold * n"
MOVES = '((self.move == "fresh") | ~(scores >= self.settled))'
TELLS = 'critique = (tell(trajectory) or "") if tell is not None else ""'


def check_metropolis() -> None:
    check_target(REFINING[6], 500)


def check_always() -> None:
    check_target(REFINING[1], 500)


def check_better() -> None:
    check_target(REFINING[3], 500)


def check_exact() -> None:
    made = Refine(2, 3, move="fresh", beta=2.0, ess_threshold=1.0)
    world = World(motes.TabularLanguageModel({(): dict(zip(NAMES, P, strict=True))}), REFINED.reward)
    expected = P * phi(made)
    drawn = estimates(made, 500, world)
    assert np.abs(z_scores(drawn, np.array([expected.sum(), *expected]))).max() < z_limit(NUM_TESTS)


MUTATIONS: dict[str, tuple[str, str, Callable[[], None]]] = {
    "the ratio is upside down": (RATIO, RATIO.replace("= ", "= -(") + ")", check_metropolis),
    "and that of new drafts": (RATIO, RATIO.replace("= ", "= -(") + ")", lambda: check_chain(4, 600)),
    "all are accepted": ('if self.accept == "always":', "if True:", test_a_model_that_makes_answers_worse),
    "as good is better": ("(after > before)", "(after >= before)", test_a_model_that_parrots_changes_nothing),
    "worse is better": ("usable & (after > before)", "usable & (after < before)", check_better),
    "weights stay": ("weights = weights.add(np.where(accepted, increment, 0.0))", "pass", check_always),
    "what is refused counts": ("np.where(accepted, increment, 0.0)", "np.nan_to_num(increment)", check_metropolis),
    "weights are not reset": (EVIDENCE, "log_evidence += weights.log_mean", check_always),
    "evidence is lost": (EVIDENCE, "weights = Weights.uniform(n)", check_always),
    "an exact move is weighted": (IS_EXACT, "return False", check_exact),
    "a refinement counts as exact": (IS_EXACT, 'return self.accept == "metropolis"', check_metropolis),
    "never resampled": (DUE, "False", test_the_records_tell_one_story),
    "always resampled": (DUE, "True", test_the_records_tell_one_story),
    "settled ones are moved": (MOVES, "True", test_settled_answers_cost_nothing_more),
    "new drafts are settled": (MOVES, "~(scores >= 0.6)", lambda: check_chain(4, 600)),
    "elites are moved": ("& ~stays)", ")", test_elites_are_neither_resampled_nor_moved),
    "elites are resampled": ("[best, drawn]", "[drawn, best]", test_elites_are_neither_resampled_nor_moved),
    "the worst are elites": ("np.argsort(-scores,", "np.argsort(scores,", test_elites_are_neither_resampled_nor_moved),
    "an empty answer is refined": (
        'if self.move == "fresh" or not answer:',
        'if self.move == "fresh":',
        test_an_answer_of_which_only_thoughts_are_left_is_drawn_anew,
    ),
    "a critique is lost": (TELLS, 'critique = ""', test_the_critique_of_a_reward_model_is_passed_on),
    "only the last vote": ('if self.pool == "all":', "if False:", test_all_populations_can_vote),
    "a round too few": ("len(sweeps) <= self.rounds", "len(sweeps) < self.rounds", test_the_records_tell_one_story),
    "zeros end a path": ("CLIP, 1.0)", "0.0, 1.0)", test_a_model_that_improves_its_answers),
    "failures replace particles": (
        "usable = await find_usable(run, population, proposals, scored=True, keeps_answer=self.move == \"refine\")",
        "usable = np.array([t.depth > 0 for t in proposals.trajectories])",
        lambda: test_a_particle_that_cannot_be_refined_stays("no box", True),
    ),
}  # fmt: skip


def test_an_exact_move_is_not_weighted():
    check_exact()


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    old, new, check = MUTATIONS[mistake]
    mutate(monkeypatch, refine, "Refine", old, new)
    with pytest.raises((AssertionError, pytest.fail.Exception, ArithmeticError, ValueError)):
        check()


def mutate_functions(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Let the functions of `refinement` that `refine` uses do what they would do if the module read `new`."""
    changed = mutant(refinement, old, new)
    for name in ("asked", "find_usable", "move", "moves_of", "propose", "read_prompt", "spoken_text"):
        monkeypatch.setattr(refine, name, getattr(changed, name))


OF_FUNCTIONS: dict[str, tuple[str, str, Callable[[], None]]] = {
    "thoughts are passed on": (
        "return without_thoughts(trajectory.text).strip()",
        "return trajectory.text",
        test_the_prompt_keeps_the_conversation_and_the_form_of_answers,
    ),
    "the conversation is lost": (
        "problem.asked_as([*before, ",
        "problem.asked_as([",
        test_the_prompt_keeps_the_conversation_and_the_form_of_answers,
    ),
    "it is another problem": (
        "return problem.asked_as(",
        "return Problem(messages=",
        test_the_prompt_keeps_the_conversation_and_the_form_of_answers,
    ),
    "kept ones are scored again": (
        "scores = tuple(known if prompt is None else () for known, prompt in old_scores)",
        "scores = tuple(() for known, prompt in old_scores)",
        test_settled_answers_cost_nothing_more,
    ),
    "an answer may be lost": (
        "complete and is_known and not loses_answer",
        "complete and is_known",
        lambda: test_a_particle_that_cannot_be_refined_stays("no box", True),
    ),
    "all are moved": (
        "np.where(accepted, len(population), 0)",
        "len(population)",
        test_the_records_tell_one_story,
    ),
}


@pytest.mark.parametrize("mistake", OF_FUNCTIONS)
def test_a_mistake_in_what_methods_share_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    old, new, check = OF_FUNCTIONS[mistake]
    mutate_functions(monkeypatch, old, new)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()


def test_prompts_are_sane():
    for prompt in (REFINE, REFINE_BY_CRITIQUE, refinement.DISTIL, refinement.SOLVE_WITH_NOTES):
        assert prompt.startswith("{question}\n\n"), "prompts share the question, and its computation"
