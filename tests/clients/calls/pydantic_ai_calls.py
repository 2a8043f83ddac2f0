"""Pydantic AI: the same calls through OpenAI's chat completions and responses, and Anthropic's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from collected import BASE, KEY, QUESTION, call, tell
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

OPENAI, ANTHROPIC = OpenAIProvider(base_url=f"{BASE}/v1", api_key=KEY), AnthropicProvider(base_url=BASE, api_key=KEY)
MODELS: dict[str, Callable[[str], Any]] = {
    "chat": lambda model: OpenAIChatModel(model, provider=OPENAI),
    "responses": lambda model: OpenAIResponsesModel(model, provider=OPENAI),
    "messages": lambda model: AnthropicModel(model, provider=ANTHROPIC),
}
SETTINGS = {"extra_body": {"seed": 5}}
RUNNER = asyncio.Runner()


class Place(BaseModel):
    city: str


async def run(agent: Agent[Any, Any]) -> str:
    return (await agent.run(QUESTION)).output


async def stream(agent: Agent[Any, Any]) -> str:
    async with agent.run_stream(QUESTION) as streamed:
        return "".join([piece async for piece in streamed.stream_text(delta=True)])


async def conversation(agent: Agent[Any, Any]) -> str:
    first = await agent.run(QUESTION)
    return (await agent.run(QUESTION, message_history=first.all_messages())).output


async def thoughts(agent: Agent[Any, Any]) -> list[str]:
    parts = (await agent.run(QUESTION)).all_messages()[-1].parts
    return [part.content or part.provider_details["raw_content"][0] for part in parts if part.part_kind == "thinking"]


async def use_tool(make: Callable[[str], Any]) -> list[Any]:
    made = []

    def weather(city: str) -> str:
        """The weather of a city."""
        made.append(city)
        return f"sunny in {city}"

    return [(await Agent(make("caller"), tools=[weather]).run("Paris?")).output, made]


def calls(name: str, make: Callable[[str], Any]) -> None:
    story = Agent(make("story"), instructions="Be kind.", model_settings=SETTINGS)
    thinking = Agent(make("thinking"), model_settings=SETTINGS)
    place = Agent(make("caller"), output_type=Place)
    call(f"{name}: run", lambda: RUNNER.run(run(story)))
    call(f"{name}: stream", lambda: RUNNER.run(stream(story)))
    call(f"{name}: conversation", lambda: RUNNER.run(conversation(story)))
    call(f"{name}: thoughts", lambda: RUNNER.run(thoughts(thinking)))
    call(f"{name}: thoughts sent back", lambda: RUNNER.run(conversation(thinking))[:6])
    call(f"{name}: tools", lambda: RUNNER.run(use_tool(make)))
    call(f"{name}: structure", lambda: RUNNER.run(place.run("Where?")).output.city)
    call(f"{name}: no such model", lambda: RUNNER.run(run(Agent(make("other")))))


for name, make in MODELS.items():
    calls(name, make)
tell()
