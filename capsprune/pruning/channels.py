"""Channel pruning: remove channels physically. The pruned network is smaller and needs no masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.errors import CheckpointError, ModelError
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.layers import Axis, prunable_layers

#: The positions that stay on each axis of each layer that loses some, ascending.
Selected = Mapping[str, Mapping[Axis, Tensor]]
#: Changes values of a pruned network to make up for what is gone, given what stayed.
Compensation = Callable[[nn.Module, Selected], None]


@torch.no_grad()
def prune_channels(
    model: nn.Module,
    dependencies: Dependencies,
    rankings: list[Tensor],
    kept: NDArray[np.int64],
    compensate: Compensation | None = None,
) -> nn.Module:
    """Copy a network without the channels that rank lowest.

    The order of the channels that stay is kept.

    Args:
        model: the unpruned network, which is left as it is.
        dependencies: its groups.
        rankings: for each group its channels, those to keep longest first.
        kept: how many units of channels to keep in each group, at least 1, [G].
        compensate: called with the pruned network and what stayed, when all is removed.

    Returns:
        A smaller network of the same class. It shares no tensor with `model`.

    Raises:
        ModelError: if a group would lose all of its channels.
    """
    selected = _selected(dependencies, rankings, kept)
    # deepcopy takes what stands in its memo instead of copying: so only what stays is ever copied.
    memo: dict[int, Any] = {}
    for name, layer in prunable_layers(model).items():
        if name in selected:
            memo |= {id(tensor): part for _, tensor, part in layer.selected(selected[name])}
    smaller = copy.deepcopy(model, memo)
    for name, layer in prunable_layers(smaller).items():
        if name in selected:
            layer.set_sizes({axis: len(places) for axis, places in selected[name].items()})
    if compensate is not None:
        compensate(smaller, selected)
    return smaller


def _selected(
    dependencies: Dependencies, rankings: list[Tensor], kept: NDArray[np.int64]
) -> dict[str, dict[Axis, Tensor]]:
    """Return the positions that stay, by layer and axis, of what groups own a part of.

    Raises:
        ModelError: if a group would lose all of its channels.
    """
    masks: list[NDArray[np.bool_]] = []
    for group, ranking, count in zip(dependencies.groups, rankings, kept, strict=True):
        if count < 1:
            raise ModelError(f"Group '{group.name}' would lose all of its channels; remove fewer.")
        mask = np.zeros(group.channels, dtype=np.bool_)
        mask[ranking[: int(count)].numpy()] = True
        masks.append(mask)
    selected: dict[str, dict[Axis, Tensor]] = {}
    masks = dependencies.with_derived(masks)
    for (name, axis), owners in dependencies.owners.items():
        places = np.flatnonzero(owners.staying(masks))
        selected.setdefault(name, {})[axis] = torch.from_numpy(places)
    return selected


def layer_channels(model: nn.Module) -> dict[str, dict[str, int]]:
    """Return the channel counts of every layer: what is needed to rebuild a pruned network.

    Returns:
        By layer name, "in" and "out" counts (norms, and parameters outside of layers, have only
        "out").
    """
    return {
        name: {axis: layer.size(axis) for axis in layer.axes}
        for name, layer in prunable_layers(model).items()
    }


@torch.no_grad()
def resize_layers(model: nn.Module, channels: dict[str, dict[str, int]]) -> None:
    """Give a network the channel counts of a pruned one, in place; its weights become undefined.

    Args:
        model: the unpruned network.
        channels: what `layer_channels` read off the pruned one.

    Raises:
        CheckpointError: if the counts are of another network.
    """
    own = layer_channels(model)
    if set(own) != set(channels):
        odd = sorted(set(own) ^ set(channels))[0]
        raise CheckpointError(f"one of the two networks has no layer '{odd}'")
    layers = prunable_layers(model)
    for name, counts in channels.items():
        if counts == own[name]:
            continue
        try:
            layers[name].resize({axis: counts[axis] for axis in layers[name].axes})
        except KeyError as axis:
            raise CheckpointError(f"layer '{name}' has no count for {axis}") from None
        except CheckpointError as error:
            raise CheckpointError(f"layer '{name}' {error}") from None
