"""PrimaryCaps: one convolution as wide as the feature map, its channels grouped into capsules."""

from __future__ import annotations

from torch import Tensor, nn

from capsprune.capsules.routing import squash
from capsprune.errors import ModelError


class PrimaryCaps(nn.Module):
    """Turn a feature map into `I = floor(S / D1)` capsules of D1 values: equation (6), section 3.1.

    Channel c of the convolution belongs to capsule c // D1.
    """

    def __init__(self, channels: int, kernel_size: int, d1: int = 8) -> None:
        """Make the layer.

        Args:
            channels: S, the channels of the feature map.
            kernel_size: K, the height and width of the feature map.
            d1: D1, the values in a capsule.

        Raises:
            ModelError: if S < D1, so that there would be no capsule.
        """
        super().__init__()
        self.capsules = channels // d1
        self.d1 = d1
        if self.capsules < 1:
            raise ModelError(
                f"The trunk has {channels} channels, which is less than the {d1} values of one "
                "primary capsule; prune less, or give a smaller --d1."
            )
        self.conv = nn.Conv2d(channels, self.capsules * d1, kernel_size)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [batch, S, K, K] to squashed poses [batch, I, D1]."""
        return squash(self.conv(features).flatten(1).unflatten(1, (self.capsules, self.d1)))
