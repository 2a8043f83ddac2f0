"""Export the trained models into the package, in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM

from motes import bundled
from motes.rewards.prm import Qwen2ForProcessRewardModel


def export(work: Path) -> None:
    """Convert the trained checkpoints; the model cards beside them stay."""
    for role, model_class in (("lm", Qwen2ForCausalLM), ("prm", Qwen2ForProcessRewardModel)):
        target = bundled.path(role)
        target.mkdir(parents=True, exist_ok=True)
        model = model_class.from_pretrained(work / role, dtype=torch.float16)
        model.save_pretrained(target)
        for name in ("tokenizer.json", "chat_template.jinja"):
            shutil.copy(work / "tokenizer" / name, target / name)
        config = json.loads((work / "tokenizer" / "tokenizer_config.json").read_text())
        del config["backend"]
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version of transformers knows
        (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        size = sum(file.stat().st_size for file in target.iterdir()) / 2**20
        print(f"{target.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {size:.1f} MiB")
