"""Trying a candidate: remove its channels, recalibrate, score."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.candidate import PARTS
from capsprune.pruning.channels import Compensation, prune_channels
from capsprune.pruning.groups import Dependencies
from capsprune.training.evaluate import evaluate
from capsprune.training.objective import Objective


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
    #: Training images, [batch, C, H, W] each.
    calibration: Sequence[Tensor]
    #: Held-out training images and labels.
    scoring: Sequence[tuple[Tensor, Tensor]]
    #: The loss and the class scores of this network. Other processes must be able to unpickle it.
    objective: Objective
    latency: LatencyLimit | None = None
    #: Which groups change what batch norms see, [G]; None for all of them.
    norms: NDArray[np.bool_] | None = None
    #: Makes up for what was removed. Other processes must be able to unpickle it.
    compensate: Compensation | None = None

    def __call__(self, task: Task) -> Outcome:
        """Try one. What passes the limit of latency is not scored."""
        clock = Clock()
        pruned = self.prune(task.kept)
        clock.lap("pruning")
        latency, violation = task.latency_ms, 0.0
        if self.latency is not None:
            if latency is None:
                latency = self.latency.measure(pruned)
            violation = latency / self.latency.limit_ms - 1
            clock.lap("latency")
            if violation > 0:
                return Outcome(0.0, 0.0, latency, violation, clock.seconds)
        if self.changes_norms(task.kept):
            recalibrate(pruned, self.calibration[: task.calibration])
        clock.lap("calibration")
        result = evaluate(pruned, self.scoring[: task.scoring], self.objective)
        clock.lap("scoring")
        score, loss = result.accuracy, result.loss
        if not math.isfinite(loss):  # Outputs that are no numbers name no class.
            score, loss = 0.0, math.inf
        return Outcome(score, loss, latency, max(violation, 0.0), clock.seconds)

    def prune(self, kept: NDArray[np.int64]) -> nn.Module:
        """Return the pruned network, before its batch norms are recalibrated.

        Args:
            kept: units to keep in each group, [G].
        """
        return prune_channels(self.model, self.dependencies, self.rankings, kept, self.compensate)

    def changes_norms(self, kept: NDArray[np.int64]) -> bool:
        """Tell whether batch norms see something else than before, so that they are recalibrated.

        Where only a head is pruned, the statistics that the trunk was trained with stay right.
        """
        removed = kept < self.dependencies.channels
        return self.norms is None or bool((removed & self.norms).any())


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
