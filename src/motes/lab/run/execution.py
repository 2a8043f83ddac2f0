"""Carry out an evaluation: every run that has no record yet, many at once, each recorded as it ends."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from motes import __version__, files
from motes.arguments import fit
from motes.concurrency import gather
from motes.core import Usage
from motes.errors import ConfigurationError, RunDirectoryError
from motes.lab.run.damage import Damages
from motes.lab.run.evaluation import LOG, RECORDS, TRACES, Evaluation, Shard
from motes.lab.run.provenance import Call, sign
from motes.lab.run.records import Outcome, RecordStore, RunRecord
from motes.lab.run.traces import TraceStore
from motes.lab.run.worker import Elsewhere, Local, Worker
from motes.protocols import LanguageModel, RewardModel
from motes.threads import in_thread


@dataclass
class Progress:
    """How far an evaluation is. Failed runs are done, and count as not right, here as in reports.

    Attributes:
        total: runs asked for; `resumed`: of these, recorded by earlier calls; `done`: recorded by now.
        outcomes: number of records by outcome, `resumed` ones included.
        cells: for each (method, budget): runs done, and right ones.
        usage: spent by this call.
        damages: records of earlier calls that could not be read; their runs are done again.
    """

    total: int
    resumed: int = 0
    done: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    cells: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    damages: Damages = field(default_factory=Damages)

    @property
    def accuracy(self) -> float:
        """Share of right answers among the runs done; NaN before there is one."""
        return self.outcomes.get("correct", 0) / self.done if self.done else float("nan")

    @property
    def failed(self) -> int:
        return self.outcomes.get("failed", 0)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in sorted(self.outcomes.items()))
        return (
            f"{self.done} of {self.total} runs ({counts}), {self.usage.computed_tokens:,} tokens computed by this call"
        )

    def _count(self, record: RunRecord) -> None:
        self.done += 1
        self.outcomes[record.outcome] = self.outcomes.get(record.outcome, 0) + 1
        runs, right = self.cells.get((record.method, record.budget), (0, 0))
        self.cells[record.method, record.budget] = runs + 1, right + (record.outcome == "correct")


async def evaluate(
    evaluation: Evaluation,
    directory: Path,
    *,
    lm: LanguageModel | None = None,
    reward: RewardModel | None = None,
    outcome_reward: RewardModel | None = None,
    concurrency: int = 64,
    shard: Shard | None = None,
    traces: bool = True,
    on: Elsewhere | None = None,
    command: str | None = None,
    observe: Callable[[Progress], None] | None = None,
) -> Progress:
    """Do every run of an evaluation that `directory` does not hold yet, or holds as failed.

    The directory then holds the configuration, a record and, if wanted, a trace of each run, what this call did them
    with (`motes.lab.run.provenance`), and a log.

    Cancelling it, or killing the process, leaves a directory that the same call resumes: nothing that was recorded is
    lost or done again.

    Args:
        directory: made if missing.
        lm, reward, outcome_reward: the models; by default opened by the names the evaluation gives.
        concurrency: runs in flight; with `on`, on each worker. They share the models, so that batches stay full.
        shard: only this part of the problems, in a directory of its own; `motes.lab.merge` puts the parts together.
        traces: keep what happened inside each run as well, see `motes.lab.run.traces`.
        on: where to solve, such as `motes.lab.run.on_ray.Ray()`; by default in this process. There models are opened by
            name, so that none can be given. What is recorded is the same, and this process alone writes it.
        command: what a person typed to have this done, for the provenance; keys in it are hidden. None: nothing.
        observe: called before the first run and after each; must not block.

    Returns:
        the progress at the end. Runs that failed are counted in `failed`.

    Raises:
        ConfigurationError: a method cannot work with these settings, which is known before the first run; or nothing
            works with them, see `REFUSED`. What is recorded stays.
        RunDirectoryError: the directory belongs to another evaluation or process, or cannot be written.
    """
    if fit("concurrency", concurrency, int) < 1:
        raise ConfigurationError(f"concurrency must be at least 1, not {concurrency}")
    if on is not None and (lm, reward, outcome_reward) != (None, None, None):
        raise ConfigurationError("workers elsewhere open their models themselves: name them in the evaluation")
    evaluation.check(directory)
    async with contextlib.AsyncExitStack() as stack:
        worker: Worker
        if on is None:
            open_local = partial(Local.open, concurrency=concurrency, traces=traces)
            worker = await in_thread(open_local, evaluation, lm, reward, outcome_reward)
        else:
            worker = await stack.enter_async_context(on.open(evaluation, concurrency=concurrency, traces=traces))
        damages = Damages()
        store = stack.enter_context(await in_thread(RecordStore, directory / RECORDS, damages.of("records")))
        evaluation.claim(directory)
        worker.check()
        worker.sizes.record(directory)
        inside = stack.enter_context(TraceStore(directory / TRACES)) if traces else None
        log = stack.enter_context(run_log(directory))
        plan = await in_thread(evaluation.plan, shard)
        progress = Progress(total=len(plan), damages=damages)
        wanted = {run.key for run in plan}
        finished = set()
        for record in store.records:
            if record.key in wanted and record.outcome != "failed":
                finished.add(record.key)
                progress._count(record)
        progress.resumed = progress.done
        part = "" if shard is None else f", shard {shard}"
        log.info("motes %s: %d runs%s, %d of them done before", __version__, len(plan), part, progress.resumed)
        for line in damages.lines():
            log.warning("%s: what it was of is done again", line)
        if observe is not None:
            observe(progress)
        left = [run for run in plan if run.key not in finished]
        if left:
            begin = partial(
                Call.begin,
                evaluation,
                await worker.made(),
                command=command,
                runs_before=len(store.records),
                shard=shard,
                concurrency=concurrency,
                on=None if on is None else type(on).__name__,
            )
            for line in await in_thread(sign, directory, begin):
                log.warning("%s", line)
        pending = iter(left)
        refusals = _Refusals(len({run.key[0] for run in left}), begun=progress.resumed > 0)

        async def work() -> None:
            for run in pending:  # shared by all
                record, trace, failure, refused = await worker.solve(run)
                if inside is not None and trace is not None:
                    inside.write(trace)
                store.append(record)
                if failure is not None:
                    log.error("%s %s %d, seed %d, failed\n%s", *run.key, failure)
                elif record.error is not None:
                    log.warning("%s %s %d, seed %d: %s", *run.key, record.error)
                progress._count(record)
                progress.usage += record.usage
                if observe is not None:
                    observe(progress)
                refusals.add(record, refused)

        try:
            await gather(work() for _ in range(min(worker.concurrency, len(left))))
        except BaseException as error:
            log.error("stopped after %s: %s", progress, repr(error))
            raise
        log.info("done: %s", progress)
    return progress


REFUSED = 32
"""Where the runs of so many problems, or of all, are refused as impossible and nothing else has happened, the settings
are wrong, not the problems."""


class _Refusals:
    """Tells wrong problems, whose runs fail, from wrong settings, which end the evaluation.

    Args:
        problems: that there are runs of.
        begun: whether some run has worked already.
    """

    def __init__(self, problems: int, *, begun: bool) -> None:
        self._most = min(REFUSED, problems)
        self._begun = begun or problems < 2
        self._problems: set[str] = set()

    def add(self, record: RunRecord, refused: str | None) -> None:
        """Take note of how a run ended.

        Raises:
            ConfigurationError: nothing works.
        """
        self._begun = self._begun or refused is None
        self._problems.add(record.problem_id)
        if not self._begun and len(self._problems) == self._most:
            raise ConfigurationError(f"not one run worked, of {self._most} problems; the last: {refused}")


@contextlib.contextmanager
def run_log(directory: Path) -> Iterator[logging.Logger]:
    """A logger that writes to the log of an evaluation's directory, as do warnings of all of motes meanwhile, also
    where the program as a whole asks for less.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        file = os.fdopen(files.open_to_append(directory / LOG), "a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunDirectoryError(f"{directory / LOG} cannot be written: {error.strerror}") from error
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is the records' to report
    log = logging.Logger(__name__)
    log.addHandler(handler)
    all_of_motes = logging.getLogger("motes")
    all_of_motes.addHandler(handler)
    level = all_of_motes.level
    all_of_motes.setLevel(min(all_of_motes.getEffectiveLevel(), logging.WARNING))
    try:
        yield log
    finally:
        all_of_motes.setLevel(level)
        all_of_motes.removeHandler(handler)
        handler.close()
        with contextlib.suppress(OSError):  # a full disk, again
            file.close()
