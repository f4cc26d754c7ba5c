import numpy as np
import pytest
from PIL import Image

from capsprune.data import sources
from capsprune.data.images import FileImages, TensorImages
from capsprune.data.sources import load_data
from capsprune.errors import DataError


def write_image(path, colour=(10, 20, 30), side=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), colour, dtype=np.uint8)).save(path)


def write_classes(root, names=("cat", "dog"), count=10):
    for label, name in enumerate(names):
        for number in range(count):
            write_image(root / name / f"{number:02}.png", (label * 40, number, 7))
    return root


def load(root, **options):
    return load_data(f"imagefolder:{root}", image_size=8, **options)


def test_class_folders_alone(tmp_path):
    told = []
    data = load(write_classes(tmp_path), progress=lambda *arguments: told.append(arguments))
    assert data.class_names == ("cat", "dog") and data.num_classes == 2
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    assert data.native_size == 8 and isinstance(data.train, TensorImages)
    images, labels = data.test.__getitems__([0, 1, 2, 3])
    assert images.shape == (4, 3, 8, 8)
    assert (images[:, 0, 0, 0] == labels * 40).all()
    assert told[-1] == ("Decoding images", 20, 20)


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_all_three_folders(tmp_path, validation):
    write_classes(tmp_path / "train", count=5)
    write_classes(tmp_path / validation, count=2)
    write_classes(tmp_path / "test", count=3)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 4, 6)
    assert data.split.validation is None and data.split.test is None
    assert data.split.counts == {"train": 10, "validation": 4, "test": 6}


@pytest.mark.parametrize(("given", "sizes"), [("val", (16, 4, 4)), ("test", (18, 2, 4))])
def test_missing_set_is_carved_from_train(tmp_path, given, sizes):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / given, count=2)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == sizes


def test_too_large_for_memory_is_decoded_when_fetched(tmp_path, monkeypatch):
    eager = load(write_classes(tmp_path))
    monkeypatch.setattr(sources, "MEMORY_BUDGET", 0)
    lazy = load(tmp_path)
    assert isinstance(lazy.train, FileImages)
    assert lazy.split == eager.split
    every = list(range(len(eager.train)))
    for a, b in zip(lazy.train.__getitems__(every), eager.train.__getitems__(every), strict=True):
        assert (a == b).all()


def test_hidden_files_and_nested_folders(tmp_path):
    write_classes(tmp_path)
    for junk in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "cat/._00.png", ".git/x"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    (tmp_path / "README.txt").write_text("beside the classes")
    write_image(tmp_path / "dog" / "more" / "x.PNG")
    assert sum(load(tmp_path).split.counts.values()) == 21


def test_a_class_may_be_named_train(tmp_path):
    assert load(write_classes(tmp_path, ("bus", "train"))).class_names == ("bus", "train")


def test_split_is_applied_again_also_where_the_folder_moved(tmp_path):
    data = load(write_classes(tmp_path / "old"), seed=5)
    (tmp_path / "old").rename(tmp_path / "new")
    again = load(tmp_path / "new", split=data.split, seed=99)
    assert again.split == data.split
    assert (again.test.labels == data.test.labels).all()
    write_image(tmp_path / "new" / "cat" / "00.png", side=30)
    with pytest.raises(DataError, match=r"has changed .*start a new run"):
        load(tmp_path / "new", split=data.split)
    write_image(tmp_path / "new" / "cat" / "99.png")
    with pytest.raises(DataError, match=r"from 20 images, but .* now has 21"):
        load(tmp_path / "new", split=data.split)


def no_folder(root):
    pass


def a_file(root):
    root.write_text("x")


def empty(root):
    root.mkdir()


def one_class(root):
    write_classes(root, ["cat"])


def empty_class(root):
    write_classes(root)
    (root / "eel").mkdir()
    (root / "eel" / ".DS_Store").touch()


def text_file(root):
    write_classes(root)
    (root / "dog" / "notes.txt").write_text("x")


def truncated(root):
    write_classes(root)
    path = root / "dog" / "03.png"
    path.write_bytes(path.read_bytes()[:50])


def no_picture(root):
    write_classes(root)
    (root / "dog" / "03.png").write_text("<html>")


def other_classes(root):
    write_classes(root / "train")
    write_classes(root / "val", ["cat", "eel"])


def no_train(root):
    write_classes(root / "val")
    write_classes(root / "test")


def empty_train(root):
    write_classes(root / "test")
    (root / "train").mkdir()


def two_validations(root):
    for name in ("train", "val", "valid"):
        write_classes(root / name)


def one_each(root):
    write_classes(root, count=1)


@pytest.mark.parametrize(
    ("make", "cause", "remedy"),
    [
        (no_folder, "does not exist", "give the path of a folder"),
        (a_file, "is not a folder", "give the folder that holds"),
        (empty, "holds no class folders", "put the images of each class into a folder"),
        (one_class, "one class only, 'cat'", "add the folder of another class"),
        (empty_class, r"eel holds no images", "add some, or remove the folder"),
        (text_file, r"notes\.txt is no image", "move it out of the class folder"),
        (truncated, r"dog/03\.png cannot be decoded", "replace the file or remove it"),
        (no_picture, r"dog/03\.png cannot be decoded", "replace the file or remove it"),
        (
            other_classes,
            r"val differ from those of .*train \(lacks dog and adds eel\)",
            "give both",
        ),
        (no_train, "holds test and val but no class folders to train on", "put one folder"),
        (empty_train, "holds test and train but no class folders", "put one folder"),
        (two_validations, "holds both val and valid", "keep only one"),
        (one_each, "too few to set some aside", "give at least two images of a class"),
    ],
)
def test_bad_folders(tmp_path, make, cause, remedy):
    root = tmp_path / "images"
    make(root)
    with pytest.raises(DataError, match=cause) as caught:
        load(root)
    message = str(caught.value)
    assert remedy in message and message.endswith(".") and "\n" not in message


def test_image_size_must_be_positive(tmp_path):
    with pytest.raises(DataError, match=r"Image size 0 is too small: give at least 1"):
        load_data(f"imagefolder:{tmp_path}", image_size=0)
