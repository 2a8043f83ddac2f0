"""The README as a package index shows it, which is no part of the repository: its relative links lead to the repository
named in `pyproject.toml` ([project.urls], Repository), or become plain text as long as none is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?://)[^)]*\)\n\n?", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)([^)]*)\)")


def index_readme(text: str, repository: str | None, version: str) -> str:
    """`text` with links that can be followed from anywhere."""
    if repository is None:
        return LINK.sub(r"\1", PICTURE.sub("", text))
    text = re.sub(r"!\[([^\]]*)\]\((?!https?://)([^)]*)\)", rf"![\1]({repository}/raw/v{version}/\2)", text)
    return LINK.sub(rf"[\1]({repository}/blob/v{version}/\2)", text)


class IndexReadme(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = index_readme(text, metadata.get("urls", {}).get("Repository"), metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
