"""What a reader of a data set is asked for, and what it gives."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capsprune.data.decoding import Decoding
from capsprune.data.download import fetch
from capsprune.data.images import ImageSet
from capsprune.data.splits import Split
from capsprune.data.survey import Progress
from capsprune.files import holding, make_folder


@dataclass(frozen=True)
class Request:
    """What is asked for; see `capsprune.data.sources.load_data`."""

    name: str
    root: Path
    image_size: int
    download: bool
    progress: Progress | None
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
