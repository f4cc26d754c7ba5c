"""A data set by its name, split into training, validation and test images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from capsprune.data.decoding import Decoding
from capsprune.data.images import ImageSet
from capsprune.data.names import (
    FOLDER,
    check_class_names,
    data_set,
    data_set_kind,
    folder_data_set,
    known_data_set,
    written_path,
)
from capsprune.data.source import Request, Source
from capsprune.data.splits import Split, draw_split
from capsprune.data.survey import OnStep
from capsprune.errors import DataError, listed

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
    """Return the folder of data sets: $CAPSPRUNE_DATA, or else ~/.cache/capsprune/data."""
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
    progress: OnStep | None = None,
) -> DataSplits:
    """Load a data set and split it into training, validation and test images.

    Args:
        name: one of `capsprune.data.names.DATA_SETS`; of a folder, "imagefolder:PATH".
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
    source = data_set(name).read(request)
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
