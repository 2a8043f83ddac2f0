"""What a model returned for each trajectory of a call, with the error in place of a failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motes.core import Failure


def unwrapped(outcomes: Sequence[Any]) -> list[Any]:
    return [outcome.error if isinstance(outcome, Failure) else outcome for outcome in outcomes]
