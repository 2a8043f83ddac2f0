"""What a package index shows of the project."""

from __future__ import annotations

import re
import tomllib

import hatchling.metadata.core
from hatchling.plugin.manager import PluginManager

import motes
from snippets import ROOT

LINK = re.compile(r"\]\(([^)]*)\)")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
RELATIVE = [target for target in LINK.findall(README) if not target.startswith("https://")]


def index_readme(urls: dict[str, str]) -> str:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    config["project"]["urls"] = urls
    metadata = hatchling.metadata.core.ProjectMetadata(str(ROOT), PluginManager(), config)
    assert metadata.core.version == motes.__version__
    return metadata.core.readme


def test_links_of_the_readme_lead_to_the_repository():
    assert len(RELATIVE) > 10
    text = index_readme({"Repository": "https://code.example/motes"})
    links = LINK.findall(text)
    assert len(links) == len(LINK.findall(README))
    assert all(link.startswith("https://") for link in links)
    for kind, target in (("raw", "results/factor/factors.png"), ("blob", "docs/methods.md")):
        assert f"https://code.example/motes/{kind}/v{motes.__version__}/{target}" in links
    files = [link.split(f"v{motes.__version__}/")[1] for link in links if "code.example" in link]
    assert files == RELATIVE
    assert all((ROOT / file).exists() for file in files)


def test_without_a_repository_links_are_plain_text():
    text = index_readme({})
    assert "](docs" not in text
    assert "![" not in text
    assert "](https://arxiv.org/abs/2502.01618)" in text
    assert "Adding a method shows how to write one in thirty lines" in text


def test_the_citation_and_the_changelog_have_the_version():
    assert f"version: {motes.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(motes.__version__)}\] - \d{{4}}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)
