"""What was made from what: which stages are stale, and which stay when one is made anew."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capsprune.records import StageRecord
from capsprune.stages import STAGES


def followed_by(stage: str, records: Mapping[str, StageRecord]) -> str | None:
    """Return what a stage is made from, if anything.

    Args:
        stage: which. One that nobody knows here follows what its record names.
        records: of the finished stages.

    Returns:
        Of the stages that it may follow, the first one that is finished; the last one where none
        is.
    """
    if stage in STAGES:
        may_follow = STAGES[stage].follows
        finished = (before for before in may_follow if before in records)
        return next(finished, may_follow[-1] if may_follow else None)
    return _made_from(stage, records)


def line_of(stage: str, records: Mapping[str, StageRecord]) -> list[str]:
    """Return the stages that a stage comes from, the first one first, and itself."""
    line = [stage]
    while (before := followed_by(line[0], records)) is not None and before not in line:
        line.insert(0, before)
    return line


@dataclass(frozen=True)
class Stale:
    """A stage that was made from something else than what it would be made from now."""

    stage: str
    #: What it would be made from now.
    source: str
    #: The other stage that it was made from; None for an older result of `source`.
    made_from: str | None

    @property
    def words(self) -> str:
        """What it was made from."""
        if self.made_from is None:
            return f"an older {self.source}"
        return f"{self.made_from}, before there was {self.source}"


def find_stale(stage: str, records: Mapping[str, StageRecord]) -> Stale | None:
    """Find what in the line of a stage was made from something else than it would be made from now.

    Returns:
        The first such stage; None if all is up to date.
    """
    for earlier, later in itertools.pairwise(line_of(stage, records)):
        made, source = records.get(later), records.get(earlier)
        if made is None or source is None or _is_of_something_named(made):
            continue
        if made.parent != source.id:
            return Stale(later, earlier, _made_from(later, records))
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


def _made_from(stage: str, records: Mapping[str, StageRecord]) -> str | None:
    """Return the finished stage that a record names as its parent, if it is there as it was."""
    record = records.get(stage)
    made = (name for name, other in records.items() if record and other.id == record.parent)
    return next(made, None)


def _is_of_something_named(record: StageRecord) -> bool:
    """Whether a finished stage was made from a checkpoint that was named, as asked."""
    return record.options.get("checkpoint") is not None
