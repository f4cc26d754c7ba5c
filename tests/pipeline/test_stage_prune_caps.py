"""The whole capsule network pruned, on a small network and made-up images."""

import json
import shutil

import pytest
import torch
from toy_pipeline import MADE, Place

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import CapspruneError, Interrupted, RunError
from capsprune.runtime.latency import LatencyMeter

QUICK = {"candidates": 4, "round_to": 1, "epochs": 0}
#: The toy's capsule network has 16 and 24 channels at most, 3 capsules at most, 3 iterations.
SIZES = {"flops": 0.5}


@pytest.fixture(scope="module")
def trained_folder(toys, tmp_path_factory):
    """The folder of a run that has a capsule network of several capsules; not to be written to."""
    made = Place(tmp_path_factory.mktemp("trained"))
    made.do("train", **MADE["train"])
    made.do("prune", flops=1, epochs=0, bn_batches=1)
    made.do("attach-caps", epochs=2, d1=2, d2=4)
    return made.folder


@pytest.fixture
def trained(trained_folder, tmp_path) -> Place:
    """A copy of a run that has a capsule network of 12 primary capsules."""
    shutil.copytree(trained_folder, tmp_path / "runs")
    return Place(tmp_path / "runs")


def candidates_of(place):
    lines = place.path("slim", "candidates.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def told(candidates):
    """What is the same where a search is done again."""
    return [(c["index"], c["fractions"], c["score"], c["loss"]) for c in candidates]


def state(place):
    return load_checkpoint(place.path("slim")).network.state_dict()


def test_the_smallest_network_within_the_tolerance_is_found_and_told(trained):
    summary = trained.do("prune-caps", round_to=1, epochs=1, tolerance=10).to_dict()
    assert "points of" in trained.said and "What remains:" in trained.said
    network = load_checkpoint(trained.path("slim")).network
    assert network.primary_caps.capsules == summary["capsules"] < summary["capsules_of"] == 12
    assert network.primary_caps.rank == summary["primary_rank"] < summary["primary_rank_of"] == 24
    assert network.output_caps.iterations == summary["iterations"] <= summary["iterations_of"] == 3
    assert summary["parameters"] == sum(p.numel() for p in network.parameters())
    caps = load_checkpoint(trained.path("caps"))
    whole = sum(p.numel() for p in caps.network.parameters())
    assert summary["params_ratio"] == summary["parameters"] / whole
    assert summary["accuracy_of_caps"] == caps.architecture.metrics["accuracy"]
    first, *_ = tried = candidates_of(trained)
    best = tried[summary["best_candidate"]]
    assert first["fractions"] == [0.0] * len(first["fractions"])
    assert best["score"] >= first["score"] - 0.1
    assert best["parameters"] == summary["parameters"]
    trained.do("prune-caps", round_to=1, epochs=1, tolerance=10)
    assert "slim is done already" in trained.said


def test_without_a_size_half_a_point_may_be_lost(trained):
    trained.do("prune-caps", round_to=1, epochs=0)
    assert "within 0.5 points" in trained.said
    trained.do("prune-caps", round_to=1, epochs=0, tolerance=0.5)
    assert "slim is done already" in trained.said


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ({"capsules": 5}, {"capsules": 5}),
        ({"capsules": 0.25}, {"capsules": 3}),
        ({"iterations": 1}, {"iterations": 1, "capsules": 12}),
        ({"capsules": 2, "iterations": 2}, {"iterations": 2, "capsules": 2}),
        ({"capsules": 4, "flops": 0.4}, {"capsules": 4}),
        ({"primary_rank": 3}, {"primary_rank": 3, "primary_rank_of": 24, "capsules": 12}),
        ({"primary_rank": 2, "capsules": 3}, {"primary_rank": 2, "capsules": 3}),
        ({"primary_rank": "auto", "capsules": 3, "candidates": 80}, {"capsules": 3}),
    ],
)
def test_sizes_are_met_exactly(trained, sizes, kept):
    summary = trained.do("prune-caps", **{**QUICK, **sizes}).to_dict()
    assert {key: summary[key] for key in kept} == kept
    network = load_checkpoint(trained.path("slim")).network
    assert network.primary_caps.capsules == summary["capsules"]
    assert network.output_caps.iterations == summary["iterations"]
    trunk = load_checkpoint(trained.path("caps")).trunk
    assert network.primary_caps.stored().get("rank") == summary.get("primary_rank")
    same = [p.shape for p in network.trunk.parameters()] == [p.shape for p in trunk.parameters()]
    assert same == ("flops" not in sizes)


@pytest.mark.parametrize("size", ["flops", "params"])
def test_ratios_are_of_the_network_that_was_given(trained, size):
    summary = trained.do("prune-caps", **QUICK, **{size: 0.5}).to_dict()
    assert summary[f"{size}_ratio"] == pytest.approx(0.5, abs=0.03)
    best = candidates_of(trained)[summary["best_candidate"]]
    assert best["macs"] == summary["forward_macs"]
    assert best["parameters"] == summary["parameters"]


def test_a_file_size_is_met(trained):
    trained.do("export")
    size = trained.path("onnx", "model.onnx").stat().st_size
    trained.do("prune-caps", **QUICK, file_size=int(0.9 * size))
    trained.do("export", overwrite=True)
    assert trained.path("onnx", "model.onnx").stat().st_size <= 0.9 * size


def test_a_latency_is_measured_on_the_network_itself(trained, monkeypatch):
    """Milliseconds that are the primary capsules."""
    monkeypatch.setattr(LatencyMeter, "__call__", lambda meter, n: float(n.primary_caps.capsules))
    summary = trained.do("prune-caps", **QUICK, latency=6).to_dict()
    assert summary["latency_ms"] <= 6 and "6 ms allow about" in trained.said


@pytest.mark.parametrize(
    ("sizes", "title"),
    [
        ({"flops": 0.5}, "Candidates"),
        ({"capsules": 5}, "Candidates"),
        ({"tolerance": 10}, "Candidates"),
        ({"capsules": 5}, "Fine-tuning"),
    ],
)
def test_an_interrupted_pruning_goes_on_to_the_same(trained, sizes, title):
    values = {**QUICK, **sizes, "epochs": 1}
    whole = trained.do("prune-caps", **values).to_dict()
    expected, weights = told(candidates_of(trained)), state(trained)
    before = trained.stages()
    trained.progress.stop_at = (title, 2)
    with pytest.raises(Interrupted):
        trained.do("prune-caps", **values, overwrite=True)
    assert trained.stages() == before  # what is to be replaced stays until the end
    again = trained.do("prune-caps", **values, overwrite=True).to_dict()
    assert "The search goes on after" in trained.said
    assert told(candidates_of(trained)) == expected
    assert (again["loss"], again["accuracy"]) == (whole["loss"], whole["accuracy"])
    assert all(torch.equal(value, weights[key]) for key, value in state(trained).items())


@pytest.mark.parametrize("sizes", [{"flops": 0.4}, {"tolerance": 10}, {"primary_rank": 3}])
def test_a_strategy_gives_the_same_network_again(trained, sizes):
    trained.do("prune-caps", **QUICK, **sizes)
    expected = state(trained)
    strategy = trained.path("slim", "strategy.json").rename(trained.folder / "mine.json")
    values = {"strategy": str(strategy), "epochs": 0, "overwrite": True}
    summary = trained.do("prune-caps", **values).to_dict()
    assert "candidates" not in summary and "Candidates" not in trained.progress.titles
    found = state(trained)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_all_of_the_flops_are_the_network_itself(trained):
    summary = trained.do("prune-caps", flops=1, epochs=0).to_dict()
    assert summary["flops_ratio"] == 1
    assert summary["accuracy"] == summary["accuracy_of_caps"]


def test_a_frozen_trunk_stays_as_it_is(trained):
    values = {**QUICK, "epochs": 1, "capsules": 4, "freeze": True}
    summary = trained.do("prune-caps", **values).to_dict()
    before = load_checkpoint(trained.path("caps")).trunk.state_dict()
    after = load_checkpoint(trained.path("slim")).trunk.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert summary["frozen"] and summary["epochs"] == 1


def test_what_follows_takes_the_slim_network(trained):
    trained.do("export")
    trained.do("prune-caps", **QUICK, capsules=2)
    with pytest.raises(RunError, match="made with caps as input instead of slim"):
        trained.do("export")
    with pytest.raises(RunError, match="onnx of run 'toy' was made from caps, before there was"):
        trained.do("profile", **MADE["profile"])
    trained.do("export", overwrite=True)
    summary = trained.do("evaluate").to_dict()
    assert summary["checkpoint"] == str(trained.path("slim"))
    trained.do("attach-caps", epochs=1, d1=2, d2=4, overwrite=True)
    with pytest.raises(RunError, match="slim of run 'toy' was made from an older caps"):
        trained.do("export", overwrite=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"capsules": 13}, "fewer than 13"),
        ({"capsules": 1.5}, "whole number"),
        ({"iterations": 4}, "fewer than 4"),
        ({"flops": 0.0001}, "FLOPs"),
        ({"file_size": 100}, "file"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": 1, "flops": 0.5}, "tolerance"),
        ({"latency": 5.0, "workers": 2}, "give --workers 1"),
        ({"strategy": "missing.json"}, "missing.json"),
        ({"strategy": "strategy.json", "flops": 0.5}, "has its size already"),
        ({"storage": "nonsense", "flops": 0.5}, "--storage"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_left(trained, values, words):
    before = sorted(trained.folder.rglob("*"))
    with pytest.raises(CapspruneError, match=words):
        trained.do("prune-caps", **{**QUICK, **values})
    assert sorted(trained.folder.rglob("*")) == before


def test_a_strategy_of_a_backbone_or_of_another_network_is_refused(trained):
    backbone = trained.path("pruned", "strategy.json")
    with pytest.raises(CapspruneError, match="for a backbone alone"):
        trained.do("prune-caps", strategy=str(backbone))
    content = {**json.loads(backbone.read_text()), "head": "dynamic, dense"}
    odd = trained.folder / "odd.json"
    odd.write_text(json.dumps(content))
    with pytest.raises(CapspruneError, match="is no strategy for"):
        trained.do("prune-caps", strategy=str(odd))
    odd.write_text(json.dumps({**content, "head": "dynamic, spatial"}))
    with pytest.raises(CapspruneError, match="with the head dynamic, spatial"):
        trained.do("prune-caps", strategy=str(odd))
    assert "slim" not in trained.stages()


def test_a_kind_that_has_no_rank_is_refused_one(trained):
    trained.do("attach-caps", epochs=1, d1=2, d2=4, primary="depthwise", overwrite=True)
    with pytest.raises(CapspruneError, match="of kind depthwise, and it is a dense one"):
        trained.do("prune-caps", **QUICK, primary_rank=4)
    assert "slim" not in trained.stages()


@pytest.mark.parametrize("primary", ["depthwise", "pointwise", "factored"])
def test_every_kind_of_primary_capsules_is_pruned(trained, primary):
    attached = {"epochs": 1, "d1": 2, "d2": 4, "overwrite": True, "primary": primary}
    before = trained.do("attach-caps", **attached).to_dict()
    summary = trained.do("prune-caps", **QUICK, capsules=0.5, max_rate=0.9).to_dict()
    network = load_checkpoint(trained.path("slim")).network
    assert network.primary_caps.kind == primary
    assert network.primary_caps.capsules == summary["capsules"] == before["primary_capsules"] // 2
    best = candidates_of(trained)[summary["best_candidate"]]
    assert best["macs"] == summary["forward_macs"]
    assert best["parameters"] == summary["parameters"]
    trained.do("prune-caps", epochs=0, round_to=1, tolerance=20, overwrite=True)
    assert load_checkpoint(trained.path("slim")).network.primary_caps.kind == primary


def test_a_run_without_capsules_is_refused(trained):
    with pytest.raises(RunError, match="prune-caps needs caps"):
        trained.do("train", run="bare", **MADE["train"])
        trained.do("prune-caps", run="bare")
    trained.do("attach-linear", epochs=1)
    with pytest.raises(RunError, match="has a linear head"):
        trained.do("prune-caps", checkpoint=str(trained.path("linear")))
    with pytest.raises(RunError, match="has its own classifier"):
        trained.do("prune-caps", checkpoint=str(trained.path("pruned")))
    assert "slim" not in trained.stages()
