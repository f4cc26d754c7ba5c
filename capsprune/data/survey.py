"""All image files of a data set, decoded by several threads, and what is peculiar about them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capsprune.data.decoding import Decoding, UnreadableImageError, decode, examine, scale
from capsprune.errors import DataError, listed

OnStep = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total (0 if unknown)."""

_CHUNK = 64
_DARK = 255 / 16
"""Mean of deep images below which a user is told; 12 bits that are taken for 16 stay below."""

_NAMED = 10
"""Files or classes that a message names at most."""


@dataclass(frozen=True)
class ClassFiles:
    """Image files with their classes, and what messages call them.

    Attributes:
        paths: N files.
        labels: int64 [N], positions in the names.
        class_names: C names.
        where: name of the data set.
    """

    paths: Sequence[Path]
    labels: np.ndarray
    class_names: Sequence[str]
    where: str


@dataclass(frozen=True)
class Survey:
    """What came of looking at every file.

    Attributes:
        decoding: how all of them become eight bits.
        pixels: uint8 [N, 3, S, S], if they were to be kept.
        notes: sentences on what a user should know.
    """

    decoding: Decoding
    pixels: Tensor | None
    notes: tuple[str, ...]


def decode_all(
    paths: Sequence[Path], size: int, decoding: Decoding, progress: OnStep | None = None
) -> Tensor:
    """Decode N files into uint8 [N, 3, size, size].

    Raises:
        DataError: files cannot be decoded; the message names them.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    view = images.numpy()

    def fill(position: int) -> None:
        view[position] = decode(paths[position], size, decoding)

    _each(paths, range(len(paths)), fill, "Decoding images", progress)
    return images


def verify(
    paths: Sequence[Path], size: int, decoding: Decoding, progress: OnStep | None = None
) -> None:
    """Decode every file as it will be decoded later, and keep nothing.

    Raises:
        DataError: files cannot be decoded; the message names them.
    """
    every = range(len(paths))
    _each(paths, every, lambda i: decode(paths[i], size, decoding), "Checking images", progress)


def survey(
    files: ClassFiles,
    size: int,
    wanted: Decoding,
    *,
    keep: bool,
    progress: OnStep | None = None,
) -> Survey:
    """Look at every file of a data set that is used for the first time.

    Each is decoded once. Deep images (more than 8 bits a pixel) whose value range is left open are
    measured first: one range holds for all of them, from the least to the greatest value, unless
    they fill 16 bits. They are read again only where their pixels are kept.

    Args:
        files: of all sets.
        size: S, side in pixels.
        wanted: how to decode; its value range is settled here if it is None.
        keep: whether to keep the pixels.
        progress: called with what is being done, how much is done, and the total.

    Raises:
        DataError: files cannot be decoded, or all images of a class come out as one colour.
    """
    paths, count = files.paths, len(files.paths)
    pixels = torch.empty(count, 3, size, size, dtype=torch.uint8) if keep else None
    view = None if pixels is None else pixels.numpy()
    settled = wanted.value_range is not None
    bounds = np.empty((count, 2, 3), dtype=np.uint8)  # least and greatest value of each channel
    values = np.full((count, 3), np.nan)  # least, greatest and mean of deep images
    deep, real, several, transparent = np.zeros((4, count), dtype=bool)
    high_bytes = np.full(count, -1, dtype=np.int16)

    def look(position: int) -> None:
        found = examine(paths[position], size, wanted, settled=settled)
        several[position], transparent[position] = found.several, found.transparent
        if found.values is not None:
            deep[position], real[position] = True, not found.whole
            values[position] = found.values
        if found.high_byte is not None:
            high_bytes[position] = found.high_byte
        if found.bounds is not None:
            bounds[position] = found.bounds
        if view is not None and found.pixels is not None:
            view[position] = found.pixels

    title = "Decoding images" if keep else "Checking images"
    _each(paths, range(count), look, title, progress)
    _check_high_bytes(files, high_bytes)

    decoding, notes = wanted, list[str]()
    if deep.any() and not settled:
        chosen = _range_of(values[deep, :2], whole=not real.any())
        if chosen is not None:
            decoding = dataclasses.replace(wanted, value_range=chosen)
            notes.append(
                f"{_images(deep)} of more than 8 bits a pixel: values from {chosen[0]:g} (black) "
                f"to {chosen[1]:g} (white); --value-range LOW,HIGH chooses others"
            )
        low, high = decoding.value_range or (0.0, 65535.0)
        shown = scale(values[deep], (low, high))
        bounds[deep] = shown[:, :2, None]
        if shown[:, 2].mean() < _DARK:
            notes.append(
                f"Most of what they show is nearly black, as few values come near {high:g}: see "
                f"whether a narrower --value-range is better"
            )
        if view is not None:

            def fill(position: int) -> None:
                view[position] = decode(paths[position], size, decoding)

            _each(paths, np.flatnonzero(deep).tolist(), fill, title, progress)
    elif settled and not deep.any():
        notes.append("No image holds more than 8 bits a pixel: --value-range changes nothing")
    if transparent.any() and wanted.background is not None:
        notes.append(
            f"{_images(transparent)} with transparent parts: shown on {wanted.background}; "
            f"--background COLOUR chooses another"
        )
    if several.any():
        first = paths[int(np.flatnonzero(several)[0])]
        notes.append(
            f"{_images(several)} of several frames or pages, such as {first}: the first one of "
            f"each is used"
        )
    _check_contrast(files, bounds, deep, transparent)
    return Survey(decoding, pixels, tuple(notes))


def thread_count() -> int:
    """Number of threads that decode images."""
    return min(8, os.cpu_count() or 1)


def _each(
    paths: Sequence[Path],
    positions: Sequence[int],
    work: Callable[[int], object],
    title: str,
    progress: OnStep | None,
) -> None:
    """Do something with each of these files, by several threads.

    Raises:
        DataError: some cannot be decoded: one sentence for all of them.
    """
    broken: dict[int, UnreadableImageError] = {}

    def run(start: int) -> int:
        stop = min(start + _CHUNK, len(positions))
        for position in positions[start:stop]:
            try:
                work(position)
            except UnreadableImageError as error:
                broken[position] = error
        return stop

    with ThreadPoolExecutor(thread_count()) as pool:
        try:
            for done in pool.map(run, range(0, len(positions), _CHUNK)):
                if progress is not None:
                    progress(title, done, len(positions))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    errors = [broken[position] for position in sorted(broken)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = listed([f"{error.path} ({error.reason})" for error in errors], _NAMED)
        raise DataError(
            f"{len(errors)} of {len(paths)} images cannot be decoded: {named}: replace these files "
            f"or remove them."
        )


def _range_of(values: np.ndarray, whole: bool) -> tuple[float, float] | None:
    """Return the least and greatest of values [N, 2]; None where they fill 16 bits."""
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() == finite.max():
        return None
    low, high = float(finite.min()), float(finite.max())
    if whole and low >= 0 and 2**15 <= high < 2**16:
        return None
    return low, high


def _images(chosen: np.ndarray) -> str:
    count = int(chosen.sum())
    return f"{count} image{'' if count == 1 else 's'}"


def _check_high_bytes(files: ClassFiles, high_bytes: np.ndarray) -> None:
    wide = high_bytes >= 0
    if wide.any() and (greatest := int(high_bytes.max())) < 32:
        first = files.paths[int(np.flatnonzero(wide)[0])]
        raise DataError(
            f"{_images(wide)} of '{files.where}', such as {first}, keep 16 bits a colour but use "
            f"only the lower {8 + greatest.bit_length()}, so that nearly black is left of them: "
            f"save them with 8 bits a colour."
        )


def _check_contrast(
    files: ClassFiles, bounds: np.ndarray, deep: np.ndarray, transparent: np.ndarray
) -> None:
    """Refuse classes of several images that all come out as one colour.

    Args:
        files: N files of C classes.
        bounds: uint8 [N, 2, 3], least and greatest value of each channel of each image.
        deep: bool [N].
        transparent: bool [N].

    Raises:
        DataError: there is such a class.
    """
    classes = len(files.class_names)
    low = np.full((classes, 3), 255, dtype=np.uint8)
    high = np.zeros((classes, 3), dtype=np.uint8)
    np.minimum.at(low, files.labels, bounds[:, 0])
    np.maximum.at(high, files.labels, bounds[:, 1])
    several = np.bincount(files.labels, minlength=classes) > 1
    flat = np.flatnonzero((low == high).all(axis=1) & several)
    if not len(flat):
        return
    colours = {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in low[flat].tolist()}
    remedies = []
    members = np.isin(files.labels, flat)
    if deep[members].any():
        remedies.append("give --value-range LOW,HIGH")
    if transparent[members].any():
        remedies.append("give another --background")
    remedies.append("replace them")
    if len(flat) == classes and len(colours) == 1:
        which = f"All {len(files.paths)} images"
    else:
        names = listed([f"'{files.class_names[label]}'" for label in flat.tolist()], _NAMED)
        which = f"All images of class {names}" if len(flat) == 1 else f"In classes {names}, all"
    raise DataError(
        f"{which} of data set '{files.where}' come out as one colour "
        f"({listed(sorted(colours))}), which leaves nothing to learn: {' or '.join(remedies)}."
    )
