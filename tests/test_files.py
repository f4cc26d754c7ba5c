from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from capsprune import files
from capsprune.files import BadFileError, read_bytes, read_json, read_text, replacing, write_text


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
    assert done == [f"flush .f.txt.{os.getpid()}.partial", "rename", f"flush {tmp_path.name}"]
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


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises((BadFileError, IsADirectoryError)):
            read_bytes(path)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(BadFileError, match="larger"):
        read_bytes(tmp_path / "large", limit=10)
    assert read_bytes(tmp_path / "large", limit=11) == bytes(11)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe{\x00}\x00", "no UTF-8"),
        (b"[" * 100_000, "nested"),
        (b"{", "no JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b"1" * 5000, "no JSON"),
    ],
)
def test_what_is_no_json_is_said(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(BadFileError, match=reason):
        read_json(tmp_path / "f.json")


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "é漢")
    assert (tmp_path / "f").read_bytes() == "é漢".encode()
    (tmp_path / "g").write_bytes(b"\xef\xbb\xbf{}")  # an editor's byte order mark
    assert read_text(tmp_path / "g") == "{}"
    assert read_json(tmp_path / "g") == {}
