"""PrimaryCaps that filters each channel by itself, as Efficient-CapsNet does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules.primary.base import PrimaryCaps, count_capsules


class DepthwisePrimaryCaps(PrimaryCaps):
    """A depthwise K x K convolution, its S channels taken as `I = floor(S / D1)` capsules.

    Source: Mazzia et al., "Efficient-CapsNet: capsule network with self-attention routing",
    Scientific Reports 2021. Channels left over, S mod D1, are not looked at. It is drawn as PyTorch
    draws convolutions, with a variance that follows from the K x K inputs of each filter (He et
    al., ICCV 2015): with the variance of a dense layer, capsules would begin nearly at zero.
    """

    kind = "depthwise"

    def __init__(self, channels: int, kernel_size: int, d1: int = 8) -> None:
        """Make the layer.

        Args:
            channels: S, the channels of the feature map.
            kernel_size: K, its height and width.
            d1: D1, the values in a capsule.

        Raises:
            ModelError: if S < D1, so that there would be no capsule.
        """
        super().__init__(kernel_size, count_capsules(channels, d1), d1)
        width = self.capsules * d1
        self.conv = nn.Conv2d(width, width, kernel_size, groups=width)

    @classmethod
    def fitting(
        cls, features: FeatureMap, d1: int, options: Mapping[str, int]
    ) -> DepthwisePrimaryCaps:
        """Make a new layer, which has no further options."""
        return cls(features.channels, features.size, d1)

    @property
    def in_channels(self) -> int:
        """S, without the channels left over."""
        return self.conv.in_channels

    def poses(self, features: Tensor) -> Tensor:
        """Map features [batch, S, K, K] to [batch, I, D1]."""
        width = self.capsules * self.d1
        taken = features if features.shape[1] == width else features[:, :width]
        poses: Tensor = self.conv(taken)
        return poses.flatten(1).unflatten(1, (self.capsules, self.d1))
