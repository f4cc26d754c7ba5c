"""The groups of a whole capsule network: its trunk's channels, and what its head's layers add."""

from __future__ import annotations

from torch import Tensor, nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.trunk import trunk_output
from capsprune.capsules.network import CapsuleNetwork
from capsprune.pruning.capsule_layers import CapsuleLayer
from capsprune.pruning.group_builder import GroupBuilder
from capsprune.pruning.groups import AxisOwners, Dependencies, find_groups
from capsprune.pruning.layers import adapter

#: The layers of the head, each behind the one before.
HEAD_LAYERS = ("primary_caps", "output_caps")
_PROBE = "probe"


class _ProbedTrunk(HeadedNetwork):
    """A trunk under its name in the network, and a convolution that sees who owns its outputs."""

    def __init__(self, network: CapsuleNetwork, channels: int) -> None:
        super().__init__(network.trunk)
        self.trunk_frozen = network.trunk_frozen
        self.probe = nn.Conv2d(channels, 1, 1).to(next(network.trunk.parameters()))
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, C, H, W] to what nobody needs."""
        probed: Tensor = self.probe(self.trunk(images))
        return probed


def find_capsule_groups(network: CapsuleNetwork, image_size: int) -> Dependencies:
    """Find the groups of a capsule network: those of its trunk, and those that its head has.

    The trunk is traced. Of the head, each layer's adapter says what it owns (see `CapsuleLayer`).

    Args:
        network: it is run with two forward passes of its trunk and comes back unchanged.
        image_size: pixels a side of the image that it is traced with.

    Raises:
        ModelError: if its trunk cannot be traced, or a layer of its head says nothing.
    """
    channels, _ = trunk_output(network.trunk, image_size)
    trunk = find_groups(
        _ProbedTrunk(network, channels), classifier=_PROBE, image_size=image_size, allow_none=True
    )
    owners = trunk.owners.pop((_PROBE, "in"), AxisOwners.unowned(channels))
    builder = GroupBuilder(trunk)
    for name in HEAD_LAYERS:
        layer = adapter(network.get_submodule(name))
        assert isinstance(layer, CapsuleLayer)
        owners = layer.connect(name, owners, builder)
    return builder.build()
