"""Capsules as channels: a primary capsule is a group of D1 filters and its slice of OutputCaps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from capsprune.capsules.cost import routing_macs
from capsprune.capsules.output import OutputCaps
from capsprune.capsules.primary.base import PrimaryCaps
from capsprune.pruning.layers import Axis, PassingLayer, PrunableLayer, adapts


@adapts(PrimaryCaps)
class PrimaryCapsules(PassingLayer):
    """PrimaryCaps behind its convolution: it forms capsules, which its axis counts."""

    layer: PrimaryCaps

    def size(self, axis: Axis) -> int:
        """Return the capsules, I."""
        return self.layer.capsules

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the capsules."""
        self.layer.capsules = sizes["out"]


@adapts(OutputCaps)
class OutputCapsules(PrunableLayer):
    """OutputCaps: its inputs are primary capsules, its outputs classes."""

    layer: OutputCaps

    def size(self, axis: Axis) -> int:
        """Return the primary capsules, I, or the classes, J."""
        return self.layer.weight.shape[1 if axis == "in" else 0]

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Do nothing: the sizes are those of the weight."""

    @property
    def weights_per_pair(self) -> int:
        """Values of the matrix of a primary capsule and a class, D1 x D2."""
        return self.layer.weight.shape[2] * self.layer.weight.shape[3]

    def macs_per_pair(self, positions: int) -> int:
        """Return the MACs of the vote and the routing between one primary capsule and one class."""
        _, _, d1, d2 = self.layer.weight.shape
        return positions * routing_macs(1, 1, d1, d2, self.layer.iterations)

    def positions(self, output: Tensor) -> int:
        """Return 1: it is applied once."""
        return output.shape[0]
