"""The models named `tiny`: data behind the same protocols as any other checkpoint."""

from __future__ import annotations

from pathlib import Path


def path(role: str) -> Path:
    """Folder of the bundled checkpoint: role "lm" (language model) or "prm" (process reward model)."""
    return Path(__file__).parent / f"tiny-{role}"
