"""Run its_hub's particle filter on problems from standard input. its_hub.py starts this in a separate environment.

It follows its_hub's documentation (quick start and benchmark, version 1.2.0): `StepGeneration` with "\\n\\n" and
\\boxed, `ParticleFiltering` with its defaults, `OpenAICompatibleLanguageModel` on vLLM. The process reward model of
its_hub needs a GPU; this one takes scores of the same kind ("model" aggregation: the whole answer as one step) from a
server.

In: {"lm": URL, "lm_name", "reward": URL, "reward_name", "questions", "particles", "together"}.
Out: {"seconds", "texts"}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
from its_hub.api import AbstractProcessRewardModel
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering

from its_hub import OpenAICompatibleLanguageModel, StepGeneration

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


class Served(AbstractProcessRewardModel):
    """A reward model of Qwen's family behind vLLM's /pooling. It scores all answers of a round in one request."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name

    async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        texts = [
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{prompt_or_messages}<|im_end|>\n"
            f"<|im_start|>assistant\n{answer.strip().replace(chr(10) * 2, chr(10))}<extra_0>"
            for answer in steps
        ]
        return await self._read(texts)

    async def _read(self, texts: list[str]) -> list[float]:
        """Score the texts. The server refuses a whole request if one text is too long: that text gets 0, the others
        their own scores."""
        body = {"model": self.name, "task": "token_classify", "input": texts, "add_special_tokens": False}
        async with aiohttp.ClientSession() as session, session.post(self.url, json=body) as response:
            if response.status == 400:
                if len(texts) == 1:
                    return [0.0]
                return [score for text in texts for score in await self._read([text])]
            response.raise_for_status()
            entries = (await response.json())["data"]
        return [entry["data"][-1][1] for entry in sorted(entries, key=lambda entry: entry["index"])]

    def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return asyncio.run(self.ascore(prompt_or_messages, steps))


def main() -> None:
    job = json.load(sys.stdin)
    lm = OpenAICompatibleLanguageModel(endpoint=job["lm"], api_key="NO_API_KEY", model_name=job["lm_name"])
    steps = StepGeneration(step_token="\n\n", max_steps=50, stop_token="\\boxed")
    method = ParticleFiltering(steps, Served(f"{job['reward']}/pooling", job["reward_name"]))
    questions, particles = job["questions"], job["particles"]

    async def all_at_once() -> list[Any]:
        runs = (method.ainfer(lm, question, particles) for question in questions)
        return list(await asyncio.gather(*runs, return_exceptions=True))

    def alone(question: str) -> Any:
        try:
            return method.infer(lm, question, particles)
        except Exception as error:  # as in its own benchmark: skip the problem
            return error

    began = time.perf_counter()
    answers = asyncio.run(all_at_once()) if job["together"] else [alone(question) for question in questions]
    seconds = time.perf_counter() - began
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, Exception):
            print(f"its_hub failed: {question[:60]}…: {str(answer)[:200]}", file=sys.stderr)
    texts = ["" if isinstance(answer, Exception) else answer["content"] for answer in answers]
    json.dump({"seconds": seconds, "texts": texts}, sys.stdout)


if __name__ == "__main__":
    main()
