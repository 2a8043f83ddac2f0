"""Answer every question of a file, many at a time. The same command resumes an interrupted call.

    python examples/answer_many.py questions.txt answers.jsonl --model tiny --reward tiny -n 16

Each line of questions.txt is a question. Its line of answers.jsonl is written as soon as the answer is known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import motes

IN_FLIGHT = 32  # number of questions at a time; their particles share the engine's batches


async def answer(question: str, options: argparse.Namespace) -> dict[str, Any]:
    try:
        result = await motes.asolve(
            question,
            lm=options.model,
            reward=options.reward,
            method=motes.ParticleFilter(options.n),
            deadline=60,  # seconds; then the best answer so far is returned
            seed=0,
        )
    except motes.MotesError as error:  # only this question failed; the others continue
        return {"question": question, "error": str(error)}
    return {
        "question": question,
        "answer": result.answer,
        "confidence": result.confidence,
        "tokens": result.usage.generated_tokens,
    }


async def answer_all(questions: list[str], out: Path, options: argparse.Namespace) -> None:
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def answer_one(question: str) -> dict[str, Any]:
        async with slots:
            return await answer(question, options)

    with out.open("a", encoding="utf-8") as file:
        for finished in asyncio.as_completed([answer_one(question) for question in questions]):
            file.write(json.dumps(await finished) + "\n")
            file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reward", default="tiny")
    parser.add_argument("-n", type=int, default=16, help="particles for each question")
    options = parser.parse_args()

    lines = options.answers.read_text(encoding="utf-8").splitlines() if options.answers.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {row["question"] for row in rows if "error" not in row}
    questions = [q for q in options.questions.read_text(encoding="utf-8").splitlines() if q and q not in done]
    asyncio.run(answer_all(questions, options.answers, options))
    print(f"{len(questions)} questions answered, {len(done)} were there already")


if __name__ == "__main__":
    main()
