"""The names of the data sets, and nothing that takes long to import."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from capsprune.bounds import MAX_NAME
from capsprune.errors import DataError, unknown_name

FOLDER = "imagefolder"

DATA_SETS: tuple[str, ...] = (
    "digits",
    "fashion-mnist",
    "cifar10",
    "cifar100",
    "tiny-imagenet",
    f"{FOLDER}:PATH",
)


def known_data_set(name: str) -> str:
    """Check that `name` names a data set, without looking for the data themselves.

    Args:
        name: one of `DATA_SETS`, where PATH stands for a folder.

    Returns:
        The name as it is written down: the path of a folder is absolute in it.

    Raises:
        DataError: it does not; the message names the nearest that do.
    """
    if name in DATA_SETS and not name.startswith(FOLDER):
        return name
    kind, _, path = name.partition(":")
    if kind != FOLDER:
        raise DataError(unknown_name("data set", name, DATA_SETS))
    if not path.strip():
        raise DataError(
            f"Data set '{name}' names no folder: write {FOLDER}:PATH, "
            f"where PATH holds one folder of images for each class."
        )
    return folder_data_set(native_path(path))


def folder_data_set(folder: str | Path) -> str:
    """Give the name of the data set that lies in a folder: its path is absolute.

    Raises:
        DataError: there can be no such folder, or its path is no UTF-8.
    """
    return f"{FOLDER}:{written_path(folder)}"


def data_set_folder(name: str) -> Path:
    """The folder of "imagefolder:PATH"."""
    return native_path(name.partition(":")[2])


def written_path(folder: str | Path) -> str:
    """Give the path of a folder as it is written down: absolute, and the same in every locale.

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
    """A path as this process's locale spells it, out of one that was written down, or typed."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:  # Bytes that the locale cannot read: as they were typed.
        return Path(path)
    return Path(path if os.path.lexists(path) else os.fsdecode(encoded))


def utf8_name(folder: Path) -> str:
    """The name of a folder, which is UTF-8 whatever the locale.

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
    """The name without the path: "imagefolder" for "imagefolder:PATH", else `name` itself."""
    return name.partition(":")[0]


#: Pixels a side shown to the network: the paper's for its data sets.
_IMAGE_SIZES = {
    "digits": 32,
    "fashion-mnist": 32,
    "cifar10": 64,
    "cifar100": 64,
    "tiny-imagenet": 224,
    FOLDER: 224,
}


def default_image_size(name: str) -> int:
    """Pixels a side at which a data set is shown to a network unless another size is asked for."""
    return _IMAGE_SIZES[data_set_kind(name)]
