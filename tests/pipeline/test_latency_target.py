"""What a latency is measured with, and the FLOPs that it allows, with a clock that is made up."""

import pytest
import torch
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.linear_head import LinearNetwork
from capsprune.errors import StrategyError
from capsprune.options import PruneOptions
from capsprune.pipeline.latency import HeadedLatency, check_smallest, latency_limit
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.searching import find_target, read_measured_flops, write_measured_flops
from capsprune.pipeline.session import Session
from capsprune.progress import Progress
from capsprune.pruning.target import Target
from capsprune.run import open_run
from capsprune.runtime.latency import LatencyMeter


@pytest.fixture(scope="module")
def network():
    model = build_backbone("mobilenet_v1", 3, **backbone_arguments("mobilenet_v1", 32)).eval()
    return Prunable.of("mobilenet_v1", model, 32)


@pytest.fixture
def measured(monkeypatch):
    """The networks measured; milliseconds are the channels of all convolutions."""
    networks = []

    def channels(meter, network):
        networks.append(network)
        return float(sum(conv.out_channels for conv in convolutions(network)))

    monkeypatch.setattr(LatencyMeter, "__call__", channels)
    return networks


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
        target = find_target(options, session, network, limit)
    assert target.flops is not None and 0 < target.flops < 1
    assert len(measured) > 3
    counts = [conv.out_channels for pruned in measured for conv in convolutions(pruned.trunk)]
    assert all(count % round_to == 0 for count in counts)
    fine = all(count % 2 == 0 for count in counts)
    assert fine == (round_to > 1)


def test_what_is_measured_has_the_head_that_the_run_will_get(tmp_path, network, measured):
    with open_run(tmp_path, "default", create=True) as run:
        session = Session(run)
        options = PruneOptions(latency=5000, d1=4)
        before = torch.get_rng_state()
        check_smallest(latency_limit(options, session, network), options, session, network)
        assert torch.equal(before, torch.get_rng_state())
        linear = PruneOptions(latency=5000, d1=4, head="linear")
        check_smallest(latency_limit(linear, session, network), linear, session, network)
    assert isinstance(measured[0], CapsuleNetwork)
    classes, capsules, d1, d2 = measured[0].output_caps.weight.shape
    assert (classes, d1, d2, measured[0].output_caps.iterations) == (3, 4, 16, 3)
    assert capsules == measured[0].primary_caps.conv.in_channels // 4
    assert isinstance(measured[1], LinearNetwork)
    assert measured[1].classifier.out_features == 3


def test_a_trunk_too_narrow_for_a_capsule_is_measured_too(network, measured):
    latency = HeadedLatency(network, "dynamic", 2000, Progress())
    latency(network.model)
    assert measured[0].primary_caps.d1 == 1024
    assert measured[0].primary_caps.capsules == 1


def test_a_latency_out_of_reach_is_told(tmp_path, network, measured):
    options = PruneOptions(latency=10)
    with open_run(tmp_path, "default", create=True) as run:
        session = Session(run)
        with pytest.raises(StrategyError, match="longer than 10; give a higher --latency"):
            find_target(options, session, network, latency_limit(options, session, network))


def test_flops_measured_with_another_head_are_measured_again(tmp_path):
    options = PruneOptions(latency=5)
    write_measured_flops(tmp_path, options, Target(latency=5, flops=0.3))
    assert read_measured_flops(tmp_path, options) == 0.3
    assert read_measured_flops(tmp_path, PruneOptions(latency=5, head="linear")) is None
    assert read_measured_flops(tmp_path, PruneOptions(latency=5, d1=4)) is None
    assert read_measured_flops(tmp_path, PruneOptions(latency=6)) is None
