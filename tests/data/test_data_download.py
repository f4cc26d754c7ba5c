import hashlib
import stat
import urllib.error
import zipfile

import pytest

from capsprune.data import download
from capsprune.data.download import checksum, fetch, unpack_zip
from capsprune.errors import DataError

CONTENT = b"x" * 3000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def url(tmp_path):
    (tmp_path / "there").write_bytes(CONTENT)
    return (tmp_path / "there").as_uri()


def get(url, target, md5=MD5, *, allowed=True, progress=None):
    fetch("cifar10", url, target, md5, download=allowed, progress=progress)


def test_fetched_file_is_checked_and_named(tmp_path, url):
    told = []
    target = tmp_path / "root" / "file.bin"
    get(url, target, progress=lambda *arguments: told.append(arguments))
    assert target.read_bytes() == CONTENT
    assert told == [("Downloading file.bin", 3000, 3000)]
    assert list(target.parent.iterdir()) == [target]
    assert checksum(target) == MD5


def test_other_checksum_leaves_nothing(tmp_path, url):
    target = tmp_path / "root" / "file.bin"
    with pytest.raises(DataError, match=r"not the file expected \(other MD5\): try again"):
        get(url, target, md5="0" * 32)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), TimeoutError("no route"), OSError("no route")]
)
def test_no_network_says_what_to_put_where(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(download.urllib.request, "urlopen", fail)
    with pytest.raises(DataError, match=r"could not be downloaded.*no route") as caught:
        get("https://example.org/file.bin", tmp_path / "file.bin")
    assert f"put file.bin (from https://example.org/file.bin) into {tmp_path}" in str(caught.value)
    assert "--data digits" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_connection_that_breaks(tmp_path, monkeypatch, url):
    class Broken:
        headers = {"Content-Length": "10"}  # noqa: RUF012

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, _):
            raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: Broken())
    with pytest.raises(DataError, match=r"reset by peer.*put file\.bin"):
        get(url, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_full_disk_is_no_data_error(tmp_path, url):
    target = tmp_path / "there" / "file.bin"  # its folder is a file
    with pytest.raises(OSError):
        get(url, target)


def test_download_may_be_off(tmp_path):
    with pytest.raises(DataError, match=r"is not there, and downloading is off: put file.bin"):
        get("https://example.org/file.bin", tmp_path / "file.bin", allowed=False)


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_unpacked_beside_and_renamed(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"top/x/1.txt": "one", "top/2.txt": "two"})
    told = []
    unpack_zip(archive, tmp_path / "top", lambda *arguments: told.append(arguments))
    assert (tmp_path / "top" / "x" / "1.txt").read_text() == "one"
    assert told[-1] == ("Unpacking a.zip", 2, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "top"}


def link():
    info = zipfile.ZipInfo("top/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name", ["../out.txt", "/out.txt", "top/../../out.txt", "other/x", "top\\..\\..\\x", link()]
)
def test_members_that_would_land_elsewhere(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", {"top/ok.txt": "ok", name: "bad"})
    with pytest.raises(DataError, match=r"is not to be trusted.*get it from its publisher"):
        unpack_zip(archive, tmp_path / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_damaged_zip_leaves_nothing(tmp_path, damage):
    archive = make_zip(tmp_path / "a.zip", {"top/a": "A" * 200, "top/b": "B" * 200})
    content = archive.read_bytes()
    archive.write_bytes(
        {
            "cut": content[:-40],
            "flip": content.replace(b"BBBB", b"BBxB", 1),
            "foreign": b"no zip",
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DataError, match=r"is damaged .*delete it, so that it is fetched again"):
        unpack_zip(archive, tmp_path / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", {"top/a": "A" * 200, "top/b": "B" * 200})
    monkeypatch.setattr(download, "_UNPACKED_LIMIT", 399)
    with pytest.raises(DataError, match=r"GB unpacked, which is no data set .*: delete it"):
        unpack_zip(archive, tmp_path / "top")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_zip_without_the_folder(tmp_path):
    archive = tmp_path / "a.zip"
    make_zip(archive, {})
    with pytest.raises(DataError, match=r"holds no folder top: delete it"):
        unpack_zip(archive, tmp_path / "top")
