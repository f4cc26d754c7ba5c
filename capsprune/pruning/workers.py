"""Where candidates are tried: in this process, or in several at the same time."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Protocol

import torch

from capsprune.errors import StudyError
from capsprune.pool import Died, Pool, Raised, Returned, Seat
from capsprune.pruning.evaluation import Evaluator, Outcome, Task

#: Times that a candidate is tried whose process dies, before the search gives up.
ATTEMPTS = 3


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
    """Tries several candidates at the same time, each in a process with its part of the threads."""

    def __init__(self, evaluator: Evaluator, count: int, folder: Path | None = None) -> None:
        """Share out an evaluator.

        Args:
            evaluator: what each process uses; it must have no limit of latency, which cannot be
                measured while others compute.
            count: how many processes.
            folder: for the file of what they share; None for the system's temporary one.

        Raises:
            OSError: if there is no space for the file.
            StudyError: if the evaluator cannot be sent to other processes.
        """
        assert evaluator.latency is None
        try:
            pickle.dumps(evaluator.objective)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise StudyError(
                f"The loss of this network cannot be sent to other processes ({error}); give "
                "--workers 1, or let its head's objective be of functions of a module."
            ) from error
        self.count = count
        self.pool = Pool(
            _try,
            count,
            threads=max(1, torch.get_num_threads() // count),
            attempts=ATTEMPTS,
            shared=evaluator,
            folder=folder,
            on_gpu=any(parameter.is_cuda for parameter in evaluator.model.parameters()),
        )

    @property
    def busy(self) -> int:
        """How many candidates are being tried."""
        return self.pool.busy

    def submit(self, task: Task) -> None:
        """Give a candidate to a process that has none."""
        self.pool.submit(task)

    def collect(self) -> list[tuple[Task, Outcome]]:
        """Wait for results.

        Raises:
            StudyError: if one candidate brought several processes down.
            RuntimeError: if something else went wrong in a process.
        """
        done: list[tuple[Task, Outcome]] = []
        while self.busy and not done:
            for task, event in self.pool.wait():
                if isinstance(event, Died):
                    raise StudyError(
                        f"Candidate {task.index} ended its process {event.times} times (exit code "
                        f"{event.exit_code}), perhaps out of memory; give fewer --workers."
                    )
                if isinstance(event, Raised):
                    # The error itself may hold what cannot be sent.
                    kind, _, text = event.error.partition(": ")
                    raise RuntimeError(f"{kind} in a worker process: {text}")
                assert isinstance(event, Returned)
                done.append((task, event.value))
        return done

    def close(self) -> None:
        """End the processes."""
        self.pool.close()


def _try(evaluator: Evaluator, task: Task, seat: Seat) -> Outcome:
    return evaluator(task)
