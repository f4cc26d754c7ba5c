"""Errors that a user can cause and fix: each carries one sentence with its cause and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from capsprune import interrupts


class CapspruneError(Exception):
    """A request that cannot be met as it stands. The command line prints it and exits with 2."""


class DataError(CapspruneError):
    """A data set is unknown, missing, or holds something that cannot be used."""


class ModelError(CapspruneError):
    """A backbone is unknown, or does not fit what is asked of it."""


class CheckpointError(CapspruneError):
    """A checkpoint is missing, truncated, foreign, or inconsistent."""


class StrategyError(CapspruneError):
    """A pruning strategy or target cannot be met in the search space."""


class StudyError(CapspruneError):
    """The database that keeps a search's candidates cannot be used."""


class RunError(CapspruneError):
    """A run directory is not in the state that a stage needs."""


class ExportError(CapspruneError):
    """An exported file does not compute what the network computes."""


class DeviceError(CapspruneError):
    """A device or an execution provider that was asked for is not there."""


class Interrupted(CapspruneError):
    """The user stopped the work."""

    def __init__(self) -> None:
        """Say that nothing is lost."""
        super().__init__(interrupts.SENTENCE)


def listed(things: Sequence[object], most: int = 5) -> str:
    """Name the first of several things, and say how many more there are.

    Args:
        things: as they are to be written.
        most: how many are named.
    """
    names = ", ".join(str(thing) for thing in things[:most])
    return names if len(things) <= most else f"{names} and {len(things) - most} more"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, naming the nearest known names.

    Args:
        kind: what the name should have been, e.g. "model".
        name: what was given.
        known: every name that would have been accepted.
    """
    names = sorted(known)
    name = name[:100]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if near:
        return f"Unknown {kind} '{name}'; did you mean {' or '.join(near)}?"
    return f"Unknown {kind} '{name}'; known are {', '.join(names)}."
