"""`motes solve`: solve one problem and show its particles live."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Annotated, Any

import typer

from motes import api
from motes.cli import options, terminal
from motes.cli.views import Round, Watch, confidence, no_answer, show_result
from motes.core import Problem, Result, SamplingOptions
from motes.errors import ConfigurationError
from motes.lab.run.method_spec import describe, method_from_spec
from motes.lab.run.presets import Preset, preset_of
from motes.methods import METHODS
from motes.smc import Weights
from motes.tasks.arithmetic import note_on_question


@options.takes_sampling
def command(
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
    outcome_reward: options.OutcomeReward = None,
    method: Annotated[
        str,
        typer.Option(
            autocompletion=options.complete(*METHODS),
            help=f"Method: {', '.join(METHODS)}; pf:paper, the paper's preset; @FILE, a preset from `motes tune`; or "
            "MODULE:CLASS of your own.",
        ),
    ] = "pf",
    budget: Annotated[
        int | None,
        typer.Option(
            "-n", "--budget", help="Number of trajectories: particles, samples.  [default: 16 or the preset's]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A setting of the method; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed. The same seed gives the same answer.")] = 0,
    deadline: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Return the best answer so far after this time, which starts with open models."
        ),
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Begin no step after this many generated tokens; return the best answer so far.")
    ] = None,
    answer_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the time and of the tokens kept for answers; then thoughts are ended.  [default: 0.2]"
        ),
    ] = None,
    prompt: options.Prompt = None,
    sampling: SamplingOptions = options.NO_OPTIONS,
    task: options.TaskOfRule = None,
    rule: options.Rule = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Solve one problem and show its particles live."""
    problem = Problem(terminal.read_stdin() if question == "-" else question)
    for setting in settings or ():
        if "=" not in setting:
            raise ConfigurationError(f"--set wants FIELD=VALUE, not {setting!r}")
    preset = preset_of(method) or Preset(method, 16)
    spec = ":".join([preset.method, *(settings or ())])
    configured_method = method_from_spec(spec, preset.budget if budget is None else budget)
    opened_prompt, configured_sampling = options.open_prompt(prompt, sampling)
    opened_rule = api.answer_rule(task, rule)
    lm, prm = options.open_models(model, reward)
    outcome_prm = options.open_reward_model(outcome_reward)
    note = note_on_question(model, problem.question)
    started = time.perf_counter()
    with Watch(terminal.progress(quiet=as_json)) as watch:
        result = api.solve(
            problem if opened_prompt is None else opened_prompt.problem(problem),
            lm=lm,
            reward=prm,
            outcome_reward=outcome_prm,
            method=configured_method,
            sampling=configured_sampling,
            seed=seed,
            task=opened_rule,
            observe=watch.observe,
            deadline=deadline,
            token_budget=token_budget,
            answer_share=answer_share,
        )
    seconds = time.perf_counter() - started
    if as_json:
        request = {
            "model": model, "reward": reward, "outcome_reward": outcome_reward, "prompt": prompt, "task": task,
            "rule": rule, "method": spec, "budget": configured_method.budget, "settings": describe(configured_method),
        }  # fmt: skip
        terminal.say(terminal.exact_json(to_dict(result, request, note, seconds)))
    else:
        show_result(terminal.results(), result, seconds, note)


def to_dict(result: Result, request: dict[str, Any], note: str | None, seconds: float) -> dict[str, Any]:
    """The JSON object for a result, which includes the options of the request."""
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
        "thoughts": result.thoughts,
        "content": result.content,
        "thought_tokens": result.thought_tokens,
        "content_tokens": result.content_tokens,
        **request,
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
