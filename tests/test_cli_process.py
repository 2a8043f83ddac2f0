"""The command line as a process: light imports, and evaluations that are killed or interrupted half-way.

The fake language model stops answering after a number of calls, so a process can be killed at a known place: nothing
here waits on a clock, except to give up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from costs import without_company
from motes.lab import read_records

HERE = Path(__file__).parent
ASK = [
    "eval", "--methods", "pf,bon,greedy", "--budgets", "1,4", "--limit", "12", "--concurrency", "4",
    "--model", "worlds:language_model", "--reward", "worlds:reward_model",
]  # fmt: skip
TOTAL = 12 * 5
# SIGINT may be ignored where the tests themselves run in the background; a process inherits that
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from motes.cli import main
sys.exit(main())
"""


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", START, *map(str, words)]


@contextmanager
def half_done(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """An evaluation in a process of its own that has recorded something and will never finish."""
    environment = {**os.environ, "MOTES_WORLD_BLOCKS_AFTER": "150"}
    process = subprocess.Popen(
        command(*ASK, "--out", directory), cwd=HERE, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    records = directory / "records.jsonl"
    deadline = time.monotonic() + 60
    try:
        while not (records.exists() and records.read_bytes().count(b"\n") >= 8):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the evaluation recorded nothing"
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def results(directory: Path) -> dict:
    records = read_records(directory / "records.jsonl")
    return {record.key: without_company(record) for record in records}


def resume(directory: Path) -> None:
    """Finish it, and check that nothing was lost and nothing done twice."""
    records = directory / "records.jsonl"
    before = records.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    done = subprocess.run(command(*ASK, "--out", directory), cwd=HERE, text=True, capture_output=True, check=True)
    assert f"{whole.count(10)}/{TOTAL} runs" in done.stderr
    assert records.read_bytes().startswith(whole)
    assert records.read_bytes().count(b"\n") == len(results(directory)) == TOTAL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    directory = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(*ASK, "--out", directory), cwd=HERE, check=True, capture_output=True)
    return results(directory)


def test_kill_9_half_way_loses_nothing_and_repeats_nothing(tmp_path, uninterrupted):
    with half_done(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"problem_id": "arithmetic/test/1-0')  # as if killed while writing
    resume(tmp_path)
    assert results(tmp_path) == uninterrupted


def test_ctrl_c_leaves_a_directory_that_can_be_resumed(tmp_path, uninterrupted):
    with half_done(tmp_path) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"motes: interrupted; finished work is in {tmp_path}")
    assert "motes eval --methods pf,bon,greedy" in line
    assert "Traceback" not in err
    resume(tmp_path)
    assert results(tmp_path) == uninterrupted


def test_a_second_process_is_refused(tmp_path):
    with half_done(tmp_path):
        second = subprocess.run(command(*ASK, "--out", tmp_path), cwd=HERE, text=True, capture_output=True)
    assert second.returncode == 2
    assert "another evaluation is writing" in second.stderr
    assert second.stderr.count("\n") == 1


def test_help_loads_neither_torch_nor_matplotlib():
    heavy = ("torch", "transformers", "tokenizers", "safetensors", "matplotlib", "scipy", "fastapi")
    code = f"import sys; from motes.cli import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_module_entry_point():
    done = subprocess.run([sys.executable, "-m", "motes", "--version"], text=True, capture_output=True, check=True)
    assert done.stdout.startswith("motes ")
