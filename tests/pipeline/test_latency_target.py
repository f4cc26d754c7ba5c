"""What a latency is measured with, and the FLOPs that it allows, with a clock that is made up."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.linear_head import LinearNetwork
from capsprune.errors import StrategyError
from capsprune.options import PruneOptions
from capsprune.pipeline.latency import PrunedLatency, check_smallest, latency_limit
from capsprune.pipeline.prunable import Prunable, UntrainedHead
from capsprune.pipeline.searching import find_target, read_measured_flops, write_measured_flops
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.progress import Progress
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.target import Target
from capsprune.run import open_run
from capsprune.runtime.latency import LatencyMeter


@pytest.fixture(scope="module")
def network():
    model = build_backbone("mobilenet_v1", 3, **backbone_arguments("mobilenet_v1", 32)).eval()
    return Prunable.of("mobilenet_v1", model, 32, measured_with=UntrainedHead("dynamic", 8))


@pytest.fixture
def measured(monkeypatch):
    """The networks measured; milliseconds are the channels of all convolutions."""
    networks = []

    def channels(meter, network):
        networks.append(network)
        return float(sum(conv.out_channels for conv in convolutions(network)))

    monkeypatch.setattr(LatencyMeter, "__call__", channels)
    return networks


def measured_with(network, kind, d1):
    return replace(network, measured_with=UntrainedHead(kind, d1))


def stage_of(session):
    return Stage.of(session, "pruned", PruneOptions(), "a")


def convolutions(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("round_to", [1, 32])
def test_the_flops_that_a_latency_allows_are_of_networks_rounded_as_asked(
    tmp_path, network, measured, round_to
):
    options = PruneOptions(latency=5000, round_to=round_to)
    with open_run(tmp_path, "default", create=True) as run:
        session = Session(run)
        limit = latency_limit(options, session, network)
        target = find_target(options, stage_of(session), network, limit)
    assert target.flops is not None and 0 < target.flops < 1
    assert len(measured) > 3
    counts = [conv.out_channels for pruned in measured for conv in convolutions(pruned.trunk)]
    assert all(count % round_to == 0 for count in counts)
    fine = all(count % 2 == 0 for count in counts)
    assert fine == (round_to > 1)


def test_what_is_measured_has_the_head_that_the_run_will_get(tmp_path, network, measured):
    with open_run(tmp_path, "default", create=True) as run:
        session = Session(run)
        options, of_4 = PruneOptions(latency=5000), measured_with(network, "dynamic", 4)
        before = torch.get_rng_state()
        check_smallest(latency_limit(options, session, of_4), options, session, of_4)
        assert torch.equal(before, torch.get_rng_state())
        linear = measured_with(network, "linear", 4)
        check_smallest(latency_limit(options, session, linear), options, session, linear)
    assert isinstance(measured[0], CapsuleNetwork)
    classes, capsules, d1, d2 = measured[0].output_caps.weight.shape
    assert (classes, d1, d2, measured[0].output_caps.iterations) == (3, 4, 16, 3)
    assert capsules == measured[0].primary_caps.conv.in_channels // 4
    assert isinstance(measured[1], LinearNetwork)
    assert measured[1].classifier.out_features == 3


def test_a_trunk_too_narrow_for_a_capsule_is_measured_too(network, measured):
    PrunedLatency(measured_with(network, "dynamic", 2000), Progress())(network.model)
    assert measured[0].primary_caps.d1 == 1024
    assert measured[0].primary_caps.capsules == 1


def test_a_capsule_network_is_measured_as_it_is(network, measured):
    capsules = measured_with(network, "dynamic", 8).as_measured(network.model)
    dependencies = find_capsule_groups(capsules, 32)
    rankings = l1_ranking(capsules, dependencies)
    whole = Prunable.of_capsules("mobilenet_v1", capsules, 32, dependencies, rankings)
    PrunedLatency(whole, Progress())(capsules)
    assert measured == [capsules]


def test_a_latency_out_of_reach_is_told(tmp_path, network, measured):
    options = PruneOptions(latency=10)
    with open_run(tmp_path, "default", create=True) as run:
        session = Session(run)
        with pytest.raises(StrategyError, match="longer than 10; give a higher --latency"):
            limit = latency_limit(options, session, network)
            find_target(options, stage_of(session), network, limit)


def test_flops_measured_with_another_head_are_measured_again(tmp_path):
    dynamic, linear = UntrainedHead("dynamic", 8), UntrainedHead("linear", 8)
    write_measured_flops(tmp_path, Target(latency=5, flops=0.3), dynamic)
    assert read_measured_flops(tmp_path, 5, dynamic) == 0.3
    assert read_measured_flops(tmp_path, 5, linear) is None
    assert read_measured_flops(tmp_path, 5, UntrainedHead("dynamic", 4)) is None
    assert read_measured_flops(tmp_path, 6, dynamic) is None
    write_measured_flops(tmp_path, Target(latency=5, flops=0.4), None)
    assert read_measured_flops(tmp_path, 5, None) == 0.4
    assert read_measured_flops(tmp_path, 5, dynamic) is None
