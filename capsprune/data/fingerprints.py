"""Digests by which a data set is known again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capsprune.data.decoding import UnreadableImageError


@dataclass(frozen=True)
class FileDigests:
    """SHA-256 (hex) of a folder of images: each says more than the one before.

    Attributes:
        names: of labels and file names, which are what a split goes by.
        sizes: of labels, file names and file sizes.
        times: of sizes and of the times of the last changes.
    """

    names: str
    sizes: str
    times: str


def digest_files(sets: Sequence[tuple[Sequence[Path], np.ndarray]], root: Path) -> FileDigests:
    """Digest image files and their labels, without reading them.

    Args:
        sets: paths and labels (int64) of each set.
        root: folder that the names are relative to.

    Raises:
        DataError: a file is gone.
    """
    names, sizes, times = (hashlib.sha256() for _ in range(3))
    names.update(b"names\0")
    for paths, labels in sets:
        names.update(label_bytes(labels))
        sizes.update(label_bytes(labels))
        for path in paths:
            name = os.fsencode(path.relative_to(root).as_posix())  # alike in every locale
            try:
                found = path.stat()
            except OSError as error:
                raise UnreadableImageError(path, error.strerror or str(error)) from error
            names.update(name + b"\0")
            sizes.update(name + f"\0{found.st_size}\n".encode())
            times.update(f"{found.st_mtime_ns}\n".encode())
    times.update(sizes.digest())
    return FileDigests(names.hexdigest(), sizes.hexdigest(), times.hexdigest())


def label_bytes(labels: np.ndarray) -> bytes:
    """Labels as they are digested, the same on every machine."""
    return labels.astype("<i8").tobytes()
