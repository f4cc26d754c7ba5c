"""The files that a report reads beside run.json: each is as described here, or it is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from capsprune.bounds import (
    MAX_CANDIDATES,
    MAX_CLASSES,
    MAX_EPOCHS,
    MAX_ITERATIONS,
    ChannelCount,
    Count,
    ImageSize,
    Name,
    Number,
    Share,
    what_is_wrong,
)
from capsprune.files import parse_json, read_text
from capsprune.summaries import Measurements


class _Object(TypedDict):
    """A JSON object, which may have the keys of later versions too."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]


class Epoch(_Object):
    """A row of metrics.jsonl."""

    epoch: NotRequired[Annotated[int, Field(ge=0, le=MAX_EPOCHS)]]
    train_loss: NotRequired[Number | None]
    validation_loss: NotRequired[Number | None]
    validation_accuracy: NotRequired[Share | None]


class Candidate(_Object):
    """A row of candidates.jsonl; one that broke a limit has no score."""

    index: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)]
    flops_ratio: Share
    score: NotRequired[Share]
    loss: NotRequired[Number | None]
    rung: NotRequired[Annotated[int, Field(ge=0, le=1000)]]


class Variant(_Object):
    """A network in a sweep's profile.json."""

    run: Name
    backbone: Name
    pruned: Annotated[int, Field(ge=0, le=100)]
    head: Literal["capsules", "linear"]
    slim: NotRequired[Name]
    file_bytes: Count


class SweepProfile(_Object):
    """A sweep's profile.json."""

    variants: Annotated[dict[Name, Variant], Field(max_length=10_000)]
    measurements: Measurements


class _Data(_Object):
    image_size: ImageSize
    class_names: Annotated[list[str], Field(min_length=2, max_length=MAX_CLASSES)]


class _Head(_Object):
    kind: NotRequired[Name]
    iterations: NotRequired[Annotated[int, Field(ge=1, le=MAX_ITERATIONS)]]
    rank: NotRequired[ChannelCount | None]


class Described(_Object):
    """What a report takes from a checkpoint's architecture.json."""

    data: _Data
    head: NotRequired[_Head | None]


class DamagedFileError(Exception):
    """A file that is not as it should be."""

    def __init__(self, path: Path, reason: str) -> None:
        """Say what is wrong with a file."""
        super().__init__(f"{path} is damaged ({reason}) and left out")
        self.reason = reason


def read_rows(path: Path, kind: Any, *, whole: bool = False) -> tuple[Any, ...]:
    """Read a file of one JSON object a line; nothing if there is none.

    Args:
        path: of the file.
        kind: what each is: one of the above.
        whole: there is one object, on however many lines.

    Raises:
        DamagedFileError: if one is not of this kind.
    """
    adapter = TypeAdapter(kind)
    found: list[Any] = []
    line = 0
    try:
        text = read_text(path)
        for row in [text] if whole else text.splitlines():
            line += 1
            if whole or row.strip():
                found.append(adapter.validate_python(parse_json(row)))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        where = f"line {line}: " if line and not whole else ""
        raise DamagedFileError(path, f"{where}{what_is_wrong(error)}") from error
    return tuple(found)
