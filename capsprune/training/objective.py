"""What a network is trained for and scored by, whatever its outputs look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Objective:
    """A loss, and the class scores, of a network's outputs."""

    #: Maps outputs and labels [batch] to a scalar, averaged over the batch.
    loss: Callable[[Any, Tensor], Tensor]
    #: Maps outputs to scores [batch, J], of which the largest is the class.
    scores: Callable[[Any], Tensor]


def _logits(outputs: Tensor) -> Tensor:
    return outputs


#: For a classifier that gives logits.
CROSS_ENTROPY = Objective(loss=functional.cross_entropy, scores=_logits)
