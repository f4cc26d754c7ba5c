"""The published strategies give the figures of the paper's Table 1 (224 x 224, 200 classes)."""

from pathlib import Path

import pytest
import torch

from capsprune.backbones.registry import backbone, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.inspection import network_costs
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_macs
from capsprune.pruning.groups import find_groups
from capsprune.pruning.strategy import read_strategy

STRATEGIES = Path(__file__).parents[2] / "recipes" / "strategies"


@pytest.fixture(scope="module")
def networks():
    """Networks without values, their groups and costs, by name; made once."""
    made = {}

    def make(name):
        if name not in made:
            with torch.device("meta"):
                model = build_backbone(name, 200).eval()
                groups = find_groups(model, classifier=backbone(name).classifier, image_size=224)
                made[name] = model, groups, CostModel.build(model, groups, 224)
        return made[name]

    return make


@pytest.mark.parametrize(
    ("name", "file", "bottleneck", "capsules", "training_billions"),
    [
        ("resnet50", None, 2048, 256, "12.88"),
        ("resnet50", "resnet50-25", 1970, 246, "9.80"),
        ("resnet50", "resnet50-50", 1947, 243, "6.72"),
        ("resnet50", "resnet50-75", 944, 118, "3.23"),
        ("mobilenet_v1", "mobilenet_v1-50", 619, 77, None),
    ],
)
def test_table_1(networks, name, file, bottleneck, capsules, training_billions):
    model, groups, cost = networks(name)
    if file is not None:
        strategy = read_strategy(STRATEGIES / f"{file}.json", name)
        kept = strategy.kept(groups)
        with torch.device("meta"):
            rankings = [torch.arange(group.channels, device="cpu") for group in groups.groups]
            model = prune_channels(model, groups, rankings, kept)
        assert sum(count_macs(model, 224).values()) == cost.macs(kept)
        assert cost.flops_ratio(kept) == pytest.approx(strategy.flops, abs=0.01)
    with torch.device("meta"):
        trunk = trunk_of(name, model)
        channels, size = trunk_output(trunk, 224)
        assert (channels, size) == (bottleneck, 7)
        network = CapsuleNetwork(trunk, channels=channels, feature_size=size, classes=10)
        assert network.primary_caps.capsules == capsules
        passes = network_costs(network, trunk, 224, frozen=False)["training_flops"]
    if training_billions is not None:
        assert f"{passes / 1e9:.2f}" == training_billions


def test_a_strategy_s_cost_takes_no_channel_pruning(networks, monkeypatch):
    _, groups, cost = networks("resnet50")
    kept = read_strategy(STRATEGIES / "resnet50-50.json", "resnet50").kept(groups)
    many = cost.macs(kept + 0 * cost.channels[None].repeat(5000, axis=0))
    assert many.shape == (5000,) and (many == cost.macs(kept)).all()
