"""Accuracy and loss of a network on images it is not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from capsprune.training.objective import Objective


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a set of images."""

    #: Fraction of images whose highest score is that of their label.
    accuracy: float
    #: Loss, averaged over images.
    loss: float
    images: int

    def to_dict(self) -> dict[str, float]:
        """Give the fields as they are written to JSON."""
        return asdict(self)


@torch.no_grad()
def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], objective: Objective
) -> Evaluation:
    """Score a network in evaluation mode.

    Args:
        network: left in evaluation mode.
        batches: normalised images [batch, 3, H, W] and labels [batch], on the network's device.
        objective: what loss and class scores mean for this network.

    Raises:
        ValueError: if there are no images.
    """
    network.eval()
    loss = correct = None
    images = 0
    for batch, labels in batches:
        outputs = network(batch)
        batch_loss = objective.loss(outputs, labels).double() * len(labels)
        batch_correct = (objective.scores(outputs).argmax(dim=1) == labels).sum()
        loss = batch_loss if loss is None else loss + batch_loss
        correct = batch_correct if correct is None else correct + batch_correct
        images += len(labels)
    if loss is None or correct is None:
        raise ValueError("There are no images to evaluate on.")
    return Evaluation(accuracy=int(correct) / images, loss=float(loss) / images, images=images)
