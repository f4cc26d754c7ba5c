"""Reading a file of weights: recognised by its content, and without running any code in it."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from capsprune.errors import CheckpointError
from capsprune.files import BadFileError, opened

#: The largest file of weights that is read, in bytes: ten times the largest backbone's.
_LIMIT = 32 * 2**30
#: How much of a file is looked at to tell what it is, in bytes.
_HEAD = 4096
#: The longest header that a safetensors file may have, in bytes.
_HEADER_LIMIT = 100_000_000
#: How much of a pickle is searched for the names in it, in bytes.
_PICKLE_HEAD = 64 * 2**20
#: The number that old files of `torch.save` begin with, as pickle writes it.
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

#: How files of other kinds begin: offset, bytes, and what to say.
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (
        0,
        b"version https://git-lfs",
        "is a Git LFS pointer, which only names the file; fetch the file with 'git lfs pull'",
    ),
    (0, b"\x1f\x8b", "is compressed with gzip; unpack it with gunzip"),
    (0, b"BZh", "is compressed with bzip2; unpack it with bunzip2"),
    (0, b"\xfd7zXZ\x00", "is compressed with xz; unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with Zstandard; unpack it with unzstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive; unpack it and give the file of weights in it"),
    (0, b"Rar!", "is a RAR archive; unpack it and give the file of weights in it"),
    (257, b"ustar", "is a tar archive; unpack it and give the file of weights in it"),
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file, such as Keras writes; give weights from PyTorch"),
    (0, b"\x93NUMPY", "is a NumPy array; give a PyTorch state dict"),
    (0, b"GGUF", "is a GGUF file; give a PyTorch state dict"),
    (4, b"TFL3", "is a TensorFlow Lite model; give weights from PyTorch"),
)
_SAVE_STATE = "save the model's state_dict() alone with torch.save and give that file"


class _Ignored:
    """Stands in for an object beside the weights: takes what pickle gives it and keeps nothing.

    So nothing of the real class runs: no constructor, no `__setstate__`.
    """

    __slots__ = ()

    def __new__(cls, *_: object) -> _Ignored:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _AsDict:
    """Stands in for subclasses of dict, into whose place an empty dict comes to be filled."""

    def __new__(cls, *_: object) -> Any:
        return {}


class _AsList:
    """Stands in for deques, into whose place an empty list comes to be filled."""

    def __new__(cls, *_: object) -> Any:
        return []


def _full_names(names: dict[str, str]) -> list[str]:
    return [f"{module}.{name}" for module, listed in names.items() for name in listed.split()]


_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_ARRAYS = "scalar _reconstruct"
#: What training scripts keep beside the weights, and what is put in the place of each. None of
#: these classes is ever imported or called.
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *(
        (_Ignored, name)
        for name in _full_names(
            {
                "argparse": "Namespace",
                "types": "SimpleNamespace",
                "pathlib": _PATHS,
                "pathlib._local": _PATHS,
                "datetime": "date datetime time timedelta timezone",
                "decimal": "Decimal",
                "uuid": "UUID",
                # As the factory of a defaultdict, or the type of an option.
                "builtins": "bool bytes complex dict float frozenset int list object range slice "
                "str tuple type",
                "numpy": "ndarray dtype bool_ float16 float32 float64 int8 int16 int32 int64 "
                "uint8 uint16 uint32 uint64",
                "numpy.dtypes": "BoolDType Float16DType Float32DType Float64DType Int8DType "
                "Int16DType Int32DType Int64DType UInt8DType UInt16DType UInt32DType UInt64DType "
                "StrDType BytesDType",
                "numpy.core.multiarray": _ARRAYS,
                "numpy._core.multiarray": _ARRAYS,
                "numpy.core.numeric": "_frombuffer",
                "numpy._core.numeric": "_frombuffer",
                "torch.torch_version": "TorchVersion",
                "torchvision.transforms.functional": "InterpolationMode",
                "torchvision.transforms.transforms": "InterpolationMode",
            }
        )
    ),
    *(
        (_AsDict, name)
        for name in _full_names(
            {
                "collections": "defaultdict",
                "lightning_fabric.utilities.data": "AttributeDict",
                "lightning.fabric.utilities.data": "AttributeDict",
                "pytorch_lightning.utilities.parsing": "AttributeDict",
                "lightning.pytorch.utilities.parsing": "AttributeDict",
            }
        )
    ),
    (_AsList, "collections.deque"),
]


def read_content(path: Path) -> Any:
    """Read a safetensors file, or what `torch.save` wrote, whatever the file is called.

    Nothing but tensors, plain containers, numbers and texts is ever made of it: objects of the
    kinds that training scripts keep beside the weights are passed over, and files with any others
    refused.

    Returns:
        What was saved: commonly a dictionary of tensors, perhaps inside other dictionaries.

    Raises:
        CheckpointError: if the file is missing, no regular file, too large, truncated, of another
            kind (the message says which), or carries an object that could run code.
    """
    with _opened(path) as file:
        head = file.read(_HEAD)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT:
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        _check_zip(path)
        return _read_pytorch(path)
    if head.startswith(b"\x80") and (_LEGACY_MAGIC in head[:64] or len(head) < 64):
        return _read_pytorch(path)
    raise CheckpointError(f"{path} {_kind(head)}.")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file of weights, in hexadecimal.

    Raises:
        CheckpointError: if it is missing, no regular file, or too large.
    """
    found = hashlib.sha256()
    with _opened(path) as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file of weights, if it is one that can be read."""
    try:
        with opened(path, _LIMIT) as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"There is no weights file {path}; check the path.") from None
    except BadFileError as error:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder; give the file of weights in it{_weights_in(path)}."
            ) from None
        raise CheckpointError(f"{path} {error}; give a file of weights.") from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check the path."
        ) from error


def _weights_in(folder: Path) -> str:
    """Name a file of weights in a folder, to help."""
    for pattern in ("*.safetensors", "*.pth", "*.pt", "*.ckpt", "*.bin"):
        if files := sorted(folder.glob(pattern)):
            return f", such as {files[0]}"
    return ""


def _kind(head: bytes) -> str:
    """Return what a file is that holds no weights, and what to do, by how it begins."""
    for offset, begins, what in _FOREIGN:
        if head[offset:].startswith(begins):
            return what
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text:
        return "is empty; fetch or export it anew"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            "is a web page, not the file behind it; download the file itself, from the address "
            "behind its 'download' or 'raw' button"
        )
    if text.startswith(b"{"):
        return (
            "is JSON text, perhaps the index of weights in several files; give one file that holds "
            "all tensors"
        )
    # Field 1 of the protocol buffer is the version; the producer, the graph or operators follow.
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "is an ONNX model; give the PyTorch state dict that it was made of"
    if head.startswith(b"\x80"):
        return (
            "is a pickle that torch.save did not write, and loading it could run code; "
            f"{_SAVE_STATE}"
        )
    return (
        "is no safetensors file and nothing that torch.save wrote, or its beginning is lost; fetch "
        "or export it anew"
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a kind of number
        raise CheckpointError(
            f"{path} is truncated or is no safetensors file ({_reason(error)}); fetch or export "
            "it anew."
        ) from error


def _check_zip(path: Path) -> None:
    """Refuse zip archives that `torch.save` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # Noise makes the reader fail with whatever it stumbles over.
    except Exception as error:
        raise CheckpointError(
            f"{path} is truncated or is no PyTorch file ({_reason(error)}); fetch or export it "
            "anew."
        ) from error
    # torch puts all under one folder.
    inner = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in inner:
        raise CheckpointError(
            f"{path} is a TorchScript archive, which is a program; save the state_dict() of "
            "torch.jit.load(FILE) with torch.save and give that file."
        )
    if "data.pkl" in inner:
        return
    if any(name.endswith("exported_program.json") or name == "archive_format" for name in inner):
        raise CheckpointError(
            f"{path} is a program of torch.export; save the state_dict of it with torch.save and "
            "give that file."
        )
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{path} is a NumPy archive (.npz); give a PyTorch state dict.")
    raise CheckpointError(f"{path} is a zip archive; unpack it and give the file of weights in it.")


def _read_pytorch(path: Path) -> Any:
    import torch

    try:
        with (
            path.open("rb") as file,  # Of a path, torch looks at how it ends.
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_STAND_INS),
        ):
            # That pickles of other protocols may fail: if they do, it is said below.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse_pickle(path, str(error), error)
    # Noise makes torch's reader fail with whatever it stumbles over: IndexError, struct.error …
    except Exception as error:
        raise CheckpointError(
            f"{path} is truncated or is no PyTorch file ({_reason(error)}); fetch or export it "
            "anew."
        ) from error


def _reason(error: Exception) -> str:
    """Return in one short line why a library did not read a file."""
    lines = str(error).splitlines() or [type(error).__name__]
    line = "".join(letter for letter in lines[0] if letter.isprintable())
    return line.split(". ")[0][:200]  # torch adds what it takes for the cause


def _refuse_pickle(path: Path, message: str, error: Exception) -> NoReturn:
    """Return what it is in a pickle that is not read."""
    found = re.search(r"GLOBAL (\S+) ", message)
    named = f" ({found[1][:200]})" if found and found[1].isprintable() else ""
    pickled = _pickled_head(path)
    if b"_modules" in pickled and b"_parameters" in pickled:
        raise CheckpointError(
            f"{path} holds a whole network as a pickled object{named}, and loading it could run "
            "code; where its code is at hand, save its state_dict() alone with torch.save and give "
            "that file."
        ) from error
    if found:
        raise CheckpointError(
            f"{path} carries a pickled object{named}, which could run code; save its state_dict() "
            "alone and give that file."
        ) from error
    if "Unsupported operand" in message:
        raise CheckpointError(
            f"{path} was saved with another pickle protocol than torch.save's own, or is damaged; "
            f"{_SAVE_STATE}."
        ) from error
    raise CheckpointError(
        f"{path} carries a pickled object, which could run code, or is damaged; save its "
        "state_dict() alone and give that file."
    ) from error


def _pickled_head(path: Path) -> bytes:
    """Read the pickle in a file of `torch.save`, or much of it, without loading it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(name) as file:
                    return file.read(_PICKLE_HEAD)
        with path.open("rb") as file:
            return file.read(_PICKLE_HEAD)
    except Exception:  # A damaged archive: there is nothing to be seen in it.
        return b""
