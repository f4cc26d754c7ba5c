"""What a checkpoint carries of its data: which images trained it, and some to verify it on.

They are two files beside its weights. So a checkpoint that is taken elsewhere is never tested on
images that trained it, and is exported without its data set.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from capsprune.checkpoint import Architecture, read_architecture
from capsprune.data.images import ImageSet
from capsprune.data.loaders import data_loader
from capsprune.data.preprocessing import IMAGE_CHANNELS
from capsprune.data.splits import Split
from capsprune.errors import CheckpointError, DataError
from capsprune.files import BadFileError, read_text, write_bytes, write_text
from capsprune.run_folder import is_run

SPLIT = "split.json"
VERIFICATION = "verification.safetensors"

#: Images that a checkpoint carries, at most, and their bytes.
VERIFICATION_IMAGES = 32
_VERIFICATION_BYTES = 8 * 2**20
_IMAGES = "images"


def write_provenance(directory: Path, split: Split, images: Tensor) -> None:
    """Put what a checkpoint carries of its data beside its weights.

    Args:
        directory: the checkpoint.
        split: by which it was trained; its digest is in the checkpoint's description.
        images: from `verification_images`.
    """
    write_text(directory / SPLIT, split.to_json() + "\n")
    write_bytes(directory / VERIFICATION, save({_IMAGES: images.contiguous()}))


def verification_images(images: ImageSet) -> Tensor:
    """Take the first images of a set, as many as a checkpoint carries.

    Args:
        images: at least one.

    Returns:
        uint8 [n, C, H, W], as the set yields them.
    """
    first, _ = next(iter(data_loader(images.select([0]), batch_size=1)))
    count = max(1, min(VERIFICATION_IMAGES, len(images), _VERIFICATION_BYTES // first.numel()))
    pixels, _ = next(iter(data_loader(images.select(range(count)), batch_size=count)))
    return pixels


def read_verification(directory: Path) -> Tensor | None:
    """Read the images that a checkpoint carries.

    Returns:
        uint8 [n, C, H, W], C being 1 or 3; None if it carries none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = directory / VERIFICATION
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.get_slice(_IMAGES)
            shape = stored.get_shape()
            fits = (
                len(shape) == 4
                and 1 <= shape[0] <= VERIFICATION_IMAGES
                and shape[1] in IMAGE_CHANNELS
            )
            if fits and min(shape) > 0 and stored.get_dtype() == "U8":
                pixels: Tensor = file.get_tensor(_IMAGES)
                return pixels
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    raise _damaged(path, "no images of 1 or 3 channels")


def random_images(channels: int, size: int, seed: int) -> Tensor:
    """Draw images of noise, where there are no real ones: uint8 [n, channels, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (VERIFICATION_IMAGES, channels, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def read_provenance(directory: Path, described: Architecture) -> Split | None:
    """Read by which split a checkpoint was trained.

    Checkpoints of before they carried it have that of the run in whose folder they lie.

    Args:
        directory: the checkpoint.
        described: its description.

    Returns:
        The split; None if it is not known.

    Raises:
        CheckpointError: if the file is missing, damaged, or another than the description names.
    """
    path = directory / SPLIT
    run = directory.resolve().parent
    if described.split is None:
        path = run / SPLIT
        if not (is_run(run) and path.is_file()):
            return None
    try:
        split = Split.from_json(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory} has no {SPLIT}, which says which images trained it; put it back, or make "
            "the checkpoint anew."
        ) from None
    except (DataError, BadFileError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if described.split not in (None, split.digest):
        raise _damaged(path, "another split than the checkpoint was made with")
    return split


def provenance_of_weights(weights: Path) -> Split | None:
    """Read by which split the checkpoint was trained that a file of weights belongs to.

    Returns:
        The split; None if the file is none of a checkpoint, or it is not known.

    Raises:
        CheckpointError: as `read_provenance`.
    """
    try:
        described = read_architecture(weights.parent)
    except CheckpointError:
        return None
    return read_provenance(weights.parent, described)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({reason.strip().rstrip('.:')}); restore it, or make the checkpoint "
        "anew."
    )
