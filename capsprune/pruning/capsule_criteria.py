"""Which primary capsules go first: criteria that score capsules.

A criterion is a callable that takes a `Scoring` of a capsule network and returns one score for each
primary capsule, [I]; the lowest go first. A new one is one more function and a line in
`capsprune.pruning.names.CAPSULE_CRITERIA`, or is registered there from another package:

    @CAPSULE_CRITERIA.register("weakest", "what it measures")
    def weakest(scoring): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from capsprune.capsules.network import CapsuleNetwork
from capsprune.capsules.routing_trace import RoutingStep, images_at_once, route_votes, votes_of
from capsprune.pruning.criteria import Batches, Scoring, needs_images
from capsprune.pruning.least_squares import Rows, order_of_selection

#: What is added to the squares of a capsule's values in least squares, as a part of their mean.
RIDGE = 1e-2


class Routed(NamedTuple):
    """Primary capsules of some images, and the last routing iteration that they take part in."""

    #: [batch, I, D1].
    u: Tensor
    #: [batch].
    labels: Tensor
    #: [batch, J, I, D2].
    votes: Tensor
    step: RoutingStep


@torch.no_grad()
def routed(network: CapsuleNetwork, capsules: Batches) -> Iterator[Routed]:
    """Route with every vote formed, for as many images at a time as memory allows.

    Args:
        network: a capsule network.
        capsules: poses of primary capsules, [batch, I, D1], and labels.
    """
    output = network.output_caps
    images = images_at_once(output.weight)
    for batch, classes in capsules:
        for u, labels in zip(batch.split(images), classes.split(images), strict=True):
            votes = votes_of(u, output.weight)
            *_, step = route_votes(votes, output.bias, output.iterations, output.epsilon)
            yield Routed(u, labels, votes, step)


@needs_images
def coupling(scoring: Scoring) -> Tensor:
    """Greatest coupling coefficient of a capsule, averaged over images: how much it decides.

    The coefficients are those to which the last iteration's agreements lead, so that they tell
    capsules apart after a single iteration too.
    """
    return _mean_over_images(
        torch.softmax(step.logits + step.agreements, dim=1).amax(dim=1)
        for _, _, _, step in routed(scoring.capsule_network, scoring.primary_capsules)
    )


@needs_images
def contribution(scoring: Scoring) -> Tensor:
    """What a capsule adds to the true class's capsule in its direction, averaged over images."""
    return _mean_over_images(_contributions(scoring))


@needs_images
def contribution_variance(scoring: Scoring) -> Tensor:
    """Variance over images of what a capsule adds to the true class's capsule in its direction.

    What a capsule always adds, the bias could add as well.
    """
    return torch.cat([*_contributions(scoring)]).var(dim=0, correction=0).cpu()


@needs_images
def length_std(scoring: Scoring) -> Tensor:
    """Standard deviation over images of a capsule's length: how much its presence tells."""
    lengths = [torch.linalg.vector_norm(u.double(), dim=-1) for u, _ in scoring.primary_capsules]
    return torch.cat(lengths).std(dim=0, correction=0).cpu()


@needs_images
def taylor(scoring: Scoring) -> Tensor:
    """First-order estimate of how much the loss changes without a capsule.

    It is the magnitude of the sum over the capsule's values of value times gradient of the loss,
    averaged over images. Source: Molchanov et al., "Pruning Convolutional Neural Networks for
    Resource Efficient Inference", ICLR 2017; of capsules: Sharifi et al., "PrunedCaps: A Case for
    Primary Capsules Discrimination", ICMLA 2021.
    """
    return _mean_over_images(change.abs() for change in _changes(scoring))


@needs_images
def fisher(scoring: Scoring) -> Tensor:
    """Second-order estimate of how much the loss changes without a capsule.

    It is the square of the sum over the capsule's values of value times gradient of the loss,
    averaged over images: the empirical Fisher information stands for the Hessian. Source: Theis et
    al., "Faster gaze prediction with dense networks and Fisher pruning", 2018.
    """
    return _mean_over_images(change.square() for change in _changes(scoring))


def weight_norm(scoring: Scoring) -> Tensor:
    """Euclidean norm of a capsule's transformation matrices to all classes."""
    weight = scoring.capsule_network.output_caps.weight.detach().double()
    return weight.square().sum(dim=(0, 2, 3)).sqrt().cpu()


def random(scoring: Scoring) -> Tensor:
    """No criterion at all: what the others must beat."""
    generator = torch.Generator().manual_seed(scoring.seed)
    capsules = scoring.capsule_network.primary_caps.capsules
    return torch.rand(capsules, dtype=torch.float64, generator=generator)


@needs_images
def least_squares(scoring: Scoring) -> Tensor:
    """Minus the order in which capsules are chosen so that few reproduce what reaches the classes.

    Each capsule chosen is the one that, together with those chosen before and with all their
    transformation matrices solved anew, leaves the least squares of s_j, equation (2), over
    classes and images. What others say already is chosen late, however strong it is.
    """
    network = scoring.capsule_network
    rows = Rows.gather(class_inputs(network, scoring.primary_capsules))
    order = order_of_selection(rows, network.primary_caps.d1, RIDGE)
    scores = torch.empty(len(order), dtype=torch.float64)
    scores[order] = -torch.arange(len(order), dtype=torch.float64)
    return scores


def class_inputs(network: CapsuleNetwork, capsules: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield u, [batch, I x D1], and s of equation (2) in the last iteration, [batch, J x D2].

    Args:
        network: a capsule network.
        capsules: poses of primary capsules, [batch, I, D1], and labels.
    """
    for u, _, _, step in routed(network, capsules):
        yield u.flatten(1), step.sums.flatten(1)


def _contributions(scoring: Scoring) -> Iterator[Tensor]:
    """Yield `c_ij u_hat_{j|i} . v_j / |v_j|` of the true classes j, [batch, I] each."""
    for _, labels, _, step in routed(scoring.capsule_network, scoring.primary_capsules):
        images = torch.arange(len(labels), device=labels.device)
        lengths = torch.linalg.vector_norm(step.poses[images, labels].double(), dim=1)
        parts = step.couplings[images, labels].double() * step.agreements[images, labels].double()
        yield parts / lengths.unsqueeze(1).clamp_min(1e-12)


def _changes(scoring: Scoring) -> Iterator[Tensor]:
    """Yield the sum over each capsule's values of value times gradient of the loss, [batch, I]."""
    network = scoring.capsule_network
    for capsules, labels in scoring.primary_capsules:
        u = capsules.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss = scoring.objective.loss(network.route(u), labels)
            (gradient,) = torch.autograd.grad(loss, u)
        # The loss is a mean over the batch: an image's own has so many times its gradient.
        yield (u.detach() * gradient).double().sum(dim=2) * len(labels)


def _mean_over_images(values: Iterable[Tensor]) -> Tensor:
    """Average values [batch, I] over all images of all batches, in double precision, [I]."""
    total: Tensor | float = 0.0
    images = 0
    for batch in values:
        total = total + batch.double().sum(dim=0)
        images += len(batch)
    assert isinstance(total, Tensor)
    return (total / images).cpu()
