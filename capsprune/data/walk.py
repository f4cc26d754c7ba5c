"""The image files below class folders: links are followed, and every image is found once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capsprune.data.decoding import IMAGE_SUFFIXES
from capsprune.errors import DataError, listed

#: What people and programs keep beside images: left out, and said.
SIDE_SUFFIXES = frozenset(
    {".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".yaml", ".yml", ".ini", ".log"}
)

_Identity = tuple[int, int]


@dataclass
class Found:
    """What lies below the class folders of a data set.

    Attributes:
        images: for each class folder its images, in an order that no file system decides.
        side_files: files that are no images, as are often kept beside them.
        foreign: other files that are no images by their names.
        special: what is no file: pipes, sockets, devices.
        dangling: links that lead nowhere.
        repeated: links to a folder or an image that was found before.
    """

    images: list[list[Path]] = field(default_factory=list)
    side_files: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)

    def require_usable(self) -> None:
        """Refuse what would fail later, all of it at once.

        Raises:
            DataError: there is a file that is no image, or a link that leads nowhere.
        """
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        problems = [
            f"{listed(paths)} {'is' if len(paths) == 1 else 'are'} {what}"
            for paths, what in (
                (self.foreign, f"no image by name (known are {known})"),
                (self.special, "no file but a pipe, a socket or a device"),
                (self.dangling, "a link that leads nowhere"),
            )
            if paths
        ]
        if problems:
            raise DataError(f"{'; '.join(problems)}: move out of the class folders what is named.")

    def notes(self) -> list[str]:
        """Sentences on what was left out."""
        return [
            f"{len(paths)} {what} left out: {listed(paths)}"
            for paths, what in (
                (self.side_files, "file(s) beside the images that are no images were"),
                (
                    self.repeated,
                    "link(s) to what was found already, or to a folder around, were",
                ),
            )
            if paths
        ]


def find_images(folders: Sequence[Path], root: Path) -> Found:
    """Find the images of class folders, without opening one.

    Args:
        folders: the class folders.
        root: of the data set. A link to it, or to a folder around it, is a loop.

    Raises:
        DataError: two of the folders are one.
    """
    resolved = root.resolve()
    met: dict[_Identity, Path] = {}
    for around in {resolved, *resolved.parents, *(folder.parent for folder in folders)}:
        met[_identity(around)] = around
    for folder in folders:
        before = met.setdefault(_identity(folder), folder)
        if before is not folder:
            raise DataError(
                f"{before} and {folder} are one folder, by a link: keep only one of them."
            )
    found = Found()
    linked: list[tuple[int, Path]] = []
    for label, folder in enumerate(folders):
        found.images.append([])
        _walk(folder, label, found, met, linked)
    # Links come last, so that an image has the name at which it lies, whatever leads to it.
    files: list[tuple[int, Path]] = []
    while linked:
        waiting, linked = linked, []
        for label, path in waiting:
            if not path.is_dir():
                files.append((label, path))
            elif met.setdefault(_identity(path), path) is not path:
                found.repeated.append(path)
            else:
                _walk(path, label, found, met, linked)
    seen = {_identity(path) for images in found.images for path in images} if files else set()
    for label, path in files:
        identity = _identity(path)
        if identity in seen:
            found.repeated.append(path)
        else:
            seen.add(identity)
            found.images[label].append(path)
    found.images = [in_order(images) for images in found.images]
    return found


def _walk(
    top: Path,
    label: int,
    found: Found,
    met: dict[_Identity, Path],
    linked: list[tuple[int, Path]],
) -> None:
    """Collect what lies below a folder; links to folders and images are put off."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as entries:
            present = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in present:
            if is_hidden(entry.name):
                continue
            path = folder / entry.name
            try:
                mode = entry.stat().st_mode if entry.is_symlink() else None
            except OSError:  # It leads nowhere, or to itself.
                found.dangling.append(path)
                continue
            if entry.is_dir():
                if mode is not None:
                    linked.append((label, path))
                elif met.setdefault(_identity(path), path) is path:
                    waiting.append(path)
                else:  # The same folder, mounted a second time.
                    found.repeated.append(path)
            elif not (entry.is_file() if mode is None else stat.S_ISREG(mode)):
                found.special.append(path)
            elif is_image(path):
                if mode is None:
                    found.images[label].append(path)
                else:
                    linked.append((label, path))
            elif path.suffix.lower() in SIDE_SUFFIXES:
                found.side_files.append(path)
            else:
                found.foreign.append(path)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, but for hidden ones.

    Raises:
        DataError: one is a link that leads nowhere.
    """
    present = [path for path in in_order(folder.iterdir()) if not is_hidden(path.name)]
    dangling = [path for path in present if path.is_symlink() and not _leads_somewhere(path)]
    if dangling:
        raise DataError(
            f"{listed(dangling)} {'is a link that leads' if len(dangling) == 1 else 'lead'} "
            f"nowhere: bring back what the link is to lead to, or remove it."
        )
    return [path for path in present if path.is_dir()]


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths so that a split means the same images on every file system, in every locale."""
    separator = os.fsencode(os.sep)
    return sorted(paths, key=lambda path: os.fsencode(path).split(separator))


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name)


def is_hidden(name: str) -> bool:
    """Return whether a name is one that people do not see."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def _leads_somewhere(link: Path) -> bool:
    try:
        link.stat()
    except OSError:
        return False
    return True


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return found.st_dev, found.st_ino
