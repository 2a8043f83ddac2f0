"""Bounds on thoughts: budgets, waiting, deadlines; on scripted servers, fakes and the bundled pair."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

import costs
import gateways
import motes
import thinkers
from engines import Closed, connect
from motes import Problem, Sampling, Step, Trajectory
from motes.core import SamplingOptions
from motes.errors import ConfigurationError
from motes.lab.run.evaluation import Evaluation
from motes.methods.limits import ANSWER_SHARE, Limits
from motes.models.local import LocalLanguageModel
from motes.thoughts import FINAL, HARMONY, TAGS, split
from test_served_answers import answer
from test_steps import thinking
from test_thoughts import ANALYSIS

CLOSE = "\n</think>\n\n"
SAMPLINGS = {
    "text": Sampling(),
    "pattern": Sampling(delimiter=re.compile(r"\n\n|\.(?= )")),
    "tokens": Sampling(delimiter=None, max_step_tokens=7),
    "whole": Sampling().whole(),
}
FORMS = {"think": "<think>", "magistral": "[THINK]", "harmony": HARMONY[1]}


def closed_by(opening: str) -> str:
    return FINAL if opening == HARMONY[1] else f"\n{TAGS[opening]}\n\n"


async def run_on(
    engine: Any, sampling: Sampling, method: Any = None, reward: Any = None, **options: Any
) -> motes.Result:
    lm = await connect(engine)
    method = motes.Majority(3) if method is None else method
    return await motes.asolve("1 + 3?", lm=lm, reward=reward, method=method, sampling=sampling, **options)


def thinker(name: str, **settings: Any) -> Any:
    engine = thinkers.SERVERS[name]()
    engine.mind = thinkers.Mind(**settings)
    return engine


# -------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("budget", [1, 5, 12, 39])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", thinkers.SERVERS)
def test_a_thought_ends_at_its_budget(name: str, form: str, sampling: Sampling, budget: int):
    engine = thinker(name, opening=form)
    result = asyncio.run(run_on(engine, sampling.replace(max_thinking_tokens=budget)))
    assert result.answer == "4"
    assert result.content == engine.mind.answer
    assert len(thinkers.encode(result.thoughts)) <= budget, "also where the mark that opens a thought is longer"
    header = len(ANALYSIS) - len("<|channel|>") - len("<|message|>") + 2 if form == HARMONY[1] else 1
    if budget > header:
        assert closed_by(form) in result.text
        for trajectory in result.trajectories:
            (cut,) = [step for step in trajectory.steps if step.appended]
            assert cut.appended == closed_by(form)
            assert trajectory.thought_tokens == budget
            written = result.text.replace(closed_by(form), "")
            assert trajectory.num_tokens == len(thinkers.encode(written)) + 1, "appended text costs no tokens"
            assert trajectory.finished in ("eos", "answer")
    prompt = engine.mind.prompt([{"content": "1 + 3?"}])
    for body in engine.asked:  # what is continued is what was written
        ids = body.get("prompt") or body["input_ids"]
        for one in ids if isinstance(ids[0], list) else [ids]:
            assert (prompt + result.text).startswith(thinkers.decode(one, special=True))
    asked = [
        body.get("max_tokens") or body.get("n_predict") or body["sampling_params"]["max_new_tokens"]
        for body in engine.asked
    ]
    assert asked[0] == min(budget, sampling.max_step_tokens)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("name", thinkers.SERVERS)
def test_a_budget_that_is_not_spent_changes_nothing(name: str, opened: bool, sampling: Sampling):
    plain = asyncio.run(run_on(thinker(name, opened=opened), sampling))
    for budget in (42, 43, 60, 5000):
        bounded = asyncio.run(run_on(thinker(name, opened=opened), sampling.replace(max_thinking_tokens=budget)))
        assert [[(s.text, s.end, s.token_ids, s.appended) for s in t.steps] for t in bounded.trajectories] == [
            [(s.text, s.end, s.token_ids, s.appended) for s in t.steps] for t in plain.trajectories
        ]
        assert bounded.usage.generated_tokens == plain.usage.generated_tokens
    assert not any(step.appended for t in plain.trajectories for step in t.steps)


@pytest.mark.parametrize("budget", [30, 42, 50])
@pytest.mark.parametrize("name", thinkers.SERVERS)
def test_steps_of_several_calls_cost_the_same_whatever_is_in_flight(name: str, budget: int):
    """Every call counts, and every token of thought once."""
    sampling = SAMPLINGS["whole"].replace(max_thinking_tokens=budget)
    first, *others = [
        asyncio.run(run_on(thinker(name), sampling, motes.AdaptiveMajority(8, num_in_flight=k))) for k in (1, 3, 8)
    ]
    assert first.usage.lm_calls > len(first.trajectories)
    assert first.usage.thought_tokens == sum(t.thought_tokens for t in first.trajectories)
    for result in others:
        assert result.usage.failed_tokens > 0
        cost = dataclasses.replace(costs.own(result.usage), failed_generated_tokens=0, failed_prefill_tokens=0)
        assert cost == costs.own(first.usage)


def test_a_model_that_does_not_think_is_left_alone():
    for name in thinkers.SERVERS:
        for sampling in SAMPLINGS.values():
            plain = asyncio.run(run_on(thinker(name, opening="", answer="Say 4, and\n\nthen \\boxed{4}."), sampling))
            engine = thinker(name, opening="", answer="Say 4, and\n\nthen \\boxed{4}.")
            bounded = asyncio.run(run_on(engine, sampling.replace(max_thinking_tokens=3)))
            assert [t.text for t in bounded.trajectories] == [t.text for t in plain.trajectories]
            assert [s.text for s in bounded.trajectories[0].steps] == [s.text for s in plain.trajectories[0].steps]


def test_a_second_thought_has_what_the_first_has_left():
    first, again = "<think>aaa</think>Wait.", "<think>bbbbbbbbbb</think>"

    class Twice(thinkers.Mind):
        def next(self, text: str) -> str:
            script = first + again
            if script.startswith(text):
                return thinkers.decode(thinkers.encode(script[len(text) :])[:1], special=True) or self._say("")
            return self._say(text.rpartition("</think>")[2])

    for sampling in (Sampling(), Sampling().whole()):
        engine = thinkers.ThinkingVLLM()
        engine.mind = Twice()
        result = asyncio.run(run_on(engine, sampling.replace(max_thinking_tokens=9, max_step_tokens=100)))
        assert result.text == f"{first}<think>bbb{CLOSE}So \\boxed{{4}}."
        assert {t.thought_tokens for t in result.trajectories} == {9}
        engine.mind = Twice()
        spent = asyncio.run(run_on(engine, sampling.replace(max_thinking_tokens=5, max_step_tokens=100)))
        assert spent.text == f"{first}<think>{CLOSE}So \\boxed{{4}}."


def test_batches_stay_whole():
    """Particles at one node share a request, as without a budget."""
    sizes = []
    for budget in (None, 25):
        engine = thinker("vllm")
        method = motes.ParticleFilter(6)
        sampling = Sampling(delimiter=", ", max_thinking_tokens=budget)
        lm = asyncio.run(connect(engine, seeds="none"))
        reward = motes.FunctionReward(lambda problem, text: 0.5)
        result = motes.solve("1 + 3?", lm=lm, reward=reward, method=method, sampling=sampling)
        assert result.answer == "4"
        prompts = [body["prompt"] for body in engine.asked]
        sizes.append(
            max(len(p) if isinstance(p[0], list) else 1 for p in prompts)
            * max(body.get("n", 1) for body in engine.asked)
        )
    assert sizes[0] == sizes[1] > 1


class Pieces:
    """A model of texts: a token for each word and its blank, in a text that was written in advance."""

    def __init__(self, thought: str, answer: str, *, merges: bool = True, opens: bool = False) -> None:
        self.opens = opens  # whether the prompt says that it thinks
        self.thought, self.answer, self.merges_calls = thought, answer, merges
        self.calls: list[int] = []

    async def thought_opening(self, problem: Problem) -> str:
        return "<think>" if self.opens else ""

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        self.calls.append(len(trajectories))
        await asyncio.sleep(0)
        return [self.step(t, sampling) for t in trajectories]

    def step(self, trajectory: Trajectory, sampling: Sampling) -> Step:
        before = "" if trajectory.step is None else trajectory.step.overrun
        text = trajectory.text + before
        script = self.thought + self.answer
        if "</think>" in text and not script.startswith(text):
            rest = self.answer[len(text.rpartition("</think>")[2].lstrip("\n")) :]
        else:
            rest = script[len(text) :]
        limit = min(sampling.max_step_tokens, (sampling.max_tokens or 10**9) - trajectory.num_tokens)
        if limit < 1:
            return Step("", "length")
        words = re.findall(r"\S+\s*|\s+", rest)
        taken: list[str] = []
        for word in words[:limit]:
            taken.append(word)
            if any(delimiter in word for delimiter in sampling.delimiters):
                break
        end = "eos" if len(taken) == len(words) else "length" if len(taken) == limit else "step"
        return Step(before + "".join(taken), end, tuple(range(len(taken))), logprob=-float(len(taken)))


THOUGHT = "<think>one two three\n\nfour five six\n\nseven eight nine </think>"


@pytest.mark.parametrize("merges", [True, False])
def test_any_model_that_continues_prefixes(merges: bool):
    reward = motes.FunctionReward(lambda problem, text: 0.9)
    for method in (motes.ParticleFilter(4), motes.BeamSearch(4), motes.ParticleGibbs(4, 2), motes.BestOfN(4)):
        lm = Pieces(THOUGHT, "So \\boxed{4}", merges=merges)
        result = motes.solve("?", lm=lm, reward=reward, method=method, sampling=Sampling(max_thinking_tokens=5))
        assert result.answer == "4"
        assert result.text == f"<think>one two three\n\nfour five {CLOSE}So \\boxed{{4}}"
        assert result.thought_tokens == 5
        assert [s.text for s in result.selected.steps] == [
            "<think>one two three\n\n",
            f"four five {CLOSE}",
            "So \\boxed{4}",
        ]


def test_weights_see_the_appended_text_once():
    """A step's score is the only thing that moves weights; the closing text belongs to its step."""
    texts: list[str] = []

    def score(problem: Problem, text: str) -> float:
        texts.append(text)
        return 0.7

    lm = Pieces(THOUGHT, "So \\boxed{4}")
    method = motes.ParticleFilter(2, ess_threshold=0.0, potential="absolute", beta=1.0)
    sampling = Sampling(max_thinking_tokens=4)
    result = motes.solve("?", lm=lm, reward=motes.FunctionReward(score), method=method, sampling=sampling)
    assert result.selected.depth == 3
    assert set(texts) == {t for t in texts if "\n\nfour </think>" not in t}
    assert f"<think>one two three\n\nfour {CLOSE}" in texts
    assert result.log_weights[0] == pytest.approx(3 * 0.8472978603872037)  # three steps with odds of 7 to 3
    power = motes.solve(
        "?", lm=lm, reward=None, method=motes.PowerFilter(2, alpha=2.0), sampling=sampling.replace(temperature=1.0)
    )
    assert power.log_weights[0] == pytest.approx(-(4 + 2) * (2.0 - 1.0))  # appended text has probability 1


def test_steps_that_a_bound_ends_are_no_steps_of_the_answer():
    lm = Pieces(THOUGHT, "So \\boxed{4}")
    for whole in (Sampling().whole(), Sampling(delimiter=None, max_steps=1)):
        result = motes.solve(
            "?", lm=lm, reward=None, method=motes.Greedy(), sampling=whole.replace(max_thinking_tokens=2)
        )
        assert (result.answer, result.selected.depth) == ("4", 2)
    short = Sampling(max_steps=2, max_thinking_tokens=5)
    result = motes.solve("?", lm=Pieces(THOUGHT, "a\n\nb\n\n"), reward=None, method=motes.Greedy(), sampling=short)
    assert [t.finished for t in result.trajectories] == ["max_steps"]
    assert result.text.endswith(f"four five {CLOSE}a\n\n")


def test_max_tokens_still_holds():
    lm = Pieces(THOUGHT, "So \\boxed{4}")
    for method in (motes.Greedy(), motes.Majority(2)):
        sampling = Sampling(max_thinking_tokens=5, max_tokens=6)
        result = motes.solve("?", lm=lm, reward=None, method=method, sampling=sampling)
        assert {(t.num_tokens, t.finished) for t in result.trajectories} == {(6, "max_tokens")}


def test_the_local_engine():
    words = thinking(opened=True)
    from checkpoints import random_language_model

    lm = LocalLanguageModel(random_language_model(vocab_size=576), words)
    close, problem = words.encode("</think>")[0], Problem("How many?")
    sampling = Sampling(max_step_tokens=6, delimiter=None, max_tokens=24, max_thinking_tokens=9)
    result = motes.solve(problem, lm=lm, reward=None, method=motes.Majority(6), sampling=sampling, seed=2)
    plain = motes.solve(
        problem,
        lm=lm,
        reward=None,
        method=motes.Majority(6),
        sampling=sampling.replace(max_thinking_tokens=None),
        seed=2,
    )
    cut = [t for t in result.trajectories if any(step.appended for step in t.steps)]
    assert cut
    for bounded, free in zip(result.trajectories, plain.trajectories, strict=True):
        ids = [token for step in bounded.steps for token in step.token_ids]
        assert bounded.thought_tokens <= 9
        assert ids[:9] == [token for step in free.steps for token in step.token_ids][:9], "the same up to the budget"
        if bounded in cut:
            assert bounded.text.startswith("<think>\n" + words.decode_more(words.prompt(problem), ids[:9]))
            assert split(bounded.text)[1].strip() or bounded.num_tokens == 9
    at = next(i for i, step in enumerate(cut[0].steps) if step.appended)
    node = cut[0].path[at]
    prefix = [token for step in node.steps for token in step.token_ids]
    by_hand = Trajectory(problem).extend(Step("<think>\nx", "step", (*prefix, *words.encode_answer(CLOSE))))
    one = Sampling(temperature=0.0, max_step_tokens=8, delimiter=None)
    first, second = asyncio.run(lm.extend([node, by_hand], one, [0, 0]))
    assert first.token_ids == second.token_ids
    assert close in words.encode_answer(node.step.appended)


def test_the_bundled_pair_with_its_steps_in_a_thought():
    """The pair never writes a tag: its prompt is answered within an open thought, which the budget ends."""
    problem = motes.lab.Evaluation().problems()[0]
    opened = Trajectory(problem)
    lm = motes.language_model("tiny")

    class Opens:
        merges_calls, shares_prefixes = True, True

        async def extend(self, trajectories: Any, sampling: Sampling, seeds: Any) -> list[Step]:
            def inner(t: Trajectory) -> Trajectory:
                node = opened
                for step in t.steps:
                    text = step.text.replace("<think>", "").replace(CLOSE, "")
                    overrun = step.overrun.replace("<think>", "")
                    node = node.extend(dataclasses.replace(step, text=text, overrun=overrun, appended=""))
                return node

            steps = await lm.extend([inner(t) for t in trajectories], sampling, seeds)
            return [
                dataclasses.replace(s, text="<think>" + s.text, thought_tokens=None) if not t.depth else s
                for s, t in zip(steps, trajectories, strict=True)
            ]

    sampling = Sampling(temperature=0.0, max_thinking_tokens=12)
    result = motes.solve(problem, lm=Opens(), reward=None, method=motes.Greedy(), sampling=sampling)
    free = motes.solve(problem, lm="tiny", reward=None, method=motes.Greedy(), sampling=Sampling(temperature=0.0))
    assert result.text.replace("<think>", "").replace(CLOSE, "") == free.text
    assert result.answer == free.answer
    assert 0 < result.thought_tokens <= 12


# -------------------------------------------------------------------------------------------------------------- waiting


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling().whole(), SAMPLINGS["pattern"]], ids=["text", "whole", "pattern"]
)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", thinkers.SERVERS)
def test_a_thought_that_ends_too_early_goes_on(name: str, form: str, sampling: Sampling):
    engine = thinker(name, opening=form, thinks=thinkers.at_length(6, "ab"))
    result = asyncio.run(run_on(engine, sampling.replace(min_thinking_tokens=60, max_waits=2)))
    begun = ANALYSIS if form == HARMONY[1] else form
    assert result.text.startswith(f"{begun}ababab\nWait")
    assert result.text.count("\nWait") == 2
    assert (result.answer, result.content) == ("4", engine.mind.answer)
    waits = [step for step in result.selected.steps if step.appended == "\nWait"]
    assert len(waits) == 2
    assert waits[0].num_tokens == len(thinkers.encode(f"{begun}ababab")) + 1, "nothing is sampled after the closing tag"
    own = asyncio.run(
        run_on(
            thinker(name, opening=form, thinks=thinkers.at_length(6, "ab")),
            sampling.replace(min_thinking_tokens=60, wait=" Hmm,", max_waits=1),
        )
    )
    assert own.text.startswith(f"{begun}ababab Hmm,")
    assert own.text.count(" Hmm,") == 1


def test_a_thought_that_is_long_enough_does_not():
    plain = asyncio.run(run_on(thinker("vllm"), Sampling()))
    bounded = asyncio.run(run_on(thinker("vllm"), Sampling(min_thinking_tokens=20)))
    assert [t.text for t in bounded.trajectories] == [t.text for t in plain.trajectories]
    both = asyncio.run(
        run_on(thinker("vllm", thinks=thinkers.at_length(6)), Sampling(min_thinking_tokens=12, max_thinking_tokens=12))
    )
    assert (both.thought_tokens, both.content) == (12, "So \\boxed{4}.")


# ------------------------------------------------------------------------------------------------------------ deadlines


class Clock:
    """An event loop whose clock jumps to the next timer when nothing else happens."""

    def run(self, main: Any) -> Any:
        loop = asyncio.new_event_loop()
        now = [1000.0]
        loop.time = lambda: now[0]  # type: ignore[method-assign]
        select = loop._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> Any:
            if timeout:
                now[0] += timeout
            return select(0)

        loop._selector.select = jump  # type: ignore[attr-defined]
        try:
            return loop.run_until_complete(main)
        finally:
            loop.close()


class Slow(Pieces):
    """A second for each token."""

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        steps = [self.step(t, sampling) for t in trajectories]
        self.calls.append(len(steps))
        await asyncio.sleep(max(len(step.token_ids) for step in steps))
        return steps


LONG = "<think>" + "one two three\n\n" * 40 + "</think>"


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize(
    "method", [motes.ParticleFilter(3), motes.Majority(3), motes.BestOfN(2), motes.BeamSearch(4)], ids=str
)
def test_a_deadline_ends_thoughts_so_that_there_is_an_answer(method: Any, merges: bool):
    lm = Slow(LONG, "So \\boxed{4}", merges=merges)
    reward = motes.FunctionReward(lambda problem, text: 0.5)
    result = Clock().run(motes.asolve("?", lm=lm, reward=reward, method=method, deadline=20.0))
    assert (result.answer, result.stopped) == ("4", None)
    assert (
        result.text == "<think>" + "one two three\n\n" * 5 + "</think>\n\nSo \\boxed{4}"
    )  # 16 s, of which a call of 3 s is cancelled
    assert result.thought_tokens == 15
    none = Clock().run(
        motes.asolve(
            "?",
            lm=Slow(LONG, "So \\boxed{4}", merges=merges),
            reward=reward,
            method=method,
            deadline=20.0,
            answer_share=0.0,
        )
    )
    assert (none.answer, none.stopped) == (None, "deadline")


def test_whole_answers_are_drawn_in_pieces_under_a_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("motes.methods.thinking.PIECE", 4)
    lm = Slow(LONG, "So \\boxed{4}", opens=True)
    result = Clock().run(
        motes.asolve("?", lm=lm, reward=None, method=motes.Majority(2), sampling=Sampling().whole(), deadline=21.0)
    )
    assert (result.answer, result.stopped) == ("4", None)
    assert result.thought_tokens == 16
    assert [step.appended for step in result.selected.steps] == [
        CLOSE.replace("\n<", "\n<"),
        "",
    ] or result.selected.depth == 2
    short = Slow("<think>one two three four five six </think>", "So \\boxed{4}", opens=True)
    whole = Clock().run(
        motes.asolve("?", lm=short, reward=None, method=motes.Greedy(), sampling=Sampling().whole(), deadline=99.0)
    )
    assert [step.text for step in whole.selected.steps] == [short.thought + short.answer], "the pieces are one step"
    assert whole.selected.steps[0].logprob == -8.0


@pytest.mark.parametrize("opened", [False, True])
def test_a_model_known_to_think_is_cut_before_its_first_word(opened: bool):
    """One particle thinks; the first call of the other one never returns."""

    class OneHangs(Slow):
        async def extend(self, trajectories: Any, sampling: Sampling, seeds: Any) -> list[Step]:
            if not trajectories[0].depth and self.calls:
                await asyncio.Event().wait()
            return await super().extend(trajectories, sampling, seeds)

    lm = OneHangs(LONG.replace("<think>", "<think>\n" * opened or "<think>"), "So \\boxed{4}")
    result = Clock().run(motes.asolve("?", lm=lm, reward=None, method=motes.Majority(2), deadline=20.0))
    assert (result.answer, result.stopped, result.confidence) == ("4", None, 1.0)
    assert "<think>\n\n</think>\n\nSo \\boxed{4}" in [t.text for t in result.trajectories]


def test_nobody_cuts_a_model_that_may_not_think():
    """Its first words come after answers are due."""
    lm = Slow("", "one " * 18 + "So \\boxed{4}")
    result = Clock().run(motes.asolve("?", lm=lm, reward=None, method=motes.Majority(2), deadline=20.5))
    assert (result.answer, result.stopped) == ("4", None)
    lm = Slow("", "one " * 22 + "So \\boxed{4}")
    late = Clock().run(motes.asolve("?", lm=lm, reward=None, method=motes.Majority(2), deadline=20.5))
    assert (late.answer, late.stopped) == (None, "deadline")


def test_a_cancelled_run_cancels_its_calls():
    cancelled = []

    class Hangs(Slow):
        async def extend(self, trajectories: Any, sampling: Sampling, seeds: Any) -> list[Step]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            return []

    async def main() -> None:
        run = asyncio.ensure_future(
            motes.asolve("?", lm=Hangs("", "4"), reward=None, method=motes.Greedy(), deadline=20.0)
        )
        await asyncio.sleep(1.0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert cancelled == [True]

    Clock().run(main())


def test_a_model_that_does_not_think_gets_all_the_time():
    lm = Slow("", "one two three\n\n" * 6 + "So \\boxed{4}")
    result = Clock().run(motes.asolve("?", lm=lm, reward=None, method=motes.Greedy(), deadline=20.5))
    assert (result.answer, result.stopped) == ("4", None)
    assert lm.calls == [1] * 7


def test_a_token_budget_keeps_tokens_for_answers():
    lm = Pieces(LONG, "So \\boxed{4}")
    result = motes.solve("?", lm=lm, reward=None, method=motes.Majority(2), token_budget=30)
    assert (result.answer, result.stopped) == ("4", None)
    assert {t.thought_tokens for t in result.trajectories} == {12}  # 24 tokens of 30
    none = motes.solve(
        "?", lm=Pieces(LONG, "x"), reward=None, method=motes.Majority(2), token_budget=30, answer_share=0.0
    )
    assert (none.answer, none.stopped) == (None, "token_budget")


def test_a_deadline_brought_forward_ends_thoughts_too():
    lm = Slow(LONG, "So \\boxed{4}")

    async def main() -> motes.Result:
        loop = asyncio.get_running_loop()
        limits = Limits(loop.time() + 1000.0)
        loop.call_later(5.0, limits.bring_forward, loop.time() + 20.0)
        return await motes.asolve("?", lm=lm, reward=None, method=motes.Greedy(), limits=limits)

    result = Clock().run(main())
    assert (result.answer, result.thought_tokens) == ("4", 15)


def test_a_call_in_flight_ends_when_the_deadline_is_brought_forward():
    class Hangs(Slow):
        async def extend(self, trajectories: Any, sampling: Sampling, seeds: Any) -> list[Step]:
            if trajectories[0].thinking.is_open and trajectories[0].depth >= 2:
                await asyncio.Event().wait()
            return await super().extend(trajectories, sampling, seeds)

    async def main() -> tuple[motes.Result, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        limits = Limits(began + 1000.0)
        loop.call_later(10.0, limits.bring_forward, began + 30.0)
        lm = Hangs(LONG, "So \\boxed{4}")
        result = await motes.asolve("?", lm=lm, reward=None, method=motes.Greedy(), limits=limits)
        return result, loop.time() - began

    result, seconds = Clock().run(main())
    assert (result.answer, result.thought_tokens, seconds) == ("4", 6, 24.0 + 2.0)


def test_what_the_prompt_says_of_thoughts():
    for engine, opening in (
        (thinker("vllm", opened=True), "<think>"),
        (thinker("sglang", opening=HARMONY[1]), HARMONY[1]),
        (thinker("llama.cpp"), ""),
    ):
        lm = asyncio.run(connect(engine))
        assert asyncio.run(lm.thought_opening(Problem("?"))) == opening
    from checkpoints import random_language_model

    lm = LocalLanguageModel(random_language_model(vocab_size=576), thinking(opened=True))
    assert asyncio.run(lm.thought_opening(Problem("?"))) == "<think>"


@pytest.mark.parametrize("share", [1.0, -0.1, 7])
def test_shares_are_checked(share: float):
    with pytest.raises(ConfigurationError, match="answer_share is a share"):
        Limits(answer_share=share)
    with pytest.raises(ConfigurationError, match="answer_share"):
        motes.solve("?", lm=Pieces("", "4"), reward=None, method=motes.Greedy(), answer_share=share)
    assert Limits().answer_share == ANSWER_SHARE == 0.2


# ------------------------------------------------------------------------------------------ whole answers, and settings


class WholeOnly(Closed):
    """A chat without completions; it takes the budget in a field, if `fields` allows that."""

    fields = Closed.fields | {"thinking_token_budget", "reasoning"}

    def v1_chat_completions(self, body: dict[str, Any]) -> Any:
        reply = answer({"content": "So \\boxed{4}", "reasoning_content": "hm"})
        return reply if "thinking_token_budget" in body or "reasoning" in body else super().v1_chat_completions(body)


def test_whole_answers_pass_the_budget_on_or_refuse_it():
    sampling = Sampling(max_thinking_tokens=30)
    for field, sent in (("thinking_token_budget", 30), ("reasoning.max_tokens", {"max_tokens": 30})):
        engine = WholeOnly()
        lm = asyncio.run(connect(engine, thinking_field=field))
        assert not lm.continues_prefixes
        result = motes.solve("1 + 3?", lm=lm, reward=None, method=motes.Majority(2), sampling=sampling)
        assert result.answer == "4"
        assert {json.dumps(body[field.partition(".")[0]]) for body in engine.asked[-2:]} == {json.dumps(sent)}
        engine.requests.clear()
        with pytest.raises(ConfigurationError, match="min_thinking_tokens"):
            motes.solve("?", lm=lm, reward=None, method=motes.Greedy(), sampling=Sampling(min_thinking_tokens=5))
    engine = WholeOnly()
    lm = asyncio.run(connect(engine))
    engine.requests.clear()
    with pytest.raises(ConfigurationError, match=r"leave out max_thinking_tokens, .*\?thinking_field=NAME"):
        motes.solve("1 + 3?", lm=lm, reward=None, method=motes.Majority(2), sampling=sampling)
    assert engine.requests == [], "refused before the first token"
    assert motes.solve("1 + 3?", lm=lm, reward=None, method=motes.Majority(2)).usage.generated_tokens


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_thinking_tokens": 0}, "max_thinking_tokens must be at least 1"),
        ({"min_thinking_tokens": -1}, "min_thinking_tokens must be 0 or more"),
        ({"min_thinking_tokens": 9, "max_thinking_tokens": 8}, "is more than max_thinking_tokens"),
        ({"wait": " "}, "wait must be a text"),
        ({"max_waits": 0}, "max_waits must be at least 1"),
        ({"max_thinking_tokens": "many"}, "max_thinking_tokens"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], reason: str):
    with pytest.raises(ConfigurationError, match=reason):
        Sampling(**settings)


def test_settings_of_earlier_versions_are_the_same():
    fields = Evaluation().to_dict()["sampling"]
    assert not any("think" in name or "wait" in name for name in fields)
    assert Evaluation(sampling=Sampling(max_thinking_tokens=9)).to_dict()["sampling"]["max_thinking_tokens"] == 9
    assert SamplingOptions(max_thinking_tokens=9, wait="Hm").apply(Sampling()) == Sampling(
        max_thinking_tokens=9, wait="Hm"
    )


BUDGETS = [
    ("/v1/chat/completions", {"max_thinking_tokens": 5}),
    ("/v1/chat/completions", {"thinking_token_budget": 5}),
    ("/v1/chat/completions", {"reasoning": {"max_tokens": 5}}),
    ("/v1/responses", {"reasoning": {"max_tokens": 5}}),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 5}, "max_tokens": 99}),
]


@pytest.mark.parametrize(("path", "fields"), BUDGETS)
def test_requests_have_a_budget_and_the_operators_wins(path: str, fields: dict[str, Any]):
    turn = {"input": "?"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "?"}]}
    for own, spent in ((None, 5), (3, 3), (8, 5)):
        lm = Pieces(THOUGHT, "So \\boxed{4}")
        model = {
            **gateways.MODEL,
            "reward": None,
            "method": "majority",
            "particles": 2,
            "max_particles": 2,
            "methods": [],
        }
        model["sampling"] = {} if own is None else {"max_thinking_tokens": own}
        with gateways.over(lm, models={"story": model}) as client:
            response = client.post(path, json={"model": "story", **turn, **fields})
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
        details = usage.get("completion_tokens_details") or usage["output_tokens_details"]
        assert next(iter(details.values())) == 2 * spent


def test_later_calls_have_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("motes.methods.thinking.PIECE", 4)
    seeds: list[int] = []

    class Notes(Slow):
        async def extend(self, trajectories: Any, sampling: Sampling, given: Sequence[int]) -> list[Step]:
            seeds.extend(given)
            return await super().extend(trajectories, sampling, given)

    def run(deadline: float | None) -> list[int]:
        seeds.clear()
        lm = Notes("<think>one two three four five six </think>", "So \\boxed{4}", opens=True)
        options = {"sampling": Sampling().whole(), "deadline": deadline, "seed": 5}
        Clock().run(motes.asolve("?", lm=lm, reward=None, method=motes.Greedy(), **options))
        return [*seeds]

    plain, pieces = run(None), run(99.0)
    assert plain == pieces[:1], "the first call has the step's own seed"
    assert len(pieces) == len(set(pieces)) == 2
    assert run(99.0) == pieces
    assert all(0 <= seed < 2**63 for seed in pieces)


def test_a_step_of_which_nothing_was_sampled_has_probability_one():
    """A thought that is closed between two calls: the power filter goes on."""
    lm = Slow(LONG, "So \\boxed{4}")
    method, sampling = motes.PowerFilter(2, alpha=2.0), Sampling(temperature=1.0)
    result = Clock().run(motes.asolve("?", lm=lm, reward=None, method=method, sampling=sampling, deadline=20.0))
    assert result.answer == "4"
    (closed,) = [step for step in result.selected.steps if step.appended]
    assert (closed.num_tokens, closed.logprob, closed.proposal_logprob) == (0, 0.0, 0.0)
