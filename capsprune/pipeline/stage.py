"""What every stage does: tell whether it is done, open its work, commit what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from capsprune.checkpoint import Architecture, save_checkpoint
from capsprune.data.names import written_path
from capsprune.data.sources import DataSplits
from capsprune.pipeline.session import Session
from capsprune.recipe import Options
from capsprune.run import StageName, StageRecord
from capsprune.training.fit import History

#: Options that only say where something lies, or who does the work: a stage that was interrupted
#: goes on, and one that is finished stays, whatever they are. They are not written down either: the
#: URL of a storage may hold a password.
_NOT_COMPARED = frozenset({"data_root", "output", "storage", "workers"})


@dataclass
class Stage:
    """One stage of a run, while it is worked on."""

    session: Session
    name: StageName
    #: What was asked for, as it is compared and written down.
    asked: dict[str, Any]
    #: Id of what it is made from.
    parent: str | None
    started: float = field(default_factory=time.perf_counter)

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
        asked = {**options.model_dump(mode="json"), **resolved}
        kept = {key: value for key, value in asked.items() if key not in _NOT_COMPARED}
        return cls(session, name, kept, parent)

    def done(self) -> StageRecord | None:
        """Give the record if the stage is finished as asked, saying so.

        Raises:
            RunError: if it is finished with other options, and is not to be overwritten.
        """
        record = self.session.run.finished(
            self.name, self.asked, self.parent, self.session.overwrite
        )
        if record is not None:
            self.session.progress.say(f"{self.name} is done already; --overwrite does it again")
        return record

    def begin(self, splits: DataSplits) -> Path:
        """Open the working directory, which may hold what an interrupted attempt left."""
        run = self.session.run
        work = run.begin(self.name, self.asked, self.parent)
        if run.read_split() is None:
            run.write_split(splits.split.to_json())
        return work

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
        return self.session.run.commit(
            self.name,
            result,
            id=id,
            options=self.asked,
            parent=self.parent,
            seconds=time.perf_counter() - self.started,
            summary=summary,
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
        result = self.session.run.work(self.name) / "result"
        rows = [epoch.to_dict() for epoch in history.epochs]
        save_checkpoint(result, network, architecture, rows)
        for name, text in (files or {}).items():
            (result / name).write_text(text, encoding="utf-8")
        return self.commit(result, architecture.id, summary)
