"""Another package's backbone and data set go through all stages, found by its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MINE = """
import numpy as np
import torch
from torch import nn

from capsprune.backbones.registry import BACKBONES, Backbone
from capsprune.data.images import TensorImages
from capsprune.data.names import DATA_SETS
from capsprune.data.source import DataSet, Source


class Toy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        layers = []
        for channels in (3, 16):
            layers += [nn.Conv2d(channels, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, images):
        return self.classifier(self.features(images).mean((2, 3)))


def read(request):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 12, 12), dtype=np.uint8)
    pool = TensorImages(torch.from_numpy(pixels), torch.arange(60) % 3)
    return Source(("a", "b", "c"), 12, "0" * 64, pool, None, None, validation_share=0.1)


toy = Backbone(("features",), "classifier", Toy, mean=(0.5, 0.5, 0.5), smallest_image=4)
BACKBONES.register("toy", "mine")(toy)
DATA_SETS.register("noise", "random images")(DataSet(read, image_size=16))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of installed packages, with one that announces a plug-in."""
    folder = tmp_path / "packages"
    about = folder / "mine-0.1.dist-info"
    about.mkdir(parents=True)
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[capsprune.plugins]\nmine = mine\n")
    return folder


def run(installed: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "capsprune", *map(str, command)],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_plug_in_s_backbone_and_data_set_go_through_all_stages(installed: Path) -> None:
    search = ("--candidates", 2, "--workers", 2, "--round-to", 1, "--epochs", 0)
    results = {}
    for command in (
        ("train", "--model", "toy", "--data", "noise", "--epochs", 0),
        ("prune", "--flops", 0.5, *search),
        ("attach-caps", "--d1", 4, "--epochs", 1),
        ("export",),
        ("evaluate",),
        ("doctor",),
    ):
        outcome = run(installed, *command, "--json")
        assert outcome.returncode == 0, outcome.stderr
        results[command[0]] = json.loads(outcome.stdout)
    assert results["prune"]["flops_ratio"] == pytest.approx(0.5, abs=0.01)
    assert results["export"]["top1_agreement"] == 1
    assert results["doctor"]["noise"]["found"] == "in code that registers it"
    described = json.loads(
        (installed.parent / "runs/default/caps/architecture.json").read_text(encoding="utf-8")
    )
    assert (described["model"], described["data"]["mean"]) == ("toy", [0.5, 0.5, 0.5])
    assert "noise (random images)" in " ".join(run(installed, "train", "--help").stdout.split())


def test_a_plug_in_that_cannot_be_imported_is_one_sentence(installed: Path) -> None:
    (installed / "mine.py").write_text("import nowhere\n", encoding="utf-8")
    outcome = run(installed, "runs")
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr
    assert outcome.stderr.startswith("Error: The plug-in 'mine' (mine) cannot be imported (No mod")
