"""Rebuild a pruned network from a state dict alone: its channel counts are read off the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.backbones.matching import COUNTER
from capsprune.errors import CheckpointError
from capsprune.pruning.channels import layer_channels, resize_layers
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.layers import prunable_layers


def rebuild(
    model: nn.Module,
    dependencies: Dependencies,
    state: Mapping[str, Tensor],
    *,
    name: str,
    source: str,
) -> NDArray[np.int64]:
    """Give a network the shapes and the values of a state dict, in place.

    Each group's channels are counted on its root layer's weight. What all other tensors must then
    look like follows from the groups.

    Args:
        model: the unpruned network, on the CPU.
        dependencies: its groups.
        state: finite tensors by the network's names, from `read_weights`. Layers whose weights it
            lacks are drawn anew.
        name: the network's, for messages.
        source: where the state dict comes from, for messages.

    Returns:
        Units kept in each group, [G].

    Raises:
        CheckpointError: if the shapes fit no pruned network of this kind; the message names the
            tensor.
    """
    kept = _count_kept(dependencies, state, name, source)
    resize_layers(model, _channels(model, dependencies, kept))
    fresh = set()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith(COUNTER):
                value.zero_()
            elif key not in state:
                fresh.add(key.rpartition(".")[0])
            elif state[key].shape != value.shape:
                raise CheckpointError(
                    f"Tensor '{key}' of {source} is {list(state[key].shape)} where its other "
                    f"tensors need {list(value.shape)}, so that it fits no pruned {name}; give a "
                    "state dict whose shapes agree."
                )
            else:
                value.copy_(state[key])
    for layer in fresh:
        model.get_submodule(layer).reset_parameters()  # type: ignore[operator]
    return kept


def _count_kept(
    dependencies: Dependencies, state: Mapping[str, Tensor], name: str, source: str
) -> NDArray[np.int64]:
    """Count the units of each group on its root layer's weight, [G]."""
    kept = np.zeros(len(dependencies.groups), dtype=np.int64)
    for index, group in enumerate(dependencies.groups):
        key = f"{group.name}.weight"
        if key not in state:  # It is drawn anew, whole.
            kept[index] = group.channels
            continue
        count = state[key].shape[0] if state[key].dim() else 0
        if not 0 < count <= group.channels * group.width or count % group.width:
            several = f" in multiples of {group.width}" if group.width > 1 else ""
            raise CheckpointError(
                f"Tensor '{key}' of {source} has {count} output channels where a pruned {name} has "
                f"up to {group.channels * group.width}{several}; give the file's own --model."
            )
        kept[index] = count // group.width
    return kept


def _channels(
    model: nn.Module, dependencies: Dependencies, kept: NDArray[np.int64]
) -> dict[str, dict[str, int]]:
    """Return the channel counts of every layer, as `layer_channels` does, that groups lead to."""
    channels = layer_channels(model)
    for name, layer in prunable_layers(model).items():
        for axis in layer.axes:
            # A depthwise convolution has one input for each output.
            owners = dependencies.owners.get((name, "out" if layer.tied else axis))
            if owners is None:
                continue
            count = int(np.count_nonzero(owners.group < 0))
            for index in np.unique(owners.group[owners.group >= 0]):
                owned = int(np.count_nonzero(owners.group == index))
                count += owned // dependencies.groups[index].channels * int(kept[index])
            channels[name][axis] = count
    return channels
