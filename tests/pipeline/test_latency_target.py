"""The FLOPs that a latency allows, with a clock that is made up."""

import pytest
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.options import PruneOptions
from capsprune.pipeline import searching
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.session import Session
from capsprune.run import open_run


@pytest.mark.parametrize("round_to", [1, 32])
def test_the_flops_that_a_latency_allows_are_of_networks_rounded_as_asked(
    tmp_path, monkeypatch, round_to
):
    model = build_backbone("mobilenet_v1", 3, **backbone_arguments("mobilenet_v1", 32)).eval()
    network = Prunable.of("mobilenet_v1", model, 32)
    measured = []

    def channels(network, image_size):
        """Milliseconds that are the channels of all layers."""
        found = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
        measured.append(found)
        return float(sum(found))

    monkeypatch.setattr(searching, "_latency", channels)
    options = PruneOptions(model="mobilenet_v1", latency=5000, round_to=round_to)
    with open_run(tmp_path, "default", create=True) as run:
        target = searching.find_target(options, Session(run), network)
    assert target.flops is not None and 0 < target.flops < 1
    assert len(measured) > 3
    assert all(count % round_to == 0 for found in measured for count in found)
    fine = all(count % 2 == 0 for found in measured for count in found)
    assert fine == (round_to > 1)
