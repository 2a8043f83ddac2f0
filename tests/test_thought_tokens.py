"""Tokens of thought are counted apart: exactly by engines that know tokens, by the server's number, or by a share."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest

import gateways
import motes
import thinkers
from checkpoints import random_language_model
from engines import connect
from motes import Problem, Sampling, Step, Trajectory, Usage
from motes.core.thinking import Thinking, count_tokens, thought_spans
from motes.lab.run.records import RunRecord
from motes.lab.run.traces import Trace
from motes.ledger import Ledger
from motes.models.local import LocalLanguageModel
from motes.thoughts import FINAL, TAGS, ThoughtReading
from test_served_answers import WHOLE, answer, drawn, step
from test_steps import thinking
from test_thoughts import ANALYSIS

PROBLEM = Problem("How many?")


def trajectory(*steps: Step) -> Trajectory:
    node = Trajectory(PROBLEM)
    for each in steps:
        node = node.extend(each)
    return node


def said(text: str, tokens: int, **more: Any) -> Step:
    return Step(text, "step", tuple(range(tokens)), **more)


@pytest.mark.parametrize(
    ("steps", "tokens"),
    [
        ([said("so", 5)], [0]),
        ([said("<think>so\n\n", 5), said("on</think>", 4), said("4", 3)], [5, 9, 9]),
        ([said("<think>abc", 10), said("</think>abcdefgh", 16)], [10, 11]),  # a tag is a token
        ([said("<think>abcd</think>efgh", 18)], [10]),  # of the other 16 the share of the characters
        ([said("<think>a</think>" + "b" * 81, 2)], [1]),  # of both kinds there is one at least
        ([said("ab", 4), said("c</think>", 3), said("d", 2)], [0, 7, 7]),  # never opened
        ([said("<think>", 1), said("", 3), said("</think>4", 1)], [1, 4, 5]),
        ([said("<think>a</thi", 9), said("nk>b", 4)], [9, 12]),
        ([said("<think>a", 4, thought_tokens=3), said("b", 4)], [3, 7]),  # the engine's number counts
        ([said("<think>ab\n</think>\n\n", 4, appended="\n</think>\n\n"), said("4", 2)], [4, 4]),
        ([said(f"{ANALYSIS}a{FINAL}", 9), said("4", 2)], [9, 9]),
    ],
)  # fmt: skip
def test_tokens_of_a_trajectory(steps: list[Step], tokens: list[int]):
    node = trajectory(*steps)
    assert [each.thought_tokens for each in node.path] == tokens
    assert node.finish("max_steps").thought_tokens == tokens[-1]
    assert Trajectory(PROBLEM).thought_tokens == 0


def test_characters_that_an_earlier_step_wrote_are_not_counted_again():
    """A step of four tokens begins with a thought of which the step before has sampled all."""
    before = Trajectory(PROBLEM).extend(Step("", "step", (1,) * 9, overrun="<think>aaaaaaaa</think>"))
    assert before.extend(Step("<think>aaaaaaaa</think>It is 4.", "eos", (1,) * 4)).thought_tokens == 0
    assert before.extend(Step("<think>aaaaaaaa</think>", "eos", (1,))).thought_tokens == 0
    opened = Trajectory(PROBLEM).extend(Step("", "step", (1,) * 9, overrun="<think>aaaaaaaa"))
    assert opened.extend(Step("<think>aaaaaaaa", "step", (1,) * 3)).thought_tokens == 3
    assert opened.extend(Step("<think>aaaaaaaabbbb</think>cccc", "eos", (1,) * 5)).thought_tokens == 3


def test_a_step_is_read_once(monkeypatch: pytest.MonkeyPatch):
    texts: list[str] = []
    after = Thinking.after
    monkeypatch.setattr(Thinking, "after", lambda self, text, *rest: (texts.append(text), after(self, text, *rest))[1])
    node = Trajectory(PROBLEM)
    for i in range(50):
        node = node.extend(said(f"<think>{i}", 3))
        assert node.thought_tokens == 3 * (i + 1)
    assert len(texts) == 50


@pytest.mark.parametrize(
    ("pieces", "count"),
    [
        (["<think>", "a", "b", "</think>", "4", ""], 4), (["a", "b"], 0), (["<think>", "a", ""], 3),
        (["<", "think", ">", "a", "</", "think>\n", "4"], 6), (["a", "</think>", "4"], 2), (["a<think>", "b"], 1),
        (["<think>", "", "a"], 3), (["</think>"], 1), ([], 0), ([""], 0),
    ],
)  # fmt: skip
def test_exact_counts(pieces: list[str], count: int):
    text = "".join(pieces)
    assert count_tokens(ThoughtReading(), text, 0, len(pieces), lambda: pieces) == count


def test_what_a_template_opens_is_not_counted():
    assert count_tokens(ThoughtReading(), "<think>\na</think>4", 8, 3, lambda: ["a", "</think>", "4"]) == 2
    inside = ThoughtReading().read("<think>a")[0]
    assert count_tokens(inside, "b</think>4", 0, 3, lambda: ["b", "</think>", "4"]) == 2
    assert count_tokens(inside, "bc", 0, 2, lambda: pytest.fail("all tokens are alike")) == 2
    assert thought_spans(inside, "b</think>4<think>d") == [(0, 9), (10, 18)]


def test_the_local_engine_counts_exactly():
    """Token by token, wherever steps end: the numbers are those of the tokens' texts."""
    words = thinking(opened=True)
    lm = LocalLanguageModel(random_language_model(vocab_size=576), words)
    close = words.encode("</think>")[0]
    for seed in range(6):
        node = Trajectory(PROBLEM)
        for _ in range(4):
            (new,) = asyncio.run(lm.extend([node], Sampling(max_step_tokens=9, delimiter=None), [seed]))
            node = node.extend(new)
            if node.finished:
                break
        ids = [token for each in node.steps for token in each.token_ids]
        assert all(each.thought_tokens is not None for each in node.steps)
        first = ids.index(close) + 1 if close in ids else len(ids)
        if ids.count(close) <= 1 and words.encode("<think>")[0] not in ids:
            assert node.thought_tokens == first
    inside = Trajectory(PROBLEM).extend(Step("<think>\nSo 12.\n\n", "step", tuple(words.encode("So 12.\n\n"))))
    (new,) = asyncio.run(lm.extend([inside], Sampling(max_step_tokens=3), [0]))
    assert new.thought_tokens == 3
    outside = inside.extend(Step("</think>", "step", (close,)))
    (new,) = asyncio.run(lm.extend([outside], Sampling(max_step_tokens=3), [0]))
    assert new.thought_tokens == 0
    assert outside.thought_tokens == len(words.encode("So 12.\n\n")) + 1


@pytest.mark.parametrize("details", [{"completion_tokens_details": {"reasoning_tokens": 4}}, {"reasoning_tokens": 4}])
def test_the_servers_own_number_counts(details: dict[str, Any]):
    usage = {"prompt_tokens": 7, "completion_tokens": 5, **details}
    message = {"content": "a" * 90, "reasoning_content": "b"}
    new = drawn(answer(message, usage=usage))
    assert (new.thought_tokens, new.num_tokens) == (4, 5)
    hidden = drawn(answer({"content": "a"}, usage=usage))  # OpenAI's models do not send what they think
    assert trajectory(hidden).thought_tokens == 4
    piece = {"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]}
    counted = asyncio.run(step([piece, {"choices": [], "usage": usage}, "[DONE]"], sampling=WHOLE.replace(stop="?")))
    assert counted[0].thought_tokens in (4, None)  # None: this side closes the stream before the usage comes


def test_a_number_of_zero_says_nothing():
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 0}}
    new = drawn(answer({"content": "a", "reasoning_content": "b"}, usage=usage))
    assert new.thought_tokens is None
    assert trajectory(new).thought_tokens == 4
    assert trajectory(drawn(answer("a", usage=usage))).thought_tokens == 0


@pytest.mark.parametrize("mind", [thinkers.Mind(), thinkers.Mind(opened=True), thinkers.Mind(opening="[THINK]")])
@pytest.mark.parametrize("name", thinkers.SERVERS)
def test_servers(name: str, mind: thinkers.Mind):
    """A token for each character: steps of one kind are exact."""
    engine = thinkers.SERVERS[name]()
    engine.mind = mind

    async def main(sampling: Sampling) -> motes.Result:
        lm = await connect(engine)
        return await motes.asolve("1 + 3?", lm=lm, reward=None, method=motes.Majority(3), sampling=sampling)

    result = asyncio.run(main(Sampling(delimiter=TAGS[mind.opening])))
    assert result.answer == "4"
    assert result.thought_tokens == 40 + (0 if mind.opened else 2)  # a template's "<think>\n" is part of the thought
    assert result.content_tokens == len(mind.answer) + 1
    assert result.content == mind.answer
    assert len(result.thoughts) == 39 - mind.opened  # without the blank at its end
    assert result.usage.thought_tokens == 3 * result.thought_tokens
    assert result.usage.thought_tokens < result.usage.generated_tokens


def test_a_run_counts_each_thought_once():
    ledger, root, shared = Ledger(), Trajectory(PROBLEM), said("ab", 4)
    lm, parent = motes.TabularLanguageModel({(): {"a": 1.0}}), root.extend(shared)
    assert ledger.step(root, shared, lm).thought_tokens == 0
    costs = [ledger.step(parent, each, lm).thought_tokens for each in (said("c</think>", 3), said("e</think>", 2))]
    assert costs == [4 + 3, 2]  # the shared step counts once
    assert ledger.step(parent, said("<think>", 2, usage=Usage()), lm).thought_tokens == 0  # paid for by another


def test_a_result_tells_them_apart():
    table = {(): {"<think>2 + 2\n\n": 1.0}, ("<think>2 + 2\n\n",): {"</think>It is \\boxed{4}": 1.0}}
    result = motes.solve(
        "?", lm=motes.TabularLanguageModel(table), reward=motes.TabularReward({}), method=motes.ParticleFilter(2)
    )
    assert (result.thoughts, result.content) == ("2 + 2", "It is \\boxed{4}")
    fields = result.to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert (fields["thoughts"], fields["content"]) == (result.thoughts, result.content)
    assert fields["thought_tokens"] + fields["content_tokens"] == fields["trajectories"][0]["tokens"]
    assert fields["trajectories"][0]["thought_tokens"] == fields["thought_tokens"] > 0
    assert fields["usage"]["thought_tokens"] == result.usage.thought_tokens > 0
    html = result._repr_html_()
    assert html.index(">thoughts<") < html.index("2 + 2</pre>") < html.index(">text<")
    assert "of them thought" in html
    plain = motes.solve(
        "?", lm=motes.TabularLanguageModel({(): {"\\boxed{4}": 1.0}}), reward=None, method=motes.Greedy()
    )
    assert "thought" not in plain._repr_html_()
    assert (plain.thoughts, plain.content, plain.thought_tokens) == ("", "\\boxed{4}", 0)
    trace = Trace.of(("p", "pf", 2, 0), result)
    assert {(node.text, node.thoughts) for node in trace.nodes} == {
        ("<think>2 + 2\n\n", (0, 14)),
        ("</think>It is \\boxed{4}", (0, 8)),
    }
    path = trace.path(trace.final.nodes[0])
    assert sum(node.thought_tokens for node in path) == result.thought_tokens
    assert Trace.from_json(trace.to_json()) == trace
    old = json.loads(trace.to_json())
    for node in old["nodes"]:
        del node["thoughts"], node["thought_tokens"]
    assert {node.thoughts for node in Trace.from_json(json.dumps(old)).nodes} == {()}


def test_records_of_earlier_versions_are_read():
    record = RunRecord(problem_id="a", method="pf", budget=2, seed=0, outcome="correct", usage=Usage(thought_tokens=3))
    assert RunRecord.from_json(record.to_json()) == record
    fields = json.loads(record.to_json())
    del fields["usage"]["thought_tokens"]
    assert RunRecord.from_json(json.dumps(fields)).usage == Usage()
    assert dataclasses.asdict(Usage(thought_tokens=2) + Usage(thought_tokens=3))["thought_tokens"] == 5


class Counted(gateways.Thinking):
    """A token for each character."""

    async def extend(self, *arguments: Any) -> list[Step]:
        steps = await super().extend(*arguments)
        return [dataclasses.replace(each, token_ids=tuple(each.text.encode())) for each in steps]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_gateway_tells_tokens_of_thought(path: str, stream: bool):
    body: dict[str, Any] = {"model": "story", "stream": stream}
    turn = {"role": "user", "content": "1 + 3?"}
    body |= {"/v1/responses": {"input": "1 + 3?"}, "/v1/completions": {"prompt": "1 + 3?"}}.get(
        path, {"messages": [turn]}
    )
    body |= {"max_tokens": 99} if path == "/v1/messages" else {}
    body |= {"stream_options": {"include_usage": True}} if stream and "completions" in path else {}
    with gateways.over(Counted()) as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    if stream:
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        usages = [each.get("usage") or each.get("response", {}).get("usage") for each in events]
        usage = next(each for each in reversed(usages) if each)
    else:
        usage = response.json()["usage"]
    details = usage.get("completion_tokens_details") or usage["output_tokens_details"]
    (number,) = details.values()
    total = usage["completion_tokens" if "completion_tokens" in usage else "output_tokens"]
    assert 0 < number < total
    assert set(details) == {"thinking_tokens" if path == "/v1/messages" else "reasoning_tokens"}
