"""PrimaryCaps that keeps positions: a capsule is one position of one type, as Sabour has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules.primary.base import PrimaryCaps, count_capsules
from capsprune.errors import ModelError


class SpatialPrimaryCaps(PrimaryCaps):
    """A convolution to T types of D1 values; each of its positions is a capsule of each type.

    Capsule `t * P + p` is position p of type t, of P positions row by row, and channel c of the
    convolution belongs to type c // D1. After pruning, some of them are left: `places` says which.
    Source: Sabour et al., "Dynamic Routing Between Capsules", NeurIPS 2017, section 4.
    """

    kind = "spatial"
    options = frozenset({"types"})
    #: Of Sabour's network: kernel, stride, types.
    kernel: ClassVar[int] = 9
    stride: ClassVar[int] = 2
    default_types: ClassVar[int | None] = 32

    places: Tensor

    def __init__(
        self, channels: int, feature_size: int, types: int, d1: int = 8, kernel: int = 9
    ) -> None:
        """Make the layer.

        Args:
            channels: S, the channels of the feature map.
            feature_size: K, its height and width.
            types: T, the capsules of each position.
            d1: D1, the values in a capsule.
            kernel: height and width of the convolution's filters.

        Raises:
            ModelError: if the feature map is smaller than a filter.
        """
        if feature_size < kernel:
            raise ModelError(
                f"The trunk's feature map is {feature_size} x {feature_size}, too small for the "
                f"{kernel} x {kernel} filters of --primary {self.kind}; give a larger "
                "--image-size, or another --primary."
            )
        side = (feature_size - kernel) // self.stride + 1
        super().__init__(feature_size, types * side * side, d1)
        self.conv = nn.Conv2d(channels, types * d1, kernel, stride=self.stride)
        self.register_buffer("places", torch.arange(self.capsules))

    @classmethod
    def fitting(
        cls, features: FeatureMap, d1: int, options: Mapping[str, int]
    ) -> SpatialPrimaryCaps:
        """Make a new layer.

        Raises:
            ModelError: if the feature map is smaller than a filter, or S < D1 where the number of
                types follows from S.
        """
        types = options.get("types") or cls.default_types or count_capsules(features.channels, d1)
        return cls(features.channels, features.size, types, d1, cls.kernel)

    @property
    def in_channels(self) -> int:
        """S."""
        return self.conv.in_channels

    @property
    def types(self) -> int:
        """T: those of which any position is left."""
        return self.conv.out_channels // self.d1

    @property
    def positions(self) -> int:
        """P: positions of the convolution's output."""
        side = (self.feature_size - self.conv.kernel_size[0]) // self.stride + 1
        return side * side

    def stored(self) -> dict[str, int | None]:
        """Return the types."""
        return {"types": self.types}

    def poses(self, features: Tensor) -> Tensor:
        """Map features [batch, S, K, K] to [batch, I, D1]."""
        found: Tensor = self.conv(features)
        poses = found.flatten(2).unflatten(1, (-1, self.d1)).transpose(2, 3).flatten(1, 2)
        # All places are those of an unpruned layer, in their order.
        whole = self.capsules == self.types * self.positions
        return poses if whole else poses.index_select(1, self.places)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load as any module, but for places that are not there."""
        places = state_dict.get(f"{prefix}places")
        if places is not None and places.numel():
            least, most = int(places.min()), int(places.max())
            ascending = places.dim() == 1 and bool((places.diff() > 0).all())
            if least < 0 or most >= self.types * self.positions or not ascending:
                error_msgs.append(
                    f"{prefix}places are not ascending places of {self.types} types of "
                    f"{self.positions} positions"
                )
                return
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


class PointwisePrimaryCaps(SpatialPrimaryCaps):
    """A 1 x 1 convolution to `T = floor(S / D1)` types: the K x K positions stay as capsules."""

    kind = "pointwise"
    kernel = 1
    stride = 1
    default_types = None
