"""The data sets: where each comes from, and how it becomes training, validation and test images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capsprune.data.decoding import Decoding
from capsprune.data.download import unpack_zip
from capsprune.data.fingerprints import digest_files
from capsprune.data.folders import (
    ImageFolder,
    is_tiny_imagenet,
    scan_image_folder,
    scan_tiny_imagenet,
)
from capsprune.data.images import FileImages, ImageSet, TensorImages
from capsprune.data.names import (
    DATA_SETS,
    FOLDER,
    check_class_names,
    data_set_folder,
    data_set_kind,
    folder_data_set,
    known_data_set,
    written_path,
)
from capsprune.data.published import read_cifar, read_digits, read_fashion
from capsprune.data.source import Request, Source, fetch_once, locked
from capsprune.data.splits import Split, draw_split
from capsprune.data.survey import ClassFiles, Progress, decode_all, survey, verify
from capsprune.errors import DataError, listed

__all__ = ["DATA_SETS", "DataSplits", "ImageSet", "default_root", "load_data"]

MEMORY_BUDGET = 2 * 2**30
"""Bytes of decoded pixels up to which a folder of images is kept in memory."""

DEFAULT_BACKGROUND = "#ffffff"
"""What transparent images are composed onto."""


@dataclass(frozen=True)
class DataSplits:
    """A data set, ready for use.

    Attributes:
        name: as it was asked for; the path of a folder is absolute.
        class_names: C names; a label is a position in them.
        native_size: side in pixels of the images as the sets yield them.
        train: what to train on; shares its storage with what was carved from it.
        validation: what to choose by.
        test: what to report on.
        split: which image went where, and how files become pixels; store it to get the same sets
            again. It is the split that was given, but for what is noted on the files.
        notes: sentences on the data that a user should know.
    """

    name: str
    class_names: tuple[str, ...]
    native_size: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    split: Split
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)


def default_root() -> Path:
    """Where data sets are kept: $CAPSPRUNE_DATA, or else ~/.cache/capsprune/data."""
    chosen = os.environ.get("CAPSPRUNE_DATA")
    if not chosen:
        return Path.home() / ".cache" / "capsprune" / "data"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise DataError(f"$CAPSPRUNE_DATA is no path ({error}): set it to a folder.") from error


def load_data(
    name: str,
    *,
    root: Path | None = None,
    image_size: int,
    seed: int = 0,
    split: Split | None = None,
    part: float = 1.0,
    test_seed: int | None = None,
    value_range: tuple[float, float] | None = None,
    background: str | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> DataSplits:
    """Load a data set and split it into training, validation and test images.

    Args:
        name: one of `DATA_SETS`.
        root: folder that holds data sets, or is to; `default_root()` if None. Of a data set that is
            a folder and that was split: that folder, where it was moved.
        image_size: side in pixels that the network takes. Images of a folder are decoded to it;
            all others keep their own size, and a transform resizes the batch.
        seed: what to draw the split from, but for the test images, non-negative.
        split: apply this split instead of drawing one; the other arguments that say how to draw
            one then have no effect.
        part: of the training images, to use, in (0, 1].
        test_seed: what to draw the test images from; None for those that a data set always has.
        value_range: which values of files that hold more than 8 bits a pixel become black and
            white; None for the split's, or for what the files themselves suggest.
        background: #rrggbb, what transparent files are composed onto; None for the split's, or for
            white.
        download: whether a data set that is missing may be downloaded.
        progress: called with what is being done, how much is done, and the total.

    Raises:
        DataError: the data set is unknown, missing or unusable, or `split` does not fit it.
    """
    name = known_data_set(name)
    if image_size < 1:
        raise DataError(f"Image size {image_size} is too small: give at least 1 pixel.")
    if split is not None:
        split.require_decoding(value_range, background)
    if root is not None:
        written_path(root)  # raises where it could not be written down later
    if root is not None and data_set_kind(name) == FOLDER:
        if split is None:
            raise DataError(
                f"Data set '{name}' has its path in its name: leave --data-root out, which says "
                f"where such a folder lies that was moved after the run began."
            )
        name = folder_data_set(root)
    decoding = Decoding(value_range, background or DEFAULT_BACKGROUND)
    request = Request(name, root or default_root(), image_size, download, progress, decoding, split)
    source = _READERS[data_set_kind(name)](request)
    check_class_names(source.class_names, name)
    if split is None:
        split = _draw(name, source, seed, part, test_seed)
    else:
        split.require_fit(
            data=name,
            size=len(source.pool),
            fingerprint=source.fingerprint,
            own_validation=source.validation is not None,
            own_test=source.test is not None,
            older_fingerprint=source.older_fingerprint,
        )
        noted = {"fingerprint": source.fingerprint, **source.noted}
        split = split.model_copy(update=noted)
    parts = {
        "training": source.pool.select(split.train.tolist()),
        "validation": source.validation or source.pool.select(split.validation or ()),
        "test": source.test or source.pool.select(split.test or ()),
    }
    for what, images in parts.items():
        if len(images) == 0:
            raise DataError(
                f"The {what} set of data set '{name}' is empty: add images, or start a new run, "
                f"which draws a new split."
            )
    return DataSplits(
        name=name,
        class_names=source.class_names,
        native_size=source.native_size,
        train=parts["training"],
        validation=parts["validation"],
        test=parts["test"],
        split=split,
        notes=(*source.notes, *_missing_classes(source.class_names, parts)),
    )


def _missing_classes(class_names: tuple[str, ...], parts: dict[str, ImageSet]) -> Iterator[str]:
    """Name the classes that a set lacks, of which its accuracy says nothing."""
    for what in ("validation", "test"):
        counts = torch.bincount(parts[what].labels, minlength=len(class_names))
        missing = [class_names[label] for label in (counts == 0).nonzero().flatten().tolist()]
        if missing:
            yield (
                f"The {what} set holds no image of {len(missing)} of the {len(class_names)} "
                f"classes: {listed(missing, 10)}"
            )


def _draw(name: str, source: Source, seed: int, part: float, test_seed: int | None) -> Split:
    own = {"validation": source.validation, "test": source.test}
    split = draw_split(
        source.pool.labels.numpy(),
        data=name,
        seed=seed,
        fingerprint=source.fingerprint,
        validation_share=source.validation_share if source.validation is None else None,
        test_share=source.test_share if source.test is None else None,
        own_counts={name: len(images) for name, images in own.items() if images is not None},
        part=part,
        test_seed=test_seed,
    )
    return split.model_copy(update=source.noted)


# Folders of files

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TINY_IMAGENET_SIZE = 64


def _read_tiny_imagenet(request: Request) -> Source:
    folder = request.root / "tiny-imagenet-200"
    if not folder.is_dir() and is_tiny_imagenet(request.root):
        folder = request.root
    if not folder.is_dir():
        archive = request.root / "tiny-imagenet-200.zip"
        if not archive.is_file():
            fetch_once(request, TINY_IMAGENET_URL, archive, TINY_IMAGENET_MD5)
        with locked(request.root):
            if not folder.is_dir():
                unpack_zip(archive, folder, request.progress)
    # Kept at its own size, a twelfth of the memory that 224 pixels would take.
    return _file_source(request, scan_tiny_imagenet(folder), folder, _TINY_IMAGENET_SIZE)


def _read_folder(request: Request) -> Source:
    root = data_set_folder(request.name)
    return _file_source(request, scan_image_folder(root), root, request.image_size)


def _file_source(request: Request, found: ImageFolder, root: Path, size: int) -> Source:
    lists = [files for files in (found.train, found.validation, found.test) if files is not None]
    labels = [np.array(files.labels, dtype=np.int64) for files in lists]
    paths = [path for files in lists for path in files.paths]
    lazy = len(paths) * 3 * size * size > MEMORY_BUDGET
    digests = digest_files(
        [(files.paths, classes) for files, classes in zip(lists, labels, strict=True)], root
    )
    before = request.split
    if before is not None:  # told before any file is read
        before.require_fit(
            data=request.name,
            size=len(found.train.paths),
            fingerprint=digests.names,
            own_validation=found.validation is not None,
            own_test=found.test is not None,
            older_fingerprint=digests.sizes,
        )
    verified = before.verified if before is not None else None
    notes: tuple[str, ...] = ()
    pixels: Tensor | None = None
    if before is None:
        every = ClassFiles(paths, np.concatenate(labels), found.class_names, request.name)
        seen = survey(every, size, request.decoding, keep=not lazy, progress=request.progress)
        decoding, pixels, notes = seen.decoding, seen.pixels, seen.notes
        verified = digests.times
    else:
        decoding = before.decoding
        if before.file_sizes not in (None, digests.sizes):
            notes = (
                f"Some files of data set '{request.name}' were replaced since they were split; "
                f"the split goes by their names and is kept",
            )
        if not lazy:
            pixels = decode_all(paths, size, decoding, request.progress)
        elif verified != digests.times:
            verify(paths, size, decoding, request.progress)
            verified = digests.times

    def sets() -> Iterator[ImageSet | None]:
        start = 0
        for files in (found.train, found.validation, found.test):
            if files is None:
                yield None
                continue
            classes = torch.tensor(files.labels, dtype=torch.int64)
            stop = start + len(classes)
            if pixels is None:
                yield FileImages(files.paths, classes, size, decoding)
            else:
                yield TensorImages(pixels[start:stop], classes)
            start = stop

    pool, validation, test = sets()
    assert pool is not None
    return Source(
        class_names=found.class_names,
        native_size=size,
        fingerprint=digests.names,
        older_fingerprint=digests.sizes,
        pool=pool,
        validation=validation,
        test=test,
        validation_share=0.1,
        test_share=0.2,
        noted={
            "value_range": decoding.value_range,
            "background": decoding.background,
            "file_sizes": digests.sizes,
            "verified": verified,
        },
        notes=(*found.notes, *notes),
    )


_READERS: dict[str, Callable[[Request], Source]] = {
    "digits": read_digits,
    "fashion-mnist": read_fashion,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "tiny-imagenet": _read_tiny_imagenet,
    FOLDER: _read_folder,
}
