"""`motes doctor`: show the capabilities of a server, or what would break an evaluation of a model on a task. `motes
check`: check that models keep their contract."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from motes import api
from motes.cli import options, terminal
from motes.cli.terminal import Console, Text
from motes.cli.views import ProgressView
from motes.conformance import check_language_model, check_reward_model
from motes.core import Sampling, SamplingOptions
from motes.errors import ConfigurationError, ContractError
from motes.lab.measure.diagnosis import Diagnosis, diagnose
from motes.lab.measure.examination import DEADLINE, Level
from motes.lab.run.evaluation import Evaluation
from motes.lab.run.keys import without_keys
from motes.opening import is_address
from motes.tasks import DECLARED, TASKS, with_rule
from motes.text import counted

if TYPE_CHECKING:
    from motes.models.served import HTTPLanguageModel
    from motes.rewards.served.model import ServedPRM

SAMPLING = Sampling(max_step_tokens=32)
TOLERANCE = 0.02
"""Allowed difference between scores of the same step: servers compute in half precision, in batches of any size."""


def check(model: options.Model = "tiny", reward: options.Reward = "tiny") -> None:
    """Prove that models keep their contract.

    Batch = single, concurrent = sequential, fork = fresh, same seed = same tokens, and more.
    """
    lm, prm = options.open_models(model, reward)
    check_language_model(lm)
    terminal.say(f"{model} keeps the contract of a language model")
    if prm is not None:
        check_reward_model(prm)
        terminal.say(f"{reward} keeps the contract of a reward model")


@options.takes_sampling
def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="http://HOST:PORT/v1#MODEL, perhaps with options: …#MODEL?seeds=group. With --task any model.",
            show_default=False,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.jsonl",
            autocompletion=options.complete(*TASKS, *DECLARED),
            help="Ask questions of this task, and say what would break an evaluation.",
        ),
    ] = None,
    rule: options.Rule = None,
    questions: Annotated[int, typer.Option(min=1, help="With --task: number of questions, from the first on.")] = 5,
    split: Annotated[str, typer.Option(help="With --task: part of the task.")] = "test",
    reward: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.complete(*options.REWARDS),
            help="With --task: reward model that scores the answers. Default: none.",
        ),
    ] = None,
    prompt: options.Prompt = None,
    sampling: SamplingOptions = options.NO_OPTIONS,
    seed: Annotated[int, typer.Option(help="With --task: random seed.")] = 0,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", help="With --task: an answer is cut off after this time.")
    ] = DEADLINE,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --task: print one JSON object and nothing else.")
    ] = False,
    contract: Annotated[
        bool | None,
        typer.Option(
            "--contract/--no-contract",
            help="Check a server's contract with a few hundred short steps or scores. Default: unless there is a task.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what a server can do, what its missing capabilities cost, and check its contract; or, with --task, ask a
    model a few questions of a task, and say what would break an evaluation. Exit code 1: something would."""
    is_server = is_address(model.strip())
    if task is None and not is_server:
        raise ConfigurationError(
            f"{model!r} is no server: write http://HOST:PORT/v1#MODEL (for others, `motes check`), or name a task of "
            "which the model is asked questions, --task FILE.jsonl"
        )
    if task is None:
        needs_task = {"--rule": rule, "--reward": reward, "--prompt": prompt, "--json": as_json or None}
        needs_task["a setting of the sampling"] = None if sampling == options.NO_OPTIONS else sampling  # type: ignore[assignment]
        if used := [name for name, value in needs_task.items() if value is not None]:
            raise ConfigurationError(f"{' and '.join(used)} goes with --task, which names the questions")
        _examine_server(model, contract is not False)
        return
    if contract and not is_server:
        raise ConfigurationError(f"{model!r} is no server: `motes check --model {model}` checks its contract")
    if contract and not as_json:
        _examine_server(model, contract=True)
    opened_prompt, configured_sampling = options.open_prompt(prompt, sampling)
    evaluation = Evaluation(
        task=with_rule(task, rule),
        split=split,
        limit=questions,
        methods=("majority",),
        budgets=(1,),
        seeds=(seed,),
        lm=model,
        reward=None if reward in (None, "none") else reward,
        sampling=configured_sampling,
        prompt=opened_prompt,
    )
    lm, prm = options.open_models(model, reward or "none")
    with ProgressView(terminal.progress(quiet=as_json), "questions") as view:
        diagnosis = asyncio.run(
            diagnose(
                evaluation, lm=lm, reward=prm, deadline=deadline, observe=lambda done, total: view.show(done, total, "")
            )
        )
    if as_json:
        terminal.say(terminal.exact_json(diagnosis.to_dict()))
    else:
        _show_diagnosis(terminal.results(), diagnosis)
    if diagnosis.is_broken:
        raise typer.Exit(1)


STYLES: Mapping[Level, str] = {"fine": "green", "warning": "yellow", "broken": "red"}
MAX_EXCERPT, MAX_EXCERPTS = 160, 3
"""Number of characters at the end of a text that are shown, and of such texts."""


def _show_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    examination = diagnosis.examination
    evaluation = examination.evaluation
    asked, problems = len(examination.trials), counted(examination.num_problems, "problem")
    title = f"{without_keys(evaluation.lm)}: {asked} of {problems} of {evaluation.task}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    for finding in diagnosis.findings:
        mark = Text(f"{finding.level:<8}", style=STYLES[finding.level])
        console.print(mark + Text(f"{finding.topic}: {finding.text}"), soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"        {finding.remedy}", style="dim"), soft_wrap=True)
    unread = [trial for trial in examination.answered if trial.answer is None]
    if unread:
        console.print()
        console.print("The ends of texts in which no answer is found:", soft_wrap=True)
    for trial in unread[:MAX_EXCERPTS]:
        end = " ".join(trial.text[-MAX_EXCERPT:].split()) or "(no text)"
        console.print(Text(f"        {trial.problem.id}: …{end}", style="dim"), soft_wrap=True)
    console.print()
    console.print("something would break an evaluation" if diagnosis.is_broken else "nothing would break an evaluation")


def _examine_server(url: str, contract: bool) -> None:
    """Show what a server can do, and check its contract."""
    console = terminal.results()
    terminal.say_busy(f"asking {url}")
    if api.serves_rewards(url):
        prm = cast("ServedPRM", api.reward_model(url))
        _show_reward_model(console, prm)
        if contract:
            _check_reward_model(console, prm)
    else:
        lm = cast("HTTPLanguageModel", api.language_model(url))
        _show_language_model(console, lm)
        if contract:
            _check_language_model(console, lm)


def _show_language_model(console: Console, lm: HTTPLanguageModel) -> None:
    server = lm.capabilities
    facts = {
        **_common_facts(server),
        "route": str(server).rpartition(": ")[2],
        "prompts": {
            "server": "made by the server",
            "tokenizer": "made by a tokenizer on this side",
            "messages": "messages, as they are",
        }[server.rendering],
        "seeds": lm.seeds,
    }
    _show(console, facts, server.findings())


def _show_reward_model(console: Console, prm: ServedPRM) -> None:
    server = prm.server
    facts = {
        **_common_facts(server),
        "rewards": f"of the family {prm.format.family.name}, which scores the steps of an answer",
        "route": prm.route.url,
        "tokens": f"made by a tokenizer on this side, {prm.vocabulary.tokenizer.name_or_path}",
    }
    _show(console, facts, prm.findings())


def _common_facts(server: Any) -> dict[str, str]:
    """Facts about a language model's `Capabilities` or a reward model's server, which have the same attributes."""
    others = [name for name in server.models if name != server.model]
    return {
        "engine": f"{server.engine} {server.version or '(unknown version)'}",
        "model": server.model,
        "others": ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else ""),
        "context": f"{server.context_length} tokens" if server.context_length else "unknown",
    }


def _show(console: Console, facts: Mapping[str, str], findings: Sequence[tuple[str, bool, str]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    console.show(table)
    console.print()
    for capability, is_there, consequence in findings:
        mark = Text("yes  ", style="green") if is_there else Text("no   ", style="yellow")
        console.print(mark + Text(capability), soft_wrap=True)
        if not is_there:
            console.print(Text(f"     {consequence}", style="dim"), soft_wrap=True)
    console.print()


def _check_reward_model(console: Console, prm: ServedPRM) -> None:
    try:
        check_reward_model(prm, tolerance=TOLERANCE)
    except ContractError as error:
        raise ContractError(f"the contract of a reward model does not hold: {error}. See docs/servers.md") from error
    console.print("keeps the contract of a reward model", soft_wrap=True)


def _check_language_model(console: Console, lm: HTTPLanguageModel) -> None:
    sampling, rounds, mode = SAMPLING, 2, ""
    if not lm.continues_prefixes:
        sampling, rounds, mode = sampling.replace(delimiter=None), 1, ", whole answers only"
    if lm.seeds != "particle":
        sampling = sampling.replace(temperature=0.0)
        mode += f", at temperature 0, as steps are not drawn by their own seeds (seeds={lm.seeds})"
    try:
        check_language_model(lm, sampling=sampling, rounds=rounds)
    except ContractError as error:
        raise ContractError(
            f"the contract of a language model does not hold{mode}: {error}. Where only the last bits of a sum differ "
            "between batches (a law about sameness, broken now and then), answers are as good as any, but runs cannot "
            "be repeated exactly; see docs/servers.md"
        ) from error
    console.print(f"keeps the contract of a language model{mode}", soft_wrap=True)
