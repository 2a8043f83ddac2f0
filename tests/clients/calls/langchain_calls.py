"""LangChain: the same calls through OpenAI's chat completions and responses, and Anthropic's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from collected import BASE, KEY, QUESTION, call, tell
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

SEED = {"seed": 5}
RUNNER = asyncio.Runner()


class Place(BaseModel):
    """A place."""

    city: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def chat(model: str) -> Any:
    return ChatOpenAI(model=model, base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, seed=5)


def responses(model: str) -> Any:
    reasoning = {"reasoning": {"summary": "auto"}} if model == "thinking" else {}
    return ChatOpenAI(
        model=model, base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, use_responses_api=True, extra_body=SEED,
        **reasoning,
    )  # fmt: skip


def messages(model: str) -> Any:
    kwargs = {"extra_body": SEED}
    return ChatAnthropic(model=model, base_url=BASE, api_key=KEY, max_retries=0, max_tokens=500, model_kwargs=kwargs)


def thoughts(message: Any) -> list[str]:
    return [block["reasoning"] for block in message.content_blocks if block["type"] == "reasoning"]


def tool_loop(model: Any) -> list[Any]:
    asked: list[Any] = [HumanMessage("What is the weather in Paris?")]
    bound = model.bind_tools([weather])
    made = bound.invoke(asked)
    results = [ToolMessage(weather.invoke(made.tool_calls[0]["args"]), tool_call_id=made.tool_calls[0]["id"])]
    return [[call["name"], call["args"]] for call in made.tool_calls] + [bound.invoke([*asked, made, *results]).text]


def streamed_call(model: Any) -> list[Any]:
    first, *others = model.bind_tools([weather]).stream("What is the weather in Paris?")
    for other in others:
        first += other
    return [[call["name"], call["args"]] for call in first.tool_calls]


async def stream(model: Any) -> str:
    return "".join([chunk.text async for chunk in model.astream(QUESTION)])


async def later(make: Callable[[str], Any]) -> dict[str, Any]:
    model = make("story")
    return {
        "ainvoke": (await model.ainvoke(QUESTION)).text,
        "abatch": [answer.text for answer in await model.abatch([QUESTION] * 3)],
        "astream": await stream(model),
    }


def agent(model: Any) -> str:
    return create_agent(model, [weather]).invoke({"messages": [HumanMessage("Paris?")]})["messages"][-1].text


def calls(name: str, make: Callable[[str], Any]) -> None:
    story, thinking, caller = make("story"), make("thinking"), make("caller")
    prompt = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{question}")])
    chain = prompt | story | StrOutputParser()
    image = HumanMessage([{"type": "image", "url": "https://x.example/y.png"}])
    begun, again = [SystemMessage("Be kind."), HumanMessage(QUESTION)], HumanMessage(QUESTION)
    call(f"{name}: invoke", lambda: story.invoke(QUESTION).text)
    call(f"{name}: stream", lambda: "".join(chunk.text for chunk in story.stream(QUESTION)))
    call(f"{name}: batch", lambda: [answer.text for answer in story.batch([QUESTION] * 3)])
    call(f"{name}: chain", lambda: chain.invoke({"question": QUESTION}))
    call(f"{name}: usage", lambda: story.invoke(QUESTION).usage_metadata["output_tokens"])
    call(f"{name}: conversation", lambda: story.invoke([*begun, story.invoke(begun), again]).text)
    call(f"{name}: thoughts", lambda: thoughts(thinking.invoke(QUESTION)))
    call(f"{name}: thoughts sent back", lambda: thinking.invoke([*begun, thinking.invoke(begun), again]).text[:6])
    call(f"{name}: tools", lambda: tool_loop(caller))
    call(f"{name}: streamed tool call", lambda: streamed_call(caller))
    call(f"{name}: agent", lambda: agent(caller))
    call(f"{name}: structure", lambda: caller.with_structured_output(Place).invoke("Where?").city)
    call(f"{name}: no such model", lambda: make("other").invoke(QUESTION))
    call(f"{name}: image", lambda: story.invoke([image]))
    call(f"{name}: async", lambda: RUNNER.run(later(make)))


for name, make in {"chat": chat, "responses": responses, "messages": messages}.items():
    calls(name, make)
tell()
