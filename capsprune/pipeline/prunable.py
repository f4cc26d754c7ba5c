"""A network, and what every stage that prunes it needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.backbones.registry import backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.heads import HEADS
from capsprune.capsules.network import CapsuleNetwork
from capsprune.errors import StrategyError
from capsprune.pruning.cost import CostModel, owned_positions
from capsprune.pruning.file_size import FileSize
from capsprune.pruning.groups import Dependencies, find_groups
from capsprune.pruning.layers import prunable_layers
from capsprune.pruning.limits import Counted
from capsprune.pruning.space import Reference, SearchSpace
from capsprune.pruning.target import LARGEST_MAX_RATE, Target


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
    #: How what is counted follows from the units kept, by the name of the size.
    counted: Mapping[str, Counted] = field(default_factory=dict)
    #: Which groups change what batch norms see, [G]; None for all of them.
    norms: NDArray[np.bool_] | None = None
    #: Costs that ratios are of; None for its own.
    reference: Reference | None = None
    #: Of its exported file, where that is asked for.
    file_size: FileSize | None = None

    @classmethod
    def of(
        cls,
        name: str,
        model: nn.Module,
        image_size: int,
        *,
        measured_with: UntrainedHead | None = None,
    ) -> Prunable:
        """Find the groups of a backbone and build its cost model.

        Args:
            name: the backbone's.
            model: the backbone, unpruned.
            image_size: pixels a side.
            measured_with: the head with which it is measured.

        Raises:
            ModelError: if its channels cannot be removed.
        """
        dependencies = find_groups(
            model, classifier=backbone(name).classifier, image_size=image_size
        )
        cost = CostModel.build(model, dependencies, image_size)
        return cls(name, model, image_size, dependencies, cost, measured_with)

    @classmethod
    def of_capsules(
        cls,
        name: str,
        network: CapsuleNetwork,
        image_size: int,
        dependencies: Dependencies,
        rankings: Sequence[Tensor],
        reference: Reference | None = None,
    ) -> Prunable:
        """Build the cost model of a capsule network.

        Args:
            name: its backbone's.
            network: the whole of it.
            image_size: pixels a side.
            dependencies: its groups.
            rankings: of their units, those to keep longest first.
            reference: costs that ratios are of; None for its own.
        """
        cost = CostModel.build(network, dependencies, image_size, rankings)
        in_trunk = {
            int(group)
            for (layer, _), owners in dependencies.owners.items()
            if layer.startswith("trunk.")
            for group in np.unique(owners.group)
        }
        norms = np.array([group in in_trunk for group in range(len(dependencies.groups))])
        return cls(name, network, image_size, dependencies, cost, norms=norms, reference=reference)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each group is of, [G]."""
        return tuple(group.kind for group in self.dependencies.groups)

    def search_space(self, target: Target, max_rate: float | None, round_to: int) -> SearchSpace:
        """Return the space of its strategies that have the sizes asked for.

        Args:
            target: the sizes.
            max_rate: as `Target.search_space` takes it.
            round_to: likewise.

        Raises:
            StrategyError: if the target is out of reach.
        """
        return target.search_space(
            self.cost,
            max_rate,
            round_to,
            self.counted,
            kinds=self.kinds,
            reference=self.reference,
            file_size=self.file_size,
        )

    def whole_space(self, max_rate: float | None, round_to: int) -> SearchSpace:
        """Return the space of all of its strategies, whatever their size.

        Args:
            max_rate: largest removal fraction of channels; None for the largest there is.
            round_to: keep multiples of this many channels.

        Raises:
            StrategyError: if `max_rate` is out of range.
        """
        return self.search_space(Target(), max_rate or LARGEST_MAX_RATE, round_to)

    def flops_ratio(self, kept: NDArray[np.int64]) -> float:
        """Return the MACs that remain, for units kept [G], as a part of the reference's."""
        return int(self.cost.macs(kept)) / self._whole.macs

    def params_ratio(self, kept: NDArray[np.int64]) -> float:
        """Return the parameters that remain, likewise."""
        return int(self.cost.parameters(kept)) / self._whole.parameters

    @property
    def _whole(self) -> Reference:
        return self.reference or Reference.of(self.cost)

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
