"""Files that people give as weights: told apart by content, and nothing in them ever runs."""

import argparse
import collections
import datetime
import gzip
import io
import json
import os
import pathlib
import pickle
import random
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import nn

from capsprune.backbones.weights_file import digest, read_content
from capsprune.errors import CheckpointError

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3)}


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archived(kind):
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo("w.pth")
            entry.size = len(saved(STATE))
            archive.addfile(entry, io.BytesIO(saved(STATE)))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("w.pth", saved(STATE))
    return file.getvalue()


def numpy_file(save, *arrays):
    file = io.BytesIO()
    save(file, *arrays)
    return file.getvalue()


def onnx_model():
    graph = onnx.helper.make_graph([], "g", [], [])
    return onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString()


def script_archive():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


FOREIGN = {
    "empty": (lambda: b"", "is empty"),
    "blank": (lambda: b"\n", "is empty"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n",
        r"Git LFS pointer.*git lfs pull",
    ),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "web page with a mark": (lambda: b"\xef\xbb\xbf<html></html>", "is a web page"),
    "gzip": (lambda: gzip.compress(saved(STATE)), r"gzip; unpack it with gunzip"),
    "tar": (lambda: archived("tar"), "is a tar archive; unpack it"),
    "zip": (lambda: archived("zip"), "is a zip archive; unpack it"),
    "numpy": (lambda: numpy_file(np.save, np.ones(3)), "is a NumPy array"),
    "numpy archive": (lambda: numpy_file(np.savez, np.ones(3)), "is a NumPy archive"),
    "onnx": (onnx_model, "is an ONNX model"),
    "torchscript": (script_archive, r"TorchScript archive.*state_dict\(\)"),
    "pickle": (
        lambda: pickle.dumps({"a": 1}, protocol=4) + bytes(80),
        r"pickle that torch\.save did not write",
    ),
    "json": (lambda: json.dumps({"weight_map": {}}).encode(), "JSON text.*index"),
    "keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "text": (lambda: b"not weights at all\n", "no safetensors file and nothing"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_holds_no_weights_is_said_as_what_it_is(tmp_path, kind, suffix):
    content, said = FOREIGN[kind]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content())
    with pytest.raises(CheckpointError, match=said) as error:
        read_content(path)
    assert str(error.value).startswith(f"{path} ") and ". " not in str(error.value)


def test_weights_are_read_whatever_the_file_is_called(tmp_path):
    save_file(STATE, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(saved(STATE))
    for name in ("w.pth", "w.safetensors"):
        content = read_content(tmp_path / name)
        assert all(torch.equal(content[key], value) for key, value in STATE.items())


def test_what_is_no_regular_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").touch()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(40 * 10**9)  # takes no space
    for name, said in {
        "pipe": "is no regular file; give a file of weights",
        "folder": r"is a folder; give the file of weights in it, such as .*model\.safetensors",
        "absent": "no weights file .*absent",
        "huge": "is larger than 32768 MB",
        "a\0b": "no weights file",
        "a" * 300: "cannot be read",
    }.items():
        for reader in (read_content, digest):
            with pytest.raises(CheckpointError, match=said):
                reader(tmp_path / name)
    with pytest.raises(CheckpointError, match="no regular file"):
        read_content(pathlib.Path("/dev/zero"))


def training_scripts():
    """What torchvision's and timm's scripts, Lightning, and others keep beside the weights."""
    args = argparse.Namespace(lr=0.1, data=pathlib.Path("/data"), kind=float, sizes=[1, 2])
    yield {"args": args, "epoch": 3, "metric": np.float64(76.5), "best": np.float32(0.5)}
    yield {"random": np.random.RandomState(0).get_state(), "array": np.arange(3), "n": np.int64(1)}
    yield {"when": datetime.datetime(2024, 1, 1), "took": datetime.timedelta(seconds=3)}
    yield {
        "history": collections.defaultdict(list, {"loss": [0.5]}),
        "names": {"a", "b"},
        "counts": collections.Counter("aab"),
        "last": collections.deque([1, 2], maxlen=3),
        "kinds": collections.OrderedDict(a=np.dtype("f4")),
        "version": torch.__version__,
        "device": torch.device("cpu"),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("beside", list(training_scripts()), ids=lambda beside: next(iter(beside)))
def test_what_training_scripts_keep_beside_the_weights_is_passed_over(tmp_path, beside, legacy):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": STATE, **beside}, path, _use_new_zipfile_serialization=not legacy)
    content = read_content(path)
    assert all(torch.equal(content["model"][key], value) for key, value in STATE.items())
    assert content.keys() == {"model", *beside}


class Call:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Namespace:
    """Tells when it is made or filled; pickles under the name of argparse's."""

    made = 0

    def __new__(cls, *_):
        Namespace.made += 1
        return object.__new__(cls)

    def __setstate__(self, state):
        Namespace.made += 1


def test_no_code_of_passed_over_classes_runs(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    content = Namespace()
    content.lr = 0.1
    monkeypatch.setattr(Namespace, "__module__", "argparse")
    monkeypatch.setattr(argparse, "Namespace", Namespace)
    torch.save({"model": STATE, "args": content}, path)
    Namespace.made = 0
    assert not isinstance(read_content(path)["args"], Namespace)
    assert Namespace.made == 0
    torch.load(path, weights_only=False)
    assert Namespace.made == 2  # it would have been


@pytest.mark.parametrize(
    "call",
    [
        Call(os.system, "touch executed"),
        Call(eval, "open('executed', 'w')"),
        Call(getattr, "a", "upper"),
        Call(np.load, "executed", None, True),
        Call(os.mkdir, "executed"),
        argparse.Namespace(hook=Call(exec, "open('executed', 'w')")),
        collections.OrderedDict(a=[Call(open, "executed", "w")]),
        np.array([Call(open, "executed", "w")], dtype=object),
    ],
    ids=lambda call: type(call).__name__,
)
def test_calls_are_refused_wherever_they_stand(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "args": call}, "checkpoint.pth")
    with pytest.raises(CheckpointError, match="carries a pickled object"):
        read_content(pathlib.Path("checkpoint.pth"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_whole_network_is_said_to_be_one(tmp_path):
    for content in (nn.Linear(2, 2), {"epoch": 3, "model": nn.Linear(2, 2)}):
        for new in (True, False):
            path = tmp_path / "w.pth"
            torch.save(content, path, _use_new_zipfile_serialization=new)
            with pytest.raises(
                CheckpointError,
                match=r"whole network as a pickled object \(torch\.nn\.modules\.linear\.Linear\)",
            ):
                read_content(path)
    torch.save({"model": STATE, "criterion": Call(print, "x")}, path)
    with pytest.raises(CheckpointError, match=r"carries a pickled object \(print\)"):
        read_content(path)


def test_another_pickle_protocol_is_said(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": STATE, "names": frozenset("ab")}, path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match="pickle protocol"):
        read_content(path)


def test_damaged_files_end_in_one_sentence(tmp_path):
    contents = [safetensors.torch.save(STATE)]
    for legacy in (False, True):
        file = io.BytesIO()
        content = {"model": STATE, "args": argparse.Namespace(lr=np.float64(0.1))}
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        contents.append(file.getvalue())
    path, noise = tmp_path / "w.pth", random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(noise.choice(contents))
        for _ in range(noise.choice((1, 3, 10))):
            start = noise.randrange(len(content))
            content[start : start + noise.randrange(3)] = noise.randbytes(noise.randrange(1, 4))
        path.write_bytes(content)
        try:
            read_content(path)  # what is damaged may not be looked at
        except CheckpointError as error:
            refused += 1
            assert str(error).isprintable() and str(path) in str(error)
    assert refused > 100
