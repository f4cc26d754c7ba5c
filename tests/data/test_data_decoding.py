import io
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from capsprune.data import decoding
from capsprune.data.decoding import (
    IMAGE_SUFFIXES,
    Decoding,
    check_colour,
    check_value_range,
    decode,
    examine,
)
from capsprune.data.walk import is_image
from capsprune.errors import DataError

PLAIN = Decoding()
WHITE = Decoding(background="#ffffff")
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8)


def save(path, array, **options):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **options)
    return path


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_image_of_the_right_size_is_kept(tmp_path):
    array = noise(8, 8)
    path = save(tmp_path / "a.png", array)
    assert np.array_equal(decode(path, 8, PLAIN), array.transpose(2, 0, 1))


def test_slightly_larger_image_is_cropped_but_not_resized(tmp_path):
    array = noise(16, 20)
    path = save(tmp_path / "a.png", array)
    assert np.array_equal(decode(path, 14, PLAIN), array[1:15, 3:17].transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(("height", "width"), [(5, 9), (64, 40), (200, 300), (1, 30_000)])
def test_any_shape_becomes_a_square(tmp_path, height, width, suffix):
    array = np.full((height, width, 3), (200, 100, 50))
    out = decode(save(tmp_path / f"a.{suffix}", array), 16, PLAIN)
    assert out.shape == (3, 16, 16) and out.dtype == np.uint8
    assert np.abs(out.reshape(3, -1).T.astype(int) - (200, 100, 50)).max() <= 3


# Kinds of pixels


def as_written(image, suffix, **options):
    """How a picture looks that is saved under this suffix, and what is peculiar about it."""
    path = options.pop("folder") / f"a{suffix}"
    image.save(path, **options)
    return path


COLOURS = noise(8, 8)
KINDS = {
    "grey": (Image.fromarray(RAMP), ".png", RAMP),
    "PGM": (Image.fromarray(RAMP), ".pgm", RAMP),
    "PNM": (Image.fromarray(COLOURS), ".pnm", COLOURS),
    "BMP": (Image.fromarray(COLOURS), ".bmp", COLOURS),
    "full 16 bits": (Image.fromarray(RAMP.astype(np.uint16) * 1024), ".png", RAMP * 4),
    "full 16 bits of PGM": (Image.fromarray(RAMP.astype(np.uint16) * 1024), ".pgm", RAMP * 4),
    "one bit": (Image.fromarray(RAMP > 31), ".png", (RAMP > 31) * 255),
    "one bit of PBM": (Image.fromarray(RAMP > 31), ".pbm", (RAMP > 31) * 255),
    "palette": (Image.fromarray(RAMP), ".gif", RAMP),
    "opaque alpha": (
        Image.fromarray(np.dstack([COLOURS, np.full((8, 8), 255, np.uint8)])),
        ".png",
        COLOURS,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_come_out_as_any_viewer_shows_them(tmp_path, kind):
    image, suffix, right = KINDS[kind]
    assert suffix in IMAGE_SUFFIXES
    path = as_written(image, suffix, folder=tmp_path)
    right = right if right.ndim == 3 else np.dstack([right] * 3)
    assert np.array_equal(decode(path, 8, WHITE), right.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES | {".JFIF", ".Png"}))
def test_every_known_suffix_can_be_read(tmp_path, suffix):
    image = Image.new("1" if suffix == ".pbm" else "RGB", (8, 8), "white")
    path = as_written(image, suffix, folder=tmp_path)
    assert is_image(path) and decode(path, 8, PLAIN).min() > 250


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", ".jpg"), ("YCbCr", ".tif"), ("CMYK", ".tif"), ("RGB", ".webp")]
)
def test_colour_spaces_become_rgb(tmp_path, mode, suffix):
    colour = (200, 100, 50)
    image = Image.new("RGB", (8, 8), colour).convert(mode)
    out = decode(as_written(image, suffix, folder=tmp_path), 8, PLAIN)
    assert np.abs(out.reshape(3, -1).T.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp"])
def test_bytes_after_the_picture_and_a_name_of_another_format_do_no_harm(tmp_path, suffix):
    path = as_written(Image.fromarray(COLOURS), suffix, folder=tmp_path)
    whole = decode(path, 8, PLAIN)
    path.write_bytes(path.read_bytes() + b"trailing bytes" * 9)
    renamed = path.rename(tmp_path / f"b{'.png' if suffix != '.png' else '.jpg'}")
    assert np.array_equal(decode(renamed, 8, PLAIN), whole)


# Deep images


@pytest.mark.parametrize(
    ("array", "suffix", "value_range"),
    [
        (RAMP.astype(np.uint16) * 65, ".png", (0, 63 * 65)),
        (RAMP.astype(np.uint16), ".png", (0, 63)),
        (RAMP.astype(np.int32) * 30 - 1000, ".tif", (-1000, 890)),
        (RAMP.astype(np.int32) << 20, ".tif", (0, 63 << 20)),
        (RAMP.astype(np.float32) / 63, ".tif", (0, 1)),
        (RAMP.astype(np.float32) / 63 * 1e30, ".tif", (0, 1e30)),
    ],
)
def test_values_are_spread_over_the_range(tmp_path, array, suffix, value_range):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(array).save(path)
    right = np.rint(RAMP / 63 * 255)
    assert np.array_equal(decode(path, 8, Decoding(value_range))[0], right)
    found = examine(path, 8, PLAIN, settled=False)
    assert found.pixels is None and found.values[:2] == pytest.approx(value_range)


def test_what_lies_outside_the_range_is_clipped_and_what_is_no_number_is_black(tmp_path):
    array = np.full((8, 8), 5, dtype=np.float32)
    array[0, :4] = (np.nan, np.inf, -np.inf, 10)
    path = tmp_path / "a.tif"
    Image.fromarray(array).save(path)
    row = decode(path, 8, Decoding((0, 10)))[0, 0]
    assert row.tolist() == [0, 255, 0, 255, 128, 128, 128, 128]
    assert examine(path, 8, PLAIN, settled=False).values[:2] == (5, 10)


def tiff_of_32_bits(values, sample_format):
    """An uncompressed TIFF of one strip; Pillow writes signed integers only."""
    height, width = values.shape
    tags = {256: width, 257: height, 258: 32, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: values.nbytes, 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + values.nbytes) + values.tobytes() + directory


@pytest.mark.parametrize(
    ("dtype", "sample_format", "low", "high"),
    [(np.uint32, 1, 0, 63 << 26), (np.int32, 2, -(32 << 26), 31 << 26)],
)
def test_32_bits_are_signed_or_not_as_the_file_says(tmp_path, dtype, sample_format, low, high):
    values = ((RAMP.astype(np.int64) << 26) + low).astype(dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of_32_bits(values, sample_format))
    assert examine(path, 8, PLAIN, settled=False).values[:2] == (low, high)
    assert np.array_equal(decode(path, 8, Decoding((low, high)))[0], np.rint(RAMP / 63 * 255))


def test_eight_bits_know_no_range(tmp_path):
    path = save(tmp_path / "a.png", RAMP)
    assert np.array_equal(decode(path, 8, Decoding((0, 10)))[0], RAMP)
    assert examine(path, 8, PLAIN, settled=False).values is None


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_ranges_are_finite_and_ascending(value_range):
    with pytest.raises(ValueError, match="two finite numbers"):
        check_value_range(value_range)


# Transparency


def ink(mode):
    """Black on transparent, and half transparent in the last row."""
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:4], alpha[7] = 255, 51
    black = np.zeros((8, 8), dtype=np.uint8)
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(black), Image.fromarray(alpha)]), {}
    if mode == "RGBA":
        return Image.fromarray(np.dstack([black, black, black, alpha])), {}
    if mode == "L":
        alpha[7] = 0
        return Image.fromarray(255 - alpha), {"transparency": 255}
    palette = Image.fromarray((alpha // 51).astype(np.uint8))
    palette = palette.convert("P")
    palette.putpalette([0] * 768)
    return palette, {"transparency": bytes([0, 51, 0, 0, 0, 255])}


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "P"])
def test_transparent_parts_show_the_background(tmp_path, mode):
    image, options = ink(mode)
    path = as_written(image, ".png", folder=tmp_path, **options)
    out = decode(path, 8, Decoding(background="#ffc080"))
    assert out[:, 0, 0].tolist() == [0, 0, 0]
    assert out[:, 5, 0].tolist() == [255, 192, 128]
    if mode != "L":
        assert abs(int(out[0, 7, 0]) - 204) <= 1
    assert examine(path, 8, WHITE, settled=True).transparent


def test_opaque_alpha_is_not_called_transparent(tmp_path):
    path = as_written(Image.new("RGBA", (8, 8), "red"), ".png", folder=tmp_path)
    assert not examine(path, 8, WHITE, settled=True).transparent


def test_colours_are_names_or_numbers():
    assert check_colour("white") == check_colour("#FFF") == "#ffffff"
    with pytest.raises(ValueError, match="a colour such as"):
        check_colour("whitish")


# Orientation

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def exif_block(entries, order="<", tail=b""):
    """A TIFF header and one directory; an entry is tag, type, count and four bytes."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(f"{order}H", len(entries)) + body + struct.pack(f"{order}I", 0) + tail


def looks_turned(path, orientation):
    right = TURNED[orientation](COLOURS).transpose(2, 0, 1)
    return np.array_equal(decode(path, 8, PLAIN), right)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_tag_is_followed(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = as_written(
        Image.fromarray(COLOURS), suffix, folder=tmp_path, exif=exif.tobytes(), **options
    )
    assert looks_turned(path, orientation)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 6, 7, 8, 9])
def test_orientation_is_read_from_any_type(tmp_path, kind, order):
    letter = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i"}.get(kind)
    value = b"6\0" if letter is None else struct.pack(f"{order}{letter}", 6)
    block = exif_block([(0x0112, kind, 1, value.ljust(4, b"\0"))], order)
    image = Image.fromarray(COLOURS)
    assert looks_turned(as_written(image, ".png", folder=tmp_path, exif=block), 6)


UPRIGHT_TAG = (0x0112, 3, 1, struct.pack("<I", 6))
DAMAGED = {
    "width as a rational": exif_block(
        [(256, 5, 1, struct.pack("<I", 38)), UPRIGHT_TAG], tail=struct.pack("<II", 60, 1)
    ),
    "a value beyond the end": exif_block([(256, 5, 1, struct.pack("<I", 60_000)), UPRIGHT_TAG]),
    "an unknown type": exif_block([(256, 99, 1, b"\0\0\0\0"), UPRIGHT_TAG]),
    "a count of billions": exif_block([(271, 2, 2**31, b"\0\0\0\0"), UPRIGHT_TAG]),
    "text that is no text": exif_block([(271, 2, 4, b"\xff\xfe\xfd\xfc"), UPRIGHT_TAG]),
    "a directory that leads nowhere": exif_block([UPRIGHT_TAG, (0x8769, 4, 1, b"\xff" * 4)]),
    "more entries announced than there are": (
        exif_block([UPRIGHT_TAG])[:8] + b"\x09\0" + exif_block([UPRIGHT_TAG])[10:]
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_exif_does_not_hide_the_orientation(tmp_path, kind):
    image = Image.fromarray(COLOURS)
    assert looks_turned(as_written(image, ".png", folder=tmp_path, exif=DAMAGED[kind]), 6)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_jpeg_is_turned_though_its_exif_is_damaged(tmp_path, kind):
    array = np.zeros((16, 24, 3))
    array[:8] = 255  # bright above; turned by 90 degrees, bright to the right
    path = save(tmp_path / "a.jpg", array, exif=b"Exif\0\0" + DAMAGED[kind])
    out = decode(path, 16, PLAIN)[0]
    assert out[:, -4:].min() > 200 and out[:, :4].max() < 50


def test_orientation_is_read_from_xmp(tmp_path):
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert looks_turned(
        as_written(Image.fromarray(COLOURS), ".png", folder=tmp_path, pnginfo=xmp), 6
    )


JPEG = io.BytesIO()
Image.fromarray(noise(24, 24)).save(JPEG, "JPEG", exif=b"Exif\0\0" + DAMAGED["width as a rational"])


@given(st.lists(st.tuples(st.integers(24, 69), st.integers(0, 255)), max_size=8))
def test_no_damage_to_exif_hides_the_picture(tmp_path_factory, changes):
    content = bytearray(JPEG.getvalue())
    start = content.index(b"Exif\0\0") + 6
    for place, value in changes:
        content[start + place - 24] = value
    path = tmp_path_factory.getbasetemp() / "mutated.jpg"
    path.write_bytes(content)
    assert decode(path, 24, PLAIN).shape == (3, 24, 24)


# Files of which some is damaged, and files that are no pictures


def test_damage_to_the_second_frame_does_not_hide_the_first(tmp_path):
    path = tmp_path / "a.gif"
    frames = [Image.fromarray(noise(64, 64, seed)) for seed in range(2)]
    frames[0].save(path)
    one = path.stat().st_size
    frames[0].save(path, save_all=True, append_images=frames[1:])
    whole = decode(path, 16, PLAIN)
    path.write_bytes(path.read_bytes()[: one + 40])
    found = examine(path, 16, PLAIN, settled=True)
    assert found.several and np.array_equal(found.pixels, whole)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff", b"%!PS-Adobe-3.0\n"])
def test_foreign_content_is_named(tmp_path, content):
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.jpg cannot be decoded"):
        decode(path, 16, PLAIN)


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    for name in ("a.png", "b.png"):
        with pytest.raises(DataError, match=r"cannot be decoded \(no regular file\)"):
            decode(tmp_path / name, 16, PLAIN)


@pytest.mark.parametrize("error", [struct.error, KeyError, TypeError, MemoryError])
def test_whatever_a_reader_raises_names_the_file(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("odd")

    monkeypatch.setattr(decoding, "_as_rgb", fail)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded \(.*odd"):
        decode(save(tmp_path / "a.png", RAMP), 16, PLAIN)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"cannot be decoded .*decompression bomb"):
        decode(save(tmp_path / "a.png", noise(64, 64)), 16, PLAIN)
