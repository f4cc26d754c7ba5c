"""What a network's first convolution says of the images that it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capsprune.data.preprocessing import COLOURS, IMAGE_CHANNELS


def stem_of(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the first convolution of a network, with its name; None where it has none.

    Args:
        network: a backbone, its trunk, or one with a head, of any pruned shape.
    """
    return next(
        ((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)), None
    )


def image_channels(network: nn.Module) -> int:
    """Return the colour channels of the images that a network takes.

    They are the inputs of its first convolution, which pruning leaves alone; where that takes
    something else than images, they are 3.

    Args:
        network: as `stem_of` takes it.
    """
    stem = stem_of(network)
    channels = COLOURS if stem is None else stem[1].in_channels
    return channels if channels in IMAGE_CHANNELS else COLOURS


def blank_images(network: nn.Module, image_size: int, count: int = 1) -> Tensor:
    """Return black images to trace a network with, of its dtype and on its device.

    Args:
        network: as `stem_of` takes it.
        image_size: S, pixels a side.
        count: how many.

    Returns:
        Zeros [count, C, S, S].
    """
    like = next(network.parameters())
    shape = (count, image_channels(network), image_size, image_size)
    return torch.zeros(shape, device=like.device, dtype=like.dtype)
