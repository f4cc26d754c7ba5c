"""Loaders whose order hangs on the seed and the epoch alone, and that batch norm can train on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from capsprune.data.images import ImageSet
from capsprune.errors import DataError


class EpochSampler(Sampler[int]):
    """Positions in an order that is a function of (seed, epoch).

    The epoch is an attribute, not a `set_epoch` method: Lightning Fabric calls such methods with
    a count of its own, which starts at 0 again when a run is resumed. Use `set_epoch` below.

    Args:
        size: number of images.
        shuffle: whether to shuffle; if not, the order is ascending.
        seed: non-negative.
        rank: which of the processes this is.
        world_size: number of processes that share the images. When shuffling, each gets equally
            many (some images come twice if need be); otherwise each image comes exactly once.
    """

    def __init__(
        self, size: int, *, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        return iter(self._order()[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        missing = self.size - self.rank + self.world_size - 1
        return -(-self.size // self.world_size) if self.shuffle else missing // self.world_size

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return np.resize(order, len(self) * self.world_size)  # repeats from the start


class FoldingBatchSampler(BatchSampler):
    """Batches of `batch_size`, but a single image left over at the end joins the batch before it.

    In training mode, batch norm cannot normalise one image whose feature map is 1 x 1.
    """

    def __iter__(self) -> Iterator[list[int]]:
        held: list[int] = []
        batch: list[int] = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                if held:
                    yield held
                held, batch = batch, []
        if len(batch) == 1 and not self.drop_last:
            held, batch = held + batch, []
        if held:
            yield held
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)  # type: ignore[arg-type]
        return full + (rest > 1 and not self.drop_last)


def data_loader(
    images: ImageSet,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Make a loader of batches: uint8 [B, C, H, W], with C 1 or 3, and int64 [B].

    Args:
        images: what to load.
        batch_size: B. With `shuffle`, the last batch may have B + 1, and none has fewer than 2.
        shuffle: shuffle anew in every epoch that `set_epoch` announces; for training.
        seed: of the order, non-negative.
        drop_last: drop a last batch that is not full.
        rank: which of several processes this is.
        world_size: number of processes that share the images. Pass both to use several, and tell
            Fabric's `setup_dataloaders` with `use_distributed_sampler=False`.

    Raises:
        DataError: the batch size is below 1 (2 with `shuffle`), or no batch could be made.
    """
    least = 2 if shuffle else 1
    if batch_size < least:
        reason = "batch norm cannot train on single images" if shuffle else "a batch holds images"
        raise DataError(f"Batch size {batch_size} is too small ({reason}): use {least} or more.")
    sampler = EpochSampler(
        len(images), shuffle=shuffle, seed=seed, rank=rank, world_size=world_size
    )
    needed = batch_size if drop_last else least
    if len(sampler) < needed and (shuffle or drop_last):
        raise DataError(
            f"{len(sampler)} image(s) are too few for a batch, which takes {needed}: "
            f"add images or make the batch size smaller."
        )
    batches = (FoldingBatchSampler if shuffle else BatchSampler)(sampler, batch_size, drop_last)
    # In this process: fetching is one indexing operation, or done by threads. The generator
    # keeps the loader from drawing on the global one, which augmentation uses.
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=0,
        collate_fn=_as_fetched,
        generator=torch.Generator().manual_seed(seed),
    )


def set_epoch(loader: Any, epoch: int) -> None:
    """Choose the order of the next pass over a loader that `data_loader` made.

    Args:
        loader: the loader, also as wrapped by Lightning Fabric.
        epoch: non-negative; the same epoch gives the same order again.
    """
    loader.batch_sampler.sampler.epoch = epoch


def _as_fetched(batch: Any) -> Any:
    return batch
