import numpy as np
import pytest
import torch
from PIL import Image

from capsprune.data.images import FileImages, TensorImages, decode, decode_all
from capsprune.errors import DataError


def save(path, array, **options):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **options)
    return path


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_image_of_the_right_size_is_kept(tmp_path):
    array = noise(8, 8)
    path = save(tmp_path / "a.png", array)
    assert np.array_equal(decode(path, 8), array.transpose(2, 0, 1))


def test_slightly_larger_image_is_cropped_but_not_resized(tmp_path):
    array = noise(16, 20)
    path = save(tmp_path / "a.png", array)
    assert np.array_equal(decode(path, 14), array[1:15, 3:17].transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(("height", "width"), [(5, 9), (64, 40), (200, 300)])
def test_any_shape_becomes_a_square(tmp_path, height, width, suffix):
    array = np.full((height, width, 3), (200, 100, 50))
    out = decode(save(tmp_path / f"a.{suffix}", array), 16)
    assert out.shape == (3, 16, 16) and out.dtype == np.uint8
    assert np.abs(out.reshape(3, -1).T.astype(int) - (200, 100, 50)).max() <= 3


def test_modes_become_rgb(tmp_path):
    ramp = np.arange(64).reshape(8, 8)
    grey = save(tmp_path / "grey.png", ramp)
    assert np.array_equal(decode(grey, 8), np.stack([ramp] * 3))
    deep = tmp_path / "deep.png"
    Image.fromarray((ramp * 256).astype(np.uint16)).save(deep)
    assert np.array_equal(decode(deep, 8), np.stack([ramp] * 3))
    palette = tmp_path / "palette.gif"
    Image.fromarray(ramp.astype(np.uint8)).save(palette)
    assert decode(palette, 8).shape == (3, 8, 8)


def test_orientation_tag_is_followed(tmp_path):
    array = np.zeros((8, 8, 3))
    array[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half
    assert decode(save(tmp_path / "a.png", array, exif=exif), 8)[0, -1].min() == 255


def damaged(tmp_path, kind):
    path = save(tmp_path / f"bad.{kind}", noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif"])
def test_truncated_image_is_named(tmp_path, kind):
    path = damaged(tmp_path, kind)
    with pytest.raises(DataError, match=r"cannot be decoded \(.+\): replace the file or remove it"):
        decode(path, 16)
    with pytest.raises(DataError, match=f"bad.{kind}"):
        decode_all([save(tmp_path / "ok.png", noise(8, 8)), path], 16)
    with pytest.raises(DataError, match=f"bad.{kind}"):
        FileImages([path], torch.tensor([0]), 16)[0]


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff"])
def test_foreign_content_is_named(tmp_path, content):
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.jpg cannot be decoded"):
        decode(path, 16)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"cannot be decoded .*decompression bomb"):
        decode(save(tmp_path / "a.png", noise(64, 64)), 16)


def test_files_and_memory_yield_the_same(tmp_path):
    paths = [save(tmp_path / f"{i}.png", noise(20, 24, i)) for i in range(130)]
    labels = torch.arange(130)
    told = []
    pixels = decode_all(paths, 16, lambda *arguments: told.append(arguments))
    assert told[-1] == ("Decoding images", 130, 130)
    memory, files = TensorImages(pixels, labels), FileImages(paths, labels, 16)
    for images in (memory, files):
        chosen = images.select([5, 129, 7]).select([2, 0])
        assert len(chosen) == 2
        batch, batch_labels = chosen.__getitems__([1, 0, 1])
        assert batch_labels.tolist() == [5, 7, 5] and batch_labels.dtype == torch.int64
        assert torch.equal(batch, pixels[[5, 7, 5]])
        one, label = images[3]
        assert one.shape == (3, 16, 16) and label.item() == 3


def test_grey_images_stay_grey_in_memory_and_share_storage():
    images = TensorImages(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6))
    part = images.select([4, 2])
    assert part.storage is images.storage and part.storage.shape[1] == 1
    assert part.labels.tolist() == [4, 2]
    assert part.__getitems__([0])[0].shape == (1, 3, 4, 4)
    assert len(images.select([])) == 0
