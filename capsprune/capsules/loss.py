"""The margin loss of Sabour et al. (2017), equation 4."""

from __future__ import annotations

import torch
from torch import Tensor

PRESENT_MARGIN = 0.9
ABSENT_MARGIN = 0.1
ABSENT_WEIGHT = 0.5


def margin_loss(lengths: Tensor, labels: Tensor) -> Tensor:
    """Margin loss, summed over classes and averaged over the batch.

    Args:
        lengths: lengths of the output capsules, [batch, J].
        labels: class indices, [batch].

    Returns:
        A scalar.
    """
    target = torch.zeros_like(lengths).scatter_(1, labels.unsqueeze(1), 1.0)
    present = target * (PRESENT_MARGIN - lengths).clamp_min(0).square()
    absent = ABSENT_WEIGHT * (1 - target) * (lengths - ABSENT_MARGIN).clamp_min(0).square()
    return (present + absent).sum(dim=1).mean()
