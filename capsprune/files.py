"""Reading and writing files: written whole or not at all, read within bounds.

Every file is written beside its final name, flushed to the disk, and renamed; then the folder that
holds the name is flushed too. So neither a crash nor a loss of power leaves a file in part.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: files are replaced as well there, what a crash leaves stays.
    fcntl = None  # type: ignore[assignment]

#: The largest JSON, YAML or text file of a run that is read, in bytes.
TEXT_LIMIT = 64 * 2**20

_PARTIAL = ".partial"


class BadFileError(ValueError):
    """Why a file cannot be read, in words that follow its name: "is no regular file"."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside `path` to write to; it takes that name when the block ends without error.

    What processes that are gone left half-written in that folder is removed first.

    Raises:
        OSError: if it cannot be written or renamed. What was written is removed whenever anything
            is raised.
    """
    remove_partials(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o666)
    try:
        if fcntl is not None:  # Says that whoever writes it lives.
            with contextlib.suppress(OSError):  # A file system without locks.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield partial
        move(partial, path)
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, as UTF-8, so that it survives even the loss of power."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes so that they survive even the loss of power."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder so that, after a loss of power too, the new name means all of it.

    Raises:
        OSError: if it cannot be renamed; an existing file is replaced, an existing folder is not.
    """
    flush(source)
    source.replace(target)
    _flush_one(target.parent)
    if source.parent != target.parent:
        _flush_one(source.parent)


def flush(path: Path) -> None:
    """Have a file, or a folder with all that is in it, written to the disk."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            flush(inner)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # A folder where the system opens none, or a file that may not be read.
        return
    try:
        with contextlib.suppress(OSError):  # File systems that cannot flush a folder say EINVAL.
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Remove what `replacing` was writing in a folder when its process was killed."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for partial in folder.glob(f".*{_PARTIAL}"):
            with contextlib.suppress(OSError), partial.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its writer lives
                partial.unlink()


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read a regular file of a bounded size.

    Args:
        path: the file. Pipes and devices, which may give nothing or never end, are not read.
        limit: bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it may not be read.
        BadFileError: if it is no regular file, or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadFileError("is no regular file")
        if found.st_size > limit:
            raise BadFileError(f"is larger than {limit / 2**20:g} MB")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BadFileError(f"is larger than {limit / 2**20:g} MB")
    return content


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """Read a UTF-8 text file of a bounded size.

    Raises:
        FileNotFoundError, OSError, BadFileError: as `read_bytes`, or if it is no UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(f"is no UTF-8 text (byte {error.start})") from error


def read_json(path: Path, limit: int = TEXT_LIMIT) -> Any:
    """Read a JSON file of a bounded size; its numbers are finite.

    Raises:
        FileNotFoundError, OSError, BadFileError: as `read_text`, or if it is no JSON.
    """
    return parse_json(read_text(path, limit))


def parse_json(text: str) -> Any:
    """Parse JSON; its numbers are finite.

    Raises:
        BadFileError: if it is no JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise BadFileError("is nested too deeply") from error
    except ValueError as error:
        raise BadFileError(f"is no JSON ({error})") from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large")
    return number
