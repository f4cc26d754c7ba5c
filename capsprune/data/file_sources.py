"""Data sets of image files: Tiny ImageNet, and folders that users have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capsprune.data.augmentation import Augmentation
from capsprune.data.download import unpack_zip
from capsprune.data.fingerprints import digest_files
from capsprune.data.folders import (
    ImageFolder,
    is_tiny_imagenet,
    scan_image_folder,
    scan_tiny_imagenet,
)
from capsprune.data.images import FileImages, ImageSet, TensorImages
from capsprune.data.names import data_set_folder
from capsprune.data.source import DataSet, Request, Source, fetch_once, locked
from capsprune.data.survey import ClassFiles, decode_all, survey, verify

MEMORY_BUDGET = 2 * 2**30
"""Bytes of decoded pixels up to which a folder of images is kept in memory."""

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TINY_IMAGENET_SIZE = 64


def read_tiny_imagenet(request: Request) -> Source:
    """Read Tiny ImageNet; it is fetched where it is not there.

    Raises:
        DataError: it is missing, damaged or foreign.
    """
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


def read_folder(request: Request) -> Source:
    """Read a folder that holds one folder of images for each class.

    Raises:
        DataError: it is missing or unusable.
    """
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


TINY_IMAGENET = DataSet(
    read_tiny_imagenet,
    image_size=224,
    augmentation=Augmentation(flip=True, rotation=20.0),
    places=("tiny-imagenet-200.zip", "tiny-imagenet-200"),
)
IMAGE_FOLDER = DataSet(read_folder, image_size=224, augmentation=Augmentation(flip=True, crop=0.8))
