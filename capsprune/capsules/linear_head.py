"""The linear baseline: one linear layer on the pooled trunk, to compare capsules with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules.head import OWN_CLASSIFIER, Head
from capsprune.capsules.heads import LINEAR


class LinearNetwork(HeadedNetwork):
    """A trunk, global average pooling, and one linear layer."""

    kind = LINEAR

    def __init__(self, trunk: nn.Module, *, channels: int, classes: int) -> None:
        """Put a linear layer on a trunk.

        Args:
            trunk: maps images [batch, C, H, W] to features [batch, S, K, K].
            channels: S.
            classes: J.
        """
        super().__init__(trunk)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, C, H, W] to logits [batch, J]."""
        pooled = nn.functional.adaptive_avg_pool2d(self.trunk(images), 1)
        return self.classifier(pooled.flatten(1))


class LinearHead(Head):
    """One linear layer, whose sizes all follow from the trunk."""

    def build(
        self, trunk: nn.Module, features: FeatureMap, classes: int, config: Any
    ) -> LinearNetwork:
        """Put the layer on a trunk."""
        return LinearNetwork(trunk, channels=features.channels, classes=classes)

    def part_of(self, name: str) -> str:
        """Return the classifier, as of a backbone with its own."""
        return OWN_CLASSIFIER.part_of(name)

    def words(self, network: LinearNetwork, features: FeatureMap) -> str:
        """Say what was put on the trunk."""
        return f"One linear layer on {features.channels} channels to compare with"


LINEAR_HEAD = LinearHead()
