"""Evaluations on a Ray cluster: actors open the models and carry out runs; this process plans and records them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from motes import __version__
from motes.concurrency import gather
from motes.core import Result
from motes.errors import ConfigurationError, EngineError, MissingExtraError, MotesError
from motes.lab.run.calls import Setup
from motes.lab.run.evaluation import Evaluation, PlannedRun
from motes.lab.run.flops import Sizes
from motes.lab.run.worker import FinishedRun, Local, Worker, make_record
from motes.threads import in_thread

try:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RaySystemError, WorkerCrashedError
except ImportError as error:
    raise MissingExtraError("an evaluation on Ray", "ray") from error

ATTEMPTS = 3
"""A run fails when this many workers have died during it: a run that kills workers must not be retried for ever. A
place is given up when this many workers in a row have died there before their models were open."""

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ray:
    """Carry out runs on a Ray cluster: `evaluate(..., on=Ray())`. Each worker is an actor with the evaluation's models.

    If a worker dies, its runs go to other workers, and a new worker takes its place. As only the caller writes records,
    and a run's seed depends on its name alone, no run is lost or recorded twice. The names in the evaluation must mean
    the same on every node: files and modules at the same place, motes of the same version.

    Args:
        address: address of a running cluster, such as "HOST:6379" or "ray://HOST:10001"; None: the cluster that
            RAY_ADDRESS names or that this machine runs; if there is none, a cluster is started here and stopped at the
            end. A cluster that the process has joined already is used as it is.
        workers: number of workers; by default one for each GPU of the cluster (or share of one), without GPUs one for
            each node.
        gpus: GPUs of a worker, may be a fraction; by default 1 if the cluster has GPUs and the workers open a model
            ("tiny" or "hf:…"), otherwise 0, as models on servers need none.

    Raises:
        ConfigurationError: a number cannot work.
        MissingExtraError: Ray is not installed (extra `ray`); raised when this module is imported.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigurationError(f"workers must be at least 1, not {self.workers}")
        if self.gpus is not None and not self.gpus >= 0:
            raise ConfigurationError(f"GPUs of a worker cannot be {self.gpus}")

    @contextlib.asynccontextmanager
    async def open(self, evaluation: Evaluation, *, concurrency: int, traces: bool) -> AsyncIterator[Worker]:
        """All workers as one, as soon as one of them has opened its models.

        Raises:
            ConfigurationError: there is no such cluster, or the models cannot be opened.
            EngineError: workers die as soon as they start.
        """
        with _cluster(self.address):
            resources = ray.cluster_resources()
            gpus = self.gpus
            if gpus is None:
                gpus = float(resources.get("GPU", 0) > 0 and _opens_models(evaluation))
            number = self.workers or _places(resources, gpus)
            if number > resources.get("CPU", 0) or number * gpus > resources.get("GPU", 0):
                total = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
                log.warning(
                    "%d workers on Ray need a CPU and %g GPUs each, of %s: some may have to wait", number, gpus, total
                )
            actor = ray.remote(_Actor).options(
                num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD", max_concurrency=concurrency + 1
            )
            crew = _Crew(evaluation, number * concurrency)
            try:
                async with asyncio.TaskGroup() as places:
                    arguments = evaluation, concurrency, traces, __version__, (*sys.path, os.getcwd())
                    tasks = [places.create_task(crew.place(actor, arguments)) for _ in range(number)]
                    await crew.opened
                    yield crew
                    for task in tasks:
                        task.cancel()
            except BaseExceptionGroup as errors:  # the first error, of a place or of the caller, ended everything
                raise errors.exceptions[0]  # noqa: B904


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Join a cluster, and leave it in the end, unless the process had joined one before."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RaySystemError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"no Ray cluster at {address!r}: `ray start --head` starts one ({reason})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _opens_models(evaluation: Evaluation) -> bool:
    """Whether a model computes in the worker's process; False for a user's own model, of which that is unknown."""
    names = filter(None, (evaluation.lm, evaluation.reward, evaluation.outcome_reward))
    return any(re.match(r"(judge:)?(tiny$|tiny\?|hf:)", name) for name in names)


def _places(resources: dict[str, float], gpus: float) -> int:
    if gpus:
        return max(1, int(resources.get("GPU", 0) / gpus))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, len([node for node in nodes if node.get("CPU", 0) >= 1]))


class _Actor:
    """A worker's process. It returns the texts of motes's own errors, as errors may not survive the transfer."""

    async def open(
        self, evaluation: Evaluation, concurrency: int, traces: bool, version: str, paths: tuple[str, ...]
    ) -> tuple[tuple[Sizes, Setup] | None, str | None]:
        """The sizes of the models and the worker's setup, or else the reason why the models cannot be opened."""
        sys.path += [path for path in paths if path not in sys.path]
        if version != __version__:
            return None, f"a node of the cluster has motes {__version__}, not {version}: install one everywhere"
        open_models = partial(Local.open, evaluation, concurrency=concurrency, traces=traces)
        try:
            self._local = await asyncio.to_thread(open_models)
            self._local.check()
        except MotesError as error:
            return None, str(error)
        return (self._local.sizes, await self._local.setup()), None

    async def solve(self, run: PlannedRun) -> FinishedRun | str:
        """The result of `Local.solve`, or the text of an error that ends the evaluation."""
        try:
            return await self._local.solve(run)
        except MotesError as error:
            return str(error)


@dataclass
class _Job:
    """A run that waits for a worker or is being carried out, and the number of workers that died during it."""

    run: PlannedRun
    future: asyncio.Future[FinishedRun]
    deaths: int = 0

    def resolve(self, finished: FinishedRun) -> None:
        if not self.future.cancelled():
            self.future.set_result(finished)


class _Crew:
    """All workers as one."""

    def __init__(self, evaluation: Evaluation, concurrency: int) -> None:
        self.concurrency = concurrency
        self._evaluation = evaluation
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._places = 0
        self.opened: asyncio.Future[tuple[Sizes, Setup]] = asyncio.get_running_loop().create_future()

    @property
    def sizes(self) -> Sizes:
        return self.opened.result()[0]

    async def setup(self) -> Setup:
        """The setup of the first worker."""
        return self.opened.result()[1]

    def check(self) -> None:
        """Nothing to do: every worker checks after opening its models."""

    async def solve(self, run: PlannedRun) -> FinishedRun:
        job = _Job(run, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.future

    async def place(self, actor: Any, arguments: tuple[Any, ...]) -> None:
        """Keep a worker at work, and replace it when it dies."""
        self._places += 1
        deaths = 0

        async def work(worker: Any) -> None:
            while True:
                job = await self._jobs.get()
                try:
                    result = await worker.solve.remote(job.run)
                except BaseException as error:  # a worker's death fails one of its runs and cancels the others
                    await self._retry(job, error)
                    raise
                if isinstance(result, str):
                    raise ConfigurationError(result)
                job.resolve(result)

        while True:
            worker = actor.remote()
            try:
                opened, problem = await worker.open.remote(*arguments)
                if problem is not None:
                    raise ConfigurationError(problem)
                deaths = 0
                if not self.opened.done():
                    self.opened.set_result(opened)
                await gather(work(worker) for _ in range(arguments[1]))
            except DEATHS as error:
                deaths += 1
                reason = " ".join(str(error).partition("Some common causes")[0].split())
                log.warning("a worker on Ray died: %s", reason)
                if deaths == ATTEMPTS:
                    self._places -= 1
                    if self._places:
                        return
                    raise EngineError(f"no worker on Ray lives: {reason}") from error
            except RaySystemError as error:
                raise EngineError(f"the Ray cluster is gone: {error}") from error
            finally:
                ray.kill(worker)

    async def _retry(self, job: _Job, error: BaseException) -> None:
        """Give a run whose worker died to another worker, or fail it after `ATTEMPTS` deaths."""
        job.deaths += 1
        if job.deaths < ATTEMPTS:
            self._jobs.put_nowait(job)
            return
        failure = EngineError(f"{ATTEMPTS} workers on Ray died while they were at this run, one of them: {error}")
        result = Result(job.run.problem, job.run.method, job.run.run_seed)
        record = await in_thread(make_record, job.run, self._evaluation.opened, result, failure)
        job.resolve(FinishedRun(record, traceback=str(failure)))
