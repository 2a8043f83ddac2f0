r"""Half of a surrogate pair, through every door and out of every writer.

JSON lets it in (`"\ud83d"`), Python makes one of each byte of an argument that is no UTF-8; UTF-8 lets it out nowhere.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet
import pytest

import gateways
import motes
from motes.core import Problem, Sampling, Step
from motes.errors import RewardError
from motes.gateway.logs import JSONLines
from motes.lab import Evaluation, Report, evaluate, export, read_records, read_traces, write_report
from motes.models.served import HTTPLanguageModel
from motes.tasks import Arithmetic
from test_cli import motes as command

HALF = "\ud83d"
WRITTEN = rb"\ud83d"
"""As JSON has it."""


class Server:
    """A server of chats that says half an emoji, and half of a pair in each of two events of a stream."""

    def __init__(self, continues: bool) -> None:
        self.continues = continues
        self.asked: list[Any] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "m"}]})
        if request.url.path != "/v1/chat/completions":
            return httpx2.Response(404, json={"error": {"message": "not here"}})
        body = json.loads(request.content.decode())  # which must be UTF-8
        self.asked.append(body)
        last = body["messages"][-1]
        if last["role"] == "assistant" and self.continues:
            said = [r" 12, 13" if last["content"].startswith("1, 2") else r"So \boxed{3}"]
        elif "2+2" in last["content"]:
            said = ["ab\ud83d", "\ude00\ud83d\n\n"] if body.get("stream") else ["ab\ud83d\ude00\ud83d So \\boxed{3}"]
        else:
            said = ["Hello"]
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "".join(said)}, "finish_reason": "stop"}
            return httpx2.Response(200, content=json.dumps({"choices": [choice]}))
        events = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in said]
        ended = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        lines = [f"data: {json.dumps(event)}\n\n" for event in (*events, ended)]
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, content="".join([*lines, "data: [DONE]\n\n"]), headers=headers)


@pytest.mark.parametrize(
    ("method", "continues", "text"),
    [(motes.Majority(2), False, r"ab😀� So \boxed{3}"), (motes.ParticleFilter(2), True, "ab😀�\n\nSo \\boxed{3}")],
    ids=["plain", "streamed"],
)
def test_served_answers_and_questions(method: Any, continues: bool, text: str):
    server = Server(continues)
    lm = HTTPLanguageModel.open("http://server/v1#m", transport=httpx2.MockTransport(server), attempts=1)
    server.asked.clear()
    result = motes.solve(f"{HALF} 2+2?", lm=lm, reward=motes.FunctionReward(lambda p, t: 0.5), method=method)
    assert (result.answer, result.text) == ("3", text)
    assert server.asked[0]["messages"][0]["content"] == "� 2+2?"


class Judging:
    """A language model that judges, half an emoji first."""

    continues_prefixes = False

    async def extend(self, trajectories: Sequence[Any], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        return [Step(f"{HALF} Verdict: Yes", "eos") for _ in trajectories]


TABLE = motes.TabularLanguageModel(
    {(): {f"So{HALF}\n\n": 1.0}, (f"So{HALF}\n\n",): {rf"\boxed{{3}} {HALF}": 0.5, rf"\boxed{{4{HALF}}}": 0.5}}
)


def test_judges_and_tables():
    judge = motes.Judge(Judging(), num_verdicts=1)
    result = motes.solve("?", lm=TABLE, reward=judge, method=motes.ParticleFilter(8))
    assert set(result.answers) == {"3", "4�"}
    reward = motes.TabularReward({(f"So{HALF}\n\n", rf"\boxed{{3}} {HALF}"): 0.9}, default=0.1)
    assert motes.solve("?", lm=TABLE, reward=reward, method=motes.ParticleFilter(8)).answer == "3"


def strange(problem: Problem, text: str) -> float:
    """A reward that fails for one problem, and says why in its own words."""
    if "fails" in problem.question:
        raise RuntimeError(f"no{HALF}")
    if "refuses" in problem.question:
        raise RewardError(f"no{HALF}")
    return 0.5


ROWS = (
    rb'{"question": "2+2? \ud83d", "answer": "3", "id": "half \ud83d"}',
    rb'{"question": "2+2?", "answer": "4\ud83d", "id": "whole \ud83d\ude00"}',
    rb'{"question": "fails \ud83d", "answer": "3", "id": "fails"}',
    rb'{"question": "refuses", "answer": "3", "id": "refuses"}',
    '{"question": "line\u2028ends\u0085 2+2?", "answer": "3", "id": "one\u2029line"}'.encode(),
)


def test_an_evaluation_from_its_file_to_its_reports_and_resumed(tmp_path: Path):
    file, directory = tmp_path / "p.jsonl", tmp_path / "run"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(ROWS))
    evaluation = Evaluation(
        task=f"exact-match:{file}", methods=("majority", "pf"), budgets=(2,), lm=f"mine:{HALF}", reward="mine:it"
    )
    models: dict[str, Any] = {"lm": TABLE, "reward": motes.FunctionReward(strange)}

    async def run() -> Any:
        return await evaluate(evaluation, directory, **models)

    progress = asyncio.run(run())
    assert (progress.total, progress.failed) == (10, 2)
    records = {record.key[:2]: record for record in read_records(directory / "records.jsonl")}
    assert {problem for problem, _ in records} == {"half �", "whole 😀", "fails", "refuses", "one\u2029line"}
    assert "no�" in (records["fails", "pf"].error or "")
    assert "no�" in (records["refuses", "pf"].error or "")
    assert all("�" in record.text for record in records.values() if record.outcome != "failed")
    lines = (directory / "records.jsonl").read_bytes().decode().splitlines()
    assert [json.loads(line)["problem_id"] for line in lines] == [r.problem_id for r in records.values()]

    again = asyncio.run(run())
    assert (again.resumed, again.done) == (8, 10)

    traces = gzip.decompress((directory / "traces.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(traces) == 12
    assert {trace.messages[-1]["content"] for trace in read_traces(directory / "traces.jsonl.gz")} >= {"2+2? �"}
    assert "no\\ud83d" in (directory / "log.txt").read_text(encoding="utf-8")

    for path in write_report(directory, Report.load(directory), plots=False):
        assert HALF not in path.read_text(encoding="utf-8")
    for kind in ("runs", "rollouts", "steps"):
        written = tmp_path / f"{kind}.jsonl"
        assert export(directory, written, kind) == len(written.read_bytes().decode().splitlines()) > 0
        export(directory, tmp_path / f"{kind}.parquet", kind)
        assert pyarrow.parquet.read_table(tmp_path / f"{kind}.parquet").num_rows > 0


def test_records_of_other_programs_are_read(tmp_path: Path):
    """As a program that writes ASCII alone leaves them."""
    path = tmp_path / "records.jsonl"
    path.write_text(
        json.dumps(
            {"problem_id": f"a{HALF}", "method": "pf", "budget": 1, "seed": 0, "outcome": "correct", "text": HALF}
        )
        + "\n"
    )
    (record,) = read_records(path)
    assert (record.problem_id, record.text) == ("a�", "�")


@pytest.fixture(scope="module")
def client():
    with gateways.gateway(gateways.config()) as client:
        yield client


JSON = {"content-type": "application/json"}
QUESTION = json.dumps(Arithmetic().problems()[2].question)[1:-1].encode()


@pytest.mark.parametrize("stream", [b"false", b"true"])
@pytest.mark.parametrize(
    "more", [rb"", rb', "user": "\ud83d"', rb', "metadata": {"\ud83d": "\ud83d"}', rb', "stop": ["\ud83d"]']
)
def test_requests_to_the_gateway(client: httpx2.Client, stream: bytes, more: bytes):
    body = b'{"model": "story", "messages": [{"role": "user", "content": "\\ud83d %s"}], "stream": %s%s}'
    response = client.post("/v1/chat/completions", content=body % (QUESTION, stream, more), headers=JSON)
    assert response.status_code == 200
    text = response.content.decode()
    assert "�" in text or "choices" in text
    if stream == b"true":
        assert text.endswith("data: [DONE]\n\n")
        assert all(line.startswith(("data: ", ": ")) for line in text.splitlines() if line)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (rb'{"model": "story\ud83d", "messages": [{"role": "user", "content": "a"}]}', 404),
        (rb'{"model": "story", "messages": [{"role": "user", "content": "a"}], "motes": {"\ud83d": 1}}', 400),
        (rb'{"model": "story", "messages": [{"role": "\ud83d", "content": "a"}]}', 400),
        (rb'{"model": "story", "messages": [{"role": "user", "content": "a"}], "motes": {"method": "\ud83d"}}', 400),
        (rb'"\ud83d"', 400),
        (rb'["\ud83d"]', 400),
    ],
)
def test_what_the_gateway_refuses_is_told_in_utf8(client: httpx2.Client, body: bytes, status: int):
    response = client.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_logs_are_lines():
    record = logging.LogRecord("motes", logging.ERROR, "", 0, f"a{HALF}\u2028\n%s", ("b",), None)
    line = JSONLines().format(record)
    line.encode()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == "a�\u2028\nb"


@pytest.mark.parametrize("json_wanted", [False, True])
def test_arguments_that_are_no_utf8(capsys, json_wanted: bool):
    words = ["solve", "2+2? \udcff", "--model", "worlds:language_model", "--reward", "worlds:reward_model", "-n", 2]
    code, out, _ = command(capsys, *words, *(["--json"] if json_wanted else []))
    assert code == 0
    out.encode()


def test_files_whose_names_are_no_utf8(tmp_path: Path, capsys):
    file = os.fsdecode(os.fsencode(tmp_path) + b"/p\xff.jsonl")
    Path(file).write_bytes(rb'{"question": "2+2?", "answer": "4"}')
    directory = os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")
    models = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
    words = ["eval", "--task", file, *models, "--methods", "majority", "--budgets", 1, "--out", directory]
    for _ in range(2):
        code, out, err = command(capsys, *words)
        assert code == 0, err
        (out + err).encode(errors="strict" if os.name == "posix" else "replace")
    assert [record.problem_id for record in read_records(Path(directory) / "records.jsonl")] == ["p�/1"]
