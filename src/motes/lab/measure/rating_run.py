"""Rate a reward model on a file of labelled steps: many answers at once, each kept as it is scored."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motes import files
from motes.arguments import fit
from motes.concurrency import CallBatcher, gather
from motes.core import Failure, Trajectory
from motes.errors import (
    ConfigurationError,
    MissingExtraError,
    MotesError,
    RewardError,
    RunDirectoryError,
    UnauthorizedError,
)
from motes.lab.measure.first_errors import Threshold
from motes.lab.measure.labelled_steps import LabelledSteps, StepFile
from motes.lab.measure.rated import Rated, RatingStore, Tally
from motes.lab.measure.rating import Rating
from motes.lab.run import identity
from motes.lab.run.damage import Damages, parse_json
from motes.lab.run.keys import without_keys, without_keys_in
from motes.ledger import Ledger
from motes.protocols import RewardModel, RewardModelTraits
from motes.text import counted
from motes.threads import in_thread

RATINGS, CONFIGURATION = "ratings.jsonl", "config.json"
MOST = 100
"""Calls that a directory remembers."""
REFUSED = 32
"""Where so many answers could not be scored, or all, and none could, the reward model is at fault, not the answers."""


@dataclass
class Progress:
    """How far a rating is.

    Attributes:
        total: rows asked for; `resumed`: of these, rated by earlier calls; `done`: by now; `failed`: by this call.
        tally: of all rated answers.
    """

    total: int
    tally: Tally
    resumed: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        return len(self.tally.done)


Observer = Callable[[Progress], None]
Score = Callable[[Sequence[Trajectory]], Any]


async def rate(
    reward: RewardModel,
    file: StepFile | Path,
    directory: Path | None = None,
    *,
    name: str = "",
    threshold: Threshold = 0.5,
    limit: int | None = None,
    concurrency: int = 64,
    command: str | None = None,
    observe: Observer | None = None,
) -> Rating:
    """Score every labelled answer of a file, and say what the scores are worth.

    An answer that cannot be scored is counted, and tried again by the next call. Cancelling it, or killing the process,
    loses nothing that was appended to the directory: the same call goes on.

    Args:
        file: `StepFile.open(path)`, or the path of one whose form is known by its fields.
        directory: keeps what is measured; made if missing. None: it is kept in memory.
        name: of the reward model, such as the one it was opened by.
        threshold: below which a score says that a step is wrong, or "best": the best one on half of the questions, by
            which the other half is measured.
        limit: the first so many rows.
        concurrency: answers in flight. No more are ever in memory.
        command: by which it was called, for the record.
        observe: called before the first answer and after each; must not block.

    Raises:
        ConfigurationError: an argument cannot work; or nothing can be scored, see `REFUSED`.
        RunDirectoryError: the directory belongs to another rating or process, or cannot be written.
    """
    if fit("concurrency", concurrency, int) < 1:
        raise ConfigurationError(f"concurrency must be at least 1, not {concurrency}")
    if limit is not None and fit("limit", limit, int) < 1:
        raise ConfigurationError(f"limit must be at least 1, not {limit}")
    if threshold != "best" and not 0 <= fit("threshold", threshold, float) <= 1:
        raise ConfigurationError(f"threshold must lie in [0, 1], or be 'best', not {threshold}")
    file = file if isinstance(file, StepFile) else StepFile.open(file)
    total = file.rows if limit is None else min(limit, file.rows)
    damages = Damages()
    name = without_keys(name or type(reward).__name__)
    made = await in_thread(_made, reward, command)
    with contextlib.ExitStack() as stack:
        store = None
        if directory is not None:
            store = stack.enter_context(_claimed(directory, name, file, total, made, damages))
        tally = Tally() if store is None else store.tally
        progress = Progress(total, tally, resumed=len(tally.done))
        if observe is not None:
            observe(progress)
        left = total - len(tally.done)
        pending = _pending(file, total, frozenset(tally.done))
        score = _scorer(reward)
        last = time.perf_counter()

        async def work() -> None:
            nonlocal last
            for row, read in pending:  # shared by all
                rated = await _rated(row, read, score, reward)
                now = time.perf_counter()
                rated, last = dataclasses.replace(rated, seconds=now - last), now
                if store is not None:
                    store.append(rated)
                tally.add(rated)
                progress.failed += rated.error is not None
                if observe is not None:
                    observe(progress)
                if not tally.done and progress.failed == min(left, REFUSED):
                    raise ConfigurationError(
                        f"not one of {counted(progress.failed, 'answer')} could be rated; row {row}: {rated.error}"
                    )

        await gather(work() for _ in range(min(concurrency, left)))
    return Rating(name, file, total, tally, threshold, concurrency, made, damages)


def _pending(
    file: StepFile, total: int, done: frozenset[int]
) -> Iterator[tuple[int, Callable[[], LabelledSteps | None]]]:
    for row, read in file.read():
        if row > total:
            return
        if row not in done:
            yield row, read


def _scorer(reward: RewardModel) -> Score:
    """What scores trajectories: several calls at once become one where the model does not see to that itself. If that
    fails, each is made alone, so that no answer fails for another."""
    if RewardModelTraits.of(reward).merges_calls:
        return reward.score
    together: CallBatcher[Trajectory, Sequence[float] | Failure] = CallBatcher(reward.score)

    async def score(trajectories: Sequence[Trajectory]) -> Sequence[Sequence[float] | Failure]:
        try:
            return await together(trajectories)
        except FATAL:
            raise
        except Exception:
            return await reward.score(trajectories)

    return score


FATAL = (UnauthorizedError, MissingExtraError, RunDirectoryError)
"""What is true of every answer."""


async def _rated(row: int, read: Callable[[], LabelledSteps | None], score: Score, reward: RewardModel) -> Rated:
    """An answer with its scores, or why it has none."""
    try:
        labelled = read()
        if labelled is None:
            return Rated(row, error="it has no step")
        nodes, leaves = labelled.trajectories(), labelled.leaves
        outcomes = list(await score([nodes[leaf] for leaf in leaves]))
        scores: list[float | None] = [None] * len(nodes)
        ledger, tokens = Ledger(), 0
        for leaf, outcome in zip(leaves, outcomes, strict=True):
            if isinstance(outcome, Failure):
                if leaf == labelled.length - 1:
                    return Rated(row, error=str(outcome.error))
                continue  # another way to go on, which has no score then
            tokens += ledger.scores(nodes[leaf], outcome, reward).reward_tokens
            values = [float(value) for value in outcome]
            if len(values) != labelled.depths[leaf] or not all(0 <= value <= 1 for value in values):
                raise RewardError(f"the scores of {labelled.depths[leaf]} steps are {values}")
            step: int | None = leaf
            for value in reversed(values):
                assert step is not None
                scores[step], step = value, labelled.parents[step]
    except FATAL:
        raise
    except Exception as error:  # whatever a file or a user's model holds fails this answer alone
        reason = str(error) if isinstance(error, (MotesError, ValueError)) else f"{type(error).__name__}: {error}"
        return Rated(row, error=" ".join(reason.split()) or type(error).__name__)
    return Rated(
        row,
        labelled.problem,
        tuple(scores),
        labelled.right,
        labelled.depths,
        labelled.length,
        labelled.first_error,
        tokens,
    )


def _made(reward: RewardModel, command: str | None) -> dict[str, Any]:
    """What a call measures with, as an evaluation's provenance has it. Reads files."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "motes": identity.of_motes(),
        "command": None if command is None else without_keys(command),
        "model": without_keys_in(identity.of_model(reward)),
        "packages": identity.of_packages(),
        "machine": identity.of_machine(),
    }


def _claimed(
    directory: Path, name: str, file: StepFile, total: int, made: Mapping[str, Any], damages: Damages
) -> RatingStore:
    """The store of a directory, which must be of the same reward model, by its digest too, and data.

    Raises:
        RunDirectoryError: it is of another, or cannot be used.
        DirectoryBusyError: another process writes to it.
    """
    configuration = {"rate": name, "data": file.path.name, "sha256": file.sha256, "form": file.form}
    configuration["digest"] = made["model"].get("digest")
    path = directory / CONFIGURATION
    try:
        held = parse_json(files.read_text(path)) if path.exists() else None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error}): use another directory") from error
    if held is None and directory.is_dir() and any(directory.iterdir()):
        raise RunDirectoryError(f"{directory} holds other files: name a directory of its own")
    known = held if isinstance(held, dict) else {}
    if held is not None:
        different = [key for key in ("rate", "digest", "sha256", "form") if known.get(key) != configuration[key]]
        if different:
            told = "; ".join(f"{key} {known.get(key)!r}, not {configuration[key]!r}" for key in different)
            raise RunDirectoryError(f"{directory} holds another rating ({told}): name another directory")
    store = RatingStore(directory / RATINGS, total, damages.of("rated answers"))
    calls = known.get("calls")
    calls = [*(calls if isinstance(calls, list) else []), made][-MOST:]
    try:
        text = json.dumps({**configuration, "calls": calls}, indent=2, ensure_ascii=False)
        files.write_text(path, text + "\n")
    except OSError as error:
        store.close()
        raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error
    return store
