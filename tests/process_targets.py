"""What children do in tests. It imports nothing heavy, as every child imports it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
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


def report(shared, task, seat):
    """Wait until another process is at work too; give what this one has."""
    import torch

    (shared["folder"] / f"{task}.here").touch()
    deadline = time.monotonic() + 60
    while len(list(shared["folder"].glob("*.here"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    seat.say(seat.place)
    return float(shared["weight"].sum()), torch.get_num_threads(), os.getpid()


def wait_for(shared, task, seat):
    time.sleep(float(task))
    return os.getpid()


def die_at_first(shared, task, seat):
    """Die so many times; then give how often this was tried."""
    file, deaths = task
    with Path(file).open("a", encoding="utf-8") as log:
        log.write("x")
    tried = Path(file).stat().st_size
    if tried <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return tried
