"""The folder of a run: where what lies, who may work in it, how a result gets to its place."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from capsprune.bounds import cut
from capsprune.errors import RunError
from capsprune.files import discard, holding, make_folder, move, remove_partials
from capsprune.stages import STAGES

#: Characters of a run's name: files beside its folder have longer ones.
_LONGEST_NAME = 200
_RECORD = "run.json"
_WORK = ".work"
_LOCK = ".lock"


class RunFolder:
    """Paths in the folder of a run."""

    def __init__(self, directory: Path) -> None:
        """Name the paths; nothing need be there.

        Args:
            directory: of the run.
        """
        self.directory = directory
        self.record = directory / _RECORD
        self.split = directory / "split.json"
        #: Of what is not finished, by stage.
        self.all_work = directory / _WORK
        self.overwrite = self.all_work / "overwrite.json"

    def path(self, stage: str) -> Path:
        """Where a stage leaves its results."""
        if stage in STAGES:
            return STAGES[stage].path(self.directory)
        file = self.directory / f"{stage}.json"  # of a plug-in that is not here
        return file if file.is_file() else self.directory / stage

    def work(self, stage: str) -> Path:
        """Where a stage keeps what is not finished."""
        return self.all_work / stage

    def commit(self, stage: str) -> Path:
        """Where it is noted that the result of a stage is whole."""
        return self.work(stage) / "commit.json"

    def request(self, stage: str) -> Path:
        """Where it is noted what is being worked on."""
        return self.work(stage) / "request.json"

    def put(self, stage: str, result: Path) -> None:
        """Move a result to its place, and what was there aside, until `tidy`."""
        if not result.exists():
            return  # An earlier attempt did so.
        final, replaced = self.path(stage), self._replaced(stage)
        if final.exists():
            discard(replaced)
            move(final, replaced)
        move(result, final)

    def tidy(self, stage: str) -> None:
        """Remove what is left of the work on a finished stage."""
        discard(self.work(stage))
        discard(self._replaced(stage))

    def restore(self, stage: str) -> None:
        """Put back what `put` moved aside, where nothing came in its place."""
        replaced = self._replaced(stage)
        if not self.path(stage).exists() and replaced.exists():
            move(replaced, self.path(stage))
        discard(replaced)

    def remove_partials(self, stages: Iterable[str]) -> None:
        """Remove files that were being written when a process was killed."""
        for folder in (self.directory, self.all_work, *map(self.work, stages)):
            remove_partials(folder)

    def _replaced(self, stage: str) -> Path:
        """Where the result lies that a stage had before, until the new one is in its place."""
        return self.all_work / f"replaced-{stage}"

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep the folder to this process; it is made if it is not there.

        What was made for a run in which nothing was begun is removed again.

        Raises:
            RunError: if another process has it.
        """
        directory, lock = self.directory, self.directory / _LOCK
        with ExitStack() as stack:
            while True:
                left = lock.exists()  # by somebody who was killed before anything was begun
                made = make_folder(directory)
                try:
                    stack.enter_context(holding(lock, wait=False))
                    break
                except FileNotFoundError:
                    continue  # Whoever had made the folder has just removed it.
                except BlockingIOError:
                    raise RunError(
                        f"Another process is at work in run '{directory.name}'; wait for it, or "
                        "give another --run."
                    ) from None
            try:
                yield
            finally:
                if not is_run(directory) and not self.all_work.exists():
                    # As long as it is held: whoever waits for this one takes that in its place.
                    lock.unlink(missing_ok=True)
                    if left and directory not in made:
                        made.append(directory)
                    for folder in reversed(made):
                        with suppress(OSError):  # There is something in it.
                            folder.rmdir()


def is_run(directory: Path) -> bool:
    """Tell whether a folder holds a run."""
    return (directory / _RECORD).is_file()


def check_name(name: str, what: str = "run") -> None:
    """Check that a name can be that of a folder.

    Args:
        name: to check.
        what: is to have it, for the message.

    Raises:
        RunError: if it cannot.
    """
    if len(name) > _LONGEST_NAME or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RunError(
            f"'{cut(name)}' is no name for a {what}; use at most {_LONGEST_NAME} letters, digits, "
            "'.', '_' and '-', beginning with a letter or a digit."
        )


def copy_shared(source: Path, target: Path) -> None:
    """Copy a result, whose files are shared on disk where the file system can.

    Results are never written to, only replaced.
    """
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_or_copy)
    else:
        _link_or_copy(str(source), str(target))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system, or one without links.
        shutil.copy2(source, target)
