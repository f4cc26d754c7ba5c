"""OutputCaps: one capsule for each class, reached from every primary capsule by routing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capsprune.capsules.routing import SQUASH_EPSILON, dynamic_routing


class OutputCaps(nn.Module):
    """Fully connected capsule layer with routing-by-agreement (section 2.1)."""

    def __init__(
        self, capsules: int, classes: int, d1: int = 8, d2: int = 16, iterations: int = 3
    ) -> None:
        """Make the layer; weights are drawn from normal(0, 0.1), the routing bias is 0.1.

        Args:
            capsules: I, the primary capsules.
            classes: J, the output capsules.
            d1: D1, the values in a primary capsule.
            d2: D2, the values in an output capsule.
            iterations: routing iterations.
        """
        super().__init__()
        self.iterations = iterations
        self.epsilon = SQUASH_EPSILON
        self.weight = nn.Parameter(torch.empty(classes, capsules, d1, d2).normal_(0.0, 0.1))
        self.bias = nn.Parameter(torch.full((classes, d2), 0.1))

    def forward(self, u: Tensor) -> Tensor:
        """Map primary capsules [batch, I, D1] to output capsules [batch, J, D2]."""
        return dynamic_routing(u, self.weight, self.bias, self.iterations, self.epsilon)
