"""A sweep from the command line: two cells of real, small training."""

import csv
import json
from pathlib import Path

import pytest
import torch
from cli_runner import Outcome, call

from capsprune.checkpoint import load_checkpoint
from capsprune.run import read_run

GRID = """
backbones: mobilenet_v1
pruned: 50
train: {data: digits, image-size: 16, part: 0.3, epochs: 1}
prune: {candidates: 2, bn-batches: 1, epochs: 1}
trunks:
  frozen: {epochs: 1}
  finetuned: {epochs: 1}
analyse: {images: 20}
profile: {batch: 1, repeats: 5}
"""
FROZEN, FINETUNED = "mobilenet_v1-50-frozen-s0", "mobilenet_v1-50-finetuned-s0"


def sweep(folder: Path, *arguments: object, text: str = GRID) -> Outcome:
    (folder / "grid.yaml").write_text(text)
    return call("sweep", "grid.yaml", *arguments, folder=folder)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    outcome = sweep(folder, "--json", "--jobs", 2)
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert printed["failed"] == {} and set(printed["cells"]) == {FROZEN, FINETUNED}
    return folder


def test_every_cell_is_an_ordinary_run(swept):
    cells = {name: read_run(swept / "runs" / "grid", name) for name in (FROZEN, FINETUNED)}
    for name, run in cells.items():
        assert {"baseline", "pruned", "caps", "linear", "onnx", "analysis"} <= set(run.stages)
        assert (run.path("onnx") / "model.onnx").is_file()
        frozen = name == FROZEN
        for stage in ("caps", "linear"):
            summary = run.stages[stage].summary
            assert summary.frozen is frozen
            assert summary.peak_memory_mb > 50
            assert summary.memory_meter in ("resident set", "NVML")
            trunk = summary.trunk_macs
            assert trunk * (2 if frozen else 3) <= summary.training_flops < 4 * trunk
    # Both build on one baseline and one pruned backbone.
    first, second = cells.values()
    for stage in ("baseline", "pruned"):
        assert first.stages[stage].id == second.stages[stage].id
    trunks = {
        name: load_checkpoint(run.path("caps")).trunk.state_dict() for name, run in cells.items()
    }
    given = load_checkpoint(first.path("pruned")).trunk.state_dict()
    linear = load_checkpoint(cells[FROZEN].path("linear")).trunk.state_dict()
    assert all((trunks[FROZEN][key] == value).all() for key, value in given.items())
    assert all((linear[key] == value).all() for key, value in given.items())
    assert any((trunks[FINETUNED][key] != value).any() for key, value in given.items())


def test_the_networks_are_profiled_beside_each_other(swept):
    profile = json.loads((swept / "runs" / "grid" / "profile.json").read_text())
    assert {one["head"] for one in profile["variants"].values()} == {"capsules", "linear"}
    assert {row["variant"] for row in profile["measurements"]} == set(profile["variants"])
    assert all(row["latency_ms"] > 0 for row in profile["measurements"])


def test_a_report_of_the_sweep(swept, tmp_path):
    outcome = call("report", "grid", "--json", "--output", tmp_path / "report", folder=swept)
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["missing"] == {} and len(told["rows"]) == 4
    assert all(Path(file).stat().st_size > 0 for file in told["files"])
    with (tmp_path / "report" / "results.csv").open() as file:
        lines = {(row["run"], row["head"]): row for row in csv.DictReader(file)}
    run = read_run(swept / "runs" / "grid", FINETUNED)
    for stage, head in (("caps", "capsules"), ("linear", "linear")):
        summary = run.stages[stage].summary
        assert float(lines[FINETUNED, head]["accuracy"]) == summary.accuracy
        assert float(lines[FINETUNED, head]["training_flops"]) == summary.training_flops
    again = call("report", "gird", folder=swept)
    assert again.code == 2 and "did you mean grid?" in again.err


def test_what_is_finished_is_not_done_again(swept):
    before = {p: p.stat().st_mtime_ns for p in (swept / "runs").rglob("*.safetensors")}
    profiled = (swept / "runs" / "grid" / "profile.json").stat().st_mtime_ns
    outcome = sweep(swept)
    assert outcome.code == 0 and "2 of 2 cells are done already" in outcome.err
    assert before == {p: p.stat().st_mtime_ns for p in (swept / "runs").rglob("*.safetensors")}
    assert profiled == (swept / "runs" / "grid" / "profile.json").stat().st_mtime_ns
    runs = call("runs", folder=swept)
    assert "grid" in runs.out and runs.code == 0


def test_a_damaged_cell_is_named_and_the_rest_kept(swept, tmp_path):
    weights = swept / "runs" / "grid" / FROZEN / "caps" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    try:
        outcome = sweep(swept, "--json")
        assert outcome.code == 2
        last = outcome.err.strip().splitlines()[-1]
        assert last.startswith(f"Error: {FROZEN} failed") and "truncated" in last
        assert "Traceback" not in outcome.err
        assert set(json.loads(outcome.out)["failed"]) == {FROZEN}
        assert len(weights.read_bytes()) == 1000
    finally:
        weights.write_bytes(whole)


def test_a_cell_whose_run_file_is_damaged_is_named_and_the_rest_kept(swept):
    record = swept / "runs" / "grid" / FROZEN / "run.json"
    whole = record.read_bytes()
    record.write_bytes(b"{")
    try:
        outcome = sweep(swept, "--json")
        assert outcome.code == 2 and "1 of 2 cells are done already" in outcome.err
        assert f"Error: {FROZEN} failed" in outcome.err and "run.json is damaged" in outcome.err
        assert set(json.loads(outcome.out)["failed"]) == {FROZEN}
        assert record.read_bytes() == b"{"
    finally:
        record.write_bytes(whole)


def test_other_options_are_refused(swept):
    outcome = sweep(swept, text=GRID.replace("candidates: 2", "candidates: 3"))
    assert outcome.code == 2 and "was begun with other options (prune)" in outcome.err


@pytest.mark.slow
def test_a_cell_that_fails_does_not_stop_the_rest(tmp_path):
    # 90 % of MobileNetV1's FLOPs take away channels that capsules of 200 values need.
    text = GRID.replace("pruned: 50", "pruned: [0, 90]") + "attach-caps: {d1: 200}\n"
    outcome = sweep(tmp_path, "--json", text=text)
    assert outcome.code == 2
    printed = json.loads(outcome.out)
    assert {name.split("-")[1] for name in printed["failed"]} == {"90"}
    assert "less than the 200 values" in outcome.err
    done = printed["cells"]["mobilenet_v1-0-finetuned-s0"]
    assert done["caps"] is not None and done["linear"] is not None


@pytest.mark.slow
def test_published_networks_take_the_place_of_the_search(swept, tmp_path):
    pruned = load_checkpoint(swept / "runs" / "grid" / FROZEN / "pruned")
    torch.save(pruned.network.state_dict(), tmp_path / "half.pth")
    text = GRID.replace("pruned: 50", "pruned: [0, 50]").replace("  frozen: {epochs: 1}\n", "")
    text += "published: {mobilenet_v1: {50: {checkpoint: half.pth}, 75: {checkpoint: no.pth}}}\n"
    outcome = sweep(tmp_path, "--checkpoints", ".", text=text)
    assert outcome.code == 0, outcome.err
    unpruned, half = (
        read_run(tmp_path / "runs" / "grid", f"mobilenet_v1-{pruned}-finetuned-s0")
        for pruned in (0, 50)
    )
    assert "baseline" not in half.stages
    assert half.stages["pruned"].summary.imported == "half.pth"
    imported = dict(load_checkpoint(half.path("pruned")).network.named_parameters())
    assert all((imported[k] == v).all() for k, v in pruned.network.named_parameters())
    # What is compared with networks that nobody fine-tuned is not fine-tuned either.
    assert unpruned.stages["pruned"].summary.epochs == 0
    splits = [json.loads(run.read_split() or "") for run in (unpruned, half)]
    assert splits[0] == splits[1] and splits[0]["unused"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sweep", "none.yaml"), "There is no recipe none.yaml"),
        (("sweep", "grid.yaml", "--checkpoints", "none"), "There is no folder none"),
    ],
)
def test_bad_input(tmp_path, arguments, said):
    (tmp_path / "grid.yaml").write_text(GRID)
    outcome = call(*arguments, folder=tmp_path)
    assert outcome.code == 2 and said in outcome.err
    assert not (tmp_path / "runs").exists()
