"""Real servers, each started when a test first wants it and killed at the end, also at Ctrl-C and `kill`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import real_servers
from real_servers import Server

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_servers.to_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def llama_cpp(gguf: Path) -> Iterator[Server]:
    with real_servers.llama_cpp(gguf) as server:
        yield server


@pytest.fixture(scope="session")
def generator() -> Iterator[Server]:
    with real_servers.vllm_generator() as server:
        yield server


@pytest.fixture(scope="session")
def pooling() -> Iterator[Server]:
    with real_servers.vllm_pooling() as server:
        yield server
