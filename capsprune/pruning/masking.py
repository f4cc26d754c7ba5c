"""Masking: silence channels where they are, which a network without them must agree with.

This is no way to prune, as nothing gets faster. It is the check on everything that does: the
indices that torch-pruning found, and the surgery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from capsprune.pruning.groups import Dependencies, channel_dim, channel_parameters


@contextmanager
def masked(
    model: nn.Module, dependencies: Dependencies, masks: Sequence[Tensor]
) -> Iterator[nn.Module]:
    """Set the outputs of channels to zero in every layer that makes them or passes them on.

    Consumers are left alone: that they see zeros follows only if the groups are right. A layer norm
    takes its mean and variance over the channels that stay.

    Args:
        model: the unpruned network, in evaluation mode; it comes back unchanged.
        dependencies: its groups.
        masks: for each group, which of its units stay, bool [C].

    Yields:
        The network itself, masked.
    """
    handles = []
    scales = dict(channel_parameters(model))
    before: dict[str, Tensor] = {}
    for (name, axis), owners in dependencies.owners.items():
        if axis == "in":
            continue
        stays = torch.tensor(
            [
                group < 0 or bool(masks[group][unit])
                for group, unit in zip(owners.group, owners.channel, strict=True)
            ]
        )
        if name in scales:
            before[name] = scales[name].detach().clone()
            shape = [1] * scales[name].dim()
            shape[channel_dim(name, scales[name])] = len(stays)
            scales[name].data.mul_(stays.reshape(shape))
            continue
        layer = model.get_submodule(name)
        handles.append(layer.register_forward_hook(_silence(layer, stays)))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for name, values in before.items():
            scales[name].data.copy_(values)


def _silence(
    layer: nn.Module, stays: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Make a forward hook that gives the layer's output without some of its channels."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Channels are last for linear layers and plain layer norms, second for all that convolves.
        second = output.dim() == 4 and output.shape[1] == len(stays)
        if isinstance(module, nn.Linear) or type(module) is nn.LayerNorm:
            second = False
        dim = 1 if second else -1
        shape = [1] * output.dim()
        shape[dim] = len(stays)
        keep = stays.to(output.device).reshape(shape)
        if isinstance(module, nn.LayerNorm):
            output = _layer_norm(module, inputs[0], keep, dim)
        return output * keep

    return hook


def _layer_norm(norm: nn.LayerNorm, x: Tensor, keep: Tensor, dim: int) -> Tensor:
    count = keep.sum()
    mean = (x * keep).sum(dim, keepdim=True) / count
    variance = ((x - mean).square() * keep).sum(dim, keepdim=True) / count
    x = (x - mean) * torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        x = x * norm.weight.reshape(keep.shape) + norm.bias.reshape(keep.shape)
    return x
