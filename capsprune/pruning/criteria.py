"""What goes first: criteria that score the channels of each group, and the ranking of all groups.

A criterion is a callable that takes a `Scoring` and returns one score for each channel of each
group; the lowest go first. A new one is one more function and a line in
`capsprune.pruning.names.CRITERIA`, or is registered there from another package:

    @CRITERIA.register("weakest", "what it measures")
    def weakest(scoring): ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from capsprune.capsules.network import CapsuleNetwork
from capsprune.errors import StrategyError
from capsprune.pruning.groups import AxisOwners, Dependencies
from capsprune.pruning.layers import PrunableLayer, prunable_layers
from capsprune.pruning.names import CAPSULE_CRITERIA, CRITERIA, DEFAULT_CAPSULE_CRITERION
from capsprune.training.objective import CROSS_ENTROPY, Objective

#: Images with labels, normalised: [batch, C, H, W] and [batch].
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Scoring:
    """What a criterion may look at."""

    #: The unpruned network, in evaluation mode. A criterion leaves it as it is.
    model: nn.Module
    dependencies: Dependencies
    #: Training images; empty where the criterion does not ask for them.
    batches: Batches = ()
    seed: int = 0
    #: What the network is trained for; by default logits against the labels.
    objective: Objective = CROSS_ENTROPY

    @functools.cached_property
    def layers(self) -> dict[str, PrunableLayer]:
        """The network's prunable layers, by name."""
        return prunable_layers(self.model)

    @property
    def capsule_network(self) -> CapsuleNetwork:
        """The network, where it is one of primary capsules."""
        assert isinstance(self.model, CapsuleNetwork)
        return self.model

    @functools.cached_property
    def primary_capsules(self) -> Batches:
        """Poses of the primary capsules on the batches, [batch, I, D1] each, and the labels."""
        return poses_on(self.capsule_network, self.batches)

    def root_weight(self, index: int) -> Tensor:
        """Return the filters of a group's root layer, [positions, ...]."""
        return self.layers[self.dependencies.groups[index].name].weight

    def by_channel(self, index: int, layer: str, values: Tensor) -> Tensor:
        """Sum what belongs to the positions of a layer's output over each channel of a group.

        Args:
            index: of the group.
            layer: name of a layer whose outputs the group owns, if not all of them.
            values: one for each output position of the layer, [positions].

        Returns:
            Sums in double precision on the CPU, [C].
        """
        group = self.dependencies.groups[index]
        owners = self.dependencies.owners[(layer, "out")]
        mine = torch.from_numpy(owners.group == index)
        sums = torch.zeros(group.channels, dtype=torch.float64)
        channels = torch.from_numpy(owners.channel)[mine]
        return sums.index_add_(0, channels, values.detach().cpu().double()[mine])


#: One score for each channel of each group, [C] each.
Criterion = Callable[[Scoring], list[Tensor]]

#: One score for each primary capsule, [I].
CapsuleCriterion = Callable[[Scoring], Tensor]

CriterionT = TypeVar("CriterionT", bound=Criterion | CapsuleCriterion)


def needs_images(criterion: CriterionT) -> CriterionT:
    """Mark a criterion that looks at training images."""
    criterion.needs_images = True  # type: ignore[union-attr]
    return criterion


def takes_images(criterion: str | Criterion | CapsuleCriterion) -> bool:
    """Return whether a criterion looks at training images, so that it must be given some.

    Args:
        criterion: the name of one in `CRITERIA`, or a callable of either kind.
    """
    if isinstance(criterion, str):
        criterion = CRITERIA[criterion]
    return getattr(criterion, "needs_images", False)


@torch.no_grad()
def poses_on(network: CapsuleNetwork, batches: Batches) -> Batches:
    """Return the poses of the primary capsules on each batch, [batch, I, D1], and its labels.

    Args:
        network: is in evaluation mode meanwhile.
        batches: images and labels.
    """
    was_training = network.training
    network.eval()
    try:
        return [(network.primary_caps(network.trunk(images)), labels) for images, labels in batches]
    finally:
        network.train(was_training)


def l1(scoring: Scoring) -> list[Tensor]:
    """Sum of magnitudes of the root layer's filters.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; EagleEye's choice.
    """
    return _of_filters(scoring, lambda weight: weight.abs().flatten(1).sum(dim=1))


def l2(scoring: Scoring) -> list[Tensor]:
    """Euclidean norm of the root layer's filters."""
    squares = _of_filters(scoring, lambda weight: weight.square().flatten(1).sum(dim=1))
    return [square.sqrt() for square in squares]


def bn_scale(scoring: Scoring) -> list[Tensor]:
    """Magnitude of the batch norm's scale, averaged over the batch norms that a group owns.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV
    2017.

    Raises:
        StrategyError: if a group has no batch norm.
    """
    sums = [torch.zeros(g.channels, dtype=torch.float64) for g in scoring.dependencies.groups]
    counts = [0] * len(sums)
    for layer, axis in scoring.dependencies.owners:
        scale = scoring.layers[layer].scale
        if axis != "out" or scale is None:
            continue
        owned = scoring.dependencies.owners[(layer, "out")].group
        for index in sorted({int(group) for group in owned if group >= 0}):
            sums[index] += scoring.by_channel(index, layer, scale.abs())
            counts[index] += 1
    for group, count in zip(scoring.dependencies.groups, counts, strict=True):
        if not count:
            raise StrategyError(
                f"Group '{group.name}' has no batch norm whose scale could rank its channels; give "
                "--criterion l1."
            )
    return [total / count for total, count in zip(sums, counts, strict=True)]


@needs_images
def taylor(scoring: Scoring) -> list[Tensor]:
    """First-order estimate of how much the loss changes without a channel.

    It is the square of the sum of weight times gradient over the root layer's filter, averaged over
    batches. Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
    2019, equation 8.
    """
    groups = range(len(scoring.dependencies.groups))
    weights = [scoring.root_weight(index) for index in groups]
    scores = [torch.zeros(g.channels, dtype=torch.float64) for g in scoring.dependencies.groups]
    required = [weight.requires_grad for weight in weights]
    was_training = scoring.model.training
    scoring.model.eval()
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for images, labels in scoring.batches:
            with torch.enable_grad():
                loss = scoring.objective.loss(scoring.model(images), labels)
                gradients = torch.autograd.grad(loss, weights)
            for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                change = (weight.detach() * gradient).flatten(1).sum(dim=1)
                name = scoring.dependencies.groups[index].name
                scores[index] += scoring.by_channel(index, name, change).square()
    finally:
        for weight, flag in zip(weights, required, strict=True):
            weight.requires_grad_(flag)
        scoring.model.train(was_training)
    return [score / max(1, len(scoring.batches)) for score in scores]


def random(scoring: Scoring) -> list[Tensor]:
    """No criterion at all: what the others must beat."""
    generator = torch.Generator().manual_seed(scoring.seed)
    return [
        torch.rand(group.channels, dtype=torch.float64, generator=generator)
        for group in scoring.dependencies.groups
    ]


def rank_channels(
    model: nn.Module,
    dependencies: Dependencies,
    criterion: str | Criterion = "l1",
    batches: Batches = (),
    seed: int = 0,
    objective: Objective = CROSS_ENTROPY,
    capsule_criterion: str | CapsuleCriterion = DEFAULT_CAPSULE_CRITERION,
) -> list[Tensor]:
    """Rank the units of each group: channels, capsules, and what has an order of its own.

    Args:
        model: the unpruned network, which is left as it is.
        dependencies: its groups.
        criterion: of channels: the name of one in `CRITERIA`, or a callable.
        batches: training images and labels, on the model's device, for criteria that look at them.
        seed: of `random`.
        objective: what the network is trained for.
        capsule_criterion: of primary capsules: the name of one in `CAPSULE_CRITERIA`, or a
            callable.

    Returns:
        For each group its units, [C], those to keep longest first. Equal scores keep the network's
        order, as directions of a factored PrimaryCaps and routing iterations do.

    Raises:
        StrategyError: if there is no such criterion, or it cannot be had of this network.
        ValueError: if a criterion that needs batches is given none.
    """
    if isinstance(criterion, str):
        criterion = CRITERIA[criterion]
    if isinstance(capsule_criterion, str):
        capsule_criterion = CAPSULE_CRITERIA[capsule_criterion]
    kinds = [group.kind for group in dependencies.groups]
    scores = [-torch.arange(group.channels).double() for group in dependencies.groups]
    if places := [index for index, kind in enumerate(kinds) if kind == "channels"]:
        _check_images(criterion, batches)
        part = _of_groups(dependencies, places)
        found = criterion(Scoring(model, part, batches, seed, objective))
        for index, score in zip(places, found, strict=True):
            scores[index] = score
    if places := [index for index, kind in enumerate(kinds) if kind == "capsules"]:
        _check_images(capsule_criterion, batches)
        scoring = Scoring(model, dependencies, batches, seed, objective)
        capsules = capsule_criterion(scoring)
        for index in places:
            scores[index] = scoring.by_channel(index, "primary_caps", capsules)
    return [torch.sort(score, descending=True, stable=True).indices for score in scores]


def _check_images(criterion: Criterion | CapsuleCriterion, batches: Batches) -> None:
    if takes_images(criterion) and not batches:
        raise ValueError("This criterion looks at images; give batches.")


def _of_groups(dependencies: Dependencies, places: list[int]) -> Dependencies:
    """Return some of the groups alone, as if no group owned what the others own.

    Args:
        dependencies: of the network.
        places: indices of the groups, ascending.
    """
    if len(places) == len(dependencies.groups):
        return dependencies
    owners = {}
    for key, axis in dependencies.owners.items():
        group = np.full_like(axis.group, -1)
        for new, index in enumerate(places):
            group[axis.group == index] = new
        owners[key] = AxisOwners(group, np.where(group < 0, -1, axis.channel))
    groups = tuple(dependencies.groups[index] for index in places)
    return Dependencies(groups, owners, dependencies.unprunable)


def l1_ranking(model: nn.Module, dependencies: Dependencies) -> list[Tensor]:
    """Rank the channels of each group by its root layer's L1 norms, as EagleEye does.

    Primary capsules are ranked by the norms of their transformation matrices.
    """
    return rank_channels(model, dependencies, l1, capsule_criterion="weight-norm")


def _of_filters(scoring: Scoring, measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return [
        scoring.by_channel(index, group.name, measure(scoring.root_weight(index).detach().double()))
        for index, group in enumerate(scoring.dependencies.groups)
    ]
