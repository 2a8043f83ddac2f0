"""Parallel, distil, refine: drafts, a workspace that is made of them, and new drafts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import motes
from motes import FunctionReward, ParallelDistillRefine, Problem, Result, Step, Trajectory
from motes.core import Failure
from motes.errors import ConfigurationError, ContextLengthError, NoParticlesError, ServerError
from motes.methods import Population, Run, method, parallel_distill, refinement
from motes.methods.method import MethodTraits
from motes.methods.refinement import DISTIL, SOLVE_WITH_NOTES, fill
from motes.tasks import BoxedAnswers
from mutations import mutant, mutate
from scripted import QUESTION, RIGHT, Scripted, box, drafts, solve
from virtual_time import timed

NOTES = "They agree on nothing. The last one is wrong."


def script(draft: Callable[[int], Any], again: Callable[[int], Any], notes: Any = NOTES) -> Callable[[str, int], Any]:
    """Answers to the question, to the question with a workspace, and to the question for notes."""

    def answer(prompt: str, seed: int) -> Any:
        if "Do not solve" in prompt:
            return notes(prompt) if callable(notes) else notes
        return again(seed) if "<notes>" in prompt else draft(seed)

    return answer


def workspaces(result: Result, number: int = 1) -> list[str | None]:
    """(N,) the workspace that each proposal of a round was made of."""
    found = [
        re.search(r"<notes>\n(.*)\n</notes>", t.problem.question, re.DOTALL)
        for t in result.records[number].moves.trajectories
    ]
    return [None if match is None else match[1] for match in found]


def shown(workspace: str | None) -> list[str]:
    return re.findall(r"<solution \d+>\n(.*?)\n</solution", workspace or "", re.DOTALL)


def test_drafts_are_distilled_and_drafted_again():
    lm = Scripted(script(drafts(3, 4, 5), drafts(2, 2, 2, 6)))
    result = solve(lm, ParallelDistillRefine(5, 2), None)
    assert result.answer == "2"
    assert [len(record.trajectories) for record in result.records] == [5, 5, 5]
    assert result.usage.lm_calls == 15 + 2, "and a summary for each round"
    assert workspaces(result, 1) == workspaces(result, 2) == [NOTES] * 5
    asked = [prompt.question for prompt in lm.prompts if "Do not solve" in prompt.question]
    for record, question in zip(result.records, asked, strict=False):
        texts = dict.fromkeys(trajectory.text for trajectory in record.trajectories)
        numbered = "\n\n".join(f"<solution {i}>\n{text}\n</solution {i}>" for i, text in enumerate(texts, start=1))
        assert question == fill(DISTIL, {"question": QUESTION, "drafts": numbered}), "each text once"
    assert result.posterior == pytest.approx(
        {answer: list(result.answers).count(answer) / 5 for answer in dict.fromkeys(result.answers)}
    )
    assert (result.selector, result.log_evidence) == ("majority", None)
    assert all(record.moves.accepted.all() for record in result.records[1:])


def test_the_context_does_not_grow():
    longest = []
    for rounds in (1, 5):
        lm = Scripted(script(lambda seed: f"{box(3)} {seed:019}", lambda seed: f"{box(4)} {seed:019}"))
        solve(lm, ParallelDistillRefine(6, rounds), None)
        longest.append(max(len(prompt.question) for prompt in lm.prompts))
    assert longest[0] == longest[1]


def test_thoughts_are_not_passed_on():
    lm = Scripted(
        script(
            lambda seed: f"<think>{box(8)}</think>{box(3)}", lambda seed: box(4), notes=f"<think>hm</think>\n{NOTES}"
        )
    )
    result = solve(lm, ParallelDistillRefine(2, 1), None)
    assert workspaces(result) == [NOTES] * 2
    assert not any("think>" in prompt.question for prompt in lm.prompts)


def test_the_conversation_and_the_plain_problem_stay():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    problem = motes.prompt("boxed").problem(Problem(messages=messages, id="p"))
    lm = Scripted(script(drafts(3, 4), drafts(5, 6)))
    solve(lm, ParallelDistillRefine(3, 1), None, problem)
    assert len(lm.refinements) == 4
    for prompt in lm.refinements:
        assert (prompt.system, prompt.id, prompt.plain) == ("Be brief.", "p", problem.plain)
        assert prompt.question.startswith(problem.question)


def test_a_workspace_of_drafts_at_random_is_drawn_for_each_new_draft():
    lm = Scripted(script(drafts(*range(3, 9)), drafts(2)))
    result = solve(lm, ParallelDistillRefine(8, 1, workspace="random", shown=2), None)
    texts = {trajectory.text for trajectory in result.records[0].trajectories}
    found = [shown(workspace) for workspace in workspaces(result)]
    assert all(len(set(each)) == 2 and texts.issuperset(each) for each in found)
    assert len(set(map(tuple, found))) > 2
    assert result.usage.lm_calls == 16


def test_a_workspace_of_the_best_drafts():
    lm = Scripted(script(drafts(3, 2, 4, 5), drafts(2, 3)))
    reward = FunctionReward(lambda problem, text: {"2": 0.9, "3": 0.5, "4": 0.7}.get(text[-3], 0.1))
    made = ParallelDistillRefine(8, 1, workspace="top", shown=2)
    result = solve(lm, made, reward)
    scores = {t.text: s for t, s in zip(result.records[0].trajectories, result.records[0].scores, strict=True)}
    best = sorted(scores, key=lambda text: -scores[text])[:2]
    assert [shown(workspace) for workspace in workspaces(result)] == [best] * 8
    with pytest.raises(ConfigurationError, match="give `reward=`"):
        solve(lm, made, None)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({}, False),
        ({"workspace": "random"}, False),
        ({"selector": "sample"}, False),
        ({"workspace": "top"}, True),
        ({"selector": "vote"}, True),
        ({"selector": "argmax"}, True),
    ],
)
def test_a_reward_model_is_needed_where_scores_are(settings: dict[str, Any], needs: bool):
    made = ParallelDistillRefine(4, 1, **settings)
    assert MethodTraits(made).needs_reward == needs
    scored = 0

    def score(problem: Problem, text: str) -> float:
        nonlocal scored
        scored += 1
        return 0.5

    solve(Scripted(script(drafts(3, 4), drafts(5, 6))), made, FunctionReward(score))
    assert (scored > 0) == needs


def test_a_vote_by_scores():
    lm = Scripted(script(drafts(3), drafts(2, 3, 3)))
    for reward, answer in ((RIGHT, "2"), (FunctionReward(lambda problem, text: 0.0), "3")):
        result = solve(lm, ParallelDistillRefine(6, 1, selector="vote"), reward)
        assert 0 < list(result.answers).count("2") < 3
        assert result.answer == answer, "if every score is 0, they count the same"


# ---------------------------------------------------------------------------------------------------- what goes wrong


ILL = Failure(ServerError("the server is ill: call a doctor"))


def check_that_old_drafts_stay(refusal: Any) -> None:
    lm = Scripted(script(drafts(3, 4), lambda seed: box(2) if seed % 2 else refusal))
    result = solve(lm, ParallelDistillRefine(6, 1), None)
    before, after = result.records
    accepted = after.moves.accepted.tolist()
    assert 0 < sum(accepted) < 6
    for i, is_new in enumerate(accepted):
        assert after.trajectories[i] is (after.moves.trajectories if is_new else before.trajectories)[i]
        assert (after.trajectories[i].text == box(2)) == is_new
    assert not after.failures


@pytest.mark.parametrize("refusal", [ILL, ContextLengthError("too long: shorten it"), "no box"], ids=repr)
def test_an_old_draft_stays_where_no_new_one_is_complete(refusal: Any):
    check_that_old_drafts_stay(refusal)


def test_a_new_draft_replaces_a_dropped_one():
    lm = Scripted(script(lambda seed: ILL if seed % 2 else box(3), drafts(2)))
    result = solve(lm, ParallelDistillRefine(6, 1), None)
    assert 0 < len(result.records[0].failures) < 6
    assert result.posterior == {"2": pytest.approx(1.0)}
    assert not result.records[1].failures
    with pytest.raises(NoParticlesError):
        solve(Scripted(script(lambda seed: ILL, drafts(2))), ParallelDistillRefine(3, 1), None)


def check_that_a_failed_summary_keeps_all() -> None:
    lm = Scripted(script(drafts(3, 4), drafts(2), notes=ILL))
    result = solve(lm, ParallelDistillRefine(4, 1), None)
    before, after = result.records
    assert after.trajectories == before.trajectories
    assert {str(t.error) for t in after.moves.trajectories} == {"the server is ill: call a doctor"}
    assert not after.moves.accepted.any()


def test_a_summary_that_cannot_be_written_keeps_all_drafts():
    check_that_a_failed_summary_keeps_all()


def test_notes_that_are_nothing_but_thoughts_are_no_notes():
    lm = Scripted(script(lambda seed: box(3 + seed % 2), drafts(2), notes="<think>I wonder"))
    result = solve(lm, ParallelDistillRefine(4, 1), None)
    assert workspaces(result) == [None] * 4
    assert {t.problem for t in result.trajectories} == {result.problem}


@pytest.mark.parametrize("refusal", [ContextLengthError("too long: shorten it"), Step("", "length")], ids=repr)
def test_a_summary_that_does_not_fit_is_one_of_fewer_drafts(refusal: Any):
    asked: list[int] = []

    def notes(prompt: str) -> Any:
        asked.append(len(shown(prompt)))
        return refusal if asked[-1] > 2 else NOTES

    lm = Scripted(script(lambda seed: box(seed % 1000 + 3), drafts(2), notes=notes))
    result = solve(lm, ParallelDistillRefine(9, 1), None)
    assert asked == [9, 4, 2]
    assert workspaces(result) == [NOTES] * 9
    asked.clear()
    never = Scripted(script(drafts(3, 4), drafts(2), notes=lambda prompt: asked.append(0) or refusal))
    kept = solve(never, ParallelDistillRefine(2, 1), None)
    assert len(asked) <= 2
    assert set(kept.posterior) <= {"3", "4", "2"}


def test_the_length_of_a_summary():
    limits: list[int] = []

    class Counting(Scripted):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Any]:
            if "Do not solve" in trajectories[0].problem.question:
                limits.append(sampling.max_step_tokens)
                assert (sampling.max_steps, sampling.delimiters) == (1, ())
            return await super().extend(trajectories, sampling, seeds)

    for tokens in (50, None):
        made = ParallelDistillRefine(2, 1, workspace_tokens=tokens)
        solve(Counting(script(drafts(3, 4), drafts(2))), made, None, sampling=motes.Sampling(max_tokens=900))
    assert limits == [50, 900]


class Slow(Scripted):
    """Takes a second for each answer."""

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Any]:
        await asyncio.sleep(1.0)
        return await super().extend(trajectories, sampling, seeds)


@pytest.mark.parametrize(("deadline", "rounds", "lost"), [(1.5, 1, "3"), (2.5, 2, "3"), (3.5, 2, "2"), (4.5, 3, "2")])
def test_at_a_deadline_the_last_drafts_answer(deadline: float, rounds: int, lost: str):
    """Seconds 1, 3 and 5 draft; 2 and 4 distil."""
    lm = Slow(script(drafts(3), drafts(2)))

    async def run() -> Result:
        made = ParallelDistillRefine(3, 3)
        return await motes.asolve(QUESTION, lm=lm, reward=None, method=made, seed=1, deadline=deadline)

    result, seconds = timed(run)
    assert (result.stopped, seconds) == ("deadline", pytest.approx(deadline))
    assert (result.answer, len(result.records)) == (lost, rounds)


def test_a_token_budget_is_kept():
    lm = Scripted(script(drafts(3, 4), drafts(2)))
    full = solve(lm, ParallelDistillRefine(4, 3), None)
    for budget in range(1, full.usage.generated_tokens, 7):
        result = solve(lm, ParallelDistillRefine(4, 3), None, token_budget=budget)
        assert result.stopped in (None, "token_budget")
        assert result.usage.generated_tokens < budget + 4 * len(box(3)) + len(NOTES)
        if budget > 4 * len(box(3)):
            assert result.answer in ("2", "3", "4")


def test_summaries_are_not_reported_as_answers():
    seen: list[tuple[Trajectory, ...]] = []
    result = solve(
        Scripted(script(drafts(3, 4), drafts(2))), ParallelDistillRefine(3, 1), None, on_progress=seen.append
    )
    assert [len(trajectories) for trajectories in seen] == [3, 3]
    assert seen[-1] == result.trajectories


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_budget_counts_drafts():
    assert method("pdr", 16) == ParallelDistillRefine(8, 1)
    assert ParallelDistillRefine(8, 3).budget == 32
    assert method("pdr", 16, rounds=3, workspace="random") == ParallelDistillRefine(4, 3, workspace="random")
    with pytest.raises(ConfigurationError, match=r"no 2 equal parts: .* or set rounds"):
        method("pdr", 5)
    one = solve(Scripted(script(drafts(3, 4), drafts(2))), ParallelDistillRefine(4, 0), None)
    other = solve(Scripted(script(drafts(3, 4), drafts(2))), motes.Majority(4), None)
    assert ([t.text for t in one.trajectories], one.answer) == ([t.text for t in other.trajectories], other.answer)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_drafts": 0}, "num_drafts must be a whole number of at least 1"),
        ({"rounds": -1}, "rounds must be"),
        ({"shown": 0}, "shown must be"),
        ({"workspace_tokens": 0}, "workspace_tokens must be"),
        ({"workspace": "sumary"}, "did you mean 'summary'"),
        ({"selector": "vot"}, "did you mean 'vote'"),
        ({"prompt": "{question}"}, r"prompt is a prompt.* \{workspace\} stands"),
        ({"distil_prompt": "{question} {workspace}"}, r"distil_prompt is a prompt.* \{drafts\} stands"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        ParallelDistillRefine(**{"num_drafts": 4, **settings})


def test_prompts_of_ones_own(tmp_path):
    (tmp_path / "notes.txt").write_text("Do not solve {question}: {drafts}")
    made = ParallelDistillRefine(
        2, 1, prompt="<notes>{workspace}</notes>{question}", distil_prompt=str(tmp_path / "notes.txt")
    )
    lm = Scripted(script(drafts(3), drafts(2)))
    assert solve(lm, made, None).answer == "2"
    assert [prompt.question for prompt in lm.refinements] == [
        f"Do not solve {QUESTION}: <solution 1>\n{box(3)}\n</solution 1>",
        *[f"<notes>{NOTES}</notes>{QUESTION}"] * 2,
    ]
    assert fill(SOLVE_WITH_NOTES, {"question": "a", "workspace": "b"}).startswith("a\n\n")


@pytest.mark.parametrize("merges_calls", [True, False])
@pytest.mark.parametrize("workspace", ["summary", "random"])
def test_the_same_seed_gives_the_same_result(workspace: Any, merges_calls: bool):
    lm = Scripted(script(lambda seed: box(3 + seed % 5), lambda seed: box(8 + seed % 5)), merges_calls=merges_calls)

    async def together() -> list[Result]:
        made = ParallelDistillRefine(5, 2, workspace=workspace)
        runs = [motes.asolve(QUESTION, lm=lm, reward=None, method=made, seed=seed) for seed in (5, 1, 5)]
        return await asyncio.gather(*runs)

    first, other, again = asyncio.run(together())
    told = [
        [(t.text, t.problem.question) for record in r.records for t in record.trajectories]
        for r in (first, other, again)
    ]
    assert told[0] == told[2] != told[1]


# ----------------------------------------------------------------------------------------------------------- mutations


MUTATIONS: dict[str, tuple[str, str, Callable[[], None]]] = {
    "drafts that failed are shown": (
        "for i in order.tolist() if complete[i]]",
        "for i in order.tolist()]",
        lambda: check_that_only_complete_drafts_are_shown(),
    ),
    "the worst are shown": ("np.argsort(-scores,", "np.argsort(scores,", test_a_workspace_of_the_best_drafts),
    "one random workspace": (
        "return [_numbered([drafts[i] for i in draw.tolist()]) for draw in draws]",
        "return [_numbered([drafts[i] for i in draws[0].tolist()])] * len(draws)",
        test_a_workspace_of_drafts_at_random_is_drawn_for_each_new_draft,
    ),
    "texts are repeated": ("dict.fromkeys(texts)", "texts", test_drafts_are_distilled_and_drafted_again),
    "summaries are reported": ("report=False", "report=True", test_summaries_are_not_reported_as_answers),
    "votes have equal weights": ('if self.selector != "vote":', "if True:", test_a_vote_by_scores),
    "zeros count nothing": ("CLIP, 1.0)", "0.0, 1.0)", test_a_vote_by_scores),
    "an error is notes": (
        "return spoken_text(notes) if notes.error is None else notes.error",
        "return spoken_text(notes)",
        check_that_a_failed_summary_keeps_all,
    ),
    "a round is begun too late": (
        "            if run.exhausted():\n                break\n            # 2. Draft.",
        "            # 2. Draft.",
        lambda: test_at_a_deadline_the_last_drafts_answer(2.5, 1, "3"),
    ),
}


def check_that_only_complete_drafts_are_shown() -> None:
    """A draft of several steps may fail in the middle."""
    begun = Step("I begin ", "step", (1,))

    class Fragile(Scripted):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Any]:
            if trajectories[0].depth:
                return [ILL if seed % 2 else Step(box(3), "eos", (2,)) for seed in seeds]
            return await super().extend(trajectories, sampling, seeds)

    lm = Fragile(script(lambda seed: begun, drafts(2)))
    result = solve(lm, ParallelDistillRefine(6, 1, workspace="random", shown=6), None)
    assert 0 < len(result.records[0].failures) < 6
    assert {text for workspace in workspaces(result) for text in shown(workspace)} == {f"I begin {box(3)}"}


def test_only_complete_drafts_are_shown():
    check_that_only_complete_drafts_are_shown()


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    old, new, check = MUTATIONS[mistake]
    mutate(monkeypatch, parallel_distill, "ParallelDistillRefine", old, new)
    with pytest.raises((AssertionError, pytest.fail.Exception, ArithmeticError, AttributeError, RuntimeWarning)):
        check()


def check_usable(module: Any = refinement) -> None:
    """Among answers that state nothing: a proposal that failed, was cut off, is empty, or is the particle itself."""
    root = Trajectory(Problem("?"))
    said, cut, failed = (root.extend(Step("I say so", "step", (1,))) for _ in range(3))
    old = said.finish("eos")
    proposals = [said.finish("eos"), old, cut.finish("deadline"), failed.fail(ILL.error), root.finish("max_tokens")]
    n = len(proposals)
    before, after = (Population(tuple(ts), ((),) * n, np.zeros(n, dtype=bool)) for ts in ([old] * n, proposals))
    run = Run(Problem("?"), Scripted(drafts(3)), None, BoxedAnswers(), motes.Sampling(), np.random.default_rng(0))
    usable = asyncio.run(module.find_usable(run, before, after, scored=False))
    assert usable.tolist() == [True, False, False, False, False]
    assert not asyncio.run(module.find_usable(run, before, after, scored=True)).any()


def test_what_can_take_the_place_of_an_answer():
    check_usable()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("proposal.error is None and", ""),
        (" and proposal.finished not in STOPS", ""),
        ("proposal.depth > 0 and", ""),
        ("proposal is not particle and", ""),
        ("or not scored", ""),
        ("len(proposals.scores[i]) > 0 or", "True or"),
    ],
)
def test_a_mistake_in_it_is_found(old: str, new: str):
    with pytest.raises(AssertionError):
        check_usable(mutant(refinement, old, new))


def test_log_weights_are_even():
    result = solve(Scripted(script(drafts(3, 4), drafts(2))), ParallelDistillRefine(4, 1), None)
    assert np.ptp(result.log_weights) == 0
