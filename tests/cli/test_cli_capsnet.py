"""CapsNet, whose images keep one channel, from training to the report."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from cli_runner import call
from safetensors.torch import load_file


@pytest.mark.slow
def test_capsnet_goes_through_the_commands_on_images_of_one_channel(tmp_path: Path) -> None:
    def ok(*arguments: object) -> dict:
        done = call(*arguments, "--json", folder=tmp_path)
        assert done.code == 0, done.err
        return json.loads(done.out)

    few = ("--epochs", 1, "--device", "cpu")
    ok("train", "--model", "capsnet", "--data", "digits", "--image-size", 20, "--part", 0.2, *few)
    # The pruned trunk is the unpruned one, so that what is attached is CapsNet.
    kept = ok("prune", "--flops", 1, "--epochs", 0, "--device", "cpu")
    assert kept["flops_ratio"] == 1
    caps = ok("attach-caps", "--primary", "spatial", *few)
    assert caps["primary_capsules"] == 2 * 2 * 32
    run = tmp_path / "runs" / "default"
    described = json.loads((run / "caps" / "architecture.json").read_text())["data"]
    assert (described["mean"], described["std"]) == ([0], [1])
    carried = load_file(run / "caps" / "verification.safetensors")["images"]
    assert carried.shape[1] == 1
    slim = ok("prune-caps", "--capsules", 12, "--candidates", 2, *few)
    assert slim["primary_capsules"] == 12
    exported = ok("export")
    assert exported["inputs"] == {"image": ["batch", 1, 20, 20]}
    model = onnx.load(run / "onnx" / "model.onnx")
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(notes["normalisation"]) == {"mean": [0], "std": [1]}
    ok("profile", "--repeats", 2, "--batch", 1)
    ok("analyse", "--images", 20, "--device", "cpu")
    assert ok("evaluate", "--device", "cpu")["images"] > 0
    ok("inspect")
    assert call("report", folder=tmp_path).code == 0
