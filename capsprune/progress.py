"""What a long job says while it runs: lines and progress bars on stderr, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done, with a note beside the bar."""


class Progress:
    """Says nothing: for use from Python."""

    verbose = False

    def say(self, text: str) -> None:
        """Say something that every user wants to know."""

    def detail(self, text: str) -> None:
        """Say something that is shown with -v only."""

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """Show a progress bar while the context lasts."""
        yield lambda done, total, note="": None


class TerminalProgress(Progress):
    """Lines and bars on stderr. Where stderr is no terminal, bars become a line now and then."""

    def __init__(self, verbose: bool = False) -> None:
        """Make one.

        Args:
            verbose: say details too.
        """
        from rich.console import Console

        self.verbose = verbose
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def detail(self, text: str) -> None:
        """Print a line if verbose."""
        if self.verbose:
            self._console.print(text, style="dim", markup=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """Show a bar with the part done, a note, and the time left."""
        if not self._console.is_terminal:
            yield _Lines(title)
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns: tuple[Any, ...] = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(title, total=None, note="")

            def update(done: int, total: int, note: str = "") -> None:
                bars.update(task, completed=done, total=total)
                if note:
                    bars.update(task, note=note)

            yield update


class _Lines:
    """Four lines for a whole job: what a log file can bear."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._quarter = 0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        quarter = 4 * done // max(total, 1)
        if quarter > self._quarter:
            self._quarter = quarter
            suffix = f" ({note})" if note else ""
            print(f"{self._title}: {done}/{total}{suffix}", file=sys.stderr, flush=True)
