"""A pool of processes for tasks: those of a search, which are many, and those of a sweep.

The pools of `concurrent.futures` and of loky miss three things that both need. Where one process
dies, they fail every task that is under way or waiting and do not say whose process it was
(BrokenProcessPool, TerminatedWorkerError), so that its task cannot be tried again or be told from
the rest. Their processes import from the current folder before any of our code runs: loky's end
where a `random.py` lies there, and those of `concurrent.futures` run a script without a main guard
once more. And they are in the terminal's group, so that Ctrl-C reaches each of them. `Child` has
none of these; what is left for a pool is short.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from capsprune.processes import Child, Parcel, unpack

#: Seconds that a process which has done its only task has to end by itself.
_PATIENCE = 30


class Seat:
    """A task's place in the pool, and its way to say something to the parent."""

    def __init__(self, place: int, pipe: Connection) -> None:
        """Say it to a pipe.

        Args:
            place: number of the process among those of the pool, from 0: no two tasks that are
                worked on at the same time have the same.
            pipe: to the parent.
        """
        self.place = place
        self._pipe = pipe

    def say(self, message: Any) -> None:
        """Send a message, which is picklable. Without a parent the process ends."""
        try:
            self._pipe.send(Said(message))
        except (BrokenPipeError, ConnectionError):
            raise SystemExit(1) from None


@dataclass(frozen=True)
class Said:
    """What a task says while it is worked on."""

    message: Any


@dataclass(frozen=True)
class Returned:
    """What a task gave: it is done."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """What a task raised: its kind and text, as the error itself may not be picklable."""

    error: str


@dataclass(frozen=True)
class Died:
    """A task whose process died each time that it was tried."""

    exit_code: int | None
    times: int


Event = Said | Returned | Raised | Died
#: What the processes do: called with what they share, a task, and its seat.
Work = Callable[[Any, Any, Seat], Any]


@dataclass
class _Ticket:
    task: Any
    deaths: int = 0


@dataclass
class _Worker:
    child: Child
    place: int
    #: What it works on; None where it waits for something.
    ticket: _Ticket | None = None


class Pool:
    """Processes that work on tasks at the same time. Use it as a context manager, or `close` it.

    They are started when there are tasks for them. One that dies is replaced, and its task tried
    again. What they share is in a file that all of them map (on a GPU: in the same memory of the
    device), so that it is there once.
    """

    def __init__(
        self,
        work: Work,
        count: int,
        *,
        threads: int,
        attempts: int = 1,
        shared: Any = None,
        folder: Path | None = None,
        reuse: bool = True,
        on_gpu: bool = False,
    ) -> None:
        """Make a pool.

        Args:
            work: a function of a module, called in the processes.
            count: tasks at a time.
            threads: of PyTorch, in each process.
            attempts: times that a task may be tried, if its process dies.
            shared: given to each call of `work`; picklable, with tensors anywhere in it.
            folder: for the file of what is shared; None for the system's temporary one.
            reuse: whether a process works on many tasks; else each has a fresh one, which inherits
                no other's memory.
            on_gpu: whether there are tensors on a GPU in what is shared.

        Raises:
            OSError: if there is no space for the file.
        """
        self.count = count
        self._work = work
        self._threads = threads
        self._attempts = attempts
        self._shared = shared
        self._folder = folder
        self._reuse = reuse
        self._on_gpu = on_gpu
        self._waiting: deque[_Ticket] = deque()
        self._workers: list[_Worker] = []
        self._parcels: list[Parcel] = [] if shared is None else [Parcel(shared, folder)]
        self._fresh_parcel = True

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def busy(self) -> int:
        """How many tasks are worked on or waiting."""
        return sum(worker.ticket is not None for worker in self._workers) + len(self._waiting)

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes."""
        return [worker.child.pid for worker in self._workers]

    def submit(self, task: Any) -> None:
        """Give a task, which is picklable, to a process, or have it wait for one."""
        self._waiting.append(_Ticket(task))
        self._hand_out()

    def wait(self, seconds: float | None = None) -> list[tuple[Any, Event]]:
        """Wait until something happens to a task.

        Args:
            seconds: to wait at most; None for as long as it takes.

        Returns:
            Tasks and what happened to them; nothing where that took too long, or where a process
            died whose task is tried again.
        """
        pipes = {id(w.child.pipe): w for w in self._workers if w.ticket is not None}
        waited_for = [worker.child.pipe for worker in pipes.values()]
        events: list[tuple[Any, Event]] = []
        for pipe in multiprocessing.connection.wait(waited_for, seconds):
            worker = pipes[id(pipe)]
            assert worker.ticket is not None
            task = worker.ticket.task
            try:
                event = worker.child.pipe.recv()
            except (EOFError, ConnectionError):
                death = self._bury(worker, worker.ticket)
                if death is not None:
                    events.append((task, death))
                continue
            if not isinstance(event, Said):
                worker.ticket = None
                if not self._reuse:
                    worker.child.wait(_PATIENCE)
                    self._remove(worker)
            events.append((task, event))
        self._hand_out()
        return events

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for worker in self._workers:
            worker.child.terminate()
        for worker in self._workers:
            worker.child.end()
        self._workers.clear()
        self._waiting.clear()
        for parcel in self._parcels:
            parcel.close()
        self._parcels.clear()

    def _hand_out(self) -> None:
        """Give what waits to those that have nothing to do."""
        while self._waiting:
            worker = next((worker for worker in self._workers if worker.ticket is None), None)
            if worker is None:
                if len(self._workers) == self.count:
                    return
                worker = self._start()
            worker.ticket = self._waiting.popleft()
            # One that has died is noticed by `wait`.
            with contextlib.suppress(BrokenPipeError, ConnectionError):
                worker.child.pipe.send(worker.ticket.task)

    def _start(self) -> _Worker:
        taken = {worker.place for worker in self._workers}
        place = next(number for number in range(self.count) if number not in taken)
        address: tuple[int, int] | None = None
        keep: tuple[int, ...] = ()
        if self._parcels:
            # What is on a GPU can be taken out of a parcel once only.
            if self._on_gpu and not self._fresh_parcel:
                self._parcels.append(Parcel(self._shared, self._folder))
            self._fresh_parcel = False
            address, keep = self._parcels[-1].address, (self._parcels[-1].descriptor,)
        child = Child(_serve, self._work, address, place, self._threads, self._reuse, keep=keep)
        worker = _Worker(child, place)
        self._workers.append(worker)
        return worker

    def _bury(self, worker: _Worker, ticket: _Ticket) -> Died | None:
        """Remove a process that died; its task comes first, if it may be tried again."""
        exit_code = worker.child.wait()
        self._remove(worker)
        ticket.deaths += 1
        if ticket.deaths < self._attempts:
            self._waiting.appendleft(ticket)
            return None
        return Died(exit_code, ticket.deaths)

    def _remove(self, worker: _Worker) -> None:
        worker.child.end()
        self._workers.remove(worker)


def _serve(
    pipe: Connection,
    work: Work,
    address: tuple[int, int] | None,
    place: int,
    threads: int,
    reuse: bool,
) -> None:
    """Do what a process is for: work on what it is sent, until the pipe closes."""
    import torch

    torch.set_num_threads(threads)
    shared = None if address is None else unpack(address)
    seat = Seat(place, pipe)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = pipe.recv()
            try:
                event: Event = Returned(work(shared, task, seat))
            except Exception as error:
                event = Raised(f"{type(error).__name__}: {error}")
            pipe.send(event)
            if not reuse:
                return
