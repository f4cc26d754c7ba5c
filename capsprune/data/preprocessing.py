"""What becomes of an image before a network sees it, as one value that travels with the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]

#: Of each colour channel, in units where white is 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Size, interpolation and normalisation of the images of a network.

    Attributes:
        image_size: pixels a side.
        mean: taken from each colour channel, in units where white is 1.
        std: what each channel is divided by then.
        interpolation: between pixels, where an image is resized.
    """

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
