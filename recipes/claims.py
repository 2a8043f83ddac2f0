"""Measure the claims, one command each: records go below --work, tables and plots below --out.

    python recipes/claims.py scaling        # accuracy against budget, tokens, FLOPs; scaling rates
    python recipes/claims.py robustness     # with a corrupted reward model
    python recipes/claims.py ablations      # settings of the particle filter, one at a time, on the validation split
    python recipes/claims.py defaults       # settings beside searches, in easy and hard worlds
    python recipes/claims.py adaptive       # accuracy and tokens of the adaptive budget
    python recipes/claims.py factor         # budgets that other methods need, with long and with short answers
    python recipes/claims.py advice         # predictions from a pilot beside measurements
    python recipes/claims.py regime         # where particles win: budgets by steps, pass@1 and quality of scores

Each cell (a method at a budget) is an evaluation of its own below --work:

    - The same command resumes an interrupted one.
    - With more methods or budgets, it measures only the new cells; claims with the same --work share cells.
    - Several processes with the same command divide the cells among themselves.
    - With --shard 1/8 … 8/8, they divide the problems of each cell. The same command without --shard then merges the
      parts and writes the tables.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from claim import ablations, adaptive, advice, defaults, factor, regime, robustness, scaling
from claim.cells import Setting, measure
from motes import Sampling
from motes.errors import MotesError
from motes.lab import Shard

CLAIMS = {"scaling": scaling, "robustness": robustness, "ablations": ablations, "adaptive": adaptive}
WORLDS = {"factor": factor, "advice": advice, "defaults": defaults}
"""Claims about several sets of problems and reward models, each with its own split."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    args.work = args.work or Path("build/claims") / args.claim
    args.out = args.out or Path("results") / args.claim
    try:
        command = reproducing_command(argv)
        failed = regime.run(args, command) if args.claim == "regime" else measure_claim(args, command)
    except KeyboardInterrupt:
        print(f"interrupted; finished runs are in {args.work}, the same command resumes", file=sys.stderr)
        return 130
    except MotesError as error:
        print(error, file=sys.stderr)
        return 1
    if getattr(args, "shard", None) is None:
        print(f"written: {args.out}")
    if failed:
        print(f"{failed} runs failed; the same command does them again", file=sys.stderr)
    return 1 if failed else 0


def measure_claim(args: argparse.Namespace, command: str) -> int:
    """Measure a claim about models, and write its report. Returns the number of failed runs."""
    setting = Setting(
        claim=args.claim,
        command=command,
        split=args.split or {"ablations": "validation"}.get(args.claim, "test"),
        limit=args.limit,
        seeds=args.seeds,
        model=args.model,
        reward=args.reward,
        concurrency=args.concurrency,
        work=args.work,
        out=args.out,
        shard=args.shard,
        recorded=args.recorded,
        task=args.task,
        sampling=Sampling(temperature=args.temperature, max_tokens=args.max_tokens),
    )
    match args.claim:
        case "factor":
            return factor.run(setting, args.worlds, args.budgets, args.methods)
        case "advice":
            return advice.run(setting, args.cases, args.budgets, args.methods)
        case "defaults":
            return defaults.run(setting, args.worlds, args.budgets, args.methods)
    budgets = args.budgets or CLAIMS[args.claim].BUDGETS
    match args.claim:
        case "scaling":
            cells = scaling.cells(args.methods or scaling.METHODS, budgets)
        case "robustness":
            cells = robustness.cells(args.methods or robustness.METHODS, budgets, args.kinds)
        case "ablations":
            cells = ablations.cells(budgets, args.reward)
        case "adaptive":
            cells = adaptive.cells(budgets, args.decided)
    measured = measure(setting, cells)
    if measured is None:
        return 0
    CLAIMS[args.claim].write_report(measured)
    return measured.failed


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="claim", required=True)
    for name, module in {**CLAIMS, **WORLDS}.items():
        command = commands.add_parser(name, description=module.__doc__)
        add_directories(command)
        command.add_argument("--seeds", "--seed", type=integers, default=(0,), help="separated by commas")
        if name in CLAIMS:
            command.add_argument("--task", default="arithmetic", help="as in `motes eval`")
            command.add_argument("--split", help="part of the task; default test; for ablations, validation")
            command.add_argument("--temperature", type=float, default=Sampling().temperature)
            command.add_argument("--max-tokens", type=int, help="of an answer; default what the model's context holds")
        command.add_argument("--limit", type=int, help="number of problems, from the first on; default all")
        command.add_argument("--model", default="tiny")
        command.add_argument("--reward", default="tiny")
        command.add_argument("--concurrency", type=int, default=64, help="number of problems in flight")
        command.add_argument("--shard", type=Shard.parse, metavar="I/N", help="measure only this part of the problems")
        command.add_argument("--recorded", action="store_true", help="report the recorded cells, measure nothing")
        command.add_argument("--budgets", type=integers, help="numbers of trajectories, separated by commas")
    for name, known in (("factor", factor.WORLDS), ("defaults", defaults.WORLDS)):
        commands.choices[name].add_argument(
            "--worlds", type=words, default=tuple(known), help="separated by commas; default all"
        )
    cases = commands.choices["advice"]
    cases.add_argument("--cases", type=words, default=tuple(advice.CASES), help="separated by commas; default all")
    for name in WORLDS:
        commands.choices[name].set_defaults(
            split=None, task=Setting.task, temperature=Sampling().temperature, max_tokens=None
        )
    for name in ("factor", "advice"):
        commands.choices[name].set_defaults(seeds=(0, 1, 2))
    for name in ("scaling", "robustness", *WORLDS):
        commands.choices[name].add_argument("--methods", type=words, help="specs, separated by commas")
    kinds = commands.choices["robustness"]
    kinds.add_argument("--kinds", type=words, default=tuple(robustness.LEVELS), help="kinds of corruption; default all")
    decided = commands.choices["adaptive"]
    decided.add_argument("--decided", type=fractions, default=adaptive.DECIDED, help="separated by commas")
    chains = commands.add_parser("regime", description=regime.__doc__)
    add_directories(chains)
    chains.add_argument("--seeds", "--seed", type=integers, default=(0,), help="separated by commas")
    chains.add_argument("--steps", type=integers, default=regime.STEPS, help="T, separated by commas")
    chains.add_argument("--success", type=fractions, default=regime.SUCCESS, help="mean pass@1, separated by commas")
    chains.add_argument("--separations", type=fractions, default=regime.SEPARATIONS, help="d', separated by commas")
    chains.add_argument("--problems", type=int, default=200, help="number of problems in each world")
    return parser.parse_args(argv)


def add_directories(parser: argparse.ArgumentParser) -> None:
    """Add the options for the places of a claim's files."""
    parser.add_argument("--work", type=Path, help="directory for records; default build/claims/NAME")
    parser.add_argument("--out", type=Path, help="directory for tables and plots; default results/NAME")


def reproducing_command(argv: Sequence[str]) -> str:
    """The command that reproduces the tables, to be written below them: without options that do not change results."""
    irrelevant = argparse.ArgumentParser(add_help=False)
    add_directories(irrelevant)
    irrelevant.add_argument("--concurrency")
    irrelevant.add_argument("--shard")
    return shlex.join(("python", "recipes/claims.py", *irrelevant.parse_known_args(argv)[1]))


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def fractions(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
