"""`import motes` is light, and imports point down only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import motes

SOURCE = Path(motes.__file__).parent
HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "matplotlib",
    "httpx2",
    "fastapi",
    "pydantic",
    "starlette",
    "uvicorn",
    "ray",
    "math_verify",
    "sympy",
    "datasets",
    "pyarrow",
    "inspect_ai",
    "opentelemetry",
)

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "core",
        "steps",
        "thoughts",
        "concurrency",
        "text",
        "arguments",
        "threads",
        "files",
        "vocabulary",
        "checkpoint",
        "gguf",
        "protocols",
        "errors",
        "ledger",
        "confidence",
        "gguf",
        "pages",
        "aliases",
    ),
    ("smc", "kv", "transport"),
    ("methods", "models", "rewards", "tasks", "prompts", "bundled"),
    ("opening",),
    ("api", "conformance", ""),  # "": the package itself, which gathers the public names
    ("lab",),
    ("paper", "training"),
    ("cli", "gateway", "inspect_provider", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
CLOSED = {1, 2}  # floors whose rooms do not import each other

LAB = ("run", "measure", "show")
"""The rooms of the lab: each imports from itself and those before it; a file outside them imports from none."""


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module that `node`, which stands in `module`, imports from."""
    if not node.level:
        return node.module or ""
    package = module.split(".")[: None if is_package and node.level == 1 else int(is_package) - node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def room(module: str) -> str:
    """The part of the house a module is in: the first name below `motes`."""
    return [*module.split("."), ""][1]


def imported(source: str, module: str, *, is_package: bool = False, for_types: bool = True) -> list[str]:
    """The files of motes that `source` imports, in functions, too.

    Args:
        for_types: whether imports for type checkers, `if TYPE_CHECKING`, count.
    """

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.orelse if is_for_types and not for_types else ast.iter_child_nodes(node):
            yield from walk(child)

    found = []
    for node in walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else base for name in names]
    return [name for name in found if name.split(".")[0] == "motes"]


def offences(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of `source` that do not point down."""
    here = room(module)
    found = []
    for name in imported(source, module, is_package=is_package, for_types=False):
        there = room(name)
        closed = FLOOR[here] in CLOSED
        if there != here and (FLOOR[there] > FLOOR[here] or (closed and FLOOR[there] == FLOOR[here])):
            found.append(f"{module} imports {name}")
    return found


def module_of(path: Path) -> str:
    parts = ("motes", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path):
    module = module_of(path)
    assert room(module) in FLOOR, f"{module} has no floor in design.md"
    assert not offences(path.read_text(), module, is_package=is_package(module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("motes.core", "from motes.smc import Weights"),
        ("motes.smc.weights", "import motes.methods.population"),
        ("motes.smc.weights", "from motes.kv import tree"),
        ("motes.methods.selectors", "from motes.tasks.boxed import BoxedAnswers"),
        ("motes.models.local", "from motes import rewards"),
        ("motes.models.local", "def late():\n    from motes.api import solve"),
        ("motes.rewards.prm", "from motes import Problem"),
        ("motes.rewards.prm", "from ..models import local"),
        ("motes.methods.population", "if TYPE_CHECKING:\n    pass\nelse:\n    import motes.api"),
        ("motes.api", "from motes.lab import report"),
        ("motes.lab.show.report", "from motes.cli import main"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_found(module: str, source: str):
    assert len(offences(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("motes.protocols", "if TYPE_CHECKING:\n    from motes.methods.population import Run"),
        ("motes.methods.selectors", "from .population import Run"),
        ("motes.methods.selectors", "from motes.methods.population import Run"),
        ("motes.models.local", "from motes.kv.tree import Tree\nimport torch"),
        ("motes.cli.main", "from motes import Problem\nfrom motes.lab import report\nfrom motes import gateway"),
    ],
)
def test_an_import_that_points_down_is_allowed(module: str, source: str):
    assert not offences(source, module)


def lab_offences(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of `source`, a file of the lab, from a room above its own."""

    def floor(name: str) -> int:
        parts = name.split(".")
        return LAB.index(parts[2]) if len(parts) > 2 and parts[2] in LAB else -1

    names = (name for name in imported(source, module, is_package=is_package) if room(name) == "lab")
    return [f"{module} imports {name}" for name in names if floor(name) > floor(module)]


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) == "lab" and name != "motes.lab"))
def test_rooms_of_the_lab_import_from_those_before_them(module: str):
    assert not lab_offences(MODULES[module].read_text(), module, is_package=is_package(module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("motes.lab.run.records", "from motes.lab.measure.statistics import Interval"),
        ("motes.lab.measure.cells", "def late():\n    from motes.lab.show import tables"),
        ("motes.lab.measure.cells", "if TYPE_CHECKING:\n    from motes.lab.show.report import Report"),
        ("motes.lab.chains", "from motes.lab.run import records"),
    ],
)
def test_an_import_from_a_room_above_is_found(module: str, source: str):
    assert len(lab_offences(source, module)) == 1


def circles(imports: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Groups of modules that import each other, directly or by way of others (Tarjan's strongly connected components).

    Args:
        imports: of each module, those that it imports.
    """
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in imports.get(module, ()):
            if other not in number:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            place = stack.index(module)
            groups.append(set(stack[place:]))
            del stack[place:]

    for module in imports:
        if module not in number:
            visit(module)
    return [group for group in groups if len(group) > 1]


def test_no_files_import_each_other():
    imports = {
        module: set(imported(path.read_text(), module, is_package=is_package(module)))
        for module, path in MODULES.items()
    }
    assert circles(imports) == []


def test_a_circle_is_found():
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": []}) == [{"a", "b", "c"}]
    assert imported("if TYPE_CHECKING:\n    from motes import api", "motes.methods.x") == ["motes.api"]
    assert imported("def f():\n    from motes.lab.run import records", "motes.x") == ["motes.lab.run.records"]


@pytest.mark.parametrize(
    "statement",
    [
        "import motes",
        "import motes.smc, motes.methods, motes.tasks, motes.conformance, motes.bundled",
        "from motes import *; solve('?', lm=TabularLanguageModel({(): {'a': 1.0}}), reward=TabularReward({}))",
    ],
)
def test_import_is_light(statement: str):
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("former", "name"),
    [("motes.types", "Failure"), ("motes.contracts", "check_language_model"), ("motes.inspect", "particles")],
)
def test_former_names_of_modules_work(former: str, name: str):
    with pytest.warns(DeprecationWarning, match=f"{former} is deprecated: use motes"):
        assert callable(getattr(importlib.import_module(former), name))


def test_no_file_hides_a_module_of_the_standard_library():
    """Python puts the directory of a program before everything else: beside `types.py` nothing would start."""
    names = {path.stem for path in SOURCE.glob("*") if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(names & sys.stdlib_module_names) == []


def test_public_names_exist():
    assert [name for name in motes.__all__ if not hasattr(motes, name)] == []


def test_models_on_servers_and_the_gateway_need_no_torch():
    modules = "motes.models.served", "motes.rewards.served.model", "motes.vocabulary", "motes.gateway.app"
    code = f"import sys; sys.modules['torch'] = None; import {', '.join(modules)}; import motes.cli.serve"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
