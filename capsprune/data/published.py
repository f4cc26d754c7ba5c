"""Data sets that are published as pixels: digits, Fashion-MNIST, CIFAR.

Of `torchvision.datasets` only addresses and checksums are used. It unpickles CIFAR, by checksums
that find damage and are no defence against forgery, where the binary version of the same images
needs no pickle. It looks for Fashion-MNIST in one place and only unpacked, so that it would fetch
again what Debian's package has, and its reader of IDX files takes whatever size a file claims.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from capsprune.data.augmentation import Augmentation
from capsprune.data.download import checksum
from capsprune.data.fingerprints import label_bytes
from capsprune.data.formats import parse_cifar, read_idx
from capsprune.data.images import TensorImages
from capsprune.data.source import DataSet, Request, Source, fetch_once
from capsprune.errors import DataError
from capsprune.files import BadFileError, read_bytes
from capsprune.schedule import SHORT

# Digits


def read_digits(request: Request) -> Source:
    """Read the digits that ship with scikit-learn."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pool = _tensor_images(pixels[:, None], digits.target)
    return Source(
        class_names=tuple(str(digit) for digit in range(10)),
        native_size=8,
        fingerprint=_pixel_fingerprint(pool),
        pool=pool,
        validation=None,
        test=None,
        validation_share=0.1,
        test_share=0.2,
    )


DIGITS = DataSet(
    read_digits,
    image_size=32,
    augmentation=Augmentation(translation=0.1, rotation=10.0, scale=(0.9, 1.1)),
    schedules=SHORT,
    origin="scikit-learn",
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


def read_fashion(request: Request) -> Source:
    """Read Fashion-MNIST; it is fetched where it is not there.

    Raises:
        DataError: it is missing, damaged or foreign.
    """
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
    return Source(
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


def _download_fashion(request: Request) -> list[Path]:
    from torchvision.datasets import FashionMNIST  # knows the addresses and checksums

    folder = request.root / "fashion-mnist"
    sums = dict(FashionMNIST.resources)
    files = [folder / f"{file}.gz" for file in _FASHION_FILES]
    for file in files:
        if not file.is_file():
            url = FashionMNIST.mirrors[0] + file.name
            fetch_once(request, url, file, sums[file.name])
    return files


FASHION_MNIST = DataSet(
    read_fashion,
    image_size=32,
    augmentation=Augmentation(flip=True, translation=0.08),
    schedules=SHORT,
    places=(str(FASHION_SYSTEM_FOLDER), "fashion-mnist", "FashionMNIST/raw"),
    remedy="apt-get install dataset-fashion-mnist, or let train --data fashion-mnist fetch it",
)

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


def read_cifar(request: Request) -> Source:
    """Read CIFAR-10 or CIFAR-100, whichever is asked for; it is fetched where it is not there.

    Raises:
        DataError: it is missing, damaged or foreign.
    """
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
    return Source(
        class_names=tuple(names),
        native_size=32,
        fingerprint=_pixel_fingerprint(pool, test),
        pool=pool,
        validation=None,
        test=test,
        validation_share=0.05,
    )


def _cifar_contents(request: Request, layout: Cifar) -> tuple[dict[str, bytes], Path]:
    """Return the bytes of each file by its name, from the folder or straight out of the archive."""
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
        fetch_once(request, layout.url, archive, layout.md5)
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


def _cifar_data_set(name: str) -> DataSet:
    layout = CIFAR[name]
    return DataSet(
        read_cifar,
        image_size=64,
        augmentation=Augmentation(flip=True, brightness=0.25, contrast=(0.2, 1.8)),
        places=(PurePosixPath(layout.url).name, layout.folder),
    )


CIFAR10 = _cifar_data_set("cifar10")
CIFAR100 = _cifar_data_set("cifar100")


def _tensor_images(pixels: np.ndarray, labels: np.ndarray) -> TensorImages:
    """Return own copies: what numpy reads from bytes is not writable, which torch warns of."""
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
