"""Prompts: the texts that were published, files of one's own, what of a problem they change and what they do not."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import motes
import worlds
from checkpoints import local_prm, vocabulary
from engines import VLLM, Closed, LlamaCpp, OpenAICompatible, connect, encode, render
from motes import Majority, ParticleFilter, Problem, Prompt, Sampling
from motes.cli import main, options
from motes.core import SamplingOptions
from motes.errors import ConfigurationError, UnknownNameError, UnreadableFileError
from motes.lab import Evaluation
from motes.prompts import names
from motes.tasks import Arithmetic

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------------------- the files


def test_the_prompts_are_those_that_were_published():
    """huggingface/search-and-learn, src/sal/config.py; QwenLM/Qwen2.5-Math, README.md."""
    assert motes.prompt("llama-3").system == (
        "Solve the following math problem efficiently and clearly:\n\n- For simple problems (2 steps or fewer):\n"
        "Provide a concise solution with minimal explanation.\n\n- For complex problems (3 steps or more):\n"
        "Use this step-by-step format:\n\n## Step 1: [Concise description]\n[Brief explanation and calculations]\n\n"
        "## Step 2: [Concise description]\n[Brief explanation and calculations]\n\n...\n\n"
        "Regardless of the approach, always conclude with:\n\n"
        "Therefore, the final answer is: $\\boxed{answer}$. I hope it is correct.\n\n"
        "Where [answer] is just the final number or expression that solves the problem."
    )
    assert motes.prompt("qwen2.5-math").system == BOXED


@pytest.mark.parametrize("name", names())
def test_every_prompt_that_comes_along_can_be_used(name: str):
    prompt = motes.prompt(name)
    problem = prompt.problem("What is 2+2?")
    assert prompt.name == name
    assert (problem.system, problem.question) == (prompt.system, prompt.question.replace("{question}", "What is 2+2?"))
    assert prompt.sampling == Sampling(delimiter="\n\n")
    assert motes.prompt(prompt) is prompt


def test_a_file_of_ones_own(tmp_path: Path):
    path = file(
        tmp_path,
        """
        question = '''Question: {question}
        Answer with \\boxed{}.'''
        pattern = '\\n\\n(?=## Step \\d+:)'
        stop = ["Question:", "END"]
        """,
    )
    prompt = motes.prompt(path)
    assert prompt == motes.prompt(str(path))
    assert (prompt.name, prompt.system) == ("mine", None)
    problem = prompt.problem("{question}?")
    assert problem.question == "Question: {question}?\n        Answer with \\boxed{}."
    assert problem.messages == ({"role": "user", "content": problem.question},)
    assert prompt.sampling == Sampling(delimiter=re.compile(r"\n\n(?=## Step \d+:)"), stop=("Question:", "END"))
    assert motes.prompt(file(tmp_path, "")) == Prompt(name="mine")
    assert motes.prompt(file(tmp_path, "step_tokens = 64")).sampling == Sampling(delimiter=None, max_step_tokens=64)
    assert motes.prompt(file(tmp_path, 'delimiter = ["a", "b"]')).sampling == Sampling(delimiter=("a", "b"))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("system = Be brief.", ConfigurationError, "mine.toml' is not TOML: .*line 1"),
        ("sistem = 'a'", UnknownNameError, "unknown key of the prompt .*'sistem': did you mean 'system'"),
        ("system = 3", ConfigurationError, "mine.toml': system cannot be 3"),
        ("step_tokens = true", ConfigurationError, "step_tokens cannot be True"),
        ("step_tokens = 0", ConfigurationError, "mine.toml': Sampling: max_step_tokens"),
        ("stop = ['a', 3]", ConfigurationError, "stop cannot be"),
        ("question = 'no place'", ConfigurationError, "mine.toml': .*has no {question}"),
        ("pattern = '('", ConfigurationError, "mine.toml': '\\(' is not a regular expression: missing"),
        ("pattern = 'a*'", ConfigurationError, "matches empty text"),
        ("pattern = 'a'\nstep_tokens = 3", ConfigurationError, "pattern and step_tokens both say"),
        ("delimiter = 'a'\nstop = 'ab'", ConfigurationError, "holds the delimiter"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        motes.prompt(file(tmp_path, text))


def test_prompts_that_are_not_there(tmp_path: Path):
    with pytest.raises(UnknownNameError, match=r"'llama3': did you mean 'llama-3'\? known are FILE.toml"):
        motes.prompt("llama3")
    with pytest.raises(UnreadableFileError, match=r"nowhere.toml.*check the path"):
        motes.prompt(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        motes.prompt(broken)


# -------------------------------------------------------------------------------------------- what becomes of a problem

TALK = (
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3+3?"},
)
SYSTEM = {"role": "system", "content": "Be brief."}
FRAMED = Prompt(system="Think.", question="Q: {question}\nA:")


def test_a_conversation_stays_as_it_is_but_for_its_last_question():
    asked = FRAMED.problem(Problem(messages=TALK, id="p", answer="6"))
    assert asked.messages == (
        {"role": "system", "content": "Think."},
        *TALK[:2],
        {"role": "user", "content": "Q: And 3+3?\nA:"},
    )
    assert (asked.id, asked.answer) == ("p", "6")
    own = FRAMED.problem(Problem(messages=[SYSTEM, *TALK]))
    assert own.messages == (SYSTEM, *TALK[:2], {"role": "user", "content": "Q: And 3+3?\nA:"})


def test_the_problem_as_it_was_asked_stays_at_hand():
    plain = Problem(messages=TALK, id="p", answer="6")
    asked = FRAMED.problem(plain)
    assert asked.plain is plain
    assert plain.plain is plain
    assert FRAMED.problem(asked) == asked, "another prompt takes the place of the first"
    assert FRAMED.problem(asked).plain is plain
    assert asked != plain


def test_reward_models_and_tasks_see_the_problem_as_it_was_asked():
    seen = set()
    reward = motes.FunctionReward(lambda problem, text: seen.add(problem) or 0.5)
    story = Arithmetic().problems(limit=1)[0]
    lm = motes.TabularLanguageModel({(): {f"\\boxed{{{story.answer}}}": 1.0}})
    result = motes.solve(FRAMED.problem(story), lm=lm, reward=reward, method=ParticleFilter(2))
    assert seen == {story}
    assert result.problem.system == "Think."
    assert Arithmetic().grade(result.problem, result.answer or "")


def test_a_process_reward_model_reads_it_in_its_own_form():
    format = local_prm().format
    story = Problem("What is 2+2?")
    assert format.prompt(FRAMED.problem(story)) == format.prompt(story)
    assert format.prompt(Problem("What is 2+2?", system="Think.")) != format.prompt(story), "a user's own is read"


# ------------------------------------------------------------------------------- conversations pass through whole


def test_conversations_and_system_prompts_reach_the_local_model_whole():
    words = vocabulary()
    for messages in ([SYSTEM, *TALK], TALK, [SYSTEM, TALK[0]]):
        problem = Problem(messages=messages)
        expected = words.tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
        )
        assert words.prompt(problem) == expected
        text = words.tokenizer.decode(words.prompt(problem))
        assert all(message["content"] in text for message in messages)


@pytest.mark.parametrize("make", [VLLM, LlamaCpp, OpenAICompatible, Closed])
def test_conversations_and_system_prompts_reach_servers_whole(make: Any):
    problem = Problem(messages=[SYSTEM, *TALK])

    async def main() -> tuple[Any, list[Any]]:
        lm = await connect(make())
        method = Majority(2)
        await motes.asolve(problem, lm=lm, method=method, sampling=Sampling(max_step_tokens=4, max_steps=2))
        engine = lm.client._transport.handler
        return engine, engine.requests

    engine, requests = asyncio.run(main())
    if make in (VLLM, LlamaCpp):
        text = render([dict(message) for message in problem.messages])
        assert all(body["prompt"][: len(encode(text))] == encode(text) for body in engine.asked)
    else:
        assert all(body["messages"][:4] == [dict(message) for message in problem.messages] for _, body in requests)


# ------------------------------------------------------------------------------------------------- the command line


def given(prompt: Prompt | None = None, **told: Any) -> Sampling:
    given: list[SamplingOptions] = []

    @options.takes_sampling
    def command(sampling: SamplingOptions) -> None:
        given.append(sampling)

    nothing = dict.fromkeys(field.name for field in dataclasses.fields(SamplingOptions))
    command(**{**nothing, **told})
    return given[0].apply(Sampling() if prompt is None else prompt.sampling)


def test_what_options_say_of_steps():
    assert given() == Sampling()
    assert given(delimiter=[r"\n", ";"]) == Sampling(delimiter=("\n", ";"))
    assert given(delimiter=["none"], max_step_tokens=9) == Sampling(delimiter=None, max_step_tokens=9)
    assert given(step_tokens=9) == Sampling(delimiter=None, max_step_tokens=9)
    assert given(pattern=r"\n\n(?=#)") == Sampling(delimiter=re.compile(r"\n\n(?=#)"))
    assert given(stop=[r"\nQ:"], temperature=0.3) == Sampling(stop=("\nQ:",), temperature=0.3)


def test_options_go_before_the_prompt():
    prompt = Prompt(sampling=Sampling(delimiter=None, max_step_tokens=64, stop="Q:"))
    assert given(prompt, temperature=0.3) == prompt.sampling.replace(temperature=0.3)
    assert given(prompt, max_step_tokens=32) == prompt.sampling.replace(max_step_tokens=32)
    assert given(prompt, delimiter=[";"]) == Sampling(delimiter=(";",), stop="Q:")
    assert given(prompt, stop=["R:"]) == prompt.sampling.replace(stop=("R:",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pattern", "("], "is not a regular expression"),
        (["--pattern", "a", "--delimiter", "b"], "delimiter and pattern both say"),
        (["--pattern", "a", "--delimiter", "none"], "delimiter and pattern both say"),
        (["--step-tokens", "5", "--max-step-tokens", "6"], "step_tokens and max_step_tokens both say"),
        (["--step-tokens", "0"], "max_step_tokens must be at least 1"),
        (["--stop", ""], "stop text must not be empty"),
        (["--prompt", "lama-3"], "did you mean 'llama-3'"),
    ],
)
@pytest.mark.parametrize("command", [["solve", "What?"], ["eval", "--out", "nowhere"]])
def test_options_that_cannot_work(words: list[str], says: str, command: list[str], capsys: Any):
    assert main([*command, "--model", "worlds:language_model", "--reward", "none", *words]) == 2
    assert re.search(says, capsys.readouterr().err)


class Recording(worlds.StoryLanguageModel):
    """Keeps what it was asked."""

    asked: list[Any] = []  # noqa: RUF012

    async def extend(self, trajectories: Any, sampling: Sampling, seeds: Any) -> Any:
        self.asked += [(trajectory.problem, sampling) for trajectory in trajectories]
        return await super().extend(trajectories, sampling, seeds)


def test_solve_asks_as_the_prompt_says(capsys: Any, tmp_path: Path):
    path = file(tmp_path, "system = 'Think.'\nquestion = '{question} Go.'\nstep_tokens = 8\nstop = 'Q:'")
    words = [
        "--model",
        "test_prompts:Recording",
        "--reward",
        "worlds:reward_model",
        "--prompt",
        path,
        "-n",
        2,
        "--json",
    ]
    assert main(["solve", "What is 2+2?", *map(str, words)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["question"], answer["prompt"]) == ("What is 2+2?", str(path))
    (problem, sampling) = Recording.asked[-1]
    assert (problem.system, problem.question) == ("Think.", "What is 2+2? Go.")
    assert sampling == Sampling(delimiter=None, max_step_tokens=8, stop="Q:")


def test_an_evaluation_records_its_prompt_and_its_steps(capsys: Any, tmp_path: Path):
    words = ["eval", "--limit", "2", "--methods", "greedy", "--budgets", "1", "--model", "test_prompts:Recording"]
    words += ["--reward", "worlds:reward_model", "--out", str(tmp_path / "run")]
    asked = [*words, "--prompt", "qwen2.5-math", "--pattern", "(?i)\\n\\n", "--stop", "END"]
    assert main(asked) == 0
    held = json.loads((tmp_path / "run" / "config.json").read_text())
    assert held["prompt"] == {"name": "qwen2.5-math", "system": BOXED, "question": "{question}"}
    assert held["sampling"]["delimiter"] == {"pattern": "(?i)\\n\\n", "flags": "re.IGNORECASE|re.UNICODE"}
    assert held["sampling"]["stop"] == ["END"]
    assert Recording.asked[-1][0].system == BOXED
    assert main(asked) == 0, "it is resumed"
    capsys.readouterr()
    assert main([*asked[:-2], "--stop", "FIN"]) == 2
    assert "sampling.stop is ['END'] there and ['FIN'] here" in capsys.readouterr().err
    assert main([word.replace("qwen2.5-math", "llama-3") for word in asked]) == 2
    assert "prompt.system" in capsys.readouterr().err


def test_configurations_without_any_are_as_before():
    plain = Evaluation(limit=1).to_dict()
    assert "prompt" not in plain
    assert "stop" not in plain["sampling"]
    assert plain["sampling"]["delimiter"] == ["\n\n"]
