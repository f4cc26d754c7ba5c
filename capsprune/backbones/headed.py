"""A trunk with a head in place of the backbone's own pooling and classifier."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from torch import nn

Self = TypeVar("Self", bound="HeadedNetwork")


class HeadedNetwork(nn.Module):
    """A trunk and, in a subclass, a head on it; the trunk may be frozen."""

    #: Name of the head in `capsprune.capsules.heads.HEADS`.
    kind: ClassVar[str]

    def __init__(self, trunk: nn.Module) -> None:
        """Keep the trunk.

        Args:
            trunk: maps images [batch, C, H, W] to features [batch, S, K, K].
        """
        super().__init__()
        self.trunk = trunk
        self.trunk_frozen = False

    def freeze_trunk(self) -> None:
        """Train the head alone; trunk weights and BN statistics stay bit for bit."""
        self.trunk_frozen = True
        self.trunk.requires_grad_(False)
        self.trunk.eval()

    def train(self: Self, mode: bool = True) -> Self:
        """Switch to training mode; a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.trunk_frozen:
            self.trunk.eval()
        return self
