"""Rate a reward model on a file of labelled steps: many answers at once, each saved as soon as it is scored."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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
MAX_CALLS = 100
"""Number of calls whose provenance a directory keeps."""
REFUSED = 32
"""If none of this many answers can be scored (or of all, if there are fewer), the reward model is at fault."""


@dataclass
class Progress:
    """The progress of a rating.

    Attributes:
        total: number of rows to rate.
        tally: of all rated answers.
        resumed: number of rows that earlier calls rated.
        failed: number of rows that this call could not rate.
        done: number of rows rated so far.
    """

    total: int
    tally: Tally
    resumed: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        return len(self.tally.done)


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
    observe: Callable[[Progress], None] | None = None,
) -> Rating:
    """Score every labelled answer of a file, and measure how good the scores are.

    An answer that cannot be scored is counted, and tried again by the next call. If the call is cancelled, or the
    process killed, scores in the directory are not lost: the same call continues from there.

    Args:
        file: `StepFile.open(path)`, or the path of a file whose form can be recognised by its fields.
        directory: where scores are kept; made if missing. None: they are kept in memory.
        name: of the reward model, such as the name by which it was opened.
        threshold: a score below it says that a step is wrong. "best": choose the best threshold on half of the
            questions, and measure on the other half.
        limit: rate only this many rows, from the first.
        concurrency: number of answers in flight; no more than these are in memory.
        command: the command line of the call, which is recorded.
        observe: called before the first answer and after each; must not block.

    Raises:
        ConfigurationError: an argument is invalid, or nothing can be scored, see `REFUSED`.
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
    provenance = await in_thread(_provenance_of, reward, command)
    store = None if directory is None else _open_store(directory, name, file, total, provenance, damages)
    with store or contextlib.nullcontext():
        tally = Tally() if store is None else store.tally
        progress = Progress(total, tally, resumed=len(tally.done))
        if observe is not None:
            observe(progress)
        num_pending, done = total - len(tally.done), frozenset(tally.done)
        pending = ((row, read) for row, read in islice(file.read(), total) if row not in done)
        score = _scorer(reward)
        last = time.perf_counter()

        async def work() -> None:
            nonlocal last
            for row, read in pending:  # all workers share this iterator
                rated = await _rate_row(row, read, score, reward)
                now = time.perf_counter()
                rated, last = dataclasses.replace(rated, seconds=now - last), now
                if store is not None:
                    store.append(rated)
                tally.add(rated)
                progress.failed += rated.error is not None
                if observe is not None:
                    observe(progress)
                if not tally.done and progress.failed == min(num_pending, REFUSED):
                    raise ConfigurationError(
                        f"not one of {counted(progress.failed, 'answer')} could be rated; row {row}: {rated.error}"
                    )

        await gather(work() for _ in range(min(concurrency, num_pending)))
    return Rating(name, file, total, tally, threshold, concurrency, provenance, damages)


def _scorer(reward: RewardModel) -> Score:
    """A function that scores trajectories and merges concurrent calls, if the model does not do so itself. If a merged
    call fails, its parts are repeated one by one, so that no answer fails because of another."""
    if RewardModelTraits(reward).merges_calls:
        return reward.score
    merged: CallBatcher[Trajectory, Sequence[float] | Failure] = CallBatcher(reward.score)

    async def score(trajectories: Sequence[Trajectory]) -> Sequence[Sequence[float] | Failure]:
        try:
            return await merged(trajectories)
        except FATAL:
            raise
        except Exception:
            return await reward.score(trajectories)

    return score


FATAL = (UnauthorizedError, MissingExtraError, RunDirectoryError)
"""Errors that every answer would meet."""


async def _rate_row(row: int, read: Callable[[], LabelledSteps | None], score: Score, reward: RewardModel) -> Rated:
    """Score one answer; if that fails, the result says why."""
    try:
        labelled = read()
        if labelled is None:
            return Rated(row, error="it has no step")
        nodes, leaves = labelled.trajectories(), labelled.leaves
        outcomes = await score([nodes[leaf] for leaf in leaves])
        scores: list[float | None] = [None] * len(nodes)
        ledger, tokens = Ledger(), 0
        for leaf, outcome in zip(leaves, outcomes, strict=True):
            if isinstance(outcome, Failure):
                if leaf == labelled.length - 1:
                    return Rated(row, error=str(outcome.error))
                continue  # only an alternative, which then has no score
            tokens += ledger.scores(nodes[leaf], outcome, reward).reward_tokens
            values = [float(value) for value in outcome]
            if len(values) != nodes[leaf].depth or not all(0 <= value <= 1 for value in values):
                raise RewardError(f"the scores of {nodes[leaf].depth} steps are {values}")
            step: int | None = leaf
            for value in reversed(values):
                assert step is not None
                scores[step], step = value, labelled.parents[step]
    except FATAL:
        raise
    except Exception as error:  # an error in the file or in a user's model concerns this answer alone
        reason = str(error) if isinstance(error, (MotesError, ValueError)) else f"{type(error).__name__}: {error}"
        return Rated(row, error=" ".join(reason.split()) or type(error).__name__)
    return Rated(
        row,
        labelled.problem,
        tuple(scores),
        labelled.right,
        tuple(node.depth for node in nodes),
        labelled.length,
        labelled.first_error,
        tokens,
    )


def _provenance_of(reward: RewardModel, command: str | None) -> dict[str, Any]:
    """The provenance of a call, in the format of evaluations. Reads files."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "motes": identity.of_motes(),
        "command": None if command is None else without_keys(command),
        "model": without_keys_in(identity.of_model(reward)),
        "packages": identity.of_packages(),
        "machine": identity.of_machine(),
    }


def _open_store(
    directory: Path, name: str, file: StepFile, total: int, provenance: Mapping[str, Any], damages: Damages
) -> RatingStore:
    """The store of a directory, which must belong to the same reward model (with the same digest) and data.

    Raises:
        RunDirectoryError: it belongs to another rating, or cannot be used.
        DirectoryBusyError: another process writes to it.
    """
    configuration = {"rate": name, "data": file.path.name, "sha256": file.sha256, "form": file.form}
    configuration["digest"] = provenance["model"].get("digest")
    path = directory / CONFIGURATION
    try:
        content = parse_json(files.read_text(path)) if path.exists() else configuration
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error}): use another directory") from error
    if content is configuration and directory.is_dir() and any(directory.iterdir()):
        raise RunDirectoryError(f"{directory} holds other files: name a directory of its own")
    earlier = content if isinstance(content, dict) else {}
    if different := [key for key in ("rate", "digest", "sha256", "form") if earlier.get(key) != configuration[key]]:
        details = "; ".join(f"{key} {earlier.get(key)!r}, not {configuration[key]!r}" for key in different)
        raise RunDirectoryError(f"{directory} holds another rating ({details}): name another directory")
    store = RatingStore(directory / RATINGS, total, damages.of("rated answers"))
    calls = earlier.get("calls")
    calls = [*(calls if isinstance(calls, list) else []), provenance][-MAX_CALLS:]
    text = json.dumps({**configuration, "calls": calls}, indent=2, ensure_ascii=False)
    try:
        files.write_text(path, text + "\n")
    except OSError as error:
        store.close()
        raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error
    return store
