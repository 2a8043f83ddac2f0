"""Train a process reward model: a language model with a two-way head, in the layout of Qwen2.5-Math-PRM.

The loop is that of transformers' `Trainer`: it saves its state, resumes, and stops early.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.utils.data import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from motes.arguments import fit_fields, whole_number
from motes.checkpoint import existing, unreadable
from motes.errors import ConfigurationError, MissingExtraError
from motes.kv.checkpoint import quiet
from motes.rewards.families import CHAT, FORMAT_FIELD, QWEN, Family
from motes.rewards.format import Format
from motes.rewards.layouts import ProcessRewardModel
from motes.training.calibrate import fit_platt
from motes.training.examples import Example
from motes.vocabulary import Vocabulary

STATE = "trainer"
"""The folder in which the trainer keeps its checkpoints."""
TAG = "<extra_0>"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a process reward model is trained.

    Args:
        epochs: at most; training stops when the loss on held-out problems has not fallen for two evaluations.
        learning_rate: of AdamW at its peak; by default 1e-5 for all weights, 1e-4 with `lora_rank`.
        batch: answers of a step of the optimiser.
        evaluations: on held-out problems, in each epoch.
        lora_rank: train low-rank additions to the matrices instead of all weights (LoRA, arXiv 2106.09685, extra
            `train`); 0: all weights.
        max_tokens: answers that are longer are left out.
        seed: of the order of the examples, and of the new head.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    epochs: int = 3
    learning_rate: float | None = None
    batch: int = 16
    evaluations: int = 4
    lora_rank: int = 0
    max_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        fit_fields(self)
        for name in ("epochs", "batch", "evaluations", "max_tokens"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("lora_rank", self.lora_rank, least=0)
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigurationError(f"learning_rate must be above 0, not {self.learning_rate}")


@dataclass(frozen=True)
class Row:
    """An answer as the model reads it.

    Attributes:
        ids: its tokens.
        tags: (T,) the places at which the scores of its steps are read.
        counts: (T, 2) completions of each prefix that ended wrong, and right.
    """

    ids: list[int]
    tags: list[int]
    counts: np.ndarray


class Rows(Dataset[Row]):
    """Rows, as torch wants them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def rows_of(form: Format, examples: Sequence[Example], max_tokens: int) -> list[Row]:
    """The rows of examples that have an outcome and are not too long."""
    rows = []
    for example in examples:
        ids, tags = list(form.prompt(example.answer.problem)), []
        for number, step in enumerate(example.answer.steps, start=1):
            ids += form.step(step.text, number)
            tags.append(len(ids) - 1)
        if len(ids) <= max_tokens and example.counts.any():
            rows.append(Row(ids, tags, example.counts))
    return rows


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch. Rows are padded on the right, where a causal model does not see it."""
    length, steps = max(len(row.ids) for row in rows), max(len(row.tags) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    tags = torch.zeros(len(rows), steps, dtype=torch.long)
    counts = torch.zeros(len(rows), steps, 2)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        tags[i, : len(row.tags)] = torch.tensor(row.tags)
        counts[i, : len(row.tags)] = torch.from_numpy(row.counts)
    return {"input_ids": ids, "tags": tags, "labels": counts}


def logits_at(logits: Tensor, tags: Tensor) -> Tensor:
    """(rows, T, 2) the logits, (rows, length, 2), at the tags, (rows, T)."""
    return logits.gather(1, tags[..., None].expand(-1, -1, logits.shape[-1])).float()


class PRMTrainer(Trainer):
    """Minimises the negative log-likelihood of an outcome: the cross-entropy at the tags, weighted by completions."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and the logits at its tags, (rows, steps, 2)."""
        logits = model(inputs["input_ids"]).logits
        at_tags = logits_at(logits, inputs["tags"])
        counts = inputs["labels"]
        loss = -(log_softmax(at_tags, -1) * counts).sum() / counts.sum().clamp_min(1)
        return (loss, {"logits": at_tags}) if return_outputs else loss


class Progress(TrainerCallback):
    """Tells an observer the step, the number of steps, and the latest loss on held-out problems."""

    def __init__(self, observe: Callable[[int, int, float | None], None]) -> None:
        self._observe = observe
        self._loss: float | None = None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        self._loss = (options.get("metrics") or {}).get("eval_loss")
        self._observe(state.global_step, state.max_steps, self._loss)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        self._observe(state.global_step, state.max_steps, self._loss)


def family_for(vocabulary: Vocabulary) -> Family:
    """The format in which a reward model of this vocabulary reads: Qwen2.5-Math-PRM's, or, if its chats have other
    marks, the same within its own chat template."""
    return QWEN if "<|im_start|>" in vocabulary.tokenizer.get_vocab() else CHAT


def open_backbone(path: str, seed: int) -> tuple[PreTrainedModel, Vocabulary, Family]:
    """A language model with a new two-way head, and a tokenizer that has the tag.

    Raises:
        ConfigurationError: there is no such checkpoint, or no reward model can be made of it.
    """
    path = existing(path)
    torch.manual_seed(seed)
    try:
        with quiet():  # that the head's weights are missing is as it should be
            model = ProcessRewardModel.from_pretrained(path, dtype=torch.float32)
            vocabulary = Vocabulary.load(path)
    except ConfigurationError:
        raise
    except Exception as error:  # transformers has errors without a common base class
        raise unreadable(path, error) from error
    if TAG not in vocabulary.tokenizer.get_vocab():
        vocabulary.tokenizer.add_special_tokens({"additional_special_tokens": [TAG]})
        vocabulary = Vocabulary(vocabulary.tokenizer)
    size = len(vocabulary.tokenizer)
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size)
    chosen = family_for(vocabulary)
    setattr(model.config, FORMAT_FIELD, chosen.name)
    return model, vocabulary, chosen


def train_prm(
    backbone: str,
    trained: Sequence[Example],
    validation: Sequence[Example],
    out: Path,
    settings: Settings,
    observe: Callable[[int, int, float | None], None] | None = None,
) -> None:
    """Train a reward model and save it in `out`, calibrated. The same call resumes.

    Args:
        backbone: folder or hub name of the language model that it is made of.
        validation: examples by which training is stopped and the scores are calibrated.
        observe: called after each step with its number, the number of all, and the latest loss on the validation
            examples.

    Raises:
        ConfigurationError: see `open_backbone`; or all answers are longer than `max_tokens`.
        MissingExtraError: peft, which LoRA needs, is not installed.
    """
    model, vocabulary, chosen = open_backbone(backbone, settings.seed)
    form = Format(chosen, vocabulary)
    rows, others = (rows_of(form, examples, settings.max_tokens) for examples in (trained, validation))
    if not (rows and others):
        raise ConfigurationError(f"no answer has at most {settings.max_tokens} tokens: raise max_tokens")
    wrapped: Any = _with_lora(model, settings.lora_rank) if settings.lora_rank else model
    trainer = PRMTrainer(
        model=wrapped,
        args=_arguments(settings, len(rows), out / STATE),
        data_collator=collate,
        train_dataset=Rows(rows),
        eval_dataset=Rows(others),
        callbacks=[EarlyStoppingCallback(2), *([Progress(observe)] if observe is not None else [])],
    )
    last = get_last_checkpoint(str(out / STATE)) if (out / STATE).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    merged: PreTrainedModel = wrapped.merge_and_unload() if settings.lora_rank else model
    _calibrate(merged.eval(), others, settings.batch)
    with quiet():
        merged.save_pretrained(out)
    vocabulary.tokenizer.save_pretrained(out)


def _arguments(settings: Settings, examples: int, folder: Path) -> TrainingArguments:
    steps = math.ceil(examples / settings.batch)
    every = max(1, steps // settings.evaluations)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        learning_rate=settings.learning_rate or (1e-4 if settings.lora_rank else 1e-5),
        lr_scheduler_type="linear",
        warmup_steps=min(100, steps // 10),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=settings.seed,
        data_seed=settings.seed,
    )


def _with_lora(model: PreTrainedModel, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("training with LoRA", "train") from error
    head = "score"
    additions = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=rf"{head}\..*",
        modules_to_save=[head],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers has changed
        return get_peft_model(model, additions)


@torch.inference_mode()
def _calibrate(model: Any, rows: Sequence[Row], batch: int) -> None:
    """Scale and shift the logits of a model such that its scores are probabilities on these rows."""
    logits, counts = [], []
    for start in range(0, len(rows), batch):
        inputs = collate(rows[start : start + batch])
        found = model(inputs["input_ids"].to(model.device)).logits.cpu()
        at_tags = logits_at(found, inputs["tags"])
        known = inputs["labels"].sum(-1) > 0
        logits.append((at_tags[..., 1] - at_tags[..., 0])[known])
        counts.append(inputs["labels"][known])
    slope, shift = fit_platt(torch.cat(logits).numpy(), torch.cat(counts).numpy())
    last = model.score[-1]
    last.weight *= slope
    last.bias *= slope
    last.bias += torch.tensor([-shift / 2, shift / 2], device=last.bias.device)
