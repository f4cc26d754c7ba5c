"""The four commands, one after the other, on real images; what they print and leave behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_runner import SMALL_PRUNE, call
from safetensors.torch import load_file

from capsprune.checkpoint import load_checkpoint


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path


def test_every_stage_leaves_what_the_next_one_takes(finished: Path) -> None:
    run = finished / "runs" / "default"
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {
        *("run.json", "split.json", "baseline", "pruned", "caps", "onnx", "profile.json")
    }
    for stage in ("baseline", "pruned", "caps"):
        assert {"model.safetensors", "architecture.json", "metrics.jsonl"} <= {
            path.name for path in (run / stage).iterdir()
        }
    record = json.loads((run / "run.json").read_text())
    assert set(record["stages"]) == {"baseline", "pruned", "caps", "onnx", "profile"}
    assert "torch" in record["versions"]
    assert "from scratch" in record["stages"]["baseline"]["summary"]["weights"]


def test_pruned_network_is_physically_smaller(finished: Path) -> None:
    run = finished / "runs" / "default"
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert abs(stages["pruned"]["summary"]["flops_ratio"] - 0.5) <= 0.005
    full = load_file(run / "baseline" / "model.safetensors")
    small = load_file(run / "pruned" / "model.safetensors")
    assert sum(t.numel() for t in small.values()) < 0.75 * sum(t.numel() for t in full.values())
    kept = [t.shape[0] for key, t in small.items() if t.dim() == 4]
    assert all(count % 8 == 0 for count in kept)


def test_search_keeps_the_strategy_and_every_candidate(finished: Path) -> None:
    pruned = finished / "runs" / "default" / "pruned"
    candidates = [json.loads(line) for line in (pruned / "candidates.jsonl").open()]
    assert [candidate["index"] for candidate in candidates] == [0, 1, 2]
    best = max(candidates, key=lambda c: (c["score"], -c["loss"]))
    strategy = json.loads((pruned / "strategy.json").read_text())
    assert list(strategy["fractions_removed"].values()) == best["fractions"]
    assert strategy["model"] == "mobilenet_v1"


def test_search_by_other_means(copied: Path) -> None:
    """Two limits, a learning sampler, another criterion, halving, two workers on one database."""
    url = f"sqlite:///{copied / 'search.db'}"
    options = (
        *("--flops", 0.6, "--primary-caps", 64, "--candidates", 9, "--sampler", "tpe"),
        *("--reduction-factor", 3, "--criterion", "taylor", "--bn-batches", 3, "--epochs", 0),
        *("--workers", 2, "--storage", url, "--round-to", 1),
    )
    outcome = call("prune", *options, "--overwrite", "--json", folder=copied)
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    assert "keep no multiple of 8" in outcome.err and "--round-to 8" in outcome.err
    assert summary["rungs"] == [9, 3]
    assert summary["criterion"] == "taylor"
    assert abs(summary["flops_ratio"] - 0.6) <= 0.005
    pruned = copied / "runs" / "default" / "pruned"
    assert load_file(pruned / "model.safetensors")["layers.12.conv2.weight"].shape[0] // 8 == 64
    strategy = json.loads((pruned / "strategy.json").read_text())
    assert strategy["criterion"] == "taylor"
    lines = [json.loads(line) for line in (pruned / "candidates.jsonl").open()]
    assert [line["rung"] for line in lines] == [0] * 9 + [1] * 3
    record = (copied / "runs" / "default" / "run.json").read_text()
    assert "search.db" not in record


def test_latency_decides_how_much_is_pruned(copied: Path) -> None:
    outcome = call(
        *("prune", "--latency", 500, "--flops", 0.7, "--candidates", 2, "--bn-batches", 1),
        *("--epochs", 0, "--overwrite", "--json"),
        folder=copied,
    )
    assert outcome.code == 0, outcome.err
    assert 0 < json.loads(outcome.out)["latency_ms"] < 500


def test_onnx_file_computes_what_the_checkpoint_does(finished: Path) -> None:
    run = finished / "runs" / "default"
    model = onnx.load(run / "onnx" / "model.onnx")
    assert [node.op_type for node in model.graph.node if node.domain == "capsprune"] == [
        "DynamicRouting"
    ]
    network = load_checkpoint(run / "caps").network
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
    session = onnxruntime.InferenceSession(str(run / "onnx" / "model.onnx"))
    probabilities, poses = session.run(["class_probabilities", "poses"], {"image": images.numpy()})
    np.testing.assert_allclose(probabilities, expected.class_probabilities, atol=1e-4)
    np.testing.assert_allclose(poses, expected.poses, atol=1e-4)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"]) == list("0123456789")
    assert metadata["model"] == "mobilenet_v1"


def test_profile_shows_three_variants_and_no_made_up_zero(finished: Path) -> None:
    outcome = call("profile", "--batch", "1,4", "--repeats", 5, folder=finished)
    assert outcome.code == 0
    for name in ("unpruned, linear", "unpruned, capsules", "pruned, capsules"):
        assert name in outcome.out
    profile = json.loads((finished / "runs" / "default" / "profile.json").read_text())
    assert len(profile["measurements"]) == 6
    linear = [m for m in profile["measurements"] if m["variant"] == "unpruned, linear"]
    assert all(m["routing_share"] == 0 for m in linear)
    capsules = [m for m in profile["measurements"] if m["variant"] == "pruned, capsules"]
    assert all(0 < m["routing_share"] < 1 for m in capsules)
    if not torch.cuda.is_available():
        assert "not available" in outcome.out


def test_json_prints_one_object(finished: Path) -> None:
    outcome = call("attach-caps", "--epochs", 1, "--json", folder=finished)
    assert outcome.code == 0
    summary = json.loads(outcome.out)
    assert summary["primary_capsules"] == summary["bottleneck_channels"] // 8
    assert summary["images"] == 359


def test_finished_stage_is_not_done_again(finished: Path) -> None:
    weights = finished / "runs" / "default" / "pruned" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    outcome = call("prune", *SMALL_PRUNE, folder=finished)
    assert outcome.code == 0
    assert "done already" in outcome.err
    assert weights.stat().st_mtime_ns == before


def test_finished_stage_with_other_options_is_refused(finished: Path) -> None:
    outcome = call("prune", "--flops", 0.25, folder=finished)
    assert outcome.code == 2
    assert "--overwrite" in outcome.err


def test_overwriting_makes_later_stages_stale(copied: Path) -> None:
    outcome = call("prune", *SMALL_PRUNE, "--flops", 0.6, "--overwrite", folder=copied)
    assert outcome.code == 0, outcome.err
    outcome = call("export", "--onnx", folder=copied)
    assert outcome.code == 2
    assert "older pruned" in outcome.err
    assert "attach-caps --overwrite" in outcome.err


@pytest.mark.parametrize("latest", ["baseline", "pruned", "caps", "linear"])
def test_evaluate_takes_what_was_finished_last(copied: Path, latest: str) -> None:
    run = copied / "runs" / "default"
    record = json.loads((run / "run.json").read_text())
    # A linear baseline and the capsule network of the same backbone.
    shutil.copytree(run / "pruned", run / "linear")
    record["stages"]["linear"] = record["stages"]["caps"] | {"id": "linear"}
    record["stages"][latest]["finished"] = "2999-01-01T00:00:00+00:00"
    (run / "run.json").write_text(json.dumps(record))
    outcome = call("evaluate", "--json", folder=copied)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["checkpoint"] == f"runs/default/{latest}"


def test_evaluate_agrees_with_the_stage(finished: Path) -> None:
    outcome = call("evaluate", "--json", folder=finished)
    stages = json.loads((finished / "runs" / "default" / "run.json").read_text())["stages"]
    found, caps = json.loads(outcome.out), stages["caps"]["summary"]
    assert found["accuracy"] == caps["accuracy"]
    assert [one["class"] for one in found["classes"]] == list("0123456789")
    assert sum(one["images"] for one in found["classes"]) == found["images"]
    by_accuracy = sorted(found["classes"], key=lambda one: one["accuracy"])
    assert caps["worst_classes"] == by_accuracy[:5]
    assert 0.1 <= found["majority_rate"] == caps["majority_rate"] < 0.2
    assert "worst classes" in call("evaluate", folder=finished).out


def test_pruned_backbone_is_exported_without_capsules(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "pruned.onnx"
    outcome = call("export", "runs/default/pruned", "--onnx", "--output", target, folder=finished)
    assert outcome.code == 0, outcome.err
    session = onnxruntime.InferenceSession(str(target))
    (probabilities,) = session.run(None, {"image": np.zeros((2, 3, 32, 32), np.float32)})
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_inline_export_has_no_domain_of_ours(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "inline.onnx"
    outcome = call("export", "runs/default/caps", "--inline", "--output", target, folder=finished)
    assert outcome.code == 0, outcome.err
    model = onnx.load(target)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert not model.functions


def test_frozen_trunk_keeps_every_bit(copied: Path) -> None:
    outcome = call("attach-caps", "--freeze", "--epochs", 1, "--overwrite", folder=copied)
    assert outcome.code == 0, outcome.err
    pruned = load_file(copied / "runs" / "default" / "pruned" / "model.safetensors")
    caps = load_file(copied / "runs" / "default" / "caps" / "model.safetensors")
    trunk = {k.removeprefix("trunk."): v for k, v in caps.items() if k.startswith("trunk.")}
    assert trunk
    assert all(torch.equal(value, pruned[key]) for key, value in trunk.items())


def test_given_strategy_is_applied_instead_of_searching(copied: Path) -> None:
    strategy = copied / "mine.json"
    groups = json.loads((copied / "runs" / "default" / "pruned" / "strategy.json").read_text())[
        "fractions_removed"
    ]
    strategy.write_text(
        json.dumps(
            {
                "model": "mobilenet_v1",
                "flops": 0.6,
                "fractions_removed": dict.fromkeys(groups, 0.25),
            }
        )
    )
    outcome = call(
        "prune", "--strategy", strategy, "--epochs", 1, "--overwrite", "--json", folder=copied
    )
    assert outcome.code == 0, outcome.err
    weights = load_file(copied / "runs" / "default" / "pruned" / "model.safetensors")
    assert weights["layers.12.conv2.weight"].shape[0] == 768
    assert "candidates" not in json.loads(outcome.out)


def test_capsules_on_an_unpruned_backbone(finished: Path, tmp_path: Path) -> None:
    outcome = call(
        *("attach-caps", finished / "runs" / "default" / "baseline", "--epochs", 1),
        *("--run", "unpruned", "--json"),
        folder=tmp_path,
    )
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["primary_capsules"] == 128


def test_prune_trains_a_baseline_where_there_is_none(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "train: {model: mobilenet_v1, epochs: 0, weights: none}\n"
        "prune: {candidates: 1, bn-batches: 1, epochs: 0, round-to: 8}\n"
        "attach_caps: {epochs: 1}\n"
        "profile: {batch: 1, repeats: 5}\n"
        "analyse: {images: 20}\n"
    )
    outcome = call("run", recipe, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "pruned, capsules" in outcome.out
    assert "distorted images" in outcome.out
    assert "runs/small/onnx" in outcome.out
    weights = load_file(tmp_path / "runs" / "small" / "pruned" / "model.safetensors")
    assert weights["layers.12.conv2.weight"].shape[0] % 8 == 0
    again = call("run", recipe, "--json", folder=tmp_path)
    assert again.code == 0
    assert json.loads(again.out)["baseline"]["epochs"] == 0


def test_runs_and_doctor_and_version(finished: Path) -> None:
    runs = call("runs", "--json", folder=finished)
    assert set(json.loads(runs.out)["default"]) >= {"baseline", "pruned", "caps", "onnx"}
    assert "default" in call("runs", folder=finished).out
    doctor = call("doctor", "--json", folder=finished)
    assert json.loads(doctor.out)["torch"]["found"] == torch.__version__.split("+")[0]
    assert call("--version", folder=finished).out.startswith("capsprune ")


def test_inspect_reproduces_table_1(tmp_path: Path) -> None:
    strategies = Path(__file__).resolve().parents[2] / "recipes" / "strategies"
    outcome = call(
        *("inspect", "--model", "resnet50", "--strategy", strategies / "resnet50-50.json"),
        *("--image-size", 224, "--classes", 200, "--json"),
        folder=tmp_path,
    )
    result = json.loads(outcome.out)
    assert (result["bottleneck_channels"], result["primary_capsules"]) == (1947, 243)
    assert round(result["training_flops"] / 1e9, 1) == 6.7
    assert abs(result["flops_ratio"] - 0.5) <= 0.005


def test_inspect_takes_the_model_of_the_strategy(tmp_path: Path) -> None:
    strategy = tmp_path / "strategy.json"
    groups = {"conv1": 0.5} | {f"layers.{index}.conv2": 0.5 for index in range(13)}
    strategy.write_text(
        json.dumps({"model": "mobilenet_v1", "flops": 0.3, "fractions_removed": groups})
    )
    options = ("--strategy", strategy, "--image-size", 32, "--json")
    alone = call("inspect", *options, folder=tmp_path)
    assert alone.code == 0, alone.err
    assert json.loads(alone.out)["bottleneck_channels"] == 512
    assert alone.out == call("inspect", "--model", "mobilenet_v1", *options, folder=tmp_path).out
    strategy.write_text(strategy.read_text().replace("mobilenet_v1", "mobilenet_v9"))
    unknown = call("inspect", *options, folder=tmp_path)
    assert unknown.code == 2 and "did you mean mobilenet_v" in unknown.err


@pytest.mark.parametrize(
    "option",
    [
        *(("--image-size", 224), ("--classes", 1000), ("--iterations", 3), ("--d1", 8)),
        *(("--d2", 16), ("--freeze",), ("--finetune",)),
    ],
)
def test_inspect_refuses_what_says_nothing_of_a_run(
    finished: Path, option: tuple[object, ...]
) -> None:
    outcome = call("inspect", *option, folder=finished)
    assert outcome.code == 2 and outcome.out == ""
    (line,) = outcome.err.splitlines()
    named = "--freeze" if option[0] == "--finetune" else option[0]
    assert line.startswith("Error: ") and f"{named} says" in line and "give --model" in line


def test_inspect_shows_the_run(finished: Path) -> None:
    outcome = call("inspect", "--json", folder=finished)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["caps"]["forward_macs"] < result["baseline"]["forward_macs"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, capsprune.cli\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'numpy', 'sklearn', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
