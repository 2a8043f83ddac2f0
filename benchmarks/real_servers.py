"""Start and stop servers in separate processes: llama.cpp with a GGUF file, by default the bundled language model, and
vLLM with the bundled models, as a generator and as a pooling runner.

Their packages are in separate environments, which `make test-servers` sets up: `.venv-llama-cpp`, `.venv-vllm`, or the
folders that MOTES_LLAMA_CPP_ENV and MOTES_VLLM_ENV name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from motes import bundled

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "servers"
LLAMA_CPP_ENV = "MOTES_LLAMA_CPP_ENV", ".venv-llama-cpp"
VLLM_ENV = "MOTES_VLLM_ENV", ".venv-vllm"
SMOLLM2 = "MOTES_SMOLLM2", "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

SLOTS = 16
"""Number of requests that llama.cpp computes at once."""


class ServerFailedError(Exception):
    """A server ended, or did not respond in time. The message has the end of its log."""


@dataclass(eq=False)
class Server:
    """A server on a free port of this machine, in its own process group, so that `stop` ends all of its processes.

    Args:
        name: the name of its log, `LOGS / f"{name}.log"`, which is kept.
        command: the words of its command; {port} stands for the port.
        environment: variables that are set in addition to the present ones.
        patience: number of seconds that it may take to respond.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = 300.0
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def start(self) -> None:
        """Start it, or start it again on the same port, and return at once."""
        self.port = self.port or _free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [word.replace("{port}", str(self.port)) for word in self.command],
                env={**os.environ, **self.environment},
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it responds.

        Raises:
            ServerFailedError: it has ended, or did not respond within `patience`.
        """
        assert self._process is not None, "start it first"
        deadline = time.monotonic() + self.patience
        while not self._is_healthy():
            if self._process.poll() is not None:
                raise ServerFailedError(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailedError(f"{self.name} does not answer after {self.patience:g} s:\n{self.tail()}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None, "start it first"
        return self._process.pid

    def end(self) -> int:
        """Terminate it, as `kill` does, and wait until it has ended. Returns its exit status."""
        assert self._process is not None, "start it first"
        self._process.terminate()
        return self._process.wait()

    def stop(self) -> None:
        """Kill it and its children, as `kill -9` does, and wait until they have ended. Does nothing if none runs."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) + f"\n(all of it: {self.log})"

    def __enter__(self) -> Self:
        self.log.unlink(missing_ok=True)
        try:
            self.start()
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.root}/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def llama_cpp(gguf: Path, slots: int = SLOTS, name: str = "llama-cpp", cache: str = "F16") -> Server:
    """llama.cpp's server with a GGUF file, whose keys and values are stored in the type `cache`."""
    serve = ROOT / "recipes" / "serve_llama_cpp.py"
    return Server(name, (python(*LLAMA_CPP_ENV), str(serve), str(gguf), "{port}", str(slots), cache), patience=60.0)


def to_gguf(target: Path) -> Path:
    """Convert the bundled language model to GGUF, the format of llama.cpp."""
    convert = ROOT / "recipes" / "to_gguf.py"
    command = [python(*LLAMA_CPP_ENV), str(convert), str(bundled.path("lm")), str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct, which `make setup-real` fetches.

    Raises:
        ServerFailedError: there is none.
    """
    variable, default = SMOLLM2
    path = ROOT / os.environ.get(variable, default)
    if not path.is_file():
        raise ServerFailedError(f"there is no {path}: `make setup-real` fetches it, or let {variable} name the file")
    return path


def vllm_generator() -> Server:
    """vLLM with the bundled language model, named tiny-lm."""
    return _vllm("vllm-generator", bundled.path("lm"), "--enable-prompt-tokens-details")


def vllm_pooling() -> Server:
    """vLLM with the bundled reward model, named tiny-prm."""
    folder = bundled.path("prm")
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    (tag,) = [token["id"] for token in added if token["content"] == "<extra_0>"]
    return _vllm("vllm-pooling", folder, "--runner", "pooling", "--pooler-config", json.dumps({"step_tag_id": tag}))


def _vllm(name: str, folder: Path, *options: str) -> Server:
    command = (
        *(python(*VLLM_ENV), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "{port}"),
        *("--model", str(folder), "--served-model-name", folder.name, "--dtype", "float32"),
        # Eager mode, since compiling would take minutes at each start. No chunked prefill, since the CPU build of vLLM
        # 0.32 crashes when it is used with seeds ("CPU Generator does not use offset").
        *("--enforce-eager", "--block-size", "32", "--no-enable-chunked-prefill", *options),
    )
    environment = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache, so that all measurements start with empty caches
        "HF_HUB_OFFLINE": "1",
    }
    return Server(name, command, environment)


def python(variable: str, folder: str) -> str:
    """The interpreter of a server's environment.

    Raises:
        ServerFailedError: there is none.
    """
    path = ROOT / os.environ.get(variable, folder) / "bin" / "python"
    if not path.exists():
        raise ServerFailedError(f"there is no {path}: `make test-servers` sets it up, or let {variable} name a folder")
    return str(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
