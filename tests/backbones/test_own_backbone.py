"""A backbone that is added from outside of the package."""

import pytest
import torch
from open_tables import restored
from torch import nn

from capsprune.backbones.registry import (
    BACKBONES,
    Backbone,
    backbone,
    backbone_arguments,
    build_backbone,
)
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.backbones.weights import initialise
from capsprune.capsules import CapsuleNetwork
from capsprune.checkpoint import (
    Blueprint,
    DataDescription,
    describe,
    load_checkpoint,
    save_checkpoint,
)
from capsprune.errors import ModelError
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_macs, count_parameters
from capsprune.pruning.groups import find_groups

SIZE = 12


class Toy(nn.Module):
    """Convolutions, one of them with a shortcut, that are no sequence."""

    def __init__(self, num_classes, width=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width))
        self.last = nn.Conv2d(width, 24, 1)
        self.out = nn.Linear(24, num_classes)

    def forward_features(self, x):
        x = self.stem(x).relu()
        return self.last((x + self.block(x)).relu())

    def forward(self, x):
        return self.out(self.forward_features(x).mean((2, 3)))


@pytest.fixture(autouse=True)
def toy():
    record = Backbone(
        ("stem", "block", "last"),
        "out",
        Toy,
        smallest_image=8,
        has_features_method=True,
        arguments={"width": (8, 16)},
        choose_arguments=lambda size: {"width": 8 if size < 10 else 16},
        mean=(0.5, 0.5, 0.5),
    )
    with restored(BACKBONES):
        yield BACKBONES.register("toy", "a network of mine")(record)


def test_it_is_known_by_name(toy):
    assert backbone("toy") is toy
    assert backbone_arguments("toy", 9) == {"width": 8}
    assert backbone("toy").preprocessing(SIZE).mean == (0.5, 0.5, 0.5)
    assert build_backbone("toy", 3, width=8).last.in_channels == 8
    with pytest.raises(ModelError, match="image size of 7 is too small for toy"):
        backbone_arguments("toy", 7)
    with pytest.raises(ModelError, match="toy takes no width of 12"):
        build_backbone("toy", 3, width=12)
    with pytest.raises(ModelError, match=r"Unknown model 'toyy'; did you mean toy"):
        backbone("toyy")
    assert initialise(Toy(3), "toy", "auto").startswith("from scratch, as there are no ImageNet")


@pytest.mark.parametrize("capsules", [False, True])
def test_it_is_pruned_and_saved(capsules, tmp_path):
    torch.manual_seed(0)
    arguments = backbone_arguments("toy", SIZE)
    network = build_backbone("toy", 3, **arguments).eval()
    dependencies = find_groups(network, classifier="out", image_size=SIZE)
    assert sorted(dependencies.channels.tolist()) == [16, 24]
    cost = CostModel.build(network, dependencies, SIZE)
    orders = [torch.randperm(int(count)) for count in dependencies.channels]
    kept = dependencies.channels // 2
    network = prune_channels(network, dependencies, orders, kept)
    assert cost.macs(kept) == sum(count_macs(network, SIZE).values())
    assert cost.parameters(kept) == count_parameters(network)
    if capsules:
        trunk = trunk_of("toy", network)
        channels, size = trunk_output(trunk, SIZE)
        assert (channels, size) == (12, 6)
        network = CapsuleNetwork(trunk, channels=channels, feature_size=size, classes=3, d1=4)
    network.eval()
    shown = backbone("toy").preprocessing(SIZE)
    data = DataDescription(
        name="digits", class_names=("a", "b", "c"), image_size=SIZE, mean=shown.mean, std=shown.std
    )
    described = describe(network, Blueprint("toy", arguments, data), parent=None, metrics={})
    save_checkpoint(tmp_path / "saved", network, described)
    loaded = load_checkpoint(tmp_path / "saved").network
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        if capsules:
            expected, actual = network(images).poses, loaded(images).poses
        else:
            expected, actual = network(images), loaded(images)
    assert torch.equal(expected, actual)
