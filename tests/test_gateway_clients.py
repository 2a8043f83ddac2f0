"""The gateway and the `openai` package, unmodified: plain, streaming, async."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os.path
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

import gateways
import motes
import worlds
from gateways import Stepwise
from motes.core import Failure
from motes.errors import EngineError
from motes.gateway.config import Key
from motes.gateway.streaming import Narrator, common_length
from motes.lab import Trace
from motes.lab.run.tree import Node
from motes.methods import Majority
from motes.tasks import TASKS

PROBLEMS = TASKS["arithmetic"]().problems(limit=12)
HARD = PROBLEMS[-1].question


def node_of(fields: dict[str, Any]) -> Node:
    """A node from its JSON."""
    return Node(**{**fields, "thoughts": tuple(fields["thoughts"])})


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config(limits={"heartbeat": 0.05})) as client:
        yield client


@pytest.fixture
def client(http) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, question: str = HARD, **fields):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="story", messages=messages, **{"seed": 5, **fields})


def test_a_plain_answer(client):
    answer = ask(client)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.motes["confidence"] > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("method", ["pf", "majority", "pg"])
def test_a_stream_comes_to_the_same_answer(client, method):
    own = {"motes": {"method": method, "particles": 8}}
    whole = ask(client, extra_body=own)
    chunks = list(ask(client, extra_body=own, stream=True, stream_options={"include_usage": True}))
    *said, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in said)
    assert said[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in said] == [None] * (len(said) - 1) + ["stop"]
    assert said[-1].motes == whole.motes
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_what_is_certain_comes_before_the_end(client):
    """The text sent after each round is what all particles of that round begin with: the library says which."""
    rounds = []
    motes.solve(
        HARD, lm=worlds.language_model(), reward=worlds.reward_model(), method=motes.ParticleFilter(8), seed=5,
        task=TASKS["arithmetic"](), observe=lambda run, record: rounds.append(record),
    )  # fmt: skip
    expected = [os.path.commonprefix([t.text for t in r.trajectories]) for r in rounds]  # noqa: RUF071
    said, after = "", []
    for chunk in ask(client, stream=True, extra_body={"motes": {"progress": True}}):
        said += chunk.choices[0].delta.content or ""
        if "progress" in (getattr(chunk, "motes", None) or {}):
            after.append(said)
            assert chunk.motes["progress"]["ess"] == pytest.approx(rounds[len(after) - 1].ess)
    assert after == expected
    assert 0 < len(after[-2]) < len(said), "something was certain before the end, and not all"


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 4095, 12_293])
@pytest.mark.parametrize("ends", [("", ""), ("", "a"), ("a", "b"), ("a", "b" * 4096), ("a" * 4096, "a" * 4096 + "b")])
def test_the_common_beginning_of_long_texts(length: int, ends: tuple[str, str]):
    common = "".join(chr(97 + i % 26) for i in range(length))
    first, last = common + ends[0], common + ends[1]
    expected = len(os.path.commonprefix([first, last]))  # noqa: RUF071
    for start in {0, 1, length // 2, length}:
        if start <= expected:
            assert common_length(first, last, start) == expected


@pytest.mark.parametrize("method", ["pf", "pg", "majority"])
def test_all_of_the_particles_can_be_followed(client, method):
    """What a stream tells of them is the trace of the run, which the library gives."""
    chosen = {"pf": motes.ParticleFilter, "pg": motes.ParticleGibbs.of_budget, "majority": Majority}[method](8)
    result = motes.solve(
        HARD, lm=worlds.language_model(), reward=worlds.reward_model(), method=chosen, seed=5,
        task=TASKS["arithmetic"](),
    )  # fmt: skip
    nodes, rounds, final, apart = {}, [], None, False
    for chunk in ask(client, stream=True, extra_body={"motes": {"method": method, "progress": "particles"}}):
        own = getattr(chunk, "motes", None) or {}
        told = own.get("progress") or own.get("final") or {}
        nodes.update({int(place): node_of(node) for place, node in told.get("nodes", {}).items()})
        if "progress" in own:
            assert final is None
            rounds = [*([] if apart else rounds), told["population"]]
            apart = told.get("apart", False)
        elif "final" in own:
            final = told
    trace = Trace.of((HARD, method, 8, 0), result)
    seen = dataclasses.replace(trace, nodes=tuple(nodes[i] for i in range(len(nodes))))

    def meant(trace: Trace, population: dict) -> dict:
        """With what stands behind the numbers, which are not the same where answers grow side by side."""
        paths = [[dataclasses.replace(step, parent=None) for step in trace.path(n)] for n in population["nodes"]]
        return {**population, "nodes": paths}

    told = json.loads(trace.to_json())
    assert [meant(seen, each) for each in rounds] == [meant(trace, each) for each in told["rounds"]]
    assert meant(seen, final["population"]) == meant(trace, told["final"])
    assert tuple(final["answers"]) == result.answers


REFINES = {**gateways.MODEL, "methods": ["refine", "pdr"], "prompt": "boxed"}


class FailsToRefine(worlds.StoryLanguageModel):
    """Writes every other answer again, and fails at the others."""

    async def extend(self, trajectories, sampling, seeds):
        steps = await super().extend(trajectories, sampling, seeds)
        return [
            Failure(EngineError("the password is 1234")) if "<solution>" in t.problem.question and seed % 2 else step
            for t, step, seed in zip(trajectories, steps, seeds, strict=True)
        ]


def prompt_of(trace: Trace, node: int | None) -> str | None:
    return None if node is None else trace.path(node)[0].prompt


@pytest.mark.parametrize("method", ["refine", "pdr"])
def test_answers_that_may_be_replaced_are_not_sent_before_the_end(method):
    """All drafts begin alike, and the refined ones otherwise. What is told of the particles is the run's trace."""
    own = {"method": method, "particles": 8}
    lm = FailsToRefine()
    chosen = motes.methods.method(method, 8)
    with (
        gateways.over(lm, models={"story": REFINES}) as http,
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole = ask(client, extra_body={"motes": own})
        chunks = list(ask(client, extra_body={"motes": {**own, "progress": "particles"}}, stream=True))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    rounds, progress, nodes = [], [], {}
    for chunk in chunks:
        told = (getattr(chunk, "motes", None) or {}).get("progress")
        if told is not None:
            nodes.update({int(place): node_of(node) for place, node in told["nodes"].items()})
            progress.append(told)
            rounds = [*(each for each in rounds if not each["apart"]), {**told["population"], "apart": "apart" in told}]
    problem, task = motes.prompt("boxed").problem(HARD), TASKS["arithmetic"]()
    result = motes.solve(problem, lm=lm, reward=worlds.reward_model(), method=chosen, seed=5, task=task)
    trace = Trace.of((HARD, method, 8, 0), result)
    seen = dataclasses.replace(trace, nodes=tuple(nodes[i] for i in range(len(nodes))))
    assert len(rounds) == len(trace.rounds) == chosen.rounds + 1
    for number, (one, other) in enumerate(zip(rounds, trace.rounds, strict=True)):
        assert [seen.text(node) for node in one["nodes"]] == [trace.text(node) for node in other.nodes]
        if number:
            moves = one["moves"]["nodes"]
            assert [seen.text(node) for node in moves] == [trace.text(node) for node in other.moves.nodes]
            assert [prompt_of(seen, node) for node in moves] == [prompt_of(trace, node) for node in other.moves.nodes]
            assert one["moves"]["accepted"] == list(other.moves.accepted)
            assert one["moves"]["errors"].keys() == other.moves.errors.keys()
            assert set(one["moves"]["errors"].values()) <= {"a model failed"}
    assert {prompt_of(seen, node) for node in rounds[0]["nodes"]} == {None}
    assert any(round.moves and round.moves.errors for round in trace.rounds) == (method == "refine")
    assert [told["round"] for told in progress if "apart" not in told][1:] == list(range(2, chosen.rounds + 2))


def test_several_answers_stream_one_after_the_other(client):
    whole = ask(client, n=3, extra_body={"motes": {"particles": 32}})
    said: dict[int, str] = {}
    for chunk in ask(client, n=3, stream=True, extra_body={"motes": {"particles": 32}}):
        for choice in chunk.choices:
            said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
    assert said == {choice.index: choice.message.content for choice in whole.choices}


def test_completions_stream_too(client):
    fields = {"model": "story", "prompt": HARD, "seed": 5}
    whole = client.completions.create(**fields)
    chunks = list(client.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_many_at_once(http):
    async def test() -> None:
        async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:

            async def one(problem: motes.Problem, stream: bool) -> str:
                messages = [{"role": "user", "content": problem.question}]
                answer = await client.chat.completions.create(model="story", messages=messages, seed=1, stream=stream)
                if not stream:
                    return answer.choices[0].message.content
                return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

            texts = await asyncio.gather(*(one(problem, stream) for problem in PROBLEMS for stream in (False, True)))
            assert texts[::2] == texts[1::2]
            assert len(set(texts)) == len(PROBLEMS)

    asyncio.run(test())
    assert (http.gateway.gate.in_flight, http.gateway.gate.in_queue) == (0, 0)


def test_errors_are_the_packages_own(http, client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "?"}])
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, audio={"voice": "x", "format": "mp3"})
    assert caught.value.param == "audio"
    with pytest.raises(openai.BadRequestError, match="at most 32") as caught:
        ask(client, stream=True, extra_body={"motes": {"particles": 64}})
    assert caught.value.param == "motes.particles"
    assert [model.id for model in client.models.list()] == ["story"]


def test_a_key():
    secret, key = Key.make("one")
    with (
        gateways.gateway(gateways.config(keys=[key.model_dump()])) as http,
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="wrong", max_retries=0) as client,
    ):
        with pytest.raises(openai.AuthenticationError, match="not known"):
            ask(client)
        assert ask(client.with_options(api_key=secret)).choices


def slow(lm: Stepwise):
    return gateways.over(lm, limits={"heartbeat": 0.01})


def body(**own: object) -> dict:
    messages = [{"role": "user", "content": HARD}]
    return {"model": "story", "messages": messages, "stream": True, "motes": {"particles": 2, **own}}


def test_a_stream_that_has_nothing_to_say_lives():
    lm = Stepwise()
    with slow(lm) as http, http.stream("POST", "/v1/chat/completions", json=body()) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        while next(lines) != ": the particles are at work":
            pass
        lm.let_go()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_leaving_a_stream_cancels_the_work_at_once():
    lm = Stepwise()
    with slow(lm) as http:
        with http.stream("POST", "/v1/chat/completions", json=body()) as response:
            lines = response.iter_lines()  # which closes the stream when nobody holds it any more
            assert next(lines).startswith("data: ")
            assert lm.waits.wait(10)
        assert lm.cancelled.wait(10)


def test_a_failure_within_a_stream_is_told_in_it(caplog):
    lm = Stepwise(fails=True)
    with (
        slow(lm) as http,
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = ask(client, stream=True)
        assert next(stream).choices[0].delta.role == "assistant"
        lm.let_go()
        with pytest.raises(openai.APIError, match="internal error: see") as caught:
            list(stream)
        assert "1234" not in str(caught.value)
        (record,) = [record for record in caplog.records if record.exc_info]
        assert record.fields["request"] == stream.response.headers["x-request-id"]
        assert f"see {record.fields['request']} in the log" in str(caught.value)
        assert "1234" in caplog.text
        while http.gateway.gate.in_flight:
            pass


def test_a_failure_of_the_stream_itself_is_told_in_it_too(http, monkeypatch, caplog):
    def fail(self: Narrator, record: motes.Record) -> bytes:
        raise ValueError("the password is 1234")

    monkeypatch.setattr(Narrator, "round", fail)
    response = http.post("/v1/chat/completions", json=body())
    *_, told, done = filter(None, response.text.splitlines())
    assert (done, "internal error: see" in told, "1234" in told) == ("data: [DONE]", True, False)
    assert "1234" in caplog.text
    while http.gateway.gate.in_flight:
        pass


def test_an_answer_that_is_drawn_alone_streams_step_by_step():
    lm = Stepwise()
    with slow(lm) as http, openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
        stream = ask(client, stream=True, extra_body={"motes": {"method": "majority", "particles": 1}})
        said = ""
        while not said:
            said = next(stream).choices[0].delta.content or ""
        lm.let_go()
        rest = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert said.count("\n\n") == 1, "the first step came while the second one was waited for"
        assert "boxed" in "".join(rest)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(http, client):
    """A stream, printed as it comes, as docs/gateway.md has it."""
    body = {"model": "story", "messages": [{"role": "user", "content": HARD}], "seed": 5, "stream": True}
    command = ["curl", "--silent", "--show-error", "--fail", "--no-buffer", f"{http.base_url}/v1/chat/completions"]
    command += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    chunks = [line.removeprefix("data: ") for line in told.splitlines() if line.startswith("data: ")]
    assert chunks.pop() == "[DONE]"
    said = "".join(json.loads(chunk)["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert said == ask(client).choices[0].message.content
