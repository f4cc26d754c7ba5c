"""Where strategies are drawn from: what they must meet, and how a draw is made to meet it.

EagleEye draws the removed fraction of each group uniformly from [0, max_rate] and throws away what
misses the FLOPs target (Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
Pruning", ECCV 2020, section 3.2). Here all draws are priced by the analytic cost model, thousands
at a time, so that rejection costs milliseconds and not the pruning of a network for each draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from capsprune.errors import StrategyError
from capsprune.pruning.cost import CostModel
from capsprune.pruning.strategy import kept_channels

#: How far the FLOPs ratio of a strategy may lie from the target (EagleEye's value).
FLOPS_TOLERANCE = 0.005

#: Largest removal fraction by FLOPs ratio, as EagleEye's published searches chose it.
_PUBLISHED_MAX_RATES = ((0.25, 0.8), (0.5, 0.7), (0.75, 0.4))
_LARGEST_MAX_RATE = 0.95
#: Draws priced at a time: large enough for NumPy, small enough to stop soon after the first hit.
_BLOCK = 512
#: Blind draws before `propose` moves one instead: some 50 ms. At the worst rate of success that
#: EagleEye met, 0.3 %, all of them miss once in 10^26 times.
PATIENT_DRAWS = 40 * _BLOCK
#: Blind draws before `reject` gives up: a few seconds of pricing.
BLIND_DRAWS = 1000 * _BLOCK
#: Rounds of moved draws that may fail before the target counts as out of reach.
_ROUNDS = 8
#: Halvings of the way to the target: enough to move a single channel.
_BISECTIONS = 40

Fractions = NDArray[np.float64]


@dataclass(frozen=True)
class Bottleneck:
    """The trunk's output channels S, which decide how many primary capsules a head has."""

    #: Output channels of the trunk for each channel kept in a group, [G].
    per_channel: NDArray[np.int64]
    #: Output channels that no group owns.
    fixed: int
    #: Values in a primary capsule.
    d1: int

    def channels(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the trunk's output channels S for channels kept [..., G]."""
        count: NDArray[np.int64] = kept @ self.per_channel + self.fixed
        return count

    def capsules(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count primary capsules, I = floor(S / D1), for channels kept [..., G]."""
        return self.channels(kept) // self.d1


@dataclass(frozen=True)
class SearchSpace:
    """Strategies of a given size.

    FLOPs and parameters are limits of which at least one is met to within the tolerance, while none
    is passed by more: a strategy uses what it is given. With one limit this is EagleEye's
    condition. The number of primary capsules is met exactly. Where only that is given, everything
    of at most `max_rate` is allowed in the groups that do not decide it.
    """

    cost: CostModel
    #: FLOPs ratio that remains; None for no such limit.
    flops: float | None
    #: Largest removal fraction of a group.
    max_rate: float
    #: Channels are kept in multiples of this.
    round_to: int = 1
    tolerance: float = FLOPS_TOLERANCE
    #: Ratio of parameters that remains; None for no such limit.
    params: float | None = None
    #: Primary capsules, I; None for any number.
    primary_caps: int | None = None
    #: Needed with `primary_caps`.
    bottleneck: Bottleneck | None = None

    @classmethod
    def around(
        cls,
        cost: CostModel,
        flops: float | None = None,
        max_rate: float | None = None,
        round_to: int = 1,
        *,
        params: float | None = None,
        primary_caps: int | None = None,
        bottleneck: Bottleneck | None = None,
    ) -> SearchSpace:
        """Make the space for a target.

        Args:
            cost: of the unpruned network.
            flops: FLOPs ratio that remains at most.
            max_rate: largest removal fraction; None for one between EagleEye's published choices,
                or higher where those cannot reach the target.
            round_to: keep multiples of this many channels.
            params: ratio of parameters that remains at most.
            primary_caps: number of primary capsules.
            bottleneck: what decides the number of primary capsules.

        Raises:
            StrategyError: if a target or max_rate is out of range, or the target is out of reach.
        """
        for target, name, option in ((flops, "FLOPs", "flops"), (params, "parameters", "params")):
            if target is not None and not 0 < target < 1:
                raise StrategyError(
                    f"A {name} ratio of {target:g} is not between 0 and 1; give the part that "
                    f"remains, such as --{option} 0.5."
                )
        if primary_caps is not None and bottleneck is None:
            raise ValueError("A number of primary capsules needs a bottleneck.")
        space = cls(
            cost,
            flops,
            _LARGEST_MAX_RATE,
            round_to,
            params=params,
            primary_caps=primary_caps,
            bottleneck=bottleneck,
        )
        if max_rate is None:
            space = space._with_default_rate()
        elif 0 < max_rate < 1:
            space = replace(space, max_rate=max_rate)
        else:
            raise StrategyError(
                f"A largest removal fraction of {max_rate:g} is not between 0 and 1; give, for "
                "example, --max-rate 0.7."
            )
        space._check()
        return space

    @property
    def groups(self) -> int:
        """Number of groups, G."""
        return len(self.cost.channels)

    @property
    def lowest(self) -> float:
        """The lowest FLOPs ratio of this space."""
        return float(self.cost.flops_ratio(self._least()))

    def kept(self, fractions: Fractions) -> NDArray[np.int64]:
        """Count the channels kept in each group, [..., G]."""
        return kept_channels(fractions, self.cost.channels, self.round_to, self.cost.widths)

    def meets(self, fractions: Fractions) -> NDArray[np.bool_]:
        """Tell which strategies [..., G] lie on the target, [...]."""
        kept = self.kept(fractions)
        good: NDArray[np.bool_] = np.abs(self._excess(kept)) <= self.tolerance
        if self.primary_caps is not None:
            assert self.bottleneck is not None
            good &= self.bottleneck.capsules(kept) == self.primary_caps
        return good

    def draw(self, generator: np.random.Generator, count: int) -> Fractions:
        """Draw strategies blindly, uniform in [0, max_rate], [count, G]."""
        return generator.uniform(0.0, self.max_rate, (count, self.groups))

    def reject(self, generator: np.random.Generator, draws: int = BLIND_DRAWS) -> Fractions:
        """Draw as EagleEye does: blindly, until a strategy lies on the target.

        Args:
            generator: where the randomness comes from.
            draws: how many to try.

        Returns:
            Removal fractions, [G].

        Raises:
            StrategyError: if none of the draws lies on the target.
        """
        found = self._first(lambda: self.draw(generator, _BLOCK), draws)
        if found is None:
            raise StrategyError(
                f"None of {draws:,} blind draws lies on the target ({self.describe()}); give "
                "--sampler random, which moves draws onto it."
            )
        return found

    def propose(self, generator: np.random.Generator) -> Fractions:
        """Draw from EagleEye's distribution, or as near to it as the target allows.

        Blind draws are rejected by their cost until one lies on the target: so the distribution is
        EagleEye's own. Where that is hopeless (several targets at once, or coarse rounding), draws
        are moved onto the target as `project` does.

        Args:
            generator: where the randomness comes from.

        Returns:
            Removal fractions, [G].

        Raises:
            StrategyError: if no draw could be moved onto the target.
        """
        if self.primary_caps is None:
            found = self._first(lambda: self.draw(generator, _BLOCK), PATIENT_DRAWS)
        else:
            # Blind draws seldom have this very number of capsules: that is settled first.
            found = self._first(
                lambda: self._with_capsules(self.draw(generator, _BLOCK), generator), PATIENT_DRAWS
            )
        return self.project(self.draw(generator, 1)[0], generator) if found is None else found

    def project(self, fractions: Fractions, generator: np.random.Generator) -> Fractions:
        """Move a strategy onto the target.

        First the groups that decide the number of primary capsules move together until it is met,
        then all others until the FLOPs and parameters are: each goes the same part of its way
        towards 0 or towards max_rate, which keeps their order and their spread.

        Args:
            fractions: removal fractions, [G]. One that lies on the target comes back as it is.
            generator: gives other draws to try where this one cannot be moved onto the target, as
                may happen with coarse rounding.

        Returns:
            Removal fractions in [0, max_rate], [G].

        Raises:
            StrategyError: if no strategy was found on the target.
        """
        drawn = np.clip(fractions, 0.0, self.max_rate)[None]
        for _ in range(_ROUNDS):
            if self.primary_caps is not None:
                drawn = self._with_capsules(drawn, generator)
            moved = self._towards(
                drawn, ~self._deciding, lambda rows: self._excess(self.kept(rows)), self.tolerance
            )
            good = np.flatnonzero(self.meets(moved))
            if len(good):
                return moved[good[0]]
            drawn = self.draw(generator, 32)
        raise StrategyError(
            f"No strategy was found on the target ({self.describe()}); give another target, a "
            "lower --round-to or a higher --max-rate."
        )

    def describe(self) -> str:
        """Say what the target is."""
        parts = []
        if self.flops is not None:
            parts.append(f"{self.flops:g} of the FLOPs")
        if self.params is not None:
            parts.append(f"{self.params:g} of the parameters")
        if parts and self.tolerance:
            parts[-1] += f" within {self.tolerance:g}"
        if self.primary_caps is not None:
            parts.append(f"{self.primary_caps} primary capsules")
        return ", ".join(parts) or "none"

    @property
    def _deciding(self) -> NDArray[np.bool_]:
        """Which groups decide the number of primary capsules, where one is asked for, [G]."""
        if self.primary_caps is None or self.bottleneck is None:
            return np.zeros(self.groups, dtype=np.bool_)
        return self.bottleneck.per_channel > 0

    def _excess(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """How far the limit that is passed furthest is passed, [...]; negative where none is."""
        over = []
        if self.flops is not None:
            over.append(self.cost.flops_ratio(kept) - self.flops)
        if self.params is not None:
            over.append(self.cost.parameters_ratio(kept) - self.params)
        if not over:
            return np.zeros(kept.shape[:-1])
        return np.maximum.reduce(over)

    def _first(self, draw: Callable[[], Fractions], draws: int) -> Fractions | None:
        for _ in range(max(1, draws // _BLOCK)):
            rows = draw()
            good = np.flatnonzero(self.meets(rows))
            if len(good):
                found: Fractions = rows[good[0]]
                return found
        return None

    def _with_capsules(self, rows: Fractions, generator: np.random.Generator) -> Fractions:
        """Move the groups that decide it until each row [B, G] has the capsules asked for."""
        assert self.bottleneck is not None and self.primary_caps is not None
        bottleneck, least = self.bottleneck, self.primary_caps * self.bottleneck.d1
        # Several S give the same I: which of them is drawn too.
        aims = generator.integers(least, least + bottleneck.d1, len(rows))
        return self._towards(
            rows,
            self._deciding,
            lambda rows, aims=aims: (  # type: ignore[misc]
                bottleneck.channels(self.kept(rows)) - aims[: len(rows)]
            ).astype(np.float64),
            0.0,
        )

    def _towards(
        self,
        rows: Fractions,
        moving: NDArray[np.bool_],
        excess: Callable[[Fractions], NDArray[np.float64]],
        tolerance: float,
    ) -> Fractions:
        """Move rows [B, G] along straight lines until their excess lies within the tolerance.

        Where none does, a row ends on the side where the excess is not positive, as near as can be.
        """
        before = excess(rows)
        settled = np.abs(before) <= tolerance
        end = np.where(moving, np.where((before > 0)[:, None], self.max_rate, 0.0), rows)
        above = before > 0
        low, high = np.zeros(len(rows)), np.ones(len(rows))
        result = rows.copy()
        # The far end itself counts: a target may be exactly the least.
        at_end = excess(end)
        hit = ~settled & (np.abs(at_end) <= tolerance)
        result[hit] = end[hit]
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            moved = rows + middle[:, None] * (end - rows)
            now = excess(moved)
            hit = ~settled & (np.abs(now) <= tolerance)
            result[hit] = moved[hit]
            settled |= hit
            if settled.all():
                return result
            same = (now > 0) == above
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        beyond = np.where(above, high, low)[:, None]
        rest = ~settled & ~(np.abs(at_end) <= tolerance)
        result[rest] = (rows + beyond * (end - rows))[rest]
        return result

    def _least(self) -> NDArray[np.int64]:
        """The fewest channels of each group that this space keeps, [G]."""
        return self.kept(np.full(self.groups, self.max_rate))

    def _with_default_rate(self) -> SearchSpace:
        """The rate that EagleEye's published searches suggest, or more where that is too little."""
        ratios, rates = zip(*_PUBLISHED_MAX_RATES, strict=True)
        given = [ratio for ratio in (self.flops, self.params) if ratio is not None]
        target = min(given, default=0.5)
        rate = float(np.interp(target, (0.0, *ratios, 1.0), (_LARGEST_MAX_RATE, *rates, 0.1)))
        # Where a network has layers that no group can shrink, the others must give more.
        while rate < _LARGEST_MAX_RATE and not replace(self, max_rate=rate)._has_room():
            rate = min(rate + 0.05, _LARGEST_MAX_RATE)
        return replace(self, max_rate=rate)

    def _has_room(self) -> bool:
        """Whether the targets lie well within what this space reaches."""
        least = self._least()
        if self.flops is not None and self.cost.flops_ratio(least) > 0.9 * self.flops:
            return False
        if self.params is not None and self.cost.parameters_ratio(least) > 0.9 * self.params:
            return False
        if self.primary_caps is None:
            return True
        assert self.bottleneck is not None
        return bool(self.bottleneck.capsules(least) <= self.primary_caps)

    def _check(self) -> None:
        """Raise StrategyError if no strategy of this space can lie on the target."""
        least, most = self._least(), self.kept(np.zeros(self.groups))
        if self.primary_caps is not None:
            assert self.bottleneck is not None
            fewest = int(self.bottleneck.capsules(least))
            unpruned = int(self.bottleneck.capsules(most))
            if self.primary_caps > unpruned:
                raise StrategyError(
                    f"The unpruned network has {unpruned} primary capsules of "
                    f"{self.bottleneck.d1} values, fewer than {self.primary_caps}; give a lower "
                    "--primary-caps or --d1."
                )
            if self.primary_caps < fewest:
                raise StrategyError(
                    f"No strategy that removes at most {self.max_rate:g} of each group leaves "
                    f"{self.primary_caps} primary capsules: the least is {fewest}; give a higher "
                    "--max-rate or --primary-caps."
                )
            # What the capsules ask for is settled before the rest is judged.
            deciding = self._deciding
            aim = np.random.default_rng(0)
            rows = self._with_capsules(np.full((8, self.groups), self.max_rate), aim)
            good = self.bottleneck.capsules(self.kept(rows)) == self.primary_caps
            if not good.any():
                raise StrategyError(
                    f"No channel counts in multiples of {self.round_to} give "
                    f"{self.primary_caps} primary capsules; give another --primary-caps or a "
                    "lower --round-to."
                )
            settled = self.kept(rows[np.flatnonzero(good)[0]])
            least, most = np.where(deciding, settled, least), np.where(deciding, settled, most)
        with_caps = (
            "" if self.primary_caps is None else f" with {self.primary_caps} primary capsules"
        )
        finer = ", or a lower --round-to" if self.round_to > 1 else ""
        for target, ratio, name, option in (
            (self.flops, float(self.cost.flops_ratio(least)), "FLOPs", "flops"),
            (self.params, float(self.cost.parameters_ratio(least)), "parameters", "params"),
        ):
            if target is not None and ratio > target + self.tolerance:
                raise StrategyError(
                    f"No strategy{with_caps} that removes at most {self.max_rate:g} of each group "
                    f"leaves {target:g} of the {name}: the least is {ratio:.3f}; give a higher "
                    f"--max-rate or --{option}{finer}."
                )
        if self.primary_caps is not None and self._excess(most) < -self.tolerance:
            raise StrategyError(
                f"With {self.primary_caps} primary capsules not more than "
                f"{float(self.cost.flops_ratio(most)):.3f} of the FLOPs and "
                f"{float(self.cost.parameters_ratio(most)):.3f} of the parameters can remain; "
                "give a higher --primary-caps, or lower --flops or --params."
            )
