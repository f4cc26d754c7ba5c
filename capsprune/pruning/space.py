"""The strategies of a given size: what they are drawn from, and what they must meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capsprune.pruning.cost import CostModel
from capsprune.pruning.limits import CapsuleCount, Limit
from capsprune.pruning.strategy import kept_channels

#: How far the FLOPs ratio of a strategy may lie from the target (EagleEye's value).
FLOPS_TOLERANCE = 0.005

Fractions = NDArray[np.float64]


@dataclass(frozen=True)
class SearchSpace:
    """Strategies of a given size.

    Of the limits at least one is met to within the tolerance, while none is passed by more: a
    strategy uses what it is given. With one limit this is EagleEye's condition. The number of
    primary capsules is met exactly. Where only that is given, everything of at most `max_rate` is
    allowed in the groups that do not decide it.
    """

    cost: CostModel
    #: Largest removal fraction of a group.
    max_rate: float
    limits: tuple[Limit, ...] = ()
    #: Number of primary capsules; None for any.
    capsules: CapsuleCount | None = None
    #: Channels are kept in multiples of this.
    round_to: int = 1
    tolerance: float = FLOPS_TOLERANCE

    @property
    def groups(self) -> int:
        """Number of groups, G."""
        return len(self.cost.channels)

    @property
    def deciding(self) -> NDArray[np.bool_]:
        """Which groups decide the number of primary capsules, where one is asked for, [G]."""
        if self.capsules is None:
            return np.zeros(self.groups, dtype=np.bool_)
        return self.capsules.deciding

    def kept(self, fractions: Fractions) -> NDArray[np.int64]:
        """Count the units kept in each group, [..., G]."""
        return kept_channels(fractions, self.cost.channels, self.round_to, self.cost.widths)

    def excess(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return by how much the limit that is passed furthest is, [...]; negative for none."""
        if not self.limits:
            return np.zeros(kept.shape[:-1])
        return np.maximum.reduce([limit.excess(kept) for limit in self.limits])

    def meets(self, fractions: Fractions) -> NDArray[np.bool_]:
        """Tell which strategies [..., G] lie on the target, [...]."""
        kept = self.kept(fractions)
        good: NDArray[np.bool_] = np.abs(self.excess(kept)) <= self.tolerance
        return good if self.capsules is None else good & self.capsules.met(kept)

    def least(self) -> NDArray[np.int64]:
        """Return the fewest units of each group that this space keeps, [G]."""
        return self.kept(np.full(self.groups, self.max_rate))

    def describe(self) -> str:
        """Return what the target is, in words."""
        parts = [f"{limit.most:g} of the {limit.words}" for limit in self.limits]
        if parts and self.tolerance:
            parts[-1] += f" within {self.tolerance:g}"
        if self.capsules is not None:
            parts.append(f"{self.capsules.count} primary capsules")
        return ", ".join(parts) or "none"
