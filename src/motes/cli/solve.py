"""`motes solve`: one question, its particles live, its answer."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Annotated, Any

import typer

from motes import api
from motes.cli import options, terminal
from motes.cli.terminal import Console, Text
from motes.cli.views import Round, Watch, confidence, no_answer, show_result
from motes.core import Problem, Result
from motes.errors import ConfigurationError
from motes.lab.run.method_spec import describe, method_from_spec
from motes.lab.run.presets import Preset, preset_of
from motes.methods import METHODS
from motes.smc import Weights
from motes.tasks import Arithmetic


def command(
    question: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.", show_default=False)],
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
    outcome_reward: options.OutcomeReward = None,
    method: Annotated[
        str,
        typer.Option(
            autocompletion=options.complete(*METHODS),
            help=f"One of {', '.join(METHODS)}; pf:paper, the paper's preset; @FILE, what `motes tune` found; or "
            "MODULE:CLASS of your own.",
        ),
    ] = "pf",
    budget: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--budget",
            help="Number of trajectories: particles, samples.  [default: 16, or the preset's]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A setting of the method; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Answer by then, with what there is; counted once the models are open."),
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Begin no step once so many tokens are generated; answer with what there is.")
    ] = None,
    temperature: options.Temperature = options.DEFAULTS.temperature,
    top_p: options.TopP = options.DEFAULTS.top_p,
    top_k: options.TopK = options.DEFAULTS.top_k,
    min_p: options.MinP = options.DEFAULTS.min_p,
    max_step_tokens: options.MaxStepTokens = None,
    max_tokens: options.MaxTokens = options.DEFAULTS.max_tokens,
    max_steps: options.MaxSteps = options.DEFAULTS.max_steps,
    prompt: options.Prompt = None,
    task: options.Rule = None,
    delimiter: options.Delimiter = None,
    pattern: options.Pattern = None,
    step_tokens: options.StepTokens = None,
    stop: options.StopText = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Solve one problem, with its particles live."""
    problem = Problem(terminal.read_stdin() if question == "-" else question)
    for setting in settings or ():
        if "=" not in setting:
            raise ConfigurationError(f"--set wants FIELD=VALUE, not {setting!r}")
    usual = preset_of(method) or Preset(method, 16)
    spec = ":".join([usual.method, *(settings or ())])
    made = method_from_spec(spec, usual.budget if budget is None else budget)
    asked_by = options.prompt(prompt)
    rule = None if task is None else api.answer_rule(task)
    sampling = options.sampling(
        asked_by,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        max_step_tokens=max_step_tokens,
        max_tokens=max_tokens,
        max_steps=max_steps,
        delimiter=delimiter,
        pattern=pattern,
        step_tokens=step_tokens,
        stop=stop,
    )
    lm, prm = options.open_models(model, reward)
    last_word = options.open_reward_model(outcome_reward)
    note = out_of_kind(model, problem)
    started = time.perf_counter()
    with Watch(terminal.progress(quiet=as_json)) as watch:
        result = api.solve(
            problem if asked_by is None else asked_by.problem(problem),
            lm=lm,
            reward=prm,
            outcome_reward=last_word,
            method=made,
            sampling=sampling,
            seed=seed,
            task=rule,
            observe=watch.observe,
            deadline=deadline,
            token_budget=token_budget,
        )
    seconds = time.perf_counter() - started
    if as_json:
        models = {"model": model, "reward": reward, "outcome_reward": outcome_reward}
        method_asked = {"method": spec, "budget": made.budget, "settings": describe(made)}
        asked = {**models, "prompt": prompt, "task": task, **method_asked}
        terminal.say(terminal.exact_json(to_dict(result, asked, note, seconds)))
    else:
        show_result(terminal.results(), result, seconds, note)


def out_of_kind(model: str, problem: Problem) -> str | None:
    """What to say beside an answer of the bundled model to a question that it cannot know."""
    if model != "tiny" or Arithmetic().recognizes(problem.question):
        return None
    return "tiny knows nothing but stories of who has how many (`motes demo` shows one): do not believe the answer"


def show_question(console: Console, problem: Problem) -> None:
    console.print(Text(problem.question + "\n", style="bold"), soft_wrap=not console.is_terminal)


def to_dict(result: Result, asked: dict[str, Any], note: str | None, seconds: float) -> dict[str, Any]:
    """A result as JSON can hold it."""
    weights = Weights(result.log_weights).normalized.tolist()
    scores = [None if math.isnan(score) else score for score in result.scores.tolist()]
    return {
        "question": result.problem.plain.question,
        "answer": result.answer,
        "no_answer": no_answer(result),
        "note": note,
        "stopped": result.stopped,
        "dropped": [str(trajectory.error) for trajectory in result.dropped],
        "confidence": confidence(result),
        "posterior": dict(result.posterior),
        "text": result.text,
        **asked,
        "seed": result.seed,
        "log_evidence": result.log_evidence,
        "rounds": [dataclasses.asdict(Round.of(i, record)) for i, record in enumerate(result.records, start=1)],
        "trajectories": [
            {"text": trajectory.text, "finished": trajectory.finished, "weight": weight, "score": score}
            for trajectory, weight, score in zip(result.trajectories, weights, scores, strict=True)
        ],
        "usage": result.usage.to_dict(),
        "seconds": round(seconds, 3),
    }
