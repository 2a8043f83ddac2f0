"""Checks that a language model or a reward model conforms to its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from typing import TypeVar

import numpy as np

from motes.concurrency import run_here
from motes.core import Failure, Problem, Sampling, Step, Trajectory
from motes.errors import ContractError
from motes.protocols import LanguageModel, RewardModel, RewardModelTraits
from motes.steps import Cut, first_cut

T = TypeVar("T")

QUESTIONS = (
    "Some friends collect pears. Ben owns 7. Rosa has 5 more than Ben. How many does Rosa have?",
    "Some friends collect coins. Mia owns 3. Leo has twice as many as Mia. Carl has 4 fewer than Leo. Paul owns 9. "
    "How many do Carl and Mia have together?",
    "What is 2+2?",
)
"""Short questions of different lengths, which any model can answer."""

STEPS = (
    Step("Ben has 7+5=12 pears.\n\n", "step"),
    Step("Nobody knows how many.\n\n", "step"),
    Step("The answer is \\boxed{12}.", "eos"),
)
"""Steps of an answer to each question; the last one finishes it, for models that score finished answers only."""

TOKEN_REST = 16
"""Maximum number of characters of a step after its delimiter: the rest of the token that completed it."""


def _require(holds: bool, law: str, detail: object) -> None:
    if not holds:
        raise ContractError(f"{law}: {detail}")


def _require_success(outcomes: Sequence[T | Failure]) -> list[T]:
    """The outcomes of a call. Raises the error of the first failure among them."""
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise outcome.error
        results.append(outcome)
    return results


def _same(first: Step, second: Step) -> bool:
    return all(getattr(first, name) == getattr(second, name) for name in ("text", "overrun", "end", "token_ids"))


def _require_same(steps: Sequence[Step], others: Sequence[Step], law: str) -> None:
    for i, (a, b) in enumerate(zip(steps, others, strict=True)):
        _require(_same(a, b), law, f"{i}: {a.text!r} ({a.end}) against {b.text!r} ({b.end})")


async def acheck_language_model(
    lm: LanguageModel, *, questions: Sequence[str] = QUESTIONS, rounds: int = 3, sampling: Sampling | None = None
) -> None:
    """`check_language_model` for async code and notebooks: `await motes.acheck_language_model(lm)`."""
    sampling = sampling or Sampling(max_step_tokens=32)

    async def extend(trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        return _require_success(await lm.extend(trajectories, sampling, seeds))

    # 1. The laws of every round, on three answers to each question.
    roots = [Trajectory(Problem(question)) for question in questions]
    population = [root for root in roots for _ in range(3)]
    for round_number in range(rounds):
        seeds = [1000 * round_number + i for i in range(len(population))]
        steps = await extend(population, sampling, seeds)
        _require(len(steps) == len(population), "one step per trajectory", f"{len(steps)} for {len(population)}")
        for step in steps:
            _require_end(step, sampling)
        pairs = list(zip(population, seeds, strict=True))
        _require_same(steps, await extend(population, sampling, seeds), "same seed = same tokens")
        _require_same(steps, [(await extend([t], sampling, [seed]))[0] for t, seed in pairs], "batch = single")
        backwards = await extend(population[::-1], sampling, seeds[::-1])
        _require_same(steps, backwards[::-1], "order does not matter")
        together = await asyncio.gather(*(extend([t], sampling, [seed]) for t, seed in pairs))
        _require_same(steps, [call[0] for call in together], "concurrent = sequential")
        _require_same(steps, await extend(list(map(_rebuilt, population)), sampling, seeds), "fork = fresh")

        population = [t.extend(s) for t, s in zip(population, steps, strict=True)]
        population = [t for t in population if t.finished is None and t.step is not None and t.step.text]
        if not population:
            break
    # 2. The laws of special settings: the model's own distribution, greedy decoding, a high temperature.
    plain = sampling.replace(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)
    for step in await extend([roots[0]] * 4, plain, list(range(4))):
        if step.logprob is not None and step.proposal_logprob is not None:
            gap = abs(step.logprob - step.proposal_logprob)
            _require(gap <= 1e-3 * max(1, len(step.token_ids)), "at temperature 1 proposal = model", f"{gap} apart")
    greedy = sampling.replace(temperature=0.0)
    first, second = await extend([roots[0]] * 2, greedy, [1, 2])
    _require(_same(first, second), "temperature 0 does not depend on the seed", (first.text, second.text))
    hot = sampling.replace(temperature=2.0, delimiter=None)
    many = await extend([roots[-1]] * 16, hot, list(range(16)))
    _require(len({step.text for step in many}) > 1, "seeds never collapse particles", repr(many[0].text))


def _require_end(step: Step, sampling: Sampling) -> None:
    """Require that a step's text, tokens and end agree with each other and with the sampling."""
    _require(step.end in ("step", "eos", "length"), "a step ends for a known reason", step.end)
    limit, num_tokens = sampling.max_step_tokens, len(step.token_ids)
    _require(num_tokens <= limit, "max_step_tokens holds", f"{num_tokens} tokens")
    if sampling.pattern is not None:
        size = len(step.text)
        expected = {"step": (Cut(size, is_stop=False),), "eos": (None, Cut(size, is_stop=True))}.get(step.end, (None,))
        cut = first_cut(step.text + step.overrun, sampling)
        _require(cut in expected, "a step ends where its pattern first matches", repr((step.text, step.overrun)))
    elif step.end == "step" and sampling.delimiters:
        _require(any(d in step.text for d in sampling.delimiters), "a step contains its delimiter", repr(step.text))
    elif step.end == "step":
        _require(num_tokens in (0, limit), "a step of so many tokens has them all", f"{num_tokens} of {limit} tokens")
    rests = [step.text.lstrip().partition(d)[2].strip() for d in sampling.delimiters]
    _require(max(map(len, rests), default=0) <= TOKEN_REST, "a step ends at its delimiter", repr(step.text))
    _require(not any(s in step.text for s in sampling.stops), "an answer ends before a stop text", repr(step.text))


async def acheck_reward_model(
    reward: RewardModel, *, questions: Sequence[str] = QUESTIONS, tolerance: float = 1e-4
) -> None:
    """`check_reward_model` for async code and notebooks: `await motes.acheck_reward_model(reward)`."""
    roots = [Trajectory(Problem(question)) for question in questions]
    ladders = [list(accumulate(STEPS, Trajectory.extend, initial=root))[1:] for root in roots]
    everything = [trajectory for ladder in ladders for trajectory in ladder]

    async def score(trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return _require_success(await reward.score(trajectories))

    whole = await score([ladder[-1] for ladder in ladders])
    batch = await score(everything)
    _require(len(batch) == len(everything), "one result per trajectory", f"{len(batch)} for {len(everything)}")
    for trajectory, scores in zip(everything, batch, strict=True):
        _require(len(scores) == trajectory.depth, "one score per step", f"{len(scores)} for {trajectory.depth} steps")
        _require(all(0 <= s <= 1 for s in scores), "scores lie in [0, 1]", list(scores))

    def close(first: Sequence[float], second: Sequence[float]) -> bool:
        return bool(np.allclose(first, second, rtol=0, atol=tolerance))

    single = [(await score([trajectory]))[0] for trajectory in everything]
    _require(all(map(close, batch, single)), "batch = single", (batch, single))
    if (forget := RewardModelTraits(reward).forget) is not None:
        forget()
    fresh = await score(list(map(_rebuilt, everything)))
    _require(all(map(close, batch, fresh)), "fork = fresh", (batch, fresh))
    for i, full in enumerate(whole):
        for part in batch[i * len(STEPS) : (i + 1) * len(STEPS)]:
            _require(close(full[: len(part)], part), "incremental = whole", (full, part))
    values = {round(float(s), 6) for scores in batch for s in scores}
    _require(len(values) > 1, "scores vary", f"every score is {values}")


def _rebuilt(trajectory: Trajectory) -> Trajectory:
    """The same partial answer in a new tree, for which caches of the original's nodes are useless."""
    root = Trajectory(Problem(messages=trajectory.problem.messages))
    return reduce(Trajectory.extend, trajectory.steps, root)


def check_language_model(
    lm: LanguageModel, *, questions: Sequence[str] = QUESTIONS, rounds: int = 3, sampling: Sampling | None = None
) -> None:
    """Prove that a language model keeps its contract on the given questions.

    Checked: batch = single, concurrent = sequential, fork = fresh, same seed = same tokens, order does not matter,
    different seeds differ, temperature 0 ignores the seed, at temperature 1 steps are sampled with the model's own
    probabilities (if steps carry both log-probabilities), steps end where and why they say.

    Raises:
        ContractError: the model breaks a law; the message names it, with the difference.
        ConfigurationError: an event loop is running here, as in a notebook: await `acheck_language_model` there.
    """
    run_here(
        lambda: acheck_language_model(lm, questions=questions, rounds=rounds, sampling=sampling),
        "await motes.acheck_language_model(…)",
    )


def check_reward_model(reward: RewardModel, *, questions: Sequence[str] = QUESTIONS, tolerance: float = 1e-4) -> None:
    """Prove that a reward model keeps its contract on the given questions.

    Checked: one score in [0, 1] per step, batch = single, fork = fresh, incremental = whole, scores vary.

    Raises:
        ContractError: the model breaks a law; the message names it, with the difference.
        ConfigurationError: an event loop is running here, as in a notebook: await `acheck_reward_model` there.
    """
    run_here(
        lambda: acheck_reward_model(reward, questions=questions, tolerance=tolerance),
        "await motes.acheck_reward_model(…)",
    )
