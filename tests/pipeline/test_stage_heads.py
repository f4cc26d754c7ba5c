"""The stages behind the pruned backbone, on a small network and made-up images."""

import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from toy_pipeline import MADE, SIZE

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import CapspruneError, Interrupted, RunError

COMMANDS = {
    "attach-caps": "caps",
    "attach-linear": "linear",
    "export": "onnx",
    "analyse": "analysis",
    "profile": "profile",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stage_is_done_once_and_needs_the_one_before(finished, place, command):
    before = finished.stages()
    finished.do(command, **MADE[command])
    assert f"{COMMANDS[command]} is done already" in finished.said
    assert finished.stages() == before
    finished.do("train", run="fresh", **MADE["train"], epochs=0)
    with pytest.raises(RunError, match="first run"):
        finished.do(command, run="fresh", **MADE[command])
    assert set(finished.stages("fresh")) == {"baseline"}


@pytest.mark.parametrize(
    ("command", "changed", "words"),
    [
        ("attach-caps", {"d2": 8}, "d2"),
        ("attach-caps", {"freeze": True}, "freeze"),
        ("attach-linear", {"epochs": 2}, "epochs"),
        ("export", {"opset": 20}, "opset"),
        ("analyse", {"images": 5}, "images"),
        ("profile", {"repeats": 2}, "repeats"),
    ],
)
def test_another_request_is_refused(finished, command, changed, words):
    before = finished.stages()
    with pytest.raises(RunError, match=words):
        finished.do(command, **{**MADE[command], **changed})
    assert finished.stages() == before


@pytest.mark.parametrize("command", ["attach-caps", "attach-linear"])
def test_a_head_is_trained_with_the_trunk_or_without(finished, command):
    trunk = load_checkpoint(finished.path("pruned")).trunk.state_dict()
    for freeze in (True, False):
        values = {**MADE[command], "freeze": freeze, "overwrite": True}
        summary = finished.do(command, **values).to_dict()
        assert (summary["frozen"], summary["model"], summary["epochs"]) == (freeze, "toy", 1)
        assert f"the trunk is {'frozen' if freeze else 'finetuned'}" in finished.said
        checkpoint = load_checkpoint(finished.path(COMMANDS[command]))
        same = all(
            torch.equal(value, trunk[key]) for key, value in checkpoint.trunk.state_dict().items()
        )
        assert same == freeze
        assert checkpoint.architecture.parent == finished.stages()["pruned"]
        assert summary["accuracy"] == checkpoint.architecture.metrics["accuracy"]


def test_an_interrupted_head_goes_on(finished):
    before = finished.stages()
    values = {**MADE["attach-caps"], "epochs": 2, "overwrite": True}
    whole = finished.do("attach-caps", **values).to_dict()
    finished.progress.stop_at = (finished.progress.titles[-1], 8)
    with pytest.raises(Interrupted):
        finished.do("attach-caps", **values)
    again = finished.do("attach-caps", **values).to_dict()
    assert again["loss"] == whole["loss"]
    assert finished.stages()["caps"] != before["caps"]


@pytest.mark.parametrize(
    ("given", "sizes", "conv"),
    [
        ({"primary": "depthwise"}, {}, (24, 1, 4, 4)),
        ({"primary": "factored", "primary_rank": 2}, {"primary_rank": 2}, (24, 2, 1, 1)),
        ({"primary": "pointwise", "types": 2}, {"primary_types": 2}, (16, 24, 1, 1)),
    ],
    ids=lambda value: value["primary"] if isinstance(value, dict) and "primary" in value else "",
)
def test_primary_caps_are_of_the_kind_asked_for(finished, given, sizes, conv):
    values = {**MADE["attach-caps"], **given}
    summary = finished.do("attach-caps", **values, overwrite=True).to_dict()
    checkpoint = load_checkpoint(finished.path("caps"))
    assert tuple(checkpoint.network.primary_caps.conv.weight.shape) == conv
    assert summary["primary"] == given["primary"]
    assert {key: summary[key] for key in sizes} == sizes
    finished.do("attach-caps", **values)
    assert "caps is done already" in finished.said
    with pytest.raises(RunError, match="primary"):
        finished.do("attach-caps", **MADE["attach-caps"])
    exported = finished.do("export", overwrite=True).to_dict()
    assert exported["max_abs_difference"] < 1e-4
    costs = finished.do("inspect").to_dict()["caps"]
    assert costs["parameters"] == summary["parameters"]


def test_the_paper_s_primary_caps_are_the_default(finished):
    before = finished.stages()
    finished.do("attach-caps", **MADE["attach-caps"], primary="dense")
    assert "caps is done already" in finished.said and finished.stages() == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"primary": "spatial"}, "4 x 4, too small for the 9 x 9 filters"),
        ({"types": 3}, "dense has no --types"),
        ({"primary": "depthwise", "primary_rank": 3}, "depthwise has no --primary-rank"),
        ({"primary": "dens"}, "did you mean dense"),
    ],
)
def test_primary_caps_that_do_not_fit_lose_nothing(finished, given, words):
    before = finished.stages()
    with pytest.raises(CapspruneError, match=words):
        finished.do("attach-caps", **{**MADE["attach-caps"], **given}, overwrite=True)
    assert finished.stages() == before and load_checkpoint(finished.path("caps"))


def test_heads_fit_a_named_checkpoint_that_has_none(finished):
    source = str(finished.path("pruned"))
    finished.do("attach-caps", run="other", **MADE["attach-caps"], checkpoint=source)
    assert set(finished.stages("other")) == {"caps"}
    with pytest.raises(RunError, match="capsule head already"):
        finished.do("attach-linear", run="other", checkpoint=str(finished.path("caps")))
    with pytest.raises(CapspruneError, match="--d1"):
        finished.do("attach-caps", run="wide", d1=30, checkpoint=source)


def test_an_exported_file_computes_what_the_network_does(finished):
    target = finished.folder / "mine.onnx"
    summary = finished.do("export", **MADE["export"], output=str(target)).to_dict()
    assert summary["path"] == str(target)
    assert summary["verified_on"] == "test images that the checkpoint carries"
    with pytest.raises(CapspruneError, match="exists already; give --overwrite"):
        finished.do("export", output=str(target))
    with pytest.raises(CapspruneError, match="is a folder"):
        finished.do("export", output=str(finished.folder))
    with pytest.raises(CapspruneError, match="There is no folder"):
        finished.do("export", output=str(finished.folder / "missing" / "x.onnx"))
    network = load_checkpoint(finished.path("caps")).network.eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = network(images).class_probabilities.numpy()
    assert any(
        out.shape == expected.shape and np.allclose(out, expected, atol=1e-4) for out in outputs
    )


@pytest.mark.parametrize("stage", ["pruned", "linear"])
def test_any_checkpoint_is_exported_beside_itself(finished, stage):
    before = finished.stages()
    finished.do("export", checkpoint=str(finished.path(stage)))
    assert finished.path(f"{stage}.onnx").is_file()
    assert finished.stages() == before


def test_profiled_are_the_unpruned_network_and_the_pruned_one(finished):
    values = {**MADE["profile"], "batch": (1, 2), "overwrite": True}
    summary = finished.do("profile", **values).to_dict()
    names = list(summary["variants"])
    assert names == ["unpruned, linear", "unpruned, capsules", "pruned, capsules"]
    measured = {(m["variant"], m["batch"]) for m in summary["measurements"]}
    assert measured == {(name, batch) for name in names for batch in (1, 2)}
    macs = [summary["variants"][name]["forward_macs"] for name in names]
    assert macs[2] < macs[1]


def test_without_a_baseline_an_untrained_one_is_profiled(finished):
    source = str(finished.path("pruned"))
    finished.do("attach-caps", run="other", **MADE["attach-caps"], checkpoint=source)
    finished.do("export", run="other")
    finished.do("profile", run="other", **MADE["profile"])
    assert "an untrained toy stands for the unpruned one" in finished.said


def test_an_analysis_looks_at_both_heads(finished):
    summary = finished.do("analyse", **MADE["analyse"], overwrite=True).to_dict()
    assert (summary["images"], summary["frozen"]) == (20, False)
    assert all(row["linear"] is not None for row in summary["robustness"])
    finished.do("attach-linear", **MADE["attach-linear"], freeze=True, overwrite=True)
    summary = finished.do("analyse", **MADE["analyse"], overwrite=True).to_dict()
    assert "is left out" in finished.said
    assert all(row["linear"] is None for row in summary["robustness"])


def test_a_stage_of_what_was_replaced_is_out_of_date(finished):
    finished.do("prune", **{**MADE["prune"], "flops": 0.7}, overwrite=True)
    with pytest.raises(RunError):
        finished.do("export", **MADE["export"])


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_evaluated_is_what_was_finished_last_or_what_is_named(finished, place, split):
    figures = finished.do("evaluate", split=split).to_dict()
    assert (figures["split"], figures["model"], len(figures["classes"])) == (split, "toy", 3)
    named = finished.do("evaluate", checkpoint=str(finished.path("baseline"))).to_dict()
    assert (
        named["accuracy"]
        == load_checkpoint(finished.path("baseline")).architecture.metrics["accuracy"]
    )
    shutil.copytree(finished.path("caps"), finished.folder / "copy")
    elsewhere = {"run": "empty", "checkpoint": str(finished.folder / "copy")}
    assert finished.do("evaluate", **elsewhere).to_dict()["images"] == 24


def test_a_run_is_inspected(finished):
    figures = finished.do("inspect").to_dict()
    for network in figures.values():
        parts = network["parts"].values()
        assert sum(part["parameters"] for part in parts) == network["parameters"]
        assert sum(part["macs"] for part in parts) == network["forward_macs"]
    spent = figures["caps"]["milliseconds"]["1"]
    total = spent.pop("all")
    assert set(spent) == {"trunk", "primary_caps", "output_caps", "routing"}
    assert sum(spent.values()) == pytest.approx(total)
    assert set(figures["baseline"]["milliseconds"]["1"]) == {"all"}
    assert "milliseconds" not in figures["pruned"]
    assert finished.do("inspect", model="toy", image_size=SIZE, classes=3).to_dict()


def test_a_profile_of_an_older_network_is_not_shown(finished):
    finished.do("attach-caps", **{**MADE["attach-caps"], "d2": 6}, overwrite=True)
    assert "milliseconds" not in finished.do("inspect").to_dict()["caps"]


def test_a_backbone_that_was_pruned_elsewhere_is_imported(finished):
    pruned = load_checkpoint(finished.path("pruned")).network
    file = finished.folder / "theirs.safetensors"
    save_file(pruned.state_dict(), file)
    values = {"checkpoint": str(file), "model": "toy", "data": "colours"}
    summary = finished.do("import-checkpoint", run="imported", **values).to_dict()
    assert summary["classifier"] == "with its classifier"
    assert summary["flops_ratio"] == pytest.approx(0.5, abs=0.03)
    known = load_checkpoint(finished.path("pruned")).architecture.metrics
    assert summary["accuracy"] == pytest.approx(known["accuracy"], abs=0.05)
    finished.do("import-checkpoint", run="imported", **values)
    assert "pruned is done already" in finished.said
    with pytest.raises(RunError, match="made with prune instead of import-checkpoint"):
        finished.do("import-checkpoint", **values)
    file.write_bytes(b"nonsense")
    with pytest.raises(CapspruneError, match=r"theirs\.safetensors"):
        finished.do("import-checkpoint", run="again", **values)
    assert not finished.folder.joinpath("again", "pruned").exists()
