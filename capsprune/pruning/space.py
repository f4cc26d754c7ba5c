"""The strategies of a given size: what they are drawn from, and what they must meet."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capsprune.pruning.cost import CostModel
from capsprune.pruning.limits import Count, FileLimit, Limit
from capsprune.pruning.strategy import kept_channels

#: How far the FLOPs ratio of a strategy may lie from the target (EagleEye's value).
FLOPS_TOLERANCE = 0.005
#: Shapes that `enumerate` looks at, at most.
_MAX_SHAPES = 100_000

Fractions = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Costs that ratios are of: those of the network that a stage was given."""

    macs: int
    parameters: int

    @classmethod
    def of(cls, cost: CostModel) -> Reference:
        """Return the costs of a cost model's own unpruned network."""
        return cls(cost.unpruned_macs, int(cost.parameters(cost.channels)))


@dataclass(frozen=True)
class SearchSpace:
    """Strategies of a given size.

    Of the limits at least one is met to within the tolerance, while none is passed by more: a
    strategy uses what it is given. With one limit this is EagleEye's condition. Counts are met
    exactly. Where only those are given, everything of at most `max_rates` is allowed in the groups
    that do not decide them.
    """

    cost: CostModel
    #: Largest removal fraction of a group of channels.
    max_rate: float
    limits: tuple[Limit, ...] = ()
    #: Numbers that a strategy must have exactly; a group decides one of them at most.
    counts: tuple[Count, ...] = ()
    #: Channels are kept in multiples of this.
    round_to: int = 1
    tolerance: float = FLOPS_TOLERANCE
    #: What each group is of (`ChannelGroup.kind`), [G]; () for channels in all of them.
    kinds: tuple[str, ...] = ()
    #: Groups that stay whole, by index.
    whole: frozenset[int] = frozenset()
    #: What ratios are of; None for the cost model's own unpruned network.
    given: Reference | None = None

    @property
    def groups(self) -> int:
        """Number of groups, G."""
        return len(self.cost.channels)

    @property
    def max_rates(self) -> Fractions:
        """Largest removal fraction of each group, [G].

        It is `max_rate` for channels. Of capsules, ranks and iterations all but one may go.
        """
        rates = np.full(self.groups, self.max_rate)
        if self.kinds:
            others = np.array(self.kinds) != "channels"
            rates[others] = (1 - 0.5 / self.cost.channels)[others]
        rates[[*self.whole]] = 0.0
        return rates

    @property
    def deciding(self) -> NDArray[np.bool_]:
        """Which groups decide a number that is asked for, [G]."""
        return np.logical_or.reduce(
            [np.zeros(self.groups, dtype=np.bool_), *(count.deciding for count in self.counts)]
        )

    @property
    def reference(self) -> Reference:
        """The costs that ratios are of."""
        return self.given or Reference.of(self.cost)

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
        return np.logical_and.reduce([good, *(count.met(kept) for count in self.counts)])

    def least(self) -> NDArray[np.int64]:
        """Return the fewest units of each group that this space keeps, [G]."""
        return self.kept(self.max_rates)

    def describe(self) -> str:
        """Return what the target is, in words."""
        ratios = [limit.words for limit in self.limits if not isinstance(limit, FileLimit)]
        if ratios and self.tolerance:
            ratios[-1] += f" within {self.tolerance:g}"
        files = [limit.words for limit in self.limits if isinstance(limit, FileLimit)]
        return ", ".join([*ratios, *files, *(count.words for count in self.counts)]) or "none"

    def choices(self, group: int) -> Fractions:
        """Return removal fractions of a group, one for each number of units that it may keep, [n].

        They ascend from 0, which keeps all.
        """
        rate = float(self.max_rates[group])
        channels = int(self.cost.channels[group])
        # Half a unit more than goes, so that rounding down gives that number whatever the digits.
        fractions = np.append((np.arange(channels) + 0.5) / channels, rate)
        fractions = np.append(0.0, np.sort(fractions[fractions <= rate]))
        kept = kept_channels(
            fractions, self.cost.channels[group], self.round_to, self.cost.widths[group]
        )
        _, first = np.unique(kept, return_index=True)
        return fractions[np.sort(first)]

    def enumerate(self, limit: int) -> Fractions | None:
        """Return every strategy on the target once, [n, G], where there are few.

        Args:
            limit: how many there may be.

        Returns:
            Strategies with different numbers of units, those that keep more first; None where there
            are more than the limit, or too many to look through.
        """
        choices = [self.choices(group) for group in range(self.groups)]
        for count in self.counts:
            free = [g for g in np.flatnonzero(count.deciding) if len(choices[g]) > 1]
            if len(free) == 1:  # So that what cannot be is not multiplied.
                group = int(free[0])
                rows = np.zeros((len(choices[group]), self.groups))
                rows[:, group] = choices[group]
                choices[group] = choices[group][count.met(self.kept(rows))]
        if math.prod(len(choice) for choice in choices) > _MAX_SHAPES:
            return None
        rows = np.array([*itertools.product(*choices)]).reshape(-1, self.groups)
        rows = rows[self.meets(rows)] if len(rows) else rows
        return rows if len(rows) <= limit else None
