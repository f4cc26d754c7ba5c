"""The search and the pruned backbone, on a small network and made-up images."""

import json

import pytest
import torch
from toy_pipeline import MADE

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import CapspruneError, Interrupted, RunError
from capsprune.runtime.latency import LatencyMeter

PRUNE = MADE["prune"]


def candidates_of(path):
    lines = (path / "candidates.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def told(candidates):
    """What is the same where a search is done again."""
    return [(c["index"], c["fractions"], c["score"], c["loss"]) for c in candidates]


def test_it_keeps_what_was_asked_for_and_says_so(finished):
    finished.do("prune", **PRUNE)
    assert "pruned is done already" in finished.said
    summary = finished.do("prune", **PRUNE, overwrite=True).to_dict()
    assert "Best of 4 candidates" in finished.said and "of the FLOPs remain" in finished.said
    assert summary["flops_ratio"] == pytest.approx(0.5, abs=0.03)
    assert (summary["candidates"], summary["rungs"], summary["sampler"]) == (4, [4], "random")
    assert (summary["criterion"], summary["epochs"]) == ("l1", 1)
    best = candidates_of(finished.path("pruned"))[summary["best_candidate"]]
    assert best["score"] == summary["best_score"]
    network = load_checkpoint(finished.path("pruned")).network
    kept = network.features[0].out_channels, network.features[3].out_channels
    assert kept < (16, 24) and network.classifier.in_features == kept[1]


def test_the_baseline_is_trained_first_where_there_is_none(place):
    with pytest.raises(RunError, match="no baseline to prune; give --model"):
        place.do("prune", **PRUNE)
    place.do("prune", model="toy", data="colours", **PRUNE)
    assert "has no baseline yet: training toy first" in place.said
    assert set(place.stages()) == {"baseline", "pruned"}


@pytest.mark.parametrize("title", ["Candidates", "Fine-tuning"])
def test_an_interrupted_pruning_goes_on_to_the_same(finished, title):
    whole = finished.do("prune", **PRUNE, overwrite=True).to_dict()
    expected = told(candidates_of(finished.path("pruned")))
    before = finished.stages()
    finished.progress.stop_at = (title, 3)
    with pytest.raises(Interrupted):
        finished.do("prune", **PRUNE, overwrite=True)
    assert finished.stages() == before  # what is to be replaced stays until the end
    again = finished.do("prune", **PRUNE, overwrite=True).to_dict()
    assert (
        f"The search goes on after {3 if title == 'Candidates' else 4} candidates" in finished.said
    )
    assert told(candidates_of(finished.path("pruned"))) == expected
    assert (again["loss"], again["accuracy"]) == (whole["loss"], whole["accuracy"])
    assert finished.stages()["pruned"] != before["pruned"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "resnet18"}, "--model toy, not resnet18"),
        ({"latency": 5.0, "workers": 2}, "give --workers 1"),
        ({"flops": 1, "params": 0.5}, "removes nothing"),
        ({"strategy": "strategy.json", "flops": 0.5}, "has its size already"),
        ({"strategy": "missing.json"}, "missing.json"),
        ({"flops": 0.0001}, "FLOPs"),
        ({"primary_caps": 7}, "primary capsules"),
        ({"primary_caps": 1, "d1": 30}, "fewer than the 30 values"),
        ({"storage": "nonsense"}, "--storage"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_lost(finished, values, words):
    before = finished.stages()
    with pytest.raises(CapspruneError, match=words):
        finished.do("prune", **{**PRUNE, **values}, overwrite=True)
    assert finished.stages() == before


def test_another_request_is_refused(finished):
    with pytest.raises(RunError, match="flops"):
        finished.do("prune", **PRUNE, flops=0.7)


def test_a_strategy_is_applied_as_it_is(finished):
    first = load_checkpoint(finished.path("pruned")).network
    strategy = finished.path("pruned", "strategy.json").rename(finished.folder / "mine.json")
    values = {"strategy": str(strategy), "epochs": 0, "overwrite": True}
    summary = finished.do("prune", **values).to_dict()
    assert "candidates" not in summary and "Candidates" not in finished.progress.titles
    assert not finished.path("pruned", "candidates.jsonl").exists()
    again = load_checkpoint(finished.path("pruned")).network
    assert again.features[3].weight.shape == first.features[3].weight.shape
    assert summary["epochs"] == 0


def test_all_of_the_flops_are_the_network_itself(finished):
    summary = finished.do("prune", flops=1, epochs=0, overwrite=True).to_dict()
    assert summary["flops_ratio"] == 1
    kept = load_checkpoint(finished.path("pruned")).network
    assert kept.features[0].out_channels == 16


@pytest.mark.parametrize("criterion", ["taylor", "random"])
def test_channels_are_ranked_as_asked(finished, criterion):
    values = {**PRUNE, "criterion": criterion, "candidates": 1, "epochs": 0, "overwrite": True}
    assert finished.do("prune", **values).to_dict()["criterion"] == criterion


def test_a_shared_database_and_halving_find_the_best(finished):
    storage = f"sqlite:///{finished.folder / 'shared.db'}"
    values = {**PRUNE, "candidates": 4, "reduction_factor": 2, "bn_batches": 2, "epochs": 0}
    summary = finished.do("prune", **values, storage=storage, overwrite=True).to_dict()
    assert summary["rungs"] == [4, 2, 1][: len(summary["rungs"])] and len(summary["rungs"]) > 1
    assert storage not in finished.path("run.json").read_text()


def test_a_latency_is_measured_and_met(finished, monkeypatch):
    """Milliseconds that are the channels of all layers of the trunk."""

    def channels(meter, network):
        layers = (m for m in network.trunk.modules() if isinstance(m, torch.nn.Conv2d))
        return float(sum(layer.out_channels for layer in layers))

    monkeypatch.setattr(LatencyMeter, "__call__", channels)
    summary = finished.do("prune", **PRUNE, latency=30, overwrite=True).to_dict()
    assert summary["latency_ms"] <= 30
    assert "30 ms allow about" in finished.said
    with pytest.raises(CapspruneError, match="give a higher --latency"):
        finished.do("prune", **PRUNE, latency=0.5, overwrite=True)
