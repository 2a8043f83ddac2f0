"""Nothing slow runs on the event loop: it goes on while a task's rule, a grader or a reward function waits.

What is slow here waits until the event loop has taken another turn. On the loop itself that never happens: after
`PATIENCE` it gives up, and the test fails. No test depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import gateways
import motes
from motes import Majority, Problem, Result, Step, TabularLanguageModel, Trajectory
from motes.core import Failure
from motes.errors import ContextLengthError, GraderError
from motes.gateway.answering import open_models
from motes.lab import Evaluation, evaluate, read_records, regrade
from motes.lab.run.evaluation import RECORDS
from motes.methods import METHODS, answers, method
from motes.tasks import BoxedAnswers, MathAnswers
from motes.tasks.maths import Grader, workers
from motes.threads import LONG, abandoned, in_thread
from test_maths import FAKE

PATIENCE = 20.0
AT_ONE_GO = 0.5
"""Seconds of the processor that the loop's thread may take from one turn to the next."""


class Turns:
    """Counts the turns of an event loop, for threads that wait for one."""

    def __init__(self) -> None:
        self._turned = threading.Condition()
        self._count = 0
        self.stalls = 0
        self.longest = 0.0
        self.calls = 0

    def wait(self) -> None:
        """Wait until the event loop has taken a turn; give up where it takes none."""
        self.calls += 1
        with self._turned:
            before = self._count
            if not self._turned.wait_for(lambda: self._count > before, PATIENCE):
                self.stalls += 1

    async def watch(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What `work` comes to, while turns are counted."""
        task = asyncio.ensure_future(work())
        while not task.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.thread_time() - began)
            with self._turned:
                self._count += 1
                self._turned.notify_all()
            await asyncio.sleep(0.0001)  # a thread needs the interpreter, too
        return task.result()


class SlowRule(BoxedAnswers):
    """Waits for the event loop whenever two answers are compared."""

    name = "slow"

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def equivalent(self, first: str, second: str) -> bool:
        self.turns.wait()
        return super().equivalent(first, second)


class SlowReader:
    """Reads whole texts, and waits for the event loop whenever it does."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def answer(self, text: str) -> str | None:
        self.turns.wait()
        return BoxedAnswers().answer(text)

    def equivalent(self, first: str, second: str) -> bool:
        return BoxedAnswers().equivalent(first, second)


class SlowTask(SlowRule):
    made: SlowTask

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        return [Problem("?", id="1", answer="1/2")]

    def grade(self, problem: Problem, answer: str) -> bool:
        return self.equivalent(problem.answer or "", answer)


def slow_task() -> SlowTask:
    return SlowTask.made


FILLER = "word " * 60_000
"""300 KB."""
ANSWERS = {"\\boxed{1/2}": 0.3, "\\boxed{0.5}": 0.3, "\\boxed{3}": 0.4}
LM = TabularLanguageModel({(): {FILLER: 0.5, f"{FILLER}\n\n": 0.5}, (FILLER,): ANSWERS, (f"{FILLER}\n\n",): ANSWERS})


@pytest.mark.parametrize("name", METHODS)
def test_the_loop_goes_on_while_long_texts_are_scored_and_their_answers_compared(name: str):
    turns, made, scored = Turns(), method(name, 16), 0

    def score(problem: Problem, text: str) -> float:
        nonlocal scored
        scored += 1
        turns.wait()
        return 0.6

    reward = motes.FunctionReward(score)
    result: Result = asyncio.run(
        turns.watch(lambda: motes.asolve("?", lm=LM, reward=reward, method=made, task=SlowRule(turns), seed=1))
    )
    assert turns.stalls == 0
    assert turns.longest < AT_ONE_GO
    assert (turns.calls > scored) == (name != "greedy"), "what a single trajectory answers is compared with nothing"
    assert (scored > 0) == getattr(made, "needs_reward", True)
    assert set(result.posterior) <= {"1/2", "0.5", "3"}
    assert not {"1/2", "0.5"} <= set(result.posterior), "equal ones were found to be equal"


NUMBER = {**dict.fromkeys(METHODS, 4), "pg": 8, "pt": 16}
"""Few trajectories, as each reads the whole text after every step."""


@pytest.mark.parametrize("name", METHODS)
def test_and_while_answers_are_read(name: str):
    turns = Turns()
    options: dict[str, Any] = {
        "reward": motes.TabularReward({}, default=0.6),
        "method": method(name, NUMBER[name]),
        "seed": 1,
    }
    slow = asyncio.run(turns.watch(lambda: motes.asolve("?", lm=LM, task=SlowReader(turns), **options)))
    assert (turns.stalls, turns.calls > 0) == (0, True)
    assert slow.text == motes.solve("?", lm=LM, **options).text, "it reads what the quick rule reads"


def test_and_while_another_model_has_the_last_word():
    turns = Turns()
    reward = motes.TabularReward({}, default=0.6)
    options: dict[str, Any] = {"reward": reward, "outcome_reward": reward, "method": motes.ParticleFilter(8)}
    asyncio.run(turns.watch(lambda: motes.asolve("?", lm=LM, task=SlowRule(turns), **options)))
    assert (turns.stalls, turns.calls > 0) == (0, True)


def test_and_while_an_evaluation_grades(tmp_path):
    turns = Turns()
    task = SlowTask(turns)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SlowTask, "made", task, raising=False)
        evaluation = Evaluation(task="test_event_loop:slow_task", methods=("majority",), budgets=(8,), reward=None)
        asyncio.run(turns.watch(lambda: evaluate(evaluation, tmp_path, lm=LM)))
    (record,) = read_records(tmp_path / RECORDS)
    assert (turns.stalls, turns.calls > 0) == (0, True)
    assert set(record.right) == {True, False}
    (tmp_path / RECORDS).write_text(replace(record, groups=()).to_json() + "\n")  # of before there were any
    asyncio.run(turns.watch(lambda: regrade(tmp_path, task)))
    assert turns.stalls == 0
    assert read_records(tmp_path / RECORDS)[0].groups == record.groups


class StandsStill(BoxedAnswers):
    """Waits for ever where it compares 1/2 with something, or until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.compared: list[tuple[str, str]] = []
        self.ended = threading.Event()

    def equivalent(self, first: str, second: str) -> bool:
        self.compared.append((first, second))
        if "1/2" in (first, second):
            assert self.free.wait(PATIENCE)
            if abandoned():
                self.ended.set()
        return super().equivalent(first, second)


@pytest.fixture
def rule() -> Iterator[StandsStill]:
    rule = StandsStill()
    yield rule
    rule.free.set()


FOUR = TabularLanguageModel(
    {(): {"\\boxed{3}": 0.25, "\\boxed{3.0}": 0.25, "\\boxed{1/2}": 0.25, "\\boxed{0.5}": 0.25}}
)


@pytest.mark.parametrize("made", [Majority(16), motes.AdaptiveFilter(16)], ids=lambda made: type(made).__name__)
def test_at_the_deadline_what_is_not_compared_is_different(made: Any, rule: StandsStill):
    options: dict[str, Any] = {"lm": FOUR, "reward": motes.TabularReward({}, default=0.6), "method": made}
    assert len(motes.solve("?", **options).posterior) == 2
    result = motes.solve("?", task=rule, deadline=0.5, **options)
    assert result.stopped == "deadline"
    assert {"1/2", "0.5"} <= set(result.posterior), "equal, but nobody can say so in time"
    assert sum(result.posterior.values()) == pytest.approx(1.0)
    assert result.confidence == max(result.posterior.values())


def test_after_the_deadline_a_quick_rule_still_compares(monkeypatch: pytest.MonkeyPatch):
    """The deadline cuts the run off before anything is compared."""
    monkeypatch.setattr(answers, "GRACE", PATIENCE)
    ended = TabularLanguageModel({(): {"\\boxed{1/2}": 0.5, "\\boxed{0.5}": 0.5}})

    class Late(TabularLanguageModel):
        merges_calls = True
        begun = 0

        async def extend(self, *arguments: Any) -> Any:
            self.begun += 1
            if self.begun > 15:
                await asyncio.sleep(PATIENCE)
            return await super().extend(*arguments)

    result = motes.solve("?", lm=Late(ended.table), reward=None, method=Majority(16), deadline=0.05)
    assert result.stopped == "deadline"
    assert len(result.posterior) == 1, "both forms were among the 15"


def test_a_cancelled_run_leaves_no_thread_that_goes_on(rule: StandsStill):
    async def cancel() -> None:
        task = asyncio.ensure_future(motes.asolve("?", lm=FOUR, reward=None, method=Majority(16), task=rule))
        while not any("1/2" in pair for pair in rule.compared):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    compared = list(rule.compared)
    rule.free.set()
    assert rule.ended.wait(PATIENCE)
    assert not [t for t in threading.enumerate() if t.name == "motes-slow-work" and (t.join(PATIENCE) or t.is_alive())]
    assert rule.compared == compared, "nothing is compared for nobody"


class TestTheGrader:
    """Threads that ask a grader of one process, which answers when it is told to."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
        asked: list[Sequence[str]] = []

        def ask(worker: workers.Worker, request: Sequence[str], timeout: float) -> dict[str, Any]:
            asked.append(request)
            assert self.free.wait(PATIENCE)
            return {"value": "name"}

        self.free = threading.Event()
        monkeypatch.setattr(workers.Worker, "ask", ask)
        return asked

    @pytest.fixture
    def grader(self) -> Iterator[Grader]:
        grader = Grader(num_workers=1, command=FAKE)
        yield grader
        grader.close()

    def test_what_is_being_asked_is_asked_once(self, grader: Grader, asked: list[Sequence[str]]):
        async def both() -> list[str | None]:
            work = asyncio.gather(*(in_thread(grader.canonical, "x") for _ in range(8)))
            while not asked:
                await asyncio.sleep(0)
            self.free.set()
            return await work

        assert asyncio.run(both()) == ["name"] * 8
        assert asked == [("canonical", "x")]

    def test_who_was_cancelled_while_waiting_asks_nothing(self, grader: Grader, asked: list[Sequence[str]]):
        async def cancel() -> str | None:
            first = asyncio.ensure_future(in_thread(grader.canonical, "x"))
            while not asked:
                await asyncio.sleep(0)
            second = asyncio.ensure_future(in_thread(grader.canonical, "y"))
            while grader.num_requests < 2:
                await asyncio.sleep(0)
            second.cancel()
            await asyncio.sleep(0)
            self.free.set()
            return await first

        assert asyncio.run(cancel()) == "name"
        for thread in threading.enumerate():
            if thread.name == "motes-slow-work":
                thread.join(PATIENCE)
        assert asked == [("canonical", "x")]
        assert grader.canonical("y") == "name", "nothing is remembered of a question that was never asked"

    def test_a_run_with_a_deadline_does_not_wait_for_it(self, grader: Grader, asked: list[Sequence[str]]):
        lm = TabularLanguageModel({(): {"\\boxed{10^{10^{10}}}": 0.5, "\\boxed{\\sqrt{2}}": 0.5}})
        options: dict[str, Any] = {"reward": None, "method": Majority(8), "task": MathAnswers(grader)}
        result = motes.solve("?", lm=lm, deadline=0.05, **options)
        assert (result.stopped, len(result.posterior)) == ("deadline", 2)
        assert len(asked) <= 1
        self.free.set()


class TestInThread:
    def test_it_returns_what_the_function_returns(self):
        assert asyncio.run(in_thread(divmod, 7, 2)) == (3, 1)

    @pytest.mark.parametrize("error", [GraderError("no"), StopIteration(), SystemExit(2)], ids=repr)
    def test_whatever_it_raises_arrives(self, error: BaseException):
        def fail() -> None:
            raise error

        with pytest.raises(RuntimeError) as raised:  # neither StopIteration nor the end of the event loop
            asyncio.run(in_thread(fail))
        assert error in (raised.value, raised.value.__cause__)

    def test_other_threads_are_not_abandoned(self):
        assert not abandoned()
        assert asyncio.run(in_thread(abandoned)) is False


def test_the_gateway_is_alive_while_answers_are_compared(rule: StandsStill):
    told = gateways.config()
    models = {name: replace(served, lm=FOUR) for name, served in open_models(told).items()}
    vars(models["story"])["rule"] = rule
    body = {"model": "story", "messages": [{"role": "user", "content": "?"}], "motes": {"method": "majority"}}
    with gateways.gateway(told, models) as client, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(client.post, "/v1/chat/completions", json={**body, "seed": 3})
        while not any("1/2" in pair for pair in rule.compared):
            assert not reply.done()
        assert client.get("/health").status_code == 200
        rule.free.set()
        assert reply.result().json()["motes"]["answer"] in ("3", "3.0", "1/2", "0.5")


@pytest.mark.parametrize("role", ["lm", "reward", "outcome_reward"])
def test_a_model_that_is_named_is_opened_beside_the_loop(role: str, monkeypatch: pytest.MonkeyPatch):
    turns = Turns()
    opened = {"lm": FOUR, "reward": motes.TabularReward({}), "outcome_reward": motes.TabularReward({})}

    def open_slowly() -> Any:
        turns.wait()
        return opened[role]

    monkeypatch.setattr(sys.modules[__name__], "open_slowly", open_slowly, raising=False)
    options: dict[str, Any] = {**opened, role: "test_event_loop:open_slowly", "method": motes.BestOfN(2)}
    asyncio.run(turns.watch(lambda: motes.asolve("?", **options)))
    assert (turns.stalls, turns.calls) == (0, 1)


class TestLongTexts:
    """What is long is tokenized beside the loop; what is short at once, which costs less than a thread."""

    LONG_TEXT = "word " * (LONG // 4)

    @pytest.fixture
    def turns(self, monkeypatch: pytest.MonkeyPatch) -> Turns:
        """Those that whoever tokenizes something long waits for."""
        turns, encode = Turns(), PreTrainedTokenizerFast.encode

        def slow(tokenizer: Any, text: str, **options: Any) -> Any:
            if len(text) > LONG:
                turns.wait()
            return encode(tokenizer, text, **options)

        monkeypatch.setattr(PreTrainedTokenizerFast, "encode", slow)
        return turns

    def test_a_prompt_of_the_language_model(self, turns: Turns):
        lm = motes.language_model("tiny")
        with pytest.raises(ContextLengthError):
            asyncio.run(turns.watch(lambda: motes.asolve(self.LONG_TEXT, lm=lm, reward=None, method=Majority(4))))
        assert (turns.stalls, turns.calls) == (0, 1), "once for all particles"

    def test_a_step_made_elsewhere(self, turns: Turns):
        lm = motes.language_model("tiny")
        written = Trajectory(Problem("?")).extend(Step(self.LONG_TEXT, "step"))
        (step,) = asyncio.run(turns.watch(lambda: lm.extend([written], motes.Sampling(), [1])))
        assert (step.end, turns.stalls, turns.calls) == ("length", 0, 1)

    @pytest.mark.parametrize("prefix", ["steps", "whole"])
    def test_a_step_and_a_question_of_the_reward_model(self, turns: Turns, prefix: str):
        reward = motes.reward_model("tiny", prefix=prefix)
        answer = Trajectory(Problem("?")).extend(Step(self.LONG_TEXT, "eos"))
        (scored,) = asyncio.run(turns.watch(lambda: reward.score([answer])))
        assert (type(scored), turns.stalls, turns.calls > 0) == (Failure, 0, True)
        with pytest.raises(ContextLengthError):
            asyncio.run(
                turns.watch(lambda: reward.score([Trajectory(Problem(self.LONG_TEXT)).extend(Step("4", "eos"))]))
            )
        assert turns.stalls == 0


class CountsThreads(BoxedAnswers):
    """Says for itself that it is quick, and where it was asked."""

    is_quick = True

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def answer(self, text: str) -> str | None:
        self.threads.add(threading.get_ident())
        return super().answer(text)


class NotItself(CountsThreads):
    """A subclass, which may compare in another way."""


@pytest.mark.parametrize(
    ("rule", "padding", "stays"), [(CountsThreads, 0, True), (CountsThreads, 30_000, False), (NotItself, 0, False)]
)
def test_only_a_rule_that_says_it_is_quick_is_asked_on_the_loop_and_about_little(rule: Any, padding: int, stays: bool):
    asked = rule()
    lm = TabularLanguageModel({(): {"a" * padding + "\\boxed{1}": 1.0}})
    assert motes.solve("?", lm=lm, reward=None, method=motes.Majority(2), task=asked).answer == "1"
    assert (asked.threads == {threading.get_ident()}) is stays
