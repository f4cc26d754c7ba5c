"""Groups of layers that torch-pruning cannot trace: the layers say themselves what they own.

A layer that takes part has an adapter with `connect`: it is told which groups own its inputs, says
what it owns, and returns what owns its outputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from capsprune.pruning.groups import (
    AxisOwners,
    ChannelGroup,
    Dependencies,
    DerivedGroup,
    GroupKind,
)
from capsprune.pruning.layers import Axis


class GroupBuilder:
    """Dependency groups that are being put together."""

    def __init__(self, traced: Dependencies) -> None:
        """Begin with what was traced, which stays as it is."""
        self._groups: list[ChannelGroup | None] = [*traced.groups]
        self._owners = dict(traced.owners)
        self._unprunable = dict(traced.unprunable)
        self._derived = [*traced.derived]

    def add(self, group: ChannelGroup) -> AxisOwners:
        """Add a group, and return an axis that has one position for each of its units."""
        self._groups.append(group)
        index = np.full(group.channels, len(self._groups) - 1, dtype=np.int64)
        return AxisOwners(index, np.arange(group.channels, dtype=np.int64))

    def derive(self, name: str, source: AxisOwners, members: NDArray[np.int64]) -> AxisOwners:
        """Add what stays as long as any of several units of a group does.

        Args:
            name: of its root layer.
            source: what `add` returned of the group.
            members: which unit each unit of the group keeps, [units of the group].

        Returns:
            An axis that has one position for each unit.
        """
        channels = int(members.max()) + 1
        self._derived.append(DerivedGroup(name, int(source.group[0]), members, channels))
        # Groups may yet come before it: until they are numbered, it counts down from -2.
        index = np.full(channels, -1 - len(self._derived), dtype=np.int64)
        return AxisOwners(index, np.arange(channels, dtype=np.int64))

    def own(self, layer: str, axis: Axis, owners: AxisOwners) -> None:
        """Note what owns the positions on an axis of a layer."""
        if (owners.group != -1).any():
            self._owners[(layer, axis)] = owners

    def merge(
        self, owners: AxisOwners, parts: NDArray[np.int64], kind: GroupKind, reason: str
    ) -> AxisOwners:
        """Join units of groups that can only go together, because they are parts of one whole.

        A whole that has all positions of a few units of one group, and no others, is one unit from
        now on. Units that have a position in any other whole, or in none, belong to no group any
        more: they stay.

        Args:
            owners: of the positions on the axis where the parts are, [n].
            parts: which whole each position is a part of, -1 for none, [n]; all are equally large.
            kind: of the groups that are joined.
            reason: why groups are unprunable of which nothing makes a whole.

        Returns:
            An axis that has one position for each whole.
        """
        joined = AxisOwners.unowned(int(parts.max()) + 1)
        for index in np.unique(owners.group[owners.group >= 0]):
            group = self._groups[index]
            assert group is not None
            whole_of = _wholes(owners, parts, int(index), group.channels)
            wholes, unit = np.unique(whole_of[whole_of >= 0], return_inverse=True)
            units = np.full(group.channels, -1, dtype=np.int64)
            units[whole_of >= 0] = unit
            self._renumber(int(index), units)
            if not len(wholes):
                self._groups[index] = None
                self._unprunable[group.name] = reason
                continue
            width = group.width * (len(unit) // len(wholes))
            self._groups[index] = replace(group, channels=len(wholes), width=width, kind=kind)
            joined.group[wholes] = index
            joined.channel[wholes] = np.arange(len(wholes))
        return joined

    def _renumber(self, index: int, units: NDArray[np.int64]) -> None:
        """Give the units of a group other numbers, -1 for those that it loses."""
        for key, owners in self._owners.items():
            mine = owners.group == index
            if not mine.any():
                continue
            changed = AxisOwners(owners.group.copy(), owners.channel.copy())
            changed.channel[mine] = units[owners.channel[mine]]
            changed.group[mine & (changed.channel < 0)] = -1
            self._owners[key] = changed

    def build(self) -> Dependencies:
        """Return the groups, numbered in their order, without those that lost all units."""
        groups = [group for group in self._groups if group is not None]
        left = [index for index, group in enumerate(self._groups) if group is not None]
        # By index among all, and from the end on what is derived, by -2, -3 and so on; -1 stays.
        numbers = np.full(len(self._groups) + len(self._derived) + 1, -1, dtype=np.int64)
        numbers[left] = np.arange(len(groups))
        for position in range(len(self._derived)):
            numbers[-2 - position] = len(groups) + position
        return Dependencies(
            tuple(groups),
            {
                key: AxisOwners(numbers[owners.group], owners.channel)
                for key, owners in self._owners.items()
                if (owners.group != -1).any()
            },
            self._unprunable,
            tuple(replace(group, source=int(numbers[group.source])) for group in self._derived),
        )


def _wholes(
    owners: AxisOwners, parts: NDArray[np.int64], index: int, units: int
) -> NDArray[np.int64]:
    """Return which whole each unit of a group makes together with others of it, or -1, [units]."""
    mine = owners.group == index
    unit, part = owners.channel[mine], parts[mine]
    least = np.full(units, len(parts), dtype=np.int64)
    most = np.full(units, -1, dtype=np.int64)
    np.minimum.at(least, unit, part)
    np.maximum.at(most, unit, part)
    fits = (least == most) & (least >= 0)
    shared = np.unique(np.concatenate((parts[~mine], part[~fits[unit]])))
    fits &= ~np.isin(least, shared)
    return np.where(fits, least, -1)
