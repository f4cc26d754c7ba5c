"""Folders of image files: any folder with one subfolder a class, and Tiny ImageNet's layout."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from capsprune.data.images import IMAGE_SUFFIXES
from capsprune.errors import DataError

VALIDATION_NAMES = ("val", "valid", "validation")


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
    """What a folder holds; a set without a folder of its own is None."""

    class_names: tuple[str, ...]
    train: FileList
    validation: FileList | None
    test: FileList | None


def scan_image_folder(root: Path) -> ImageFolder:
    """Find the classes and the images of a folder, without opening an image.

    The folder holds either one folder of images for each class, or `train` and perhaps `val`
    (or `valid`, or `validation`) and `test`, each of which does.

    Args:
        root: the folder.

    Raises:
        DataError: it is missing, empty, has fewer than two classes, or holds what is no image.
    """
    if not root.exists():
        raise DataError(f"Folder {root} does not exist: give the path of a folder of images.")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that holds the class folders.")
    subfolders = {path.name: path for path in _subfolders(root)}
    found = [name for name in VALIDATION_NAMES if name in subfolders]
    train = subfolders.get("train")
    # A folder named "train" that holds images itself is a class, say of vehicles.
    if train is None or not _subfolders(train):
        if subfolders and set(subfolders) <= {"train", *VALIDATION_NAMES, "test"}:
            raise DataError(
                f"Folder {root} holds {' and '.join(sorted(subfolders))} but no class folders to "
                f"train on: put one folder of images for each class into {root / 'train'}."
            )
        names, files = _scan_classes(root)
        return ImageFolder(names, files, None, None)
    if len(found) > 1:
        raise DataError(
            f"Folder {root} holds both {' and '.join(found)}: keep only one validation set."
        )
    names, files = _scan_classes(train)
    return ImageFolder(
        names,
        files,
        _scan_other(subfolders[found[0]], train, names) if found else None,
        _scan_other(subfolders["test"], train, names) if "test" in subfolders else None,
    )


def _scan_other(folder: Path, train: Path, expected: tuple[str, ...]) -> FileList:
    names, files = _scan_classes(folder)
    if names != expected:
        surplus = sorted(set(names) - set(expected))
        lacking = sorted(set(expected) - set(names))
        differences = [
            f"{what} {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
            for what, classes in (("lacks", lacking), ("adds", surplus))
            if classes
        ]
        raise DataError(
            f"The classes of {folder} differ from those of {train} "
            f"({' and '.join(differences)}): give both the same class folders."
        )
    return files


def _scan_classes(root: Path, ignored: str | None = None) -> tuple[tuple[str, ...], FileList]:
    folders = _subfolders(root)
    if not folders:
        raise DataError(
            f"Folder {root} holds no class folders: put the images of each class into a folder "
            f"of their own there."
        )
    if len(folders) == 1:
        raise DataError(
            f"Folder {root} holds one class only, '{folders[0].name}': at least two are needed, "
            f"so add the folder of another class."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        images = _images_below(folder, ignored)
        if not images:
            raise DataError(
                f"Class folder {folder} holds no images: add some, or remove the folder."
            )
        paths += images
        labels += [label] * len(images)
    return tuple(folder.name for folder in folders), FileList(paths, labels)


def _images_below(folder: Path, ignored: str | None) -> list[Path]:
    images: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in files:
            path = Path(parent, name)
            if _is_hidden(name) or path.suffix == ignored:
                continue
            if not _is_image(path):
                raise DataError(
                    f"File {path} is no image by its name (known are "
                    f"{', '.join(sorted(IMAGE_SUFFIXES))}): move it out of the class folder."
                )
            images.append(path)
    # A file system lists names in any order; a split must mean the same images everywhere.
    return sorted(images)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(path.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def is_tiny_imagenet(folder: Path) -> bool:
    """Whether a folder has Tiny ImageNet's layout."""
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
    # Box coordinates lie beside the images, in text files.
    wnids, train = _scan_classes(folder / "train", ignored=".txt")
    position = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = folder / "val" / "val_annotations.txt"
    paths: list[Path] = []
    labels: list[int] = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
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
    return ImageFolder(_class_names(folder, wnids), train, None, FileList(paths, labels))


def _class_names(folder: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    file = folder / "words.txt"
    synonyms: dict[str, str] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            wnid, _, words_of_class = line.partition("\t")
            synonyms[wnid] = words_of_class.split(",")[0].strip()
    names = [synonyms.get(wnid) or wnid for wnid in wnids]
    seen = Counter(names)
    return tuple(
        name if seen[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    )
