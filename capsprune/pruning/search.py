"""The search for a strategy (EagleEye): propose, shrink, recalibrate, score, pick the best."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.errors import StrategyError
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.cost import CostModel
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.shrink import l1_ranking, shrink
from capsprune.pruning.strategy import kept_channels
from capsprune.training.evaluate import evaluate
from capsprune.training.objective import CROSS_ENTROPY

#: How far the FLOPs ratio of a strategy may lie from the target (EagleEye's value).
FLOPS_TOLERANCE = 0.005

#: Largest removal fraction by FLOPs ratio, as EagleEye's published searches chose it.
_PUBLISHED_MAX_RATES = ((0.25, 0.8), (0.5, 0.7), (0.75, 0.4))
_LARGEST_MAX_RATE = 0.95
#: Proposals that may fail to reach the target before the target counts as out of reach.
_PROPOSALS = 200
#: Halvings of the way to the target: enough to move a single channel.
_BISECTIONS = 40


@dataclass(frozen=True)
class Candidate:
    """A strategy that was tried."""

    index: int
    #: Removed fraction of each group, [G].
    fractions: tuple[float, ...]
    macs: int
    flops_ratio: float
    #: Top-1 accuracy on held-out training images after recalibration.
    score: float
    #: Cross-entropy on the same images: it decides between equal scores.
    loss: float
    #: Seconds by part: "surgery", "calibration", "scoring", "other".
    seconds: dict[str, float]

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: the best candidate has the largest."""
        return (self.score, -self.loss)


@dataclass(frozen=True)
class SearchResult:
    """Every candidate, and the one to take."""

    candidates: list[Candidate]
    best: Candidate

    def seconds(self) -> dict[str, float]:
        """Sum the seconds by part over all candidates."""
        parts = self.candidates[0].seconds
        return {part: sum(c.seconds[part] for c in self.candidates) for part in parts}


@dataclass
class CandidateFile:
    """Candidates on disk, one line each, so that a search that was interrupted goes on."""

    path: Path
    candidates: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the candidates that are there; a last line that was cut short is dropped."""
        if not self.path.is_file():
            return
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                    record["fractions"] = tuple(record["fractions"])
                    candidate = Candidate(**record)
                    if not line.endswith(b"\n"):
                        break
                except (ValueError, TypeError, KeyError):
                    break
                if candidate.index != len(self.candidates):
                    break
                self.candidates.append(candidate)
                whole += len(line)
        os.truncate(self.path, whole)

    def append(self, candidate: Candidate) -> None:
        """Write a candidate, so that it survives even the loss of power."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(candidate)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.candidates.append(candidate)


@dataclass(frozen=True)
class SearchSpace:
    """Strategies that leave a given part of the FLOPs."""

    cost: CostModel
    #: FLOPs ratio that remains.
    target: float
    #: Largest removal fraction of a group.
    max_rate: float
    #: Channels are kept in multiples of this.
    round_to: int = 1
    tolerance: float = FLOPS_TOLERANCE

    @classmethod
    def around(
        cls, cost: CostModel, target: float, max_rate: float | None = None, round_to: int = 1
    ) -> SearchSpace:
        """Make the space for a target.

        Args:
            cost: of the unpruned network.
            target: FLOPs ratio that remains.
            max_rate: largest removal fraction; None for one between EagleEye's published choices,
                or higher where those cannot reach the target.
            round_to: keep multiples of this many channels.

        Raises:
            StrategyError: if target or max_rate are out of range, or the target is out of reach.
        """
        if not 0 < target < 1:
            raise StrategyError(
                f"A FLOPs ratio of {target:g} is not between 0 and 1; give the part that remains, "
                "such as --flops 0.5."
            )
        if max_rate is None:
            ratios, rates = zip(*_PUBLISHED_MAX_RATES, strict=True)
            rate = float(np.interp(target, (0.0, *ratios, 1.0), (_LARGEST_MAX_RATE, *rates, 0.1)))
            # Where a network has layers that no group can shrink, the others must give more.
            while (
                rate < _LARGEST_MAX_RATE and cls(cost, target, rate, round_to).lowest > 0.9 * target
            ):
                rate = min(rate + 0.05, _LARGEST_MAX_RATE)
            max_rate = rate
        if not 0 < max_rate < 1:
            raise StrategyError(
                f"A largest removal fraction of {max_rate:g} is not between 0 and 1; give, for "
                "example, --max-rate 0.7."
            )
        space = cls(cost, target, max_rate, round_to)
        if space.lowest > target + space.tolerance:
            raise StrategyError(
                f"No strategy that removes at most {max_rate:g} of each group leaves {target:g} of "
                f"the FLOPs: the least is {space.lowest:.3f}; give a higher --max-rate or --flops."
            )
        return space

    @property
    def lowest(self) -> float:
        """The lowest FLOPs ratio of this space."""
        return self._ratio(np.full(len(self.cost.channels), self.max_rate))

    def kept(self, fractions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Count the channels kept in each group, [..., G]."""
        return kept_channels(fractions, self.cost.channels, self.round_to, self.cost.widths)

    def propose(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """Draw a strategy as EagleEye does, and move it onto the target.

        Fractions are drawn uniformly from [0, max_rate]. Instead of throwing a strategy away whose
        FLOPs ratio misses the target, all of its fractions move the same part of their way towards
        0 or towards max_rate, which keeps their order and their spread.

        Args:
            generator: where the randomness comes from.

        Returns:
            Removal fractions, [G].

        Raises:
            StrategyError: if no draw could be moved onto the target.
        """
        for _ in range(_PROPOSALS):
            drawn = generator.uniform(0.0, self.max_rate, len(self.cost.channels))
            ratio = self._ratio(drawn)
            if abs(ratio - self.target) <= self.tolerance:
                return drawn
            above = ratio > self.target
            end = np.full_like(drawn, self.max_rate if above else 0.0)
            low, high = 0.0, 1.0
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                moved = drawn + middle * (end - drawn)
                ratio = self._ratio(moved)
                if abs(ratio - self.target) <= self.tolerance:
                    return moved
                if (ratio > self.target) == above:
                    low = middle
                else:
                    high = middle
            if abs(self._ratio(end) - self.target) <= self.tolerance:
                return end
        raise StrategyError(
            f"No strategy was found whose FLOPs ratio lies within {self.tolerance:g} of "
            f"{self.target:g}; give another --flops, or a lower --round-to."
        )

    def _ratio(self, fractions: NDArray[np.float64]) -> float:
        return float(self.cost.flops_ratio(self.kept(fractions)))


def search(
    model: nn.Module,
    dependencies: Dependencies,
    space: SearchSpace,
    *,
    candidates: int,
    seed: int,
    calibration: Sequence[Tensor],
    scoring: Sequence[tuple[Tensor, Tensor]],
    storage: CandidateFile,
    on_candidate: Callable[[Candidate], None] | None = None,
) -> SearchResult:
    """Try candidates and take the best.

    A candidate follows from the seed and its number alone, so a search that goes on from its
    storage tries what an uninterrupted one would have tried.

    Args:
        model: the trained unpruned network, on the device, in evaluation mode.
        dependencies: its groups.
        space: where candidates are drawn from.
        candidates: how many to try.
        seed: of the proposals.
        calibration: training images for the batch norm statistics, [batch, 3, H, W] each.
        scoring: held-out training images and labels.
        storage: where candidates are kept; those that it has are not tried again.
        on_candidate: called after each candidate.

    Raises:
        StrategyError: if the target cannot be met.
    """
    rankings = l1_ranking(model, dependencies)
    for index in range(len(storage.candidates), candidates):
        clock = _Clock()
        fractions = space.propose(np.random.default_rng((seed, index)))
        kept = space.kept(fractions)
        macs = int(space.cost.macs(kept))
        clock.lap("other")
        shrunk = shrink(model, dependencies, rankings, kept)
        clock.lap("surgery")
        recalibrate(shrunk, calibration)
        clock.lap("calibration")
        result = evaluate(shrunk, scoring, CROSS_ENTROPY)
        clock.lap("scoring")
        candidate = Candidate(
            index=index,
            fractions=tuple(float(f) for f in fractions),
            macs=macs,
            flops_ratio=macs / space.cost.unpruned_macs,
            score=result.accuracy,
            loss=result.loss,
            seconds=clock.seconds,
        )
        storage.append(candidate)
        if on_candidate:
            on_candidate(candidate)
        clock.lap("other")
    tried = storage.candidates[:candidates]
    return SearchResult(tried, max(tried, key=lambda candidate: candidate.rank))


class _Clock:
    """Adds up seconds by part."""

    def __init__(self) -> None:
        self.seconds = {"surgery": 0.0, "calibration": 0.0, "scoring": 0.0, "other": 0.0}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now
