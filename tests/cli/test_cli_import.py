"""Importing a backbone that was pruned elsewhere, and going on from there to the profile."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_pruning
from cli_runner import Outcome, call
from torch import Tensor, nn

from capsprune.backbones.registry import build_backbone
from capsprune.checkpoint import load_checkpoint

Cli = Callable[..., Outcome]
MODEL = ("--model", "mobilenet_v1")


def pruned_elsewhere(classes: int = 10) -> nn.Module:
    """A MobileNetV1 for small images that torch-pruning alone took the channels from."""
    torch.manual_seed(0)
    model = build_backbone("mobilenet_v1", classes, stem_stride=1).eval()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        torch.zeros(1, 3, 32, 32),
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.4,
        ignored_layers=[model.linear],
    )
    pruner.step()
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return pruned_elsewhere()


@pytest.fixture(scope="module")
def imported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a state dict as `DataParallel` saves it, and a run that took it in."""
    folder = tmp_path_factory.mktemp("imported")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "pruned.pth")
    outcome = call("import-checkpoint", "pruned.pth", *MODEL, "--json", folder=folder)
    assert outcome.code == 0, outcome.err
    (folder / "said.json").write_text(outcome.out)
    return folder


def save(folder: Path, state: dict[str, Tensor]) -> str:
    torch.save(state, folder / "file.pth")
    return "file.pth"


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, (outcome.code, outcome.err)
    assert outcome.out == "" and "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last


def test_the_imported_network_computes_what_the_pruned_one_did(
    imported: Path, model: nn.Module
) -> None:
    network = load_checkpoint(imported / "runs" / "default" / "pruned").network
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images))
    said = json.loads((imported / "said.json").read_text())
    assert said["classifier"] == "with its classifier"
    assert said["images"] == 359 and 0 <= said["accuracy"] <= 1
    assert said["parameters"] == sum(p.numel() for p in model.parameters())
    assert 0.3 < said["flops_ratio"] < 0.45  # 0.6 of the channels on both sides: 0.36, and the stem


def test_all_later_stages_work_without_a_baseline(imported: Path, tmp_path: Path) -> None:
    for command in (
        ("attach-caps", "--epochs", 1, "--json"),
        ("export", "--onnx"),
        ("profile", "--batch", 1, "--repeats", 5, "--json"),
    ):
        outcome = call(*command, folder=imported)
        assert outcome.code == 0, outcome.err
        if command[0] == "attach-caps":
            caps = json.loads(outcome.out)
            assert caps["bottleneck_channels"] == 614  # 1024 - floor(0.4 x 1024)
            assert caps["primary_capsules"] == 76
    assert "untrained mobilenet_v1 stands for the unpruned one" in outcome.err
    variants = json.loads(outcome.out)["variants"]
    assert variants["unpruned, linear"]["accuracy"] is None
    assert (
        variants["unpruned, linear"]["forward_macs"] > variants["pruned, capsules"]["forward_macs"]
    )
    assert call("inspect", "--json", folder=imported).code == 0
    assert call("evaluate", "runs/default/pruned", folder=imported).code == 0
    listed = call("runs", folder=imported)
    assert listed.code == 0 and "default" in listed.out


def test_its_strategy_makes_the_same_shape_again(imported: Path, tmp_path: Path) -> None:
    strategy = imported / "runs" / "default" / "pruned" / "strategy.json"
    outcome = call(
        *("inspect", *MODEL, "--strategy", strategy, "--image-size", 32, "--classes", 10, "--json"),
        folder=tmp_path,
    )
    assert outcome.code == 0, outcome.err
    said = json.loads((imported / "said.json").read_text())
    assert json.loads(outcome.out)["backbone_macs"] == said["forward_macs"]


def test_a_finished_import_is_not_done_again_unless_asked(imported: Path) -> None:
    command = ("import-checkpoint", "pruned.pth", *MODEL)
    outcome = call(*command, folder=imported)
    assert outcome.code == 0 and "done already" in outcome.err
    refused(call(*command, "--image-size", 48, folder=imported), "finished pruned", "--overwrite")


def test_a_classifier_for_other_classes_is_drawn_anew(cli: Cli, tmp_path: Path) -> None:
    file = save(tmp_path, pruned_elsewhere(classes=7).state_dict())
    outcome = cli("import-checkpoint", file, *MODEL)
    assert outcome.code == 0, outcome.err
    assert "classifier drawn anew" in outcome.out and "not available" in outcome.out
    network = load_checkpoint(tmp_path / "runs" / "default" / "pruned").network
    assert network.linear.weight.shape == (10, 614)
    assert torch.isfinite(network.linear.weight).all() and network.linear.weight.std() > 0


def test_shapes_that_disagree_name_the_tensor(cli: Cli, tmp_path: Path, model: nn.Module) -> None:
    state = copy.deepcopy(model.state_dict())
    state["layers.3.conv2.weight"] = state["layers.3.conv2.weight"][:, :-1]
    file = save(tmp_path, state)
    refused(cli("import-checkpoint", file, *MODEL), "'layers.3.conv2.weight'", "[153, 76, 1, 1]")
    state = copy.deepcopy(model.state_dict())
    state["layers.5.bn2.running_mean"] = torch.zeros(9)
    file = save(tmp_path, state)
    refused(
        cli("import-checkpoint", file, *MODEL), "'layers.5.bn2.running_mean' of file.pth is [9]"
    )
    assert not (tmp_path / "runs").exists()


def test_tensors_of_whole_numbers_are_named(cli: Cli, tmp_path: Path, model: nn.Module) -> None:
    state = dict(model.state_dict())
    state["bn1.weight"] = state["bn1.weight"].long()
    refused(cli("import-checkpoint", save(tmp_path, state), *MODEL), "bn1.weight", "int64")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state.pop("layers.2.bn1.bias"),
            ("no tensor 'layers.2.bn1.bias'", "--model"),
        ),
        (lambda state: state.update(more=torch.zeros(2)), ("a tensor 'more'", "--model")),
        (
            lambda state: state.update({"layers.0.conv2.weight": torch.zeros(65, 20, 1, 1)}),
            ("'layers.0.conv2.weight'", "65", "up to 64"),
        ),
    ],
)
def test_another_network_is_refused(
    cli: Cli, tmp_path: Path, model: nn.Module, change: Callable, words: tuple[str, ...]
) -> None:
    state = copy.deepcopy(model.state_dict())
    change(state)
    refused(cli("import-checkpoint", save(tmp_path, state), *MODEL), *words)


def test_pickled_modules_are_never_loaded(cli: Cli, tmp_path: Path, model: nn.Module) -> None:
    torch.save(model, tmp_path / "whole.pth")
    refused(cli("import-checkpoint", "whole.pth", *MODEL), "pickled object", "state_dict()")
    refused(cli("import-checkpoint", "missing.pth", *MODEL), "missing.pth", "check the path")


def test_a_run_with_another_baseline_takes_no_import(imported: Path, finished: Path) -> None:
    refused(
        call(
            *("import-checkpoint", imported / "pruned.pth", *MODEL, "--image-size", 64),
            folder=finished,
        ),
        "baseline of run 'default'",
        "--image-size 32",
    )
