from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power import Watch

from capsprune import files
from capsprune.files import (
    BadFileError,
    dump_json,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    replacing,
    scratch,
    write_text,
)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "f.bin"
    with replacing(target) as partial:
        partial.write_bytes(b"new")
        assert not target.exists()
        assert partial.parent == tmp_path  # the same file system, so that renaming is one step
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_was_there_outlives_a_failure(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "f.txt"
    write_text(target, "old")
    with pytest.raises(stop), replacing(target) as partial:
        partial.write_text("ne")
        raise stop
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        done.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def noting_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(files.os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_text(tmp_path / "f.txt", "text")
    partial = done[0].removeprefix("flush ")
    assert partial.startswith(".f.txt.") and partial.endswith(".partial")
    assert done[1:] == ["rename", f"flush {tmp_path.name}"]
    done.clear()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "g").touch()
    files.move(tmp_path / "folder", tmp_path / "moved")
    assert done == ["flush g", "flush inner", "flush folder", "rename", f"flush {tmp_path.name}"]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from capsprune.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "dead")], check=False)
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["dead"]
    with replacing(tmp_path / "alive") as partial:
        write_text(tmp_path / "other", "text")
        assert {path.name for path in tmp_path.iterdir()} == {partial.name, "other"}


_KILLED = """
import os, pathlib, sys
from capsprune.files import replacing, scratch
folder = pathlib.Path(sys.argv[1])
with replacing(folder / ("long" * 60)) as partial, scratch(folder, "work") as work:
    partial.write_text("half")
    (work / "inner").mkdir()
    (work / "inner" / "file").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_whatever_is_written_next_in_a_folder_removes_what_killed_processes_left(
    tmp_path: Path,
) -> None:
    for begin in (
        lambda: write_text(tmp_path / "next", "text"),
        lambda: scratch(tmp_path, "next").__enter__(),
    ):
        subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
        assert len(list(tmp_path.glob(".*.partial"))) == 2
        with scratch(tmp_path, "alive") as alive:
            begin()
            assert alive.is_dir()
            assert not list(tmp_path.glob(".long*")) + list(tmp_path.glob(".work*"))


def test_many_threads_replace_one_file_and_each_content_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "f"
    contents = [letter * 100_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            list(pool.map(lambda text: write_text(target, text), contents))
            assert target.read_text() in contents
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("refusal", [errno.EIO, errno.ENOSPC])
def test_what_the_disk_does_not_take_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    write_text(tmp_path / "f", "old")

    def refuse(descriptor: int) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(refusal)):
        write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_file_larger_than_the_disk_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import pathlib, resource, sys\n"
        "from capsprune.files import scratch, write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for place in (folder, None):\n"
        "    try:\n"
        "        if place is None:\n"
        "            with scratch(folder, 'work') as work:\n"
        "                (work / 'f').write_bytes(bytes(2000))\n"
        "        write_bytes(folder / 'f', bytes(2000))\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(errno.EFBIG)] * 2
    assert list(tmp_path.iterdir()) == []


def test_new_folders_are_named_on_the_disk(tmp_path: Path, watch: Watch) -> None:
    made = files.make_folder(tmp_path / "a" / "b")
    assert made == [tmp_path / "a", tmp_path / "a" / "b"]
    assert all(watch.is_named(folder) for folder in made)
    assert files.make_folder(tmp_path / "a") == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "file")


def test_a_folder_of_many_files_reaches_the_disk_at_once(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MANY", 3)
    (tmp_path / "many").mkdir()
    for number in range(4):
        (tmp_path / "many" / str(number)).write_text("x")
    files.move(tmp_path / "many", tmp_path / "moved")
    assert watch.renamed == ["moved"]


_HAMMER = """
import os, pathlib, sys, time
from capsprune.files import holding
folder = pathlib.Path(sys.argv[1])
inside = folder / "inside"
for turn in range(150):
    try:
        with holding(folder / "lock", wait=turn % 2 == 0):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # raises where somebody is inside
            time.sleep(0.0002)
            inside.unlink()
            if turn % 3 == 0:
                (folder / "lock").unlink()
    except BlockingIOError:
        pass
"""


def test_a_lock_that_is_removed_while_it_is_held_keeps_two_from_being_inside(
    tmp_path: Path,
) -> None:
    crowd = [subprocess.Popen([sys.executable, "-c", _HAMMER, str(tmp_path)]) for _ in range(6)]
    assert [one.wait(60) for one in crowd] == [0] * 6


@pytest.mark.parametrize("refusal", [FileExistsError, FileNotFoundError])
def test_a_folder_is_made_though_others_remove_theirs_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: type[OSError]
) -> None:
    mkdir, refused = Path.mkdir, []

    def gone_meanwhile(self: Path) -> None:
        if len(refused) < 3:
            refused.append(self)
            raise refusal
        mkdir(self)

    monkeypatch.setattr(Path, "mkdir", gone_meanwhile)
    assert files.make_folder(tmp_path / "runs" / "r") == [
        tmp_path / "runs",
        tmp_path / "runs" / "r",
    ]
    assert len(refused) == 3 and (tmp_path / "runs" / "r").is_dir()


def test_a_folder_that_goes_and_comes_back_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, is_dir = tmp_path / "r", Path.is_dir

    def gone_at_that_moment(self: Path) -> bool:
        monkeypatch.setattr(Path, "is_dir", is_dir)
        return False

    folder.mkdir()
    monkeypatch.setattr(Path, "is_dir", gone_at_that_moment)
    assert files.make_folder(folder) == []


def test_what_stands_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(FileExistsError):
            files.make_folder(tmp_path / name)
    with pytest.raises(FileNotFoundError):  # which that file system says of any new folder
        files.make_folder(Path("/proc/folder"))


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises((BadFileError, IsADirectoryError)):
            read_bytes(path)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(BadFileError, match="larger"):
        read_bytes(tmp_path / "large", limit=10)
    assert read_bytes(tmp_path / "large", limit=11) == bytes(11)
    for absent in ("absent", "nul\0"):
        with pytest.raises(FileNotFoundError):
            read_bytes(tmp_path / absent)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe{\x00}\x00", "no UTF-8"),
        (b"[" * 100_000, "nested"),
        (b"{", "no JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b"1" * 5000, "too large"),
        (b"[9223372036854775808]", "too large"),
        (b'{"name": "\\ud800"}', "no JSON"),
    ],
)
def test_what_is_no_json_is_said(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(BadFileError, match=reason):
        read_json(tmp_path / "f.json")


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=_PLAIN)
@settings(max_examples=100)
def test_what_is_written_as_json_has_null_for_what_is_no_number(value: Any) -> None:
    def expected(one: Any) -> Any:
        if isinstance(one, float):
            return one if math.isfinite(one) else None
        if isinstance(one, list):
            return [expected(inner) for inner in one]
        if isinstance(one, dict):
            return {key: expected(inner) for key, inner in one.items()}
        return one

    for indent in (None, 1):
        assert parse_json(dump_json(value, indent)) == expected(value)
    assert dump_json((float("nan"), 1)) == "[null, 1]"


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "é漢")
    assert (tmp_path / "f").read_bytes() == "é漢".encode()
    (tmp_path / "g").write_bytes(b"\xef\xbb\xbf{}")  # an editor's byte order mark
    assert read_text(tmp_path / "g") == "{}"
    assert read_json(tmp_path / "g") == {}
