"""Folders of image files: any folder with one subfolder a class, and Tiny ImageNet's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capsprune.data.names import utf8_name
from capsprune.data.walk import find_images, is_image, subfolders
from capsprune.errors import DataError, listed
from capsprune.files import BadFileError, read_text

#: The names, in any case, of folders that hold a set of a data set rather than a class of it.
SET_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class FileList:
    """Image files and their classes.

    Attributes:
        paths: N files.
        labels: N positions in the data set's class names.
    """

    paths: list[Path]
    labels: list[int]


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        class_names: C names.
        train: images to train on.
        validation: images of a folder of their own; None where there is none.
        test: likewise.
        notes: sentences on what was left out.
    """

    class_names: tuple[str, ...]
    train: FileList
    validation: FileList | None
    test: FileList | None
    notes: tuple[str, ...] = ()


def scan_image_folder(root: Path) -> ImageFolder:
    """Find the classes and the images of a folder, without opening an image.

    The folder holds either one folder of images for each class, or a folder for training and
    perhaps one for validation and one for testing (`SET_NAMES`), each of which does.

    Args:
        root: the folder.

    Raises:
        DataError: it is missing, empty, has fewer than two classes, holds what is no image, or it
            cannot be told what its folders mean.
    """
    if not root.exists():
        raise DataError(
            f"Folder {root} does not exist: correct --data, or, if the folder was moved after the "
            f"run began, give its new place by --data-root."
        )
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that holds the class folders.")
    inside = subfolders(root)
    sets: dict[str, list[Path]] = {what: [] for what in SET_NAMES}
    for folder in inside:
        if (what := _set_of(folder)) is not None:
            sets[what].append(folder)
    of_sets = [folder for folders in sets.values() for folder in folders]
    # A folder named "train" that holds images itself is a class, say of vehicles.
    if not any(subfolders(folder) for folder in sets["train"]):
        if of_sets and len(of_sets) == len(inside):
            raise DataError(
                f"Folder {root} holds {' and '.join(folder.name for folder in inside)} but no "
                f"class folders to train on: put one folder of images for each class into "
                f"{root / 'train'}."
            )
        if nested := [folder for folder in of_sets if subfolders(folder)]:
            raise DataError(
                f"Folder {root} holds class folders beside {listed(nested)}, which has class "
                f"folders of its own: move those that are to train on into {root / 'train'}."
            )
        taken = [folder.name for folder in of_sets]
        note = f"{listed(taken)} in {root} is taken for a class: it holds no class folders"
        return _scan(root, inside, {}, notes=[note] if taken else [])
    for folders in sets.values():
        if len(folders) > 1:
            raise DataError(
                f"Folder {root} holds both {' and '.join(folder.name for folder in folders)}, "
                f"which mean the same set: keep only one."
            )
    notes = []
    ignored = [folder.name for folder in inside if folder not in of_sets]
    if ignored:
        notes.append(
            f"Folders of {root} beside train, val and test are left out: {listed(ignored)}"
        )
    (train,) = sets["train"]
    given = {what: sets[what][0] for what in ("validation", "test") if sets[what]}
    classes = subfolders(train)
    names = {folder.name for folder in classes}
    labelled = {}
    for what, folder in given.items():
        below = subfolders(folder)
        if not below or (len(below) == 1 and below[0].name not in names):
            notes.append(
                f"{folder} has no class folders and is left out; {what} images are taken from "
                f"those in {train}"
            )
        else:
            labelled[what] = folder
    return _scan(train, classes, labelled, root=root, notes=notes)


def _set_of(folder: Path) -> str | None:
    """Return which set a folder's name stands for."""
    name = folder.name.casefold()
    return next((what for what, names in SET_NAMES.items() if name in names), None)


def _scan(
    train: Path,
    classes: list[Path],
    given: dict[str, Path],
    *,
    root: Path | None = None,
    notes: Sequence[str] = (),
) -> ImageFolder:
    """Find the images of class folders.

    Args:
        train: what holds the class folders to train on.
        classes: these.
        given: folders of further sets, by "validation" and "test".
        root: of the data set, if it is not `train`.
        notes: what was left out already.
    """
    _require_classes(train, classes)
    names = tuple(utf8_name(folder) for folder in classes)
    folders = {"train": classes}
    for what, folder in given.items():
        folders[what] = subfolders(folder)
        _require_same(folder, tuple(utf8_name(path) for path in folders[what]), train, names)
    every = [folder for of_set in folders.values() for folder in of_set]
    found = find_images(every, root or train)
    found.require_usable()
    empty = [folder for folder, images in zip(every, found.images, strict=True) if not images]
    if empty:
        raise DataError(
            f"Class folder{'s' * (len(empty) > 1)} {listed(empty)} "
            f"hold{'s' * (len(empty) == 1)} no images: add some, or remove the folder."
        )
    images = iter(found.images)
    lists = {what: _labelled([next(images) for _ in of_set]) for what, of_set in folders.items()}
    return ImageFolder(
        names,
        lists["train"],
        lists.get("validation"),
        lists.get("test"),
        (*notes, *found.notes()),
    )


def _labelled(images: list[list[Path]]) -> FileList:
    return FileList(
        [path for paths in images for path in paths],
        [label for label, paths in enumerate(images) for _ in paths],
    )


def _require_classes(root: Path, classes: list[Path]) -> None:
    if not classes:
        raise DataError(
            f"Folder {root} holds no class folders: put the images of each class into a folder "
            f"of their own there."
        )
    if len(classes) == 1:
        hint = f", or give {classes[0]} itself" if len(subfolders(classes[0])) > 1 else ""
        raise DataError(
            f"Folder {root} holds one class only, '{classes[0].name}': at least two are needed, "
            f"so add the folder of another class{hint}."
        )
    shared: set[str] | None = None
    for folder in classes:
        inside = {path.name.casefold() for path in subfolders(folder)}
        shared = inside if shared is None else shared & inside
        if not shared or any(is_image(path) for path in folder.iterdir()):
            return
    assert shared is not None
    sets = {name for names in SET_NAMES.values() for name in names}
    if len(shared) > 1 or shared & sets:
        raise DataError(
            f"{listed([folder.name for folder in classes])} in {root} hold no images but folders "
            f"of the same names ({listed(sorted(shared))}), so that it cannot be told which are "
            f"the classes: arrange the images as train/CLASS, val/CLASS and test/CLASS, or put "
            f"those of each class into its folder itself."
        )


def _require_same(
    folder: Path, names: tuple[str, ...], train: Path, expected: tuple[str, ...]
) -> None:
    differences = [
        f"{what} {listed(sorted(classes))}"
        for what, classes in (
            ("lacks", set(expected) - set(names)),
            ("adds", set(names) - set(expected)),
        )
        if classes
    ]
    if differences:
        raise DataError(
            f"The classes of {folder} differ from those of {train} "
            f"({' and '.join(differences)}): give both the same class folders."
        )


def is_tiny_imagenet(folder: Path) -> bool:
    """Return whether a folder has Tiny ImageNet's layout."""
    return (folder / "train").is_dir() and (folder / "val" / "val_annotations.txt").is_file()


def scan_tiny_imagenet(folder: Path) -> ImageFolder:
    """Find the images of Tiny ImageNet; its validation set, which has labels, is the test set.

    Args:
        folder: holds train/, val/val_annotations.txt and words.txt.

    Raises:
        DataError: a part is missing or not as published.
    """
    remedy = "delete the folder and unpack tiny-imagenet-200.zip again."
    if not is_tiny_imagenet(folder):
        raise DataError(
            f"Folder {folder} lacks train or val/val_annotations.txt, so it is not the whole of "
            f"Tiny ImageNet: {remedy}"
        )
    # Box coordinates lie beside the images, in text files, which are left out as expected.
    classes = _scan(folder / "train", subfolders(folder / "train"), {}, root=folder)
    wnids, train = classes.class_names, classes.train
    position = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = folder / "val" / "val_annotations.txt"
    paths: list[Path] = []
    labels: list[int] = []
    for number, line in enumerate(_lines(annotations, remedy), start=1):
        if not line.strip():
            continue
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        path = folder / "val" / "images" / file
        if wnid not in position or Path(file).name != file or not path.is_file():
            raise DataError(
                f"Line {number} of {annotations} names an image or a class that is not there "
                f"({line.strip()[:60]}): {remedy}"
            )
        paths.append(path)
        labels.append(position[wnid])
    if not paths:
        raise DataError(f"File {annotations} is empty: {remedy}")
    names = _class_names(folder, wnids, remedy)
    return ImageFolder(names, train, None, FileList(paths, labels))


def _lines(file: Path, remedy: str) -> list[str]:
    try:
        return read_text(file).splitlines()
    except BadFileError as error:
        raise DataError(f"{file} {error}: {remedy}") from error


def _class_names(folder: Path, wnids: tuple[str, ...], remedy: str) -> tuple[str, ...]:
    file = folder / "words.txt"
    synonyms: dict[str, str] = {}
    if file.is_file():
        for line in _lines(file, remedy):
            wnid, _, words_of_class = line.partition("\t")
            synonyms[wnid] = words_of_class.split(",")[0].strip()
    names = [synonyms.get(wnid) or wnid for wnid in wnids]
    seen = Counter(names)
    return tuple(
        name if seen[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    )
