"""Running a command of the table: what the command line and the Python API both call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capsprune.options import ComputingOptions, RunOptions, SessionOptions
from capsprune.pipeline.session import Session
from capsprune.progress import Progress
from capsprune.records import StageRecord
from capsprune.run import open_run
from capsprune.stages import COMMANDS, Command
from capsprune.summaries import Figures


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    command: Command
    #: Name of the run.
    run: str
    #: What the command gives: a stage's summary, or figures as plain data.
    summary: Any
    #: Where a finished stage lies, and how long it took; None for what leaves the run as it is.
    path: Path | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, as --json prints it."""
        plain = self.summary.to_dict() if isinstance(self.summary, Figures) else self.summary
        if self.path is None:
            return dict(plain)
        where = {"run": self.run, "path": str(self.path), "seconds": self.seconds}
        return {**where, **plain}


@contextmanager
def session_of(
    options: SessionOptions, progress: Progress | None = None, *, create: bool = False
) -> Iterator[Session]:
    """Open the run that a command is about.

    Args:
        options: which run, and how to compute.
        progress: where to say how it goes.
        create: make the run if it is not there.

    Raises:
        RunError: as `open_run`.
    """
    precision = options.precision if isinstance(options, ComputingOptions) else "32-true"
    with open_run(options.runs_dir, options.run, options.seed, create=create) as run:
        yield Session(run, options.device, precision, options.overwrite, progress or Progress())


def perform(
    command: Command, options: Any, shared: RunOptions, progress: Progress | None = None
) -> Outcome:
    """Do what a command does.

    Args:
        command: which.
        options: its own, from `Command.parse`.
        shared: the others from there.
        progress: where to say how it goes.

    Raises:
        CapspruneError: as the command does.
    """
    if not isinstance(shared, SessionOptions):
        return Outcome(command, shared.run, command.function(options, shared))
    with session_of(shared, progress, create=command.makes_run(options)) as session:
        result = command.function(options, session)
        if isinstance(result, StageRecord):
            assert command.stage is not None
            path = session.run.path(command.stage)
            return Outcome(command, shared.run, result.summary, path, result.seconds)
        return Outcome(command, shared.run, result)


def run_command(name: str, values: Mapping[str, Any], progress: Progress | None = None) -> Outcome:
    """Run a command by name with plain values for its options.

    Args:
        name: of the command: "attach-caps".
        values: by field name, those of the run among them (`run`, `runs_dir`, `overwrite`, ...).
        progress: where to say how it goes.

    Raises:
        CapspruneError: if an option is unknown or wrong, or as the command does.
    """
    command = COMMANDS[name]
    options, shared = command.parse(values)
    return perform(command, options, shared, progress)
