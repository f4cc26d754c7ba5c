"""Accuracy and loss of a network on images it is not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
    #: By class: images, and those of them that were recognised, [J].
    class_images: tuple[int, ...]
    class_correct: tuple[int, ...]

    @property
    def majority_rate(self) -> float:
        """Accuracy of who always names the largest class."""
        return max(self.class_images) / self.images

    def to_dict(self) -> dict[str, float]:
        """Return accuracy, loss and images as they are written to JSON."""
        return {"accuracy": self.accuracy, "loss": self.loss, "images": self.images}

    def by_class(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return name, number of images and accuracy of each class; None where it has no image.

        Args:
            class_names: J of them, in order.
        """
        return [
            {"class": name, "images": images, "accuracy": correct / images if images else None}
            for name, images, correct in zip(
                class_names, self.class_images, self.class_correct, strict=True
            )
        ]


@torch.no_grad()
def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], objective: Objective
) -> Evaluation:
    """Score a network in evaluation mode.

    Args:
        network: left in evaluation mode.
        batches: normalised images [batch, C, H, W] and labels [batch], on the network's device.
        objective: what loss and class scores mean for this network.

    Raises:
        ValueError: if there are no images.
    """
    network.eval()
    loss = by_class = None
    images = 0
    for batch, labels in batches:
        outputs = network(batch)
        batch_loss = objective.loss(outputs, labels).double() * len(labels)
        scores = objective.scores(outputs)
        right = labels[scores.argmax(dim=1) == labels]
        counts = torch.stack(
            [torch.bincount(classes, minlength=scores.shape[1]) for classes in (labels, right)]
        )
        loss = batch_loss if loss is None else loss + batch_loss
        by_class = counts if by_class is None else by_class + counts
        images += len(labels)
    if loss is None or by_class is None:
        raise ValueError("There are no images to evaluate on.")
    class_images, class_correct = by_class.tolist()
    return Evaluation(
        accuracy=sum(class_correct) / images,
        loss=float(loss) / images,
        images=images,
        class_images=tuple(class_images),
        class_correct=tuple(class_correct),
    )
