"""PrimaryCaps in two factors: few channels that see the whole map, and capsules made of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules.primary.base import PrimaryCaps, count_capsules
from capsprune.capsules.primary.names import FACTORED

#: The rank of a new layer: it has most of the energy of the outputs of trained dense ones.
DEFAULT_RANK = 16


class FactoredPrimaryCaps(PrimaryCaps):
    """The dense layer as a product of rank N: K x K from S to N channels, 1 x 1 to I x D1.

    `capsprune.pruning.factoring` makes it of a trained dense layer. A new one is drawn as PyTorch
    draws any two convolutions: each with a variance that follows from its own inputs.
    """

    kind = FACTORED
    options = frozenset({"rank", "capsules"})

    def __init__(
        self, channels: int, kernel_size: int, rank: int, capsules: int, d1: int = 8
    ) -> None:
        """Make the layer.

        Args:
            channels: S, the channels of the feature map.
            kernel_size: K, its height and width.
            rank: N, the channels between the two convolutions.
            capsules: I.
            d1: D1, the values in a capsule.
        """
        super().__init__(kernel_size, capsules, d1)
        self.basis = nn.Conv2d(channels, rank, kernel_size)
        self.conv = nn.Conv2d(rank, capsules * d1, 1)

    @classmethod
    def fitting(
        cls, features: FeatureMap, d1: int, options: Mapping[str, int]
    ) -> FactoredPrimaryCaps:
        """Make a new layer with as many capsules as the dense one has.

        Raises:
            ModelError: if S < D1, so that there would be no capsule.
        """
        capsules = options.get("capsules") or count_capsules(features.channels, d1)
        rank = options.get("rank", DEFAULT_RANK)
        return cls(features.channels, features.size, rank, capsules, d1)

    @property
    def in_channels(self) -> int:
        """S."""
        return self.basis.in_channels

    @property
    def rank(self) -> int:
        """N."""
        return self.basis.out_channels

    def stored(self) -> dict[str, int | None]:
        """Return the rank, and the capsules, where they are not as many as S makes."""
        return {"rank": self.rank, "capsules": self.own_capsules}

    def poses(self, features: Tensor) -> Tensor:
        """Map features [batch, S, K, K] to [batch, I, D1]."""
        poses: Tensor = self.conv(self.basis(features))
        return poses.flatten(1).unflatten(1, (self.capsules, self.d1))
