"""Cuts the power: what a disk held at the moment a command ended is all that there is then."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from capsprune.checkpoint import load_checkpoint
from capsprune.run import read_run

#: Nothing is written but on request: not after a while, and not since another file is replaced.
_OPTIONS = "loop,commit=3000,noauto_da_alloc"


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount a file with a file system in it."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "ext4", "-o", _OPTIONS, image, folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"loop devices cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file, and the folder where the file system in it is mounted."""
    image = tmp_path / "disk.img"
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root can mount, and mkfs.ext4 makes what is mounted")
    with image.open("wb") as file:
        file.truncate(512 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(image, tmp_path / "disk") as folder:
        yield image, folder


def command(*arguments: object, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "capsprune", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def check_stages(run_folder: Path, live: Path) -> set[str]:
    """Check that the finished stages are there and load; returns their names."""
    run = read_run(run_folder.parent, run_folder.name)
    for stage in run.stages:
        path = run.path(stage)
        assert path.exists(), f"{stage} is lost"
        for file in [path] if path.is_file() else path.rglob("*"):
            same = live / file.relative_to(run_folder)
            assert file.read_bytes() == same.read_bytes(), f"{file} is not what was written"
        if (path / "model.safetensors").exists():
            load_checkpoint(path)
        elif stage == "onnx":
            onnx.load(path / "model.onnx")
        else:
            json.loads(path.read_text(encoding="utf-8"))
    return set(run.stages)


_COMMANDS = {
    "baseline": ("train", "--model", "mobilenet_v1", "--epochs", 1, "--part", 0.3),
    "pruned": ("prune", "--candidates", 2, "--bn-batches", 1, "--epochs", 0),
    "caps": ("attach-caps", "--epochs", 1),
    "linear": ("attach-linear", "--epochs", 1),
    "onnx": ("export", "--onnx", "--output", "out.onnx"),
    "profile": ("profile", "--batch", 1, "--repeats", 2),
    "analysis": ("analyse", "--images", 20),
    "report": ("report",),
}


@pytest.mark.slow
def test_finished_stages_outlive_a_loss_of_power(disk: tuple[Path, Path], tmp_path: Path) -> None:
    image, folder = disk
    live = folder / "runs" / "default"
    done = set()
    for stage, arguments in _COMMANDS.items():
        command(*arguments, folder=folder)
        copy = tmp_path / f"{stage}.img"
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
        done.add(stage)
        with mounted(copy, tmp_path / stage) as after:
            found = check_stages(after / "runs" / "default", live)
            assert found == done - {"report"}, f"after {stage}"
            if "onnx" in done:
                assert (after / "out.onnx").read_bytes() == (folder / "out.onnx").read_bytes()
            if stage == "report":
                for file in [*live.glob("*.md"), *live.glob("*.html"), *live.glob("figures/*")]:
                    same = after / file.relative_to(folder)
                    assert same.read_bytes() == file.read_bytes()
        copy.unlink()
