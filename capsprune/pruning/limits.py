"""What a strategy must meet: limits to costs, and exact numbers of what a network has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from capsprune.pruning.file_size import FileSize, format_bytes

Kept = NDArray[np.int64]


@dataclass(frozen=True)
class Limit(ABC):
    """A cost that a strategy must not pass."""

    #: The option that asks for it, without hyphens before it.
    option: str
    #: The most that may remain.
    most: float

    @abstractmethod
    def cost(self, kept: Kept) -> NDArray[np.float64]:
        """Return what remains, in the unit of `most`, [...], by units kept [..., G]."""

    @abstractmethod
    def excess(self, kept: Kept) -> NDArray[np.float64]:
        """Return by how much the limit is passed, as a part, [...]; negative where it is not."""

    @abstractmethod
    def part(self, unpruned: Kept) -> float:
        """Return what may remain as a part of the unpruned network's cost."""

    @abstractmethod
    def say(self, cost: float) -> str:
        """Return a cost in words, such as "0.5 of the FLOPs"."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What is asked for, in words."""

    @abstractmethod
    def figure(self, cost: float) -> str:
        """Return a cost as briefly as can be."""


@dataclass(frozen=True)
class RatioLimit(Limit):
    """A cost as a ratio of the reference network's, met to within the tolerance of the space."""

    #: What it is a ratio of.
    what: str
    ratio: Callable[[Kept], NDArray[np.float64]]

    def cost(self, kept: Kept) -> NDArray[np.float64]:
        """Return the ratio that remains."""
        return self.ratio(kept)

    def excess(self, kept: Kept) -> NDArray[np.float64]:
        """Return the difference of the ratios."""
        excess: NDArray[np.float64] = self.ratio(kept) - self.most
        return excess

    def part(self, unpruned: Kept) -> float:
        """Return the ratio asked for."""
        return self.most

    def say(self, cost: float) -> str:
        """Return the ratio with what it is of."""
        return f"{cost:.3f} of the {self.what}"

    @property
    def words(self) -> str:
        """The ratio with what it is of."""
        return f"{self.most:g} of the {self.what}"

    def figure(self, cost: float) -> str:
        """Return three decimals."""
        return f"{cost:.3f}"


@dataclass(frozen=True)
class FileLimit(Limit):
    """The bytes of the exported file, which are never passed."""

    size: FileSize
    #: How far below the limit strategies are aimed, as a part of it: the tolerance of the space.
    margin: float

    def cost(self, kept: Kept) -> NDArray[np.float64]:
        """Return the bytes of the file."""
        return self.size.bytes(kept).astype(np.float64)

    def excess(self, kept: Kept) -> NDArray[np.float64]:
        """Return how far the file is above what is aimed at, as a part of the limit."""
        excess: NDArray[np.float64] = self.cost(kept) / self.most - 1 + self.margin
        return excess

    def part(self, unpruned: Kept) -> float:
        """Return what may remain of the unpruned network's file."""
        return self.most / float(self.cost(unpruned))

    def say(self, cost: float) -> str:
        """Return the size of the file."""
        return f"a file of {format_bytes(cost)}"

    @property
    def words(self) -> str:
        """The largest size of the file."""
        return f"a file of at most {format_bytes(self.most)}"

    def figure(self, cost: float) -> str:
        """Return the bytes in their largest unit."""
        return format_bytes(cost)


@dataclass(frozen=True)
class Counted:
    """What a network has a number of, as a function of the units kept in each group.

    The number is `floor((kept @ per_unit + fixed) / divisor)`. Of the primary capsules that a
    pruned trunk will have it is S / D1, S being linear in the channels kept.
    """

    #: How many there are for each unit kept in a group, before the division, [G].
    per_unit: NDArray[np.int64]
    #: How many no group owns.
    fixed: int = 0
    divisor: int = 1

    @classmethod
    def in_groups(cls, chosen: NDArray[np.bool_]) -> Counted:
        """Return the count of the units of chosen groups, [G]."""
        return cls(chosen.astype(np.int64))

    @property
    def deciding(self) -> NDArray[np.bool_]:
        """Which groups decide the number, [G]."""
        return self.per_unit > 0

    def total(self, kept: Kept) -> NDArray[np.int64]:
        """Count before the division, [...], for units kept [..., G]."""
        count: NDArray[np.int64] = kept @ self.per_unit + self.fixed
        return count

    def number(self, kept: Kept) -> NDArray[np.int64]:
        """Count, [...], for units kept [..., G]."""
        return self.total(kept) // self.divisor


@dataclass(frozen=True)
class Count:
    """A number that a strategy must have exactly."""

    number: int
    counted: Counted = field(repr=False)
    #: The option that asks for it, and what there is a number of.
    option: str
    what: str
    #: How else there may be more of it than the network has, as options.
    remedy: str = ""

    @property
    def deciding(self) -> NDArray[np.bool_]:
        """Which groups decide the number, [G]."""
        return self.counted.deciding

    def met(self, kept: Kept) -> NDArray[np.bool_]:
        """Tell which strategies have the number, [...]."""
        return self.counted.number(kept) == self.number

    @property
    def words(self) -> str:
        """What is asked for, in words."""
        return f"{self.number} {self.what}"
