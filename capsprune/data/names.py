"""The names of the data sets, and nothing that takes long to import."""

from __future__ import annotations

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


def known_data_set(name: str) -> None:
    """Check that `name` names a data set, without looking for the data themselves.

    Args:
        name: one of `DATA_SETS`, where PATH stands for a folder.

    Raises:
        DataError: it does not; the message names the nearest that do.
    """
    if name in DATA_SETS:
        return
    kind, _, path = name.partition(":")
    if kind != FOLDER:
        raise DataError(unknown_name("data set", name, DATA_SETS))
    if not path.strip():
        raise DataError(
            f"Data set '{name}' names no folder: write {FOLDER}:PATH, "
            f"where PATH holds one folder of images for each class."
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
