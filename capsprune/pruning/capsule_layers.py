"""What pruning knows of capsule layers: each kind of PrimaryCaps, and OutputCaps.

A new kind of PrimaryCaps has an adapter here, or in its own package, that says what it owns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from capsprune.capsules.cost import routing_macs
from capsprune.capsules.output import OutputCaps
from capsprune.capsules.primary.base import PrimaryCaps
from capsprune.capsules.primary.dense import DensePrimaryCaps
from capsprune.capsules.primary.depthwise import DepthwisePrimaryCaps
from capsprune.capsules.primary.factored import FactoredPrimaryCaps
from capsprune.capsules.primary.spatial import SpatialPrimaryCaps
from capsprune.errors import ModelError
from capsprune.pruning.group_builder import GroupBuilder
from capsprune.pruning.groups import AxisOwners, ChannelGroup
from capsprune.pruning.layers import Axis, PassingLayer, PrunableLayer, adapts


class CapsuleLayer(PrunableLayer):
    """A layer of a head, which is not traced but says itself what its groups are."""

    @abstractmethod
    def connect(self, name: str, inputs: AxisOwners, builder: GroupBuilder) -> AxisOwners:
        """Add the layer's groups, and note what owns the axes of it and of the layers within.

        Args:
            name: the layer's.
            inputs: what owns its inputs: the channels of a feature map, or primary capsules.
            builder: what the groups are added to.

        Returns:
            What owns its outputs, the capsules.
        """


@adapts(PrimaryCaps)
class PrimaryCapsules(PassingLayer, CapsuleLayer):
    """PrimaryCaps behind its convolutions: it forms capsules, which its axis counts."""

    layer: PrimaryCaps

    def size(self, axis: Axis) -> int:
        """Return the capsules, I."""
        return self.layer.capsules

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the capsules."""
        self.layer.capsules = sizes["out"]

    def connect(self, name: str, inputs: AxisOwners, builder: GroupBuilder) -> AxisOwners:
        """Refuse: each kind owns something else.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"PrimaryCaps of kind {self.layer.kind} has no adapter that says what belongs to a "
            "capsule; register one with capsprune.pruning.layers.adapts."
        )

    def _add_filters(self, name: str, builder: GroupBuilder) -> AxisOwners:
        """Add the group of capsules that have D1 filters each of the convolution `conv`."""
        layer = self.layer
        convolution = f"{name}.conv"
        capsules = builder.add(ChannelGroup(convolution, layer.capsules, layer.d1, "capsules"))
        builder.own(convolution, "out", capsules.repeat(layer.d1))
        builder.own(name, "out", capsules)
        return capsules


@adapts(DensePrimaryCaps)
class DensePrimaryCapsules(PrimaryCapsules):
    """Capsules that see the whole feature map: they hang on no channel of it."""

    def connect(self, name: str, inputs: AxisOwners, builder: GroupBuilder) -> AxisOwners:
        """Own D1 filters for each capsule."""
        builder.own(f"{name}.conv", "in", inputs)
        return self._add_filters(name, builder)


@adapts(FactoredPrimaryCaps)
class FactoredPrimaryCapsules(PrimaryCapsules):
    """Capsules made of N channels, which see the whole feature map."""

    layer: FactoredPrimaryCaps

    def connect(self, name: str, inputs: AxisOwners, builder: GroupBuilder) -> AxisOwners:
        """Own the N channels, and D1 filters for each capsule."""
        basis = f"{name}.basis"
        builder.own(basis, "in", inputs)
        rank = builder.add(ChannelGroup(basis, self.layer.rank, 1, "rank"))
        builder.own(basis, "out", rank)
        builder.own(f"{name}.conv", "in", rank)
        return self._add_filters(name, builder)


@adapts(DepthwisePrimaryCaps)
class DepthwisePrimaryCapsules(PrimaryCapsules):
    """Capsules of D1 channels of the feature map, which go with them."""

    def connect(self, name: str, inputs: AxisOwners, builder: GroupBuilder) -> AxisOwners:
        """Tie the D1 channels of each capsule; those left over stay."""
        layer = self.layer
        parts = np.full(len(inputs.group), -1, dtype=np.int64)
        parts[: layer.capsules * layer.d1] = np.arange(layer.capsules).repeat(layer.d1)
        capsules = builder.merge(
            inputs, parts, "capsules", "no primary capsule is made of its channels alone"
        )
        builder.own(f"{name}.conv", "out", capsules.repeat(layer.d1))
        builder.own(name, "out", capsules)
        return capsules


@adapts(SpatialPrimaryCaps)
class SpatialPrimaryCapsules(PrimaryCapsules):
    """Capsules that are one position of one type; a type has D1 filters as long as any is left."""

    layer: SpatialPrimaryCaps

    def connect(self, name: str, inputs: AxisOwners, builder: GroupBuilder) -> AxisOwners:
        """Own the places, from which it follows which types are left."""
        layer = self.layer
        convolution = f"{name}.conv"
        builder.own(convolution, "in", inputs)
        capsules = builder.add(ChannelGroup(name, layer.capsules, layer.d1, "capsules"))
        builder.own(name, "out", capsules)
        type_of = (layer.places // layer.positions).cpu().numpy()
        types = builder.derive(convolution, capsules, type_of)
        builder.own(convolution, "out", types.repeat(layer.d1))
        return capsules

    def selected(self, chosen: Mapping[Axis, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the places that stay, by the numbers that their types have among those left."""
        for key, tensor, part in super().selected(chosen):
            if key == "places":
                positions = self.layer.positions
                _, number = torch.unique(part // positions, return_inverse=True)
                part = number * positions + part % positions
            yield key, tensor, part

    def resize(self, sizes: Mapping[Axis, int]) -> None:
        """Give the layer another number of capsules; until they are loaded, the first places."""
        super().resize(sizes)
        places = self.layer.places
        self.layer.places = torch.arange(len(places), device=places.device)


@adapts(OutputCaps)
class OutputCapsules(CapsuleLayer):
    """OutputCaps: its inputs are primary capsules, its outputs classes."""

    layer: OutputCaps

    def size(self, axis: Axis) -> int:
        """Return the primary capsules, I, the classes, J, or the routing iterations."""
        if axis == "iterations":
            return self.layer.iterations
        return self.layer.weight.shape[1 if axis == "in" else 0]

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the iterations; the other sizes are those of the weight."""
        self.layer.iterations = sizes.get("iterations", self.layer.iterations)

    @property
    def weights_per_pair(self) -> int:
        """Values of the matrix of a primary capsule and a class, D1 x D2."""
        return self.layer.weight.shape[2] * self.layer.weight.shape[3]

    def macs_per_pair(self, positions: int) -> int:
        """Return the MACs of the vote and the routing between one primary capsule and one class."""
        return self.macs_of_iterations(positions)[-1]

    def macs_of_iterations(self, positions: int) -> list[int]:
        """Return them for each number of iterations; with none, nothing is computed."""
        _, _, d1, d2 = self.layer.weight.shape
        counts = range(1, self.layer.iterations + 1)
        return [0, *(positions * routing_macs(1, 1, d1, d2, count) for count in counts)]

    def positions(self, output: Tensor) -> int:
        """Return 1: it is applied once."""
        return output.shape[0]

    def connect(self, name: str, inputs: AxisOwners, builder: GroupBuilder) -> AxisOwners:
        """Own the slice of each primary capsule, and the iterations, where there are several."""
        builder.own(name, "in", inputs)
        if self.layer.iterations > 1:
            group = ChannelGroup(f"{name}.iterations", self.layer.iterations, 0, "iterations")
            builder.own(name, "iterations", builder.add(group))
        return AxisOwners.unowned(self.size("out"))
