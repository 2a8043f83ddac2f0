"""How good a reward model is by itself, on answers with labelled steps: as tables, files and a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from motes.lab.measure.comparison import ends
from motes.lab.measure.first_errors import FirstErrors, Threshold
from motes.lab.measure.formats import Section, between, csv_text, markdown, markdown_page, percent, three
from motes.lab.measure.labelled_steps import StepFile
from motes.lab.measure.rated import Tally
from motes.lab.measure.reliability import Bin, Predictions
from motes.lab.measure.statistics import Interval
from motes.lab.run.damage import Damages
from motes.text import counted

FIRST_ERRORS_NOTE = (
    "As in ProcessBench (arXiv 2412.06559): an answer is predicted if its first step with a score below the threshold "
    "is its first wrong step, or if it has neither. F1 is the harmonic mean of two shares of predicted answers: among "
    "those with an error and among those without; 95 % interval over questions. {threshold}"
)
GIVEN_NOTE = "The threshold was given, not fitted."
CHOSEN_NOTE = (
    "The threshold has the largest F1 on {number} answers to half of the questions; the numbers here are measured on "
    "the answers to the other half."
)
STEPS_NOTE = (
    "Scores of all labelled steps. A step is right if the answer is right up to and including it. AUROC: the chance "
    "that a right step has a larger score than a wrong one, over all pairs, over pairs of steps to the same question, "
    "and over such pairs with equally many steps; in brackets 95 % intervals over questions. ECE: expected calibration "
    "error, ten bins."
)
BINS_NOTE = "Steps by their score; the share of right steps with Wilson's 95 % interval, clustered by question."
COST_NOTE = (
    "Tokens that the reward model has to compute for each answer by itself, as if answers shared nothing; seconds of "
    "the whole call, with {concurrency} in flight."
)


@dataclass(frozen=True)
class Rating:
    """How good a reward model is on a file of labelled steps.

    Attributes:
        reward: the name of the reward model.
        file: the labelled steps.
        total: number of rows to rate.
        tally: of the rated answers.
        threshold: see `FirstErrors`.
        concurrency: number of answers in flight at once.
        made: the provenance of the last call: motes, the model and its digest, packages, machine.
        damages: rated answers of earlier calls that could not be read; they are scored again.
    """

    reward: str
    file: StepFile
    total: int
    tally: Tally
    threshold: Threshold
    concurrency: int
    made: Mapping[str, Any] = field(default_factory=dict)
    damages: Damages = field(default_factory=Damages)

    @cached_property
    def first_errors(self) -> FirstErrors | None:
        """How well scores find first errors; None if the file does not say where errors are."""
        answers = self.tally.answers
        return FirstErrors.of(answers, self.threshold) if len(answers) else None

    @cached_property
    def predictions(self) -> Predictions:
        """The scores of all labelled steps."""
        return self.tally.predictions

    @cached_property
    def aurocs(self) -> tuple[Interval, Interval, Interval]:
        """The AUROC over all pairs, over pairs of the same question, and over such pairs with equally many steps."""
        predictions, depths = self.predictions, self.tally.depths
        _, groups = np.unique(predictions.problems * (depths.max(initial=0) + 1) + depths, return_inverse=True)
        return (*predictions.auroc(), predictions.auroc_within(groups))

    @cached_property
    def bins(self) -> list[Bin]:
        """The bins of scores, with the share of right steps in each."""
        return self.predictions.bins()

    @property
    def title(self) -> str:
        return f"{self.reward} on {self.file.path.name}"

    def warnings(self) -> list[str]:
        """Warnings that a reader needs before trusting the numbers."""
        lines = self.damages.lines()
        if failed := self.tally.failed:
            first = min(failed)
            lines.append(f"{counted(len(failed), 'answer')} could not be rated; row {first}: {failed[first]}")
        if (missing := self.total - len(self.tally.done) - len(failed)) > 0:
            lines.append(f"unfinished: {counted(missing, 'answer')} not rated yet")
        return lines

    def sections(self) -> Iterator[Section]:
        """The tables of a rating."""
        if (first := self.first_errors) is not None:
            header = ["threshold", "with an error", "predicted", "without", "predicted", "F1"]
            note = CHOSEN_NOTE.format(number=f"{first.chosen_on:,}") if first.chosen_on else GIVEN_NOTE
            shares = [f"{percent(share.value)} ({between(share)})" for share in (first.wrong, first.right)]
            row = [f"{first.threshold:.4g}", f"{first.numbers[0]:,}", shares[0], f"{first.numbers[1]:,}", shares[1]]
            yield Section("First errors", header, [[*row, three(first.f1)]], FIRST_ERRORS_NOTE.format(threshold=note))
        predictions = self.predictions
        if len(predictions):
            header = ["labelled steps", "questions", "wrong", "AUROC", "within a question", "as many steps"]
            header += ["ECE", "Brier"]
            numbers = [f"{len(predictions):,}", f"{len(np.unique(predictions.problems)):,}"]
            numbers += [percent(float((~predictions.right).mean())), *map(three, self.aurocs)]
            numbers += [f"{predictions.expected_calibration_error():.3f}", f"{predictions.brier_score():.3f}"]
            yield Section("Steps", header, [numbers], STEPS_NOTE)
            rows = [
                [f"{one.mean:.3f}", f"{one.count:,}", percent(one.right.value), between(one.right)] for one in self.bins
            ]
            yield Section("Calibration", ("mean score", "steps", "right", "95 % interval"), rows, BINS_NOTE)
        tally, steps = self.tally, max(1, self.tally.steps)
        header = ["answers", "steps", "steps an answer", "reward tokens a step", "seconds a step"]
        numbers = [f"{len(tally.done):,}", f"{tally.steps:,}", f"{tally.length / max(1, len(tally.done)):.2f}"]
        numbers += [f"{tally.tokens / steps:,.1f}", f"{tally.seconds / steps:.4g}"]
        yield Section("Cost", header, [numbers], COST_NOTE.format(concurrency=counted(self.concurrency, "answer")))
        data = {"form": self.file.form, "rows": self.file.rows, "sha256": self.file.sha256}
        rows = [[name, _one_line(value)] for name, value in {"data": data, **self.made}.items() if value]
        yield Section("Provenance", ("what", "which"), rows, words=True)

    def markdown(self) -> str:
        """The rating as a Markdown page."""
        return markdown_page(self.title, [], map(markdown, self.warnings()), self.sections())

    def row(self) -> dict[str, Any]:
        """A flat row of a CSV file."""
        predictions, tally, (auroc, within, abreast) = self.predictions, self.tally, self.aurocs
        missing = FirstErrors(math.nan, 0, Interval.none(), Interval.none(), Interval.none(), (0, 0))
        first = self.first_errors or missing
        return {
            "reward": self.reward,
            "data": self.file.path.name,
            "form": self.file.form,
            "sha256": self.file.sha256,
            "reward_digest": self.made.get("model", {}).get("digest", ""),
            "motes": _one_line(self.made.get("motes", "")),
            "answers": len(tally.done),
            "failed": len(tally.failed),
            "threshold": round(first.threshold, 6),
            "threshold_chosen_on": first.chosen_on,
            "answers_with_error": first.numbers[0],
            "answers_without": first.numbers[1],
            **ends(first.wrong, "error_accuracy"),
            **ends(first.right, "correct_accuracy"),
            **ends(first.f1, "f1"),
            "labelled_steps": len(predictions),
            **ends(auroc, "auroc"),
            **ends(within, "auroc_within"),
            **ends(abreast, "auroc_abreast"),
            "ece": round(predictions.expected_calibration_error(), 6),
            "brier": round(predictions.brier_score(), 6),
            "steps": tally.steps,
            "reward_tokens": tally.tokens,
            "seconds": round(tally.seconds, 4),
        }

    def tables(self) -> dict[str, str]:
        """The texts of the files that a rating consists of, by file name."""
        tables = {"rating.md": self.markdown(), "rating.csv": csv_text([self.row()])}
        if self.bins:
            rows = [
                {"mean_score": round(one.mean, 6), "steps": one.count, **ends(one.right, "right")} for one in self.bins
            ]
            tables["bins.csv"] = csv_text(rows)
        return tables


def _one_line(value: Any) -> str:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)
