"""Labelled images, fetched a batch at a time: from a tensor, or from files decoded when needed."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from capsprune.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total (0 if unknown)."""

CROP_SHARE = 7 / 8
"""The part of a large image's shorter side that its centre crop keeps."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)

_CHUNK = 64


class ImageSet(Dataset[tuple[Tensor, Tensor]], ABC):
    """Images with labels; every image of a set has the same size.

    Attributes:
        labels: int64 [N], the class of each image.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fetch a batch.

        Args:
            indices: B positions, each in [0, N).

        Returns:
            uint8 [B, 3, H, W] and int64 [B].

        Raises:
            DataError: an image cannot be decoded.
        """

    @abstractmethod
    def select(self, indices: Sequence[int]) -> ImageSet:
        """The images at these positions, in this order, as a set that shares its storage."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Fetch one image: uint8 [3, H, W] and its label, int64 []."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]


class TensorImages(ImageSet):
    """Images held in one tensor, which several sets may share.

    Args:
        storage: uint8 [M, C, H, W] with C 1 or 3. One channel is repeated only when fetched.
        storage_labels: int64 [M].
        positions: int64 [N], which of the M images belong to this set; all of them if None.
    """

    def __init__(
        self, storage: Tensor, storage_labels: Tensor, positions: Tensor | None = None
    ) -> None:
        self.storage = storage
        self._storage_labels = storage_labels
        self._positions = torch.arange(len(storage)) if positions is None else positions
        self.labels = storage_labels[self._positions]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fetch a batch: uint8 [B, 3, H, W] and int64 [B]."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        images = self.storage[self._positions[index]]
        if images.shape[1] == 1:
            images = images.repeat(1, 3, 1, 1)
        return images, self.labels[index]

    def select(self, indices: Sequence[int]) -> TensorImages:
        """The images at these positions; the storage is shared."""
        chosen = self._positions[torch.as_tensor(indices, dtype=torch.int64)]
        return TensorImages(self.storage, self._storage_labels, chosen)


class FileImages(ImageSet):
    """Images decoded from their files each time they are fetched, by several threads.

    Args:
        paths: N image files.
        labels: int64 [N].
        size: side S in pixels of what is fetched; see `decode`.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int) -> None:
        self.paths = tuple(paths)
        self.labels = labels
        self.size = size

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode a batch: uint8 [B, 3, S, S] and int64 [B].

        Raises:
            DataError: a file cannot be decoded; the message names it.
        """
        chosen = [self.paths[index] for index in indices]
        images = torch.empty(len(chosen), 3, self.size, self.size, dtype=torch.uint8)
        view = images.numpy()

        def fill(position: int) -> None:
            view[position] = decode(chosen[position], self.size)

        for _ in _decoders().map(fill, range(len(chosen))):
            pass
        return images, self.labels[torch.as_tensor(indices, dtype=torch.int64)]

    def select(self, indices: Sequence[int]) -> FileImages:
        """The images at these positions."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        paths = [self.paths[position] for position in index.tolist()]
        return FileImages(paths, self.labels[index], self.size)


def decode(path: Path, size: int) -> np.ndarray:
    """Decode one file into a square RGB image, uint8 [3, size, size].

    The centre is cut out and resized: 7/8 of the shorter side, but never fewer than `size` pixels
    where the image has them, so that no image is enlarged only to be cropped again.

    Raises:
        DataError: the file cannot be read, is truncated, or is no image.
    """
    try:
        with Image.open(path) as file:
            shorter = min(file.size)
            share = min(1.0, max(size / shorter, CROP_SHARE))
            # A JPEG can be decoded at a fraction of its size, which is several times faster.
            file.draft("RGB", (round(size / share), round(size / share)))
            image = _as_rgb(ImageOps.exif_transpose(file))
            side = share * min(image.size)
            left, top = (int(length - side) // 2 for length in image.size)
            box = (left, top, left + side, top + side)
            square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise DataError(
            f"Image {path} cannot be decoded ({reason}): replace the file or remove it."
        ) from error
    return np.asarray(square).transpose(2, 0, 1)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling them
        eight_bits = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(eight_bits.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def decode_all(paths: Sequence[Path], size: int, progress: Progress | None = None) -> Tensor:
    """Decode N files by several threads into uint8 [N, 3, size, size].

    Raises:
        DataError: a file cannot be decoded; the message names the first such file.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    view = images.numpy()

    def fill(start: int) -> int:
        stop = min(start + _CHUNK, len(paths))
        for position in range(start, stop):
            view[position] = decode(paths[position], size)
        return stop

    with ThreadPoolExecutor(_thread_count()) as pool:
        try:
            for done in pool.map(fill, range(0, len(paths), _CHUNK)):
                if progress is not None:
                    progress("Decoding images", done, len(paths))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images


def _thread_count() -> int:
    return min(8, os.cpu_count() or 1)


@lru_cache(maxsize=1)
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_thread_count(), thread_name_prefix="decode")
