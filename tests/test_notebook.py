"""In a notebook, where an event loop is running: what a result shows, and what stands in for functions that wait."""

from __future__ import annotations

import asyncio
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import motes
from exact import UNEVEN
from motes import BestOfN, ParticleFilter, ParticleGibbs, Problem, Record, Result, Step, Trajectory, Usage
from motes.errors import ConfigurationError, ContractError, MotesError, RewardError
from motes.tasks import WholeText

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m\u202e"


class Page(HTMLParser):
    """Elements, texts and attributes of a piece of HTML, each element closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, *tags: str) -> int:
        return sum(tag in tags for tag, _ in self.elements)


def page(result: Result) -> Page:
    return Page(result._repr_html_())


def solved(method: Any) -> Result:
    return motes.solve("Which?", lm=UNEVEN.lm, reward=UNEVEN.reward, method=method, seed=1, task=WholeText())


def nodes(result: Result) -> set[Trajectory]:
    """Every particle that a result tells of, with all that it descends from."""
    ends = {t for record in result.records for t in record.trajectories} | set(result.trajectories)
    return {node for end in ends for node in end.path}


class TestHTML:
    @pytest.mark.parametrize("method", [ParticleFilter(8), BestOfN(6), ParticleGibbs(4, num_sweeps=2)])
    def test_holds_the_answer_the_posterior_and_a_mark_for_each_particle(self, method: Any):
        result = solved(method)
        shown = page(result)
        assert result.answer in shown.texts
        assert shown.count("tr") == len(result.posterior)
        for answer, mass in result.posterior.items():
            assert answer in shown.texts
            assert f"{100 * mass:.1f} %" in shown.texts
        steps = {(node.parent, id(node.step)) for node in nodes(result)}
        assert shown.count("title") == len(steps)
        squares = {(n.parent, id(n.step)) for n in nodes(result) if n.finished not in (None, "failed")}
        assert shown.count("rect") == len(squares)

    def test_what_others_say_is_text(self):
        step = Step(HOSTILE, "eos")
        node = Trajectory(Problem(HOSTILE)).extend(step)
        result = Result(
            Problem(HOSTILE), HOSTILE, 0, HOSTILE, text=HOSTILE, posterior={HOSTILE: 1.0}, answers=(HOSTILE,),
            trajectories=(node,), log_weights=np.zeros(1), scores=np.ones(1), error=MotesError(HOSTILE),
        )  # fmt: skip
        shown = page(result)
        assert shown.count("script") == 0
        assert all(not name.startswith("on") for _, attributes in shown.elements for name in attributes)
        text = "".join(shown.texts)
        assert text.count("<script>alert(1)</script>&\"'\\x1b[31m\\u202e") == 7  # and nowhere anything else of it
        assert "\x1b" not in text
        assert "\u202e" not in text

    def test_is_of_the_colours_around_it(self):
        html = solved(ParticleFilter(4))._repr_html_()
        assert "<style" not in html
        assert "currentColor" in html
        assert not re.search(r"background:(?!none|currentColor)|[^-]color:(?!inherit)", html)

    @pytest.mark.parametrize(("number", "depth"), [(3000, 3), (40, 400), (2, 5000)])
    def test_is_small_however_large_the_run(self, number: int, depth: int):
        root = Trajectory(Problem("x" * 100_000))
        ends, dead = [], []
        for i in range(number):
            node = root
            for t in range(depth):
                node = node.extend(Step(f"{i} {t} " + "&" * 500, "step"))
            ends.append(node.finish("answer"))
            dead.append(root.extend(Step("given up", "step")))
        weights = np.linspace(0, 9, number)
        record = Record(tuple(dead), np.zeros(number, int), weights, np.full(number, 0.5), 1.0, True, 0.0, Usage())
        result = Result(
            root.problem, "pf", 0, "0", text="&" * 100_000, posterior={f"{i}" * 900: 1 / number for i in range(number)},
            trajectories=tuple(ends), log_weights=weights, scores=np.full(number, 0.5), records=(record,),
        )  # fmt: skip
        html = result._repr_html_()
        assert len(html) < 1_000_000
        shown = Page(html)
        assert shown.count("title") <= 40 * 26
        told = re.search(r"([\d,]+) more particles are not drawn", html)
        drawn = shown.count("rect") + sum("given up" in text for text in shown.texts)
        assert drawn + int(told[1].replace(",", "") if told else 0) == 2 * number

    def test_a_particle_that_was_finished_later_is_drawn_once(self):
        node = Trajectory(Problem("?")).extend(Step("so", "step"))
        record = Record((node,), np.zeros(1, int), np.zeros(1), np.zeros(1), 1.0, False, 0.0, Usage())
        ended = {"trajectories": (node.finish("max_steps"),), "log_weights": np.zeros(1), "scores": np.zeros(1)}
        shown = page(Result(node.problem, "pf", 0, records=(record,), **ended))
        assert (shown.count("title"), shown.count("rect")) == (1, 1)

    def test_of_a_failed_run_tells_why(self):
        def broken(problem: Problem, text: str) -> float:
            raise RewardError("it broke")

        with pytest.raises(MotesError) as raised:
            solved_by(broken)
        result = motes.api.partial_result(raised.value)
        assert result is not None
        shown = page(result)
        assert "no answer" in shown.texts
        assert any(text.startswith("failed: ") for text in shown.texts)
        assert shown.count("svg") == 1  # of dropped particles
        assert shown.count("rect") == 0

    def test_of_an_empty_one_there_is_little(self):
        assert page(Result(Problem("?"), "pf", 0)).count("svg", "table", "details") == 0


def solved_by(reward: Any) -> Result:
    return motes.solve("?", lm=UNEVEN.lm, reward=motes.FunctionReward(reward), method=ParticleFilter(2))


class TestJSON:
    def test_holds_the_result(self):
        result = solved(ParticleFilter(8))
        told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert told["problem"] == {
            "id": None, "question": "Which?", "answer": None, "messages": [{"role": "user", "content": "Which?"}],
        }  # fmt: skip
        assert told["answer"] == result.answer
        assert told["posterior"] == pytest.approx(dict(result.posterior))
        assert list(told["posterior"]) == list(result.posterior)  # the likeliest first
        assert told["usage"] == result.usage.to_dict()
        assert [t["text"] for t in told["trajectories"]] == [t.text for t in result.trajectories]
        assert ["".join(t["steps"]) for t in told["trajectories"]] == [t.text for t in result.trajectories]
        assert [r["ancestors"] for r in told["records"]] == [r.ancestors.tolist() for r in result.records]
        assert told["log_evidence"] == result.log_evidence

    def test_numbers_that_json_does_not_know_are_null(self):
        result = Result(
            Problem("?"), "pf", 0, log_weights=np.array([0.0, -math.inf]), scores=np.array([math.nan, 0.5]),
            error=MotesError("it broke"), swap_rates=(math.nan,),
        )  # fmt: skip
        told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert (told["log_weights"], told["scores"], told["swap_rates"]) == ([0.0, None], [None, 0.5], [None])
        assert told["error"] == "MotesError: it broke"
        assert told["log_evidence"] is None

    def test_every_field_is_documented(self):
        said = Result.to_dict.__doc__ or ""
        assert all(name in said for name in solved(ParticleFilter(2)).to_dict())
        assert all(f"`{name}`" in said for name in solved(ParticleFilter(2)).to_dict()["records"][0])


class TestWhereALoopRuns:
    @pytest.mark.parametrize(
        ("call", "line"),
        [
            (lambda: motes.solve("?"), "result = await motes.asolve(…)"),
            (lambda: motes.check_language_model(UNEVEN.lm), "await motes.acheck_language_model(…)"),
            (lambda: motes.check_reward_model(UNEVEN.reward), "await motes.acheck_reward_model(…)"),
        ],
    )
    def test_functions_that_wait_say_what_to_write(self, call: Any, line: str):
        async def cell() -> None:
            call()

        with pytest.raises(ConfigurationError) as raised:
            asyncio.run(cell())
        assert f"write `{line}`" in str(raised.value)
        assert hasattr(motes, line.partition("motes.")[2].removesuffix("(…)"))

    def test_models_are_checked_by_awaiting(self):
        class Constant:
            async def score(self, trajectories: Any) -> Any:
                return [[0.5] * trajectory.depth for trajectory in trajectories]

        class Varied:
            async def score(self, trajectories: Any) -> Any:
                return [[1 / (1 + len(step.text)) for step in t.steps] for t in trajectories]

        async def cell() -> None:
            await motes.acheck_reward_model(Varied())
            with pytest.raises(ContractError, match="scores vary"):
                await motes.acheck_reward_model(Constant())

        asyncio.run(cell())
