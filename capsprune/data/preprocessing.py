"""What becomes of an image before a network sees it, as one value that travels with the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]

#: Colour channels of an image, and those that a network may take instead: grey images have one.
COLOURS = 3
IMAGE_CHANNELS = (1, COLOURS)

#: Of each colour channel, in units where white is 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Channels, size, interpolation and normalisation of the images of a network.

    Attributes:
        image_size: pixels a side.
        mean: taken from each channel, in units where white is 1; there are as many channels as it
            has values, 1 or 3.
        std: what each channel is divided by then.
        interpolation: between pixels, where an image is resized.

    Raises:
        ValueError: mean and std differ in length, or are not for 1 or 3 channels.
    """

    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in IMAGE_CHANNELS:
            raise ValueError(
                f"mean and std should each have a value for each of 1 or 3 colour channels, not "
                f"{len(self.mean)} and {len(self.std)}"
            )

    @property
    def channels(self) -> int:
        """C, the colour channels of the images: 1 or 3."""
        return len(self.mean)
