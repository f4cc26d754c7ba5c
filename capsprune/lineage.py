"""What was made from what: which stages are stale, and which stay when one is made anew."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from capsprune.records import StageRecord
from capsprune.stages import STAGES


def followed_by(stage: str, records: Mapping[str, StageRecord]) -> str | None:
    """Return what a stage is made from, if anything.

    Args:
        stage: which. One that nobody knows here follows what its record names.
        records: of the finished stages.
    """
    if stage in STAGES:
        return STAGES[stage].follows
    record = records.get(stage)
    made = (name for name, other in records.items() if record and other.id == record.parent)
    return next(made, None)


def line_of(stage: str, records: Mapping[str, StageRecord]) -> list[str]:
    """Return the stages that a stage comes from, the first one first, and itself."""
    line = [stage]
    while (before := followed_by(line[0], records)) is not None and before not in line:
        line.insert(0, before)
    return line


def find_stale(stage: str, records: Mapping[str, StageRecord]) -> tuple[str, str] | None:
    """Find what in the line of a stage was made from an older result than the one that is there.

    Returns:
        What it was made from, and what is stale; None if all is up to date.
    """
    for earlier, later in itertools.pairwise(line_of(stage, records)):
        made, source = records.get(later), records.get(earlier)
        if made is None or source is None or _is_of_something_named(made):
            continue
        if made.parent != source.id:
            return earlier, later
    return None


def kept_beside(stage: str, records: Mapping[str, StageRecord]) -> list[str]:
    """Return the finished stages that stay valid when a stage is made anew."""

    def goes_back_to_it(other: str) -> bool:
        while other not in records or not _is_of_something_named(records[other]):
            before = followed_by(other, records)
            if before is None or before == stage:
                return before is not None
            other = before
        return False

    return [other for other in records if other != stage and not goes_back_to_it(other)]


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return which options differ; one that came with a later version is open in older records."""
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def _is_of_something_named(record: StageRecord) -> bool:
    """Whether a finished stage was made from a checkpoint that was named, as asked."""
    return record.options.get("checkpoint") is not None
