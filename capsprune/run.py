"""A run: one directory, what was asked for, which stages are done, and how to go on."""

from __future__ import annotations

import functools
import itertools
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from capsprune.bounds import Amount, Name, Seed, check_plain, cut, what_is_wrong
from capsprune.errors import CapspruneError, RunError
from capsprune.files import (
    BadFileError,
    discard,
    flush,
    holding,
    make_folder,
    move,
    read_json,
    read_text,
    remove_partials,
    write_text,
)
from capsprune.stages import STAGES
from capsprune.summaries import check_stage

#: A stage's name as files hold it: that of a plug-in that is not here is as good.
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]

#: Characters of a run's name: files beside its folder have longer ones.
_LONGEST_NAME = 200

_Read = TypeVar("_Read")

_RUN_FILE = "run.json"
_SPLIT_FILE = "split.json"
_OVERWRITE_FILE = "overwrite.json"
_WORK = ".work"
_LOCK = ".lock"
_COMMIT = "commit.json"
_PACKAGES = (
    "capsprune",
    "torch",
    "torchvision",
    "torch-pruning",
    "lightning-fabric",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
)


class StageRecord(BaseModel):
    """What a finished stage was asked for and what came of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    options: dict[str, Any]
    #: Id of what it was made from, and of what it made.
    parent: Name | None
    id: Name
    finished: Name
    seconds: Amount
    #: As `capsprune.summaries` has it for the stage.
    summary: dict[str, Any]


class _RunRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    created: Name
    seed: Seed
    versions: dict[Name, Name]
    stages: dict[StageName, StageRecord] = Field(default_factory=dict)


class DamagedRun(RunError):
    """What is known of a run cannot be read."""


class _Commit(BaseModel):
    """A result that is whole, in the working directory of its stage, and what run.json will say."""

    model_config = ConfigDict(extra="forbid")

    result: Annotated[str, Field(pattern=r"^[a-z]+(\.json)?$")]
    record: StageRecord
    #: The split of its images, as JSON, where the run is to take it.
    split: str | None = None


class Run:
    """A run directory. Make one with `open_run`."""

    def __init__(self, directory: Path, record: _RunRecord) -> None:
        """Use `open_run`."""
        self.directory = directory
        self._record = record

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.directory.name

    @property
    def seed(self) -> int:
        """Seed of everything random in this run."""
        return self._record.seed

    @property
    def stages(self) -> dict[StageName, StageRecord]:
        """The finished stages."""
        return self._record.stages

    def path(self, stage: StageName) -> Path:
        """Where a stage leaves its results."""
        if stage in STAGES:
            return STAGES[stage].path(self.directory)
        file = self.directory / f"{stage}.json"  # of a plug-in that is not here
        return file if file.is_file() else self.directory / stage

    def _follows(self, stage: StageName) -> StageName | None:
        """What a stage is made from; of one that nobody knows here, by the ids in its record."""
        if stage in STAGES:
            return STAGES[stage].follows
        record = self.stages.get(stage)
        made = (name for name, other in self.stages.items() if record and other.id == record.parent)
        return next(made, None)

    def _line_of(self, stage: StageName) -> list[StageName]:
        """The stages that a stage comes from, the first one first, and itself."""
        line = [stage]
        while (before := self._follows(line[0])) is not None and before not in line:
            line.insert(0, before)
        return line

    def _command(self, stage: StageName) -> str:
        """What users are told to give so that a stage is done."""
        return f"capsprune {STAGES[stage].command.words}{self._run_flag}"

    def work(self, stage: StageName) -> Path:
        """Where a stage keeps what is not finished."""
        return self.directory / _WORK / stage

    def require(self, stage: StageName, needed_by: str) -> StageRecord:
        """Give a stage's record, checking that its results are there and up to date.

        Args:
            stage: which stage.
            needed_by: the command that needs it, for the message.

        Raises:
            RunError: if the stage is not done, or was made from something older than what is there.
        """
        if stage not in self.stages:
            raise RunError(
                f"{needed_by} needs {stage}, which run '{self.name}' has not yet; first run "
                f"'{self._command(stage)}'."
            )
        for earlier, later in itertools.pairwise(self._line_of(stage)):
            if later in self.stages and self._is_stale(later):
                raise RunError(
                    f"{later} of run '{self.name}' was made from an older {earlier}; run "
                    f"'{self._command(later)} --overwrite'."
                )
        if not self.path(stage).exists():
            raise RunError(f"{self.path(stage)} is gone; run '{self._command(stage)} --overwrite'.")
        return self.stages[stage]

    def _is_stale(self, stage: StageName) -> bool:
        """Whether a stage was made from an earlier result than the one that is there now."""
        follows = self._follows(stage)
        before = None if follows is None else self.stages.get(follows)
        return (
            before is not None
            and not self._is_of_something_named(stage)
            and self.stages[stage].parent != before.id
        )

    def _is_of_something_named(self, stage: StageName) -> bool:
        """Whether a finished stage was made from a checkpoint that was named, as asked."""
        record = self.stages.get(stage)
        return record is not None and record.options.get("checkpoint") is not None

    def kept_beside(self, stage: StageName) -> list[StageName]:
        """The finished stages that stay valid when a stage is made anew: those not made from it."""

        def goes_back_to_it(other: StageName) -> bool:
            while not self._is_of_something_named(other):
                before = self._follows(other)
                if before is None or before == stage:
                    return before is not None
                other = before
            return False

        return [other for other in self.stages if other != stage and not goes_back_to_it(other)]

    @property
    def _run_flag(self) -> str:
        return "" if self.name == "default" else f" --run {self.name}"

    def finished(
        self,
        stage: StageName,
        options: dict[str, Any],
        parent: str | None,
        overwrite: bool,
        read: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> StageRecord | None:
        """Tell whether a stage is done already, as asked.

        Args:
            stage: which stage.
            options: what is asked for.
            parent: id of what it is to be made from.
            overwrite: do it again, whatever is there.
            read: gives stored options as this version writes them; it may raise a RunError.

        Returns:
            Its record, or None if it is to be done.

        Raises:
            RunError: if it is done with other options and `overwrite` is off.
        """
        record = self.stages.get(stage)
        if record is None or overwrite or not self.path(stage).exists():
            return None
        before = read(record.options)
        changed = [
            f"{key.replace('_', '-')} {_shown(before.get(key))} instead of "
            f"{_shown(options.get(key))}"
            for key in _changed(before, options)
        ]
        if not changed and record.parent == parent:
            return record
        difference = ", ".join(changed) or "an older input"
        raise RunError(
            f"Run '{self.name}' has a finished {stage} already, made with {difference}; give "
            "--overwrite to replace it, or another --run."
        )

    def begin(
        self,
        stage: StageName,
        options: dict[str, Any],
        parent: str | None,
        split: str | None = None,
        older_split: str | None = None,
        read: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Path:
        """Open the working directory of a stage.

        What an interrupted attempt with the same options and images left is kept, anything else is
        removed.

        Args:
            stage: which stage.
            options: what is asked for.
            parent: id of what it is made from.
            split: digest of the split of its images.
            older_split: that of what an older version began, which did not note it there.
            read: as for `finished`.

        Returns:
            The directory, which exists.
        """
        work = self.work(stage)
        request = {"options": options, "parent": parent, "split": split}
        request_file = work / "request.json"
        try:
            before = read_json(request_file)
            same = (
                before["parent"] == parent
                and before.get("split", older_split) == split
                and not _changed(read(before["options"]), options)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RunError):
            same = False
        if not same:
            discard(work)
            make_folder(work)
            write_text(request_file, json.dumps(request))
        discard(work / "result")
        if not is_run(self.directory):
            self._save()
        return work

    def commit(
        self,
        stage: StageName,
        result: Path,
        *,
        id: str,
        options: dict[str, Any],
        parent: str | None,
        seconds: float,
        summary: dict[str, Any],
        split: str | None = None,
    ) -> StageRecord:
        """Move the result of a stage to its final name, and note that it is done.

        Args:
            stage: which stage.
            result: file or directory inside the stage's working directory.
            id: of the result.
            options: what was asked for.
            parent: id of what the result was made from.
            seconds: how long it took.
            summary: what came of it.
            split: of its images, as JSON; from now on the run's. None leaves that as it is.
        """
        record = StageRecord(
            options=options,
            parent=parent,
            id=id,
            finished=_now(),
            seconds=round(seconds, 3),
            summary=summary,
        )
        flush(result)
        # From here on the stage is done, whatever happens: `_recover` does the rest if need be.
        noted = _Commit(result=result.name, record=record, split=split)
        write_text(self.work(stage) / _COMMIT, noted.model_dump_json())
        self._finish(stage, noted)
        return record

    def _finish(self, stage: StageName, commit: _Commit) -> None:
        """Put a result that is whole in its place, or do what is left of that."""
        work, final, replaced = self.work(stage), self.path(stage), self._replaced(stage)
        result = work / commit.result
        if result.exists():
            if final.exists():
                discard(replaced)
                move(final, replaced)
            move(result, final)
        if commit.split is not None:
            self.write_split(commit.split)
        self._record.stages[stage] = commit.record
        self._record.versions = dict(_versions())
        self._save()
        discard(work)
        discard(replaced)

    def _recover(self) -> None:
        """Finish what a process that was killed was about to: with the lock held alone."""
        for folder in (self.directory, self.directory / _WORK, *map(self.work, self._all_stages())):
            remove_partials(folder)
        for stage in self._all_stages():
            try:
                commit = _Commit.model_validate(check_plain(read_json(self.work(stage) / _COMMIT)))
                check_stage(stage, commit.record.options, commit.record.summary)
            except (OSError, ValueError):
                pass
            else:
                self._finish(stage, commit)
            replaced = self._replaced(stage)
            if not self.path(stage).exists() and replaced.exists():
                move(replaced, self.path(stage))
            discard(replaced)

    def _all_stages(self) -> list[StageName]:
        """Those of the table, and what else the run has."""
        return list(dict.fromkeys([*STAGES, *self.stages]))

    def _replaced(self, stage: StageName) -> Path:
        """Where the result lies that a stage had before, until the new one is in its place."""
        return self.directory / _WORK / f"replaced-{stage}"

    def adopt(self, stage: StageName, source: Run) -> StageRecord:
        """Take a finished stage of another run, as if it had been done here.

        Its files are shared on disk where the file system can: results are never written to, only
        replaced.

        Args:
            stage: which stage.
            source: a run of the same data and seed, which has it.

        Returns:
            The stage's record, which is the other run's.

        Raises:
            RunError: if the other run has it not, or an older one, or stages of this one were made
                with another split.
        """
        record = source.require(stage, "a run that builds on it")
        kept = self.stages.get(stage)
        if kept is not None and kept.id == record.id and self.path(stage).exists():
            return kept
        split = source.read_split()
        stays = self.kept_beside(stage)
        if stays and split is not None and self.read_split() not in (None, split):
            raise RunError(
                f"{stays[0]} of run '{self.name}' was made with another split of the images than "
                f"{stage} of run '{source.name}'; remove the folder {self.directory}, which is "
                "then made anew."
            )
        work = self.begin(stage, record.options, record.parent)
        result = work / "result"
        shutil.copytree(source.path(stage), result, copy_function=_link_or_copy)
        return self.commit(
            stage,
            result,
            id=record.id,
            options=record.options,
            parent=record.parent,
            seconds=record.seconds,
            summary=record.summary,
            split=split,
        )

    def read_overwritten(self, request: dict[str, Any]) -> dict[str, str] | None:
        """Give the ids of the stages that an interrupted request did again, by stage.

        Args:
            request: what is asked for.

        Returns:
            None if no such request was interrupted.
        """
        try:
            noted = read_json(self.directory / _WORK / _OVERWRITE_FILE)
            return dict(noted["done"]) if noted["request"] == request else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note_overwritten(self, request: dict[str, Any], done: dict[str, str]) -> None:
        """Note which stages a request did again, until `forget_overwritten`."""
        make_folder(self.directory / _WORK)
        noted = {"request": request, "done": done}
        write_text(self.directory / _WORK / _OVERWRITE_FILE, json.dumps(noted))

    def forget_overwritten(self) -> None:
        """Note that no request to do stages again is under way."""
        (self.directory / _WORK / _OVERWRITE_FILE).unlink(missing_ok=True)

    def read_split(self) -> str | None:
        """Give the run's split of its data set, as JSON, if one was drawn.

        Raises:
            RunError: if the file is no text.
        """
        path = self.directory / _SPLIT_FILE
        try:
            return read_text(path)
        except FileNotFoundError:
            return None
        except BadFileError as error:
            raise _damaged(path, what_is_wrong(error)) from error

    def write_split(self, split: str) -> None:
        """Note the run's split of its data set."""
        write_text(self.directory / _SPLIT_FILE, split)

    def _save(self) -> None:
        write_text(self.directory / _RUN_FILE, self._record.model_dump_json(indent=1) + "\n")


@contextmanager
def open_run(
    runs_dir: Path, name: str, seed: int | None = None, create: bool = False
) -> Iterator[Run]:
    """Open a run for work: no other process can while this one lives.

    Args:
        runs_dir: the folder of all runs.
        name: the run's, which its directory has too.
        seed: None for the run's own, or 0 for a new run.
        create: make the run if it is not there.

    Raises:
        RunError: if there is no such run, it is damaged, has another seed, or is in use.
    """
    directory = _directory(runs_dir, name)
    if not create and not is_run(directory):
        raise _no_run(directory)
    with _holding(directory):
        if is_run(directory):
            record = _read_record(directory)
            if seed is not None and seed != record.seed:
                raise RunError(
                    f"Run '{name}' has the seed {record.seed}, not {seed}; give another --run."
                )
        else:
            record = _RunRecord(created=_now(), seed=seed or 0, versions=dict(_versions()))
        run = Run(directory, record)
        run._recover()
        yield run


@contextmanager
def _holding(directory: Path) -> Iterator[None]:
    """Keep the folder of a run to this process; it is made if it is not there.

    What was made for a run in which nothing was begun is removed again.
    """
    lock = directory / _LOCK
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
                    f"Another process is at work in run '{directory.name}'; wait for it, or give "
                    "another --run."
                ) from None
        try:
            yield
        finally:
            if not is_run(directory) and not (directory / _WORK).exists():
                # As long as it is held: whoever waits for this one takes that in its place.
                lock.unlink(missing_ok=True)
                if left and directory not in made:
                    made.append(directory)
                for folder in reversed(made):
                    with suppress(OSError):  # There is something in it.
                        folder.rmdir()


def read_run(runs_dir: Path, name: str) -> Run:
    """Read a run without working in it.

    Raises:
        RunError: if there is no such run, or it is damaged.
    """
    directory = _directory(runs_dir, name)
    if not is_run(directory):
        raise _no_run(directory)
    return Run(directory, _read_record(directory))


def is_run(directory: Path) -> bool:
    """Tell whether a folder holds a run."""
    return (directory / _RUN_FILE).is_file()


def list_runs(root: Path) -> tuple[list[Run], dict[str, str]]:
    """Read every run below a folder, by name; folders that hold no run are passed over.

    Returns:
        Those that can be read, and what is wrong with the others, by name.
    """
    return list_readable(root, is_run, lambda directory: Run(directory, _read_record(directory)))


def list_readable(
    root: Path, is_one: Callable[[Path], bool], read: Callable[[Path], _Read]
) -> tuple[list[_Read], dict[str, str]]:
    """Read what lies in the folders below a folder, by name.

    Args:
        root: the folder; there is nothing where it is missing.
        is_one: whether a folder holds what is to be read.
        read: raises a CapspruneError for what cannot be.

    Returns:
        What can be read, and why the others cannot, by name.
    """
    found: list[_Read] = []
    damaged: dict[str, str] = {}
    for directory in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            if is_one(directory):
                found.append(read(directory))
        except CapspruneError as error:
            damaged[directory.name] = str(error)
        except OSError as error:
            damaged[directory.name] = (
                f"{error.filename or directory} cannot be read ({error.strerror}); see to that, or "
                "move it elsewhere."
            )
    return found, damaged


def _no_run(directory: Path) -> RunError:
    return RunError(
        f"There is no run '{directory.name}' in {directory.parent}; start one with "
        "'capsprune prune --model MODEL', or give another --run."
    )


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


def _directory(runs_dir: Path, name: str) -> Path:
    check_name(name)
    return runs_dir / name


def _read_record(directory: Path) -> _RunRecord:
    """Read what is known of a run.

    Raises:
        RunError: if it is damaged, in any way in which a reader could not rely on it.
    """
    path, where = directory / _RUN_FILE, ""
    try:
        record = _RunRecord.model_validate(check_plain(read_json(path)))
        for stage, done in record.stages.items():
            where = f"{stage}: "
            check_stage(stage, done.options, done.summary)
    except ValueError as error:
        raise _damaged(path, where + what_is_wrong(error)) from error
    return record


def _damaged(path: Path, reason: str) -> DamagedRun:
    return DamagedRun(f"{path} is damaged ({reason}); give another --run, or remove that folder.")


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which options differ; one that came with a later version is left open in older records."""
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def _shown(value: Any) -> Any:
    """An option as a message shows it."""
    return "left open" if value is None else value


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system, or one without links.
        shutil.copy2(source, target)
