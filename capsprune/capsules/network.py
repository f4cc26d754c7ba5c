"""A capsule network: a backbone's trunk, PrimaryCaps, OutputCaps (Fig. 2 of the paper)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules.heads import DYNAMIC
from capsprune.capsules.output import OutputCaps
from capsprune.capsules.primary.names import DENSE, PRIMARIES


class CapsuleOutput(NamedTuple):
    """What a capsule network says of a batch of images."""

    #: Length of each output capsule's pose, [batch, J], in [0, 1): the class is present.
    class_probabilities: Tensor
    #: Poses of the output capsules, [batch, J, D2].
    poses: Tensor


class CapsuleNetwork(HeadedNetwork):
    """`N = C[B(x)]` of equation (5): trunk, PrimaryCaps, OutputCaps."""

    kind = DYNAMIC

    def __init__(
        self,
        trunk: nn.Module,
        *,
        channels: int,
        feature_size: int,
        classes: int,
        d1: int = 8,
        d2: int = 16,
        iterations: int = 3,
        primary: str = DENSE,
        types: int | None = None,
        rank: int | None = None,
        capsules: int | None = None,
    ) -> None:
        """Put a capsule head on a trunk.

        Args:
            trunk: maps images [batch, C, H, W] to features [batch, S, K, K].
            channels: S.
            feature_size: K.
            classes: J.
            d1: values in a primary capsule.
            d2: values in an output capsule.
            iterations: routing iterations.
            primary: kind of PrimaryCaps, one of `PRIMARIES`.
            types: of primary capsules at each position, for kinds that keep positions.
            rank: of a factored PrimaryCaps.
            capsules: I, where it does not follow from the trunk.

        Raises:
            ModelError: if PrimaryCaps does not fit the trunk, as where S < D1, or lacks an option.
        """
        super().__init__(trunk)
        self.primary_caps = PRIMARIES[primary].make(
            FeatureMap(channels, feature_size), d1, types=types, rank=rank, capsules=capsules
        )
        self.output_caps = OutputCaps(self.primary_caps.capsules, classes, d1, d2, iterations)

    def forward(self, images: Tensor) -> CapsuleOutput:
        """Map images [batch, C, H, W] to probabilities [batch, J] and poses [batch, J, D2]."""
        return self.route(self.primary_caps(self.trunk(images)))

    def route(self, u: Tensor) -> CapsuleOutput:
        """Map primary capsules [batch, I, D1] to what `forward` maps images to."""
        poses = self.output_caps(u)
        return CapsuleOutput(torch.linalg.vector_norm(poses, dim=-1), poses)
