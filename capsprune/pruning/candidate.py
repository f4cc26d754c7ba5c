"""What is known of a strategy that was tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Parts of the time that a candidate takes.
PARTS = ("pruning", "latency", "calibration", "scoring", "other")


@dataclass(frozen=True)
class Candidate:
    """A strategy that was tried."""

    #: Number of the strategy in its search.
    index: int
    #: Removed fraction of each group, [G].
    fractions: tuple[float, ...]
    macs: int
    flops_ratio: float
    parameters: int
    #: Top-1 accuracy on held-out training images after recalibration.
    score: float
    #: The network's own loss on the same images: it decides between equal scores.
    loss: float
    #: Rung of successive halving that this score is of; only scores of one rung compare.
    rung: int = 0
    #: Milliseconds an image, where there is a limit to it.
    latency_ms: float | None = None
    #: By how much the limit of latency is passed, as a part of it. Above 0, the strategy cannot be
    #: taken, and has no score.
    violation: float = 0.0
    #: Seconds by part, of `PARTS`.
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether it meets every limit, those included that can only be measured."""
        return self.violation <= 0

    @property
    def rank(self) -> tuple[int, float, float, float]:
        """Sort key: the best candidate has the largest.

        What went further is better, then what meets the limits, then the score, then the loss.
        """
        return (self.rung, -max(self.violation, 0.0), self.score, -self.loss)

    @property
    def objective(self) -> float:
        """One number in the order of `rank`, for samplers: scores lie in 0 to 1, violations below.

        The loss decides between scores that are equal to ten digits.
        """
        if not self.feasible:
            return -self.violation
        return self.score + 1e-10 / (1 + max(self.loss, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as they are written to JSON; without score where there is none."""
        record = asdict(self)
        if self.feasible:
            del record["violation"]
        else:
            del record["score"], record["loss"]
        if not math.isfinite(self.loss):
            del record["loss"]
        if self.latency_ms is None:
            del record["latency_ms"]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Candidate:
        """Read what `to_dict` gave.

        Raises:
            KeyError: if a field is missing.
            TypeError: if a field is unknown.
        """
        fields = {"score": 0.0, "loss": math.inf if "score" in record else 0.0, **record}
        # Older versions called the removal of channels surgery.
        seconds = {
            "pruning" if part == "surgery" else part: value
            for part, value in fields.get("seconds", {}).items()
        }
        return cls(**{**fields, "fractions": tuple(fields["fractions"]), "seconds": seconds})
