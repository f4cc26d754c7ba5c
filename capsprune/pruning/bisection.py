"""The smallest network that still scores well enough: one size after the other, by bisection.

First as many primary capsules go as can, then as much of the rank of PrimaryCaps, then routing
iterations, then channels: the same part of every group. Each step tries one candidate. With n
numbers to choose from a size takes at most 1 + log2(n) of them.

Bisection takes it that less never scores better. Where it does, what comes out is still a network
that was tried and scored well enough, though a smaller one might have too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capsprune.pruning.space import Fractions, SearchSpace

#: Kinds of groups in the order in which they are made smaller.
ORDER = ("capsules", "rank", "iterations", "channels")
#: Steps between all channels and the fewest.
_STEPS = 32
#: Scores are parts of some thousand images: what is closer than this is equal, and it is more than
#: what a candidate's objective adds to its score to tell equal scores apart.
_EQUAL = 1e-9


@dataclass
class _Coordinate:
    """One size: levels that ascend from all units kept to the fewest."""

    kind: str
    #: What is removed at each level from the groups of the size, [L, G'].
    levels: Fractions
    #: Indices of those groups, [G'].
    groups: list[int]
    #: The highest level known to do, and the lowest known not to; the last is tried first.
    good: int = 0
    bad: int | None = None

    @property
    def finished(self) -> bool:
        """Whether there is no level left to try."""
        last = len(self.levels) - 1
        return self.good == last or (self.bad is not None and self.bad == self.good + 1)

    @property
    def next(self) -> int:
        """The level to try."""
        if self.bad is None:
            return len(self.levels) - 1
        return (self.good + self.bad) // 2


class Bisection:
    """Proposes candidates one by one, as a sampler does; each needs the score of the one before.

    What it proposes follows from the space and from what it was shown alone: a search that was
    interrupted shows it the finished candidates again, in the order of their numbers, and goes on.

        bisection = Bisection(space, kinds, threshold)
        index = 0
        while not bisection.finished:
            fractions = bisection.propose(index)
            candidate = finished.get(index) or try_(index, fractions)
            bisection.observe(index, fractions, candidate.objective)
            index += 1
    """

    def __init__(self, space: SearchSpace, kinds: Sequence[str], threshold: float) -> None:
        """Begin with everything kept, which is taken to do.

        Args:
            space: says how much may go, and which units go together; it has no limits and counts.
            kinds: what each group is of (`ChannelGroup.kind`), [G].
            threshold: the lowest objective that does: the score to keep, less the tolerance as a
                part of 1.
        """
        self.threshold = threshold
        #: The smallest network that does: its removal fractions, [G], and its candidate's number,
        #: None for the network itself.
        self.best: Fractions = np.zeros(space.groups)
        self.best_index: int | None = None
        self._coordinates = [
            coordinate
            for kind in ORDER
            if len((coordinate := _coordinate(space, kinds, kind)).levels) > 1
        ]

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to propose."""
        return all(coordinate.finished for coordinate in self._coordinates)

    @property
    def most_candidates(self) -> int:
        """How many candidates it takes at most."""
        return sum(
            1 + int(np.ceil(np.log2(len(coordinate.levels) - 1)))
            for coordinate in self._coordinates
        )

    def propose(self, index: int) -> Fractions:
        """Return the candidate to try next, [G].

        Args:
            index: its number, which plays no part.

        Raises:
            ValueError: if there is none.
        """
        coordinate = self._current()
        proposed = self.best.copy()
        proposed[coordinate.groups] = coordinate.levels[coordinate.next]
        return proposed

    def observe(self, index: int, fractions: Fractions, objective: float) -> None:
        """Learn how the candidate did that was proposed last.

        Args:
            index: its number.
            fractions: what was tried, [G].
            objective: its score, as `Candidate.objective`.
        """
        coordinate = self._current()
        level = coordinate.next
        if objective >= self.threshold - _EQUAL:
            coordinate.good = level
            self.best, self.best_index = np.array(fractions, dtype=np.float64), index
        else:
            coordinate.bad = level

    def _current(self) -> _Coordinate:
        for coordinate in self._coordinates:
            if not coordinate.finished:
                return coordinate
        raise ValueError("The bisection is finished.")


def _coordinate(space: SearchSpace, kinds: Sequence[str], kind: str) -> _Coordinate:
    """Return the levels of the groups of a kind: of several, one common part of each goes."""
    groups = [group for group, of_kind in enumerate(kinds) if of_kind == kind]
    if len(groups) == 1 and kind != "channels":
        return _Coordinate(kind, space.choices(groups[0])[:, None], groups)
    rows = np.zeros((_STEPS + 1, space.groups))
    rows[:, groups] = np.linspace(0, 1, _STEPS + 1)[:, None] * space.max_rates[groups]
    # Neighbours that keep the same units are one level.
    kept = space.kept(rows)
    different = np.append(True, (kept[1:] != kept[:-1]).any(axis=1))
    return _Coordinate(kind, rows[different][:, groups], groups)
