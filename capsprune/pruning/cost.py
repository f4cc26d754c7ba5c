"""What a network costs after pruning, computed from channel counts alone.

Multiply-accumulates (MACs) are those of convolutions and linear layers for one image, one
multiplication with its addition counting once (fvcore's convention for these operators). Norms
count nothing: at inference a batch norm is part of the convolution before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.pruning.groups import (
    NORMS,
    Axis,
    Dependencies,
    axis_size,
    channel_parameters,
    is_depthwise,
)


@torch.no_grad()
def count_positions(model: nn.Module, image_size: int) -> dict[str, int]:
    """Count how often each convolution and linear layer is applied to one image.

    Returns:
        Output positions (height x width; 1 for a linear layer behind pooling), by layer name.
    """
    positions: dict[str, int] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):

            def record(module: nn.Module, args: object, output: Tensor, name: str = name) -> None:
                # Convolutions have their channels second, linear layers last.
                count = output.numel() // axis_size(module, "out")
                positions[name] = positions.get(name, 0) + count

            handles.append(layer.register_forward_hook(record))
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    try:
        model(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return positions


def count_macs(model: nn.Module, image_size: int) -> dict[str, int]:
    """Count the MACs of each convolution and linear layer of a network for one image.

    Returns:
        MACs by layer name.
    """
    macs: dict[str, int] = {}
    for name, positions in count_positions(model, image_size).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        macs[name] = positions * layer.weight.numel()
    return macs


def count_parameters(model: nn.Module) -> int:
    """Count the trainable values of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class CostModel:
    """Costs of every pruned shape of one network.

    The channels on each axis of each layer are a linear function of the channels kept in each
    group; a layer's cost is the product of its two axes times a constant.
    """

    #: Units of each group in the unpruned network, and channels in a unit, [G].
    channels: NDArray[np.int64]
    widths: NDArray[np.int64]
    #: Input channels of each layer: `kept @ inputs + inputs_fixed`, [G, L] and [L].
    inputs: NDArray[np.float64]
    inputs_fixed: NDArray[np.float64]
    #: Output channels of each layer, likewise.
    outputs: NDArray[np.float64]
    outputs_fixed: NDArray[np.float64]
    #: MACs, and weights, for each pair of input and output channel, [L].
    macs_per_pair: NDArray[np.float64]
    weights_per_pair: NDArray[np.float64]
    #: Parameters for each output channel: biases, and a norm's scale and shift, [L].
    parameters_per_output: NDArray[np.float64]

    @classmethod
    def build(cls, model: nn.Module, dependencies: Dependencies, image_size: int) -> CostModel:
        """Build the cost model from one forward pass.

        Args:
            model: the unpruned network.
            dependencies: its groups.
            image_size: pixels a side of the image.
        """
        positions = count_positions(model, image_size)
        group_count = len(dependencies.groups)
        inputs, inputs_fixed, outputs, outputs_fixed = [], [], [], []
        macs, weights, per_output = [], [], []
        for name, layer in model.named_modules():
            linear, fixed = np.zeros(group_count), 1.0  # one input for each output
            if isinstance(layer, NORMS):
                pair, repeats = 0, 0
                bias = sum(1 for _ in layer.parameters())
            elif isinstance(layer, nn.Conv2d):
                pair, repeats = layer.kernel_size[0] * layer.kernel_size[1], positions[name]
                bias = int(layer.bias is not None)
                if not is_depthwise(layer):
                    linear, fixed = owned_positions(layer, name, "in", dependencies)
                    # An output of a grouped convolution sees the inputs of its own group.
                    linear, fixed = linear / layer.groups, fixed / layer.groups
            elif isinstance(layer, nn.Linear):
                pair, repeats, bias = 1, positions[name], int(layer.bias is not None)
                linear, fixed = owned_positions(layer, name, "in", dependencies)
            else:
                continue
            inputs.append(linear)
            inputs_fixed.append(fixed)
            linear, fixed = owned_positions(layer, name, "out", dependencies)
            outputs.append(linear)
            outputs_fixed.append(fixed)
            macs.append(pair * repeats)
            weights.append(pair)
            per_output.append(bias)
        for name, parameter in channel_parameters(model):
            inputs.append(np.zeros(group_count))
            inputs_fixed.append(1.0)
            linear, fixed = owned_positions(parameter, name, "out", dependencies)
            outputs.append(linear)
            outputs_fixed.append(fixed)
            macs.append(0)
            weights.append(0)
            per_output.append(1)
        return cls(
            channels=dependencies.channels,
            widths=dependencies.widths,
            inputs=np.stack(inputs, axis=1),
            inputs_fixed=np.array(inputs_fixed),
            outputs=np.stack(outputs, axis=1),
            outputs_fixed=np.array(outputs_fixed),
            macs_per_pair=np.array(macs, dtype=np.float64),
            weights_per_pair=np.array(weights, dtype=np.float64),
            parameters_per_output=np.array(per_output, dtype=np.float64),
        )

    def macs(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count MACs for one image.

        Args:
            kept: units kept in each group, [..., G].

        Returns:
            MACs, [...]. Exact: all products stay far below 2^53.
        """
        inputs, outputs = self._layer_channels(kept)
        return ((inputs * outputs) @ self.macs_per_pair).astype(np.int64)

    def parameters(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count parameters; arguments and result as for `macs`."""
        inputs, outputs = self._layer_channels(kept)
        total = (inputs * outputs) @ self.weights_per_pair + outputs @ self.parameters_per_output
        return total.astype(np.int64)

    @property
    def unpruned_macs(self) -> int:
        """MACs of the unpruned network."""
        return int(self.macs(self.channels))

    def flops_ratio(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give the MACs that remain, as a fraction of the unpruned network's."""
        ratio: NDArray[np.float64] = self.macs(kept) / self.unpruned_macs
        return ratio

    def parameters_ratio(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give the parameters that remain, likewise."""
        ratio: NDArray[np.float64] = self.parameters(kept) / self.parameters(self.channels)
        return ratio

    def _layer_channels(
        self, kept: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        numbers = kept.astype(np.float64)
        return (
            numbers @ self.inputs + self.inputs_fixed,
            numbers @ self.outputs + self.outputs_fixed,
        )


def owned_positions(
    layer: nn.Module | nn.Parameter, name: str, axis: Axis, dependencies: Dependencies
) -> tuple[NDArray[np.float64], float]:
    """Count the positions of an axis that each unit of each group owns.

    Args:
        layer: of the unpruned network.
        name: the layer's.
        axis: which of its axes.
        dependencies: the groups.

    Returns:
        Positions for each unit, [G], and how many no group owns.
    """
    owned = np.zeros(len(dependencies.groups))
    owners = dependencies.owners.get((name, axis))
    if owners is None:
        return owned, float(axis_size(layer, axis))
    for index, group in enumerate(dependencies.groups):
        # Each unit of a group owns equally many positions (49 behind a 7 x 7 flatten, say).
        owned[index] = np.count_nonzero(owners.group == index) / group.channels
    return owned, float(np.count_nonzero(owners.group < 0))
