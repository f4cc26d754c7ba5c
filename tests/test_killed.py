"""Whoever works in a folder next removes what a killed process left there, wherever that was."""

from __future__ import annotations

import hashlib
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from torch import nn

from capsprune import checkpoint
from capsprune.data.download import fetch, unpack_zip
from capsprune.native import build
from capsprune.pipeline.export import _copy as copy_to_output
from capsprune.report import write
from capsprune.report.charts import Figure
from capsprune.report.results import Results
from capsprune.run import open_run

Progress = Callable[..., None]


def kill(*_: object, **__: object) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], object]) -> None:
    """Do something in a process of its own, which is to be killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it was not killed"


def save(folder: Path, _: Progress | None) -> None:
    network = nn.Linear(2, 2)
    described = checkpoint.Architecture(
        id="a",
        parent=None,
        capsprune="0",
        model="mobilenet_v1",
        arguments={},
        data=checkpoint.DataDescription(
            name="d", class_names=("a", "b"), image_size=32, mean=(0, 0, 0), std=(1, 1, 1)
        ),
        channels={},
        head=None,
        metrics={},
    )
    with open_run(folder, "r", create=True) as run:
        work = run.begin("baseline", {}, None)
        checkpoint.save_checkpoint(work / "result", network, described)


def report(folder: Path, _: Progress | None) -> None:
    write.write_report(Results("title", []), folder)


def draw(folder: Path, _: Progress | None) -> None:
    write.draw_figures([FIGURE], folder)


FIGURE = Figure("f", "title", "caption", [], [])


@pytest.fixture
def _one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "make_figures", lambda results: [FIGURE])
    monkeypatch.setattr(write, "pictures", lambda figure: {"png": b"drawn"})
    monkeypatch.setattr(write, "write_page", lambda *_: None)


def export(folder: Path, _: Progress | None) -> None:
    source = folder.parent / f"network of {folder.name}"
    source.write_bytes(b"x")
    copy_to_output(source, folder / "x.onnx")


def download(folder: Path, progress: Progress | None) -> None:
    content = b"x" * 1000
    source = folder.parent / f"source of {folder.name}"
    source.write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    fetch("d", source.as_uri(), folder / "f", md5, download=True, progress=progress)


def unpack(folder: Path, progress: Progress | None) -> None:
    archive = folder.parent / f"archive of {folder.name}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("set/a/b.txt", "text")
    unpack_zip(archive, folder / "set", progress)


def compile_library(folder: Path, _: Progress | None) -> None:
    with (
        patch.object(build, "find_compiler", lambda: ["true"]),
        patch.object(build, "_call", lambda command, output: output.touch()),
    ):
        build.build(folder / "library.so")


POINTS = {
    "checkpoint": (save, "capsprune.checkpoint.save"),
    "figure": (draw, "pathlib.Path.write_bytes"),
    "export": (export, "shutil.copyfile"),
    "download": (download, None),
    "archive": (unpack, None),
    "library": (compile_library, "capsprune.native.build._link_command"),
}


@pytest.mark.usefixtures("_one_figure")
@pytest.mark.parametrize("point", POINTS)
def test_nothing_half_written_is_left_once_it_is_done_again(tmp_path: Path, point: str) -> None:
    work, place = POINTS[point]
    folder = tmp_path / "work"
    folder.mkdir()

    def and_be_killed() -> None:
        if place is None:
            work(folder, kill)
        else:
            with patch(place, kill):
                work(folder, None)

    in_a_child(and_be_killed)
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".partial")]
    assert left, "it was killed where nothing is half-written"
    work(folder, None)
    assert not list(folder.rglob("*.partial"))
    assert [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("_one_figure")
def test_a_report_removes_what_another_left_of_a_figure_that_is_drawn_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def and_be_killed() -> None:
        with patch("pathlib.Path.write_bytes", kill):
            write.draw_figures([FIGURE], tmp_path / "figures")

    in_a_child(and_be_killed)
    assert list((tmp_path / "figures").iterdir())
    monkeypatch.setattr(write, "make_figures", lambda results: [])
    report(tmp_path, None)
    assert not list((tmp_path / "figures").iterdir())
