"""Reading and writing files: written whole or not at all, read within bounds.

Every file is written beside its final name, flushed to the disk, and renamed; then the folder that
holds the name is flushed too. So neither a crash nor a loss of power leaves a file in part.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: files are replaced as well there, what a crash leaves stays.
    fcntl = None  # type: ignore[assignment]

#: The largest JSON, YAML or text file of a run that is read, in bytes.
TEXT_LIMIT = 64 * 2**20

_PARTIAL = ".partial"
#: How often a folder is tried to be made that others make and remove.
_ATTEMPTS = 100
#: Above so many files, the system is told once to write all that it holds back.
_MANY = 1000
#: What file systems that cannot flush, as some cannot a folder, say of it.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS}


class BadFileError(ValueError):
    """Why a file cannot be read, in words that follow its name: "is no regular file"."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside `path` to write to; it takes that name when the block ends without error.

    What processes that are gone left half-written in that folder is removed first. The place is a
    file that is there already, and empty: it is to be written to, not to be replaced.

    Raises:
        OSError: if it cannot be written or renamed. What was written is removed whenever anything
            is raised.
    """
    remove_partials(path.parent)
    partial, descriptor = _make_partial(path, folder=False)
    try:
        yield partial
        move(partial, path)
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """Give a new folder to work in, which is gone when the block ends.

    Where its process is killed, whoever works in `parent` next removes it.

    Args:
        parent: where it lies.
        name: what it is for.

    Raises:
        OSError: if it cannot be made.
    """
    remove_partials(parent)
    folder, descriptor = _make_partial(parent / name, folder=True)
    try:
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, as UTF-8, so that it survives even the loss of power."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes so that they survive even the loss of power."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def make_folder(path: Path) -> list[Path]:
    """Make a folder, and those above it, so that they survive even the loss of power.

    Returns:
        Those that were not there, the outermost first.

    Raises:
        OSError: if it cannot be made, or there is a file of that name.
    """
    made: list[Path] = []
    for attempt in itertools.count(1):
        missing = [path]
        while not missing[0].parent.exists():
            missing.insert(0, missing[0].parent)
        try:
            for folder in missing:
                try:
                    folder.mkdir()
                except FileExistsError:
                    if not folder.is_dir():
                        raise
                else:
                    made.append(folder)
                    _flush_one(folder.parent)
            break
        # Another process may have removed what it had made, or what is above, at this very moment.
        except (FileExistsError, FileNotFoundError) as error:
            in_the_way = isinstance(error, FileExistsError) and _is_no_folder(folder)
            if in_the_way or attempt == _ATTEMPTS:
                raise
    return made


def _is_no_folder(path: Path) -> bool:
    """Tell, by one look, whether there is something that is no folder."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return path.is_symlink()  # to nowhere


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder so that, after a loss of power too, the new name means all of it.

    Raises:
        OSError: if it cannot be written or renamed; an existing file is replaced, an existing
            folder is not.
    """
    flush(source)
    source.replace(target)
    _flush_one(target.parent)
    if source.parent != target.parent:
        _flush_one(source.parent)


def flush(path: Path) -> None:
    """Have a file, or a folder with all that is in it, written to the disk.

    Raises:
        OSError: if the disk does not take it.
    """
    if path.is_symlink():
        return
    if not path.is_dir():
        _flush_one(path)
        return
    inside = [inner for inner in path.rglob("*") if not inner.is_symlink()]
    if len(inside) > _MANY and hasattr(os, "sync"):
        os.sync()
        return
    for inner in reversed(inside):  # a folder after what is in it
        _flush_one(inner)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # A folder where the system opens none, or a file that may not be read.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def holding(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, made if it is not there, as one alone can at a time.

    The lock ends with the process, however it ends. Only who holds the file may remove it: those
    who waited for it then hold the one that is in its place.

    Raises:
        BlockingIOError: if another holds it, and `wait` is false.
        OSError: if it cannot be made.
    """
    descriptor = _lock(path, wait)
    if descriptor is None:
        with _holding_without_flock(path, wait):
            yield
        return
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # At once, even if a child has inherited it.
        os.close(descriptor)


def _lock(path: Path, wait: bool) -> int | None:
    """Open and lock a file; None where there is no `flock`."""
    while fcntl is not None:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.ENOSYS:
                raise
            break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # Whoever held it has removed it.
    return None


@contextmanager
def _holding_without_flock(path: Path, wait: bool) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(path).acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BlockingIOError from None
    with lock:
        yield


def remove_partials(folder: Path) -> None:
    """Remove what `replacing`, `scratch` and `discard` left in a folder when they were killed."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for partial in folder.glob(f".*{_PARTIAL}"):
            with contextlib.suppress(OSError):
                descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    # Raises while its writer lives.
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if partial.is_dir():
                        shutil.rmtree(partial)
                    else:
                        partial.unlink()
                finally:
                    os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there, at once: killed, it leaves nothing of that name.

    Raises:
        OSError: if it cannot be renamed.
    """
    partial = _partial_of(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(partial)
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink()


def _partial_of(path: Path) -> Path:
    # So short that it fits wherever the name itself does.
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}{_PARTIAL}")


def _make_partial(path: Path, folder: bool) -> tuple[Path, int]:
    """Make a file or a folder beside `path`, and say that whoever works on it lives.

    Returns:
        It, and a descriptor that is to be closed in the end.
    """
    while True:
        partial = _partial_of(path)
        if folder:
            partial.mkdir()
            descriptor = os.open(partial, os.O_RDONLY)
        else:
            descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is None:
            return partial, descriptor
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(descriptor, partial):
            return partial, descriptor
        os.close(descriptor)  # Somebody found it before it was locked.


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still means the file that was opened there."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """Keep a folder to this process while the block lasts, for others that ask for it so.

    The lock ends with the process and leaves no file. Where the folder is missing, or the system
    has no such locks, there is none.
    """
    descriptor = None
    if fcntl is not None:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def opened(path: Path, limit: int) -> Iterator[BinaryIO]:
    """Open a regular file of a bounded size to read it.

    Args:
        path: the file. Pipes and devices, which may give nothing or never end, are not opened.
        limit: bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it may not be read.
        BadFileError: if it is no regular file, or larger.
    """
    if "\0" in str(path):  # as no file is called
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadFileError("is no regular file")
        if found.st_size > limit:
            raise BadFileError(f"is larger than {limit / 2**20:g} MB")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read a regular file of a bounded size.

    Args:
        path: the file.
        limit: bytes.

    Raises:
        FileNotFoundError, OSError, BadFileError: as `opened`.
    """
    with opened(path, limit) as file:
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


def dump_json(value: Any, indent: int | None = None) -> str:
    """Write a value as JSON, which knows no NaN and no infinity: null stands for them.

    Args:
        value: of dicts, lists, tuples, texts, numbers.
        indent: spaces a level; None for one line.
    """
    return json.dumps(_without_infinities(value), indent=indent, allow_nan=False)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(inner) for inner in value]
    return value


def parse_json(text: str) -> Any:
    """Parse JSON; its numbers are finite, its integers have 64 bits.

    Raises:
        BadFileError: if it is no JSON.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)
        if "\\ud" in text.lower():  # Half of a surrogate pair is no text: nothing can write it.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise BadFileError("is nested too deeply") from error
    except ValueError as error:
        raise BadFileError(f"is no JSON ({error})") from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _integer(text: str) -> int:
    number = int(text) if len(text) <= 20 else 2**63
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text[:40]} is too large")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large")
    return number
