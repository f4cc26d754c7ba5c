"""What a strategy must meet: limits to costs, and a number of primary capsules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capsprune.errors import StrategyError

Kept = NDArray[np.int64]


@dataclass(frozen=True)
class Limit:
    """A cost, as a ratio of the unpruned network's, that a strategy must not pass."""

    #: The option that asks for it, and what it limits, in words.
    option: str
    words: str
    #: What remains at most, between 0 and 1.
    most: float
    #: The ratio that remains, [...], by the units kept in each group, [..., G].
    ratio: Callable[[Kept], NDArray[np.float64]]

    def __post_init__(self) -> None:
        """Check the ratio.

        Raises:
            StrategyError: if it is not between 0 and 1.
        """
        if not 0 < self.most < 1:
            raise StrategyError(
                f"A ratio of {self.most:g} of the {self.words} is not between 0 and 1; give the "
                f"part that remains, such as --{self.option} 0.5."
            )

    def excess(self, kept: Kept) -> NDArray[np.float64]:
        """Return by how much the limit is passed, [...]; negative where it is not."""
        excess: NDArray[np.float64] = self.ratio(kept) - self.most
        return excess


@dataclass(frozen=True)
class Bottleneck:
    """The trunk's output channels S, which decide how many primary capsules a head has."""

    #: Output channels of the trunk for each channel kept in a group, [G].
    per_channel: NDArray[np.int64]
    #: Output channels that no group owns.
    fixed: int
    #: Values in a primary capsule.
    d1: int

    def channels(self, kept: Kept) -> NDArray[np.int64]:
        """Count the trunk's output channels S for channels kept [..., G]."""
        count: NDArray[np.int64] = kept @ self.per_channel + self.fixed
        return count

    def capsules(self, kept: Kept) -> NDArray[np.int64]:
        """Count primary capsules, I = floor(S / D1), for channels kept [..., G]."""
        return self.channels(kept) // self.d1


@dataclass(frozen=True)
class CapsuleCount:
    """A number of primary capsules that a strategy must have exactly."""

    count: int
    bottleneck: Bottleneck

    @property
    def deciding(self) -> NDArray[np.bool_]:
        """Which groups decide the number, [G]."""
        return self.bottleneck.per_channel > 0

    def met(self, kept: Kept) -> NDArray[np.bool_]:
        """Tell which strategies have the number, [...]."""
        return self.bottleneck.capsules(kept) == self.count
