"""What is known of a data set, what its reader is asked for, and what that returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capsprune.data.augmentation import Augmentation
from capsprune.data.decoding import Decoding
from capsprune.data.download import fetch
from capsprune.data.images import ImageSet
from capsprune.data.splits import Split
from capsprune.data.survey import OnStep
from capsprune.files import holding, make_folder
from capsprune.schedule import LONG, Schedule, Training


@dataclass(frozen=True)
class Request:
    """What is asked for; see `capsprune.data.sources.load_data`."""

    name: str
    root: Path
    image_size: int
    download: bool
    progress: OnStep | None
    #: How files are to become pixels where no split says it.
    decoding: Decoding
    split: Split | None


@dataclass(frozen=True)
class Source:
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


@dataclass(frozen=True)
class DataSet:
    """All that is known of a data set: an entry of `capsprune.data.names.DATA_SETS`.

    Another package adds one by

        DATA_SETS.register("mine", "in a few words")(DataSet(read_mine, image_size=64))

    Attributes:
        read: reads it.
        image_size: pixels a side at which it is shown to a network unless another size is asked
            for.
        augmentation: what training does to its images.
        schedules: how long and how fast what is trained on it.
        places: where its files may lie, as seen from the folder of data sets; any one is enough.
            None where there is nothing to look for.
        origin: where there is nothing to look for, what it comes from.
        remedy: how to get what is missing; "" where `train` fetches it.
    """

    read: Callable[[Request], Source]
    image_size: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    schedules: Mapping[Training, Schedule] = field(default_factory=lambda: LONG)
    places: tuple[str, ...] = ()
    origin: str = "code that registers it"
    remedy: str = ""


def fetch_once(request: Request, url: str, target: Path, md5: str) -> None:
    """Download a file of a data set, unless another process does so meanwhile.

    Args:
        request: for the data set.
        url: where the file comes from.
        target: its final name.
        md5: hexadecimal checksum of the whole file.

    Raises:
        DataError: it may not or cannot be downloaded, or arrives damaged.
    """
    if not request.download:
        fetch(request.name, url, target, md5, download=False, progress=None)
    with locked(request.root):
        if not target.is_file():  # another process may have fetched it meanwhile
            fetch(request.name, url, target, md5, download=True, progress=request.progress)


def locked(root: Path) -> AbstractContextManager[None]:
    """Keep other processes from changing the data sets in a folder, which is made."""
    make_folder(root)
    return holding(root / ".lock")
