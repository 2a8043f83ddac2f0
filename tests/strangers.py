"""A small evaluation's directory written by hand, to be damaged or made hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from motes.core import Usage
from motes.lab import RunRecord
from motes.tasks import Arithmetic

GREEDY = (
    "eval", "--methods", "greedy", "--budgets", 1, "--model", "worlds:language_model", "--reward", "none",
)  # fmt: skip
"""A command that opens no model of ours."""

PROBLEMS = Arithmetic().problems(limit=3)


def record(problem: int = 0, method: str = "pf", budget: int = 2, **fields: Any) -> RunRecord:
    """The record of a run that is right."""
    asked = PROBLEMS[problem]
    told: dict[str, Any] = {
        "problem_id": asked.id,
        "method": method,
        "budget": budget,
        "seed": 0,
        "outcome": "correct",
        "answer": asked.answer,
        "reference": asked.answer,
        "level": 1,
        "confidence": 1.0,
        "oracle": True,
        "rounds": 1,
        "usage": Usage(generated_tokens=10),
        "seconds": 1.0,
        "posterior": {asked.answer: 1.0},
        "answers": (asked.answer,) * budget,
        "groups": (0,) * budget,
        "right": (True,) * budget,
        "scores": (0.75,) * budget,
        "text": f"So \\boxed{{{asked.answer}}}.",
    }
    return RunRecord(**{**told, **fields})


def line(problem: int = 0, **fields: Any) -> bytes:
    """A line of records, with fields as they are given, whether they can be or not."""
    return json.dumps({**json.loads(record(problem).to_json()), **fields}).encode() + b"\n"


def configuration(**fields: Any) -> dict[str, Any]:
    told = {
        "task": "arithmetic",
        "split": "test",
        "limit": 3,
        "methods": {"pf": {}},
        "budgets": [2],
        "seeds": [0],
        "lm": "tiny",
        "reward": "tiny",
        "sampling": {},
        "num_problems": 3,
        "num_runs": 3,
    }
    return {**told, **fields}


def write(directory: Path, records: bytes | None = None, **fields: Any) -> Path:
    """An evaluation with these records, by default one for each of three problems."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(configuration(**fields)))
    (directory / "records.jsonl").write_bytes(b"".join(map(line, range(3))) if records is None else records)
    return directory


def small_evaluation(limit: int) -> tuple[object, ...]:
    """The words of an evaluation of the first `limit` problems; its directory follows."""
    models = ("--model", "worlds:language_model", "--reward", "none")
    return ("eval", "--methods", "greedy", "--budgets", 1, "--limit", limit, *models, "--out")
