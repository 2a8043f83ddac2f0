"""Evaluations on a real Ray cluster of this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

import worlds
from costs import without_company
from motes.cli import main
from motes.errors import ConfigurationError, EngineError
from motes.lab import Evaluation, Progress, RunRecord, evaluate, read_records, read_traces
from motes.lab.run.evaluation import LOG, RECORDS, TRACES

ray = pytest.importorskip("ray")
from motes.lab.run.on_ray import Ray  # noqa: E402

SMALL = Evaluation(
    methods=("pf", "bon"), budgets=(2, 4), limit=12, lm="worlds:language_model", reward="worlds:reward_model"
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests, as starting it takes several seconds."""
    ray.init("local", num_cpus=2, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


def run(directory: Path, evaluation: Evaluation = SMALL, **options) -> Progress:
    return asyncio.run(evaluate(evaluation, directory, **options))


def told(directory: Path) -> dict[object, RunRecord]:
    """The records by key, less what depends on the machine."""
    records = list(read_records(directory / RECORDS))
    assert len({record.key for record in records}) == len(records)
    return {record.key: without_company(record) for record in records}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("here")
    run(directory)
    return directory


def test_records_and_traces_are_those_of_one_process(here, tmp_path):
    progress = run(tmp_path, on=Ray(workers=2), concurrency=3)
    assert (progress.done, progress.failed) == (48, 0)
    assert told(tmp_path) == told(here)
    assert {t.key: t for t in read_traces(tmp_path / TRACES)} == {t.key: t for t in read_traces(here / TRACES)}


class StuckLanguageModel(worlds.StoryLanguageModel):
    """Stops answering after its fifth call, and gives the lock on a file back when it does."""

    def __init__(self, lock: IO[str]) -> None:
        super().__init__(blocks_after=5)
        self._lock = lock

    async def extend(self, trajectories, sampling, seeds):
        if self.calls == self.blocks_after:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        return await super().extend(trajectories, sampling, seeds)


def one_stuck(at: str) -> worlds.StoryLanguageModel:
    """The language model, in the first process that opens it one that gets stuck: until then no other one opens."""
    file = open(at, "a+")  # noqa: SIM115  (open as long as the process)
    fcntl.flock(file, fcntl.LOCK_EX)
    if os.fstat(file.fileno()).st_size:
        fcntl.flock(file, fcntl.LOCK_UN)
        return worlds.StoryLanguageModel()
    file.write(str(os.getpid()))
    file.flush()
    return StuckLanguageModel(file)


def test_a_killed_worker_loses_nothing_and_does_nothing_twice(here, tmp_path):
    """One that has finished some runs and is stuck in two others, when nothing but these is left."""
    stuck, killed = tmp_path / "stuck", []

    def kill(progress: Progress) -> None:
        if progress.done == progress.total - 2 and not killed:
            killed.append(int(stuck.read_text()))
            os.kill(killed[0], signal.SIGKILL)

    evaluation = dataclasses.replace(SMALL, lm=f"test_on_ray:one_stuck?at={stuck}")
    directory = tmp_path / "out"
    progress = run(directory, evaluation, on=Ray(workers=2), concurrency=2, observe=kill)
    assert (progress.done, progress.failed, len(killed)) == (48, 0, 1)
    assert told(directory) == told(here)
    assert "a worker on Ray died" in (directory / LOG).read_text()


def deadly(at: str) -> worlds.StoryLanguageModel:
    """Kills its process at the sight of one problem."""

    class Deadly(worlds.StoryLanguageModel):
        async def extend(self, trajectories, sampling, seeds):
            if trajectories[0].problem.id == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return await super().extend(trajectories, sampling, seeds)

    return Deadly()


def test_a_run_that_kills_its_workers_fails_in_the_end(here, tmp_path):
    poison = SMALL.problems()[1].id
    evaluation = dataclasses.replace(
        SMALL, methods=("bon",), budgets=(2,), limit=3, lm=f"test_on_ray:deadly?at={poison}"
    )
    progress = run(tmp_path, evaluation, on=Ray(workers=1), concurrency=1)
    records, expected = told(tmp_path), told(here)
    assert (progress.done, progress.failed) == (3, 1)
    for key, record in records.items():
        if key[0] == poison:
            assert (record.outcome, record.text) == ("failed", "")
            assert record.error.startswith("EngineError: 3 workers on Ray died while they were at this run")
        else:
            assert record == expected[key]


def test_workers_that_cannot_open_their_models_end_it(tmp_path):
    with pytest.raises(ConfigurationError, match="no_such_module"):
        run(tmp_path, dataclasses.replace(SMALL, lm="no_such_module:model"), on=Ray(workers=2))
    assert not (tmp_path / RECORDS).exists()


def dead() -> worlds.StoryLanguageModel:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_die_at_once_end_it(tmp_path):
    with pytest.raises(EngineError, match="no worker on Ray lives"):
        run(tmp_path, dataclasses.replace(SMALL, lm="test_on_ray:dead"), on=Ray(workers=1))
    assert not (tmp_path / RECORDS).exists()


def test_models_are_named_not_given(tmp_path):
    with pytest.raises(ConfigurationError, match="name them in the evaluation"):
        run(tmp_path, lm=worlds.language_model(), on=Ray())


@pytest.mark.parametrize(("options", "message"), [({"workers": 0}, "at least 1"), ({"gpus": -1.0}, "GPUs of a worker")])
def test_numbers_that_cannot_work(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Ray(**options)


def test_on_the_command_line(here, tmp_path, capsys):
    out = tmp_path / "out"
    models = ["--model", SMALL.lm, "--reward", SMALL.reward]
    plan = ["--methods", "pf,bon", "--budgets", "2,4", "--limit", "12", "--concurrency", "4"]
    assert main(["eval", *models, *plan, "--ray", "--workers", "2", "--out", str(out)]) == 0
    assert told(out) == told(here)
    assert "48 runs in" in capsys.readouterr().out
    assert main(["eval", *models, *plan, "--workers", "2", "--out", str(out)]) == 2
    assert "go with --ray" in capsys.readouterr().err
