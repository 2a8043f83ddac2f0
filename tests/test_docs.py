"""Every page as its reader uses it: what it shows in Python is run, and every command of a shell.

The blocks of a page are run from top to bottom, in one directory and with one set of names. A command that a laptop
can carry out in seconds is carried out, on fewer problems and with smaller budgets; the arguments of any other are
checked against the command line, so that an option that is gone fails here. The tables below say which is which.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import snippets
from gateways import gateway
from motes import prompts
from motes.cli import USAGE_ERROR, app, main
from motes.gateway.config import Config
from snippets import PAGES, ROOT, Block, Command

QUESTION = "Some friends collect plums. Carl owns 10. Finn has 7 fewer than Carl. How many does Finn have?"
GATEWAY = "http://127.0.0.1:8080"
STEPS = "".join(
    json.dumps(
        {"question": f"Ben owns {n}. How many does Ben have?", "steps": ["Ben has 1.", "So 1."], "labels": labels}
    )
    + "\n"
    for n, labels in enumerate(([1, 1], [1, 0], [0, 0], [1, 1]), start=1)
)

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

# 1. What is made smaller.

LIMIT = "1"  # of --limit
LARGEST = 2  # of -n, --budget and --budgets, of which only the smallest above 1 is kept
BUDGETS = ("-n", "--budget", "--budgets")
ADDED = {"eval": ["--max-steps", "4"], "report": ["--no-plots"], "compare": ["--no-plots"]}
STANDS_FOR = {
    "$((JOB_COMPLETION_INDEX + 1))": "1",
    "$JOB_COMPLETION_INDEX": "0",
    "$SLURM_ARRAY_TASK_ID": "1",
    "$SLURM_ARRAY_TASK_COUNT": "8",
}
"""What a scheduler sets."""

# 2. Whose arguments are checked, as it cannot be carried out here.

CHECKED = {
    r"https?://|hf:|\bSPEC\b": "models that are not here",
    r" …( |$)": "left open by the page",
    r"--ray\b": "a cluster; tests/test_on_ray.py",
    r"^motes serve\b": "serves until it is stopped; the gateway's page is run against one",
    r"^motes advise\b": "minutes of a core; tests/test_advice.py",
    r"--task math-500\b|\bruns/math\b": "problems of the hub, and what is made of them",
    r"^motes merge\b|--shard": "other machines; tests/test_shards.py",
    r"^motes calibrate\b": "tests/test_judges_document.py",
    r"\bmix:both\b": "what `motes calibrate` makes; tests/test_mixed_rewards.py",
    r"^motes check\b": "half a dozen seconds; tests/test_cli.py",
}

# 3. What is not even that.

OTHERS = {
    "vllm": "a server of somebody else's, with a GPU",
    "llama-server": "a server of somebody else's",
    "ray": "a cluster; tests/test_on_ray.py",
    "serve": "Ray Serve on a cluster",
    "inspect": "tasks of its reader's; tests/test_inspect.py",
    "cd": "of the shell",
    "source": "of the shell",
    "sleep": "of the shell",
}

# 4. What a page takes for granted, and what stands here for what its reader has.

GIVEN = {
    "docs/judges-and-calibration.md": "lm = 'tiny'",
    "docs/methods.md": f"problem = {QUESTION!r}; prm = orm = 'tiny'",
    "docs/reward-models.md": f"import pathlib; pathlib.Path('steps.jsonl').write_text({STEPS!r})",
}
INSTEAD = {
    'motes.reward_model("hf:PATH", format=mine)': "motes.rewards.families.family(mine)",  # without a checkpoint
    'Path("runs/yours")': 'Path("runs/mine")',
    "ParticleFilter(16)": f"ParticleFilter({LARGEST})",
    "ParticleFilter(64)": f"ParticleFilter({LARGEST})",
    "BeamSearch(64)": f"BeamSearch({LARGEST})",
    '"particles": 32': f'"particles": {LARGEST}',
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, whose modules can be imported and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOTES_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(
    page: str, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    blocks = list(snippets.blocks(page))
    for block in blocks:
        if block.file is not None:
            (directory / block.file).write_text(block.text, encoding="utf-8")
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module)
    with served(blocks) as address:
        if page in GIVEN:
            exec(GIVEN[page], names)
        for block in blocks:
            text = block.text.replace(GATEWAY, address)
            where = f"{page}, line {block.line}"
            if block.language == "python":
                run_python(text, where, names)
            else:
                assert block.language in READERS, f"{where}: say the language of the block"
                READERS[block.language](block._replace(text=text), where)
            capsys.readouterr()


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences(page: str):
    for span in snippets.spans(page):
        words = span.split()
        if span.startswith("make "):
            check_make(words)
        elif span.startswith("motes ") and not words[1].startswith("-"):
            check_options(words, f"{page}: {span}")
        elif span.startswith("python recipes/") and "…" not in words:
            run_script(Command(tuple(words), 0), page)


def test_the_tables_name_nothing_that_is_gone():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    commands = [one for page in PAGES for block in snippets.blocks(page) for one in snippets.commands(block)]
    assert [pattern for pattern in CHECKED if not any(re.search(pattern, str(one)) for one in commands)] == []
    assert [name for name in OTHERS if all(one.program != name for one in commands)] == []
    assert [old for old in (*INSTEAD, *STANDS_FOR) if not any(old in text for text in texts)] == []
    assert set(GIVEN) <= set(PAGES)


# Blocks


def run_python(text: str, where: str, names: dict[str, Any]) -> None:
    for written, instead in INSTEAD.items():
        text = text.replace(written, instead)
    exec(compile(text, where, "exec"), names)


def run_shell(block: Block, where: str) -> None:
    for variable, value in STANDS_FOR.items():
        block = block._replace(text=block.text.replace(variable, value))
    commands = list(snippets.commands(block))
    for command in commands:
        place = f"{where.rpartition(',')[0]}, line {command.line}: {command}"
        assert all(re.match("https?:", url) for url in re.findall(r"\w+://", str(command))), place
        if command.program in OTHERS:
            continue
        PROGRAMS[command.program](command, place)
    check_extras(commands, where)


def read_toml(block: Block, where: str) -> None:
    told = tomllib.loads(block.text.replace('"…"', f'"{"0" * 64}"'))
    if told.keys() <= Config.model_fields.keys():  # or a part of such a file
        Config.model_validate({"models": {"any": {"lm": "tiny", "method": "majority"}}, **told})
    else:
        prompts.prompt(Path(block.file or ""))


def read_json(block: Block, where: str) -> None:
    for line in block.text.splitlines():
        json.loads(line)


READERS: dict[str, Callable[[Block, str], None]] = {
    "sh": run_shell,
    "console": run_shell,
    "yaml": run_shell,
    "toml": read_toml,
    "json": read_json,
    "text": lambda block, where: None,
    "{toctree}": lambda block, where: None,  # these are the site's own: `make docs`
    "{eval-rst}": lambda block, where: None,
    "{commands}": lambda block, where: None,
    "{public}": lambda block, where: None,
    "{keys}": lambda block, where: None,
}


@contextmanager
def served(blocks: list[Block]) -> Iterator[str]:
    """The address of a gateway of the bundled models, where a page asks one."""
    if any(re.search(rf'"{GATEWAY}|^curl.*{GATEWAY}', block.text, re.MULTILINE) for block in blocks):
        with gateway(Config.bundled()) as client:
            yield str(client.base_url).rstrip("/")
    else:
        yield GATEWAY


# Commands


def run_motes(command: Command, place: str) -> None:
    words = list(command.words)
    if words[1:3] == ["solve", "…"]:
        words[2] = QUESTION
    check_arguments(words, place)
    if not any(re.search(pattern, " ".join(words)) for pattern in CHECKED):
        assert main(smaller(words)[1:]) == 0, place


def smaller(words: list[str]) -> list[str]:
    """The same command on fewer problems, with smaller budgets and without plots."""
    found = list(words)
    for i, word in enumerate(words[:-1]):
        if word in BUDGETS:
            budgets = [int(budget) for budget in words[i + 1].split(",")]
            found[i + 1] = str(min(budget for budget in budgets if budget > 1 or budgets == [1]))
            found[i + 1] = str(min(int(found[i + 1]), LARGEST))
    if "--limit" in words:
        found[words.index("--limit") + 1] = LIMIT
    elif "--limit" in options(command_of(words)):
        found += ["--limit", LIMIT]
    return found + ADDED.get(words[1], [])


def check_arguments(words: list[str], place: str) -> None:
    """Fails where the command line refuses these words before anything is done."""
    if "…" in words:
        check_options(words, place)
        return
    try:
        command_of(words).make_context(words[1], words[2:])
    except USAGE_ERROR as error:
        pytest.fail(f"{place}: {error}")


def check_options(words: list[str], place: str) -> None:
    """Fails where an option does not exist, whatever else is left out."""
    used = {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
    unknown = used - set(options(command_of(words)))
    assert not unknown, f"{place}: there is no {', '.join(sorted(unknown))}"


def command_of(words: list[str]) -> Any:
    assert words[1] in COMMANDS, f"there is no motes {words[1]}"
    return COMMANDS[words[1]]


def options(command: Any) -> dict[str, Any]:
    return {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}


class ReadError(Exception):
    """A script has read its arguments."""


def run_script(command: Command, place: str) -> None:
    """As far as its arguments."""
    read = argparse.ArgumentParser.parse_args

    def and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        read(self, *args, **kwargs)
        raise ReadError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", and_stop)
        patch.setattr(sys, "argv", list(command.words[1:]))
        with pytest.raises(ReadError):
            runpy.run_path(str(ROOT / command.words[1]), run_name="__main__")


def run_curl(command: Command, place: str) -> None:
    if shutil.which("curl") is None:
        return
    said = subprocess.run([*command.words, "--silent", "--fail"], capture_output=True, text=True)
    assert said.returncode == 0, place
    assert said.stdout.rstrip().endswith("data: [DONE]"), place


def check_make(words: Any) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[1] in targets[1].split(), f"there is no make {words[1]}"  # type: ignore[index]


def check_pip(command: Command, place: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert command.words[1] == "install", place
    for extra in extras([command]):
        assert extra in known, f"{place}: there is no extra {extra!r}"


def extras(commands: list[Command]) -> set[str]:
    found = [re.fullmatch(r"motes\[(.*)\]", word) for one in commands if one.program == "pip" for word in one.words]
    return {extra for match in found if match for extra in match[1].split(",")}


def check_extras(commands: list[Command], where: str) -> None:
    """A block that says what to install says all that its other commands need."""
    if not (installed := extras(commands)):
        return
    used = [str(command) for command in commands if command.program in ("motes", "inspect")]
    needed = {"http"} if any("http://" in line for line in used) else set()
    needed |= {"serve"} if any(line.startswith("motes serve") for line in used) else set()
    needed |= {"local"} if any("hf:" in line or "tiny" in line for line in used) else set()
    needed |= {"gguf"} if any(re.search(r"hf:\S*\.gguf", line) for line in used) else set()
    installed |= {"local"} if "gguf" in installed else set()  # which it brings along
    assert needed <= installed, f"{where}: pip install leaves out {needed - installed}"


PROGRAMS: dict[str, Callable[[Command, str], None]] = {
    "motes": run_motes,
    "pip": check_pip,
    "make": lambda command, place: check_make(command.words),
    "python": run_script,
    "curl": run_curl,
}
