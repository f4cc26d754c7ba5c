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
    Count,
    ImageSize,
    Name,
    Number,
    Share,
    what_is_wrong,
)
from capsprune.files import parse_json, read_text
from capsprune.summaries import Measurements

_LATER_VERSIONS_TOO = ConfigDict(extra="allow", strict=True)


class Epoch(TypedDict):
    """A row of metrics.jsonl."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    epoch: NotRequired[Annotated[int, Field(ge=0, le=MAX_EPOCHS)]]
    train_loss: NotRequired[Number | None]
    validation_loss: NotRequired[Number | None]
    validation_accuracy: NotRequired[Share | None]


class Candidate(TypedDict):
    """A row of candidates.jsonl; one that broke a limit has no score."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    index: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)]
    flops_ratio: Share
    score: NotRequired[Share]
    loss: NotRequired[Number | None]
    rung: NotRequired[Annotated[int, Field(ge=0, le=1000)]]


class Variant(TypedDict):
    """A network in a sweep's profile.json."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    run: Name
    backbone: Name
    pruned: Annotated[int, Field(ge=0, le=100)]
    head: Literal["capsules", "linear"]
    file_bytes: Count


class SweepProfile(TypedDict):
    """A sweep's profile.json."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    variants: Annotated[dict[Name, Variant], Field(max_length=10_000)]
    measurements: Measurements


class _Data(TypedDict):
    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    image_size: ImageSize
    class_names: Annotated[list[str], Field(min_length=2, max_length=MAX_CLASSES)]


class Described(TypedDict):
    """What a report takes from a checkpoint's architecture.json."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    data: _Data


class DamagedFileError(Exception):
    """A file that is not as it should be."""

    def __init__(self, path: Path, reason: str) -> None:
        """Say what is wrong with a file."""
        super().__init__(f"{path} is damaged ({reason}) and left out")
        self.reason = reason


def read_rows(path: Path, kind: Any) -> tuple[Any, ...]:
    """Read a file of one JSON object a line; nothing if there is none.

    Args:
        path: of the file.
        kind: `Epoch` or `Candidate`.

    Raises:
        DamagedFileError: if a line is none of this kind.
    """
    adapter = TypeAdapter(kind)
    found: list[Any] = []
    line = 0
    try:
        for text in read_text(path).splitlines():
            line += 1
            if text.strip():
                found.append(adapter.validate_python(parse_json(text)))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise _damaged(path, error, line) from error
    return tuple(found)


def read_object(path: Path, kind: Any) -> Any:
    """Read a file of one JSON object; None if there is none.

    Args:
        path: of the file.
        kind: `SweepProfile` or `Described`.

    Raises:
        DamagedFileError: if it is none of this kind.
    """
    try:
        return TypeAdapter(kind).validate_python(parse_json(read_text(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: OSError | ValueError, line: int = 0) -> DamagedFileError:
    where = f"line {line}: " if line else ""
    return DamagedFileError(path, f"{where}{what_is_wrong(error)}")
