"""What a run costs and came to, without what depends on the clock, on caches and on whatever else was in flight."""

from __future__ import annotations

import dataclasses

from motes import Usage
from motes.lab.run.records import RunRecord


def own(usage: Usage) -> Usage:
    """What a run needs by itself."""
    return dataclasses.replace(usage, computed_prefill_tokens=0, computed_reward_tokens=0)


def without_company(record: RunRecord) -> RunRecord:
    return dataclasses.replace(record, usage=own(record.usage), seconds=0.0, concurrency=None)
