import numpy as np
import pytest
import torch
from PIL import Image

from capsprune.data.decoding import Decoding, decode
from capsprune.data.images import FileImages, TensorImages
from capsprune.data.survey import decode_all
from capsprune.errors import DataError

PLAIN = Decoding()


def save(path, array, **options):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **options)
    return path


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def damaged(tmp_path, kind):
    path = save(tmp_path / f"bad.{kind}", noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif"])
def test_truncated_image_is_named(tmp_path, kind):
    path = damaged(tmp_path, kind)
    with pytest.raises(DataError, match=r"cannot be decoded \(.+\): replace the file or remove it"):
        decode(path, 16, PLAIN)
    with pytest.raises(DataError, match=f"bad.{kind}"):
        decode_all([save(tmp_path / "ok.png", noise(8, 8)), path], 16, PLAIN)
    with pytest.raises(DataError, match=f"bad.{kind}"):
        FileImages([path], torch.tensor([0]), 16, PLAIN)[0]


def test_files_and_memory_yield_the_same(tmp_path):
    paths = [save(tmp_path / f"{i}.png", noise(20, 24, i)) for i in range(130)]
    labels = torch.arange(130)
    told = []
    pixels = decode_all(paths, 16, PLAIN, lambda *arguments: told.append(arguments))
    assert told[-1] == ("Decoding images", 130, 130)
    memory, files = TensorImages(pixels, labels), FileImages(paths, labels, 16, PLAIN)
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
    assert part.__getitems__([0])[0].shape == (1, 1, 4, 4)
    assert len(images.select([])) == 0
