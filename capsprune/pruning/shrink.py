"""Remove channels physically: the shrunk network is smaller and needs no masks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.errors import CheckpointError, ModelError
from capsprune.pruning.groups import (
    NORMS,
    PRUNABLE_LAYERS,
    Dependencies,
    axis_size,
    channel_dim,
    channel_parameters,
    is_depthwise,
)


@torch.no_grad()
def shrink(
    model: nn.Module,
    dependencies: Dependencies,
    rankings: list[Tensor],
    kept: NDArray[np.int64],
) -> nn.Module:
    """Copy a network without the channels that rank lowest.

    The order of the channels that stay is kept.

    Args:
        model: the unpruned network, which is left as it is.
        dependencies: its groups.
        rankings: for each group its channels, those to keep longest first.
        kept: how many units of channels to keep in each group, at least 1, [G].

    Returns:
        A smaller network of the same class. It shares no tensor with `model`.

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

    selected: dict[tuple[str, str], Tensor] = {}
    for (name, axis), owners in dependencies.owners.items():
        stays = owners.group < 0
        for index in np.unique(owners.group[owners.group >= 0]):
            mine = owners.group == index
            stays[mine] = masks[index][owners.channel[mine]]
        selected[(name, axis)] = torch.from_numpy(np.flatnonzero(stays))

    # deepcopy takes what stands in its memo instead of copying: so only what stays is ever copied.
    memo: dict[int, Any] = {}
    counts: dict[str, dict[str, int]] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, PRUNABLE_LAYERS):
            continue
        outputs, inputs = selected.get((name, "out")), selected.get((name, "in"))
        if outputs is None and inputs is None:
            continue
        depthwise = is_depthwise(layer)
        for key, tensor in [
            *layer.named_parameters(recurse=False),
            *layer.named_buffers(recurse=False),
        ]:
            part = tensor.detach()
            if outputs is not None and part.dim() > 0:
                part = part.index_select(0, outputs.to(part.device))
            if inputs is not None and not depthwise and key == "weight":
                # The same offsets stay in each group of a grouped convolution: the first tells all.
                columns = inputs[inputs < part.shape[1]]
                part = part.index_select(1, columns.to(part.device))
            if part.data_ptr() == tensor.data_ptr():
                part = part.clone()
            if tensor.dim() == 4:
                part = part.contiguous(memory_format=_memory_format(tensor))
            memo[id(tensor)] = (
                nn.Parameter(part, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else part
            )
        counts[name] = {
            axis: len(positions)
            for axis, positions in (("in", inputs), ("out", outputs))
            if positions is not None
        }
    for name, parameter in channel_parameters(model):
        if (name, "out") in selected:
            chosen = selected[(name, "out")].to(parameter.device)
            part = parameter.detach().index_select(channel_dim(name, parameter), chosen)
            memo[id(parameter)] = nn.Parameter(part, parameter.requires_grad)
    smaller = copy.deepcopy(model, memo)
    for name, count in counts.items():
        _set_counts(smaller.get_submodule(name), **{f"{k}_count": v for k, v in count.items()})
    return smaller


def layer_channels(model: nn.Module) -> dict[str, dict[str, int]]:
    """Read the channel counts of every layer: what is needed to rebuild a pruned network.

    Returns:
        By layer name, "in" and "out" counts (norms, and parameters outside of layers, have only
        "out").
    """
    channels: dict[str, dict[str, int]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, NORMS):
            channels[name] = {"out": axis_size(layer, "out")}
        elif isinstance(layer, PRUNABLE_LAYERS):
            channels[name] = {"in": axis_size(layer, "in"), "out": axis_size(layer, "out")}
    for name, parameter in channel_parameters(model):
        channels[name] = {"out": axis_size(parameter, "out")}
    return channels


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
    scales = dict(channel_parameters(model))
    for name, counts in channels.items():
        if counts == own[name]:
            continue
        inputs = counts.get("in", 1)
        outputs = counts["out"]
        if inputs < 1 or outputs < 1:
            raise CheckpointError(f"layer '{name}' has no channels")
        if name in scales:
            owner, _, key = name.rpartition(".")
            shape = list(scales[name].shape)
            shape[channel_dim(name, scales[name])] = outputs
            _resize_parameter(model.get_submodule(owner), key, shape)
            continue
        layer = model.get_submodule(name)
        shape = [outputs]
        if isinstance(layer, nn.Conv2d):
            groups = outputs if is_depthwise(layer) else layer.groups
            if inputs % groups or outputs % groups:
                raise CheckpointError(
                    f"layer '{name}' has {inputs} inputs and {outputs} outputs, which its {groups} "
                    "groups do not divide"
                )
            shape = [outputs, inputs // groups, *layer.kernel_size]
        elif isinstance(layer, nn.Linear):
            shape = [outputs, inputs]
        for key, _ in list(layer.named_parameters(recurse=False)):
            _resize_parameter(layer, key, shape if key == "weight" else [outputs])
        for key, buffer in layer.named_buffers(recurse=False):
            if buffer.dim() > 0:
                setattr(layer, key, buffer.new_empty(outputs))
        _set_counts(layer, in_count=inputs, out_count=outputs)


def _resize_parameter(owner: nn.Module, name: str, shape: list[int]) -> None:
    parameter = getattr(owner, name)
    setattr(owner, name, nn.Parameter(parameter.new_empty(shape), parameter.requires_grad))


def _set_counts(
    layer: nn.Module, in_count: int | None = None, out_count: int | None = None
) -> None:
    if isinstance(layer, nn.Conv2d):
        if is_depthwise(layer):
            size = out_count if out_count is not None else in_count
            assert size is not None
            layer.in_channels = layer.out_channels = layer.groups = size
            return
        layer.in_channels = in_count if in_count is not None else layer.in_channels
        layer.out_channels = out_count if out_count is not None else layer.out_channels
    elif isinstance(layer, nn.Linear):
        layer.in_features = in_count if in_count is not None else layer.in_features
        layer.out_features = out_count if out_count is not None else layer.out_features
    elif isinstance(layer, nn.BatchNorm2d) and out_count is not None:
        layer.num_features = out_count
    elif isinstance(layer, nn.LayerNorm) and out_count is not None:
        layer.normalized_shape = (out_count,)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
