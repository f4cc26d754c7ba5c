"""Labelled images, fetched a batch at a time: from a tensor, or from files decoded when needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from capsprune.data.decoding import Decoding, decode
from capsprune.data.survey import thread_count


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
            uint8 [B, C, H, W], with C 1 or 3, and int64 [B].

        Raises:
            DataError: an image cannot be decoded.
        """

    @abstractmethod
    def select(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at these positions, in this order, as a set that shares its storage."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Fetch one image: uint8 [C, H, W] and its label, int64 []."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]


class TensorImages(ImageSet):
    """Images held in one tensor, which several sets may share.

    Args:
        storage: uint8 [M, C, H, W] with C 1 or 3.
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
        """Fetch a batch: uint8 [B, C, H, W] and int64 [B]."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.storage[self._positions[index]], self.labels[index]

    def select(self, indices: Sequence[int]) -> TensorImages:
        """Return the images at these positions; the storage is shared."""
        chosen = self._positions[torch.as_tensor(indices, dtype=torch.int64)]
        return TensorImages(self.storage, self._storage_labels, chosen)


class FileImages(ImageSet):
    """Images decoded from their files each time they are fetched, by several threads.

    Args:
        paths: N image files.
        labels: int64 [N].
        size: side S in pixels of what is fetched; see `decode`.
        decoding: how the files become eight bits.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, size: int, decoding: Decoding
    ) -> None:
        self.paths = tuple(paths)
        self.labels = labels
        self.size = size
        self.decoding = decoding

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode a batch: uint8 [B, 3, S, S] and int64 [B].

        Raises:
            DataError: a file cannot be decoded; the message names it.
        """
        chosen = [self.paths[index] for index in indices]
        images = torch.empty(len(chosen), 3, self.size, self.size, dtype=torch.uint8)
        view = images.numpy()

        def fill(position: int) -> None:
            view[position] = decode(chosen[position], self.size, self.decoding)

        for _ in _decoders().map(fill, range(len(chosen))):
            pass
        return images, self.labels[torch.as_tensor(indices, dtype=torch.int64)]

    def select(self, indices: Sequence[int]) -> FileImages:
        """Return the images at these positions."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        paths = [self.paths[position] for position in index.tolist()]
        return FileImages(paths, self.labels[index], self.size, self.decoding)


@lru_cache(maxsize=1)
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="decode")
