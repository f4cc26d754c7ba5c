"""Accuracy on test images that are rotated, translated, scaled and sheared.

Capsule networks are said to be robust to affine transformations (Sabour et al. 2017, section 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from capsprune.data.transforms import warp

DistortionName = Literal["none", "rotation", "shift", "scale", "shear"]
Scores = Callable[[Tensor], Tensor]
"""Maps images [batch, C, S, S] to scores [batch, J], of which the largest is the class."""

_UNITS: dict[DistortionName, str] = {
    "none": "",
    "rotation": "degrees",
    "shift": "% of the side",
    "scale": "times",
    "shear": "degrees",
}


@dataclass(frozen=True)
class Distortion:
    """One way of distorting images, by one amount."""

    name: DistortionName
    amount: float = 0

    @property
    def unit(self) -> str:
        """Unit of the amount."""
        return _UNITS[self.name]

    def affine(self, positions: Tensor) -> Tensor:
        """Say from where in the input each point of the output comes.

        The direction hangs on the position of the image alone: images at even positions turn and
        lean one way and those at odd ones the other; four in a row move to the right, the left,
        down and up.

        Args:
            positions: int64 [B], of the images in their set.

        Returns:
            float32 [B, 2, 3], in coordinates that run from -1 to 1, for `transforms.warp`.
        """
        side = 1.0 - 2.0 * (positions % 2)  # 1 or -1
        one, zero = torch.ones_like(side), torch.zeros_like(side)
        if self.name == "rotation":
            turn = side * math.radians(self.amount)
            rows = (turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos(), zero)
        elif self.name == "shift":
            # A side is 2 long, and what moves to the right comes from further left.
            move = -side * 2 * self.amount / 100
            across = positions % 4 < 2
            rows = (one, zero, move.where(across, zero), zero, one, zero.where(across, move))
        elif self.name == "scale":
            step = one / self.amount
            rows = (step, zero, zero, zero, step, zero)
        elif self.name == "shear":
            rows = (one, side * math.tan(math.radians(self.amount)), zero, zero, one, zero)
        else:
            rows = (one, zero, zero, zero, one, zero)
        return torch.stack(rows, dim=1).view(-1, 2, 3)


UNDISTORTED = Distortion("none")

#: What is tried, in the order of the table.
DISTORTIONS: tuple[Distortion, ...] = (
    UNDISTORTED,
    *(Distortion("rotation", degrees) for degrees in (10, 20, 30, 45)),
    *(Distortion("shift", percent) for percent in (5, 10, 15, 20)),
    *(Distortion("scale", factor) for factor in (0.6, 0.8, 1.25, 1.5)),
    *(Distortion("shear", degrees) for degrees in (10, 20, 30)),
)


@torch.no_grad()
def accuracies(
    networks: Mapping[str, Scores],
    batches: Iterable[tuple[Tensor, Tensor]],
    distortions: Sequence[Distortion] = DISTORTIONS,
    step: Callable[[], None] = lambda: None,
) -> dict[Distortion, dict[str, float]]:
    """Score networks on the same distorted images.

    Args:
        networks: what gives the scores, by name; in evaluation mode.
        batches: images as the networks take them, [batch, C, S, S], and labels [batch]. What is
            distorted are these, which need not be resized and normalised for each distortion anew:
            the mean of normalised pixels is the normalised mean of pixels.
        distortions: what to try.
        step: called after each distortion of each batch.

    Returns:
        The part of the images that each network gets right, by distortion and name.

    Raises:
        ValueError: if there are no images.
    """
    right = {distortion: dict.fromkeys(networks, 0) for distortion in distortions}
    seen = 0
    for images, labels in batches:
        positions = torch.arange(seen, seen + len(labels))
        for distortion in distortions:
            distorted = distort(images, distortion, positions)
            for name, scores in networks.items():
                guessed = scores(distorted).argmax(dim=1)
                right[distortion][name] += int((guessed == labels).sum())
            step()
        seen += len(labels)
    if not seen:
        raise ValueError("There are no images to distort.")
    return {
        distortion: {name: count / seen for name, count in counts.items()}
        for distortion, counts in right.items()
    }


def distort(images: Tensor, distortion: Distortion, positions: Tensor) -> Tensor:
    """Distort images.

    Args:
        images: float [B, C, S, S].
        distortion: what to do.
        positions: int64 [B], of the images in their set.

    Returns:
        Values of the same shape, channels last; the images themselves where nothing is to be done.
    """
    if distortion == UNDISTORTED:
        return images
    affine = distortion.affine(positions).to(images.device, images.dtype)
    warped = warp(images, affine, images.shape[-1])
    return warped.contiguous(memory_format=torch.channels_last)
