import dataclasses
import gzip
import hashlib
import io
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from capsprune.data import published
from capsprune.data.loaders import data_loader
from capsprune.data.names import data_set
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.published import CIFAR
from capsprune.data.sources import default_root, load_data
from capsprune.data.splits import Split
from capsprune.data.transforms import EvaluationTransform, TrainingTransform
from capsprune.errors import DataError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, **_):
        raise OSError(f"no network in tests: {url}")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_unknown_data_set():
    with pytest.raises(DataError, match=r"Unknown data set 'digitz'; did you mean digits"):
        load_data("digitz", image_size=32)


def test_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CAPSPRUNE_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("CAPSPRUNE_DATA")
    assert default_root().parts[-3:] == (".cache", "capsprune", "data")


# Digits


def test_digits():
    data = load_data("digits", image_size=32, seed=3)
    assert data.split.counts == {"train": 1294, "validation": 144, "test": 359}
    assert data.num_classes == 10 and data.native_size == 8
    assert data.train.storage is data.test.storage
    assert data.train.storage.shape == (1797, 1, 8, 8)
    assert data.train.storage.max() == 255 and data.train.storage.min() == 0
    for images in (data.train, data.validation, data.test):
        shares = torch.bincount(images.labels) / len(images)
        assert (shares - 0.1).abs().max() < 0.02
    batch, _ = next(iter(data_loader(data.train, batch_size=64, shuffle=True)))
    for transform in (
        TrainingTransform(data_set("digits").augmentation, Preprocessing(32)),
        EvaluationTransform(Preprocessing(32)),
    ):
        assert transform(batch).shape == (64, 3, 32, 32)


def test_digits_split_is_applied_exactly():
    data = load_data("digits", image_size=32, seed=3)
    again = load_data("digits", image_size=32, split=Split.from_json(data.split.to_json()))
    assert again.split == data.split
    assert torch.equal(again.validation.labels, data.validation.labels)
    other = load_data("digits", image_size=32, seed=4).split
    assert other.validation != data.split.validation and other.test == data.split.test
    assert other.fingerprint == data.split.fingerprint


def test_split_that_does_not_fit_is_refused():
    split = load_data("digits", image_size=32).split
    for change, cause in (
        ({"fingerprint": "0" * 64}, "has changed"),
        ({"data": "cifar10"}, "was drawn from data set 'cifar10', not 'digits'"),
        ({"size": 1798}, "from 1798 images"),
        ({"test": None}, "on a test set of its own"),
    ):
        with pytest.raises(DataError, match=cause):
            load_data("digits", image_size=32, split=split.model_copy(update=change))


def test_split_without_validation_images_is_refused():
    split = load_data("digits", image_size=32).split.model_copy(update={"validation": ()})
    with pytest.raises(DataError, match=r"validation set of data set 'digits' is empty: add"):
        load_data("digits", image_size=32, split=split)


# Fashion-MNIST


def write_fashion(folder, suffix=".gz", train=60, test=20):
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("t10k", test)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for file, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            content += array.tobytes()
            path = folder / f"{name}-{file}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)


@pytest.fixture
def no_system_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(published, "FASHION_SYSTEM_FOLDER", tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.usefixtures("no_system_folder")
def test_fashion_files_are_found(tmp_path, place, suffix):
    write_fashion(tmp_path / place, suffix)
    data = load_data("fashion-mnist", root=tmp_path, image_size=32)
    assert data.split.counts == {"train": 54, "validation": 6, "test": 20}
    assert data.split.test is None and data.native_size == 28
    assert data.class_names[9] == "Ankle boot"
    assert data.train[0][0].shape == (1, 28, 28)


@pytest.mark.skipif(
    not published.FASHION_SYSTEM_FOLDER.is_dir(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_fashion_of_debian(tmp_path):
    data = load_data("fashion-mnist", root=tmp_path, image_size=32, download=False)
    assert data.split.counts == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert torch.bincount(data.validation.labels).tolist() == [600] * 10
    assert data.test.labels[:5].tolist() == [9, 2, 1, 1, 6]


@pytest.mark.usefixtures("no_system_folder")
def test_fashion_of_two_minds(tmp_path):
    write_fashion(tmp_path)
    other = tmp_path / "other"
    write_fashion(other, train=50)
    shutil.copy(other / "train-labels-idx1-ubyte.gz", tmp_path)
    with pytest.raises(
        DataError, match=r"do not belong together \(60 images, 50 labels\).*replace"
    ):
        load_data("fashion-mnist", root=tmp_path, image_size=32)


@pytest.mark.usefixtures("no_system_folder")
def test_truncated_fashion_file(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"t10k-images.*damaged or truncated.*whole copy"):
        load_data("fashion-mnist", root=tmp_path, image_size=32)


@pytest.mark.usefixtures("no_system_folder")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fashion-mnist", "train-images-idx3-ubyte.gz"),
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("cifar100", "cifar-100-binary.tar.gz"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
    ],
)
def test_missing_data_says_what_to_put_where(tmp_path, name, file):
    for download, cause in ((True, "could not be downloaded"), (False, "downloading is off")):
        with pytest.raises(DataError, match=f"Data set '{name}'.*{cause}") as caught:
            load_data(name, root=tmp_path, image_size=32, download=download)
        assert f"put {file} (from http" in str(caught.value)
        assert str(tmp_path) in str(caught.value) and "--data digits" in str(caught.value)


# CIFAR


def cifar_files(layout, per_file=20):
    rng = np.random.default_rng(0)
    files = {}
    for name in (*layout.train_files, layout.test_file):
        labels = np.zeros((per_file, layout.label_bytes), dtype=np.uint8)
        labels[:, -1] = np.arange(per_file) % layout.classes
        pixels = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        files[name] = np.concatenate([labels, pixels], axis=1).tobytes()
    names = [f"class{number}" for number in range(layout.classes)]
    files[layout.names_file] = ("\n".join(names) + "\n\n").encode()
    return files


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request, tmp_path, monkeypatch):
    """A CIFAR of few records, packed as the real one is; yields its name, layout and files."""
    layout = CIFAR[request.param]
    per_file = 2 * layout.classes
    files = cifar_files(layout, per_file)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in {**files, "../escape": b"x"}.items():
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    layout = dataclasses.replace(
        layout,
        md5=hashlib.md5(buffer.getvalue()).hexdigest(),
        counts=(per_file * len(layout.train_files), per_file),
    )
    monkeypatch.setitem(CIFAR, request.param, layout)
    (tmp_path / layout.url.rpartition("/")[2]).write_bytes(buffer.getvalue())
    return request.param, layout, files


def test_cifar_from_archive_and_from_folder(tmp_path, small_cifar):
    name, layout, files = small_cifar
    data = load_data(name, root=tmp_path, image_size=64)
    total = layout.counts[0]
    assert data.split.counts == {
        "train": total - round(0.05 * total),
        "validation": round(0.05 * total),
        "test": layout.counts[1],
    }
    assert data.class_names[3] == "class3" and data.num_classes == layout.classes
    assert data.test.labels[:4].tolist() == [0, 1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 1  # read in place
    folder = tmp_path / "other" / layout.folder
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    again = load_data(name, root=folder.parent, image_size=64, split=data.split)
    assert torch.equal(again.train.storage, data.train.storage)
    batch = data.train.__getitems__([0, 1])[0]
    transform = TrainingTransform(data_set(name).augmentation, Preprocessing(64))
    assert transform(batch).shape == (2, 3, 64, 64)


def test_cifar_archive_of_other_checksum_is_not_opened(tmp_path, small_cifar, monkeypatch):
    name, layout, _ = small_cifar
    archive = tmp_path / layout.url.rpartition("/")[2]
    archive.write_bytes(archive.read_bytes()[:-1])
    monkeypatch.setattr(tarfile, "open", None)
    with pytest.raises(DataError, match=r"damaged or foreign .*delete it, so that it is fetched"):
        load_data(name, root=tmp_path, image_size=32)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda files, layout: files.pop(layout.test_file), "lacks test"),
        (
            lambda files, layout: files.update({layout.test_file: files[layout.test_file][:-5]}),
            "truncated or foreign",
        ),
        (
            lambda files, layout: files.update({layout.test_file: files[layout.test_file] * 2}),
            "holds .* images in test.* instead of",
        ),
        (
            lambda files, layout: files.update({layout.names_file: b"cat dog"}),
            "holds 2 class names instead of",
        ),
        (
            lambda files, layout: files.update({layout.names_file: "Käfer".encode("utf-16")}),
            "is no UTF-8 text",
        ),
        (
            lambda files, layout: files.update(
                {layout.names_file: files[layout.names_file].replace(b"class1\n", b"class0\n")}
            ),
            "Two classes of data set .* have the name 'class0'",
        ),
    ],
)
def test_damaged_cifar_folder(tmp_path, small_cifar, damage, cause):
    name, layout, files = small_cifar
    damage(files, layout)
    folder = tmp_path / layout.folder
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=cause) as caught:
        load_data(name, root=tmp_path, image_size=32)
    remedies = ("whole copy", "unpack the archive again", "give one another name")
    assert any(remedy in str(caught.value) for remedy in remedies)


# Tiny ImageNet

WNIDS = ("n01", "n02", "n03")


def write_tiny_imagenet(folder):
    for label, wnid in enumerate(WNIDS):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 1 1\n")
        for number in range(10):
            pixels = np.full((64, 64, 3), label * 50, dtype=np.uint8)
            pixels[40:] += number  # a class of one colour would be refused
            Image.fromarray(pixels).save(images / f"{wnid}_{number}.JPEG")
    images = folder / "val" / "images"
    images.mkdir(parents=True)
    lines = []
    for number in range(6):
        wnid = WNIDS[number % 3]
        Image.new("L", (64, 64), number % 3 * 50).save(images / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn09\tno\n")
    return folder


def check_tiny(data):
    assert data.class_names == ("goldfish", "crane", "n03")
    assert data.split.counts == {"train": 27, "validation": 3, "test": 6}
    assert data.native_size == 64
    assert data.validation.labels.tolist() == [0, 1, 2]
    images, labels = data.test.__getitems__(range(6))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (images[:, 0, 5, 5].long() - labels * 50).abs().max() <= 2


def test_tiny_imagenet_folder(tmp_path):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    check_tiny(load_data("tiny-imagenet", root=tmp_path, image_size=224))
    check_tiny(load_data("tiny-imagenet", root=folder, image_size=224))


def test_tiny_imagenet_zip_is_unpacked_once(tmp_path):
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    shutil.make_archive(str(tmp_path / "tiny-imagenet-200"), "zip", tmp_path, "tiny-imagenet-200")
    shutil.rmtree(tmp_path / "tiny-imagenet-200")
    check_tiny(load_data("tiny-imagenet", root=tmp_path, image_size=64))
    (tmp_path / "tiny-imagenet-200.zip").unlink()
    check_tiny(load_data("tiny-imagenet", root=tmp_path, image_size=64, download=False))


def test_damaged_tiny_imagenet_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr("tiny-imagenet-200/words.txt", "x" * 100)
    path = tmp_path / "tiny-imagenet-200.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"is damaged .*delete it, so that it is fetched again"):
        load_data("tiny-imagenet", root=tmp_path, image_size=64)
    assert not (tmp_path / "tiny-imagenet-200").exists()


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("val_0.JPEG\tn77\t0", "Line 1 of .* names an image or a class that is not there"),
        ("gone.JPEG\tn01\t0", "Line 1 of .*gone"),
        ("../images/val_0.JPEG\tn01\t0", "Line 1 of"),
        ("no tabs", "Line 1 of"),
        ("", "is empty"),
    ],
)
def test_bad_annotations(tmp_path, line, cause):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (folder / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(DataError, match=cause) as caught:
        load_data("tiny-imagenet", root=tmp_path, image_size=64)
    assert "unpack tiny-imagenet-200.zip again" in str(caught.value)


@pytest.mark.parametrize("name", ["val/val_annotations.txt", "words.txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_annotations_that_are_no_utf_8(tmp_path, name, encoding):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (folder / name).write_text("n01\tKäfer\n", encoding=encoding)
    with pytest.raises(DataError, match=r"txt is no UTF-8 text .*unpack tiny-imagenet-200\.zip"):
        load_data("tiny-imagenet", root=tmp_path, image_size=64)


@pytest.mark.parametrize("words", ["\x07", "x" * 300])
def test_class_names_that_cannot_be_shown_are_refused(tmp_path, words):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (folder / "words.txt").write_bytes(f"n01\tab{words}c\n".encode())
    with pytest.raises(DataError, match=r"of a class of .* (control|255) characters: give"):
        load_data("tiny-imagenet", root=tmp_path, image_size=64)


@pytest.mark.parametrize("name", ["~nobody-at-all/x", "a\0b", "caf\udce9"])
def test_a_root_that_is_no_path_is_refused(tmp_path, monkeypatch, name):
    if "~" not in name:
        with pytest.raises(DataError, match=r"give the path of a folder|rename the folder"):
            load_data("cifar10", root=Path(name), image_size=32)
    else:
        monkeypatch.setenv("CAPSPRUNE_DATA", name)
        with pytest.raises(DataError, match="set it to a folder"):
            load_data("cifar10", image_size=32)


def test_incomplete_tiny_imagenet(tmp_path):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    shutil.rmtree(folder / "val")
    with pytest.raises(DataError, match=r"lacks train or val/val_annotations.txt.*unpack"):
        load_data("tiny-imagenet", root=tmp_path, image_size=64)
