"""Train the bundled models from nothing: tokenizer, language model, rollouts, reward model, export.

    python recipes/train_tiny.py tokenizer
    python recipes/train_tiny.py lm
    python recipes/train_tiny.py rollouts      # or --shard 0/2 and --shard 1/2, side by side
    python recipes/train_tiny.py prm
    python recipes/train_tiny.py export        # half precision, into src/motes/bundled/
    python recipes/train_tiny.py quality       # pass@1, pass@64, AUROC by level, for the model cards

Every stage is seeded, writes its state under --work (default build/tiny) as it goes and continues from there when
called again. Arithmetic is float32 with bfloat16 matrix products. Times and results: see the model cards.
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
    lm = commands.add_parser("lm")
    lm.add_argument("--steps", type=int, default=3000, help="of the schedule")
    lm.add_argument("--until", type=int, default=2000, help="the step to stop at")
    lm.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    lm.add_argument("--lr", type=float, default=2e-3)
    rollouts = commands.add_parser("rollouts")
    rollouts.add_argument("--problems", type=int, default=17_000)
    rollouts.add_argument("-k", type=int, default=4, help="continuations of each prefix")
    rollouts.add_argument("--shard", default="0/1", metavar="I/N")
    prm = commands.add_parser("prm")
    prm.add_argument("--epochs", type=int, default=1)
    prm.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    prm.add_argument("--lr", type=float, default=1e-3)
    commands.add_parser("export")
    quality = commands.add_parser("quality", help="measure on the 500 test problems")
    quality.add_argument("--model", default="tiny")
    quality.add_argument("--reward", default="tiny")
    quality.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    match args.command:
        case "tokenizer":
            language.build_tokenizer(args.work)
        case "lm":
            language.train(args.work, args.steps, args.until, args.tokens, args.lr)
        case "rollouts":
            shard, shards = map(int, args.shard.split("/"))
            reward.roll_out(args.work, args.problems, args.k, shard, shards)
        case "prm":
            reward.train(args.work, args.epochs, args.tokens, args.lr)
        case "export":
            export.export(args.work)
        case "quality":
            measure(args.model, args.reward, args.samples, args.work / "quality.json")


if __name__ == "__main__":
    main()
