"""A network, and what every stage that prunes it needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from capsprune.backbones.registry import backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.heads import HEADS
from capsprune.capsules.network import CapsuleNetwork
from capsprune.errors import StrategyError
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.cost import CostModel, owned_positions
from capsprune.pruning.groups import Dependencies, find_groups
from capsprune.pruning.layers import prunable_layers
from capsprune.pruning.limits import Counted


@dataclass(frozen=True)
class UntrainedHead:
    """A head that a pruned backbone is measured with, in place of its classifier."""

    #: Name of the head.
    kind: str
    #: Values in a primary capsule, for heads that have any.
    d1: int


@dataclass(frozen=True)
class Prunable:
    """A network that is not pruned yet, with its groups and its costs."""

    #: Its backbone's name.
    name: str
    model: nn.Module
    #: Pixels a side.
    image_size: int
    dependencies: Dependencies
    cost: CostModel
    #: The head with which it is measured; None for the network as it is.
    measured_with: UntrainedHead | None = None

    @classmethod
    def of(
        cls,
        name: str,
        model: nn.Module,
        image_size: int,
        *,
        measured_with: UntrainedHead | None = None,
    ) -> Prunable:
        """Find the groups and build the cost model.

        Args:
            name: the backbone's.
            model: the backbone, or a capsule network on it.
            image_size: pixels a side.
            measured_with: the head with which a backbone is measured.

        Raises:
            ModelError: if its channels cannot be removed.
        """
        if isinstance(model, CapsuleNetwork):
            dependencies = find_capsule_groups(model, image_size)
        else:
            dependencies = find_groups(
                model, classifier=backbone(name).classifier, image_size=image_size
            )
        cost = CostModel.build(model, dependencies, image_size)
        return cls(name, model, image_size, dependencies, cost, measured_with)

    def as_measured(self, pruned: nn.Module) -> nn.Module:
        """Return the network whose latency is a pruned one's, which is left as it is."""
        if self.measured_with is None:
            return pruned
        trunk = trunk_of(self.name, pruned)
        features = trunk_output(trunk, self.image_size)
        kind = self.measured_with.kind
        head = HEADS[kind]
        given = {}
        if "d1" in head.config.model_fields:
            # A trunk too narrow for one capsule is measured as if capsules were as small as it is.
            given["d1"] = min(self.measured_with.d1, features.channels)
        classes = prunable_layers(self.model)[backbone(self.name).classifier].size("out")
        with torch.random.fork_rng(devices=[]):  # What is drawn after it stays what it was.
            config = head.configure(kind, features, given)
            return head.build(trunk, features, classes, config).eval()


def capsules_of_trunk(network: Prunable, d1: int) -> Counted:
    """Find how the primary capsules of a pruned trunk follow from the channels kept in each group.

    There are S / D1, rounded down. The trunk's output channels S are what the first layer behind it
    takes in, once for each position that a flatten leaves.

    Raises:
        StrategyError: if the trunk has fewer channels than a capsule has values.
    """
    channels, _ = trunk_output(trunk_of(network.name, network.model), network.image_size)
    if channels < d1:
        raise StrategyError(
            f"The trunk of {network.name} has {channels} channels, fewer than the {d1} values of a "
            "primary capsule; give a lower --d1."
        )
    trunk = backbone(network.name).trunk_children
    behind, layer = next(
        (layer_name, layer)
        for layer_name, layer in prunable_layers(network.model).items()
        if layer.produces
        and not any(layer_name == child or layer_name.startswith(f"{child}.") for child in trunk)
    )
    repeats = layer.size("in") // channels
    owned, unowned = owned_positions(layer, behind, "in", network.dependencies)
    per_channel = (owned // repeats).astype(np.int64)
    return Counted(per_channel, int(unowned) // repeats, d1)
