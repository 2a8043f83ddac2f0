"""The OpenAI Agents SDK: the same calls through chat completions and responses."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from collected import BASE, KEY, QUESTION, call, tell
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
CLIENT = AsyncOpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)
RUNNER = asyncio.Runner()


class Place(BaseModel):
    city: str


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def agent(kind: Any, model: str, **more: Any) -> Agent[Any]:
    settings = ModelSettings(extra_body={"seed": 5})
    return Agent(name="one", model=kind(model=model, openai_client=CLIENT), model_settings=settings, **more)


async def run(agent: Agent[Any], given: Any = QUESTION, **more: Any) -> Any:
    return (await Runner.run(agent, given, **more)).final_output


async def stream(agent: Agent[Any]) -> str:
    events = [event async for event in Runner.run_streamed(agent, QUESTION).stream_events()]
    raw = [event.data for event in events if event.type == "raw_response_event"]
    return "".join(event.delta for event in raw if event.type == "response.output_text.delta")


async def conversation(agent: Agent[Any]) -> str:
    first = await Runner.run(agent, QUESTION)
    return await run(agent, [*first.to_input_list(), {"role": "user", "content": QUESTION}])


def calls(name: str, kind: Any) -> None:
    story, thinking = agent(kind, "story", instructions="Be kind."), agent(kind, "thinking")
    call(f"{name}: run", lambda: RUNNER.run(run(story)))
    call(f"{name}: stream", lambda: RUNNER.run(stream(story)))
    call(f"{name}: conversation", lambda: RUNNER.run(conversation(story)))
    call(f"{name}: thoughts sent back", lambda: RUNNER.run(conversation(thinking))[:6])
    call(f"{name}: tools", lambda: RUNNER.run(run(agent(kind, "caller", tools=[weather]), "Paris?")))
    call(f"{name}: structure", lambda: RUNNER.run(run(agent(kind, "caller", output_type=Place), "Where?")).city)
    call(f"{name}: no such model", lambda: RUNNER.run(run(agent(kind, "other"))))


calls("chat", OpenAIChatCompletionsModel)
calls("responses", OpenAIResponsesModel)
stored = agent(OpenAIResponsesModel, "story")
call("responses: previous response", lambda: RUNNER.run(run(stored, previous_response_id="resp_1")))
tell()
