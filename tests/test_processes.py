"""Processes of our own: what they import, what they get, when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from process_targets import answer, describe, die, environment, fail, interrupt_itself, modules_of
from torch import nn

from capsprune.processes import Child, ChildError, Parcel, call

#: Names that many modules import; in a folder of a user's they are something else.
POISON = ("random", "types", "numpy", "torch", "json", "pickle", "capsprune", "sitecustomize")


@pytest.fixture
def poisoned(tmp_path, monkeypatch) -> Path:
    """A current folder whose modules end whoever imports them."""
    folder = tmp_path / "poisoned"
    folder.mkdir()
    for name in POISON:
        (folder / f"{name}.py").write_text("import os\nos._exit(99)\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("entry", ["", ".", None])
def test_a_child_imports_nothing_from_the_current_folder(poisoned, monkeypatch, entry):
    monkeypatch.setattr(sys, "path", [str(poisoned) if entry is None else entry, *sys.path])
    files = call(modules_of, ("random", "types", "json", "pickle", "capsprune"))
    assert not [file for file in files if str(poisoned) in file]


def test_what_the_user_put_into_pythonpath_is_imported(tmp_path, monkeypatch):
    (tmp_path / "of_the_user.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert call(modules_of, ("of_the_user",)) == [str(tmp_path / "of_the_user.py")]


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, **options
    )


SCRIPT = """
import sys
from pathlib import Path
sys.path.append({tests!r})
import torch
torch.set_num_threads(1)
from prunables import tiny_prunable
from capsprune.pruning.evaluation import Evaluator, Task
from capsprune.pruning.workers import ProcessWorkers
from capsprune.training.objective import CROSS_ENTROPY
import numpy as np
print("main runs")
tiny = tiny_prunable()
evaluator = Evaluator(tiny.model, tiny.dependencies, tiny.rankings, [tiny.images(8, 0)],
                      [(tiny.images(8, 1), torch.arange(8) % 4)], CROSS_ENTROPY)
workers = ProcessWorkers(evaluator, 2)
for index in range(2):
    workers.submit(Task(index, np.array([8, 8]), 1, 1))
done = 0
while done < 2:
    done += len(workers.collect())
workers.close()
print("done", done)
"""


def test_a_script_without_a_main_guard_has_workers(poisoned):
    """Its folder holds poison too: it is a script's, so Python puts it first."""
    script = poisoned.parent / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent / "pruning")))
    done = run(script, cwd=poisoned, timeout=120)
    assert done.stdout == "main runs\ndone 2\n", done.stderr


def test_the_command_line_imports_nothing_from_the_current_folder(poisoned):
    for name in ("types", "capsprune", "sitecustomize"):  # Python itself is first with these
        (poisoned / f"{name}.py").unlink()
    for name in ("difflib", "typer", "yaml"):
        (poisoned / f"{name}.py").write_text("import os\nos._exit(99)\n")
    done = run("-m", "capsprune", "runs", cwd=poisoned, timeout=120)
    assert done.returncode == 0, done.stderr


PATIENCE = """
import os, sys
import capsprune.__main__ as entry
assert "torch" not in sys.modules
entry._run = lambda: print(os.environ["OMP_WAIT_POLICY"])
entry.main()
"""


@pytest.mark.parametrize(("users", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(users, used):
    others = {name: text for name, text in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env = {**others, "OMP_WAIT_POLICY": users} if users else others
    assert run("-c", PATIENCE, env=env).stdout.strip() == used


def value():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    layer = nn.Linear(3, 3)
    return {
        "net": nn.Sequential(layer, layer, nn.BatchNorm2d(2).eval()),
        "images": [images, images[1], images[:, :, ::2].to(torch.bfloat16)],
        "others": [torch.arange(4), torch.arange(4) > 1, torch.empty(0, 3)],
    }


def test_a_parcel_arrives_as_it_was(tmp_path):
    sent = value()
    parcel = Parcel(sent, tmp_path)
    assert not list(tmp_path.iterdir())  # it has no name, and needs no /dev/shm
    expected = describe(parcel.address)
    children = [Child(answer, parcel.address, keep=(parcel.descriptor,)) for _ in range(2)]
    try:
        for child in children:
            for (dtype, shape, numbers, grad), (*other, there) in zip(
                child.pipe.recv(), expected, strict=True
            ):
                assert [dtype, shape, there] == [*other[:2], grad]
                assert torch.tensor(numbers).allclose(torch.tensor(other[2]))
    finally:
        for child in children:
            child.end()
        parcel.close()


def test_what_goes_wrong_in_a_call_is_told():
    with pytest.raises(ChildError, match=r"^the cause$"):
        call(fail, "the cause.\nmore")
    with pytest.raises(ChildError, match="exit code -9"):
        call(die)


def test_a_child_never_sees_an_interrupt():
    assert call(interrupt_itself)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


PARENT = """
import sys, time
sys.path.insert(0, {tests!r})
import process_targets
from capsprune import processes
child = processes.Child(process_targets.busy, {file!r})
time.sleep(600)
"""


@pytest.mark.parametrize("name", ["outer", "outer-portable"])
def test_children_end_when_their_parent_is_killed(tmp_path, name):
    code = PARENT.format(tests=str(Path(__file__).parent), file=str(tmp_path / name))
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(file.suffix[1:]) for file in tmp_path.iterdir()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_place_for_temporary_files_is_needed(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    assert call(environment, "TMPDIR") == str(deep)
    assert call(sum, (1, 2)) == 3
    assert not list(deep.iterdir())
