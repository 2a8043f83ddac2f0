"""The provider and the solver, in real evaluations of Inspect."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import motes
import worlds
from motes.errors import ConfigurationError, UnknownNameError
from motes.tasks import TASKS

inspect_ai = pytest.importorskip("inspect_ai")
from inspect_ai import Task  # noqa: E402
from inspect_ai import eval as evaluate  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import EvalLog  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import match, pattern  # noqa: E402
from inspect_ai.solver import system_message  # noqa: E402

from motes.inspect_provider import Answerer, Settings, particles, turn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Inspect and what it needs warn of each other

MODEL = "motes/worlds:language_model"
SETTINGS = {"reward": "worlds:reward_model", "method": "pf", "budget": 8, "task": "arithmetic"}
PROBLEMS = TASKS["arithmetic"]().problems(limit=12)


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """What Inspect leaves unclosed is complained of here, not in whatever test runs next."""
    yield
    gc.collect()


def task(**options) -> Task:
    samples = [Sample(input=p.question, target=p.answer, id=p.id) for p in PROBLEMS]
    return Task(dataset=samples, scorer=pattern(r"\\boxed\{(.*?)\}"), **options)


def run(tmp_path: Path, asked: Task, **options) -> EvalLog:
    options = {"model": MODEL, "model_args": SETTINGS, **options}
    (log,) = evaluate(asked, display="none", log_dir=str(tmp_path), log_level="error", **options)
    return log


def right(log: EvalLog) -> dict[str, bool]:
    assert log.status == "success", log.error
    return {sample.id: sample.scores["pattern"].value == "C" for sample in log.samples}


def test_an_evaluation_is_the_librarys(tmp_path):
    """Each answer is that of `motes.solve` with the seed that the sample's metadata tells; so is what it cost."""
    log = run(tmp_path, task())
    found = right(log)
    assert sum(found.values()) > 0
    problems = {problem.id: problem for problem in PROBLEMS}
    assert {sample.id for sample in log.samples} == set(problems)
    for sample in log.samples:
        problem, told = problems[sample.id], sample.output.metadata["motes"]
        result = motes.solve(
            problem.question, lm=worlds.language_model(), reward=worlds.reward_model(), method=motes.ParticleFilter(8),
            seed=told["seed"], task=TASKS["arithmetic"](),
        )  # fmt: skip
        assert sample.output.completion == result.text
        assert told["posterior"] == dict(result.posterior)
        assert told["confidence"] == result.confidence
        assert found[problem.id] == (result.answer == problem.answer)
        usage = sample.output.usage
        assert usage.output_tokens == result.usage.generated_tokens
        assert usage.input_tokens == result.usage.prefill_tokens
        assert told["usage"] == result.usage.to_dict()
    assert log.stats.model_usage[MODEL].output_tokens == sum(s.output.usage.output_tokens for s in log.samples)


def test_epochs_differ_and_evaluations_repeat(tmp_path):
    first, second = (run(tmp_path, task(), epochs=3, limit=4) for _ in range(2))
    seeds = [sample.output.metadata["motes"]["seed"] for sample in first.samples]
    assert len(set(seeds)) == 12
    texts = [
        {(s.id, s.output.metadata["motes"]["seed"], s.output.completion) for s in log.samples}
        for log in (first, second)
    ]
    assert texts[0] == texts[1]
    other = run(tmp_path, task(), limit=4, seed=7)
    assert not {sample.output.metadata["motes"]["seed"] for sample in other.samples} & set(seeds)


def ask(messages, config: GenerateConfig | None = None, **settings) -> ModelOutput:
    model = get_model(MODEL, memoize=False, **{**SETTINGS, **settings})
    return asyncio.run(model.api.generate(messages, [], "none", config or GenerateConfig()))


def test_choices_are_answers_by_weight():
    output = ask([ChatMessageUser(content=PROBLEMS[-1].question)], GenerateConfig(num_choices=3), budget=32)
    posterior = output.metadata["motes"]["posterior"]
    rule = TASKS["arithmetic"]()
    assert len(posterior) >= 3
    assert [rule.answer(choice.message.text) for choice in output.choices] == list(posterior)[:3]
    many = ask([ChatMessageUser(content=PROBLEMS[-1].question)], GenerateConfig(num_choices=99), budget=32)
    assert len(many.choices) == len(many.metadata["motes"]["posterior"])


def test_a_conversation_passes_through_whole(tmp_path):
    heard = []

    class Hearing(worlds.StoryLanguageModel):
        async def extend(self, trajectories, sampling, seeds):
            heard.append((trajectories[0].problem.messages, sampling))
            return await super().extend(trajectories, sampling, seeds)

    import asyncio

    answerer = Answerer(Hearing(), "x", Settings(method="greedy", max_step_tokens=77, delimiter="\n"))
    conversation = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content="Hello."),
        ChatMessageAssistant(content="Yes?"),
        ChatMessageUser(content=[ContentText(text="What is "), ContentText(text="2 + 2?")]),
    ]
    config = GenerateConfig(top_p=0.9, top_k=7, max_tokens=99, stop_seqs=["Q:"])
    asyncio.run(answerer.answer(conversation, config))
    messages, sampling = heard[0]
    assert [dict(m) for m in messages] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
    assert (sampling.top_p, sampling.top_k, sampling.max_tokens, sampling.stops) == (0.9, 7, 99, ("Q:",))
    assert (sampling.max_step_tokens, sampling.delimiters) == (77, ("\n",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GenerateConfig(frequency_penalty=0.5), "cannot honour frequency_penalty"),
        (GenerateConfig(logprobs=True), "cannot honour logprobs"),
        (GenerateConfig(temperature=0.0), "makes all 8 trajectories the same"),
        (GenerateConfig(top_p=2.0), "top_p"),
    ],
)
def test_what_cannot_be_honoured_is_refused(config, message):
    with pytest.raises(ConfigurationError, match=message):
        ask([ChatMessageUser(content="What is 2 + 2?")], config)


def test_messages_that_are_not_text_are_refused():
    with pytest.raises(ConfigurationError, match="text only: leave out parts of type image"):
        turn(ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")]))
    with pytest.raises(UnknownNameError, match="did you mean 'budget'"):
        get_model(MODEL, memoize=False, bugdet=4)


def test_a_failure_fails_the_sample(tmp_path):
    log = run(tmp_path, task(), model_args={**SETTINGS, "max_step_tokens": 0}, limit=1)
    assert log.status == "error"
    assert "max_step_tokens must be at least 1" in log.error.message


def test_the_solver_with_models_of_its_own(tmp_path):
    solver = particles(lm="worlds:language_model", **SETTINGS)
    log = run(tmp_path, task(solver=[system_message("Think."), solver]), model="mockllm/model", model_args={})
    assert sum(right(log).values()) > 6
    for sample in log.samples:
        assert sample.metadata["motes"]["method"] == "pf"
        assert sample.messages[-1].text == sample.output.completion
        assert sample.messages[0].role == "system"


def test_the_solver_draws_whole_answers_of_any_model(tmp_path):
    """Seven answers of which three agree: the vote is theirs, and the model is charged for all of them."""
    texts = [rf"\boxed{{{n}}}" for n in (1, 2, 7, 3, 7, 4, 7)]
    outputs = [ModelOutput.from_content("m", text) for text in texts]
    for output in outputs:
        output.usage = ModelUsage(input_tokens=2, output_tokens=5, total_tokens=7)
    model = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
    vote = particles(method="majority", budget=7)
    asked = Task(dataset=[Sample(input="?", target="7")], scorer=match(location="any"), solver=vote)
    (log,) = evaluate(asked, model=model, display="none", log_dir=str(tmp_path))
    (sample,) = log.samples
    assert sample.output.completion == r"\boxed{7}"
    assert sample.metadata["motes"]["posterior"]["7"] == pytest.approx(3 / 7)
    assert sample.output.usage.output_tokens == sample.model_usage["mockllm/model"].output_tokens == 35


def test_the_solver_refuses_steps_of_a_model_that_cannot_continue(tmp_path):
    log = run(tmp_path, task(solver=particles(**SETTINGS)), model="mockllm/model", model_args={}, limit=1)
    assert log.status == "error"
    assert "writes whole answers only" in log.error.message


SUMS = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import pattern

@task
def sums():
    return Task(dataset=[Sample(input={!r}, target={!r})], scorer=pattern(r"\\\\boxed\\{{(.*?)\\}}"))
"""


def test_on_the_command_line(tmp_path):
    """With the bundled models, in a process of its own: Inspect finds the provider by itself."""
    (tmp_path / "sums.py").write_text(SUMS.format(PROBLEMS[0].question, PROBLEMS[0].answer))
    words = ["eval", "sums.py", "--model", "motes/tiny", "-M", "reward=tiny", "-M", "method=pf", "-M", "budget=4"]
    words += ["--display", "plain", "--log-dir", "logs", "--log-format", "json"]
    done = subprocess.run(
        [Path(sys.executable).parent / "inspect", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (tmp_path / "logs").glob("*.json")
    told = json.loads(log.read_text())
    assert told["status"] == "success"
    assert told["samples"][0]["output"]["metadata"]["motes"]["budget"] == 4
