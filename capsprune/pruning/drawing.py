"""How strategies are drawn from a space, and moved onto its target.

EagleEye draws the removed fraction of each group uniformly from [0, max_rate] and rejects what
misses the FLOPs target (Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
Pruning", ECCV 2020, section 3.2). Here all draws are priced by the analytic cost model, thousands
at a time, so that rejection costs milliseconds and not a pruned network for each draw.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from capsprune.errors import StrategyError
from capsprune.pruning.space import Fractions, SearchSpace

#: Draws priced at a time: large enough for NumPy, small enough to stop soon after the first hit.
_BLOCK = 512
#: Draws that `propose` rejects before it projects one instead: some 50 ms. At the worst rate of
#: success that EagleEye met, 0.3 %, all of them miss once in 10^26 times.
PATIENT_DRAWS = 40 * _BLOCK
#: Draws before `reject` gives up: a few seconds of pricing.
MAX_DRAWS = 1000 * _BLOCK
#: Rounds of projected draws that may fail before the target counts as out of reach.
_ROUNDS = 8
#: Halvings of the way to the target: enough to move a single channel.
_BISECTIONS = 40


def draw(space: SearchSpace, generator: np.random.Generator, count: int) -> Fractions:
    """Return strategies, uniform in [0, max_rates] and of any size, [count, G]."""
    return generator.uniform(0.0, space.max_rates, (count, space.groups))


def reject(space: SearchSpace, generator: np.random.Generator, draws: int = MAX_DRAWS) -> Fractions:
    """Draw as EagleEye does: by rejection, until a strategy lies on the target.

    Args:
        space: where to draw from.
        generator: where the randomness comes from.
        draws: how many to try.

    Returns:
        Removal fractions, [G].

    Raises:
        StrategyError: if none of the draws lies on the target.
    """
    found = _first(space, lambda: draw(space, generator, _BLOCK), draws)
    if found is None:
        raise StrategyError(
            f"Rejection sampling found none of {draws:,} draws on the target "
            f"({space.describe()}); give --sampler random, which projects draws onto it."
        )
    return found


def propose(space: SearchSpace, generator: np.random.Generator) -> Fractions:
    """Draw from EagleEye's distribution, or as near to it as the target allows.

    Draws are rejected by their cost until one lies on the target: so the distribution is EagleEye's
    own. Where that is hopeless (several targets at once, or coarse rounding), draws are projected
    onto the target by `project`.

    Args:
        space: where to draw from.
        generator: where the randomness comes from.

    Returns:
        Removal fractions, [G].

    Raises:
        StrategyError: if no draw could be projected onto the target.
    """
    # Draws seldom have the very numbers that are asked for: those are settled first.
    found = _first(
        space,
        lambda: with_counts(space, draw(space, generator, _BLOCK), generator),
        PATIENT_DRAWS,
    )
    return project(space, draw(space, generator, 1)[0], generator) if found is None else found


def project(space: SearchSpace, fractions: Fractions, generator: np.random.Generator) -> Fractions:
    """Move a strategy onto the target.

    First the groups that decide a number that is asked for move together until it is met, then the
    rest until the limits are: each goes the same part of its way towards 0 or towards its largest
    removal fraction, which keeps their order and their spread.

    Args:
        space: whose target.
        fractions: removal fractions, [G]. One that lies on the target comes back as it is.
        generator: gives further draws to try where this one cannot be moved onto the target, as may
            happen with coarse rounding.

    Returns:
        Removal fractions in [0, max_rates], [G].

    Raises:
        StrategyError: if no strategy was found on the target.
    """
    drawn = np.clip(fractions, 0.0, space.max_rates)[None]
    for _ in range(_ROUNDS):
        drawn = with_counts(space, drawn, generator)
        moved = _towards(
            space,
            drawn,
            ~space.deciding,
            lambda rows: space.excess(space.kept(rows)),
            space.tolerance,
        )
        good = np.flatnonzero(space.meets(moved))
        if len(good):
            return moved[good[0]]
        drawn = draw(space, generator, 32)
    raise StrategyError(
        f"No strategy was found on the target ({space.describe()}); give another target, a "
        "lower --round-to or a higher --max-rate."
    )


def with_counts(space: SearchSpace, rows: Fractions, generator: np.random.Generator) -> Fractions:
    """Move the groups that decide them until each row [B, G] has the numbers asked for."""
    for count in space.counts:
        counted = count.counted
        least = count.number * counted.divisor
        # Several totals may give the same number, as several S the same I: which of them is drawn.
        aims = generator.integers(least, least + counted.divisor, len(rows))
        rows = _towards(
            space,
            rows,
            count.deciding,
            lambda rows, counted=counted, aims=aims: (  # type: ignore[misc]
                counted.total(space.kept(rows)) - aims[: len(rows)]
            ).astype(np.float64),
            0.0,
        )
    return rows


def _first(space: SearchSpace, drawn: Callable[[], Fractions], draws: int) -> Fractions | None:
    for _ in range(max(1, draws // _BLOCK)):
        rows = drawn()
        good = np.flatnonzero(space.meets(rows))
        if len(good):
            found: Fractions = rows[good[0]]
            return found
    return None


def _towards(
    space: SearchSpace,
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
    end = np.where(moving, np.where((before > 0)[:, None], space.max_rates, 0.0), rows)
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
