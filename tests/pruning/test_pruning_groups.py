import json
from pathlib import Path

import pytest
import torch
from torch import nn

from capsprune.errors import ModelError
from capsprune.pruning.groups import find_groups

STRATEGIES = Path(__file__).parents[2] / "recipes" / "strategies"


@pytest.mark.parametrize(
    ("file", "count"), [("resnet50-50", 37), ("resnet50-75", 37), ("mobilenet_v1-50", 14)]
)
def test_groups_are_those_of_the_published_strategies(make_prunable, file, count):
    strategy = json.loads((STRATEGIES / f"{file}.json").read_text())
    dependencies = make_prunable(strategy["model"], 64, "meta").dependencies
    assert set(dependencies.names) == set(strategy["fractions_removed"])
    assert len(dependencies.names) == count


def test_groups_have_the_channels_of_their_root_layers(make_prunable):
    prunable = make_prunable("resnet50", 64, "meta")
    for group in prunable.dependencies.groups:
        assert group.channels == prunable.model.get_submodule(group.name).out_channels
    order = [name for name, _ in prunable.model.named_modules()]
    positions = [order.index(name) for name in prunable.dependencies.names]
    assert positions == sorted(positions)


def test_what_an_addition_joins_shares_a_group(tiny):
    assert tiny.dependencies.names == ("stem", "inner")
    assert tiny.dependencies.channels.tolist() == [16, 24]
    owners = tiny.dependencies.owners
    assert ("fc", "out") not in owners  # the classes stay
    for key in (("stem", "out"), ("bn1", "out"), ("outer", "out"), ("fc", "in"), ("inner", "in")):
        assert (owners[key].group == 0).all() and owners[key].channel.tolist() == list(range(16))
    assert (owners["outer", "in"].group == 1).all()


def test_each_channel_before_a_flatten_owns_its_positions(make_prunable):
    dependencies = make_prunable("vgg16_bn", 32, "meta").dependencies
    owners = dependencies.owners["classifier.0", "in"]
    last_conv = dependencies.names.index("features.40")
    assert (owners.group == last_conv).all()
    assert owners.channel.tolist() == [c for c in range(512) for _ in range(49)]
    assert "classifier.3" in dependencies.names and "classifier.6" not in dependencies.names


@pytest.mark.parametrize("training", [True, False])
def test_the_network_comes_back_unchanged(tiny, training):
    model = tiny.model.train(training)
    model.fc.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    find_groups(model, classifier="fc", image_size=12)
    assert model.training is training and not model.fc.weight.requires_grad
    assert model.stem.weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_grouped_convolution_keeps_its_groups_equally_large():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=4), nn.Flatten(), nn.Linear(16 * 16, 2)
    )
    dependencies = find_groups(model, classifier="3", image_size=8)
    assert [(g.name, g.channels, g.width) for g in dependencies.groups] == [
        ("0", 2, 4),
        ("1", 4, 4),
    ]
    assert dependencies.owners["0", "out"].channel.tolist() == [0, 1] * 4
    assert dependencies.owners["1", "out"].channel.tolist() == [0, 1, 2, 3] * 4
    owners = dependencies.owners["3", "in"]
    assert owners.channel.tolist() == [position // 16 % 4 for position in range(256)]


def test_a_group_that_can_only_go_as_a_whole_stays_and_says_why():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(8, 6, 1)),
        *(nn.Flatten(), nn.Linear(6, 2)),
    )
    dependencies = find_groups(model, classifier="4", image_size=1)
    assert dependencies.names == ("1", "2")
    assert dependencies.unprunable == {"0": "its channels can only be removed all together"}


def test_a_network_that_nothing_can_be_removed_from_is_refused():
    with pytest.raises(ModelError, match="found no channels"):
        find_groups(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), classifier="1", image_size=2)
