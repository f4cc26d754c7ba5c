import gzip
import io
import os
import struct

import numpy as np
import psutil
import pytest

from capsprune.data.formats import parse_cifar, read_idx
from capsprune.errors import DataError


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


IMAGES = np.arange(2 * 3 * 4).reshape(2, 3, 4)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, suffix):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(idx(IMAGES)) if suffix else idx(IMAGES))
    assert np.array_equal(read_idx(path, 3), IMAGES)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no IDX file"),
        (b"\0\0", "no IDX file"),
        (b"\x80\x04pickle of some kind", "no IDX file"),
        (idx(IMAGES[0, 0]), "no IDX file"),
        (idx(IMAGES)[:-1], "announces 24 bytes of data and holds 23"),
        (idx(IMAGES) + b"x", "announces 24 bytes of data and holds more"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "announces 792.* bytes of data, more than any"),
    ],
)
def test_bad_idx_is_refused(tmp_path, content, cause):
    for path, stored in (
        (tmp_path / "images", content),
        (tmp_path / "images.gz", gzip.compress(content)),
    ):
        path.write_bytes(stored)
        with pytest.raises(DataError, match=cause) as caught:
            read_idx(path, 3)
        assert str(path) in str(caught.value)
        assert "replace it by a whole copy" in str(caught.value)


@pytest.mark.parametrize("shape", [IMAGES.shape, (2**14, 2**7, 2**7), (2**16, 2**7, 2**7)])
def test_a_gzip_bomb_is_not_unpacked(tmp_path, shape):
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1) as file:
        file.write(idx(np.zeros((0, 0, 0)))[:4] + struct.pack(">3I", *shape))
        for _ in range(2**9 + 1):
            file.write(bytes(2**20))
    path = tmp_path / "images.gz"
    path.write_bytes(content.getvalue())
    process = psutil.Process()
    before = process.memory_info().rss
    with pytest.raises(DataError, match="replace it by a whole copy"):
        read_idx(path, 3)
    assert process.memory_info().rss - before < 2**28


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "images")
    with pytest.raises(DataError, match=r"images is no regular file: replace it"):
        read_idx(tmp_path / "images", 3)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(idx(IMAGES))[:-9], b"no gzip", b"\x1f\x8b\x08"],
    ids=["cut off", "no gzip", "header alone"],  # gzip writes the time, so that bytes name no test
)
def test_damaged_gzip_is_refused(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged or truncated.*replace it by a whole copy"):
        read_idx(path, 3)


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_records(label_bytes):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    labels = np.array([[9, 4], [9, 0], [9, 7]], dtype=np.uint8)[:, 2 - label_bytes :]
    content = np.concatenate([labels, pixels], axis=1).tobytes()
    arguments = {"label_bytes": label_bytes, "classes": 8, "source": "x.bin"}
    got, classes = parse_cifar(content, **arguments)
    assert np.array_equal(got, pixels.reshape(3, 3, 32, 32))
    assert classes.tolist() == [4, 0, 7]
    for bad in (content[:-1], b""):
        with pytest.raises(DataError, match=r"x\.bin is truncated.*replace it by a whole copy"):
            parse_cifar(bad, **arguments)
    with pytest.raises(DataError, match=r"x\.bin is foreign \(it holds class 7 of 0 to 4\)"):
        parse_cifar(content, **{**arguments, "classes": 5})
