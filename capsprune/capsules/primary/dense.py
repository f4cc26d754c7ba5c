"""The paper's PrimaryCaps: one convolution as wide as the feature map."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules.primary.base import PrimaryCaps, count_capsules
from capsprune.capsules.primary.names import DENSE


class DensePrimaryCaps(PrimaryCaps):
    """`I = floor(S / D1)` capsules, each seeing the whole map: equation (6), section 3.1.

    Channel c of the convolution belongs to capsule c // D1.
    """

    kind = DENSE
    options = frozenset({"capsules"})

    def __init__(
        self, channels: int, kernel_size: int, d1: int = 8, capsules: int | None = None
    ) -> None:
        """Make the layer.

        Args:
            channels: S, the channels of the feature map.
            kernel_size: K, the height and width of the feature map.
            d1: D1, the values in a capsule.
            capsules: I; None for as many as S makes.

        Raises:
            ModelError: if S < D1, so that there would be no capsule.
        """
        super().__init__(kernel_size, capsules or count_capsules(channels, d1), d1)
        self.conv = nn.Conv2d(channels, self.capsules * d1, kernel_size)

    @classmethod
    def fitting(cls, features: FeatureMap, d1: int, options: Mapping[str, int]) -> DensePrimaryCaps:
        """Make a new layer."""
        return cls(features.channels, features.size, d1, options.get("capsules"))

    @property
    def in_channels(self) -> int:
        """S."""
        return self.conv.in_channels

    def stored(self) -> dict[str, int | None]:
        """Return the capsules, where they are not as many as S makes."""
        return {"capsules": self.own_capsules}

    def poses(self, features: Tensor) -> Tensor:
        """Map features [batch, S, K, K] to [batch, I, D1]."""
        poses: Tensor = self.conv(features)
        return poses.flatten(1).unflatten(1, (self.capsules, self.d1))
