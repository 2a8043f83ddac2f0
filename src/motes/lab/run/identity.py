"""What an evaluation is made with, told apart from anything else of the same name: models, code, problems, machine.

A name does not say what it stood for on that day: a folder gets other weights, a server another model, a function
another body. So each is told by a digest where its files are here, and by what it says of itself where it is a server:

    a local model       SHA-256 of its weights, of its configuration and of its tokenizer, each over the files' names
                        and contents; its dtype, its device and the hub's revision
    a served model      the server's engine and version, the model's name there, and what it was loaded from
    code of one's own   MODULE:NAME and the SHA-256 of the file that holds it
    a task              the SHA-256 of its problems: ids, conversations, reference answers

Names of files are taken without their folders. Nothing of the environment is told.
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
from typing import Any, BinaryIO

import motes
from motes import files
from motes.core import Problem
from motes.rewards.calibration import CalibratedReward
from motes.rewards.function import FunctionReward
from motes.rewards.judge import Judge
from motes.rewards.mapped import MappedReward
from motes.text import json_line, parse_json

Identity = dict[str, Any]
"""Texts, numbers, and identities of parts, by name."""

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "math-verify", "sympy", "httpx2", "ray")
"""Whose versions results may depend on."""


# ------------------------------------------------------------------------------------------------------------- models


def of_model(model: object) -> Identity:
    """What a language model or a reward model is. Reads files: not for the event loop."""
    if (local := _loaded("motes.kv.engine", "Engine")) and isinstance(model, local):
        return _of_local(model)
    for module, name, server in (
        ("motes.models.served.model", "HTTPLanguageModel", "capabilities"),
        ("motes.rewards.served.model", "ServedPRM", "server"),
    ):
        if (served := _loaded(module, name)) and isinstance(model, served):
            return _of_served(model, getattr(model, server))
    if isinstance(model, Judge):
        rubric = digest_of([getattr(model.rubric, field.name) for field in dataclasses.fields(model.rubric)])
        told = {"rubric": model.rubric.name, "rubric_digest": rubric, "num_verdicts": model.num_verdicts}
        return {"kind": "judge", **told, "seed": model.seed, "of": of_model(model.lm)}
    if isinstance(model, CalibratedReward):
        kept = model.calibration
        calibration = digest_of([kept.scores, kept.probabilities, kept.slope])
        return {"kind": "calibrated", "calibration": calibration, "of": of_model(model.reward)}
    if isinstance(model, FunctionReward):
        return {"kind": "function", **of_code(model.fn), "outcome": model.outcome}
    found: Identity = {"kind": "own", **of_code(type(model) if not inspect.isroutine(model) else model)}
    if dataclasses.is_dataclass(model):
        settings = {field.name: getattr(model, field.name, None) for field in dataclasses.fields(model)}
        found |= {name: value for name, value in settings.items() if type(value) in (bool, int, float, str)}
    return {**found, "of": of_model(model.reward)} if isinstance(model, MappedReward) else found


def _loaded(module: str, name: str) -> Any:
    """A class, where its module is loaded: otherwise nothing is of that class."""
    return getattr(sys.modules.get(module), name, None)


def _of_local(model: Any) -> Identity:
    told = {"kind": "local", "dtype": model.dtype, "device": model.device, "revision": model.revision}
    told |= of_checkpoint(model.origin, model.revision)
    return {name: value for name, value in told.items() if value is not None}


def _of_served(model: Any, server: Any) -> Identity:
    told = {"kind": "served", "engine": server.engine, "version": server.version, "model": server.model}
    told |= {"root": _without_home(server.origin), "context_length": server.context_length}
    return {name: value for name, value in told.items() if value is not None}


def _without_home(path: str | None) -> str | None:
    """A server's path without the name of whose home it is in."""
    return None if path is None else re.sub(r"^(/home/|/Users/|[A-Z]:\\Users\\)[^/\\]+|^/root(?=/)", "~", path)


# -------------------------------------------------------------------------------------------------------- checkpoints

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
TOKENIZER = re.compile(r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|\.(model|tiktoken|jinja)$")
LARGE = 64 << 20
"""Bytes of a file from which on its digest is kept for the next time."""


def of_checkpoint(origin: str, revision: str | None = None) -> Identity:
    """The digests of a checkpoint: of its weights, its configuration, its tokenizer, and of these together.

    Args:
        origin: a folder or file, or a name on the hub, whose files are looked for in the hub's cache.
    """
    place = _place(origin, revision)
    if place is None:
        return {}
    found = [place] if place.is_file() else sorted(path for path in place.iterdir() if path.is_file())
    if any(path.suffix == ".safetensors" for path in found):  # what is loaded where several are there
        found = [path for path in found if path.suffix not in WEIGHTS or path.suffix == ".safetensors"]
    parts: dict[str, list[Path]] = {"weights": [], "config": [], "tokenizer": []}
    for path in found:
        if path.suffix in WEIGHTS:
            parts["weights"].append(path)
        elif TOKENIZER.search(path.name):
            parts["tokenizer"].append(path)
        elif path.suffix == ".json":
            parts["config"].append(path)
    try:
        digests = {part: digest_of([[path.name, file_digest(path)] for path in held]) for part, held in parts.items()}
    except OSError:
        return {}
    return {"digest": digest_of(digests), **{part: digests[part] for part, held in parts.items() if held}}


def _place(origin: str, revision: str | None) -> Path | None:
    """Where the files of a checkpoint are on this machine."""
    if not origin:
        return None
    with contextlib.suppress(OSError, RuntimeError):
        path = Path(origin).expanduser()
        if path.exists():
            return path
    with contextlib.suppress(Exception):  # the hub's own package knows its cache; whatever it lacks, nothing is told
        from huggingface_hub import try_to_load_from_cache

        kept = try_to_load_from_cache(origin, "config.json", revision=revision)
        if isinstance(kept, str):
            return Path(kept).parent
    return None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. That of a large one is kept, and taken for that of the same file of the
    same size and time of change. The hub's cache names large files by theirs.

    Raises:
        OSError: it cannot be read.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    with files.open_to_read(path) as file:
        about = os.fstat(file.fileno())
        key = f"{real}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}"
        if about.st_size < LARGE:
            return _sha256(file)
        key = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
        if (known := _kept_digests().get(key)) is not None:
            return known
        digest = _sha256(file)
    with contextlib.suppress(OSError, RuntimeError):
        place = _digests_file()
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(place, json.dumps({**_kept_digests(), key: digest}, indent=0) + "\n")
    return digest


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _digests_file() -> Path:
    home = os.environ.get("MOTES_HOME")
    return (Path(home) if home else Path.home() / ".motes") / "digests.json"


def _kept_digests() -> dict[str, str]:
    try:
        kept = parse_json(files.read_text(_digests_file()))
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {key: value for key, value in kept.items() if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)}


def digest_of(value: Any) -> str:
    """The SHA-256 of what JSON can hold, or of its repr."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


# --------------------------------------------------------------------------------------------------------------- code


def of_code(thing: Any) -> Identity:
    """Which class or function it is, and the digest of the file that holds it, or of itself where it stands in none (a
    notebook). motes's own files are not told one by one, see `of_motes`."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = getattr(thing, "func", type(thing))  # of a functools.partial its function
    module = getattr(thing, "__module__", None) or "?"
    told: Identity = {"code": f"{module}:{getattr(thing, '__qualname__', '?')}"}
    if module.partition(".")[0] != "motes" and (source := _source(thing)) is not None:
        told["source"] = f"sha256:{hashlib.sha256(source).hexdigest()}"
    return told


def _source(thing: Any) -> bytes | None:
    with contextlib.suppress(OSError, TypeError):
        path = inspect.getsourcefile(thing)
        if path is not None and os.path.isfile(path):
            return Path(path).read_bytes()
        return inspect.getsource(thing).encode(errors="surrogatepass")
    return None


@lru_cache(maxsize=1)
def of_motes() -> Identity:
    """motes's version, the digest of its sources, and where it can be told their commit, and whether they were changed
    since."""
    folder = Path(motes.__file__).parent
    sources = sorted(path for path in folder.rglob("*.py") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in sources]
    told: Identity = {"version": motes.__version__}
    with contextlib.suppress(OSError):
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
        told["source"] = digest_of(list(zip(names, digests, strict=True)))
    return told | (_installed_commit() or _commit(folder))


def _installed_commit() -> Identity:
    """What pip wrote of a package that it installed from a repository (PEP 610)."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        told = json.loads(importlib.metadata.distribution("motes").read_text("direct_url.json") or "{}")
        if isinstance(told, dict) and isinstance(commit := told.get("vcs_info", {}).get("commit_id"), str):
            return {"commit": commit, "modified": False}
    return {}


def _commit(folder: Path) -> Identity:
    """The commit of the repository that holds these sources; nothing where a repository only surrounds them."""

    def git(*words: str) -> str:
        variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10, env=variables
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return {}


# -------------------------------------------------------------------------------------------------- tasks and machine


def of_problems(problems: Iterable[Problem], key: Callable[[Problem], object] | None = None) -> str:
    """The digest of problems as they are asked, before a prompt is put around them, in their order.

    Args:
        key: what else a problem is graded by, tests for one; by its `repr`.
    """
    digest = hashlib.sha256()
    for problem in problems:
        line = json_line([problem.id, [dict(turn) for turn in problem.plain.messages], problem.answer])
        digest.update(line.encode() + b"\n")
        if key is not None and (graded_by := key(problem)) is not None:
            digest.update(repr(graded_by).encode(errors="backslashreplace") + b"\n")
    return f"sha256:{digest.hexdigest()}"


def of_machine() -> Identity:
    """Operating system, processor and Python; GPUs where torch is loaded and has some. No name of host or user."""
    cores = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    told = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "usable_cores": usable,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gpus": _gpus(),
    }
    return {name: value for name, value in told.items() if value}


def _processor() -> str:
    with contextlib.suppress(OSError, UnicodeError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor()


def _gpus() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    kinds = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    return f"{', '.join(kinds)}, CUDA {torch.version.cuda}"


def of_packages(names: Sequence[str] = PACKAGES) -> Identity:
    """The versions of those that are installed."""
    told = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            told[name] = importlib.metadata.version(name)
    return told
