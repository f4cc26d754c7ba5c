"""A run: one directory, what was asked for, which stages are done, and how to go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from capsprune.bounds import what_is_wrong
from capsprune.errors import CapspruneError, RunError
from capsprune.files import (
    BadFileError,
    discard,
    flush,
    make_folder,
    read_json,
    read_text,
    write_text,
)
from capsprune.lineage import changed_options, find_stale, followed_by, kept_beside
from capsprune.records import (
    Commit,
    RunRecord,
    StageName,
    StageRecord,
    damaged,
    now,
    read_record,
    summary_kind,
    versions,
    write_record,
)
from capsprune.run_folder import RunFolder, check_name, copy_shared, is_run
from capsprune.stages import STAGES
from capsprune.summaries import StageSummary

ReadT = TypeVar("ReadT")


class Run:
    """A run directory. Make one with `open_run`."""

    def __init__(self, directory: Path, record: RunRecord) -> None:
        """Use `open_run`."""
        self.directory = directory
        self._folder = RunFolder(directory)
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
        return self._folder.path(stage)

    def work(self, stage: StageName) -> Path:
        """Where a stage keeps what is not finished."""
        return self._folder.work(stage)

    def _command(self, stage: StageName) -> str:
        """What users are told to give so that a stage is done."""
        return f"capsprune {STAGES[stage].command.words}{self._run_flag}"

    def source_of(self, stage: StageName) -> StageName:
        """Return the stage that a stage is made from, in this run as it is now.

        Args:
            stage: one that follows another.

        Returns:
            Of the stages that it may follow, the first one that is finished; the last one where
            none is, which `require` will miss.
        """
        source = followed_by(stage, self.stages)
        if source is None:
            raise ValueError(f"{stage} follows no other stage.")
        return source

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
        stale = find_stale(stage, self.stages)
        if stale is not None:
            raise RunError(
                f"{stale.stage} of run '{self.name}' was made from {stale.words}; run "
                f"'{self._command(stale.stage)} --overwrite'."
            )
        if not self.path(stage).exists():
            raise RunError(f"{self.path(stage)} is gone; run '{self._command(stage)} --overwrite'.")
        return self.stages[stage]

    def unusable(self, needed_by: str) -> dict[StageName, str]:
        """Say of each stage whose results are gone or out of date what is wrong with them."""
        found = {}
        for stage in self.stages:
            try:
                self.require(stage, needed_by)
            except RunError as error:
                found[stage] = str(error)
        return found

    def kept_beside(self, stage: StageName) -> list[StageName]:
        """The finished stages that stay valid when a stage is made anew: those not made from it."""
        return kept_beside(stage, self.stages)

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
            for key in changed_options(before, options)
        ]
        if not changed and record.parent == parent:
            return record
        stale = find_stale(stage, self.stages)
        source = "an older input"
        if stale is not None and stale.stage == stage and stale.made_from is not None:
            source = f"{stale.made_from} as input instead of {stale.source}"
        difference = ", ".join(changed) or source
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
        request_file = self._folder.request(stage)
        try:
            before = read_json(request_file)
            same = (
                before["parent"] == parent
                and before.get("split", older_split) == split
                and not changed_options(read(before["options"]), options)
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
        summary: Mapping[str, Any] | StageSummary,
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
            summary: what came of it, as the table's kind for the stage has it.
            split: of its images, as JSON; from now on the run's. None leaves that as it is.
        """
        record = StageRecord(
            options=options,
            parent=parent,
            id=id,
            finished=now(),
            seconds=round(seconds, 3),
            summary=summary_kind(stage).of(summary),
        )
        flush(result)
        # From here on the stage is done, whatever happens: `_recover` does the rest if need be.
        noted = Commit(result=result.name, record=record, split=split)
        write_text(self._folder.commit(stage), noted.model_dump_json())
        self._finish(stage, noted)
        return record

    def _finish(self, stage: StageName, commit: Commit) -> None:
        """Put a result that is whole in its place, or do what is left of that."""
        self._folder.put(stage, self.work(stage) / commit.result)
        if commit.split is not None:
            self.write_split(commit.split)
        self._record.stages[stage] = commit.record
        self._record.versions = dict(versions())
        self._save()
        self._folder.tidy(stage)

    def _recover(self) -> None:
        """Finish what a process that was killed was about to: with the lock held alone."""
        stages = list(dict.fromkeys([*STAGES, *self.stages]))
        self._folder.remove_partials(stages)
        for stage in stages:
            try:
                commit = Commit.read(stage, self._folder.commit(stage))
            except (OSError, ValueError):
                pass
            else:
                self._finish(stage, commit)
            self._folder.restore(stage)

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
        copy_shared(source.path(stage), result)
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
            noted = read_json(self._folder.overwrite)
            return dict(noted["done"]) if noted["request"] == request else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note_overwritten(self, request: dict[str, Any], done: dict[str, str]) -> None:
        """Note which stages a request did again, until `forget_overwritten`."""
        make_folder(self._folder.all_work)
        noted = {"request": request, "done": done}
        write_text(self._folder.overwrite, json.dumps(noted))

    def forget_overwritten(self) -> None:
        """Note that no request to do stages again is under way."""
        (self._folder.overwrite).unlink(missing_ok=True)

    def read_split(self) -> str | None:
        """Give the run's split of its data set, as JSON, if one was drawn.

        Raises:
            RunError: if the file is no text.
        """
        path = self._folder.split
        try:
            return read_text(path)
        except FileNotFoundError:
            return None
        except BadFileError as error:
            raise damaged(path, what_is_wrong(error)) from error

    def write_split(self, split: str) -> None:
        """Note the run's split of its data set."""
        write_text(self._folder.split, split)

    def _save(self) -> None:
        write_record(self._folder.record, self._record)


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
    with RunFolder(directory).holding():
        if is_run(directory):
            run = _read(directory)
            if seed is not None and seed != run.seed:
                raise RunError(
                    f"Run '{name}' has the seed {run.seed}, not {seed}; give another --run."
                )
        else:
            run = Run(directory, RunRecord.new(seed or 0))
        run._recover()
        yield run


def read_run(runs_dir: Path, name: str) -> Run:
    """Read a run without working in it.

    Raises:
        RunError: if there is no such run, or it is damaged.
    """
    directory = _directory(runs_dir, name)
    if not is_run(directory):
        raise _no_run(directory)
    return _read(directory)


def list_runs(root: Path) -> tuple[list[Run], dict[str, str]]:
    """Read every run below a folder, by name; folders that hold no run are passed over.

    Returns:
        Those that can be read, and what is wrong with the others, by name.
    """
    return list_readable(root, is_run, _read)


def list_readable(
    root: Path, is_one: Callable[[Path], bool], read: Callable[[Path], ReadT]
) -> tuple[list[ReadT], dict[str, str]]:
    """Read what lies in the folders below a folder, by name.

    Args:
        root: the folder; there is nothing where it is missing.
        is_one: whether a folder holds what is to be read.
        read: raises a CapspruneError for what cannot be.

    Returns:
        What can be read, and why the others cannot, by name.
    """
    found: list[ReadT] = []
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


def _directory(runs_dir: Path, name: str) -> Path:
    check_name(name)
    return runs_dir / name


def _read(directory: Path) -> Run:
    return Run(directory, read_record(RunFolder(directory).record))


def _shown(value: Any) -> Any:
    """An option as a message shows it."""
    return "left open" if value is None else value
