"""Rebuild a pruned network from a state dict alone: its channel counts are read off the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.errors import CheckpointError
from capsprune.pruning.groups import Axis, Dependencies, is_depthwise
from capsprune.pruning.shrink import layer_channels, resize_layers

#: Batch norms count their batches in a tensor that old files lack and that plays no part here.
_COUNTER = "num_batches_tracked"


def rebuild(
    model: nn.Module,
    dependencies: Dependencies,
    state: Mapping[str, Tensor],
    *,
    classifier: str,
    name: str,
    source: str,
) -> tuple[NDArray[np.int64], bool]:
    """Give a network the shapes and the values of a state dict, in place.

    Each group's channels are counted on its leader's weight. What all other tensors must then look
    like follows from the groups.

    Args:
        model: the unpruned network, on the CPU.
        dependencies: its groups.
        state: tensors, by the names that the network's own have.
        classifier: name of the layer whose outputs are the classes. If the state dict is for
            another number of classes, or has no classifier, this layer is drawn anew.
        name: the network's, for messages.
        source: where the state dict comes from, for messages.

    Returns:
        Units kept in each group, [G], and whether the classifier is the state dict's.

    Raises:
        CheckpointError: if tensors are missing or foreign, or their shapes fit no pruned network of
            this kind; the message names the tensor.
    """
    own = model.state_dict()
    weight = f"{classifier}.weight"
    own_classifier = (
        weight in state
        and state[weight].dim() == own[weight].dim()
        and len(state[weight]) == len(own[weight])
    )
    fresh = set() if own_classifier else {weight, f"{classifier}.bias"}
    for key in own:
        if key not in state and key not in fresh and not key.endswith(_COUNTER):
            raise CheckpointError(
                f"{source} has no tensor '{key}', so it is no {name}; give the file's own --model."
            )
    for key in state:
        if key not in own and not key.endswith(_COUNTER):
            raise CheckpointError(
                f"{source} has a tensor '{key}' that {name} lacks; give the file's own --model."
            )
    kept = _count_kept(dependencies, state, name, source)
    resize_layers(model, _channels(model, dependencies, kept))
    for key, value in model.state_dict().items():
        if key in fresh or key.endswith(_COUNTER):
            continue
        if not state[key].is_floating_point():
            kind = str(state[key].dtype).removeprefix("torch.")
            raise CheckpointError(
                f"Tensor '{key}' of {source} is of {kind} where {name} has floating-point numbers; "
                "give a state dict of such."
            )
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"Tensor '{key}' of {source} is {list(state[key].shape)} where its other tensors "
                f"need {list(value.shape)}, so that it fits no pruned {name}; give a state dict "
                "whose shapes agree."
            )
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith(_COUNTER):
                value.zero_()
            elif key not in fresh:
                value.copy_(state[key])
    if not own_classifier:
        layer = model.get_submodule(classifier)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        layer.reset_parameters()
    return kept, own_classifier


def _count_kept(
    dependencies: Dependencies, state: Mapping[str, Tensor], name: str, source: str
) -> NDArray[np.int64]:
    """Count the units of each group on its leader's weight, [G]."""
    kept = np.zeros(len(dependencies.groups), dtype=np.int64)
    for index, group in enumerate(dependencies.groups):
        key = f"{group.name}.weight"
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
    """Give the channel counts of every layer, as `layer_channels` does, that follow from groups."""
    channels = layer_channels(model)
    for name, counts in channels.items():
        depthwise = is_depthwise(model.get_submodule(name)) if "in" in counts else False
        for axis in counts:
            # A depthwise convolution has one input for each output.
            key: tuple[str, Axis] = (name, "in" if axis == "in" and not depthwise else "out")
            owners = dependencies.owners.get(key)
            if owners is None:
                continue
            counts[axis] = int(np.count_nonzero(owners.group < 0))
            for index in np.unique(owners.group[owners.group >= 0]):
                owned = int(np.count_nonzero(owners.group == index))
                counts[axis] += owned // dependencies.groups[index].channels * int(kept[index])
    return channels
