"""Answers with labelled steps, read from files in the forms in which such data is published.

A file is JSON Lines with one answer in each line, or one JSON array. Its form is recognised by the fields of its first
row:

    steps          {"question": Q, "steps": [S1, S2], "labels": [1, 0]}           motes' own form
    trl            {"prompt": Q, "completions": [S1, S2], "labels": [true, false]}
    processbench   {"problem": Q, "steps": [S1, S2], "label": 1}                   the first wrong step, or −1
    prm800k        {"question": {"problem": Q}, "label": {"steps": [{"completions": [{"text": S1, "rating": 1}, …],
                    "chosen_completion": 0, "human_completion": null}, …], "finish_reason": "solution"}}
    math-shepherd  {"input": "Q Step 1: S1 ки\\nStep 2: S2 ки", "label": "Q Step 1: S1 +\\nStep 2: S2 -"}

A label says whether the answer is right up to and including its step: 1 or 0, or null if unknown. In `processbench`,
all steps after the first wrong one are wrong; in `prm800k`, all steps after one rated −1 (ratings 0 and 1 are right).
`math-shepherd` and `trl` are used as they are: a "+" after a "-" says that a right answer was still reached.

Sources: ProcessBench, arXiv 2412.06559; PRM800K, arXiv 2305.20050; Math-Shepherd, arXiv 2312.08935; TRL's
documentation, "stepwise supervision".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from motes import files
from motes.core import Problem, Step, Trajectory
from motes.errors import ConfigurationError, ProblemFileError, UnknownNameError, UnreadableFileError
from motes.lab.run.identity import file_digest
from motes.lab.run.rules import is_list, is_text
from motes.text import decoded, parse_json

Row = Mapping[str, Any]


@dataclass(frozen=True)
class LabelledSteps:
    """The steps of an answer, perhaps with alternatives to some of them: a tree of steps.

    Attributes:
        question: the question that the answer is to.
        texts: (S,) the steps; those of the answer itself come first.
        parents: (S,) the step that each step continues, None for a first step; a parent comes before its children.
        right: (S,) whether the partial answer that ends with the step is right; None if unknown.
        length: number of steps of the answer itself.
        is_complete: whether the answer ends with its last step.
    """

    question: str
    texts: tuple[str, ...]
    parents: tuple[int | None, ...]
    right: tuple[bool | None, ...]
    length: int
    is_complete: bool = True

    @classmethod
    def chain(cls, question: str, texts: Sequence[str], right: Sequence[bool | None]) -> LabelledSteps:
        """A complete answer without alternatives."""
        parents = tuple(i - 1 if i else None for i in range(len(texts)))
        return cls(question, tuple(texts), parents, tuple(right), len(texts))

    @property
    def problem(self) -> str:
        """A name that equal questions have in common."""
        return hashlib.sha256(self.question.strip().encode()).hexdigest()[:16]

    @property
    def first_error(self) -> int | None:
        """The answer's first wrong step, from 0; −1 if it has none; None if a label before it is unknown."""
        for place, is_right in enumerate(self.right[: self.length]):
            if not is_right:
                return None if is_right is None else place
        return -1 if self.is_complete else None

    @property
    def depths(self) -> tuple[int, ...]:
        """(S,) the number of steps up to and including each step."""
        return tuple(node.depth for node in self.trajectories())

    def trajectories(self) -> tuple[Trajectory, ...]:
        """(S,) the partial answer that ends with each step; partial answers share their prefixes."""
        root = Trajectory(Problem(self.question))
        nodes: list[Trajectory] = []
        for place, (text, parent) in enumerate(zip(self.texts, self.parents, strict=True)):
            before = root if parent is None else nodes[parent]
            if self.is_complete and place == self.length - 1:
                nodes.append(before.extend(Step(text, "eos")))
            else:
                nodes.append(before.extend(Step(text if text.endswith("\n\n") else text + "\n\n", "step")))
        return tuple(nodes)

    @property
    def leaves(self) -> tuple[int, ...]:
        """The steps that no other step continues; the last one of the answer itself comes first."""
        parents = set(self.parents)
        return tuple(place for place in range(len(self.texts)) if place not in parents)


def _require_question(row: Row, *fields: str) -> str:
    """The question in the first of these fields that the row has."""
    text: Any = next((row[field] for field in fields if field in row), None)
    if not (is_text(text) and text.strip()):
        raise ValueError("the question must be a text")
    return str(text)


def _require_steps(steps: Any, field: str = "steps") -> list[str]:
    if not (is_list(steps, is_text) and steps):
        raise ValueError(f"`{field}` must be a list of texts, at least one")
    return list(steps)


def _read_labelled(row: Row, questions: Sequence[str], field: str) -> LabelledSteps:
    """A row with a label for each of the steps in `field`, and the question in one of the fields `questions`."""
    steps, question = _require_steps(row.get(field), field), _require_question(row, *questions)
    labels: Any = row.get("labels")
    if not is_list(labels, lambda label: label is None or (isinstance(label, (bool, int)) and label in (0, 1))):
        raise ValueError("`labels` must be a list of 1, 0 and null")
    if len(labels) != len(steps):
        raise ValueError(f"there are {len(labels)} labels for {len(steps)} steps")
    return LabelledSteps.chain(question, steps, [None if label is None else bool(label) for label in labels])


def _read_processbench(row: Row) -> LabelledSteps:
    steps, label = _require_steps(row.get("steps")), row.get("label")
    if type(label) is not int or not -1 <= label < len(steps):
        raise ValueError(f"`label` must be −1 or the number of a step, from 0 to {len(steps) - 1}, not {label!r}")
    right = [label < 0 or place < label for place in range(len(steps))]
    return LabelledSteps.chain(_require_question(row, "problem", "question"), steps, right)


def _read_prm800k(row: Row) -> LabelledSteps | None:
    question, label = row.get("question"), row.get("label")
    if not (isinstance(question, dict) and isinstance(label, dict) and is_list(label.get("steps"), _is_object)):
        raise ValueError("it needs `question.problem` and `label.steps`")
    texts: list[str] = []
    right: list[bool | None] = []
    others: list[tuple[int, str, bool | None]] = []  # alternatives: number of steps before, text, label
    so_far: bool | None = True
    for step in label["steps"]:
        completions, human, chosen = step.get("completions") or [], step.get("human_completion"), None
        if not is_list(completions, lambda one: _is_object(one) and is_text(one.get("text"))):
            raise ValueError("`completions` must be a list of objects with a `text`")
        place = step.get("chosen_completion")
        if place is None and human is None:
            place = 0  # labelling ended without a choice: the first completion is the model's own
        rated = [(one["text"], _label_of_rating(one.get("rating"), so_far)) for one in completions]
        if place is not None:
            if type(place) is not int or not 0 <= place < len(rated):
                if not completions:
                    break
                raise ValueError(f"`chosen_completion` is {place!r}, of {len(rated)} completions")
            chosen = rated.pop(place)
        elif _is_object(human) and is_text(human.get("text")):
            chosen = human["text"], so_far
        else:
            raise ValueError("`human_completion` must be an object with a `text`, or null")
        others += [(len(texts), text, is_right) for text, is_right in rated]
        texts.append(chosen[0])
        right.append(so_far := chosen[1])
    if not texts:
        return None
    chain = LabelledSteps.chain(_require_question(question, "problem"), texts, right)
    return replace(
        chain,
        texts=(*chain.texts, *(text for _, text, _ in others)),
        parents=(*chain.parents, *(before - 1 if before else None for before, _, _ in others)),
        right=(*chain.right, *(is_right for _, _, is_right in others)),
        is_complete=label.get("finish_reason") == "solution",
    )


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _label_of_rating(rating: Any, so_far: bool | None) -> bool | None:
    """Whether a partial answer that ends with a step of this rating is right; None if the step has no rating."""
    if rating not in (-1, 0, 1, None):
        raise ValueError(f"a rating must be −1, 0, 1 or null, not {rating!r}")
    if so_far is False or rating == -1:
        return False
    return None if rating is None or so_far is None else True


TAG = "ки"


def _read_math_shepherd(row: Row) -> LabelledSteps:
    text, label = row.get("input"), row.get("label")
    if not (isinstance(text, str) and isinstance(label, str)):
        raise ValueError("`input` and `label` must be texts")
    *pieces, _ = text.split(TAG)
    if not pieces:
        raise ValueError(f"`input` has no step tag {TAG}")
    right: list[bool | None] = []
    place = 0
    for piece in pieces:  # `label` is `input` with a sign instead of each tag
        sign = label[place + len(piece) : place + len(piece) + 1]
        if not label.startswith(piece, place) or sign not in ("+", "-"):
            raise ValueError(f"`label` is not `input` with + or - in the place of its tag {len(right) + 1}")
        right.append(sign == "+")
        place += len(piece) + 1
    starts = [match.start() for match in re.finditer(r"Step 1\s*:", pieces[0])]
    if not starts:
        raise ValueError('`input` has no "Step 1:" after the question')
    before, pieces[0] = pieces[0][: starts[-1]], pieces[0][starts[-1] :]
    question = _require_question({"input": before.strip()}, "input")
    return LabelledSteps.chain(question, [piece.strip() for piece in pieces], right)


FORMS: Mapping[str, Callable[[Row], LabelledSteps | None]] = MappingProxyType(
    {
        "steps": partial(_read_labelled, questions=("question", "problem"), field="steps"),
        "trl": partial(_read_labelled, questions=("prompt",), field="completions"),
        "processbench": _read_processbench,
        "prm800k": _read_prm800k,
        "math-shepherd": _read_math_shepherd,
    }
)
"""The function that reads a row, by the name of the row's form; it returns None for a row without a step."""


def form_of(row: Row) -> str:
    """The form of a row, recognised by its fields.

    Raises:
        ValueError: the row has no known form.
    """
    if "input" in row and isinstance(row.get("label"), str):
        return "math-shepherd"
    if isinstance(row.get("question"), dict) and isinstance(row.get("label"), dict):
        return "prm800k"
    if "completions" in row and "labels" in row:
        return "trl"
    if "steps" in row and "labels" in row:
        return "steps"
    if "steps" in row and "label" in row:
        return "processbench"
    raise ValueError(f"its fields ({', '.join(list(row)[:8])}) are of no known form: name one of {', '.join(FORMS)}")


@dataclass(frozen=True)
class StepFile:
    """A file of labelled steps whose form and size are known.

    Attributes:
        path: of the file.
        form: of its rows, see `FORMS`.
        rows: number of rows.
        sha256: digest of its bytes.
    """

    path: Path
    form: str
    rows: int
    sha256: str

    @classmethod
    def open(cls, path: Path, form: str | None = None) -> StepFile:
        """Find out the form, the number of rows and the digest of a file.

        Args:
            form: of its rows; None: recognise it by the fields of the first row.

        Raises:
            UnknownNameError: there is no such form.
            ConfigurationError: the file cannot be read, is empty, or has no known form.
        """
        if form is not None and form not in FORMS:
            raise UnknownNameError("form of labelled steps", form, FORMS)
        number = 0
        for number, row in _rows(path):
            if form is None:
                try:
                    form = form_of(row())
                except ValueError as error:
                    raise ProblemFileError(str(path), number, str(error)) from error
        if form is None or not number:
            raise ConfigurationError(f"{path} is empty: give a file of labelled steps")
        return cls(path, form, number, file_digest(path))

    def read(self) -> Iterator[tuple[int, Callable[[], LabelledSteps | None]]]:
        """The number of each row, from 1, and a function that reads the row.

        The function raises `ValueError` if the row does not have the file's form, and returns None for a row without a
        step.
        """
        reader = FORMS[self.form]
        for number, row in _rows(self.path):
            yield number, lambda row=row: reader(row())  # type: ignore[misc]


def _rows(path: Path) -> Iterator[tuple[int, Callable[[], Row]]]:
    """The number of each row of a JSON Lines file or of a JSON array, and a function that parses the row.

    Raises:
        UnreadableFileError: the file cannot be read.
    """
    try:
        with files.open_to_read(path) as file:
            is_array = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        if is_array:
            try:
                array = parse_json(files.read_text(path))
            except ValueError as error:
                raise ConfigurationError(f"{path} is not a JSON array: {error}") from error
            for number, row in enumerate(array, start=1):
                yield number, lambda row=row: _require_object(row)  # type: ignore[misc]
            return
        number = 0
        for line in files.read_lines(path, files.LINE):
            if line.content is None or line.content.strip():
                number += 1
                yield number, lambda line=line: _parse_line(line)  # type: ignore[misc]
    except OSError as error:
        raise UnreadableFileError(path, error) from error


def _parse_line(line: files.Line) -> Row:
    if line.content is None:
        raise ValueError(f"it is longer than {files.LINE:,} bytes")
    try:
        return _require_object(parse_json(decoded(line.content)))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error


def _require_object(row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    return row
