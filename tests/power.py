"""Watches which files and names have reached the disk, as a loss of power would tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Watch:
    """Checks each renaming, and remembers what was flushed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Watch until the test ends."""
        #: By inode: size and time of change, when it was flushed last.
        self._files: dict[int, tuple[int, int]] = {}
        #: By inode of a folder: the names in it, with their inodes, when it was flushed last.
        self._names: dict[int, dict[str, int]] = {}
        self.renamed: list[str] = []
        fsync, rename, replace, sync = os.fsync, os.rename, os.replace, os.sync

        def noting_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self._note(Path(f"/proc/self/fd/{descriptor}").resolve())

        def checking(function):
            def move(source, target, **others):
                self.renamed.append(Path(target).name)
                lost = self.unflushed(Path(source))
                assert not lost, f"{target} gets its name before {lost} are on the disk"
                function(source, target, **others)

            return move

        def noting_sync() -> None:
            sync()
            for path in Path(os.environ["WATCHED"]).rglob("*"):
                self._note(path)

        monkeypatch.setattr(os, "fsync", noting_fsync)
        monkeypatch.setattr(os, "sync", noting_sync)
        monkeypatch.setattr(os, "rename", checking(rename))
        monkeypatch.setattr(os, "replace", checking(replace))

    def _note(self, path: Path) -> None:
        found = path.stat()
        if path.is_dir():
            self._names[found.st_ino] = {one.name: one.stat().st_ino for one in path.iterdir()}
        else:
            self._files[found.st_ino] = (found.st_size, found.st_mtime_ns)

    def unflushed(self, path: Path) -> list[str]:
        """What of a file, or of all that is in a folder, a loss of power would take."""
        found = path.stat()
        if not path.is_dir():
            whole = self._files.get(found.st_ino) == (found.st_size, found.st_mtime_ns)
            return [] if whole else [str(path)]
        names = self._names.get(found.st_ino, {})
        lost = [str(one) for one in path.iterdir() if names.get(one.name) != one.stat().st_ino]
        return lost + [name for one in path.iterdir() for name in self.unflushed(one)]

    def is_named(self, path: Path) -> bool:
        """Whether a name itself would outlive a loss of power."""
        names = self._names.get(path.parent.stat().st_ino, {})
        return names.get(path.name) == path.stat().st_ino


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watch:
    """Watch the disk."""
    monkeypatch.setenv("WATCHED", str(tmp_path))
    return Watch(monkeypatch)
