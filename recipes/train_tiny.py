"""Train the bundled models from scratch: tokenizer, language model, rollouts, reward model, export.

    python recipes/train_tiny.py tokenizer
    python recipes/train_tiny.py completer     # a language model that is nearly always right
    python recipes/train_tiny.py lm            # the bundled language model: the completer, trained to make slips
    python recipes/train_tiny.py reader        # the completer, adapted to the format in which reward models read
    python recipes/train_tiny.py rollouts      # or --shard 0/2 and --shard 1/2, side by side
    python recipes/train_tiny.py prm
    python recipes/train_tiny.py export        # half precision, into src/motes/bundled/
    python recipes/train_tiny.py quality       # pass@1, pass@8, AUROC by level, for the model cards

Every stage is seeded, saves its state below --work (default build/tiny) and resumes from it when called again.
Arithmetic is float32 with bfloat16 matrix products. Times and results: see the model cards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tiny import export, language, reward
from tiny.quality import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/tiny"))
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer")
    for role, steps, peak in (("completer", 2800, 2e-3), ("lm", 400, 5e-4), ("reader", 200, 5e-4)):
        language_model = commands.add_parser(role)
        language_model.add_argument("--steps", type=int, default=steps)
        language_model.add_argument("--tokens", type=int, default=8192, help="tokens per step")
        language_model.add_argument("--lr", type=float, default=peak)
    rollouts = commands.add_parser("rollouts")
    rollouts.add_argument("--problems", type=int, default=20_000)
    rollouts.add_argument("--shard", default="0/1", metavar="I/N")
    prm = commands.add_parser("prm")
    prm.add_argument("--epochs", type=int, default=1)
    prm.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    prm.add_argument("--lr", type=float, default=3e-4)
    commands.add_parser("export")
    quality = commands.add_parser("quality", help="measure the models on fixed problems")
    quality.add_argument("--model", default="tiny")
    quality.add_argument("--reward", default="tiny", help='or "none"')
    quality.add_argument("--split", default="test", help="test, validation, long, long-validation")
    quality.add_argument("--limit", type=int, help="number of problems, from the first on")
    quality.add_argument("--samples", type=int, default=8)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    match args.command:
        case "tokenizer":
            language.build_tokenizer(args.work)
        case "completer" | "lm" | "reader":
            language.train(args.work, args.command, args.steps, args.tokens, args.lr)
        case "rollouts":
            shard, shards = map(int, args.shard.split("/"))
            reward.roll_out(args.work, args.problems, shard, shards)
        case "prm":
            reward.train(args.work, args.epochs, args.tokens, args.lr)
        case "export":
            export.export(args.work)
        case "quality":
            target = args.work / f"quality-{args.split}.json"
            reward_model = None if args.reward == "none" else args.reward
            measure(args.model, reward_model, args.split, args.samples, args.limit, target)


if __name__ == "__main__":
    main()
