"""The gateway, listening for real, over the story model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import gateways
import motes
import worlds
from motes.core import Failure, Usage
from motes.errors import ContextLengthError, EngineError, UnauthorizedError, UnreachableError
from motes.gateway.answering import visible
from motes.gateway.config import Key
from motes.tasks import TASKS

TASK = TASKS["arithmetic"]()
PROBLEMS = TASK.problems(limit=12)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config()) as client:
        yield client


def ask(client: httpx2.Client, question: str = PROBLEMS[5].question, **fields: object) -> httpx2.Response:
    messages = [{"role": "user", "content": question}]
    return client.post(CHAT, json={"model": "story", "messages": messages, **fields})


def error(response: httpx2.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return told


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_an_answer_is_the_librarys(client, problem):
    told = ask(client, problem.question, seed=7).json()
    result = motes.solve(
        problem.question, lm=worlds.language_model(), reward=worlds.reward_model(), method=motes.ParticleFilter(8),
        seed=7, task=TASK,
    )  # fmt: skip
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": result.text, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert (told["object"], told["model"]) == ("chat.completion", "story")
    own, spent = told["motes"], result.usage
    assert {each["answer"]: each["mass"] for each in own["posterior"]} == dict(result.posterior)
    assert (own["answer"], own["confidence"]) == (result.answer, result.confidence)
    assert (own["method"], own["particles"], own["seed"], own["rounds"]) == ("pf", 8, 7, len(result.records))
    assert told["usage"]["completion_tokens"] == spent.generated_tokens == own["usage"]["generated_tokens"]
    assert told["usage"]["prompt_tokens"] == spent.prefill_tokens + spent.prefill_tokens_cached
    (shown, *_) = [t for t in result.trajectories if t.text == result.text]
    assert own["usage"]["visible_tokens"] == sum(step.num_tokens for step in shown.steps)


def test_several_answers_are_those_with_the_most_mass(client):
    told = ask(client, PROBLEMS[-1].question, n=3, seed=1, motes={"particles": 32}).json()
    masses = [each["answer"] for each in told["motes"]["posterior"]]
    assert [TASK.answer(choice["message"]["content"]) for choice in told["choices"]] == masses[:3]
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]


SHOWN = [  # text, how it ended, weight, score
    ("four", "eos", 0.2, 0.5), ("five", "eos", 0.15, 0.9), ("six", "max_tokens", 0.1, 0.9), ("seven", "eos", 0.1, 0.2),
    ("eight", "eos", 0.1, 0.4), ("five", "max_tokens", 0.15, 0.95), ("", "eos", 0.1, 0.9), ("nine", "failed", 0.0, 0.9),
    ("ten", "eos", 0.1, math.nan),
]  # fmt: skip


def result_of(answers: dict[str, str], **fields: object) -> motes.Result:
    """A run that ended in the trajectories of `SHOWN`, with the texts' answers."""
    problem = motes.Problem("?")
    posterior: dict[str, float] = {}
    for text, _, weight, _ in SHOWN:
        if text in answers:
            posterior[answers[text]] = posterior.get(answers[text], 0.0) + weight
    return motes.Result(
        problem, "pf", 0,
        posterior=dict(sorted(posterior.items(), key=lambda item: -item[1])),
        answers=tuple(answers.get(text) for text, *_ in SHOWN),
        trajectories=tuple(
            motes.Trajectory(problem).extend(motes.Step(text, "eos" if ended == "eos" else "step")).finish(ended)
            for text, ended, *_ in SHOWN
        ),
        log_weights=np.log([max(weight, 1e-300) for *_, weight, _ in SHOWN]),
        scores=np.array([score for *_, score in SHOWN]),
        **fields,
    )  # fmt: skip


def test_the_likeliest_texts_are_shown_where_none_states_an_answer():
    """Those with the most mass, which copies have together; of equally likely ones those that the model ended, then
    the better scored; neither what is empty nor what failed."""
    ranked = ["five", "four", "eight", "seven", "ten", "six"]
    result = result_of({}, text="five")
    for number in range(1, 9):
        assert [each.text for each in visible(result, number)] == ranked[:number]
    assert [each.finished for each in visible(result, 9)] == ["eos"] * 5 + ["max_tokens"], (
        "of copies, the one that ended"
    )
    assert visible(result, 1)[0] is result.trajectories[1]


def test_answers_are_shown_the_selected_one_first_then_those_with_the_most_mass():
    answers = {"four": "4", "five": "5", "six": "4", "seven": "7"}  # masses 0.3, 0.3, 0.1
    result = result_of(answers, answer="7", text="seven")
    assert [each.text for each in visible(result, 9)] == ["seven", "six", "five"], "of each the best-scored text"
    assert [each.text for each in visible(result, 2)] == ["seven", "six"]
    result = result_of({**answers, "ten": "5"}, answer="5", text="five")
    assert [each.text for each in visible(result, 9)] == ["five", "six", "seven"]
    assert visible(result, 1)[0].finished == "eos"


def test_texts_that_the_method_stopped_are_shown_only_without_others():
    problem = motes.Problem("?")
    texts = {"cut": "max_tokens", "stopped": "low_confidence", "whole": "eos"}

    def texts_shown(*shown: str) -> list[str]:
        root = motes.Trajectory(problem)
        trajectories = tuple(root.extend(motes.Step(text, "step")).finish(texts[text]) for text in shown)  # type: ignore[arg-type]
        numbers = np.zeros(len(shown))
        result = motes.Result(
            problem, "deepconf", 0, text=shown[0], trajectories=trajectories, log_weights=numbers, scores=numbers,
            answers=(None,) * len(shown),
        )  # fmt: skip
        return [each.text for each in visible(result, 3)]

    assert texts_shown("whole", "stopped", "cut") == ["whole", "cut"]
    assert texts_shown("stopped") == ["stopped"]


def test_one_answer_is_shown_once_however_many_are_wanted():
    result = result_of({"four": "4", "six": "4"}, answer="4", text="six")
    assert [each.text for each in visible(result, 3)] == ["six"], "neither its copies nor texts without an answer"


def test_a_model_that_says_nothing_is_shown_to():
    """It was no deadline that kept an answer back."""
    problem = motes.Problem("?")
    start = motes.Trajectory(problem)
    silent = start.extend(motes.Step("", "eos"))
    for said, shown in (
        ([start.fail(EngineError("gone")), silent, silent], [silent]),
        ([start.finish("max_tokens"), start.fail(EngineError("gone"))], [start.finish("max_tokens")]),
        ([start.finish("deadline"), start.finish("token_budget"), start.fail(EngineError("gone"))], []),
    ):
        result = motes.Result(
            problem, "pf", 0,
            trajectories=tuple(said), answers=(None,) * len(said),
            log_weights=np.zeros(len(said)), scores=np.full(len(said), math.nan),
        )  # fmt: skip
        assert [(each.text, each.finished) for each in visible(result, 2)] == [
            (each.text, each.finished) for each in shown
        ]


def test_a_request_chooses_within_the_limits(client):
    own = ask(client, motes={"method": "majority", "particles": 5}).json()["motes"]
    assert (own["method"], own["particles"]) == ("majority", 5)
    for fields, field in [
        ({"motes": {"method": "beam"}}, "motes.method"),
        ({"motes": {"method": "os:system"}}, "motes.method"),
        ({"motes": {"particles": 33}}, "motes.particles"),
        ({"motes": {"method": "pg", "particles": 6}}, "motes.particles"),
        ({"motes": {"deadline": 101}}, "motes.deadline"),
        ({"motes": {"lm": "http://elsewhere"}}, "motes.lm"),
        ({"n": 17}, "n"),
        ({"audio": {"voice": "x"}}, "audio"),
    ]:
        assert error(ask(client, **fields), 400)["param"] == field


def test_temperature_zero_makes_no_copies(client):
    told = ask(client, PROBLEMS[-1].question, temperature=0, seed=3, motes={"particles": 32}).json()
    assert len(told["motes"]["posterior"]) > 1
    assert (
        told["motes"]["posterior"]
        == ask(client, PROBLEMS[-1].question, seed=3, motes={"particles": 32}).json()["motes"]["posterior"]
    )


def test_completions(client):
    body = {"model": "story", "prompt": PROBLEMS[0].question, "seed": 7}
    told = client.post(COMPLETIONS, json=body).json()
    chat = ask(client, PROBLEMS[0].question, seed=7).json()
    assert told["object"] == "text_completion"
    assert told["choices"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_models(client):
    told = client.get("/v1/models").json()
    assert [model["id"] for model in told["data"]] == ["story"]
    assert client.get("/v1/models/story").json() == told["data"][0]
    assert error(client.get("/v1/models/other"), 404)["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ok"}


def test_what_is_wrong_with_a_request_is_told_in_openais_words(client):
    assert error(ask(client, model="other"), 404)["param"] == "model"
    assert error(client.post(CHAT, content=b"{", headers={"content-type": "application/json"}), 400)["type"]
    assert error(client.post(CHAT, json=[1]), 400)["type"] == "invalid_request_error"
    assert "there is no such field" in error(ask(client, motes={"particels": 3}), 400)["message"]
    assert error(client.get("/v1/nothing"), 404)["type"] == "invalid_request_error"
    assert error(client.get(CHAT), 405)["type"] == "invalid_request_error"
    for method, path, allowed in [
        ("GET", CHAT, {"POST"}), ("PUT", "/v1/messages", {"POST"}), ("HEAD", "/v1/responses", {"POST"}),
        ("DELETE", "/v1/models", {"GET", "HEAD"}), ("PUT", "/v1/models/story", {"GET", "HEAD"}),
        ("POST", "/health", {"GET"}),
    ]:  # fmt: skip
        response = client.request(method, path)
        assert (response.status_code, set(response.headers["allow"].split(", "))) == (405, allowed)
    assert client.get("/v1/embeddings").status_code == 404


def test_the_description_has_the_bodies(client):
    """In OpenAPI's format; its references lead somewhere."""
    description = client.get("/openapi.json").json()
    assert description["info"]["version"] == motes.__version__
    for path in (CHAT, COMPLETIONS):
        body = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"model", "seed", "motes"} <= set(body["properties"])
    text = json.dumps(description)
    for name in set(re.findall(r'"#/components/schemas/(\w+)"', text)):
        assert name in description["components"]["schemas"]
    assert "#/$defs" not in text
    assert "MotesOptions" in text


def test_a_body_that_is_too_large_is_not_read():
    with gateways.gateway(gateways.config(limits={"body_bytes": 2000, "messages": 3})) as client:
        assert "larger than 2,000 bytes" in error(ask(client, "x" * 3000), 413)["message"]

        def pieces() -> Iterator[bytes]:
            for _ in range(10_000):
                yield b" " * 1000

        response = client.post(CHAT, content=pieces(), headers={"content-type": "application/json"})
        assert response.status_code == 413
        messages = [{"role": "user", "content": "?"}] * 4
        told = error(client.post(CHAT, json={"model": "story", "messages": messages}), 400)
        assert (told["param"], told["message"]) == ("messages", "at most 3 messages")


def test_keys():
    (first, one), (second, other) = Key.make("one"), Key.make("other")
    other = other.model_copy(update={"models": ()})
    with gateways.gateway(gateways.config(host="0.0.0.0", keys=[one.model_dump(), other.model_dump()])) as client:
        requests = [
            ("GET", "/v1/models", None),
            ("GET", "/v1/models/story", None),
            ("GET", "/v1/models/other", None),
            ("POST", CHAT, {"model": "story", "messages": [{"role": "user", "content": PROBLEMS[5].question}]}),
            ("POST", COMPLETIONS, {"model": "story", "prompt": PROBLEMS[5].question}),
        ]
        requests += [(method, path, {**body, "stream": True}) for method, path, body in requests if body]
        strangers = ["", "Bearer", "Bearer nonsense", f"Bearer {first}x", f"Basic {first}", first]
        for method, path, body in requests:
            for header in (None, *strangers):
                client.headers.pop("authorization", None)
                if header is not None:
                    client.headers["authorization"] = header
                told = error(client.request(method, path, json=body), 401)
                assert (told["type"], told["code"]) == ("authentication_error", "invalid_api_key")
            client.headers["authorization"] = f"Bearer {first}"
            assert client.request(method, path, json=body).status_code == (404 if path.endswith("other") else 200)
        client.headers["authorization"] = f"Bearer {second}"
        assert client.get("/v1/models").json()["data"] == []
        assert error(client.get("/v1/models/story"), 404)["code"] == "model_not_found"
        assert error(ask(client), 404)["code"] == "model_not_found"
        client.headers["authorization"] = f"Bearer {first}"
        assert ask(client).status_code == 200
        assert client.get("/health").status_code == 200


class Failing(worlds.StoryLanguageModel):
    """Raises what it is told."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def extend(self, trajectories, sampling, seeds):
        raise self.error


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (EngineError("http://10.0.0.1 fell over"), 502, "upstream"),
        (UnauthorizedError("http://10.0.0.1 does not accept the key"), 502, "upstream"),
        (ContextLengthError("the prompt is too long"), 400, "context_length_exceeded"),
        (RuntimeError("the password is 1234"), 500, None),
    ],
)
def test_failures_behind_it(raised, status, code):
    with gateways.over(Failing(raised)) as client:
        response = ask(client)
        found = error(response, status)
        assert response.headers["x-request-id"].startswith("req_")
        assert found["code"] == code
        assert client.get("/v1/models").headers["x-request-id"].startswith("req_")
        assert not {"10.0.0.1", "1234"} & set(found["message"].split())
        assert client.gateway.gate.in_flight == 0


class Silent(worlds.StoryLanguageModel):
    """Says nothing; of each call, so many trajectories fail."""

    def __init__(self, failing: int) -> None:
        super().__init__()
        self.failing = failing

    async def extend(self, trajectories, sampling, seeds):
        silence: list[motes.Step | Failure] = [motes.Step("", "eos")] * len(trajectories)
        silence[: self.failing] = [Failure(EngineError("gone"))] * self.failing
        return silence


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["pf", "majority"])
def test_a_model_that_says_nothing(method: str, stream: bool):
    """What it says is passed on, as from any server; where others were lost, nothing is no answer."""
    own = {"method": method, "particles": 4}
    with gateways.over(Silent(0)) as client:
        response = ask(client, stream=stream, motes=own)
        assert response.status_code == 200
        if not stream:
            (choice,) = response.json()["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
        assert ("error" in response.text, '"finish_reason":"stop"' in response.text) == (False, True)
    with gateways.over(Silent(2)) as client:
        response = ask(client, stream=stream, motes=own)
        assert response.status_code == (200 if stream else 502)
        assert '"code":"upstream"' in response.text


class SilentLater(worlds.StoryLanguageModel):
    """One particle fails in the first round, and the others say nothing in the second."""

    def __init__(self) -> None:
        super().__init__(merges_calls=False)

    async def extend(self, trajectories, sampling, seeds):
        if trajectories[0].depth:
            return [motes.Step("", "eos")] * len(trajectories)
        return [Failure(EngineError("gone")), *[motes.Step("", "step")] * (len(trajectories) - 1)]


def test_particles_that_resampling_replaced_were_lost_as_well():
    with gateways.over(SilentLater()) as client:
        assert error(ask(client, motes={"particles": 4}), 502)["code"] == "upstream"


class Held(worlds.StoryLanguageModel):
    """Answers when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.free, self.cancelled = threading.Event(), threading.Event(), threading.Event()

    async def extend(self, trajectories, sampling, seeds):
        self.asked.set()
        try:
            while not self.free.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await super().extend(trajectories, sampling, seeds)


@pytest.fixture
def held() -> Iterator[tuple[httpx2.Client, Held]]:
    lm = Held()
    with gateways.over(lm, limits={"particles": 32, "waiting": 1}) as client:
        yield client, lm
        lm.free.set()


def ask_and_leave(client: httpx2.Client, lm: Held) -> None:
    """A request whose client hangs up as soon as it is being worked for."""
    body = json.dumps({"model": "story", "messages": [{"role": "user", "content": "?"}]})
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall((head + body).encode())
        assert lm.asked.wait(10)


def test_a_client_that_leaves_is_not_worked_for(held):
    client, lm = held
    ask_and_leave(client, lm)
    assert lm.cancelled.wait(10)


def test_too_many_requests_are_told_to_come_back(held):
    client, lm = held
    with ThreadPoolExecutor(8) as pool:
        inside = pool.submit(ask, client, motes={"particles": 32})
        assert lm.asked.wait(10)
        waiting = pool.submit(ask, client, motes={"particles": 32})
        while client.gateway.gate.in_queue < 1:
            pass
        response = ask(client)
        assert error(response, 429)["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        lm.free.set()
        assert inside.result().status_code == waiting.result().status_code == 200
    assert (client.gateway.gate.in_flight, client.gateway.gate.in_queue) == (0, 0)


def test_a_deadline_gives_the_best_answer_so_far(held):
    client, _ = held
    told = error(ask(client, motes={"deadline": 0.1}), 504)
    assert told["code"] == "deadline", "nothing was there yet"


def counted(client: httpx2.Client) -> dict[str, dict[tuple[str, ...], float]]:
    """What /metrics says, by name and the values of the labels, in the order of their names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_metrics_are_what_was_sent():
    with gateways.gateway(gateways.config()) as client:
        always = {"method": "pf:ess_threshold=1"}
        answers = [ask(client, problem.question, seed=3, motes=always).json() for problem in PROBLEMS]
        ask(client, audio={"voice": "x"}), ask(client, model="other"), ask(client, n=99)
        messages = [{"role": "user", "content": PROBLEMS[0].question}]
        asked = {"model": "story", "messages": messages, "seed": 3, "stream": True, "motes": always}
        with client.stream("POST", CHAT, json=asked) as stream:
            assert "data: [DONE]" in list(stream.iter_lines())
        answers.append(answers[0])  # the stream was the same run once more
        while sum((told := counted(client))["motes_requests_total"].values()) < 16:
            pass  # a stream is counted once it is closed, which is a moment after its client has it all
        requests = {(model, status): n for (_, _, model, status), n in told["motes_requests_total"].items()}
        assert requests == {("story", "200"): 13.0, ("", "400"): 1.0, ("", "404"): 1.0, ("story", "400"): 1.0}
        for (kind, role), name in {
            ("generated", "language model"): "generated_tokens",
            ("prefill", "language model"): "computed_prefill_tokens",
            ("needed", "reward model"): "reward_tokens", ("computed", "reward model"): "computed_reward_tokens",
        }.items():  # fmt: skip
            spent = sum(answer["motes"]["usage"][name] for answer in answers)
            assert told["motes_tokens_total"]["anyone", kind, "story", role] == spent
        rounds = sum(answer["motes"]["rounds"] for answer in answers)
        assert told["motes_rounds_total"]["story",] == told["motes_ess_share_count"]["story",] == rounds
        assert 0 < told["motes_resamplings_total"]["story",] <= rounds - len(answers), "never before the first round"
        assert told["motes_request_seconds_count"]["story",] == 13, "a refusal takes no time"
        assert told["motes_wait_seconds_count"]["story",] == 13
        assert told["motes_particles_in_flight"][()] == told["motes_requests_waiting"][()] == 0


def test_metrics_of_clients_that_left_and_models_that_failed(held):
    client, lm = held
    ask_and_leave(client, lm)
    assert lm.cancelled.wait(10)
    while not (requests := counted(client).get("motes_requests_total")):
        pass
    assert requests == {("anyone", CHAT, "story", "499"): 1.0}
    with gateways.over(Failing(EngineError("it fell over"))) as client:
        ask(client)
        assert counted(client)["motes_upstream_errors_total"] == {("story",): 1.0}


class Costly(worlds.StoryLanguageModel):
    """Every step costs tokens of attempts that broke off; for the third step the server is gone."""

    async def extend(self, trajectories, sampling, seeds):
        steps = await super().extend(trajectories, sampling, seeds)
        if trajectories[0].depth == 2:
            return [Failure(EngineError("it fell over"), Usage(prefill_tokens=5)) for _ in trajectories]
        cost = Usage(
            generated_tokens=7, prefill_tokens=11, prefill_tokens_cached=13, failed_generated_tokens=3,
            failed_prefill_tokens=2,
        )  # fmt: skip
        return [dataclasses.replace(step, usage=cost) for step in steps]


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_run_spent_that_failed_is_counted(stream):
    with gateways.over(Costly()) as client:
        response = ask(client, PROBLEMS[-1].question, stream=stream, motes={"method": "pf:ess_threshold=1"})
        assert "a model behind this one failed" in response.text
        told = counted(client)
        assert {
            kind: n for (_, kind, _, role), n in told["motes_tokens_total"].items() if role == "language model"
        } == {
            "generated": 2 * 8 * 7,
            "prefill": 2 * 8 * 11,
            "needed": 2 * 8 * (7 + 11 + 13),
            "failed_generated": 2 * 8 * 3,
            "failed_prefill": 2 * 8 * 2 + 8 * 5,
        }
        assert told["motes_upstream_errors_total"] == {("story",): 1.0}


def test_and_where_something_of_ones_own_failed():
    class Broken(worlds.StoryLanguageModel):
        async def extend(self, trajectories, sampling, seeds):
            if trajectories[0].depth == 2:
                raise ZeroDivisionError("by the user's own model")
            steps = await super().extend(trajectories, sampling, seeds)
            return [dataclasses.replace(step, usage=Usage(generated_tokens=7)) for step in steps]

    with gateways.over(Broken()) as client:
        response = ask(client, PROBLEMS[-1].question, motes={"method": "pf:ess_threshold=1"})
        assert response.status_code == 500
        told = counted(client)
        assert told["motes_tokens_total"]["anyone", "generated", "story", "language model"] == 2 * 8 * 7
        assert told["motes_upstream_errors_total"] == {("story",): 1.0}


class Remote(worlds.StoryLanguageModel):
    """Stands behind a server that may be down."""

    down = False
    asked = 0

    async def ready(self) -> None:
        self.asked += 1
        if self.down:
            raise UnreachableError("http://10.0.0.1 does not answer")


def test_ready_follows_what_it_stands_on():
    lm = Remote()
    with gateways.over(lm) as client:
        response = client.get("/ready")
        assert (response.status_code, response.json()) == (200, {"status": "ready", "missing": {}})
        lm.down = True
        assert client.get("/ready").status_code == 200, "asked just now"
        assert lm.asked == 1
        while (response := client.get("/ready")).status_code == 200:
            pass
        assert response.status_code == 503
        assert response.json() == {"status": "unready", "missing": {"story": ["language model"]}}
        lm.down = False
        while client.get("/ready").status_code == 503:
            pass
        assert client.get("/health").status_code == 200


class Meeting(worlds.StoryLanguageModel):
    """Answers nobody before it is asked for two conversations at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()
        self.met = asyncio.Event()

    async def extend(self, trajectories, sampling, seeds):
        self.asked |= {trajectory.problem.question for trajectory in trajectories}
        if len(self.asked) == 2:
            self.met.set()
        await self.met.wait()
        return await super().extend(trajectories, sampling, seeds)


def test_requests_of_several_callers_meet_in_one_engine():
    """Which makes one batch of them: that is the engine's part."""
    keys = [Key.make(name) for name in ("one", "two")]
    with gateways.over(Meeting(), keys=[key.model_dump() for _, key in keys]) as client, ThreadPoolExecutor(2) as pool:

        def asking(secret: str, question: str) -> int:
            body = {"model": "story", "messages": [{"role": "user", "content": question}]}
            return client.post(CHAT, json=body, headers={"authorization": f"Bearer {secret}"}).status_code

        questions = [PROBLEMS[0].question, PROBLEMS[5].question]
        assert list(pool.map(asking, [secret for secret, _ in keys], questions)) == [200, 200]


def test_a_seed_that_nobody_gave_survives_javascript(client):
    told = ask(client).json()["motes"]["seed"]
    assert 0 <= told < 2**53
    assert ask(client, seed=told).json()["motes"]["seed"] == told
