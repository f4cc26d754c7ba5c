"""Routing-by-agreement with every vote written out, to see what happens inside.

`capsprune.capsules.dynamic_routing` forms neither votes nor agreements, and so cannot tell of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from capsprune.capsules.routing import SQUASH_EPSILON, squash

#: Most bytes that the votes of the images in one chunk take, unless those of one image take more.
VOTES_BYTES = 64 * 2**20


class RoutingStep(NamedTuple):
    """One iteration of equations (2) to (4)."""

    #: b_ij, from which the couplings follow, [batch, J, I].
    logits: Tensor
    #: c_ij: how much of capsule i goes to class j, [batch, J, I].
    couplings: Tensor
    #: s_j without the bias, [batch, J, D2].
    sums: Tensor
    #: v_j, [batch, J, D2].
    poses: Tensor
    #: `v_j . u_hat_{j|i}`, [batch, J, I].
    agreements: Tensor


def votes_of(u: Tensor, weight: Tensor) -> Tensor:
    """Return the votes u_hat_{j|i} of equation (1), [batch, J, I, D2], one after another in memory.

    Args:
        u: poses of the primary capsules, [batch, I, D1].
        weight: transformation matrices, [J, I, D1, D2].
    """
    return torch.einsum("bid,jide->bjie", u, weight).contiguous()


def images_at_once(weight: Tensor, votes_bytes: int = VOTES_BYTES) -> int:
    """Return how many images have votes that fit in so many bytes, at least 1.

    Args:
        weight: transformation matrices, [J, I, D1, D2].
        votes_bytes: see `VOTES_BYTES`.
    """
    classes, capsules, _, d2 = weight.shape
    # Half of it, for the product comes in another order and is copied once.
    return max(1, votes_bytes // 2 // (classes * capsules * d2 * weight.element_size()))


def route_votes(
    votes: Tensor, bias: Tensor | None, iterations: int, epsilon: float = SQUASH_EPSILON
) -> Iterator[RoutingStep]:
    """Route by agreement.

    Args:
        votes: [batch, J, I, D2].
        bias: added to `s_j` before squashing, [J, D2].
        iterations: routing iterations.
        epsilon: see `squash`.

    Yields:
        What each iteration comes to.
    """
    logits = votes.new_zeros(votes.shape[:3])  # [batch, J, I]
    for _ in range(iterations):
        couplings = torch.softmax(logits, dim=1)
        s = torch.matmul(couplings.unsqueeze(2), votes).squeeze(2)  # (2)
        v = squash(s if bias is None else s + bias, epsilon)  # (3)
        agreements = torch.matmul(votes, v.unsqueeze(3)).squeeze(3)
        yield RoutingStep(logits, couplings, s, v, agreements)
        logits = logits + agreements  # (4)


class RoutingTrace:
    """Means over many images of what each iteration of equations (1) to (4) comes to."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        iterations: int,
        epsilon: float = SQUASH_EPSILON,
        votes_bytes: int = VOTES_BYTES,
    ) -> None:
        """Begin without images; the arguments but the last are those of `dynamic_routing`.

        Args:
            weight: transformation matrices, [J, I, D1, D2].
            bias: added to `s_j` before squashing, [J, D2].
            iterations: routing iterations.
            epsilon: see `squash`.
            votes_bytes: see `VOTES_BYTES`.

        Raises:
            ValueError: if there are fewer than two output capsules, so that nothing is chosen, or
                no iterations.
        """
        if len(weight) < 2:
            raise ValueError("Routing to a single output capsule leaves nothing to look into.")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {iterations}.")
        self._weight = weight
        self._bias = bias
        self._epsilon = epsilon
        self._iterations = iterations
        self._chunk = images_at_once(weight, votes_bytes)
        self._sums = torch.zeros(4, iterations, dtype=torch.float64, device=weight.device)
        self._images = 0

    @torch.no_grad()
    def update(self, u: Tensor, labels: Tensor) -> Tensor:
        """Route a batch.

        Args:
            u: poses of the primary capsules, [batch, I, D1].
            labels: int64 [batch], the true classes.

        Returns:
            Poses of the output capsules, [batch, J, D2], as `dynamic_routing` gives them.
        """
        chunks = zip(u.split(self._chunk), labels.split(self._chunk), strict=True)
        return torch.cat([self._route(*chunk) for chunk in chunks])

    def _route(self, u: Tensor, labels: Tensor) -> Tensor:
        votes = votes_of(u, self._weight)
        steps = route_votes(votes, self._bias, self._iterations, self._epsilon)
        for iteration, step in enumerate(steps):
            right = step.poses.norm(dim=2).argmax(dim=1) == labels
            self._note(iteration, step.couplings, step.agreements, labels, right)
        self._images += len(u)
        return step.poses

    def _note(
        self, iteration: int, couplings: Tensor, agreements: Tensor, labels: Tensor, right: Tensor
    ) -> None:
        """Add up one iteration over images; couplings and agreements are [batch, J, I]."""
        classes = couplings.shape[1]
        entropy = torch.special.entr(couplings).sum(dim=1).mean(dim=1) / math.log(classes)
        with_classes = agreements.mean(dim=2)  # [batch, J]
        true = with_classes.gather(1, labels.unsqueeze(1)).squeeze(1)
        other = (with_classes.sum(dim=1) - true) / (classes - 1)
        for total, of_images in zip(self._sums, (entropy, true, other, right), strict=True):
            total[iteration] += of_images.double().sum()

    @property
    def coupling_entropy(self) -> list[float]:
        """Of each iteration, how evenly a primary capsule is shared out among the classes.

        It is the entropy of c_ij over j, divided by log J, so that 1 is uniform and 0 is one class
        alone; averaged over primary capsules and images.
        """
        return self._means(0)

    @property
    def agreement_true(self) -> list[float]:
        """Of each iteration, the agreement with the image's true class.

        It is `v_j . u_hat_{j|i}` of equation (4) with the v of that iteration, the last one's too;
        averaged over primary capsules and images.
        """
        return self._means(1)

    @property
    def agreement_other(self) -> list[float]:
        """Of each iteration, the agreement with the other classes, averaged over these too."""
        return self._means(2)

    @property
    def accuracy(self) -> list[float]:
        """Of each iteration, the share of images whose class capsule is the longest after it.

        It is the accuracy of the network with so many routing iterations.
        """
        return self._means(3)

    def _means(self, row: int) -> list[float]:
        if not self._images:
            raise ValueError("There are no images to trace the routing of.")
        return [total / self._images for total in self._sums[row].tolist()]
