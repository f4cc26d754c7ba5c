"""Opening the database of a study: set up wholly or not at all, refused in one sentence.

Optuna makes its tables statement by statement, and SQLite keeps each of them at once; a process
that is killed meanwhile leaves tables without the indices that keep them consistent, and those are
never made later. So an SQLite file is made beside its name and renamed when it is complete. What
was left half-made in a database that others share is completed when it is opened.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sqlite3
import time
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsprune.errors import StudyError
from capsprune.files import holding_folder, replacing
from capsprune.pruning.samplers import quiet_optuna

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

#: How often a database is tried to be opened.
_ATTEMPTS = 4
#: Seconds that SQLite waits while another process writes.
_SQLITE_WAIT = 60
#: Package that has the driver which is imported under a name, where they differ.
_PACKAGES = {
    "MySQLdb": "mysqlclient",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "mysql": "mysql-connector-python",
}
#: A commit needs no flush to disk to survive the process, only to survive loss of power. The
#: write-ahead log stays consistent in either case.
_FAST = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL")
#: For a file that nobody else knows yet: no file beside it that a crash could leave.
_ALONE = ("PRAGMA journal_mode=MEMORY", "PRAGMA synchronous=OFF")


def open_file(path: Path, name: str) -> optuna.storages.RDBStorage:
    """Open an SQLite file that no other process uses; make it, with a study, if it is not there.

    One that cannot be used and has no finished candidate is made anew.

    Args:
        path: of the file.
        name: of the study that it has when this returns.

    Raises:
        StudyError: if the file cannot be used and may have finished candidates.
        OSError: if it cannot be made.
    """
    if _is_empty(path):
        _make(path, name)
        return _opened(path, name)
    try:
        if not os.access(path, os.W_OK):
            raise PermissionError("it may not be written to")
        return _opened(path, name)
    except Exception as error:  # What a damaged file leads Optuna to has no common kind.
        if not _is_without_candidates(path):
            raise StudyError(
                f"The search in {path} cannot be read or gone on with ({_reason(error)}); restore "
                "that file, or remove it to begin the search anew."
            ) from None
    _make(path, name)
    return _opened(path, name)


def open_url(url: str, heartbeat: int, grace: int) -> optuna.storages.RDBStorage:
    """Open a database that other processes may use at the same time, and make its tables.

    Args:
        url: as SQLAlchemy writes it.
        heartbeat: seconds between two signs of life.
        grace: seconds without one until a process counts as dead.

    Raises:
        StudyError: if it cannot be opened.
    """
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StudyError(
            "--storage is no URL of a database; give one such as sqlite:///search.db or "
            "postgresql://user@host/database."
        ) from None
    is_sqlite = parsed.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {}
    if is_sqlite:
        arguments["connect_args"] = {"timeout": _SQLITE_WAIT}
    else:
        arguments["pool_pre_ping"] = True
    file = _file_of(parsed) if is_sqlite else None
    try:
        with holding_folder(file.parent) if file else contextlib.nullcontext():
            if file is not None and file.parent.is_dir() and _is_empty(file):
                _make(file, None)
            return _shared_storage(url, arguments, heartbeat, grace)
    except ImportError as error:
        raise StudyError(
            f"{hidden(url)} needs a database driver that is not installed ({_reason(error, url)}); "
            f"install it with: pip install {_package_of(error)}."
        ) from None
    except OSError as error:
        raise StudyError(
            f"{hidden(url)} cannot be made ({error.strerror or error}); give another --storage."
        ) from None
    except StudyError:
        raise
    except Exception as error:  # Every driver has its own kinds.
        raise StudyError(
            f"{hidden(url)} cannot be opened ({_reason(error, url)}); check the URL, and that the "
            "database is there and can be written to."
        ) from None


def close(storage: optuna.storages.BaseStorage) -> None:
    """Close all connections of a storage."""
    storage.remove_session()
    if isinstance(storage, quiet_optuna().storages.RDBStorage):
        storage.engine.dispose()


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Say in one sentence that the database is gone, or holds nonsense."""
    import sqlalchemy

    optuna = quiet_optuna()
    try:
        yield
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        json.JSONDecodeError,
    ) as error:
        raise StudyError(
            f"The database of the search does not answer as it should ({_reason(error)}); see to "
            "it and give the same command again, which goes on from where it stopped."
        ) from None


def hidden(url: str) -> str:
    """Give a database's URL without its password."""
    import sqlalchemy

    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "the storage that was given"


def _shared_storage(
    url: str, arguments: dict[str, Any], heartbeat: int, grace: int
) -> optuna.storages.RDBStorage:
    import sqlalchemy

    escaped = url.replace("{", "{{").replace("}", "}}")  # Optuna fills in what braces hold.
    for attempt in itertools.count(1):
        try:
            storage = _storage(
                escaped,
                engine_kwargs=arguments,
                heartbeat_interval=heartbeat,
                grace_period=grace,
            )
            _complete_tables(storage.engine)
            break
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.OperationalError):
            # Another process may be making the tables at this very moment.
            if attempt == _ATTEMPTS:
                raise
            time.sleep(0.2 * attempt)
    return storage


def _storage(url: str, **options: Any) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quiet_optuna().storages.RDBStorage(url, **options)


def _file_storage(path: Path, settings: tuple[str, ...], **options: Any) -> Any:
    """Open a file by its path: a URL gives a meaning to characters that a path may hold."""
    import sqlalchemy

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_SQLITE_WAIT, check_same_thread=False)
        for setting in settings:
            connection.execute(setting)
        return connection

    arguments = {"creator": connect, "poolclass": sqlalchemy.pool.QueuePool}
    return _storage("sqlite://", engine_kwargs=arguments, **options)


def _opened(path: Path, name: str) -> optuna.storages.RDBStorage:
    import sqlalchemy

    storage = _file_storage(path, _FAST, skip_table_creation=True)
    try:
        with storage.engine.connect() as connection:
            found = connection.execute(sqlalchemy.text("PRAGMA quick_check(1)")).scalar()
        if found != "ok":
            raise sqlite3.DatabaseError(str(found))
        _complete_tables(storage.engine)
        _create_study(storage, name)
    except BaseException:
        close(storage)
        raise
    return storage


def _make(path: Path, name: str | None) -> None:
    """Make an SQLite file with all of Optuna's tables, and one study; it replaces what is there."""
    with replacing(path) as partial:
        storage = _file_storage(partial, _ALONE)
        try:
            if name is not None:
                _create_study(storage, name)
        finally:
            close(storage)
        # SQLite would take what belongs to the old file for a part of the new one.
        path.unlink(missing_ok=True)
        for ending in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + ending).unlink(missing_ok=True)


def _create_study(storage: optuna.storages.RDBStorage, name: str) -> None:
    quiet_optuna().create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )


def _is_empty(path: Path) -> bool:
    """Whether there is nothing in a file yet. What is no regular file is left to SQLite."""
    try:
        return path.is_file() and path.stat().st_size == 0 if path.exists() else True
    except OSError:
        return False


def _file_of(url: sqlalchemy.URL) -> Path | None:
    """The file that a plain URL of SQLite names."""
    name = url.database
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name).absolute()


def _is_without_candidates(path: Path) -> bool:
    """Whether a file is surely a database of Optuna's in which no candidate is finished."""
    tables = {*_models().metadata.tables, "alembic_version", "sqlite_sequence"}
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            found = {
                name
                for (name,) in connection.execute("SELECT name FROM sqlite_master")
                if not name.startswith(("ix_", "sqlite_autoindex"))
            }
            if not found <= tables:
                return False
            if "trials" not in found:
                return True
            query = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
            return bool(connection.execute(query).fetchone()[0] == 0)
    except sqlite3.Error:
        return False


def _models() -> Any:
    from optuna.storages._rdb import models

    return models.BaseModel


def _complete_tables(engine: sqlalchemy.Engine) -> None:
    """Make the indices that Optuna's tables lack where they were left half-made.

    Without them studies of one name were made twice; those in which nothing was tried go.

    Raises:
        DatabaseError: if a table is missing.
    """
    import sqlalchemy

    inspector = sqlalchemy.inspect(engine)
    missing = _models().metadata.tables.keys() - set(inspector.get_table_names())
    if missing:
        raise sqlite3.DatabaseError(f"it has no table {min(missing)}")
    for table in _models().metadata.sorted_tables:
        present = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in present:
                if table.name == "studies":
                    _remove_doubles(engine)
                index.create(engine)


def _remove_doubles(engine: sqlalchemy.Engine) -> None:
    import sqlalchemy

    tables = _models().metadata.tables
    studies, trials = tables["studies"].c, tables["trials"].c
    with engine.begin() as connection:
        tried = set(connection.execute(sqlalchemy.select(trials.study_id).distinct()).scalars())
        rows = connection.execute(sqlalchemy.select(studies.study_id, studies.study_name)).all()
        by_name: dict[str, list[int]] = {}
        for number, name in rows:
            by_name.setdefault(name, []).append(number)
        for numbers in by_name.values():
            kept = min(numbers, key=lambda number: (number not in tried, number))
            for number in numbers:
                if number == kept or number in tried:
                    continue
                for table in reversed(_models().metadata.sorted_tables):
                    if "study_id" in table.c:
                        connection.execute(
                            sqlalchemy.delete(table).where(table.c.study_id == number)
                        )


def _package_of(error: BaseException) -> str:
    """The package to install for an import that failed."""
    for cause in _causes(error):
        if isinstance(cause, ImportError) and cause.name:
            module = cause.name.split(".")[0]
            return _PACKAGES.get(module, module)
    return "the driver of that database"


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what caused it, the innermost first."""
    chain = [error]
    while chain[0].__cause__ is not None:
        chain.insert(0, chain[0].__cause__)
    return chain


def _reason(error: BaseException, url: str = "") -> str:
    """The innermost cause in one line, without the password."""
    import sqlalchemy

    inner = _causes(error)[0]
    text = " ".join(str(getattr(inner, "orig", None) or inner).split()) or type(inner).__name__
    with contextlib.suppress(sqlalchemy.exc.ArgumentError, ValueError):
        password = sqlalchemy.make_url(url).password
        if password:
            text = _without(text, str(password))
    return text[:200].rstrip(".")


def _without(text: str, password: str) -> str:
    """Mask a password where it stands as a word of its own, as it is and as a URL writes it."""
    for written in {password, urllib.parse.quote(password), urllib.parse.quote_plus(password)}:
        start = r"(?<!\w)" if re.match(r"\w", written) else ""
        end = r"(?!\w)" if re.search(r"\w$", written) else ""
        text = re.sub(f"{start}{re.escape(written)}{end}", "***", text)
    return text
