"""Which primary capsules ever say something."""

from __future__ import annotations

import torch
from torch import Tensor

#: A capsule is active on an image where its length, which lies in [0, 1), is above this.
ACTIVE_LENGTH = 0.1


class CapsuleActivity:
    """Lengths of the primary capsules over many images; keeps none of the poses."""

    def __init__(self) -> None:
        """Begin without images."""
        self._longest: Tensor | None = None  # [I]
        self._sum = 0.0
        self._count = 0

    def update(self, u: Tensor) -> None:
        """Take in a batch of poses [batch, I, D1]."""
        lengths = torch.linalg.vector_norm(u, dim=-1)
        longest = lengths.amax(dim=0)
        self._longest = longest if self._longest is None else self._longest.maximum(longest)
        self._sum += float(lengths.double().sum())
        self._count += lengths.numel()

    @property
    def capsules(self) -> int:
        """I, the number of capsules."""
        return len(self._seen())

    @property
    def mean_length(self) -> float:
        """Length of a capsule, averaged over capsules and images, in [0, 1)."""
        self._seen()
        return self._sum / self._count

    @property
    def dead(self) -> int:
        """How many capsules were longer than `ACTIVE_LENGTH` on no image at all."""
        return int((self._seen() <= ACTIVE_LENGTH).sum())

    def _seen(self) -> Tensor:
        if self._longest is None:
            raise ValueError("There are no images on which capsules could be active.")
        return self._longest
