"""What a run costs is its own: whatever else is in flight, and whatever was cached before it began."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from typing import Any

import pytest

import motes
from checkpoints import local, local_prm
from costs import own
from engines import VLLM, connect
from motes import FunctionReward, Problem, Sampling, Step, Trajectory, Usage
from motes.core import Failure, Reads, Scores
from motes.errors import EngineError
from motes.ledger import Ledger, common_length
from motes.methods import METHODS, method

SAMPLING = Sampling(temperature=1.0, max_steps=4, max_step_tokens=3, delimiter=None)
"""A step is three tokens: a model with random weights writes few delimiters."""
NUMBER = {**dict.fromkeys(METHODS, 4), "pg": 8, "pt": 16}


async def spend(name: str, lm: Any, reward: Any, *, seed: int = 0, question: str = "Two and two?") -> Usage:
    made = method(name, NUMBER[name])
    result = await motes.asolve(question, lm=lm, reward=reward, method=made, sampling=SAMPLING, seed=seed)
    return result.usage


@pytest.fixture(scope="module")
def company() -> tuple[Any, Any]:
    """Models that all tests of this module use at once and one after the other."""
    return local(), local_prm()


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_same_alone_in_company_and_after_others(name: str, company: tuple[Any, Any]):
    alone = asyncio.run(spend(name, local(), local_prm()))

    async def together() -> list[Usage]:
        others = [spend(other, *company, seed=seed) for other in ("pf", "beam", name) for seed in (0, 1)]
        return await asyncio.gather(*others, spend(name, *company))

    in_company = asyncio.run(together())[-1]
    after_others = asyncio.run(spend(name, *company))
    assert own(alone) == own(in_company) == own(after_others)
    assert after_others.computed_prefill_tokens == 0
    assert alone.computed_prefill_tokens == alone.prefill_tokens > 0, "alone it computes what it needs"
    # Texts that begin alike share that; texts that are alike and read at the same time are read twice.
    assert alone.reward_tokens == 0 or 0.8 <= alone.computed_reward_tokens / alone.reward_tokens <= 1.5


def test_what_is_shared_within_a_run_counts_once():
    lm, reward = local(), local_prm()
    prompt = len(lm.vocabulary.prompt(problem := Problem("Two and two?")))
    usage = asyncio.run(spend("majority", lm, None))
    assert (usage.prefill_tokens, usage.prefill_tokens_cached) == (prompt - 1, usage.prefill_tokens_cached)
    assert usage.prefill_tokens_cached >= 3 * (prompt - 1)
    usage = asyncio.run(spend("bon", lm, reward))
    spared = 3 * len(reward.format.prompt(problem))
    assert usage.reward_tokens_cached >= spared, "and by answers that are alike"


class TestServed:
    """By ids, by text and by messages; where prefixes are shared and where they are not."""

    @pytest.mark.parametrize("shares", [True, False])
    @pytest.mark.parametrize("name", ["pf", "majority", "rebase"])
    def test_it_is_the_same_in_company(self, name: str, shares: bool):
        async def main(*others: str) -> Usage:
            lm = await connect(VLLM())
            lm.shares_prefixes = shares
            reward = FunctionReward(lambda problem, text: 0.5)
            spent = [spend(other, lm, reward, seed=1) for other in others]
            return (await asyncio.gather(*spent, spend(name, lm, reward)))[-1]

        alone, in_company = asyncio.run(main()), asyncio.run(main("pf", "beam", name))
        assert own(alone) == own(in_company)
        assert (alone.prefill_tokens_cached > 0) == shares


# ---------------------------------------------------------------------------------------------------------- the ledger

ROOT = Trajectory(Problem("?"))


class Shares:
    shares_prefixes = True


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def drawn(tokens: int, prefix: int, cached: int = 0) -> Step:
    return Step("so", "step", tuple(range(tokens)), usage=Usage(tokens, prefix - cached, cached))


def test_a_prompt_and_what_was_drawn_are_known(ledger: Ledger):
    first = ledger.step(ROOT, drawn(3, 10, 10), Shares())
    assert (first.prefill_tokens, first.prefill_tokens_cached, first.computed_prefill_tokens) == (10, 0, 0)
    again = ledger.step(Trajectory(Problem("?")), drawn(3, 10), Shares())
    assert (again.prefill_tokens, again.prefill_tokens_cached, again.computed_prefill_tokens) == (0, 10, 10)
    child = ROOT.extend(drawn(3, 10))
    more = ledger.step(child, drawn(4, 14), Shares())
    assert (more.prefill_tokens, more.prefill_tokens_cached) == (1, 13), "one token more than what was drawn"
    assert ledger.step(child, drawn(4, 14), Shares()).prefill_tokens == 0


class TellsIds(Shares):
    """The ids of a prompt are its characters'."""

    def prompt_ids(self, problem: Problem) -> list[int]:
        return list(map(ord, problem.question))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_common_beginnings_of_prompts_count_once_in_any_order(ledger: Ledger, order: tuple[int, ...]):
    questions = ["abc?", "abcd: x", "abcd: yz", "abcd: yz"]
    prompts = [Trajectory(Problem(questions[i])) for i in order]
    costs = [ledger.step(p, drawn(3, len(p.problem.question)), TellsIds()) for p in prompts]
    assert sum(cost.prefill_tokens for cost in costs) == len("abc?") + len("d: x") + len("yz")
    assert sum(cost.prefill_tokens + cost.prefill_tokens_cached for cost in costs) == 4 + 7 + 8 + 8
    child = prompts[0].extend(drawn(3, len(prompts[0].problem.question)))
    assert ledger.step(child, drawn(2, len(prompts[0].problem.question) + 3), TellsIds()).prefill_tokens == 0


def test_prompts_share_nothing_where_their_ids_are_unknown():
    class TellsNothing(Shares):
        def prompt_ids(self, problem: Problem) -> list[int]:
            return []

    for lm in (Shares(), TellsNothing()):
        ledger = Ledger()
        costs = [ledger.step(Trajectory(Problem(text)), drawn(3, 8), lm) for text in ("abcdefgh", "abcdefgi")]
        assert [cost.prefill_tokens for cost in costs] == [8, 8]


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_length_of_a_common_beginning(kind: Any):
    for first, second, length in [("", "", 0), ("a", "", 0), ("abc", "abc", 3), ("abc", "abx", 2), ("xbc", "abc", 0)]:
        assert common_length(kind(first), kind(second)) == length
    long = kind(range(1000))
    for end in range(1000):
        assert common_length(long, kind([*range(end), -1])) == end


def test_a_reward_model_reads_the_problem_itself_whatever_the_prompt(ledger: Ledger):
    """A refined answer is an answer to the same problem."""
    reward, plain = object(), Problem("?")
    asked = [plain.asked_as([{"role": "user", "content": text}]) for text in ("a?", "b?")]
    nodes = [Trajectory(problem).extend(Step("so", "eos")) for problem in (plain, *asked)]
    costs = [ledger.scores(node, scored(13, Reads(10, (13, 0))), reward) for node in nodes]
    assert [cost.reward_tokens for cost in costs] == [13, 0, 0]
    other = Trajectory(asked[1]).extend(Step("thus", "eos"))
    assert ledger.scores(other, scored(13, Reads(10, (13, 0))), reward).reward_tokens == 3


def test_without_sharing_every_prefix_is_needed(ledger: Ledger):
    steps = [ledger.step(ROOT, drawn(3, 10, cached), object()) for cached in (0, 10)]
    assert [(s.prefill_tokens, s.prefill_tokens_cached) for s in steps] == [(10, 0), (10, 0)]
    assert [s.computed_prefill_tokens for s in steps] == [10, 0]


def test_a_model_may_say_how_long_the_prefix_was(ledger: Ledger):
    step = dataclasses.replace(drawn(3, 99), prefix_tokens=10)
    assert ledger.step(ROOT, step, Shares()).prefill_tokens == 10


def scored(cost: int, reads: Reads | None, *, cached: int = 0) -> Scores:
    return Scores([0.5], Usage(reward_tokens=cost, reward_tokens_cached=cached), reads)


def test_the_same_steps_are_read_once(ledger: Ledger):
    reward = object()
    one, two = (ROOT.extend(Step(text, "step")) for text in ("a", "b"))
    both = ROOT.extend(Step("a", "step")).extend(Step("c", "step"))
    reads = Reads(10, (13, 0))
    costs = [
        ledger.scores(one, scored(0, reads, cached=13), reward),
        ledger.scores(two, scored(13, reads), reward),
        ledger.scores(Trajectory(Problem("?")).extend(Step("a", "step")), scored(13, reads), reward),
        ledger.scores(both, scored(20, Reads(10, (17, 4, 0))), reward),
        ledger.scores(one, scored(13, reads), object()),  # another model has read nothing
    ]
    assert [cost.reward_tokens for cost in costs] == [13, 3, 0, 4, 13]
    assert [cost.reward_tokens_cached for cost in costs] == [0, 10, 13, 13, 0]
    assert [cost.computed_reward_tokens for cost in costs] == [0, 13, 13, 20, 13]


def test_where_a_model_says_nothing_all_that_it_reads_is_needed(ledger: Ledger):
    node = ROOT.extend(Step("a", "step"))
    costs = [ledger.scores(node, scored(3, None, cached=10), object()) for _ in range(2)]
    assert [(c.reward_tokens, c.reward_tokens_cached, c.computed_reward_tokens) for c in costs] == [(13, 0, 3)] * 2
    assert ledger.scores(node, [0.5], object()) == Usage(reward_calls=1)


def test_what_fails_is_a_third(ledger: Ledger):
    failure = Failure(EngineError("no"), Usage(7, 5, 100, failed_generated_tokens=1, failed_prefill_tokens=2))
    assert ledger.step(ROOT, failure, Shares()) == Usage(lm_calls=1, failed_generated_tokens=8, failed_prefill_tokens=7)
    failure = Failure(EngineError("no"), Usage(reward_tokens=7, reward_tokens_cached=9, failed_reward_tokens=1))
    assert ledger.scores(ROOT, failure, object()) == Usage(reward_calls=1, failed_reward_tokens=8)


@pytest.mark.parametrize("prefix", ["steps", "whole"])
def test_what_a_reader_says_is_what_a_cache_of_its_own_computes(prefix: str):
    """Scores of every step at once, and step by step, whatever was read before."""
    steps = ["Two and two\n\n", "  \n\n", "are four.\n\n", "So 4."]
    trajectory = Trajectory(Problem("Two and two?"))
    whole = [trajectory := trajectory.extend(Step(text, "step")) for text in steps]
    reward = local_prm(prefix=prefix)
    (at_once,) = asyncio.run(reward.score([whole[-1]]))
    assert at_once.reads.after[-1] == 0
    assert list(at_once.reads.after) == sorted(at_once.reads.after, reverse=True)
    reward = local_prm(prefix=prefix)
    computed = []
    for node in whole:
        (scores,) = asyncio.run(reward.score([node]))
        computed.append(scores.usage.reward_tokens)
    after = at_once.reads.after
    needed = [before - behind for before, behind in itertools.pairwise(after)]
    assert needed[1] == computed[1] == 0, "a blank step is not read"
    if prefix == "steps":
        assert needed == computed
        assert at_once.usage.reward_tokens == after[0]
    else:  # the token where a score is read may be cut otherwise
        assert needed == pytest.approx(computed, abs=2)


@pytest.mark.parametrize("prefix", ["steps", "whole"])
def test_a_text_that_was_read_is_not_read_again(prefix: str, monkeypatch: pytest.MonkeyPatch):
    """In whatever tree it stands; until it is forgotten, or too many others came after it."""
    reward = local_prm(prefix=prefix)

    def read(*steps: str) -> tuple[Scores, int]:
        node = Trajectory(Problem("Two and two?"))
        for text in steps:
            node = node.extend(Step(text, "step"))
        (scores,) = asyncio.run(reward.score([node]))
        assert isinstance(scores, Scores)
        return scores, scores.usage.reward_tokens

    first, cost = read("Two and two\n\n", "are four.")
    again, nothing = read("Two and two\n\n", "are four.")
    assert (list(again), nothing) == (list(first), 0)
    assert again.reads == first.reads
    _, more = read("Two and two\n\n", "are five.")
    assert 0 < more < cost
    reward.forget()
    assert read("Two and two\n\n", "are four.")[1] > 0
    monkeypatch.setattr("motes.rewards.reading.MAX_REMEMBERED", 2)
    for text in "abc":
        read(text)
    assert read("Two and two\n\n", "are four.")[1] > 0
