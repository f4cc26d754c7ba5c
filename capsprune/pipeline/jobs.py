"""Jobs in processes of their own: some at a time, each when those that it needs are done."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from capsprune.errors import CapspruneError, Interrupted
from capsprune.processes import Child
from capsprune.progress import Progress, Update

#: Seconds between two messages of a process about its progress.
_INTERVAL = 0.3


@dataclass(frozen=True)
class Job:
    """Something to do in a process of its own."""

    name: str
    #: Called with where to say how it goes, and which of the places it has, from 0. It and what it
    #: holds must be picklable.
    work: Callable[[Progress, int], None]
    #: Names of jobs that come first.
    needs: tuple[str, ...] = ()


@dataclass
class _Running:
    job: Job
    child: Child
    place: int
    #: None while it works; then "" or why it failed.
    outcome: str | None = None
    note: str = ""


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
    waiting, running, failed = list(jobs), list[_Running](), dict[str, str]()
    try:
        with progress.bar(title) as bar:
            while waiting or running:
                for job in list(waiting):
                    broken = next((need for need in job.needs if need in failed), None)
                    if broken is not None:
                        waiting.remove(job)
                        failed[job.name] = f"not begun, as {broken} failed"
                        on_end(job, failed[job.name])
                    elif len(running) < count and not _unfinished(job, waiting, running):
                        waiting.remove(job)
                        taken = {one.place for one in running}
                        place = next(n for n in range(count) if n not in taken)
                        child = Child(_work, job, place, threads)
                        running.append(_Running(job, child, place))
                done = len(jobs) - len(waiting) - len(running)
                bar(done, len(jobs), "; ".join(_note(one) for one in running))
                if running:
                    _listen(running, progress)
                for one in [one for one in running if one.outcome is not None]:
                    running.remove(one)
                    if one.outcome:
                        failed[one.job.name] = one.outcome
                        progress.say(f"{one.job.name} failed: {one.outcome}")
                    on_end(one.job, one.outcome or None)
            bar(len(jobs), len(jobs))
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        for one in running:
            one.child.terminate()
        for one in running:
            one.child.end()
    return failed


def _unfinished(job: Job, waiting: Sequence[Job], running: Sequence[_Running]) -> bool:
    names = {one.name for one in waiting} | {one.job.name for one in running}
    return any(need in names for need in job.needs)


def _note(one: _Running) -> str:
    return f"{one.job.name}: {one.note}" if one.note else one.job.name


def _listen(running: Sequence[_Running], progress: Progress) -> None:
    """Take what the processes say, for a moment at least."""
    ready = multiprocessing.connection.wait([one.child.pipe for one in running], timeout=1.0)
    for one in running:
        if one.child.pipe not in ready:
            continue
        try:
            while one.outcome is None and one.child.pipe.poll():
                kind, text = one.child.pipe.recv()
                if kind == "say":
                    progress.say(f"{one.job.name}: {text}")
                elif kind == "detail":
                    progress.detail(f"{one.job.name}: {text}")
                elif kind == "note":
                    one.note = text
                else:
                    one.outcome = text
        except (EOFError, ConnectionError):
            one.outcome = (
                f"its process ended with exit code {one.child.wait()}, perhaps for want of "
                "memory; give fewer --jobs."
            )
        if one.outcome is not None:
            one.child.wait(30)
            one.child.end()


class PipeProgress(Progress):
    """Says what there is to say to the process that shows it."""

    def __init__(self, pipe: Connection) -> None:
        """Send to a pipe; the process ends when nobody is at the other side any more."""
        self._pipe = pipe
        self._next = 0.0

    def say(self, text: str) -> None:
        """Send a line."""
        self._send("say", text)

    def detail(self, text: str) -> None:
        """Send a line for -v."""
        self._send("detail", text)

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """Send how far it is, now and then."""

        def update(done: int, total: int, note: str = "") -> None:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _INTERVAL
                self._send("note", f"{title} {100 * done // max(total, 1)} %")

        yield update

    def _send(self, kind: str, text: str) -> None:
        try:
            self._pipe.send((kind, text))
        except (BrokenPipeError, ConnectionError):
            sys.exit(1)


def _work(pipe: Connection, job: Job, place: int, threads: int) -> None:
    """What a process does."""
    import torch

    torch.set_num_threads(threads)
    progress = PipeProgress(pipe)
    outcome = ""
    try:
        job.work(progress, place)
    except CapspruneError as error:
        outcome = str(error)
    except Exception as error:  # A fault of ours must not take the other jobs along.
        outcome = f"{type(error).__name__}: {error}"
        progress.detail(traceback.format_exc())
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        pipe.send(("end", outcome))
