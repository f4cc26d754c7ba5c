"""Dependency groups: which channels of which layers can only be removed together.

torch-pruning traces the network once. What it finds is kept as plain index arrays, so that costs
can be computed and copies shrunk without tracing anything again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capsprune.errors import ModelError

Axis = Literal["in", "out"]

#: Layers whose channels can be removed; everything else must only pass channels on.
PRUNABLE_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that the layers of a group share."""

    #: Name of the leader: the first layer, in the network's order, that produces these channels.
    name: str
    #: How many there are in the unpruned network.
    channels: int


@dataclass(frozen=True)
class AxisOwners:
    """For each position on one axis of a layer, which channel of which group it belongs to."""

    #: Index of the group, or -1 where no group owns the position, [n].
    group: NDArray[np.int64]
    #: Channel within the group, [n].
    channel: NDArray[np.int64]


@dataclass(frozen=True)
class Dependencies:
    """All dependency groups of a network, and what they own."""

    groups: tuple[ChannelGroup, ...]
    #: By layer name and axis. An axis that no group touches is absent.
    owners: dict[tuple[str, Axis], AxisOwners]

    @property
    def channels(self) -> NDArray[np.int64]:
        """Channels of each group in the unpruned network, [G]."""
        return np.array([group.channels for group in self.groups], dtype=np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, in the order of all arrays here."""
        return tuple(group.name for group in self.groups)


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether a convolution filters each channel by itself."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups > 1
        and layer.groups == layer.in_channels == layer.out_channels
    )


def find_groups(model: nn.Module, *, classifier: str, image_size: int) -> Dependencies:
    """Find the dependency groups of a network with torch-pruning.

    Args:
        model: the network; it is traced with one forward pass and comes back unchanged.
        classifier: name of the layer whose outputs are the classes, which stay.
        image_size: pixels a side of the image that it is traced with.

    Raises:
        ModelError: if a layer is of a kind whose channels capsprune cannot remove.
    """
    import torch_pruning

    names = {module: name for name, module in model.named_modules()}
    order = {name: position for position, name in enumerate(names.values())}
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device)
    was_training = model.training
    requires_grad = [p.requires_grad for p in model.parameters()]
    model.eval()
    # torch-pruning reads the graph off autograd, so every parameter must take part in it.
    model.requires_grad_(True)
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)
        found: list[tuple[str, list[tuple[str, Axis, NDArray[np.int64], NDArray[np.int64]]]]] = []
        for group in graph.get_all_groups(
            ignored_layers=[model.get_submodule(classifier)],
            root_module_types=[nn.Conv2d, nn.Linear],
        ):
            members: list[tuple[str, Axis, NDArray[np.int64], NDArray[np.int64]]] = []
            for item in group:
                layer = item.dep.target.module
                if layer not in names:
                    continue  # an element-wise operation of torch-pruning's own: holds no channels
                if not isinstance(layer, PRUNABLE_LAYERS):
                    raise ModelError(
                        f"Layer '{names[layer]}' ({type(layer).__name__}) cannot be pruned; choose "
                        "a backbone of convolutions, batch norms and linear layers."
                    )
                axis: Axis = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
                positions = np.array([int(i) for i in item.idxs], dtype=np.int64)
                channels = np.array([int(i) for i in item.root_idxs], dtype=np.int64)
                members.append((names[layer], axis, positions, channels))
            producers = [
                name
                for name, axis, _, _ in members
                if axis == "out"
                and not isinstance(model.get_submodule(name), nn.BatchNorm2d)
                and not is_depthwise(model.get_submodule(name))
            ]
            found.append((min(producers, key=order.__getitem__), members))
    finally:
        for p, flag in zip(model.parameters(), requires_grad, strict=True):
            p.requires_grad_(flag)
        model.train(was_training)

    found.sort(key=lambda entry: order[entry[0]])
    groups: list[ChannelGroup] = []
    owners: dict[tuple[str, Axis], AxisOwners] = {}
    for index, (leader, members) in enumerate(found):
        groups.append(ChannelGroup(leader, 1 + max(int(c.max()) for _, _, _, c in members)))
        for name, axis, positions, channels in members:
            layer = model.get_submodule(name)
            if isinstance(layer, nn.Conv2d) and layer.groups > 1 and not is_depthwise(layer):
                raise ModelError(
                    f"Layer '{name}' is a grouped convolution, whose channels cannot be removed "
                    "one by one; choose a backbone of plain and depthwise convolutions."
                )
            key = (name, axis)
            if key not in owners:
                owners[key] = _unowned(axis_size(layer, axis))
            owners[key].group[positions] = index
            owners[key].channel[positions] = channels
    return Dependencies(tuple(groups), owners)


def axis_size(layer: nn.Module, axis: Axis) -> int:
    """Count the input or output channels of a layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels if axis == "in" else layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features if axis == "in" else layer.out_features
    assert isinstance(layer, nn.BatchNorm2d)
    return layer.num_features


def _unowned(size: int) -> AxisOwners:
    return AxisOwners(np.full(size, -1, dtype=np.int64), np.full(size, -1, dtype=np.int64))
