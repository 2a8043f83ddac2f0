"""Frameworks for applications, unmodified, against a gateway that listens: LangChain, Pydantic AI, the OpenAI Agents
SDK, LiteLLM, and Vercel's AI SDK, through OpenAI's chat completions and responses, and Anthropic's messages.

`make test-clients` names this file; a plain `pytest` does not find it. The folder `calls` has the calls; each program
prints what they came to.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

import gateways
import motes
import worlds
from motes.core import Usage
from motes.gateway.answering import Served, open_models
from motes.gateway.config import Config, Key
from motes.models.served.turns import ToolCall, Turn
from motes.tasks import TASKS

FOLDER = Path(__file__).parent
PYTHON = Path(os.environ.get("MOTES_FRAMEWORKS_ENV", ".venv-frameworks")).resolve() / "bin" / "python"
LITELLM = Path(os.environ.get("MOTES_CLIENTS_ENV", ".venv-clients")).resolve() / "bin" / "python"
NODE_MODULES = Path(os.environ.get("MOTES_NODE_ENV", ".venv-node")).resolve() / "node_modules"
ARITHMETIC = TASKS["arithmetic"]()
QUESTION = ARITHMETIC.problems(limit=12)[-1].question
SECRET, KEY = Key.make("frameworks")
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "OPENAI_AGENTS_DISABLE_TRACING": "1"}


class Caller(worlds.StoryLanguageModel):
    """Calls the first tool, and answers in words once a tool has answered. Without tools it writes JSON."""

    async def draw_turn(self, fields: Mapping[str, Any], sampling: motes.Sampling, seed: int) -> Turn:
        tools, calls, text = fields.get("tools"), (), '{"city": "Paris"}'
        if any(message["role"] == "tool" for message in fields["messages"]):
            text = "It is sunny."
        elif tools:
            calls, text = (ToolCall(tools[0]["function"]["name"], '{"city": "Paris"}'),), ""
        return Turn(text, "", calls, "eos", Usage(generated_tokens=10, prefill_tokens=20))


def configuration() -> tuple[Config, Mapping[str, Served]]:
    """A gateway of three models: of arithmetic, of one that thinks before it answers, and of one that calls tools."""
    caller = {**gateways.MODEL, "method": "majority"}
    models = {"story": gateways.MODEL, "thinking": gateways.MODEL, "caller": caller}
    config = gateways.config(models=models, keys=[KEY.model_dump()])
    lms = {"thinking": gateways.Thinking(), "caller": Caller()}
    opened = open_models(config)
    return config, {name: dataclasses.replace(opened[name], lm=lms.get(name, opened[name].lm)) for name in opened}


@pytest.fixture(scope="module")
def gateway() -> Iterator[httpx2.Client]:
    with gateways.gateway(*configuration()) as client:
        yield client


def results(gateway: httpx2.Client, *command: str | Path, at: Path) -> dict[str, Any]:
    """What the calls of a program come to."""
    arguments = [*map(str, command), str(gateway.base_url).rstrip("/"), SECRET, QUESTION]
    environment = {**os.environ, **OFFLINE, "NODE_PATH": str(NODE_MODULES), "PYTHONPATH": ""}
    done = subprocess.run(arguments, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected() -> motes.Result:
    """The answer to the question, by the library."""
    return motes.solve(
        QUESTION, lm=worlds.language_model(), reward=worlds.reward_model(), method=motes.ParticleFilter(8), seed=5,
        task=ARITHMETIC,
    )  # fmt: skip


def check(found: dict[str, Any], apis: str, expected: dict[str, Any], refused: dict[str, str]) -> None:
    """Compare the results of calls through each API with the expected ones, and errors with parts of their texts."""
    for api in apis.split():
        for name, result in expected.items():
            assert found.pop(f"{api}: {name}") == result, f"{api}: {name}"
        for name, complaint in {"no such model": "there is no model 'other'", **refused}.items():
            assert complaint in found.pop(f"{api}: {name}"), f"{api}: {name}"


def test_langchain(gateway, expected, tmp_path):
    found = results(gateway, PYTHON, FOLDER / "calls/langchain_calls.py", at=tmp_path)
    call = ["weather", {"city": "Paris"}]
    thoughts = {api: found.pop(f"{api}: thoughts") for api in ("chat", "responses", "messages")}
    assert thoughts == {"chat": [], "responses": ["That is easy."], "messages": ["That is easy."]}
    text, several = expected.text, [expected.text] * 3
    told = {
        "invoke": text, "stream": text, "batch": several, "chain": text, "conversation": text,
        "usage": expected.usage.generated_tokens, "async": {"ainvoke": text, "abatch": several, "astream": text},
        "thoughts sent back": "\\boxed", "tools": [call, "It is sunny."], "streamed tool call": [call],
        "agent": "It is sunny.", "structure": "Paris",
    }  # fmt: skip
    check(found, "chat responses messages", told, {"image": "Error code: 400"})
    assert not found


def test_pydantic_ai(gateway, expected, tmp_path):
    found = results(gateway, PYTHON, FOLDER / "calls/pydantic_ai_calls.py", at=tmp_path)
    told = {
        "run": expected.text, "stream": expected.text, "conversation": expected.text, "thoughts": ["That is easy."],
        "thoughts sent back": "\\boxed", "tools": ["It is sunny.", ["Paris"]], "structure": "Paris",
    }  # fmt: skip
    check(found, "chat responses messages", told, {})
    assert not found


def test_openai_agents(gateway, expected, tmp_path):
    found = results(gateway, PYTHON, FOLDER / "calls/openai_agents_calls.py", at=tmp_path)
    told = {
        "run": expected.text, "stream": expected.text, "conversation": expected.text,
        "thoughts sent back": "\\boxed", "tools": "It is sunny.", "structure": "Paris",
    }  # fmt: skip
    check(found, "chat responses", told, {})
    assert "stores no responses" in found.pop("responses: previous response")
    assert not found


def test_litellm(gateway, expected, tmp_path):
    found = results(gateway, LITELLM, FOLDER / "calls/litellm_calls.py", at=tmp_path)
    thoughts = {api: found.pop(f"{api}: thoughts") for api in ("chat", "responses", "messages")}
    assert thoughts == {"chat": "That is easy.", "responses": None, "messages": "That is easy."}
    told = {
        "plain": expected.text, "stream": expected.text, "conversation": expected.text,
        "usage": expected.usage.generated_tokens, "tools": ["weather", '{"city": "Paris"}', "It is sunny."],
    }  # fmt: skip
    check(found, "chat responses messages", told, {})
    assert "stores no responses" in found.pop("its responses: previous response")
    assert found == {
        "its responses": expected.text, "its streamed responses": "response.completed", "its messages": "text",
    }  # fmt: skip


def test_ai_sdk(gateway, tmp_path):
    """It has no place for a seed in all of its providers."""
    found = results(gateway, "node", FOLDER / "calls/ai_sdk_calls.mjs", at=tmp_path)
    apis = ("chat", "compatible", "responses", "messages")
    thoughts = {api: found.pop(f"{api}: thoughts") for api in apis}
    assert thoughts == {api: None if api == "chat" else "That is easy." for api in apis}
    for api in apis:
        for name in ("generate", "stream", "conversation"):
            assert "\\boxed{" in found.pop(f"{api}: {name}"), f"{api}: {name}"
    told = {
        "usage": True, "thoughts sent back": "\\boxed", "tools": ["It is sunny.", ["Paris"]], "structure": "Paris",
    }  # fmt: skip
    check(found, " ".join(apis), told, {})
    assert "this gateway stores no items" in found.pop("responses: stored conversation")
    assert not found
