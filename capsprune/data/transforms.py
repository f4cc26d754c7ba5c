"""From stored images to what a network takes: resized, augmented by the batch, normalised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from capsprune.data.augmentation import Augmentation
from capsprune.data.preprocessing import COLOURS, Interpolation, Preprocessing

#: Parts of 2^16 that red, green and blue have in luma (ITU-R BT.601), as Pillow rounds them.
_LUMA = (19595, 38470, 7471)


class EvaluationTransform(nn.Module):
    """Resize and normalise a batch, on whichever device it is: for everything but training.

    Images come with 1 or 3 channels, and leave with the C of the network, see `to_channels`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Make a transform.

        Args:
            preprocessing: what the network expects; its image size is S.
        """
        super().__init__()
        self.preprocessing = preprocessing
        # Not persistent: a transform adds nothing to a checkpoint.
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [B, 1 or 3, H, W] to float32 [B, C, S, S]."""
        return self.normalise(self.resize(to_unit(self.recolour(images))))

    def recolour(self, images: Tensor) -> Tensor:
        """Map uint8 [B, 1 or 3, H, W] to uint8 [B, C, H, W]."""
        return to_channels(images, self.preprocessing.channels)

    def resize(self, pixels: Tensor) -> Tensor:
        """Resize float [B, C, H, W] to [B, C, S, S]."""
        return resize(pixels, self.preprocessing.image_size, self.preprocessing.interpolation)

    def normalise(self, images: Tensor) -> Tensor:
        """Map values in [0, 1] to values with about zero mean and unit deviation."""
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return (images - mean) / std


@dataclass(frozen=True)
class AugmentationParameters:
    """The parameters of B images, on the CPU; None where nothing of the kind is to be done.

    Attributes:
        flip: bool [B].
        affine: float32 [B, 2, 3], from where in the input each point of the output comes, in
            coordinates that run from -1 to 1.
        brightness: float32 [B], added.
        contrast: float32 [B], multiplied.
    """

    flip: Tensor | None = None
    affine: Tensor | None = None
    brightness: Tensor | None = None
    contrast: Tensor | None = None


class TrainingTransform(EvaluationTransform):
    """Resize, augment and normalise a batch; every image gets parameters of its own.

    They are sampled from torch's global CPU generator whatever the device, so `torch.manual_seed`
    fixes them everywhere alike.
    """

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        """Make a transform.

        Args:
            augmentation: the ranges of what is sampled for each image.
            preprocessing: what the network expects; its image size is S.
        """
        super().__init__(preprocessing)
        self.augmentation = augmentation

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [B, 1 or 3, H, W] to float32 [B, C, S, S]."""
        return self.augment(images, self.sample(len(images)))

    def sample(self, count: int) -> AugmentationParameters:
        """Sample the parameters of `count` images."""
        ranges = self.augmentation
        return AugmentationParameters(
            flip=torch.rand(count) < 0.5 if ranges.flip else None,
            affine=self._sample_affine(count) if ranges.is_affine else None,
            brightness=(
                _uniform(count, -ranges.brightness, ranges.brightness)
                if ranges.brightness
                else None
            ),
            contrast=_uniform(count, *ranges.contrast) if ranges.contrast != (1.0, 1.0) else None,
        )

    def _sample_affine(self, count: int) -> Tensor:
        ranges = self.augmentation
        turn = _uniform(count, -math.radians(ranges.rotation), math.radians(ranges.rotation))
        kept = _uniform(count, ranges.crop, 1.0).sqrt()
        # Output to input: showing an image larger means reading a smaller part of it.
        step = kept / _uniform(count, *ranges.scale)
        cosine, sine = turn.cos() * step, turn.sin() * step
        # A side is 2 long in these coordinates, and a crop may lie anywhere in what it leaves.
        reach = 2 * ranges.translation + 1 - kept
        across, down = reach * _uniform(count, -1, 1), reach * _uniform(count, -1, 1)
        return torch.stack([cosine, -sine, across, sine, cosine, down], dim=1).view(count, 2, 3)

    def augment(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        """Resize, augment with the given parameters, and normalise.

        Args:
            images: uint8 [B, 1 or 3, H, W].
            parameters: the parameters; with none, the result is that of `EvaluationTransform`.

        Returns:
            float32 [B, C, S, S].
        """
        device = images.device
        images = self.recolour(images)
        if parameters.flip is not None:
            images = torch.where(_per_image(parameters.flip.to(device)), images.flip(3), images)
        pixels = to_unit(images)
        if parameters.affine is None:
            pixels = self.resize(pixels)
        else:
            pixels = self._warp(pixels, parameters.affine.to(device))
        # A change of brightness moves the mean along, so the order of these two is free.
        if parameters.contrast is not None:
            mean = pixels.mean(dim=(2, 3), keepdim=True)
            pixels = torch.lerp(mean, pixels, _per_image(parameters.contrast.to(device)))
        if parameters.brightness is not None:
            pixels = pixels + _per_image(parameters.brightness.to(device))
        if parameters.contrast is not None or parameters.brightness is not None:
            pixels = pixels.clamp(0, 1)
        return self.normalise(pixels)

    def _warp(self, pixels: Tensor, affine: Tensor) -> Tensor:
        # Sampling enlarges as well as resizing does, in the same pass; it cannot shrink, for it
        # would skip pixels.
        wanted = self.preprocessing
        if max(pixels.shape[-2:]) > wanted.image_size:
            pixels = self.resize(pixels)
        return warp(pixels, affine, wanted.image_size, wanted.interpolation)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Give images the colour channels that a network takes.

    Grey ones get three that are the same, and coloured ones become their luma, which of three that
    are the same is any of them.

    Args:
        images: uint8 [B, 1 or 3, H, W].
        channels: C, 1 or 3.

    Returns:
        uint8 [B, C, H, W]; the images themselves where they have as many.
    """
    if images.shape[1] == channels:
        return images
    if channels == COLOURS:
        return images.repeat(1, COLOURS, 1, 1)
    parts = torch.tensor(_LUMA, dtype=torch.int32, device=images.device).view(1, COLOURS, 1, 1)
    sums = (images.to(torch.int32) * parts).sum(dim=1, keepdim=True, dtype=torch.int32)
    return ((sums + (1 << 15)) >> 16).to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 in [0, 255] to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def resize(pixels: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Resize values in [0, 1], float [B, C, H, W], to [B, C, size, size].

    They are unchanged where they have that size.
    """
    if pixels.shape[-2:] == (size, size):
        return pixels
    # Antialiasing changes nothing when enlarging, and takes half as long again.
    shrinks = max(pixels.shape[-2:]) > size
    resized = functional.interpolate(
        pixels, (size, size), mode=interpolation, align_corners=False, antialias=shrinks
    )
    # Cubic curves go beyond the values between which they lie.
    return resized.clamp(0, 1) if interpolation == "bicubic" else resized


def warp(
    pixels: Tensor, affine: Tensor, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Sample images at the points of a grid that is moved; beyond the edge, the edge goes on.

    Args:
        pixels: values in [0, 1], float [B, C, H, W].
        affine: float [B, 2, 3], as in `AugmentationParameters`.
        size: S, pixels a side of the result.
        interpolation: between pixels.

    Returns:
        Values of the same dtype, [B, C, S, S].
    """
    grid = functional.affine_grid(affine, [len(pixels), 1, size, size], align_corners=False)
    sampled = functional.grid_sample(
        pixels, grid, mode=interpolation, padding_mode="border", align_corners=False
    )
    return sampled.clamp(0, 1) if interpolation == "bicubic" else sampled


def _uniform(count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
