"""The groups of a whole capsule network: its trunk's channels, and its primary capsules."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.capsules.network import CapsuleNetwork
from capsprune.pruning.groups import AxisOwners, ChannelGroup, Dependencies, find_groups
from capsprune.pruning.layers import Axis

_CONVOLUTION = "primary_caps.conv"


class _UpToPrimaryCaps(HeadedNetwork):
    """A capsule network as far as torch-pruning can trace it, with the same names."""

    def __init__(self, network: CapsuleNetwork) -> None:
        super().__init__(network.trunk)
        self.trunk_frozen = network.trunk_frozen
        self.primary_caps = nn.ModuleDict({"conv": network.primary_caps.get_submodule("conv")})
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, H, W] to un-squashed capsules [batch, I x D1, 1, 1]."""
        return self.primary_caps["conv"](self.trunk(images))


def find_capsule_groups(network: CapsuleNetwork, image_size: int) -> Dependencies:
    """Find the groups of a capsule network: those of its trunk, and that of its primary capsules.

    A unit of the last group is one primary capsule: D1 filters of PrimaryCaps and the slice
    `weight[:, i]` of OutputCaps. It hangs on no trunk channel, since each filter sees all of them.

    Args:
        network: it is traced with one forward pass and comes back unchanged.
        image_size: pixels a side of the image that it is traced with.

    Raises:
        ModelError: if its trunk cannot be traced, or has no channels that can be removed.
    """
    trunk = find_groups(_UpToPrimaryCaps(network), classifier=_CONVOLUTION, image_size=image_size)
    capsules, d1 = network.primary_caps.capsules, network.primary_caps.d1
    group = np.full(capsules, len(trunk.groups), dtype=np.int64)
    unit = np.arange(capsules, dtype=np.int64)
    owned = AxisOwners(group, unit)
    owners: dict[tuple[str, Axis], AxisOwners] = {
        (_CONVOLUTION, "out"): AxisOwners(group.repeat(d1), unit.repeat(d1)),
        ("primary_caps", "out"): owned,
        ("output_caps", "in"): owned,
    }
    return Dependencies(
        (*trunk.groups, ChannelGroup(_CONVOLUTION, capsules, d1)),
        trunk.owners | owners,
        trunk.unprunable,
    )
