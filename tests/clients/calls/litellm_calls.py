"""LiteLLM: the same calls through OpenAI's chat completions and responses, and Anthropic's messages."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
from collected import BASE, KEY, QUESTION, call, tell

ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PREFIXES = {
    "chat": ("openai", f"{BASE}/v1"),
    "responses": ("openai/responses", f"{BASE}/v1"),
    "messages": ("anthropic", BASE),
}


def ask(name: str, model: str = "story", **fields: Any) -> Any:
    prefix, base = PREFIXES[name]
    given = {"messages": ASKED, "max_tokens": 500, "extra_body": {"seed": 5}, **fields}
    return litellm.completion(model=f"{prefix}/{model}", api_base=base, api_key=KEY, num_retries=0, **given)


def text(response: Any) -> str:
    return response.choices[0].message.content


def stream(name: str) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in ask(name, stream=True))


def conversation(name: str) -> str:
    return text(ask(name, messages=[*ASKED, ask(name).choices[0].message.model_dump(), *ASKED]))


def use_tool(name: str) -> list[Any]:
    first = ask(name, "caller", tools=[TOOL]).choices[0].message
    (made,) = first.tool_calls
    result = {"role": "tool", "tool_call_id": made.id, "content": "sunny"}
    last = ask(name, "caller", tools=[TOOL], messages=[*ASKED, first.model_dump(), result])
    return [made.function.name, made.function.arguments, text(last)]


def calls(name: str) -> None:
    call(f"{name}: plain", lambda: text(ask(name)))
    call(f"{name}: stream", lambda: stream(name))
    call(f"{name}: usage", lambda: ask(name).usage.completion_tokens)
    call(f"{name}: conversation", lambda: conversation(name))
    call(f"{name}: thoughts", lambda: getattr(ask(name, "thinking").choices[0].message, "reasoning_content", None))
    call(f"{name}: tools", lambda: use_tool(name))
    call(f"{name}: no such model", lambda: ask(name, "other"))


for name in PREFIXES:
    calls(name)
own = {"model": "openai/story", "api_base": f"{BASE}/v1", "api_key": KEY, "input": QUESTION, "extra_body": {"seed": 5}}
call("its responses", lambda: litellm.responses(**own).output_text)
call("its streamed responses", lambda: [event.type for event in litellm.responses(**own, stream=True)][-1])
call("its responses: previous response", lambda: litellm.responses(**own, previous_response_id="resp_1").output_text)
asked: dict[str, Any] = {"model": "anthropic/story", "api_base": BASE, "api_key": KEY, "messages": ASKED}
call(
    "its messages",
    lambda: asyncio.run(litellm.anthropic.messages.acreate(max_tokens=500, **asked))["content"][0]["type"],
)
tell()
