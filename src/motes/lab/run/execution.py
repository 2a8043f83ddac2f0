"""Carry out an evaluation: all runs without a record, many at once, each recorded as it ends."""

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
from motes.errors import ConfigurationError
from motes.lab.run.appending import writing
from motes.lab.run.calls import Call, read_calls, write_calls
from motes.lab.run.damage import Damages
from motes.lab.run.evaluation import LOG, RECORDS, TRACES, Evaluation, Shard
from motes.lab.run.provenance import Provenance
from motes.lab.run.records import Outcome, RecordStore, RunRecord
from motes.lab.run.traces import TraceStore
from motes.lab.run.worker import Backend, Local, Worker
from motes.protocols import LanguageModel, RewardModel
from motes.threads import in_thread


@dataclass
class Progress:
    """The progress of an evaluation. Failed runs count as done and as not right, here as in reports.

    Attributes:
        total: number of planned runs.
        resumed: number of planned runs that earlier calls recorded.
        done: number of planned runs that are recorded now.
        outcomes: number of records by outcome, those of earlier calls included.
        cells: for each (method, budget), the number of runs done and of right ones.
        usage: the tokens of this call.
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
        """Share of right answers among the runs done; NaN while there are none."""
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
    on: Backend | None = None,
    command: str | None = None,
    observe: Callable[[Progress], None] | None = None,
) -> Progress:
    """Do all runs of an evaluation that have no record in `directory`, or a failed one.

    Afterwards the directory holds the configuration, a record and, if wanted, a trace of each run, the provenance of
    this call (`motes.lab.run.provenance`), and a log.

    If the call is cancelled or the process is killed, the same call resumes the evaluation: no record is lost, and no
    recorded run is done again.

    Args:
        directory: the evaluation's directory, created if missing.
        lm, reward, outcome_reward: the models; by default each is opened by its name in the evaluation.
        concurrency: runs in flight; with `on`, on each worker. They share the models, so that batches stay full.
        shard: do only this part of the problems, in a directory of its own; `motes.lab.merge` combines the parts.
        traces: also write a trace of each run, see `motes.lab.run.traces`.
        on: where runs are carried out, such as `motes.lab.run.on_ray.Ray()`; by default in this process. Other places
            open models by name, so none can be given. The records are the same, and only this process writes them.
        command: the command that a person typed, for the provenance; keys in it are hidden. None: no command.
        observe: called before the first run and after each; must not block.

    Returns:
        the progress at the end; its `failed` counts failed runs.

    Raises:
        ConfigurationError: a method cannot work with these settings (raised before the first run), or no run works
            with them, see `REFUSED`. Records stay.
        RunDirectoryError: the directory belongs to another evaluation or process, or cannot be written.
    """
    if fit("concurrency", concurrency, int) < 1:
        raise ConfigurationError(f"concurrency must be at least 1, not {concurrency}")
    if on is not None and (lm, reward, outcome_reward) != (None, None, None):
        raise ConfigurationError("workers elsewhere open their models themselves: name them in the evaluation")
    evaluation.check(directory)
    async with contextlib.AsyncExitStack() as stack:
        # 1. Open the models and the directory.
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
        trace_store = stack.enter_context(TraceStore(directory / TRACES)) if traces else None
        log = stack.enter_context(run_log(directory))
        # 2. Count the runs that earlier calls finished.
        plan = await in_thread(evaluation.plan, shard)
        progress = Progress(total=len(plan), damages=damages)
        planned = {run.key for run in plan}
        finished = set()
        for record in store.records:
            if record.key in planned and record.outcome != "failed":
                finished.add(record.key)
                progress._count(record)
        progress.resumed = progress.done
        part = "" if shard is None else f", shard {shard}"
        log.info("motes %s: %d runs%s, %d of them done before", __version__, len(plan), part, progress.resumed)
        for line in damages.lines():
            log.warning("%s; the runs are done again", line)
        if observe is not None:
            observe(progress)
        # 3. Record the provenance of this call, if it has runs to do.
        remaining = [run for run in plan if run.key not in finished]
        if remaining:
            setup = await worker.setup()
            place = None if on is None else type(on).__name__
            settings = {"concurrency": concurrency, "on": place, "shard": None if shard is None else str(shard)}

            def record_call() -> list[str]:
                before = len(store.records)
                call = Call.begin(evaluation, setup, command=command, runs_before=before, **settings)
                write_calls(directory, [call])
                return Provenance(calls=tuple(read_calls(directory, lambda damage: None))).warnings()

            for line in await in_thread(record_call):
                log.warning("%s", line)
        # 4. Carry out the runs.
        pending = iter(remaining)
        limit = min(REFUSED, len({run.key[0] for run in remaining}))
        any_worked = progress.resumed > 0 or limit < 2
        refused: set[str] = set()

        async def work() -> None:
            nonlocal any_worked
            for run in pending:  # an iterator that all tasks share
                record, trace, traceback, refusal = await worker.solve(run)
                if trace_store is not None and trace is not None:
                    trace_store.write(trace)
                store.append(record)
                if traceback is not None:
                    log.error("%s %s %d, seed %d, failed\n%s", *run.key, traceback)
                elif record.error is not None:
                    log.warning("%s %s %d, seed %d: %s", *run.key, record.error)
                progress._count(record)
                progress.usage += record.usage
                if observe is not None:
                    observe(progress)
                any_worked = any_worked or refusal is None
                refused.add(record.problem_id)
                if not any_worked and len(refused) == limit:
                    raise ConfigurationError(f"not one run worked, of {limit} problems; the last: {refusal}")

        try:
            await gather(work() for _ in range(min(worker.concurrency, len(remaining))))
        except BaseException as error:
            log.error("stopped after %s: %s", progress, repr(error))
            raise
        log.info("done: %s", progress)
    return progress


REFUSED = 32
"""If no run worked, of so many problems (or of all), the settings are wrong, not the problems: the evaluation ends."""


@contextlib.contextmanager
def run_log(directory: Path) -> Iterator[logging.Logger]:
    """A logger that writes to the log in an evaluation's directory, or a RunDirectoryError. All of motes's warnings are
    written there, too, even if the program sets a higher log level."""
    with writing(directory / LOG):
        file = os.fdopen(files.open_to_append(directory / LOG), "a", encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk: the record store reports it
    log = logging.Logger(__name__)
    log.addHandler(handler)
    root = logging.getLogger("motes")
    root.addHandler(handler)
    level = root.level
    root.setLevel(min(root.getEffectiveLevel(), logging.WARNING))
    try:
        yield log
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
        with contextlib.suppress(OSError):  # a full disk, again
            file.close()
