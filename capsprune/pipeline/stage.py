"""What every stage does: tell whether it is done, open its work, commit what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from capsprune.backbones.weights_file import digest
from capsprune.checkpoint import Architecture, save_checkpoint
from capsprune.data.names import written_path
from capsprune.data.sources import DataSplits
from capsprune.data.splits import Split
from capsprune.errors import CapspruneError, CheckpointError, RunError
from capsprune.options import Options, parse_options
from capsprune.pipeline.session import Session
from capsprune.provenance import verification_images, write_provenance
from capsprune.records import StageName, StageRecord
from capsprune.stages import Command, commands_of
from capsprune.training.fit import History

#: Options that only say where something lies, or who does the work: a stage that was interrupted
#: goes on, and one that is finished stays, whatever they are. They are not written down either: the
#: URL of a storage may hold a password.
_NOT_COMPARED = frozenset({"data_root", "output", "storage", "workers"})
#: What was asked for beside the options, and what an older record that lacks it was made with.
_BESIDE_OPTIONS: dict[str, Any] = {"precision": "32-true", "sha256": None, "linear": None}
#: Digests of the files that options name: another file of the same name is another request. Older
#: records lack them, and a file that is gone has none.
_CONTENTS = frozenset({"weights_sha256", "strategy_sha256"})


@dataclass
class Stage:
    """One stage of a run, while it is worked on."""

    session: Session
    name: StageName
    #: That makes it.
    command: Command
    #: What was asked for, as it is compared and written down.
    asked: dict[str, Any]
    #: Id of what it is made from.
    parent: str | None
    started: float = field(default_factory=time.perf_counter)
    _splits: DataSplits | None = None

    @classmethod
    def of(
        cls,
        session: Session,
        name: StageName,
        options: Options,
        parent: str | None,
        **resolved: Any,
    ) -> Stage:
        """Describe a stage.

        Args:
            session: of the command.
            name: of the stage.
            options: what was asked for.
            parent: id of what it is made from.
            resolved: values that stand for an option that was left open.
        """
        asked = {**_written(options), **resolved}
        command = next(row for row in commands_of(name) if row.options is type(options))
        if command.is_precise:
            asked["precision"] = session.precision
        return cls(session, name, command, asked, parent)

    def done(self) -> StageRecord | None:
        """Give the record if the stage is finished as asked, saying so.

        Raises:
            RunError: if it is finished with other options, or with some that cannot be read, and
                is not to be overwritten.
        """
        record = self.session.run.finished(
            self.name, self.asked, self.parent, self.session.overwrite, self._read
        )
        if record is not None:
            self.session.progress.say(f"{self.name} is done already; --overwrite does it again")
        return record

    def _read(self, stored: dict[str, Any]) -> dict[str, Any]:
        """Give stored options as they would be written now: those that came later at defaults.

        Raises:
            RunError: if they are of another command or version, or cannot be read.
        """
        run = self.session.run
        has = f"Run '{run.name}' has a finished {self.name} already, made with"
        remedy = "give --overwrite to replace it, or another --run."
        made_by = max(
            # Of those that know as many of its options, the one that is asked for.
            (self.command, *commands_of(self.name)),
            key=lambda command: len(set(stored) & set(command.options.model_fields)),
        )
        if made_by != self.command:
            raise RunError(f"{has} {made_by.name} instead of {self.command.name}; {remedy}")
        fields = {
            key: value for key, value in stored.items() if key in self.command.options.model_fields
        }
        beside_options = set(_BESIDE_OPTIONS) & set(self.asked)
        unknown = sorted(set(stored) - set(fields) - beside_options - _CONTENTS)
        if unknown:
            raise RunError(
                f"{has} options that this version does not know ({', '.join(unknown)}); {remedy}"
            )
        try:
            options = parse_options(self.command.options, fields, "")
        except CapspruneError as error:
            reason = str(error).rstrip(".")
            raise RunError(f"{has} options that cannot be used ({reason}); {remedy}") from error
        beside = {
            key: stored.get(key, default)
            for key, default in _BESIDE_OPTIONS.items()
            if key in self.asked
        }
        for key in _CONTENTS & set(self.asked):
            had, has = stored.get(key), self.asked[key]
            beside[key] = has if had is None or has is None else had
        return {**_written(options), **beside}

    def begin(self, splits: DataSplits | None = None) -> Path:
        """Open the working directory, which may hold what an interrupted attempt left.

        Args:
            splits: the images that the stage takes, if any; their split becomes the run's when the
                stage is finished.
        """
        self._splits = splits
        stored = self.session.split
        return self.session.run.begin(
            self.name,
            self.asked,
            self.parent,
            None if splits is None else _images_of(splits.split),
            None if splits is None or stored is None else _images_of(stored),
            self._read,
        )

    def commit(self, result: Path, id: str, summary: dict[str, Any]) -> StageRecord:
        """Move a result from the working directory to its place in the run.

        Args:
            result: file or directory.
            id: of the result.
            summary: what came of the stage.
        """
        root = self.session.root
        if root is not None:
            summary = {**summary, "data_root": written_path(root)}
        if self.command.is_precise:
            summary = {**summary, "device": self.session.fabric.device.type}
        splits, stored = self._splits, self.session.split
        drawn = splits is not None and (stored is None or stored.digest != splits.split.digest)
        return self.session.run.commit(
            self.name,
            result,
            id=id,
            options=self.asked,
            parent=self.parent,
            seconds=time.perf_counter() - self.started,
            summary=summary,
            split=splits.split.to_json() if splits is not None and drawn else None,
        )

    def commit_checkpoint(
        self,
        network: nn.Module,
        architecture: Architecture,
        history: History,
        summary: dict[str, Any],
        files: Mapping[str, str] | None = None,
    ) -> StageRecord:
        """Save a network as the stage's result.

        Args:
            network: what was made.
            architecture: its description.
            history: of its training.
            summary: what came of the stage.
            files: further text files for the checkpoint, by name.
        """
        splits = self._splits
        assert splits is not None  # `begin` comes first
        architecture = architecture.model_copy(update={"split": splits.split.digest})
        result = self.session.run.work(self.name) / "result"
        rows = [epoch.to_dict() for epoch in history.epochs]
        save_checkpoint(result, network, architecture, rows)
        write_provenance(result, splits.split, verification_images(splits.test))
        for name, text in (files or {}).items():
            (result / name).write_text(text, encoding="utf-8")
        return self.commit(result, architecture.id, summary)


def content_of(path: Path | None) -> str | None:
    """Give the digest of a file that an option names, as a stage compares it.

    Args:
        path: the file; None if the option was left out.

    Returns:
        None if there is no such file, which whoever reads it says.
    """
    try:
        return None if path is None else digest(path)
    except (CheckpointError, OSError):
        return None


def _written(options: Options) -> dict[str, Any]:
    """Options as they are written down and compared."""
    return options.model_dump(mode="json", exclude=set(_NOT_COMPARED))


def _images_of(split: Split) -> str:
    """Which images a stage takes: of which data, and which of them."""
    return f"{split.fingerprint} {split.digest}"
