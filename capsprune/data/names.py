"""The table of the data sets, and nothing that takes long to import."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capsprune.bounds import MAX_NAME
from capsprune.errors import DataError
from capsprune.tables import Table

if TYPE_CHECKING:
    from capsprune.data.source import DataSet

FOLDER = "imagefolder"

DATA_SETS: Table[DataSet] = Table(
    "data set",
    {
        "digits": ("capsprune.data.published:DIGITS", "8 x 8 pixels, in scikit-learn"),
        "fashion-mnist": ("capsprune.data.published:FASHION_MNIST", "clothes, 28 x 28"),
        "cifar10": ("capsprune.data.published:CIFAR10", "10 classes, 32 x 32"),
        "cifar100": ("capsprune.data.published:CIFAR100", "100 classes, 32 x 32"),
        "tiny-imagenet": ("capsprune.data.file_sources:TINY_IMAGENET", "200 classes, 64 x 64"),
        FOLDER: ("capsprune.data.file_sources:IMAGE_FOLDER", f"images of your own: {FOLDER}:PATH"),
    },
    error=DataError,
)
"""All data sets, each with what is known of it."""


def data_set(name: str) -> DataSet:
    """Return what is known of a data set.

    Args:
        name: one of `DATA_SETS`, or "imagefolder:PATH".

    Raises:
        DataError: if there is none of this name.
    """
    return DATA_SETS[data_set_kind(name)]


def known_data_set(name: str) -> str:
    """Check that `name` names a data set, without looking for the data themselves.

    Args:
        name: one of `DATA_SETS`; of a folder, "imagefolder:PATH".

    Returns:
        The name as it is written down: the path of a folder is absolute in it.

    Raises:
        DataError: it does not; the message names the nearest that do.
    """
    kind, _, path = name.partition(":")
    if kind != FOLDER:
        return DATA_SETS.check(name)
    if not path.strip():
        raise DataError(
            f"Data set '{name}' names no folder: write {FOLDER}:PATH, "
            f"where PATH holds one folder of images for each class."
        )
    return folder_data_set(native_path(path))


def folder_data_set(folder: str | Path) -> str:
    """Return the name of the data set that lies in a folder: its path is absolute.

    Raises:
        DataError: there can be no such folder, or its path is no UTF-8.
    """
    return f"{FOLDER}:{written_path(folder)}"


def data_set_folder(name: str) -> Path:
    """Return the folder of "imagefolder:PATH"."""
    return native_path(name.partition(":")[2])


def written_path(folder: str | Path) -> str:
    """Return the path of a folder as it is written down: absolute, and the same in every locale.

    Raises:
        DataError: it can be that of no folder, or is no UTF-8.
    """
    if "\0" in str(folder):
        raise DataError(f"{str(folder)!r} is no path: it holds a NUL; give the path of a folder.")
    try:
        path = Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise DataError(f"{folder} is no path ({error}): give the path of a folder.") from error
    if ".." in path.parts:
        path = path.resolve()
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"The path {str(path)!r} is no UTF-8, so it cannot be written down: rename the folder."
        ) from error


def native_path(path: str) -> Path:
    """Return a path as this process's locale spells it, out of one written down or typed."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:  # Bytes that the locale cannot read: as they were typed.
        return Path(path)
    return Path(path if os.path.lexists(path) else os.fsdecode(encoded))


def utf8_name(folder: Path) -> str:
    """Return the name of a folder, which is UTF-8 whatever the locale.

    Raises:
        DataError: it is no UTF-8.
    """
    try:
        return os.fsencode(folder.name).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"The name of class folder {str(folder)!r} is no UTF-8: rename the folder, for "
            f"instance by convmv."
        ) from error


def check_class_names(names: Sequence[str], data: str) -> None:
    """Check that classes have names that can be written down and shown.

    Args:
        names: of the classes.
        data: name of the data set, for the message.

    Raises:
        DataError: a name is empty, too long, holds control characters, or stands twice.
    """
    for name in names:
        if not name.strip():
            reason = "is empty"
        elif len(name) > MAX_NAME:
            reason = f"has more than {MAX_NAME} characters"
        elif any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
            reason = "holds control characters"
        else:
            continue
        raise DataError(
            f"The name {name[:40]!r} of a class of data set '{data}' {reason}: give the class "
            f"another name."
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"Two classes of data set '{data}' have the name {twice!r}: give one another name."
        )


def data_set_kind(name: str) -> str:
    """Return the name without a path: "imagefolder" for "imagefolder:PATH", else `name` itself."""
    return FOLDER if name.partition(":")[0] == FOLDER else name
