"""Files from the network and out of archives; what is not whole never gets its final name."""

from __future__ import annotations

import hashlib
import http.client
import stat
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from capsprune.data.survey import OnStep
from capsprune.errors import DataError
from capsprune.files import make_folder, move, replacing, scratch

_CHUNK = 1 << 20
_TIMEOUT = 30.0
#: Bytes that an archive may take unpacked: eight times what Tiny ImageNet does.
_UNPACKED_LIMIT = 2**31


def fetch(
    name: str, url: str, target: Path, md5: str, *, download: bool, progress: OnStep | None
) -> None:
    """Download a file, check it, and only then give it its name.

    Args:
        name: of the data set, for messages.
        url: where the file comes from.
        target: the file's final name; its folder is made.
        md5: hexadecimal checksum of the whole file.
        download: if false, only say what is missing.
        progress: told the bytes that have come.

    Raises:
        DataError: the file may not or cannot be downloaded, or arrives damaged.
    """
    by_hand = (
        f"put {target.name} (from {url}) into {target.parent}, "
        f"or use --data digits, which needs no download."
    )
    if not download:
        raise DataError(f"Data set '{name}' is not there, and downloading is off: {by_hand}")
    make_folder(target.parent)
    with replacing(target) as partial:
        with partial.open("wb") as file:
            done = 0
            # What the network raises is the user's to fix; what the disk raises is not ours.
            network = (OSError, http.client.HTTPException, ValueError)
            try:
                reply = urllib.request.urlopen(url, timeout=_TIMEOUT)
                total = int(reply.headers.get("Content-Length") or 0)
            except network as error:
                raise DataError(_failed(name, url, error) + by_hand) from error
            with reply:
                while True:
                    try:
                        block = reply.read(_CHUNK)
                    except network as error:
                        raise DataError(_failed(name, url, error) + by_hand) from error
                    if not block:
                        break
                    file.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(f"Downloading {target.name}", done, total)
        if checksum(partial) != md5:
            raise DataError(
                f"Data set '{name}': what came from {url} is not the file expected "
                f"(other MD5): try again, {by_hand}"
            )


def _failed(name: str, url: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"Data set '{name}' could not be downloaded from {url} ({reason}): "


def checksum(path: Path) -> str:
    """Return the MD5 of a file, in hexadecimal. It finds damage, but no forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def unpack_zip(archive: Path, target: Path, progress: OnStep | None = None) -> None:
    """Unpack the folder `target.name` of an archive to `target`, wholly or not at all.

    Args:
        archive: a zip file whose members all lie in one folder named as `target` is.
        target: the folder to make.
        progress: told the members that are unpacked.

    Raises:
        DataError: the archive is damaged or foreign, or a member would land elsewhere.
    """
    remedy = "delete it, so that it is fetched again, or put a whole one there."
    with scratch(target.parent, target.name) as folder:
        try:
            with zipfile.ZipFile(archive) as source:
                members = source.infolist()
                size = sum(member.file_size for member in members)
                if size > _UNPACKED_LIMIT:
                    raise DataError(
                        f"Archive {archive} would take {size / 2**30:.3g} GB unpacked, which is no "
                        f"data set known here: {remedy}"
                    )
                for member in members:
                    _require_inside(member, archive, target.name)
                for done, member in enumerate(members, start=1):
                    source.extract(member, folder)
                    if progress is not None and (done % 500 == 0 or done == len(members)):
                        progress(f"Unpacking {archive.name}", done, len(members))
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DataError(f"Archive {archive} is damaged ({error}): {remedy}") from error
        unpacked = folder / target.name
        if not unpacked.is_dir():
            raise DataError(f"Archive {archive} holds no folder {target.name}: {remedy}")
        move(unpacked, target)


def _require_inside(member: zipfile.ZipInfo, archive: Path, top: str) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] != (top,) or is_link:
        raise DataError(
            f"Archive {archive} is not to be trusted ('{member.filename}' lies outside {top} or "
            f"is a link): delete it and get it from its publisher."
        )
