"""Databases of studies: killed while they are set up, damaged, foreign, in odd places."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import event

from capsprune.errors import StudyError
from capsprune.pruning import database
from capsprune.pruning.candidate import Candidate
from capsprune.pruning.study import Study


def place_of(file: Path, kind: str) -> Path | str:
    return file if kind == "file" else f"sqlite:///{file}"


def killed_after(statement: int, place: Path | str) -> bool:
    """Open a study in a process that is killed after so many statements; whether it was."""
    if pid := os.fork():
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    seen = 0

    def count(conn, cursor, text, *others):
        nonlocal seen
        if text.lstrip().upper().startswith(("CREATE", "INSERT", "UPDATE")):
            seen += 1
            if seen == statement:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        event.listen(sqlalchemy.engine.Engine, "after_cursor_execute", count)
        Study(place).rung(0)
    finally:
        os._exit(0)


def studies(file: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return [name for (name,) in connection.execute("SELECT study_name FROM studies")]


def check_killed(file: Path, statement: int, kind: str) -> bool:
    place = place_of(file, kind)
    died = killed_after(statement, place)
    for _ in range(2):
        with Study(place) as study:
            study.rung(0)
        assert studies(file) == ["search"]
    assert list(file.parent.iterdir()) == [file]
    return died


@pytest.mark.parametrize("kind", ["file", "url"])
@pytest.mark.parametrize("statement", [1, 2, 13])
def test_a_study_killed_while_it_is_set_up_opens_again(tmp_path, statement, kind):
    assert check_killed(tmp_path / "study.db", statement, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "url"])
def test_a_study_killed_after_any_statement_of_its_set_up_opens_again(tmp_path, kind):
    for statement in range(1, 100):
        (tmp_path / str(statement)).mkdir()
        if not check_killed(tmp_path / str(statement) / "study.db", statement, kind):
            break
    assert 15 < statement < 99


HALF_MADE = """
    DROP INDEX ix_studies_study_name;
    INSERT INTO studies VALUES (2, 'search'), (3, 'search'), (4, 'other');
    INSERT INTO study_directions (direction, study_id, objective) VALUES ('MAXIMIZE', 2, 0);
"""


@pytest.mark.parametrize("kind", ["file", "url"])
def test_doubles_in_a_database_that_was_left_half_made_are_removed(tmp_path, whole, kind):
    file = tmp_path / "study.db"
    shutil.copy(whole, file)
    damage(file, HALF_MADE)
    with Study(place_of(file, kind)) as study:
        assert [c.index for c in study.rung(0).finished().values()] == [0]
    assert sorted(studies(file)) == ["other", "search"]
    with pytest.raises(sqlite3.IntegrityError):
        damage(file, "INSERT INTO studies VALUES (9, 'search')")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A study with one finished candidate."""
    file = tmp_path_factory.mktemp("whole") / "study.db"
    with Study(file) as study:
        for index in range(2):
            claim = study.rung(0).claim(index, (0.1, 0.2), 0.7)
            if index == 0:
                study.rung(0).finish(claim, Candidate(0, (0.1, 0.2), 1, 0.5, 1, 0.5, 1.0))
    assert list(file.parent.iterdir()) == [file]
    return file


def damage(file: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(script)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    """Overwrite pages behind the schema."""
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 3)
        content.write(b"\xa5" * (file.stat().st_size // 2))


DAMAGES = {
    "truncated": truncate,
    "overwritten": scribble,
    "another version": lambda file: damage(file, "UPDATE alembic_version SET version_num = 'v9'"),
    "no version": lambda file: damage(file, "DROP TABLE alembic_version; DROP TABLE version_info"),
    "no attributes": lambda file: damage(file, "DROP TABLE trial_user_attributes"),
    "no database": lambda file: file.write_text("no database, but long enough to be read\n" * 99),
    "a few bytes": lambda file: file.write_bytes(b"SQLite format 3"),
    "somebody else's": lambda file: damage(
        file, "DROP TABLE trial_values; CREATE TABLE mine (a); DELETE FROM trials"
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_study_with_candidates_is_named_and_kept(tmp_path, whole, kind):
    file = tmp_path / "study.db"
    shutil.copy(whole, file)
    DAMAGES[kind](file)
    before = file.read_bytes()
    with pytest.raises(StudyError, match=r"study\.db .*remove it to begin the search anew") as told:
        Study(file)
    assert "\n" not in str(told.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", ["another version", "no version", "no attributes"])
def test_an_unusable_study_without_candidates_is_made_anew(tmp_path, whole, kind):
    file = tmp_path / "study.db"
    shutil.copy(whole, file)
    damage(file, "UPDATE trials SET state = 'RUNNING'")
    DAMAGES[kind](file)
    file.with_name("study.db-wal").write_bytes(b"left over")
    with Study(file) as study:
        assert study.rung(0).finished() == {}
        assert study.rung(0).claim(0, (0.1,), 0.7) is not None
    assert studies(file) == ["search"]


@pytest.mark.parametrize("content", [None, b""])
@pytest.mark.parametrize("kind", ["file", "url"])
def test_an_empty_file_is_no_study_yet(tmp_path, content, kind):
    file = tmp_path / "study.db"
    if content is not None:
        file.write_bytes(content)
    with Study(place_of(file, kind)) as study:
        assert study.rung(0).taken() == set()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'result'",
        "UPDATE trial_user_attributes SET value_json = '[1]' WHERE key = 'result'",
        "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'result'",
        "DELETE FROM trial_user_attributes WHERE key = 'result'",
        "DROP TABLE trial_values",
    ],
)
def test_a_candidate_that_cannot_be_read_is_named(tmp_path, whole, change):
    file = tmp_path / "study.db"
    shutil.copy(whole, file)
    damage(file, change)
    with pytest.raises(StudyError, match=r"candidate|database"), Study(file) as study:
        study.rung(0).finished()


READ_ONLY = """
import os, sys
from pathlib import Path
from capsprune.errors import StudyError
from capsprune.pruning.study import Study
import optuna.storages
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
for place in (Path("study.db"), "sqlite:///study.db"):
    try:
        with Study(place) as study:
            study.rung(0).claim(5, (0.1,), 0.7)
    except StudyError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_study_that_may_not_be_written_to_is_named(tmp_path, whole):
    file = Path(shutil.copy(whole, tmp_path))
    file.chmod(0o444)
    tmp_path.chmod(0o555)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o111)
    command = [sys.executable, "-c", READ_ONLY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2 and not done.stderr
    assert "may not be written to" in done.stdout


@pytest.mark.parametrize("name", ["a?b#c%20d%e", "a b", "a{b}c", "a&mode=ro", "ä/ö", ":memory:"])
def test_a_study_lies_where_its_path_says(tmp_path, name):
    file = tmp_path / name / "study.db"
    file.parent.mkdir(parents=True)
    for _ in range(2):
        with Study(file) as study:
            study.rung(0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_a_search_done_again_begins_empty_but_joins_what_others_began(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with Study(url, "one") as study:
        study.rung(0).claim(0, (0.1,), 0.7)
    with Study(url, "one", anew=True) as study:
        assert study.rung(0).taken() == {0}
        study.complete()
    with Study(url, "one") as study:
        assert study.rung(0).taken() == {0}
    with Study(url, "one", anew=True) as study, Study(url, "one", anew=True) as other:
        assert study.rung(0).taken() == set()
        study.rung(0).claim(1, (0.1,), 0.7)
        assert other.rung(0).taken() == {1}
    with Study(url, "one") as study:
        assert study.rung(0).taken() == {1}


@pytest.mark.parametrize(
    ("password", "text", "told"),
    [
        ("a", "a server at a.b said na", "*** server at ***.b said na"),
        ("se/c ret", "no 'me:se/c ret@host' or me:se%2Fc+ret@host", None),
        ("!x", "y!x", "y***"),
        ("host", "cannot reach hosts", "cannot reach hosts"),
    ],
)
def test_a_password_is_masked_as_a_word_only(password, text, told):
    url = sqlalchemy.URL.create("postgresql", "me", password, "host", database="name")
    reason = database._reason(ValueError(text), url.render_as_string(hide_password=False))
    assert reason == told if told else "ret" not in reason


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("MySQLdb", "mysqlclient"),
        ("pymysql", "pymysql"),
        ("psycopg2", "psycopg2-binary"),
        ("psycopg", "'psycopg[binary]'"),
        ("oracledb", "oracledb"),
    ],
)
def test_the_driver_that_is_missing_is_the_one_named(module, package, monkeypatch):
    def fail(url, **options):
        raise ImportError("Please install it.") from ModuleNotFoundError("gone", name=module)

    monkeypatch.setattr(database, "_storage", fail)
    with pytest.raises(StudyError, match="driver") as error:
        Study("postgresql://me@host/name")
    assert f"pip install {package}" in str(error.value)
