"""What a user is told of images that are no plain pictures, and when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runner import Outcome
from PIL import Image

from capsprune.backbones.registry import build_backbone
from capsprune.data import file_sources

Cli = Callable[..., Outcome]

SMALL = ("--model", "mobilenet_v1", "--image-size", 32)


def scans(root: Path) -> Path:
    """Signed values as of a tomograph, in two classes."""
    for label, name in enumerate(("upper", "lower")):
        (root / name).mkdir(parents=True)
        for number in range(10):
            values = np.random.default_rng([label, number]).uniform(0, 600, (32, 32)) - 1000
            values[16 * label : 16 * label + 16] += 1200
            Image.fromarray(values.astype(np.int32)).save(root / name / f"{number}.tif")
    return root


@pytest.fixture
def data(tmp_path: Path) -> str:
    return f"imagefolder:{scans(tmp_path / 'scans')}"


@pytest.mark.parametrize("command", ["train", "prune", "import-checkpoint"])
def test_every_command_that_reads_images_first_takes_their_range(
    cli: Cli, tmp_path: Path, data: str, command: str
) -> None:
    given: tuple[object, ...] = ()
    if command == "import-checkpoint":
        torch.save(build_backbone("mobilenet_v1", 2).state_dict(), tmp_path / "a.pth")
        given = (tmp_path / "a.pth",)
    outcome = cli(command, *given, *SMALL, "--data", data, "--value-range", "5000,6000")
    assert outcome.code == 2, outcome.err
    assert outcome.err.splitlines()[-1].startswith("Error: All 20 images of data set")
    assert "--value-range" in outcome.err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "value", "cause"),
    [
        ("--value-range", "5", "two numbers, such as 0,4095"),
        ("--value-range", "1,2,3", "two numbers"),
        ("--value-range", "2,1", "the lesser one first"),
        ("--value-range", "nan,1", "finite"),
        ("--value-range", "a,b", "number"),
        ("--background", "whitish", "a colour such as white"),
    ],
)
def test_ranges_and_colours_are_checked(cli: Cli, option: str, value: str, cause: str) -> None:
    outcome = cli("train", "--model", "mobilenet_v1", option, value)
    assert outcome.code == 2 and outcome.err.startswith(f"Error: {option} ")
    assert cause in outcome.err


def test_the_range_is_told_once_and_kept(cli: Cli, tmp_path: Path, data: str) -> None:
    outcome = cli("train", *SMALL, "--data", data, "--epochs", 0)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("20 images of more than 8 bits a pixel") == 1
    low, high = json.loads((tmp_path / "runs/default/split.json").read_text())["value_range"]
    assert -1000 <= low < -990 and 790 < high <= 800
    outcome = cli("evaluate")
    assert outcome.code == 0 and "more than 8 bits" not in outcome.err
    other = ("--value-range", "0,99")
    outcome = cli("prune", "--epochs", 0, "--candidates", 1, *other)
    assert outcome.code == 2 and "not 0,99: leave --value-range out" in outcome.err
    # Where nothing stays that was made with the old range, a new one takes its place.
    outcome = cli("train", *SMALL, "--data", data, "--epochs", 0, "--overwrite", *other)
    assert outcome.code == 0, outcome.err
    kept = json.loads((tmp_path / "runs/default/split.json").read_text())["value_range"]
    assert kept == [0, 99]


def test_bad_files_are_found_before_training_and_repaired_ones_keep_the_split(
    cli: Cli, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sources, "MEMORY_BUDGET", 0)
    train = ("train", *SMALL, "--data", data, "--epochs", 0)
    bad = [tmp_path / "scans" / name / "3.tif" for name in ("upper", "lower")]
    whole = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(path.read_bytes()[:200])
    outcome = cli(*train)
    assert outcome.code == 2 and not (tmp_path / "runs").exists()
    assert all(str(path) in outcome.err.splitlines()[-1] for path in bad)
    for path, content in zip(bad, whole, strict=True):
        path.write_bytes(content)
    outcome = cli(*train)
    assert outcome.code == 0 and "Checking images" in outcome.err, outcome.err
    split = tmp_path / "runs/default/split.json"
    drawn = json.loads(split.read_text())["test"]

    bad[0].write_bytes(whole[0][:200])
    outcome = cli("evaluate")
    assert outcome.code == 2 and "cannot be decoded" in outcome.err
    bad[0].write_bytes(whole[0] + b"repaired")
    outcome = cli("evaluate")
    assert outcome.code == 0 and outcome.err.count("were replaced") == 1
    outcome = cli("evaluate")
    assert outcome.code == 0
    assert "were replaced" not in outcome.err and "Checking images" not in outcome.err
    assert json.loads(split.read_text())["test"] == drawn
