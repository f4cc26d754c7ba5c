"""The sizes that a pruned network is asked to have, as one value.

A new kind of size is one more field of `Target`, with what follows from it here, and the option of
the same name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capsprune.errors import StrategyError
from capsprune.pruning.cost import CostModel
from capsprune.pruning.drawing import with_capsules
from capsprune.pruning.limits import Bottleneck, CapsuleCount, Limit
from capsprune.pruning.space import SearchSpace

#: What remains of the FLOPs where no size is asked for.
DEFAULT_FLOPS = 0.5
#: Largest removal fraction by FLOPs ratio, as EagleEye's published searches chose it.
_PUBLISHED_MAX_RATES = ((0.25, 0.8), (0.5, 0.7), (0.75, 0.4))
LARGEST_MAX_RATE = 0.95
#: What limits cost as a ratio: what is limited in words, and the cost model's method.
_RATIOS = {
    "flops": ("FLOPs", CostModel.flops_ratio),
    "params": ("parameters", CostModel.parameters_ratio),
}


@dataclass(frozen=True)
class Target:
    """The sizes asked for; None for those that are not."""

    #: Parts of the unpruned network's FLOPs and parameters that remain.
    flops: float | None = None
    params: float | None = None
    #: Primary capsules, I.
    primary_caps: int | None = None
    #: Milliseconds an image.
    latency: float | None = None

    @classmethod
    def of(cls, options: object) -> Target:
        """Return the sizes that options ask for: their fields of the same names."""
        return cls(**{size.name: getattr(options, size.name) for size in fields(cls)})

    @property
    def given(self) -> dict[str, Any]:
        """The sizes that are asked for, by name."""
        sizes = {size.name: getattr(self, size.name) for size in fields(self)}
        return {name: value for name, value in sizes.items() if value is not None}

    @property
    def removes_nothing(self) -> bool:
        """Whether it is the unpruned network itself that is asked for."""
        return self.flops == 1

    @property
    def is_computed(self) -> bool:
        """Whether a size is among those that follow from channel counts."""
        return bool(set(self.given) - {"latency"})

    def refuse_any(self, why: str, keep: str) -> None:
        """Check that no size is asked for beside an option that has its own.

        Args:
            why: what that option does.
            keep: its name, for the remedy.

        Raises:
            StrategyError: if one is.
        """
        if self.given:
            raise StrategyError(f"{why}; leave out {_flags(self.given)}, or {keep}.")

    def complete(self) -> Target:
        """Return the target with what holds where nothing is asked for.

        Raises:
            StrategyError: if two sizes exclude each other.
        """
        if self.removes_nothing:
            replace(self, flops=None).refuse_any("--flops 1 removes nothing", "--flops")
        return self if self.given else replace(self, flops=DEFAULT_FLOPS)

    def search_space(
        self,
        cost: CostModel,
        max_rate: float | None = None,
        round_to: int = 1,
        bottleneck: Bottleneck | None = None,
    ) -> SearchSpace:
        """Return the space of the strategies that have the sizes which follow from channel counts.

        Args:
            cost: of the unpruned network.
            max_rate: largest removal fraction; None for one between EagleEye's published choices,
                or higher where those cannot reach the target.
            round_to: keep multiples of this many channels.
            bottleneck: what decides the number of primary capsules, where one is asked for.

        Raises:
            StrategyError: if a size or max_rate is out of range, or the target is out of reach.
        """
        limits = tuple(
            Limit(name, words, most, lambda kept, ratio=ratio: ratio(cost, kept))  # type: ignore[misc]
            for name, (words, ratio) in _RATIOS.items()
            if (most := getattr(self, name)) is not None
        )
        capsules = None
        if self.primary_caps is not None:
            if bottleneck is None:
                raise ValueError("A number of primary capsules needs a bottleneck.")
            capsules = CapsuleCount(self.primary_caps, bottleneck)
        space = SearchSpace(cost, LARGEST_MAX_RATE, limits, capsules, round_to)
        if max_rate is None:
            space = _with_default_rate(space)
        elif 0 < max_rate < 1:
            space = replace(space, max_rate=max_rate)
        else:
            raise StrategyError(
                f"A largest removal fraction of {max_rate:g} is not between 0 and 1; give, for "
                "example, --max-rate 0.7."
            )
        _check_reach(space)
        return space


def _flags(names: dict[str, Any]) -> str:
    flags = [f"--{name.replace('_', '-')}" for name in names]
    return " and ".join([", ".join(flags[:-1]), flags[-1]] if len(flags) > 1 else flags)


def _with_default_rate(space: SearchSpace) -> SearchSpace:
    """Return the space at the rate of EagleEye's searches, or more where that is too little."""
    ratios, rates = zip(*_PUBLISHED_MAX_RATES, strict=True)
    tightest = min((limit.most for limit in space.limits), default=DEFAULT_FLOPS)
    rate = float(np.interp(tightest, (0.0, *ratios, 1.0), (LARGEST_MAX_RATE, *rates, 0.1)))
    # Where a network has layers that no group can prune, the rest must give more.
    while rate < LARGEST_MAX_RATE and not _has_room(replace(space, max_rate=rate)):
        rate = min(rate + 0.05, LARGEST_MAX_RATE)
    return replace(space, max_rate=rate)


def _has_room(space: SearchSpace) -> bool:
    """Tell whether the targets lie well within what a space reaches."""
    least = space.least()
    if any(limit.ratio(least) > 0.9 * limit.most for limit in space.limits):
        return False
    capsules = space.capsules
    return capsules is None or bool(capsules.bottleneck.capsules(least) <= capsules.count)


def _check_reach(space: SearchSpace) -> None:
    """Raise StrategyError if no strategy of a space can lie on its target."""
    least, most = space.least(), space.kept(np.zeros(space.groups))
    having = ""
    if space.capsules is not None:
        least, most = _settled(space, least, most)
        having = f" with {space.capsules.count} primary capsules"
    finer = ", or a lower --round-to" if space.round_to > 1 else ""
    for limit in space.limits:
        if limit.excess(least) > space.tolerance:
            raise StrategyError(
                f"No strategy{having} that removes at most {space.max_rate:g} of each group "
                f"leaves {limit.most:g} of the {limit.words}: the least is "
                f"{float(limit.ratio(least)):.3f}; give a higher --max-rate or "
                f"--{limit.option}{finer}."
            )
    if space.capsules is not None and space.excess(most) < -space.tolerance:
        can_remain = " and ".join(
            f"{float(limit.ratio(most)):.3f} of the {limit.words}" for limit in space.limits
        )
        raise StrategyError(
            f"With {space.capsules.count} primary capsules not more than {can_remain} can remain; "
            "give a higher --primary-caps, or lower --flops or --params."
        )


def _settled(
    space: SearchSpace, least: NDArray[np.int64], most: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the fewest and most units, [G] each, where the number of capsules is settled.

    Raises:
        StrategyError: if no strategy has it.
    """
    assert space.capsules is not None
    count, bottleneck = space.capsules.count, space.capsules.bottleneck
    fewest, unpruned = int(bottleneck.capsules(least)), int(bottleneck.capsules(most))
    if count > unpruned:
        raise StrategyError(
            f"The unpruned network has {unpruned} primary capsules of {bottleneck.d1} values, "
            f"fewer than {count}; give a lower --primary-caps or --d1."
        )
    if count < fewest:
        raise StrategyError(
            f"No strategy that removes at most {space.max_rate:g} of each group leaves {count} "
            f"primary capsules: the least is {fewest}; give a higher --max-rate or "
            "--primary-caps."
        )
    rows = with_capsules(
        space, np.full((8, space.groups), space.max_rate), np.random.default_rng(0)
    )
    good = space.capsules.met(space.kept(rows))
    if not good.any():
        raise StrategyError(
            f"No channel counts in multiples of {space.round_to} give {count} primary capsules; "
            "give another --primary-caps or a lower --round-to."
        )
    settled = space.kept(rows[np.flatnonzero(good)[0]])
    return (
        np.where(space.deciding, settled, least),
        np.where(space.deciding, settled, most),
    )
