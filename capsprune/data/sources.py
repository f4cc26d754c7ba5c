"""The data sets: where each comes from, and how it becomes training, validation and test images."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capsprune.data.decoding import Decoding
from capsprune.data.download import checksum, fetch, unpack_zip
from capsprune.data.fingerprints import digest_files, label_bytes
from capsprune.data.folders import (
    ImageFolder,
    is_tiny_imagenet,
    scan_image_folder,
    scan_tiny_imagenet,
)
from capsprune.data.formats import parse_cifar, read_idx
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
from capsprune.data.splits import Split, draw_split
from capsprune.data.survey import ClassFiles, Progress, decode_all, survey, verify
from capsprune.data.walk import listed
from capsprune.errors import DataError
from capsprune.files import BadFileError, holding, make_folder, read_bytes

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


@dataclass(frozen=True)
class _Request:
    name: str
    root: Path
    image_size: int
    download: bool
    progress: Progress | None
    #: How files are to become pixels where no split says it.
    decoding: Decoding
    split: Split | None


@dataclass(frozen=True)
class _Source:
    """A data set before it is split. The shares say what to carve where a set is None.

    `noted` are fields of the split on how files were read; `older_fingerprint` is what older
    versions took for the fingerprint.
    """

    class_names: tuple[str, ...]
    native_size: int
    fingerprint: str
    pool: ImageSet
    validation: ImageSet | None
    test: ImageSet | None
    validation_share: float
    test_share: float = 0.2
    older_fingerprint: str | None = None
    noted: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
        seed: what to draw the split from, non-negative.
        split: apply this split instead of drawing one; `seed` and `part` then have no effect.
        part: of the training images, to use, in (0, 1].
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
    request = _Request(
        name, root or default_root(), image_size, download, progress, decoding, split
    )
    source = _READERS[data_set_kind(name)](request)
    check_class_names(source.class_names, name)
    if split is None:
        split = _draw(name, source, seed, part)
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


def _draw(name: str, source: _Source, seed: int, part: float) -> Split:
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
    )
    return split.model_copy(update=source.noted)


# Digits


def _read_digits(request: _Request) -> _Source:
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pool = _tensor_images(pixels[:, None], digits.target)
    return _Source(
        class_names=tuple(str(digit) for digit in range(10)),
        native_size=8,
        fingerprint=_pixel_fingerprint(pool),
        pool=pool,
        validation=None,
        test=None,
        validation_share=0.1,
        test_share=0.2,
    )


# Fashion-MNIST

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FASHION_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""


def _read_fashion(request: _Request) -> _Source:
    files = _find_fashion(request.root) or _download_fashion(request)
    sets = []
    for images_file, labels_file in (files[:2], files[2:]):
        pixels, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if not pixels.size or len(pixels) != len(labels) or labels.max() >= len(_FASHION_CLASSES):
            raise DataError(
                f"Files {images_file} and {labels_file} do not belong together "
                f"({len(pixels)} images, {len(labels)} labels) or hold unknown classes: "
                f"replace both by whole copies of Fashion-MNIST."
            )
        sets.append(_tensor_images(pixels[:, None], labels))
    pool, test = sets
    if pool.storage.shape[2:] != test.storage.shape[2:]:
        raise DataError(
            f"The images of {files[0]} and {files[2]} differ in size: "
            f"replace both by whole copies of Fashion-MNIST."
        )
    return _Source(
        class_names=_FASHION_CLASSES,
        native_size=pool.storage.shape[-1],
        fingerprint=_pixel_fingerprint(pool, test),
        pool=pool,
        validation=None,
        test=test,
        validation_share=0.1,
    )


def _find_fashion(root: Path) -> list[Path] | None:
    folders = (
        root,
        root / "fashion-mnist",
        root / "FashionMNIST" / "raw",
        FASHION_SYSTEM_FOLDER,
    )
    for folder in folders:
        found = [
            next((path for path in (folder / f"{file}.gz", folder / file) if path.is_file()), None)
            for file in _FASHION_FILES
        ]
        files = [path for path in found if path is not None]
        if len(files) == len(_FASHION_FILES):
            return files
    return None


def _download_fashion(request: _Request) -> list[Path]:
    from torchvision.datasets import FashionMNIST  # knows the addresses and checksums

    folder = request.root / "fashion-mnist"
    sums = dict(FashionMNIST.resources)
    files = [folder / f"{file}.gz" for file in _FASHION_FILES]
    for file in files:
        if not file.is_file():
            url = FashionMNIST.mirrors[0] + file.name
            _fetch(request, url, file, sums[file.name])
    return files


# CIFAR


@dataclass(frozen=True)
class Cifar:
    """Where a CIFAR data set is and how its binary version is laid out.

    Attributes:
        url: of the archive.
        md5: of the archive.
        folder: name of the folder in the archive.
        train_files: names of the files of training records.
        test_file: name of the file of test records.
        names_file: name of the file of class names, one a line.
        label_bytes: before the pixels of each record.
        classes: number of classes.
        counts: number of training and of test images.
    """

    url: str
    md5: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    label_bytes: int
    classes: int
    counts: tuple[int, int] = (50_000, 10_000)


CIFAR = {
    "cifar10": Cifar(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_file="test_batch.bin",
        names_file="batches.meta.txt",
        label_bytes=1,
        classes=10,
    ),
    "cifar100": Cifar(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train_files=("train.bin",),
        test_file="test.bin",
        names_file="fine_label_names.txt",
        label_bytes=2,
        classes=100,
    ),
}


#: Bytes of a file of CIFAR, at most: four fifths more than the largest has.
_CIFAR_LIMIT = 2**28


def _read_cifar(request: _Request) -> _Source:
    layout = CIFAR[request.name]
    contents, place = _cifar_contents(request, layout)
    sets = []
    for files, count in zip((layout.train_files, (layout.test_file,)), layout.counts, strict=True):
        parsed = [
            parse_cifar(
                contents[file],
                label_bytes=layout.label_bytes,
                classes=layout.classes,
                source=f"{place / file}",
            )
            for file in files
        ]
        pixels = np.concatenate([pixels for pixels, _ in parsed])
        labels = np.concatenate([labels for _, labels in parsed])
        if len(labels) != count:
            raise DataError(
                f"{place} holds {len(labels)} images in {', '.join(files)} instead of {count}: "
                f"replace it by a whole copy of the binary version."
            )
        sets.append(_tensor_images(pixels, labels))
    pool, test = sets
    try:
        names = contents[layout.names_file].decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise DataError(
            f"File {place / layout.names_file} is no UTF-8 text (byte {error.start}): replace it "
            f"by a whole copy."
        ) from error
    if len(names) != layout.classes:
        raise DataError(
            f"File {place / layout.names_file} holds {len(names)} class names instead of "
            f"{layout.classes}: replace it by a whole copy."
        )
    return _Source(
        class_names=tuple(names),
        native_size=32,
        fingerprint=_pixel_fingerprint(pool, test),
        pool=pool,
        validation=None,
        test=test,
        validation_share=0.05,
    )


def _cifar_contents(request: _Request, layout: Cifar) -> tuple[dict[str, bytes], Path]:
    """The bytes of each file by its name, from the folder or straight out of the archive."""
    wanted = (*layout.train_files, layout.test_file, layout.names_file)
    folder = request.root / layout.folder
    if folder.is_dir():
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            raise DataError(
                f"Folder {folder} lacks {', '.join(missing)}: unpack the archive again, or "
                f"delete the folder so that the archive is used."
            )
        try:
            return {file: read_bytes(folder / file, _CIFAR_LIMIT) for file in wanted}, folder
        except BadFileError as error:
            raise DataError(
                f"A file in {folder} {error}: unpack the archive again, or delete the folder so "
                f"that the archive is used."
            ) from error
    archive = request.root / PurePosixPath(layout.url).name
    if not archive.is_file():
        _fetch(request, layout.url, archive, layout.md5)
    elif checksum(archive) != layout.md5:
        raise DataError(
            f"Archive {archive} is damaged or foreign (other MD5 than {layout.md5}): "
            f"delete it, so that it is fetched again, or put a whole one there."
        )
    contents: dict[str, bytes] = {}
    # Read in place: nothing is unpacked, so no member can land anywhere.
    with tarfile.open(archive, mode="r:gz") as members:
        for member in members:
            file = PurePosixPath(member.name).name
            stream = members.extractfile(member) if file in wanted else None
            if stream is not None:
                contents[file] = stream.read()
    return contents, archive


# Folders of files

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TINY_IMAGENET_SIZE = 64


def _read_tiny_imagenet(request: _Request) -> _Source:
    folder = request.root / "tiny-imagenet-200"
    if not folder.is_dir() and is_tiny_imagenet(request.root):
        folder = request.root
    if not folder.is_dir():
        archive = request.root / "tiny-imagenet-200.zip"
        if not archive.is_file():
            _fetch(request, TINY_IMAGENET_URL, archive, TINY_IMAGENET_MD5)
        with _locked(request.root):
            if not folder.is_dir():
                unpack_zip(archive, folder, request.progress)
    # Kept at its own size, a twelfth of the memory that 224 pixels would take.
    return _file_source(request, scan_tiny_imagenet(folder), folder, _TINY_IMAGENET_SIZE)


def _read_folder(request: _Request) -> _Source:
    root = data_set_folder(request.name)
    return _file_source(request, scan_image_folder(root), root, request.image_size)


def _file_source(request: _Request, found: ImageFolder, root: Path, size: int) -> _Source:
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
    return _Source(
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


_READERS: dict[str, Callable[[_Request], _Source]] = {
    "digits": _read_digits,
    "fashion-mnist": _read_fashion,
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "tiny-imagenet": _read_tiny_imagenet,
    FOLDER: _read_folder,
}


def _fetch(request: _Request, url: str, target: Path, md5: str) -> None:
    if not request.download:
        fetch(request.name, url, target, md5, download=False, progress=None)
    with _locked(request.root):
        if not target.is_file():  # another process may have fetched it meanwhile
            fetch(request.name, url, target, md5, download=True, progress=request.progress)


def _locked(root: Path) -> AbstractContextManager[None]:
    make_folder(root)
    return holding(root / ".lock")


def _tensor_images(pixels: np.ndarray, labels: np.ndarray) -> TensorImages:
    """Own copies: what numpy reads from bytes is not writable, which torch warns of."""
    return TensorImages(
        torch.from_numpy(np.array(pixels, dtype=np.uint8)),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
    )


def _pixel_fingerprint(*sets: TensorImages) -> str:
    digest = hashlib.sha256()
    for images in sets:
        digest.update(label_bytes(images.labels.numpy()))
        digest.update(images.storage.numpy().data)
    return digest.hexdigest()
