"""What run.json holds, in format 1: written and read here alone."""

from __future__ import annotations

import functools
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from capsprune.bounds import Amount, Name, Seed, check_plain, cut, what_is_wrong
from capsprune.errors import RunError
from capsprune.files import read_json, write_text
from capsprune.stages import STAGES
from capsprune.summaries import Asked, StageSummary

#: A stage's name as files hold it: that of a plug-in that is not here is as good.
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]

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
SummaryT = TypeVar("SummaryT", bound=StageSummary)


class DamagedRun(RunError):
    """What is known of a run cannot be read."""


class StageRecord(BaseModel):
    """What a finished stage was asked for and what came of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    options: dict[str, Any]
    #: Id of what it was made from, and of what it made.
    parent: Name | None
    id: Name
    finished: Name
    seconds: Amount
    #: Of the kind that the table has for the stage.
    summary: SerializeAsAny[StageSummary]

    @classmethod
    def read(cls, stage: str, content: Any) -> StageRecord:
        """Check a parsed record.

        Args:
            stage: whose it is.
            content: parsed JSON, from `check_plain`.

        Raises:
            ValueError: if a reader could not rely on it.
        """
        if isinstance(content, dict) and {"options", "summary"} <= set(content):
            Asked.model_validate(content["options"])
            summary = summary_kind(stage).model_validate(content["summary"])
            content = {**content, "summary": summary}
        return cls.model_validate(content)

    def summary_as(self, kind: type[SummaryT]) -> SummaryT:
        """Return the summary as the kind that the stage has in the table."""
        assert isinstance(self.summary, kind), f"{type(self.summary)} is no {kind}"
        return self.summary


class RunRecord(BaseModel):
    """What is known of a run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    created: Name
    seed: Seed
    versions: dict[Name, Name]
    stages: dict[StageName, StageRecord] = Field(default_factory=dict)

    @classmethod
    def new(cls, seed: int) -> RunRecord:
        """Make that of a run in which nothing is done yet."""
        return cls(created=now(), seed=seed, versions=dict(versions()))


class Commit(BaseModel):
    """A result that is whole, in the working directory of its stage, and what run.json will say."""

    model_config = ConfigDict(extra="forbid")

    result: Annotated[str, Field(pattern=r"^[a-z]+(\.json)?$")]
    record: StageRecord
    #: The split of its images, as JSON, where the run is to take it.
    split: str | None = None

    @classmethod
    def read(cls, stage: str, path: Path) -> Commit:
        """Read one from a file.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is damaged.
        """
        content = check_plain(read_json(path))
        if isinstance(content, dict) and "record" in content:
            content = {**content, "record": StageRecord.read(stage, content["record"])}
        return cls.model_validate(content)


def summary_kind(stage: str) -> type[StageSummary]:
    """Return the kind of a stage's summary: of one that nobody knows here, any."""
    return STAGES[stage].summary if stage in STAGES else StageSummary


def read_record(path: Path) -> RunRecord:
    """Read run.json.

    Raises:
        DamagedRun: if it is damaged, in any way in which a reader could not rely on it.
    """
    where = ""
    try:
        content = check_plain(read_json(path))
        if isinstance(content, dict) and isinstance(content.get("stages"), dict):
            stages = {}
            for stage, done in content["stages"].items():
                where = f"{cut(stage, 40)}: "
                stages[stage] = StageRecord.read(stage, done)
            where = ""
            content = {**content, "stages": stages}
        return RunRecord.model_validate(content)
    except ValueError as error:
        raise damaged(path, where + what_is_wrong(error)) from error


def write_record(path: Path, record: RunRecord) -> None:
    """Write run.json, whole or not at all."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def damaged(path: Path, reason: str) -> DamagedRun:
    """Make the error of a file of a run that cannot be read."""
    return DamagedRun(f"{path} is damaged ({reason}); give another --run, or remove that folder.")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results hang on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the time as records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
