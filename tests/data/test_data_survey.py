"""What is peculiar about the files of a folder is found before anything trains."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from capsprune.data import file_sources
from capsprune.data.images import FileImages, TensorImages
from capsprune.data.sources import load_data
from capsprune.data.splits import Split
from capsprune.errors import DataError

KEPT = pytest.mark.parametrize("kept", [True, False], ids=["in memory", "from files"])


def shares(label, number, side=8):
    """A picture in 0 to 0.9: bright above in class 0, bright below in class 1."""
    picture = np.random.default_rng([label, number]).uniform(0, 0.3, (side, side))
    picture[side // 2 * label : side // 2 * (label + 1)] += 0.6
    return picture


def scaled(dtype, factor, offset=0):
    return lambda picture: Image.fromarray((picture * factor + offset).astype(dtype))


def rgba(picture):
    pixels = np.zeros((*picture.shape, 4), np.uint8)
    pixels[..., 3] = picture * 255
    return Image.fromarray(pixels)


EIGHT_BITS = scaled(np.uint8, 255)


def write(root, make=EIGHT_BITS, suffix="png", count=10, names=("upper", "lower")):
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            make(shares(label, number)).save(root / name / f"{number}.{suffix}")
    return root


def load(root, kept=True, monkeypatch=None, **options):
    if not kept:
        monkeypatch.setattr(file_sources, "MEMORY_BUDGET", 0)
    return load_data(f"imagefolder:{root}", image_size=8, **options)


def every_pixel(data):
    sets = (data.train, data.validation, data.test)
    return np.concatenate([each.__getitems__(range(len(each)))[0].numpy() for each in sets])


# One scaling for the whole data set

DEEP = {
    "12 bits in 16": (scaled(np.uint16, 4095), "png"),
    "8 bits in 16": (scaled(np.uint16, 255), "png"),
    "0 to 1": (scaled(np.float32, 1), "tif"),
    "8 bits in 32": (scaled(np.int32, 255), "tif"),
    "signed": (scaled(np.int32, 2000, -1000), "tif"),
    "32 bits": (scaled(np.int32, 2**30), "tif"),
}


@KEPT
@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_share_one_scaling(tmp_path, monkeypatch, kind, kept):
    make, suffix = DEEP[kind]
    data = load(write(tmp_path, make, suffix), kept, monkeypatch)
    assert isinstance(data.train, TensorImages if kept else FileImages)
    values = np.stack(
        [
            np.asarray(Image.open(tmp_path / name / f"{number}.{suffix}")).astype(float)
            for name in ("upper", "lower")
            for number in range(10)
        ]
    )
    low, high = values.min(), values.max()
    assert data.split.value_range == (low, high)
    right = np.rint((values - low) / (high - low) * 255)
    assert np.isin(every_pixel(data), right).all()
    assert every_pixel(data).min() == 0 and every_pixel(data).max() == 255
    (note,) = data.notes
    assert note.startswith("20 images of more than 8 bits a pixel") and "--value-range" in note
    again = load(tmp_path, split=Split.from_json(data.split.to_json()))
    assert again.notes == () and again.split == data.split
    assert np.array_equal(every_pixel(again), every_pixel(data))


@KEPT
def test_given_range_wins_and_is_kept(tmp_path, monkeypatch, kept):
    write(tmp_path, scaled(np.int32, 2000, -1000), "tif")
    data = load(tmp_path, kept, monkeypatch, value_range=(-1000.0, 3000.0))
    assert data.split.value_range == (-1000, 3000) and data.notes == ()
    assert every_pixel(data).max() < 128
    with pytest.raises(DataError, match=r"with value-range -1000,3000, not 0,1: leave .* out"):
        load(tmp_path, split=data.split, value_range=(0.0, 1.0))


def test_full_16_bits_stay_as_they_are(tmp_path):
    data = load(write(tmp_path, scaled(np.uint16, 65535)))
    assert data.split.value_range is None and data.notes == ()
    stored = np.asarray(Image.open(tmp_path / "upper" / "0.png"))
    assert (stored >> 8).max() in every_pixel(data)


@pytest.mark.parametrize("kept", [True, False])
def test_a_few_bright_spots_that_leave_all_else_black_are_told(tmp_path, monkeypatch, kept):
    write(tmp_path, scaled(np.uint16, 4095))
    spot = np.asarray(Image.open(tmp_path / "upper" / "0.png")).copy()
    spot[3, 3] = 65535
    Image.fromarray(spot).save(tmp_path / "upper" / "0.png")
    (note,) = load(tmp_path, kept, monkeypatch).notes
    assert "nearly black" in note and "--value-range" in note


def test_8_bits_stay_as_they_are_and_say_so_where_a_range_is_given(tmp_path):
    plain = load(write(tmp_path))
    assert plain.notes == () and plain.split.value_range is None
    ranged = load(tmp_path, value_range=(0.0, 10.0))
    assert np.array_equal(every_pixel(plain), every_pixel(ranged))
    assert "--value-range changes nothing" in ranged.notes[0]


@pytest.mark.parametrize("kept", [True, False])
def test_each_file_of_8_bits_is_read_once(tmp_path, monkeypatch, kept):
    write(tmp_path)
    opened = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, **more: opened.append(path) or real(path, **more)
    )
    data = load(tmp_path, kept, monkeypatch)
    assert len(opened) == len(set(opened)) == 20
    if not kept:
        load(tmp_path, split=data.split)
        assert len(opened) == 20


def png_of_16_bits(values):
    """What Pillow cannot write: a PNG with 16 bits for each of three colours."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    return content


@pytest.mark.parametrize("greatest", [4095, 65535])
def test_colours_of_16_bits_that_use_fewer_are_refused(tmp_path, greatest):
    for label, name in enumerate(("upper", "lower")):
        (tmp_path / name).mkdir()
        for number in range(3):
            values = shares(label, number)[..., None] * [greatest, greatest, 3000]
            (tmp_path / name / f"{number}.png").write_bytes(png_of_16_bits(values))
    if greatest == 65535:
        assert every_pixel(load(tmp_path)).max() > 200
        return
    with pytest.raises(DataError, match=r"16 bits a colour but use only the lower 12.*save them"):
        load(tmp_path)


# Transparency, frames


@KEPT
def test_transparent_images_are_shown_on_white_or_what_is_given(tmp_path, monkeypatch, kept):
    data = load(write(tmp_path, rgba), kept, monkeypatch)
    assert data.split.background == "#ffffff"
    assert "shown on #ffffff; --background" in data.notes[0]
    dark = load(tmp_path, background="#000080")
    red, _, blue = dark.train[0][0]
    assert red.max() == 0 and blue.max() > 100
    assert np.array_equal(every_pixel(load(tmp_path, split=dark.split)), every_pixel(dark))
    with pytest.raises(DataError, match="with background #000080, not #ffffff"):
        load(tmp_path, split=dark.split, background="#ffffff")


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp"])
def test_first_of_several_frames_is_used_and_said_once(tmp_path, suffix):
    write(tmp_path)
    first, second = (Image.fromarray((shares(0, n) * 255).astype(np.uint8)) for n in (20, 21))
    path = tmp_path / "upper" / f"9.{suffix}"
    first.save(path, save_all=True, append_images=[second])
    data = load(tmp_path)
    assert f"1 image of several frames or pages, such as {path}: the first" in data.notes[0]
    assert load(tmp_path, split=data.split).notes == ()


# Nothing to see


@KEPT
@pytest.mark.parametrize(
    ("make", "suffix", "options", "cause"),
    [
        (lambda _: Image.new("L", (8, 8), 7), "png", {}, r"All 20 images .* \(#070707\)"),
        (lambda _: Image.new("I;16", (8, 8), 7), "png", {}, r"All 20 images .*--value-range"),
        (lambda p: rgba(p), "png", {"background": "#000000"}, r"All 20 images .*--background"),
        (scaled(np.float32, 1), "tif", {"value_range": (5.0, 6.0)}, r"All 20 .*--value-range"),
        (scaled(np.float32, np.nan), "tif", {}, r"All 20 images"),
    ],
)
def test_images_of_one_colour_are_refused(
    tmp_path, monkeypatch, make, suffix, options, cause, kept
):
    with pytest.raises(DataError, match=cause):
        load(write(tmp_path, make, suffix), kept, monkeypatch, **options)


@KEPT
def test_a_class_of_one_colour_is_named(tmp_path, monkeypatch, kept):
    write(tmp_path)
    for number in range(10):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "lower" / f"{number}.png")
    with pytest.raises(DataError, match=r"All images of class 'lower' .*\(#ff0000\).*replace"):
        load(tmp_path, kept, monkeypatch)


# Files that cannot be decoded


@KEPT
def test_all_bad_files_are_named_at_once(tmp_path, monkeypatch, kept):
    write(tmp_path, count=20)
    bad = [tmp_path / name / f"{number}.png" for name in ("lower", "upper") for number in range(7)]
    for path in bad[:2]:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        load(tmp_path, kept, monkeypatch)
    assert str(caught.value).startswith("2 of 40 images cannot be decoded: ")
    assert all(str(path) in str(caught.value) for path in bad[:2])
    for path in bad:
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"14 of 40 images .* and 4 more: replace these files"):
        load(tmp_path, kept, monkeypatch)


def test_files_that_are_not_kept_are_verified_once_until_they_change(tmp_path, monkeypatch):
    told = []
    options = {"kept": False, "monkeypatch": monkeypatch}
    data = load(write(tmp_path), **options, progress=lambda *step: told.append(step))
    assert told[-1] == ("Checking images", 20, 20) and data.split.verified
    told.clear()
    again = load(tmp_path, **options, split=data.split, progress=lambda *step: told.append(step))
    assert told == [] and again.split == data.split
    test_image = tmp_path / "upper" / "0.png"
    whole = test_image.read_bytes()
    test_image.write_bytes(whole[:60])
    with pytest.raises(DataError, match=r"0\.png cannot be decoded"):
        load(tmp_path, **options, split=data.split)
    test_image.write_bytes(whole)
    assert load(tmp_path, **options, split=data.split).split.test == data.split.test


@KEPT
def test_a_replaced_file_keeps_the_split_and_is_told_once(tmp_path, monkeypatch, kept):
    data = load(write(tmp_path), kept, monkeypatch, seed=3)
    Image.fromarray((shares(0, 99, side=20) * 255).astype(np.uint8)).save(
        tmp_path / "upper" / "0.png"
    )
    again = load(tmp_path, split=data.split)
    assert (again.split.test, again.split.fingerprint) == (data.split.test, data.split.fingerprint)
    assert "were replaced" in again.notes[0] and len(again.notes) == 1
    assert load(tmp_path, split=again.split).notes == ()


def test_copied_files_fit_without_a_word(tmp_path):
    data = load(write(tmp_path))
    for path in tmp_path.rglob("*.png"):
        os.utime(path, (1, 1))
    again = load(tmp_path, split=data.split)
    assert again.notes == ()


def test_splits_of_older_versions_fit_and_read_their_images_as_then(tmp_path):
    data = load(write(tmp_path, rgba))
    kept = {"data", "seed", "method", "size", "counts", "validation", "test", "unused"}
    older = {
        name: value for name, value in json.loads(data.split.to_json()).items() if name in kept
    }
    older["fingerprint"] = data.split.file_sizes  # which held the sizes then
    with pytest.raises(DataError, match="has changed"):
        load(tmp_path, split=Split.model_validate({**older, "fingerprint": "0" * 64}))
    again = load(tmp_path, split=Split.model_validate(older))
    assert every_pixel(again).max() == 0  # black on black, as the run was trained on
    assert again.split.fingerprint == data.split.fingerprint
    assert again.split.test == data.split.test and again.split.background is None


def test_numbers_in_a_split_are_checked():
    good = json.loads(load_data("digits", image_size=8).split.to_json())
    for change in ({"value_range": [1, 1]}, {"value_range": [0]}, {"background": "whitish"}):
        with pytest.raises(DataError, match="stored split cannot be used"):
            Split.from_json(json.dumps({**good, **change}))


# Classes that are missing


def test_classes_without_images_to_score_on_are_named(tmp_path):
    names = tuple(f"class {number:02}" for number in range(14))
    root = write(
        tmp_path, lambda p: Image.fromarray((p * 255).astype(np.uint8)), count=2, names=names
    )
    data = load(root)
    assert len(data.notes) == 2
    for note, what, images in zip(
        data.notes, ("validation", "test"), (data.validation, data.test), strict=True
    ):
        missing = 14 - len(set(images.labels.tolist()))
        assert note.startswith(f"The {what} set holds no image of {missing} of the 14 classes: ")
        assert f" and {missing - 10} more" in note if missing > 10 else "more" not in note
