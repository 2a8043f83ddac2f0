"""Clients that people use, unmodified, against a gateway that listens.

`make test-clients` names this file; a plain `pytest` does not find it. (The `openai` package is tested in
tests/test_gateway_clients.py, curl in tests/test_gateway.py.)
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import gateways
import motes
import worlds
from motes.gateway.config import Config, Key
from motes.tasks import TASKS

CLIENTS = Path(os.environ.get("MOTES_CLIENTS_ENV", ".venv-clients")).resolve() / "bin"
ARITHMETIC = TASKS["arithmetic"]()
SECRET, KEY = Key.make("clients")
OFFLINE = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": SECRET}


@pytest.fixture(scope="module")
def tiny() -> Iterator[httpx2.Client]:
    """The bundled models."""
    with gateways.gateway(Config.bundled(keys=[KEY.model_dump()])) as client:
        yield client


@pytest.fixture(scope="module")
def story() -> Iterator[httpx2.Client]:
    """Instant ones."""
    with gateways.gateway(gateways.config(keys=[KEY.model_dump()])) as client:
        yield client


def run(*command: str, at: Path) -> str:
    """What a program of the clients' environment prints; it must end well."""
    program, *arguments = command
    done = subprocess.run(
        [str(CLIENTS / program), *arguments], cwd=at, env={**os.environ, **OFFLINE}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


TASK = r"""
task: motes_arithmetic
dataset_path: json
dataset_kwargs: {data_files: {test: PROBLEMS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 512}
filter_list:
  - name: boxed
    filter:
      - {function: regex, regex_pattern: 'boxed\{([^}]*)\}'}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def test_lm_evaluation_harness(tiny, tmp_path):
    """Its accuracy on the bundled task is the library's: it sends temperature 0 and always the seed 1234."""
    problems = ARITHMETIC.problems(limit=12)
    lines = [json.dumps({"question": problem.question, "answer": problem.answer}) for problem in problems]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    (tmp_path / "task.yaml").write_text(TASK.replace("PROBLEMS", str(tmp_path / "problems.jsonl")))
    arguments = {"base_url": f"{tiny.base_url}/v1/chat/completions", "model": "tiny", "num_concurrent": 8}
    run(
        "lm_eval", "--model", "local-chat-completions",
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks", "motes_arithmetic", "--include_path", str(tmp_path), "--apply_chat_template",
        "--output_path", str(tmp_path / "out"),
        at=tmp_path,
    )  # fmt: skip
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["motes_arithmetic"]["exact_match,boxed"]
    rights = 0
    for problem in problems:
        result = motes.solve(motes.Problem(problem.question), seed=1234, task=ARITHMETIC)
        rights += result.answer is not None and ARITHMETIC.grade(problem, result.answer)
    assert rights > 6
    assert found == pytest.approx(rights / len(problems))


LITELLM = """
import asyncio, json, sys
import litellm
asked = dict(json.loads(sys.argv[1]), num_retries=0)
plain = litellm.completion(**asked)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True))
later = asyncio.run(litellm.acompletion(**asked))
try:
    litellm.completion(**dict(asked, api_key="wrong"))
    refused = ""
except litellm.AuthenticationError as error:
    refused = str(error)
print(json.dumps([plain.model_dump(), streamed, later.choices[0].message.content, refused]))
"""


def test_litellm(story, tmp_path):
    problem = ARITHMETIC.problems(limit=1)[0]
    asked = {
        "model": "openai/story", "api_base": f"{story.base_url}/v1", "api_key": SECRET, "seed": 3, "temperature": 0,
        "messages": [{"role": "user", "content": problem.question}],
        "extra_body": {"motes": {"particles": 4}},
    }  # fmt: skip
    plain, streamed, later, refused = json.loads(
        run("python", "-c", LITELLM, json.dumps(asked), at=tmp_path).splitlines()[-1]  # it says other things before
    )
    expected = motes.solve(
        motes.Problem(problem.question), lm=worlds.language_model(), reward=worlds.reward_model(),
        method=motes.ParticleFilter(4), seed=3, task=ARITHMETIC,
    )  # fmt: skip
    assert plain["choices"][0]["message"]["content"] == streamed == later == expected.text
    assert plain["usage"]["completion_tokens"] == expected.usage.generated_tokens
    assert "not known" in refused


def test_schemathesis(story, tmp_path):
    """Whatever the description allows, and much that it does not: no answer is a 5xx."""
    run(
        "schemathesis", "run", f"{story.base_url}/openapi.json", "--header", f"Authorization: Bearer {SECRET}",
        "--checks", "not_a_server_error", "--max-examples", "40", "--seed", "1", "--no-color",
        at=tmp_path,
    )  # fmt: skip
    text = story.get("/metrics").text
    assert 'status="200"' in text
    assert 'status="5' not in text
