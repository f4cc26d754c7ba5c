"""Weights that people have, through the commands that take them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runner import Outcome, call
from safetensors.torch import load_file
from torch import nn

from capsprune.backbones.registry import build_backbone

Cli = Callable[..., Outcome]
MODEL = ("--model", "mobilenet_v1")
TRAIN = ("train", *MODEL, "--part", 0.1, "--epochs", 0)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("mobilenet_v1", 10, stem_stride=1)


@pytest.fixture
def checkpoint(network: nn.Module, tmp_path: Path) -> str:
    """What torchvision's training script saves, with a moving average."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1),
            torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6]),
        ],
        milestones=[2],
    )
    average = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    with torch.no_grad():
        average.module.linear.bias += 1
    torch.save(
        {
            "model": nn.DataParallel(network).state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "epoch": 3,
            "args": argparse.Namespace(data_path=Path("/data"), lr=0.1, resume=""),
            "best": np.float64(71.5),
            "model_ema": average.state_dict(),
        },
        tmp_path / "model_3.pth",
    )
    return "model_3.pth"


def saved_bias(folder: Path, stage: str) -> torch.Tensor:
    return load_file(folder / "runs" / "default" / stage / "model.safetensors")["linear.bias"]


def test_training_starts_from_a_training_script_s_checkpoint(
    cli: Cli, checkpoint: str, network: nn.Module, tmp_path: Path
) -> None:
    outcome = cli(*TRAIN, "--weights", checkpoint)
    assert outcome.code == 0, outcome.err
    told = "weights from model_3.pth, the weights as trained, not their moving average"
    assert f"{told} ('model_ema')" in outcome.err
    assert torch.equal(saved_bias(tmp_path, "baseline"), network.linear.bias)
    outcome = cli(*TRAIN, "--weights", checkpoint, "--ema", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert "the moving average of the weights ('model_ema'), as asked" in outcome.err
    assert torch.equal(saved_bias(tmp_path, "baseline"), network.linear.bias + 1)


def test_an_import_says_where_it_found_the_network(
    cli: Cli, network: nn.Module, tmp_path: Path
) -> None:
    state = {f"model.{k}": v for k, v in network.state_dict().items() if "linear" not in k}
    state["loss.weight"] = torch.ones(10)
    content = {"state_dict": state, "hyper_parameters": {"lr": 0.1}, "callbacks": {}}
    torch.save(content, tmp_path / "last.ckpt")
    outcome = cli("import-checkpoint", "last.ckpt", *MODEL, "--part", 0.1, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["flops_ratio"] == 1
    for words in (
        "last.ckpt is a mobilenet_v1 with 100.0% of its FLOPs, found under 'model.'",
        "without 'loss.weight'",
        "classifier drawn anew (10 classes), as the file has none",
    ):
        assert words in outcome.err


@pytest.mark.parametrize("command", [TRAIN, ("import-checkpoint", *MODEL)], ids=lambda c: c[0])
def test_both_commands_refuse_the_same_files_and_leave_nothing(
    command: tuple, network: nn.Module, tmp_path: Path
) -> None:
    bad = {key: value.clone() for key, value in network.state_dict().items()}
    bad["layers.3.conv2.weight"][0] = torch.nan
    torch.save(bad, tmp_path / "nan.pth")
    torch.save(network, tmp_path / "whole.pth")
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    before = {path.name for path in tmp_path.iterdir()}
    for file, options, words in (
        ("nan.pth", (), "not finite (NaN or infinity) in 'layers.3.conv2.weight'"),
        ("whole.pth", (), "a whole network as a pickled object"),
        ("pointer.pth", (), "is a Git LFS pointer"),
        ("plain.pth", ("--ema",), "no moving average"),
        (".", (), "is a folder"),
        ("absent.pth", (), "There is no weights file absent.pth; check the path."),
    ):
        place = ("--weights", file) if command[0] == "train" else (file,)
        outcome = call(*command, *place, *options, folder=tmp_path)
        assert outcome.code == 2 and outcome.out == "", outcome.err
        last = outcome.err.strip().splitlines()[-1]
        assert last.startswith("Error: ") and words in last
    assert {path.name for path in tmp_path.iterdir()} == before
