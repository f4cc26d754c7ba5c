"""Dependency groups: which channels of which layers can only be removed together.

torch-pruning traces the network once. What it finds is kept as plain index arrays, so that costs
can be computed and copies shrunk without tracing anything again.

What is removed is a unit of channels. In most groups a unit is one channel. Where a grouped
convolution takes part it is the same offset in each of the convolution's groups, so that the groups
stay equally large and their number stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capsprune.errors import ModelError
from capsprune.pruning.tracing import barriers_for_shuffles

Axis = Literal["in", "out"]

#: Layers whose channels can be removed; everything else must only pass channels on.
PRUNABLE_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
#: Those of them that make no channels, but have one value or more for each.
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that the layers of a group share."""

    #: Name of the leader: the first layer, in the network's order, that produces these channels.
    name: str
    #: How many units there are in the unpruned network: what is removed or stays as a whole.
    channels: int
    #: Channels of the leader in one unit: 1, but where a grouped convolution takes part.
    width: int = 1


@dataclass(frozen=True)
class AxisOwners:
    """For each position on one axis of a layer, which unit of which group it belongs to."""

    #: Index of the group, or -1 where no group owns the position, [n].
    group: NDArray[np.int64]
    #: Unit within the group, [n].
    channel: NDArray[np.int64]


@dataclass(frozen=True)
class Dependencies:
    """All dependency groups of a network, and what they own."""

    groups: tuple[ChannelGroup, ...]
    #: By layer name and axis. An axis that no group touches is absent.
    owners: dict[tuple[str, Axis], AxisOwners]
    #: Leaders of the groups that must stay whole, with the reason.
    unpruned: dict[str, str] = field(default_factory=dict)

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


def is_depthwise(layer: object) -> bool:
    """Tell whether a layer is a convolution that filters each channel by itself."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups > 1
        and layer.groups == layer.in_channels == layer.out_channels
    )


def channel_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the parameters that belong to no prunable layer, such as ConvNeXt's layer scale.

    Yields:
        Name and parameter.
    """
    for prefix, module in model.named_modules():
        if not isinstance(module, PRUNABLE_LAYERS):
            yield from module.named_parameters(prefix, recurse=False)


def channel_dim(name: str, parameter: nn.Parameter) -> int:
    """Tell on which dimension a parameter from `channel_parameters` has its channels.

    Raises:
        ModelError: if it is not the one dimension that has more than one position.
    """
    dims = [dim for dim, size in enumerate(parameter.shape) if size > 1]
    if len(dims) != 1:
        raise ModelError(
            f"Parameter '{name}' of shape {list(parameter.shape)} has not one value for each "
            "channel, so that nothing around it can be pruned; choose another backbone."
        )
    return dims[0]


@dataclass
class _Member:
    """What one layer has of a group, as torch-pruning found it."""

    name: str
    axis: Axis
    positions: NDArray[np.int64]
    #: Channel of the root for each position, then unit.
    channels: NDArray[np.int64]


def find_groups(model: nn.Module, *, classifier: str, image_size: int) -> Dependencies:
    """Find the dependency groups of a network with torch-pruning.

    Args:
        model: the network; it is traced with one forward pass and comes back unchanged.
        classifier: name of the layer whose outputs are the classes, which stay.
        image_size: pixels a side of the image that it is traced with.

    Raises:
        ModelError: if a layer is of a kind whose channels capsprune cannot remove, or
            torch-pruning cannot trace the network, or no group is left.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    parameters = dict(channel_parameters(model))
    order = {name: position for position, name in enumerate([*layers, *parameters])}
    found: list[tuple[str, list[_Member]]] = []
    unpruned: dict[str, str] = {}
    for members, barrier in _trace(model, layers | parameters, classifier, image_size):
        producers = [
            member.name
            for member in members
            if member.axis == "out" and _produces(layers.get(member.name))
        ]
        if not producers:
            continue
        leader = min(producers, key=order.__getitem__)
        reason = barrier or _make_units(members, layers)
        if reason is None:
            found.append((leader, members))
        else:
            unpruned[leader] = reason
    found.sort(key=lambda entry: order[entry[0]])

    sizes = {
        (member.name, member.axis): axis_size((layers | parameters)[member.name], member.axis)
        for _, members in found
        for member in members
    }
    for leader in _overlapping(found, sizes):
        unpruned[leader] = "other groups own a part of its channels"
    groups: list[ChannelGroup] = []
    owners: dict[tuple[str, Axis], AxisOwners] = {}
    for leader, members in found:
        if leader in unpruned:
            continue
        units = 1 + max(int(member.channels.max()) for member in members)
        made = next(m for m in members if m.name == leader and m.axis == "out")
        for member in members:
            key = (member.name, member.axis)
            if key not in owners:
                owners[key] = _unowned(sizes[key])
            owners[key].group[member.positions] = len(groups)
            owners[key].channel[member.positions] = member.channels
        groups.append(ChannelGroup(leader, units, len(made.positions) // units))
    if not groups:
        raise ModelError(
            "torch-pruning found no channels in this network that can be removed; choose another "
            "backbone."
        )
    return Dependencies(tuple(groups), owners, unpruned)


def _trace(
    model: nn.Module, known: Mapping[str, Any], classifier: str, image_size: int
) -> Iterator[tuple[list[_Member], str | None]]:
    """Let torch-pruning trace the network.

    Yields:
        The members of each group, and why the group must stay whole, if it must.
    """
    import torch_pruning

    # By identity: tensors are not compared as other keys are.
    names = {id(part): name for name, part in known.items()}
    scales = [
        (part, channel_dim(name, part))
        for name, part in known.items()
        if isinstance(part, nn.Parameter)
    ]
    device = next(model.parameters()).device
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
                example_inputs=torch.zeros(1, 3, image_size, image_size, device=device),
                unwrapped_parameters=scales,
                verbose=False,
            )
            groups = list(
                graph.get_all_groups(
                    ignored_layers=[model.get_submodule(classifier)],
                    root_module_types=[nn.Conv2d, nn.Linear],
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
        members: list[_Member] = []
        barrier: str | None = None
        for item in group:
            part = item.dep.target.module
            if id(part) in barriers:
                barrier = barriers[id(part)]
            if id(part) not in names:
                continue  # an operation of torch-pruning's own: holds no channels
            name = names[id(part)]
            if not isinstance(part, (*PRUNABLE_LAYERS, nn.Parameter)):
                raise ModelError(
                    f"Layer '{name}' ({type(part).__name__}) cannot be pruned; choose a backbone "
                    "of convolutions, norms and linear layers."
                )
            axis: Axis = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            if isinstance(part, nn.LayerNorm) and len(part.normalized_shape) != 1:
                barrier = f"layer '{name}' normalises over more than the channels"
            members.append(
                _Member(
                    name,
                    axis,
                    np.array([int(i) for i in item.idxs], dtype=np.int64),
                    np.array([int(i) for i in item.root_idxs], dtype=np.int64),
                )
            )
        yield members, barrier


def _produces(layer: nn.Module | None) -> bool:
    """Whether a layer makes channels, rather than passing them on one by one."""
    return isinstance(layer, (nn.Conv2d, nn.Linear)) and not is_depthwise(layer)


def _make_units(members: list[_Member], layers: Mapping[str, Any]) -> str | None:
    """Replace the channels of each member by units of channels that can only go together.

    Channels are joined that meet at one position, or have the same offset in a grouped convolution.

    Returns:
        Why the group must stay whole, if it must.
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
        layer = layers.get(name)
        positions = np.concatenate([part.positions for part in parts])
        channels = np.concatenate([part.channels for part in parts])
        if len(np.unique(positions)) < len(positions):
            join(positions, channels)
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and not is_depthwise(layer):
            size = axis_size(layer, axis)
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


def _overlapping(
    found: list[tuple[str, list[_Member]]], sizes: Mapping[tuple[str, Axis], int]
) -> set[str]:
    """Name the leaders whose groups share a position with another, or miss one of the leader's."""
    claimed: dict[tuple[str, Axis], NDArray[np.int64]] = {}
    overlapping: set[str] = set()
    for index, (leader, members) in enumerate(found):
        for member in members:
            key = (member.name, member.axis)
            taken = claimed.setdefault(key, np.full(sizes[key], -1, dtype=np.int64))
            others = np.unique(taken[member.positions])
            for other in others[(others >= 0) & (others != index)]:
                overlapping |= {leader, found[other][0]}
            taken[member.positions] = index
    for leader, _ in found:
        if (claimed[(leader, "out")] < 0).any():
            overlapping.add(leader)
    return overlapping


def axis_size(layer: nn.Module | nn.Parameter, axis: Axis) -> int:
    """Count the input or output channels of a layer, or the channels of a parameter."""
    if isinstance(layer, nn.Parameter):
        return max(layer.shape)
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels if axis == "in" else layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features if axis == "in" else layer.out_features
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    assert isinstance(layer, nn.BatchNorm2d)
    return layer.num_features


def _unowned(size: int) -> AxisOwners:
    return AxisOwners(np.full(size, -1, dtype=np.int64), np.full(size, -1, dtype=np.int64))
