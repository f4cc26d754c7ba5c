import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from capsprune.data import file_sources
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
    monkeypatch.setattr(file_sources, "MEMORY_BUDGET", 0)
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


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_may_be_named_as_a_set_is_which_is_said(tmp_path, name):
    data = load(write_classes(tmp_path, ("bus", name)))
    assert data.class_names == ("bus", name)
    assert any(note.startswith(f"{name} in {tmp_path} is taken for a class") for note in data.notes)


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Testing"),
        ("TRAIN", "TEST"),
        ("train", "Test"),
        ("training", "VAL"),
        ("Train", "Valid"),
        ("TRAINING", "Validation"),
    ],
)
def test_sets_are_known_in_any_case(tmp_path, names):
    write_classes(tmp_path / names[0], count=10)
    write_classes(tmp_path / names[1], count=3)
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog")
    own = {"test": data.test, "val": data.validation}[
        "test" if names[1].lower().startswith("t") else "val"
    ]
    assert len(own) == 6 and sum(data.split.counts.values()) == 26
    assert not data.notes


@pytest.mark.parametrize("pair", [("train", "TRAIN"), ("train", "Training"), ("test", "testing")])
def test_two_folders_that_mean_the_same_set_are_refused(tmp_path, pair):
    for name in {"train", *pair}:
        write_classes(tmp_path / name)
    with pytest.raises(
        DataError, match=f"holds both {pair[1]} and {pair[0]}|{pair[0]} and {pair[1]}"
    ):
        load(tmp_path)


@pytest.mark.parametrize("place", ["", "unknown"])
@pytest.mark.parametrize("name", ["test", "Validation"])
def test_a_set_without_classes_is_left_out_and_said(tmp_path, name, place):
    write_classes(tmp_path / "train")
    write_image(tmp_path / name / place / "1.png")
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    assert [note for note in data.notes if f"{name} has no class folders and is left out" in note]


def test_files_kept_beside_images_are_left_out_and_said(tmp_path):
    write_classes(tmp_path)
    for name in ("cat/notes.txt", "cat/labels.JSON", "dog/a.xml", "dog/.DS_Store"):
        (tmp_path / name).write_text("x")
    data = load(tmp_path)
    assert sum(data.split.counts.values()) == 20
    (note,) = data.notes
    assert note.startswith("3 file(s) beside the images") and "cat/labels.JSON" in note


def test_folders_beside_the_sets_are_said(tmp_path):
    write_classes(tmp_path / "train")
    (tmp_path / "eel").mkdir()
    (note,) = load(tmp_path).notes
    assert note.endswith("beside train, val and test are left out: eel")


def test_a_folder_of_images_within_each_class_is_no_question(tmp_path):
    for name in ("cat", "dog"):
        write_classes(tmp_path / name, ("images",))
    assert load(tmp_path).class_names == ("cat", "dog")


def test_links_are_followed(tmp_path):
    write_classes(tmp_path / "elsewhere", ("more", "birds"), count=5)
    root = write_classes(tmp_path / "root")
    (root / "cat" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "birds")
    (root / "cat" / "x.png").symlink_to(tmp_path / "elsewhere" / "more.png")
    write_image(tmp_path / "elsewhere" / "more.png")
    data = load(root)
    assert data.class_names == ("bird", "cat", "dog")
    assert sum(data.split.counts.values()) == 31
    assert not any("left out" in note for note in data.notes)


def loop_to_class(root):
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "loop").symlink_to(root / "cat")


def loop_to_root(root):
    (root / "cat" / "loop").symlink_to("..")


def loop_above_root(root):
    (root / "cat" / "loop").symlink_to(root.parent)


def link_to_other_class(root):
    (root / "dog" / "all").symlink_to(root / "cat")


def link_before_its_folder(root):
    (root / "cat" / "00.png").unlink()
    write_image(root / "cat" / "z" / "00.png")
    (root / "cat" / "a").symlink_to("z")


def link_to_image(root):
    (root / "cat" / "again.png").symlink_to(root / "dog" / "00.png")


def loop_outside(root):
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "loop").symlink_to(outside)
    (root / "cat" / "out").symlink_to(outside)


@pytest.mark.parametrize(
    "make",
    [
        loop_to_class,
        loop_to_root,
        loop_above_root,
        link_to_other_class,
        link_before_its_folder,
        link_to_image,
        loop_outside,
    ],
)
def test_every_image_is_found_once(tmp_path, make):
    root = write_classes(tmp_path / "root")
    make(root)
    data = load(root)
    assert sum(data.split.counts.values()) == 20
    (note,) = data.notes
    assert note.startswith("1 link(s) to what was found already, or to a folder around, were left")


def test_classes_may_have_names_of_any_script(tmp_path):
    names = ("Käfer", "日本語", "🐈", unicodedata.normalize("NFD", "é"), "a b")
    assert load(write_classes(tmp_path, names)).class_names == tuple(sorted(names))


@pytest.mark.parametrize("path", ["~nobody-at-all/x", "a\0b", os.fsdecode(b"caf\xe9")])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(DataError, match=r"give the path of a folder|rename the folder"):
        load(path)


def test_a_folder_that_moved_is_found_by_its_new_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load(write_classes(tmp_path / "old").relative_to(tmp_path))
    assert data.name == data.split.data == f"imagefolder:{tmp_path / 'old'}"
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(DataError, match=r"does not exist: .* by --data-root"):
        load(tmp_path / "old", split=data.split)
    moved = {"root": tmp_path / "new", "image_size": 8}
    again = load_data(data.name, split=data.split, **moved)
    assert again.name == f"imagefolder:{tmp_path / 'new'}"
    with pytest.raises(DataError, match="leave --data-root out"):
        load_data(data.name, **moved)


def test_split_is_applied_again_also_where_the_folder_moved(tmp_path):
    data = load(write_classes(tmp_path / "old"), seed=5)
    (tmp_path / "old").rename(tmp_path / "new")
    again = load(tmp_path / "new", split=data.split, seed=99)
    assert again.split == data.split
    assert (again.test.labels == data.test.labels).all()
    (tmp_path / "new" / "cat" / "00.png").rename(tmp_path / "new" / "cat" / "98.png")
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


def other_files(root):
    write_classes(root)
    for name in ("clip.mp4", "more.npy"):
        (root / "dog" / name).write_text("x")


def pipes(root):
    write_classes(root)
    for name in ("a", "b.png"):
        os.mkfifo(root / "dog" / name)


def dangling(root):
    write_classes(root)
    (root / "dog" / "a.png").symlink_to("nowhere")
    (root / "dog" / "b").symlink_to("b")  # to itself


def dangling_class(root):
    write_classes(root)
    (root / "eel").symlink_to("nowhere")


def class_twice(root):
    write_classes(root)
    (root / "eel").symlink_to("cat")


def latin_1_class(root):
    write_classes(root)
    (root / "cat").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))


def control_class(root):
    write_classes(root, ("a\nb", "dog"))


def blank_class(root):
    write_classes(root, (" ", "dog"))


def sets_in_classes(root):
    for name in ("cat", "dog"):
        write_classes(root / name, ("train", "test"))


def classes_in_parts(root):
    for name in ("part1", "part2"):
        write_classes(root / name)


def beside_test(root):
    write_classes(root)
    write_classes(root / "Testing")


def wrapped(root):
    write_classes(root / "inner")


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
        (no_folder, "does not exist", "give its new place by --data-root"),
        (a_file, "is not a folder", "give the folder that holds"),
        (empty, "holds no class folders", "put the images of each class into a folder"),
        (one_class, "one class only, 'cat'", "add the folder of another class"),
        (empty_class, r"eel holds no images", "add some, or remove the folder"),
        (
            other_files,
            r"clip\.mp4, \S+more\.npy are no image by name",
            "move out of the class folders",
        ),
        (pipes, r"dog/a, \S+dog/b\.png are no file but a pipe", "move out of the class folders"),
        (dangling, r"dog/a\.png, \S+dog/b are a link that leads", "move out of the class folders"),
        (dangling_class, r"eel is a link that leads nowhere", "bring back"),
        (class_twice, r"cat and \S+eel are one folder, by a link", "keep only one"),
        (latin_1_class, r"caf\S+e9' is no UTF-8", "rename the folder"),
        (control_class, r"'a\\nb' of a class .* holds control characters", "another name"),
        (blank_class, r"The name ' ' of a class .* is empty", "another name"),
        (sets_in_classes, r"cat, dog in \S+ hold no images but .*\(test, train\)", "arrange"),
        (classes_in_parts, r"part1, part2 in .* \(cat, dog\)", "arrange the images"),
        (beside_test, r"holds class folders beside \S+Testing", "move those"),
        (wrapped, r"holds one class only, 'inner'", "inner itself"),
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
