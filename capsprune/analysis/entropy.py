"""How little the bottleneck's units tell of the class: the entropy of their states.

The paper (section 4.2) explains the gain of mild pruning by a higher entropy of x_B, and cites
Tartaglione, Bragagnolo and Grangetto, "Pruning artificial neural networks: a way to find
well-generalizing, high-entropy sharp minima" (2020), whose PSP-entropy this is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class BottleneckEntropy:
    """Counts, for each class, on how many images each unit of x_B is on; keeps no activations.

    A unit is one channel at one position, and it is on where its activation is above zero, which
    is where the potential before the ReLU is. With few images of a class the entropy comes out too
    low, by about 0.7 / images bits, so compare networks on the same images.
    """

    def __init__(self, classes: int) -> None:
        """Begin without images.

        Args:
            classes: J.
        """
        self._classes = classes
        self._on: Tensor | None = None  # [J, units]
        self._images: Tensor | None = None  # [J]

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            features: x_B, [batch, S, K, K], or of any other shape behind the batch.
            labels: int64 [batch], in [0, J).

        Raises:
            ValueError: if the units are not as many as before.
        """
        on = (features > 0).flatten(1).to(torch.int32)
        if self._on is None or self._images is None:
            self._on = on.new_zeros(self._classes, on.shape[1])
            self._images = on.new_zeros(self._classes)
        if on.shape[1] != self._on.shape[1]:
            raise ValueError(f"There are {on.shape[1]} units, but were {self._on.shape[1]}.")
        self._on.index_add_(0, labels, on)
        self._images.index_add_(0, labels, on.new_ones(len(labels)))

    @property
    def bits(self) -> float:
        """Entropy of a unit's state over the images of one class, in bits, from 0 to 1.

        It is the mean over all units and over the classes that have images.

        Raises:
            ValueError: if there were no images.
        """
        on, images = self._counted()
        # A class at a time: probabilities take twice the space of the counts.
        of_classes = [
            _binary_entropy(row.double() / total).mean()
            for row, total in zip(on, images.tolist(), strict=True)
            if total
        ]
        return float(torch.stack(of_classes).mean())

    @property
    def active_share(self) -> float:
        """The part of the units that are on, averaged over images.

        Raises:
            ValueError: if there were no images.
        """
        on, images = self._counted()
        return int(on.sum()) / (int(images.sum()) * on.shape[1])

    def _counted(self) -> tuple[Tensor, Tensor]:
        if self._on is None or self._images is None:
            raise ValueError("There are no images to take the entropy over.")
        return self._on, self._images


def _binary_entropy(probability: Tensor) -> Tensor:
    """Entropy in bits of states that are on with these probabilities."""
    entropy = torch.special.entr(probability) + torch.special.entr(1 - probability)
    return entropy / math.log(2)
