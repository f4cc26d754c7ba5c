"""What a network costs after pruning, computed from channel counts alone.

Multiply-accumulates (MACs) are those of convolutions, linear layers and routing for one image, one
multiplication with its addition counting once (fvcore's convention for the first two). Norms count
nothing: at inference a batch norm is part of the convolution before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.backbones.stem import blank_images
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.layers import Axis, PrunableLayer, prunable_layers


@torch.no_grad()
def count_positions(model: nn.Module, image_size: int) -> dict[str, int]:
    """Count how often each layer that multiplies is applied to one image.

    Returns:
        Output positions (height x width; 1 for a linear layer behind pooling, and for OutputCaps),
        by layer name.
    """
    positions: dict[str, int] = {}
    handles = []
    for name, layer in prunable_layers(model).items():
        if layer.weights_per_pair:

            def record(
                module: nn.Module,
                args: object,
                output: Tensor,
                name: str = name,
                layer: PrunableLayer = layer,
            ) -> None:
                positions[name] = positions.get(name, 0) + layer.positions(output)

            handles.append(layer.layer.register_forward_hook(record))
    was_training = model.training
    model.eval()
    try:
        model(blank_images(model, image_size))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return positions


def count_macs(model: nn.Module, image_size: int) -> dict[str, int]:
    """Count the MACs of each layer of a network that multiplies for one image.

    Returns:
        MACs by layer name.
    """
    layers = prunable_layers(model)
    return {
        name: layers[name].macs(positions)
        for name, positions in count_positions(model, image_size).items()
    }


def count_parameters(model: nn.Module) -> int:
    """Count the trainable values of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Iterated:
    """A layer that iterates, as often as is kept of a group."""

    #: Index of the layer, and of the group.
    layer: int
    group: int
    #: MACs for each pair of input and output channel, by the number of iterations from 0 on.
    macs_per_pair: NDArray[np.float64]


@dataclass(frozen=True)
class CostModel:
    """Costs of every pruned shape of one network.

    The channels on each axis of each layer are a linear function of the channels kept in each
    group and each derived group (G + R in all); a layer's cost is the product of its two axes times
    a constant, which only iterations change.
    """

    #: Units of each group in the unpruned network, and channels in a unit, [G].
    channels: NDArray[np.int64]
    widths: NDArray[np.int64]
    #: Input channels of each layer: `kept @ inputs + inputs_fixed`, [G + R, L] and [L].
    inputs: NDArray[np.float64]
    inputs_fixed: NDArray[np.float64]
    #: Output channels of each layer, likewise.
    outputs: NDArray[np.float64]
    outputs_fixed: NDArray[np.float64]
    #: MACs, and weights, for each pair of input and output channel, [L]; no MACs of layers that
    #: iterate.
    macs_per_pair: NDArray[np.float64]
    weights_per_pair: NDArray[np.float64]
    #: Parameters for each output channel: biases, and a norm's scale and shift, [L].
    parameters_per_output: NDArray[np.float64]
    #: For each derived group its source, and the units kept by the number of those of the source.
    derived: tuple[tuple[int, NDArray[np.int64]], ...] = ()
    iterated: tuple[Iterated, ...] = ()

    @classmethod
    def build(
        cls,
        model: nn.Module,
        dependencies: Dependencies,
        image_size: int,
        rankings: Sequence[Tensor] | None = None,
    ) -> CostModel:
        """Build the cost model from one forward pass.

        Args:
            model: the unpruned network.
            dependencies: its groups.
            image_size: pixels a side of the image.
            rankings: for each group its units, those to keep longest first. What stays of derived
                groups follows from them; other networks need none.

        Raises:
            ValueError: if there are derived groups and no rankings.
        """
        if rankings is None:
            if dependencies.derived:
                raise ValueError("What stays of derived groups follows from rankings; give them.")
            rankings = ()
        positions = count_positions(model, image_size)
        layers = prunable_layers(model)
        inputs = [_inputs_seen(layer, name, dependencies) for name, layer in layers.items()]
        outputs = [
            owned_positions(layer, name, "out", dependencies) for name, layer in layers.items()
        ]
        macs = _floats(
            layer.macs_per_pair(positions.get(name, 0)) for name, layer in layers.items()
        )
        iterated = tuple(_iterated(layers, positions, dependencies))
        macs[[part.layer for part in iterated]] = 0
        return cls(
            channels=dependencies.channels,
            widths=dependencies.widths,
            inputs=np.stack([owned for owned, _ in inputs], axis=1),
            inputs_fixed=np.array([fixed for _, fixed in inputs]),
            outputs=np.stack([owned for owned, _ in outputs], axis=1),
            outputs_fixed=np.array([fixed for _, fixed in outputs]),
            macs_per_pair=macs,
            weights_per_pair=_floats(layer.weights_per_pair for layer in layers.values()),
            parameters_per_output=_floats(layer.parameters_per_output for layer in layers.values()),
            derived=tuple(
                (group.source, group.counts(rankings[group.source].cpu().numpy()))
                for group in dependencies.derived
            ),
            iterated=iterated,
        )

    def macs(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count MACs for one image.

        Args:
            kept: units kept in each group, [..., G].

        Returns:
            MACs, [...]. Exact: all products stay far below 2^53.
        """
        inputs, outputs = self._layer_channels(kept)
        pairs = inputs * outputs
        total = pairs @ self.macs_per_pair
        for part in self.iterated:
            total = total + pairs[..., part.layer] * part.macs_per_pair[kept[..., part.group]]
        return total.astype(np.int64)

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
        """Return the MACs that remain, as a fraction of the unpruned network's."""
        ratio: NDArray[np.float64] = self.macs(kept) / self.unpruned_macs
        return ratio

    def _layer_channels(
        self, kept: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.derived:
            following = [table[kept[..., source]] for source, table in self.derived]
            kept = np.concatenate((kept, np.stack(following, axis=-1)), axis=-1)
        numbers = kept.astype(np.float64)
        return (
            numbers @ self.inputs + self.inputs_fixed,
            numbers @ self.outputs + self.outputs_fixed,
        )


def _floats(numbers: Iterable[int]) -> NDArray[np.float64]:
    return np.array([*numbers], dtype=np.float64)


def _iterated(
    layers: Mapping[str, PrunableLayer], positions: Mapping[str, int], dependencies: Dependencies
) -> Iterator[Iterated]:
    """Yield the layers whose iterations a group owns."""
    index = {name: number for number, name in enumerate(layers)}
    for (name, axis), owners in dependencies.owners.items():
        if axis == "iterations":
            macs = layers[name].macs_of_iterations(positions.get(name, 0))
            yield Iterated(index[name], int(owners.group[0]), _floats(macs))


def _inputs_seen(
    layer: PrunableLayer, name: str, dependencies: Dependencies
) -> tuple[NDArray[np.float64], float]:
    """Count the inputs that one output of a layer sees, as `owned_positions` does."""
    if layer.tied:
        return np.zeros(len(dependencies.groups) + len(dependencies.derived)), 1.0
    owned, fixed = owned_positions(layer, name, "in", dependencies)
    return owned / layer.groups, fixed / layer.groups


def owned_positions(
    layer: PrunableLayer, name: str, axis: Axis, dependencies: Dependencies
) -> tuple[NDArray[np.float64], float]:
    """Count the positions of an axis that each unit of each group, or derived group, owns.

    Args:
        layer: of the unpruned network.
        name: the layer's.
        axis: which of its axes.
        dependencies: the groups.

    Returns:
        Positions for each unit, [G + R], and how many no group owns.
    """
    units = [*dependencies.channels, *(group.channels for group in dependencies.derived)]
    owned = np.zeros(len(units))
    owners = dependencies.owners.get((name, axis))
    if owners is None:
        return owned, float(layer.size(axis))
    for index, count in enumerate(units):
        # Each unit of a group owns equally many positions (49 behind a 7 x 7 flatten, say).
        owned[index] = np.count_nonzero(owners.group == index) / count
    return owned, float(np.count_nonzero(owners.group < 0))
