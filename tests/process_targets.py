"""What children do in tests. It imports nothing heavy, as every child imports it."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from capsprune.processes import Child, unpack


def modules_of(names):
    return [str(getattr(__import__(name), "__file__", "built in")) for name in names]


def fail(text):
    raise ValueError(text)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_itself():
    os.kill(os.getpid(), signal.SIGINT)
    return True


def environment(name):
    return os.environ.get(name)


def busy(pipe, file):
    """Work without an end, and have a child that does so too."""
    if "portable" in file:
        ctypes.CDLL(None).prctl(1, 0)  # as if the system told no child of its parent's end
    Path(file).with_suffix(f".{os.getpid()}").touch()
    if "outer" in file:
        Child(busy, file.replace("outer", "inner"))
    while True:
        sum(range(100000))


def describe(address):
    """Describe the tensors of a parcel; write to one of them and back."""
    import torch

    found = unpack(address)
    net = found["net"]
    assert net[0].weight is net[1].weight and isinstance(net[0].weight, torch.nn.Parameter)
    assert found["images"][0].is_contiguous(memory_format=torch.channels_last)
    found["images"][0].add_(1)
    found["images"][0].sub_(1)
    tensors = [*net.state_dict().values(), *found["images"], *found["others"]]
    return [(str(t.dtype), t.shape, t.double().tolist(), t.requires_grad) for t in tensors]


def answer(pipe, address):
    pipe.send(describe(address))
