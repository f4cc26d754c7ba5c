"""One image file becomes a square of RGB pixels, by rules that hold for a whole data set."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from capsprune.errors import DataError

CROP_SHARE = 7 / 8
"""The part of a large image's shorter side that its centre crop keeps."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
        *(".pbm", ".pgm", ".ppm", ".pnm"),
    }
)

# A file is read by its content, whatever its name: by readers of plain pictures only, not by those
# that start other programs (EPS), or that take nearly any bytes for an image (TGA).
_FORMATS = (
    *("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"),
    "ICO",
)
_ORIENTATION, _BITS, _FORMAT = 0x0112, 258, 339  # tags of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(DataError):
    """An image file cannot be decoded.

    Args:
        path: the file.
        reason: why.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"Image {path} cannot be decoded ({reason}): replace the file or remove it."
        )


@dataclass(frozen=True)
class Decoding:
    """How the files of a data set become eight bits a channel.

    Attributes:
        value_range: which values of images that hold more than 8 bits a pixel become black and
            white; with None, integers are read as 16 bits.
        background: what transparent images are composed onto, as #rrggbb; with None, transparency
            is left out, and what lies below is shown.
    """

    value_range: tuple[float, float] | None = None
    background: str | None = None


@dataclass(frozen=True)
class Examined:
    """What was found in a file.

    Attributes:
        pixels: uint8 [3, S, S]; None if the image is deep and its value range is left open.
        bounds: uint8 [2, 3], least and greatest of these in each channel; None likewise.
        values: least and greatest finite value and the mean of all if it is deep, that is, holds
            more than 8 bits a pixel, or signed or real numbers; NaN where none is finite.
        whole: whether a deep image holds integers.
        several: whether it holds several frames or pages.
        transparent: whether some of it is transparent.
        high_byte: greatest upper byte if it has colours of 16 bits, of which Pillow reads no more.
    """

    pixels: np.ndarray | None
    bounds: np.ndarray | None
    values: tuple[float, float, float] | None = None
    whole: bool = False
    several: bool = False
    transparent: bool = False
    high_byte: int | None = None


def decode(path: Path, size: int, decoding: Decoding) -> np.ndarray:
    """Decode one file into a square RGB image, uint8 [3, size, size].

    The centre is cut out and resized: 7/8 of the shorter side, but never fewer than `size` pixels
    where the image has them, so that no image is enlarged only to be cropped again. Of several
    frames or pages, the first is taken.

    Args:
        path: the file.
        size: S, in pixels.
        decoding: by which rules.

    Raises:
        UnreadableImageError: the file cannot be read, is truncated, or is no image.
    """
    with _opened(path) as file:
        share = _draft(file, size)
        return _pixels(_square(_as_rgb(file, decoding), _orientation(file), share, size))


def examine(path: Path, size: int, decoding: Decoding, *, settled: bool) -> Examined:
    """Decode one file as `decode` does, and tell what is peculiar about it.

    Args:
        path: the file.
        size: S, in pixels.
        decoding: by which rules.
        settled: whether its value range is that of the data set; if not, deep images are measured
            and not converted.

    Raises:
        UnreadableImageError: the file cannot be read, is truncated, or is no image.
    """
    with _opened(path) as file:
        tiles = getattr(file, "tile", [])
        wide = any(";16" in str(tile[3]) for tile in tiles) and not _is_deep(file)
        share = _draft(file, size)
        file.load()
        values = _values(file) if _is_deep(file) else None
        square = None
        if values is None or settled:
            square = _square(_as_rgb(file, decoding), _orientation(file), share, size)
        return Examined(
            None if square is None else _pixels(square),
            None if square is None else np.array(square.getextrema(), dtype=np.uint8).T,
            values,
            whole=file.mode != "F",
            transparent=_is_transparent(file),
            high_byte=_greatest(file) if wide else None,
            several=_has_several_frames(file),  # last, as it may move on to the next one
        )


def scale(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Map values to uint8, the range to 0 to 255; what lies outside is clipped, NaN is black."""
    low, high = value_range
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.nan_to_num(shares, nan=0.0).clip(0, 1) * 255).astype(np.uint8)


def check_value_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """Check the values that are to become black and white.

    Raises:
        ValueError: they are no finite numbers in ascending order.
    """
    low, high = value_range
    if not (low < high and math.isfinite(high - low)):
        raise ValueError("it should be two finite numbers, the lesser one first, such as 0,4095")
    return value_range


def check_colour(colour: str) -> str:
    """Return a colour, given by name or as #rrggbb, as #rrggbb.

    Raises:
        ValueError: it is no colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(colour)[:3]
    except ValueError:
        raise ValueError("it should be a colour such as white, black or #ffcc00") from None
    return f"#{red:02x}{green:02x}{blue:02x}"


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong with it while the context lasts names the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("no regular file")
        with Image.open(path, formats=_formats()) as file:
            yield file
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        reason = str(error).rstrip(".") or type(error).__name__
        raise UnreadableImageError(path, reason) from error


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    # What Pillow finds odd about a block beside the picture is of no use to a user.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _draft(file: Image.Image, size: int) -> float:
    """Return what part of the shorter side to keep; have a JPEG decoded no larger than needed."""
    share = min(1.0, max(size / min(file.size), CROP_SHARE))
    # A JPEG can be decoded at a fraction of its size, which is several times faster.
    file.draft("RGB", (round(size / share), round(size / share)))
    return share


def _square(image: Image.Image, orientation: int, share: float, size: int) -> Image.Image:
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    side = share * min(image.size)
    left, top = (int(length - side) // 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _pixels(square: Image.Image) -> np.ndarray:
    return np.asarray(square).transpose(2, 0, 1)


def _has_several_frames(file: Image.Image) -> bool:
    try:
        return bool(getattr(file, "is_animated", False))
    except Exception:  # the second one is damaged, and not needed
        return True


# Deep images


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _numbers(image: Image.Image) -> np.ndarray:
    """Return the values of a deep image as they are meant: Pillow reads 32 bits as signed."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if values.dtype == np.int32 and tags.get(_BITS) == (32,) and tags.get(_FORMAT, (1,)) == (1,):
        return values.view(np.uint32)
    return values


def _values(image: Image.Image) -> tuple[float, float, float]:
    values = _numbers(image)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return math.nan, math.nan, math.nan
    return float(values.min()), float(values.max()), float(values.mean(dtype=np.float64))


def _greatest(image: Image.Image) -> int:
    return int(np.asarray(image).max())


def _as_rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    image.load()
    if _is_deep(image):
        values = _numbers(image)
        if decoding.value_range is not None:
            eight_bits = scale(values, decoding.value_range)
        elif values.dtype.kind == "f":
            eight_bits = np.nan_to_num(values).clip(0, 255).astype(np.uint8)
        else:  # Pillow would clip 16 bits to 8 instead of scaling them
            eight_bits = (values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(eight_bits)
    elif decoding.background is not None and _may_be_transparent(image):
        shown = image.convert("RGBA")
        below = Image.new("RGBA", shown.size, decoding.background)
        image = Image.alpha_composite(below, shown)
    return image.convert("RGB")


# Transparency


def _may_be_transparent(image: Image.Image) -> bool:
    """Return whether there is an alpha channel, a palette with one, or a transparent colour."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _is_transparent(image: Image.Image) -> bool:
    if _is_deep(image) or not _may_be_transparent(image):
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] != 255


# Orientation


def _orientation(file: Image.Image) -> int:
    """Read EXIF's orientation, 1 to 8; 1 (upright) where there is none that can be read.

    An EXIF block may be damaged, or hold tags of other types than the standard's: it is no part of
    the picture, so it never stands in its way.
    """
    for read in (_orientation_by_pillow, _orientation_by_hand):
        try:
            number = _as_number(read(file))
        except Exception:  # damaged blocks make Pillow raise nearly anything
            continue
        if number in _TURNS:
            return number
    return 1


def _orientation_by_pillow(file: Image.Image) -> Any:
    return file.getexif().get(_ORIENTATION)


def _orientation_by_hand(file: Image.Image) -> Any:
    """Look for the one tag among the entries of the first directory, as many as there are."""
    block = file.info.get("exif")
    if not isinstance(block, bytes):
        return None
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", block, entry)
        if tag == _ORIENTATION:
            letter = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i"}.get(kind, "c")
            return struct.unpack_from(f"{order}{letter}", block, entry + 8)[0]
    return None


def _as_number(value: Any) -> int:
    """Read a number that may stand alone, in a tuple, in a byte, in text, or as a fraction."""
    while isinstance(value, tuple):
        value = value[0]
    if isinstance(value, bytes) and len(value) == 1 and not value.isdigit():
        return value[0]
    if isinstance(value, str | bytes):
        return int(value.strip(b"\0 " if isinstance(value, bytes) else "\0 "))  # type: ignore[arg-type]
    return int(value)
