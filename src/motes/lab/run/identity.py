"""The identities of models, code, problems and machine, which distinguish things that have the same name.

A name may later stand for something else: a folder gets other weights, a server another model, a function another
body. So files on this machine are identified by a digest, and a server by its own statements:

    a local model       SHA-256 of its weights, of its configuration and of its tokenizer, each over the files' names
                        and contents; its dtype, its device and the hub's revision
    a served model      the server's engine and version, the model's name there, and what it was loaded from
    a user's own code   MODULE:NAME and the SHA-256 of the file that holds it
    a task              the SHA-256 of its problems: ids, conversations, reference answers

Names of files are recorded without their folders. Nothing from the environment is recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import motes
from motes import files
from motes.core import Problem
from motes.rewards.calibration import CalibratedReward
from motes.rewards.confidence import ConfidenceReward
from motes.rewards.function import FunctionReward
from motes.rewards.judge import Judge
from motes.rewards.mapped import MappedReward
from motes.rewards.mixture import MixedReward
from motes.rewards.probe import ProbeReward
from motes.text import json_line, parse_json

Identity = dict[str, Any]
"""Texts, numbers, and identities of parts, by name."""

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "math-verify", "sympy", "httpx2", "ray")
"""Packages on whose versions results may depend."""


def of_model(model: object) -> Identity:
    """The identity of a language model or a reward model. Reads files: not for the event loop."""
    for module, name, identify in (
        ("motes.kv.engine", "Engine", _of_local),
        ("motes.models.served.model", "HTTPLanguageModel", lambda model: _of_server(model.capabilities)),
        ("motes.rewards.served.model", "ServedPRM", lambda model: _of_server(model.server)),
    ):
        cls = getattr(sys.modules.get(module), name, None)  # while its module is not loaded, nothing is of that class
        if cls is not None and isinstance(model, cls):
            return {part: value for part, value in identify(model).items() if value is not None}
    if isinstance(model, Judge):
        rubric = digest_of([getattr(model.rubric, field.name) for field in dataclasses.fields(model.rubric)])
        fields = {"rubric": model.rubric.name, "rubric_digest": rubric, "num_verdicts": model.num_verdicts}
        return {"kind": "judge", **fields, "seed": model.seed, "of": of_model(model.lm)}
    if isinstance(model, CalibratedReward):
        fitted = model.calibration
        calibration = digest_of([fitted.scores, fitted.probabilities, fitted.slope])
        return {"kind": "calibrated", "calibration": calibration, "of": of_model(model.reward)}
    if isinstance(model, MixedReward):
        mixture = digest_of([model.mixture.weights, model.mixture.bias])
        members = {str(number): of_model(member) for number, member in enumerate(model.rewards, start=1)}
        return {"kind": "mixed", "mixture": mixture, "of": members}
    if isinstance(model, ConfidenceReward):
        fields = {"measure": model.measure, "window": model.window, "top_logprobs": model.top_logprobs}
        return {"kind": "confidence", **fields}
    if isinstance(model, ProbeReward):
        reader = {} if model.reader is None else {"reader": of_model(model.reader)}
        return {"kind": "probe", "probe": model.probe.digest, **reader}
    if isinstance(model, FunctionReward):
        return {"kind": "function", **of_code(model.fn), "outcome": model.outcome}
    own: Identity = {"kind": "own", **of_code(type(model) if not inspect.isroutine(model) else model)}
    if dataclasses.is_dataclass(model):
        settings = {field.name: getattr(model, field.name, None) for field in dataclasses.fields(model)}
        own |= {name: value for name, value in settings.items() if type(value) in (bool, int, float, str)}
    return {**own, "of": of_model(model.reward)} if isinstance(model, MappedReward) else own


def _of_local(model: Any) -> Identity:
    fields = {"kind": "local", "dtype": model.dtype, "device": model.device, "revision": model.revision}
    return fields | of_checkpoint(model.origin, model.revision)


def _of_server(server: Any) -> Identity:
    fields = {"kind": "served", "engine": server.engine, "version": server.version}
    names = {"model": _without_home(server.model), "root": _without_home(server.origin)}
    return fields | names | {"context_length": server.context_length}


def _without_home(path: str | None) -> str | None:
    """A path on a server, without the name of the user whose home it is in."""
    return None if path is None else re.sub(r"^(/home/|/Users/|[A-Z]:\\Users\\)[^/\\]+|^/root(?=/)", "~", path)


WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
TOKENIZER = re.compile(r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|\.(model|tiktoken|jinja)$")
LARGE = 64 << 20
"""The digests of files with at least this many bytes are cached on disk."""


def of_checkpoint(origin: str, revision: str | None = None) -> Identity:
    """The digests of a checkpoint: of its weights, its configuration, its tokenizer, and of these together. `origin` is
    a folder or file, or a name on the hub, whose files are looked up in the hub's cache."""
    root = _find_checkpoint(origin, revision)
    if root is None:
        return {}
    paths = [root] if root.is_file() else sorted(path for path in root.iterdir() if path.is_file())
    if any(path.suffix == ".safetensors" for path in paths):  # of several formats, this one is loaded
        paths = [path for path in paths if path.suffix not in WEIGHTS or path.suffix == ".safetensors"]
    parts: dict[str, list[Path]] = {"weights": [], "config": [], "tokenizer": []}
    for path in paths:
        if path.suffix in WEIGHTS:
            parts["weights"].append(path)
        elif TOKENIZER.search(path.name):
            parts["tokenizer"].append(path)
        elif path.suffix == ".json":
            parts["config"].append(path)
    try:
        digests = {part: digest_of([[path.name, file_digest(path)] for path in paths]) for part, paths in parts.items()}
    except OSError:
        return {}
    return {"digest": digest_of(digests), **{part: digests[part] for part, paths in parts.items() if paths}}


def _find_checkpoint(origin: str, revision: str | None) -> Path | None:
    """The folder or file of a checkpoint on this machine; None if there is none."""
    if not origin:
        return None
    with contextlib.suppress(OSError, RuntimeError):
        path = Path(origin).expanduser()
        if path.exists():
            return path
    with contextlib.suppress(Exception):  # the hub's package knows its cache; if anything fails, there is no identity
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(origin, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; an OSError if it cannot be read.

    The digest of a large file is cached, and reused while the file's size and time of change stay the same. In the
    hub's cache the name of a large file is its digest.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    with files.open_to_read(path) as file:
        status = os.fstat(file.fileno())
        key = f"{real}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
        key = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
        if status.st_size >= LARGE and (cached := _cached_digests().get(key)) is not None:
            return cached
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if status.st_size < LARGE:
        return digest
    with contextlib.suppress(OSError, RuntimeError):
        cache = _digest_cache()
        cache.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(cache, json.dumps({**_cached_digests(), key: digest}, indent=0) + "\n")
    return digest


def _digest_cache() -> Path:
    home = os.environ.get("MOTES_HOME")
    return (Path(home) if home else Path.home() / ".motes") / "digests.json"


def _cached_digests() -> dict[str, str]:
    try:
        cache = parse_json(files.read_text(_digest_cache()))
    except (OSError, ValueError, RuntimeError):
        return {}
    pairs = cache.items() if isinstance(cache, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)}


def digest_of(value: Any) -> str:
    """The SHA-256 of a value as JSON; parts that JSON cannot hold are replaced by their `repr`."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def of_code(thing: Any) -> Identity:
    """The name of a class or function, and the digest of the file that holds it; without a file (in a notebook) the
    digest of its own source. motes's own files have no separate digests, see `of_motes`."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = getattr(thing, "func", type(thing))  # the function of a functools.partial
    module = getattr(thing, "__module__", None) or "?"
    code: Identity = {"code": f"{module}:{getattr(thing, '__qualname__', '?')}"}
    if module.partition(".")[0] != "motes" and (source := _source(thing)) is not None:
        code["source"] = f"sha256:{hashlib.sha256(source).hexdigest()}"
    return code


def _source(thing: Any) -> bytes | None:
    with contextlib.suppress(OSError, TypeError):
        path = inspect.getsourcefile(thing)
        if path is not None and os.path.isfile(path):
            return Path(path).read_bytes()
        return inspect.getsource(thing).encode(errors="surrogatepass")
    return None


@lru_cache(maxsize=1)
def of_motes() -> Identity:
    """motes's version, the digest of its sources and, if known, their commit and whether they have changed since."""
    folder = Path(motes.__file__).parent
    sources = sorted(path for path in folder.rglob("*.py") if path.is_file())
    version: Identity = {"version": motes.__version__}
    with contextlib.suppress(OSError):
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
        version["source"] = digest_of([(path.relative_to(folder).as_posix(), digests[path]) for path in sources])
    return version | (_installed_commit() or _commit(folder))


def _installed_commit() -> Identity:
    """The commit that pip recorded if it installed motes from a repository (PEP 610)."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        origin = json.loads(importlib.metadata.distribution("motes").read_text("direct_url.json") or "{}")
        if isinstance(origin, dict) and isinstance(commit := origin.get("vcs_info", {}).get("commit_id"), str):
            return {"commit": commit, "modified": False}
    return {}


def _commit(folder: Path) -> Identity:
    """The commit of the repository that tracks these sources; empty if a repository only surrounds them."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment)
        return result.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return {}


def of_problems(problems: Iterable[Problem], key: Callable[[Problem], object] | None = None) -> str:
    """The digest of problems in their order, without the prompt around them. `key` returns further data by which a
    problem is graded, such as tests; its `repr` enters the digest."""
    digest = hashlib.sha256()
    for problem in problems:
        line = json_line([problem.id, [dict(turn) for turn in problem.plain.messages], problem.answer])
        digest.update(line.encode() + b"\n")
        if key is not None and (graded_by := key(problem)) is not None:
            digest.update(repr(graded_by).encode(errors="backslashreplace") + b"\n")
    return f"sha256:{digest.hexdigest()}"


def of_machine() -> Identity:
    """Operating system, processor and Python; GPUs if torch is loaded and sees some. No name of host or user."""
    cores = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    machine = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "usable_cores": usable,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gpus": _gpus(),
    }
    return {name: value for name, value in machine.items() if value}


def _processor() -> str:
    with contextlib.suppress(OSError, UnicodeError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor()


def _gpus() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    kinds = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    return f"{', '.join(kinds)}, CUDA {torch.version.cuda}"


def of_packages(names: Sequence[str] = PACKAGES) -> Identity:
    """The versions of the packages that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
