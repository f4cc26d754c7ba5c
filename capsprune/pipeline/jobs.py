"""Jobs in processes of their own: some at a time, each when those that it needs are done."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from capsprune.errors import CapspruneError, Interrupted
from capsprune.pool import Died, Event, Pool, Raised, Returned, Said, Seat
from capsprune.progress import Progress, Update

#: Seconds between two messages of a process about its progress.
_INTERVAL = 0.3
#: Seconds until the bar is drawn again though nothing happened.
_REFRESH = 1.0


@dataclass(frozen=True)
class Job:
    """Something to do in a process of its own."""

    name: str
    #: Called with where to say how it goes, and which of the places it has, from 0. It and what it
    #: holds must be picklable.
    work: Callable[[Progress, int], None]
    #: Names of jobs that come first.
    needs: tuple[str, ...] = ()


def run_jobs(
    jobs: Sequence[Job],
    count: int,
    progress: Progress,
    title: str,
    on_end: Callable[[Job, str | None], None] = lambda job, failed: None,
) -> dict[str, str]:
    """Do jobs, a fresh process for each, so that none inherits another's memory or crash.

    A job that fails does not stop the others; those that need it are not begun.

    Args:
        jobs: those that come first stand first.
        count: how many at a time; the cores are shared out evenly.
        progress: where to say how it goes.
        title: of the progress bar.
        on_end: called when a job has ended, with why it failed, or None.

    Returns:
        Why each of those that failed or were not begun did so, by name.

    Raises:
        Interrupted: if the user stops it; the processes are ended first.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    waiting, failed = list(jobs), dict[str, str]()
    notes: dict[str, str] = {}  # how far each is that is worked on

    def end(job: Job, reason: str | None) -> None:
        if reason is not None:
            failed[job.name] = reason
        on_end(job, reason)

    try:
        with (
            progress.bar(title) as bar,
            Pool(_do, count, threads=threads, reuse=False) as pool,
        ):
            while waiting or pool.busy:
                for job in list(waiting):
                    broken = next((need for need in job.needs if need in failed), None)
                    unfinished = {*notes, *(other.name for other in waiting)}
                    if broken is not None:
                        waiting.remove(job)
                        end(job, f"not begun, as {broken} failed")
                    elif pool.busy < count and unfinished.isdisjoint(job.needs):
                        waiting.remove(job)
                        notes[job.name] = ""
                        pool.submit(job)
                done = len(jobs) - len(waiting) - pool.busy
                bar(done, len(jobs), "; ".join(": ".join(filter(None, n)) for n in notes.items()))
                for job, event in pool.wait(_REFRESH):
                    if isinstance(event, Said):
                        _pass_on(job, event.message, progress, notes)
                        continue
                    del notes[job.name]
                    reason = _reason(event)
                    if reason is not None:
                        progress.say(f"{job.name} failed: {reason}")
                    end(job, reason)
            bar(len(jobs), len(jobs))
    except KeyboardInterrupt:
        raise Interrupted from None
    return failed


def _pass_on(job: Job, message: tuple[str, str], progress: Progress, notes: dict[str, str]) -> None:
    """Show what a job says."""
    kind, text = message
    if kind == "say":
        progress.say(f"{job.name}: {text}")
    elif kind == "detail":
        progress.detail(f"{job.name}: {text}")
    else:
        notes[job.name] = text


def _reason(event: Event) -> str | None:
    """Why a job failed that has ended, or None."""
    if isinstance(event, Died):
        return (
            f"its process ended with exit code {event.exit_code}, perhaps out of memory; give "
            "fewer --jobs."
        )
    if isinstance(event, Raised):
        return event.error
    assert isinstance(event, Returned)
    return None if event.value is None else str(event.value)


class SeatProgress(Progress):
    """Says what there is to say to the process that shows it."""

    def __init__(self, seat: Seat) -> None:
        """Say it from a seat of a pool."""
        self._seat = seat
        self._next = 0.0

    def say(self, text: str) -> None:
        """Send a line."""
        self._seat.say(("say", text))

    def detail(self, text: str) -> None:
        """Send a line for -v."""
        self._seat.say(("detail", text))

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """Send how far it is, now and then."""

        def update(done: int, total: int, note: str = "") -> None:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _INTERVAL
                self._seat.say(("note", f"{title} {100 * done // max(total, 1)} %"))

        yield update


def _do(shared: None, job: Job, seat: Seat) -> str | None:
    """Do a job in its process; gives why it failed, or None."""
    progress = SeatProgress(seat)
    try:
        job.work(progress, seat.place)
    except CapspruneError as error:
        return str(error)
    except Exception:
        progress.detail(traceback.format_exc())
        raise
    return None
