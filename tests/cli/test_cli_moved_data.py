"""Images that were moved after a run began, from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cli_runner import Outcome
from PIL import Image

Cli = Callable[..., Outcome]
TRAIN = ("train", "--model", "mobilenet_v1", "--weights", "none", "--image-size", 32)


def write_images(root: Path, value: int = 0) -> Path:
    for index, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((8, 8, 3), value + 40 * index + number, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def summary(run: Path, stage: str) -> dict:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"][stage]["summary"]


def test_later_stages_find_images_that_were_moved(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "default"
    places = [write_images(tmp_path / "a"), tmp_path / "b", tmp_path / "c"]
    outcome = cli(*TRAIN, "--epochs", 0, "--data", "imagefolder:a")
    assert outcome.code == 0, outcome.err
    described = json.loads((run / "baseline" / "architecture.json").read_text(encoding="utf-8"))
    assert described["data"]["name"] == f"imagefolder:{places[0]}"
    assert summary(run, "baseline")["data"] == f"imagefolder:{places[0]}"

    places[0].rename(places[1])
    outcome = cli("evaluate")
    assert outcome.code == 2 and "--data-root" in outcome.err
    prune = ("prune", "--flops", 1, "--epochs", 0)
    other = write_images(tmp_path / "other", value=100)
    (other / "cat" / "0.png").unlink()
    outcome = cli(*prune, "--data", "imagefolder:other")
    assert outcome.code == 2 and "from 20 images" in outcome.err
    outcome = cli(*prune, "--data", "imagefolder:b")
    assert outcome.code == 0, outcome.err
    assert summary(run, "pruned")["data_root"] == str(places[1])
    assert cli("evaluate").code == 0  # where the stage before found them

    places[1].rename(places[2])
    outcome = cli("evaluate", "--data-root", "c")
    assert outcome.code == 0, outcome.err


def test_class_folder_that_is_no_utf_8_is_refused_before_training(cli: Cli, tmp_path: Path) -> None:
    write_images(tmp_path / "a")
    (tmp_path / "a" / "cat").rename(os.fsdecode(os.fsencode(tmp_path) + b"/a/caf\xe9"))
    outcome = cli(*TRAIN, "--data", "imagefolder:a")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: The name of class folder") and "UTF-8" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_what_is_left_out_is_said_once(cli: Cli, tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "Training")
    (tmp_path / "a" / "test").mkdir()
    (tmp_path / "a" / "test" / "1.png").write_bytes(b"")
    outcome = cli(*TRAIN, "--epochs", 0, "--data", "imagefolder:a")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("test has no class folders and is left out") == 1
