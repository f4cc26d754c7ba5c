"""Dependency groups: which channels of which layers can only be removed together.

torch-pruning traces the network once. What it finds is kept as plain index arrays, so that costs
can be computed and copies pruned without tracing anything again.

What is removed is a unit of channels. In most groups a unit is one channel. Where a grouped
convolution takes part it is the same offset in each of the convolution's groups, so that the groups
stay equally large and their number stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from capsprune.backbones.stem import blank_images
from capsprune.errors import ModelError
from capsprune.pruning.layers import Axis, ChannelParameter, PrunableLayer, prunable_layers
from capsprune.pruning.tracing import barriers_for_shuffles, pruners

#: What the units of a group are: channels of a trunk, primary capsules with what belongs to them,
#: channels between the two convolutions of a factored PrimaryCaps, or iterations of a routing.
GroupKind = Literal["channels", "capsules", "rank", "iterations"]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that the layers of a group share."""

    #: Name of the root layer: the first, in the network's order, that produces these channels.
    name: str
    #: How many units there are in the unpruned network: what is removed or stays as a whole.
    channels: int
    #: Channels of the root layer in one unit: 1, but where a grouped convolution takes part, and
    #: the values of a primary capsule. 0 for iterations, which are no channels.
    width: int = 1
    kind: GroupKind = "channels"


@dataclass(frozen=True)
class DerivedGroup:
    """Channels that stay as long as any of several units of a group does.

    They are nothing to choose: what stays of them follows from the group. So it is with the filters
    that make all capsules of one type, each at another position.
    """

    #: Name of the root layer.
    name: str
    #: Index of the group that it follows from.
    source: int
    #: Which unit of this one each unit of the source keeps, [units of the source].
    members: NDArray[np.int64]
    #: How many units there are in the unpruned network.
    channels: int

    def staying(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which units stay, [channels], by which units of the source do."""
        stays = np.zeros(self.channels, dtype=np.bool_)
        stays[self.members[mask]] = True
        return stays

    def counts(self, ranking: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the units that stay for every number of units that stay of the source.

        Args:
            ranking: units of the source, those to keep longest first.

        Returns:
            Units, by how many of the source stay: [1 + units of the source].
        """
        _, first = np.unique(self.members[ranking], return_index=True)
        added = np.bincount(first + 1, minlength=len(ranking) + 1)
        counts: NDArray[np.int64] = np.cumsum(added).astype(np.int64)
        return counts


@dataclass(frozen=True)
class AxisOwners:
    """For each position on one axis of a layer, which unit of which group it belongs to."""

    #: Index of the group, or -1 where no group owns the position, [n]. Derived groups follow upon
    #: the last group.
    group: NDArray[np.int64]
    #: Unit within the group, [n].
    channel: NDArray[np.int64]

    @classmethod
    def unowned(cls, size: int) -> AxisOwners:
        """Return so many positions that belong to no group."""
        return cls(np.full(size, -1, dtype=np.int64), np.full(size, -1, dtype=np.int64))

    def repeat(self, times: int) -> AxisOwners:
        """Return an axis that has each position so many times, one behind the other."""
        return AxisOwners(self.group.repeat(times), self.channel.repeat(times))

    def staying(self, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Tell which positions stay, [n].

        Args:
            masks: which units stay, of each group and then of each derived one.
        """
        stays = self.group < 0
        for index in np.unique(self.group[~stays]):
            mine = self.group == index
            stays[mine] = masks[index][self.channel[mine]]
        return stays


@dataclass(frozen=True)
class Dependencies:
    """All dependency groups of a network, and what they own."""

    groups: tuple[ChannelGroup, ...]
    #: By layer name and axis. An axis that no group touches is absent.
    owners: dict[tuple[str, Axis], AxisOwners]
    #: Root layers of the groups that are unprunable, with the reason.
    unprunable: dict[str, str] = field(default_factory=dict)
    #: What follows from the groups.
    derived: tuple[DerivedGroup, ...] = ()

    @property
    def channels(self) -> NDArray[np.int64]:
        """Units of each group in the unpruned network, [G]."""
        return np.array([group.channels for group in self.groups], dtype=np.int64)

    @property
    def widths(self) -> NDArray[np.int64]:
        """Channels in one unit of each group, [G]."""
        return np.array([group.width for group in self.groups], dtype=np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, in the order of all arrays here."""
        return tuple(group.name for group in self.groups)

    def with_derived(self, masks: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        """Return which units stay, of each group and then of each derived one.

        Args:
            masks: those of the groups.
        """
        return [*masks, *(group.staying(masks[group.source]) for group in self.derived)]


@dataclass
class _Member:
    """What one layer has of a group, as torch-pruning found it."""

    name: str
    axis: Axis
    positions: NDArray[np.int64]
    #: Channel of the root layer for each position, then unit.
    channels: NDArray[np.int64]


#: The root layer of a group, and its members.
_Found = tuple[str, list[_Member]]


def find_groups(
    model: nn.Module, *, classifier: str, image_size: int, allow_none: bool = False
) -> Dependencies:
    """Find the dependency groups of a network with torch-pruning.

    Args:
        model: the network; it is traced with one forward pass and comes back unchanged.
        classifier: name of the layer whose outputs are the classes, which stay.
        image_size: pixels a side of the image that it is traced with.
        allow_none: whether a network without any group will do.

    Raises:
        ModelError: if a layer is of a kind whose channels capsprune cannot remove, or
            torch-pruning cannot trace the network, or no group is left.
    """
    layers = prunable_layers(model)
    order = {name: position for position, name in enumerate(layers)}
    found: list[_Found] = []
    unprunable: dict[str, str] = {}
    for members, barrier in _trace(model, layers, classifier, image_size):
        producers = [m.name for m in members if m.axis == "out" and layers[m.name].produces]
        if not producers:
            continue
        root = min(producers, key=order.__getitem__)
        reason = barrier or _make_units(members, layers)
        if reason is None:
            found.append((root, members))
        else:
            unprunable[root] = reason
    found.sort(key=lambda entry: order[entry[0]])
    sizes = {
        (member.name, member.axis): layers[member.name].size(member.axis)
        for _, members in found
        for member in members
    }
    for root in _overlapping(found, sizes):
        unprunable[root] = "other groups own a part of its channels"
    found = [(root, members) for root, members in found if root not in unprunable]
    if not found and not allow_none:
        raise ModelError(
            "torch-pruning found no channels in this network that can be removed; choose another "
            "backbone."
        )
    return _dependencies(found, sizes, unprunable)


def _dependencies(
    found: list[_Found], sizes: Mapping[tuple[str, Axis], int], unprunable: dict[str, str]
) -> Dependencies:
    """Write down which positions each group owns."""
    groups: list[ChannelGroup] = []
    owners: dict[tuple[str, Axis], AxisOwners] = {}
    for root, members in found:
        units = 1 + max(int(member.channels.max()) for member in members)
        made = next(m for m in members if m.name == root and m.axis == "out")
        for member in members:
            key = (member.name, member.axis)
            if key not in owners:
                owners[key] = AxisOwners.unowned(sizes[key])
            owners[key].group[member.positions] = len(groups)
            owners[key].channel[member.positions] = member.channels
        groups.append(ChannelGroup(root, units, len(made.positions) // units))
    return Dependencies(tuple(groups), owners, unprunable)


def _trace(
    model: nn.Module, layers: Mapping[str, PrunableLayer], classifier: str, image_size: int
) -> Iterator[tuple[list[_Member], str | None]]:
    """Let torch-pruning trace the network.

    Yields:
        The members of each group, and why the group is unprunable, if it is.
    """
    import torch_pruning

    scales = [
        (layer.parameter, layer.dim)
        for layer in layers.values()
        if isinstance(layer, ChannelParameter)
    ]
    was_training = model.training
    requires_grad = [p.requires_grad for p in model.parameters()]
    model.eval()
    # torch-pruning reads the graph off autograd, so every parameter must take part in it.
    model.requires_grad_(True)
    try:
        with barriers_for_shuffles(model) as barriers, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(
                model,
                example_inputs=blank_images(model, image_size),
                # Else it tries them one by one, and convolutions alone take an image without batch.
                forward_fn=lambda network, images: network(images),
                unwrapped_parameters=scales,
                customized_pruners=pruners(layers.values()),
                verbose=False,
            )
            groups = list(
                graph.get_all_groups(
                    ignored_layers=[model.get_submodule(classifier)],
                    root_module_types=list(
                        {type(layer.layer) for layer in layers.values() if layer.produces}
                    ),
                )
            )
    # It was written for a list of networks, and fails on others wherever it happens to.
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"torch-pruning cannot trace {type(model).__name__} ({error}); choose another backbone."
        ) from error
    finally:
        for p, flag in zip(model.parameters(), requires_grad, strict=True):
            p.requires_grad_(flag)
        model.train(was_training)
    for group in groups:
        yield _members(group, graph, model, layers, barriers)


def _members(
    group: Any,
    graph: Any,
    model: nn.Module,
    layers: Mapping[str, PrunableLayer],
    barriers: Mapping[int, str],
) -> tuple[list[_Member], str | None]:
    """Read what torch-pruning found of one group.

    Raises:
        ModelError: if a layer takes part of whose kind capsprune cannot remove channels.
    """
    # By identity: tensors are not compared as other keys are.
    names = {id(module): name for name, module in model.named_modules()}
    names |= {
        id(layer.parameter): name
        for name, layer in layers.items()
        if isinstance(layer, ChannelParameter)
    }
    members: list[_Member] = []
    barrier: str | None = None
    for item in group:
        part = item.dep.target.module
        barrier = barriers.get(id(part), barrier)
        if id(part) not in names:
            continue  # an operation of torch-pruning's own: holds no channels
        name = names[id(part)]
        if name not in layers:
            raise ModelError(
                f"Layer '{name}' ({type(part).__name__}) cannot be pruned; choose a backbone "
                "of convolutions, norms and linear layers."
            )
        barrier = layers[name].obstacle(name) or barrier
        members.append(
            _Member(
                name,
                "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in",
                np.array([int(i) for i in item.idxs], dtype=np.int64),
                np.array([int(i) for i in item.root_idxs], dtype=np.int64),
            )
        )
    return members, barrier


def _make_units(members: list[_Member], layers: Mapping[str, PrunableLayer]) -> str | None:
    """Replace the channels of each member by units of channels that can only go together.

    Channels are joined that meet at one position, or have the same offset in a grouped convolution.

    Returns:
        Why the group is unprunable, if it is.
    """
    count = 1 + max(int(member.channels.max()) for member in members)
    parent = list(range(count))

    def root(channel: int) -> int:
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def join(places: NDArray[np.int64], channels: NDArray[np.int64]) -> None:
        first: dict[int, int] = {}
        for place, channel in zip(places.tolist(), channels.tolist(), strict=True):
            a, b = root(first.setdefault(place, channel)), root(channel)
            parent[max(a, b)] = min(a, b)

    by_axis: dict[tuple[str, Axis], list[_Member]] = {}
    for member in members:
        by_axis.setdefault((member.name, member.axis), []).append(member)
    for (name, axis), parts in by_axis.items():
        layer = layers[name]
        positions = np.concatenate([part.positions for part in parts])
        channels = np.concatenate([part.channels for part in parts])
        if len(np.unique(positions)) < len(positions):
            join(positions, channels)
        if layer.groups > 1:
            size = layer.size(axis)
            if len(np.unique(positions)) < size:
                return f"only a part of the channels of grouped convolution '{name}' is its own"
            join(positions % (size // layer.groups), channels)
    roots = np.array([root(channel) for channel in range(count)])
    units, unit_of = np.unique(roots, return_inverse=True)
    if len(units) < 2:
        return "its channels can only be removed all together"
    for parts in by_axis.values():
        channels = np.concatenate([part.channels for part in parts])
        owned = np.bincount(unit_of[channels], minlength=len(units))
        if (owned != owned[0]).any():
            return "what would be removed together differs in size from channel to channel"
    for member in members:
        member.channels = unit_of[member.channels].astype(np.int64)
    return None


def _overlapping(found: list[_Found], sizes: Mapping[tuple[str, Axis], int]) -> set[str]:
    """Return the root layers whose groups share a position, or miss one of the root layer's."""
    claimed: dict[tuple[str, Axis], NDArray[np.int64]] = {}
    overlapping: set[str] = set()
    for index, (root, members) in enumerate(found):
        for member in members:
            key = (member.name, member.axis)
            taken = claimed.setdefault(key, np.full(sizes[key], -1, dtype=np.int64))
            owners = np.unique(taken[member.positions])
            for other in owners[(owners >= 0) & (owners != index)]:
                overlapping |= {root, found[other][0]}
            taken[member.positions] = index
    for root, _ in found:
        if (claimed[(root, "out")] < 0).any():
            overlapping.add(root)
    return overlapping
