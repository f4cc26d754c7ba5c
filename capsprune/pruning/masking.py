"""Masking: silence channels where they are, which a network without them must agree with.

This is no way to prune, as nothing gets faster. It is the check on everything that does: the
indices that torch-pruning found, and the channel pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from capsprune.pruning.groups import Dependencies
from capsprune.pruning.layers import Axis, ChannelParameter, PrunableLayer, prunable_layers


@contextmanager
def masked(
    model: nn.Module, dependencies: Dependencies, masks: Sequence[Tensor]
) -> Iterator[nn.Module]:
    """Set the outputs of channels to zero in every layer that makes them or passes them on.

    Consumers are left alone: that they see zeros follows only if the groups are right. A layer norm
    takes its mean and variance over the channels that stay. Iterations are not masked but left out.

    Args:
        model: the unpruned network, in evaluation mode; it comes back unchanged.
        dependencies: its groups.
        masks: for each group, which of its units stay, bool [C].

    Yields:
        The network itself, masked.
    """
    handles = []
    layers = prunable_layers(model)
    all_masks = dependencies.with_derived([mask.numpy() for mask in masks])
    whole: list[tuple[PrunableLayer, Axis, int]] = []
    before: list[tuple[nn.Parameter, Tensor]] = []
    for (name, axis), owners in dependencies.owners.items():
        if axis == "in":
            continue
        stays = torch.from_numpy(owners.staying(all_masks))
        layer = layers[name]
        if axis == "iterations":
            whole.append((layer, axis, layer.size(axis)))
            layer.set_sizes({axis: int(stays.sum())})
        elif isinstance(layer, ChannelParameter):  # which has no output to hook
            parameter = layer.parameter
            before.append((parameter, parameter.detach().clone()))
            parameter.data.mul_(_shaped(stays, parameter, layer.dim))
        else:
            handles.append(layer.layer.register_forward_hook(_silence(layer, stays)))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for layer, axis, size in whole:
            layer.set_sizes({axis: size})
        for parameter, values in before:
            parameter.data.copy_(values)


def _silence(
    layer: PrunableLayer, stays: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Return a forward hook that gives the layer's output without some of its channels."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return layer.silence(inputs[0], output, _shaped(stays, output, layer.channel_dim(output)))

    return hook


def _shaped(stays: Tensor, target: Tensor, dim: int) -> Tensor:
    shape = [1] * target.dim()
    shape[dim] = len(stays)
    return stays.to(target.device).reshape(shape)
