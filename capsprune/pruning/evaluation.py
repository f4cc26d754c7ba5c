"""Trying one candidate: shrink, recalibrate, score. In this process or in several."""

from __future__ import annotations

import contextlib
import math
import multiprocessing.connection
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.errors import StudyError
from capsprune.processes import Child, Parcel, unpack
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.candidate import PARTS
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.shrink import shrink
from capsprune.training.evaluate import evaluate
from capsprune.training.objective import CROSS_ENTROPY

#: Times that a candidate may bring its process down before the search gives up.
_DEATHS = 3


@dataclass(frozen=True)
class LatencyLimit:
    """A limit that can only be measured."""

    #: Milliseconds an image.
    limit_ms: float
    #: Measures a network, in milliseconds an image.
    measure: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Task:
    """A candidate to try."""

    index: int
    #: Channels to keep in each group, [G].
    kept: NDArray[np.int64]
    #: How many of the batches to use.
    calibration: int
    scoring: int
    #: Latency that is known from an earlier rung, in milliseconds.
    latency_ms: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a task."""

    score: float
    #: Infinite where the outputs were no numbers.
    loss: float
    latency_ms: float | None
    violation: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Evaluator:
    """Tries candidates on data that stay in memory."""

    #: The trained unpruned network, on the device, in evaluation mode.
    model: nn.Module
    dependencies: Dependencies
    #: For each group its channels, those to keep longest first.
    rankings: list[Tensor]
    #: Training images, [batch, 3, H, W] each.
    calibration: Sequence[Tensor]
    #: Held-out training images and labels.
    scoring: Sequence[tuple[Tensor, Tensor]]
    latency: LatencyLimit | None = None

    def __call__(self, task: Task) -> Outcome:
        """Try one. What passes the limit of latency is not scored."""
        clock = Clock()
        shrunk = shrink(self.model, self.dependencies, self.rankings, task.kept)
        clock.lap("surgery")
        latency, violation = task.latency_ms, 0.0
        if self.latency is not None:
            if latency is None:
                latency = self.latency.measure(shrunk)
            violation = latency / self.latency.limit_ms - 1
            clock.lap("latency")
            if violation > 0:
                return Outcome(0.0, 0.0, latency, violation, clock.seconds)
        recalibrate(shrunk, self.calibration[: task.calibration])
        clock.lap("calibration")
        result = evaluate(shrunk, self.scoring[: task.scoring], CROSS_ENTROPY)
        clock.lap("scoring")
        score, loss = result.accuracy, result.loss
        if not math.isfinite(loss):  # Outputs that are no numbers name no class.
            score, loss = 0.0, math.inf
        return Outcome(score, loss, latency, max(violation, 0.0), clock.seconds)


class Clock:
    """Adds up seconds by part."""

    def __init__(self) -> None:
        """Start."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap as spent on a part."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


class Workers(Protocol):
    """Where candidates are tried."""

    #: How many are tried at the same time.
    count: int

    @property
    def busy(self) -> int:
        """How many are being tried."""

    def submit(self, task: Task) -> None:
        """Begin one; there must be room."""

    def collect(self) -> list[tuple[Task, Outcome]]:
        """Wait until at least one is done, and give all that are."""

    def close(self) -> None:
        """Stop."""


class InProcess:
    """Tries one candidate at a time, in this process."""

    count = 1

    def __init__(self, evaluator: Evaluator) -> None:
        """Use an evaluator of this process."""
        self._evaluator = evaluator
        self._task: Task | None = None

    @property
    def busy(self) -> int:
        """1 while a candidate waits to be collected."""
        return int(self._task is not None)

    def submit(self, task: Task) -> None:
        """Note the candidate."""
        assert self._task is None
        self._task = task

    def collect(self) -> list[tuple[Task, Outcome]]:
        """Try it now."""
        if self._task is None:
            return []
        task, self._task = self._task, None
        return [(task, self._evaluator(task))]

    def close(self) -> None:
        """Do nothing."""


class ProcessWorkers:
    """Tries several candidates at the same time, each in a process of its own.

    The network and the images are in a file that all of them map (on a GPU: in the same memory of
    the device), so that they are there once. Each process gets its part of the threads. One that
    dies is replaced, and its candidate tried again.
    """

    def __init__(self, evaluator: Evaluator, count: int, folder: Path | None = None) -> None:
        """Start the processes.

        Args:
            evaluator: what each of them uses; it must have no limit of latency, which cannot be
                measured while others compute.
            count: how many.
            folder: for the file; None for the system's temporary one.

        Raises:
            OSError: if there is no space for the file.
        """
        assert evaluator.latency is None
        self.count = count
        self._threads = max(1, torch.get_num_threads() // count)
        self._evaluator = evaluator
        self._folder = folder
        self._parcels: list[Parcel] = []
        self._deaths: dict[int, int] = {}
        self._waiting: deque[Task] = deque()
        self._processes: list[_Process] = []
        try:
            for _ in range(count):
                self._processes.append(self._start())
        except BaseException:
            self.close()
            raise

    @property
    def busy(self) -> int:
        """How many candidates are being tried."""
        return sum(process.task is not None for process in self._processes) + len(self._waiting)

    def submit(self, task: Task) -> None:
        """Give a candidate to a process that has none."""
        self._waiting.append(task)
        self._hand_out()

    def collect(self) -> list[tuple[Task, Outcome]]:
        """Wait for results.

        Raises:
            StudyError: if one candidate brought several processes down.
            Exception: what went wrong in a process.
        """
        done: list[tuple[Task, Outcome]] = []
        while self.busy and not done:
            ready = multiprocessing.connection.wait([one.child.pipe for one in self._processes])
            for position, process in enumerate(self._processes):
                if process.child.pipe not in ready:
                    continue
                try:
                    answer = process.child.pipe.recv()
                except (EOFError, ConnectionError):
                    self._replace(position)
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                assert process.task is not None
                done.append((process.task, answer))
                process.task = None
            self._hand_out()
        return done

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.child.terminate()
        for process in self._processes:
            process.child.end()
        self._processes.clear()
        for parcel in self._parcels:
            parcel.close()
        self._parcels.clear()

    def _start(self) -> _Process:
        # What is on a GPU can be taken out of a parcel once only.
        if not self._parcels or self._on_gpu:
            self._parcels.append(Parcel(self._evaluator, self._folder))
        parcel = self._parcels[-1]
        return _Process(
            Child(_work, parcel.address, self._threads, keep=(parcel.descriptor,)),
        )

    @property
    def _on_gpu(self) -> bool:
        return any(parameter.is_cuda for parameter in self._evaluator.model.parameters())

    def _hand_out(self) -> None:
        for position, process in enumerate(self._processes):
            if not self._waiting:
                return
            if process.task is None:
                process.task = self._waiting.popleft()
                try:
                    process.child.pipe.send(process.task)
                except (BrokenPipeError, ConnectionError):
                    self._replace(position)

    def _replace(self, position: int) -> None:
        dead = self._processes[position]
        dead.child.end()
        if dead.task is not None:
            deaths = self._deaths[dead.task.index] = self._deaths.get(dead.task.index, 0) + 1
            if deaths >= _DEATHS:
                raise StudyError(
                    f"Candidate {dead.task.index} ended its process {deaths} times (exit code "
                    f"{dead.child.wait()}), perhaps for want of memory; give fewer --workers."
                )
            self._waiting.appendleft(dead.task)
        self._processes[position] = self._start()


@dataclass
class _Process:
    child: Child
    task: Task | None = None


def _work(pipe: Connection, address: tuple[int, int], threads: int) -> None:
    """What a process does: try what it is sent until the pipe closes."""
    torch.set_num_threads(threads)
    evaluator = unpack(address)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = pipe.recv()
            try:
                answer: Any = evaluator(task)
            except Exception as error:
                answer = _sendable(error)
            pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """The error itself may hold what cannot be sent, or be of a kind that cannot be made again."""
    return RuntimeError(f"{type(error).__name__} in a worker process: {error}")
