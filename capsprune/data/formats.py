"""Binary files of images: the IDX files of the MNIST family and the records of CIFAR."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from capsprune.errors import DataError
from capsprune.files import BadFileError, read_bytes

_UNSIGNED_BYTE = 0x08
_CIFAR_PIXELS = 3 * 32 * 32
#: Bytes of an IDX file, at most: five times what the largest of Fashion-MNIST has.
_IDX_LIMIT = 2**28


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or compressed by gzip.

    Args:
        path: the file; it counts as compressed if its name ends in .gz.
        dimensions: how many it must have: 3 for images, 1 for labels.

    Returns:
        uint8, of the shape that the file states.

    Raises:
        DataError: the file is truncated, or is no such file.
    """
    remedy = "replace it by a whole copy, or delete it so that it is fetched again."
    header = 4 + 4 * dimensions
    try:
        stored = read_bytes(path, _IDX_LIMIT)
        # Never more than is announced is unpacked: a small file may hold any number of bytes.
        source = gzip.GzipFile(fileobj=io.BytesIO(stored)) if path.suffix == ".gz" else None
        start = stored[:header] if source is None else source.read(header)
        if len(start) < header or start[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
            raise DataError(
                f"File {path} is no IDX file of bytes in {dimensions} dimension(s): {remedy}"
            )
        shape = struct.unpack(f">{dimensions}I", start[4:])
        announced = math.prod(shape)
        if announced > _IDX_LIMIT:
            raise DataError(
                f"File {path} announces {announced} bytes of data, more than any data set known "
                f"here has: {remedy}"
            )
        content = stored[header:] if source is None else source.read(announced + 1)
    except BadFileError as error:
        raise DataError(f"File {path} {error}: {remedy}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"File {path} is damaged or truncated ({error}): {remedy}") from error
    # The header is only believed where the bytes bear it out.
    if announced != len(content):
        held = len(content) if len(content) < announced else "more"
        raise DataError(
            f"File {path} announces {announced} bytes of data and holds {held}: {remedy}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def parse_cifar(
    content: bytes, *, label_bytes: int, classes: int, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Parse a binary CIFAR file: records of labels and 3072 bytes of pixels, nothing pickled.

    Args:
        content: of the file.
        label_bytes: before the pixels of a record; the last of them is the class.
        classes: number of classes.
        source: where the content comes from, for messages.

    Returns:
        uint8 [N, 3, 32, 32] and int64 [N].

    Raises:
        DataError: the content is truncated, or is no such file.
    """
    remedy = "replace it by a whole copy of the binary version."
    record = label_bytes + _CIFAR_PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"File {source} is truncated or foreign ({len(content)} bytes are no whole number of "
            f"records of {record}): {remedy}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(
            f"File {source} is foreign (it holds class {labels.max()} of 0 to {classes - 1}): "
            f"{remedy}"
        )
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels
