"""What training does to images by chance, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """The ranges that random parameters are sampled from, uniformly, for each image by itself.

    Attributes:
        flip: mirror left and right in half of the cases.
        translation: furthest shift along either axis, as a part of the side.
        rotation: largest angle, in degrees.
        scale: smallest and largest magnification.
        crop: smallest part of the area that is kept; where it is cut out is random too.
        brightness: largest number added to or taken from every value, where white is 1.
        contrast: smallest and largest factor of the distance from each channel's mean.
    """

    flip: bool = False
    translation: float = 0.0
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    crop: float = 1.0
    brightness: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)

    @property
    def is_affine(self) -> bool:
        """Whether pixels change place other than by mirroring."""
        return bool(
            self.translation or self.rotation or self.scale != (1.0, 1.0) or self.crop != 1.0
        )
