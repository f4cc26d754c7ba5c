"""A primary capsule is a channel group: the whole capsule network is pruned by one machinery."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_tables import restored
from prunables import JoinedTrunk, capsule_network, masks_of, random_order
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of
from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.cost import routing_macs
from capsprune.capsules.primary import DepthwisePrimaryCaps, PrimaryCaps
from capsprune.capsules.primary.names import PRIMARIES
from capsprune.errors import ModelError
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.capsule_layers import DepthwisePrimaryCapsules
from capsprune.pruning.channels import layer_channels, prune_channels, resize_layers
from capsprune.pruning.cost import CostModel, count_macs, count_parameters
from capsprune.pruning.groups import ChannelGroup
from capsprune.pruning.layers import adapts
from capsprune.pruning.masking import masked
from capsprune.pruning.rebuild import rebuild

KINDS = ("dense", "factored", "depthwise", "pointwise", "spatial")


def check(network, size, seed, most=1.0):
    """Prune a network at random and check what must hold.

    Returns:
        The groups, the units kept, and the slim network.
    """
    dependencies = find_capsule_groups(network, size)
    order = random_order(dependencies, seed)
    cost = CostModel.build(network, dependencies, size, order)
    assert cost.unpruned_macs == sum(count_macs(network, size).values())
    assert cost.parameters(cost.channels) == count_parameters(network)
    highest = np.maximum(1, np.floor(most * cost.channels).astype(np.int64))
    kept = np.random.default_rng(seed).integers(1, highest + 1)
    slim = prune_channels(network, dependencies, order, kept)
    assert cost.macs(kept) == sum(count_macs(slim, size).values())
    assert cost.parameters(kept) == count_parameters(slim)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    before = network.output_caps.iterations
    with torch.no_grad(), masked(network, dependencies, masks_of(order, kept)):
        expected = network(images).poses
    assert network.output_caps.iterations == before
    with torch.no_grad():
        actual = slim(images).poses
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    again = copy.deepcopy(network)
    resize_layers(again, layer_channels(slim))
    again.load_state_dict(slim.state_dict())
    again.output_caps.iterations = slim.output_caps.iterations
    with torch.no_grad():
        assert torch.equal(again(images).poses, actual)
    return dependencies, kept, slim


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(KINDS), seed=st.integers(0, 999))
def test_every_kind_is_pruned_as_a_whole_at_exact_costs(data, kind, seed):
    torch.manual_seed(seed)
    d1, spatial = data.draw(st.integers(1, 5)), kind == "spatial"
    trunk = JoinedTrunk(data.draw(st.integers(2, 12)), data.draw(st.integers(2, 12)), 2 - spatial)
    assume(trunk.left.out_channels + trunk.right.out_channels >= d1)
    size = data.draw(st.integers(9, 13) if spatial else st.integers(2, 8))
    options = {"types": data.draw(st.integers(1, 4))} if spatial else {}
    if kind == "factored":
        options["rank"] = data.draw(st.integers(1, 6))
    iterations = data.draw(st.integers(1, 4))
    network = capsule_network(
        trunk, size, primary=kind, d1=d1, d2=3, iterations=iterations, **options
    )
    dependencies, kept, slim = check(network, size, seed)
    by_name = dict(zip(dependencies.names, kept.tolist(), strict=True))
    capsules = slim.primary_caps.capsules
    assert slim.output_caps.weight.shape[1] == capsules
    assert slim.output_caps.iterations == by_name.get("output_caps.iterations", 1)
    assert slim.primary_caps.in_channels <= network.primary_caps.in_channels
    if kind == "factored":
        assert slim.primary_caps.rank == by_name["primary_caps.basis"]
    if kind in ("dense", "factored"):
        assert capsules == by_name["primary_caps.conv"]
    if kind in ("spatial", "pointwise"):
        assert capsules == by_name["primary_caps"]
        places, positions = slim.primary_caps.places, slim.primary_caps.positions
        assert len(places) == capsules and bool((places.diff() > 0).all())
        left = torch.unique(places // positions)
        # No type without a place, and no filters but those of types.
        assert left.tolist() == list(range(slim.primary_caps.types))


@pytest.mark.parametrize("kind", ["dense", "factored", "depthwise", "pointwise"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1", "densenet121"])
def test_heads_on_backbones(name, kind):
    torch.manual_seed(0)
    model = build_backbone(name, 3, **backbone_arguments(name, 32))
    network = capsule_network(trunk_of(name, model), 32, primary=kind)
    dependencies, kept, slim = check(network, 32, 0)
    assert not dependencies.unprunable
    capsules = [group.kind == "capsules" for group in dependencies.groups]
    assert int(kept[capsules].sum()) == slim.primary_caps.capsules
    assert int(dependencies.channels[capsules].sum()) == network.primary_caps.capsules


def test_iterations_are_a_group_and_no_tensor():
    network = capsule_network(JoinedTrunk(8, 8), 4, iterations=3)
    dependencies = find_capsule_groups(network, 4)
    group = dependencies.groups[-1]
    assert group == ChannelGroup("output_caps.iterations", 3, 0, "iterations")
    cost = CostModel.build(network, dependencies, 4)
    classes, capsules, d1, d2 = network.output_caps.weight.shape
    macs = [int(cost.macs(np.array([*dependencies.channels[:-1], count]))) for count in (1, 2, 3)]
    routed = [routing_macs(capsules, classes, d1, d2, count) for count in (1, 2, 3)]
    assert np.diff(macs).tolist() == np.diff(routed).tolist()
    assert set(layer_channels(network)["output_caps"]) == {"in", "out"}
    network.output_caps.iterations = 1
    assert "output_caps.iterations" not in find_capsule_groups(network, 4).names


def test_a_depthwise_capsule_is_its_channels_of_the_trunk():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 19, 3))
    network = capsule_network(trunk, 8, primary="depthwise", d1=4)
    dependencies = find_capsule_groups(network, 8)
    assert dependencies.groups[:2] == (
        ChannelGroup("trunk.0", 5),
        ChannelGroup("trunk.3", 4, 4, "capsules"),
    )
    filters = dependencies.owners["trunk.3", "out"]
    # 4 capsules of 4 channels; 3 left over, which no group owns.
    assert filters.channel.tolist() == [*np.arange(4).repeat(4), -1, -1, -1]
    order = random_order(dependencies, 0)
    order[1] = torch.tensor([2, 0, 1, 3])
    slim = prune_channels(network, dependencies, order, np.array([5, 2, 3]))
    whole = trunk[3].weight
    expected = torch.cat((whole[0:4], whole[8:12], whole[16:19]))
    assert torch.equal(slim.trunk[3].weight, expected)
    conv = slim.primary_caps.conv
    assert (conv.in_channels, conv.out_channels, conv.groups) == (8, 8, 8)
    assert slim.primary_caps.capsules == 2


def test_a_depthwise_capsule_of_two_groups_stays_and_the_rest_goes():
    torch.manual_seed(0)
    network = capsule_network(JoinedTrunk(10, 11), 4, primary="depthwise", d1=4)
    dependencies = find_capsule_groups(network, 4)
    by_name = {group.name: group for group in dependencies.groups}
    # Channels 0-3 and 4-7 are of the one, 8-11 of both, 12-15 and 16-19 of the other, 20 left over.
    assert by_name["trunk.left"] == ChannelGroup("trunk.left", 2, 4, "capsules")
    assert by_name["trunk.right"] == ChannelGroup("trunk.right", 2, 4, "capsules")
    owned = dependencies.owners["primary_caps", "out"]
    assert [group < 0 for group in owned.group] == [False, False, True, False, False]
    assert check(network, 4, 1)[2].primary_caps.capsules >= 3


def test_groups_that_make_no_depthwise_capsule_alone_are_unprunable():
    torch.manual_seed(0)
    network = capsule_network(JoinedTrunk(3, 5), 4, primary="depthwise", d1=4)
    dependencies = find_capsule_groups(network, 4)
    assert dependencies.names == ("trunk.stem", "trunk.right", "output_caps.iterations")
    assert dependencies.unprunable == {
        "trunk.left": "no primary capsule is made of its channels alone"
    }
    assert dependencies.groups[1] == ChannelGroup("trunk.right", 1, 4, "capsules")
    check(network, 4, 0)


def test_a_type_goes_with_its_last_position():
    torch.manual_seed(0)
    network = capsule_network(JoinedTrunk(4, 4), 11, primary="spatial", types=3, d1=2)
    assert network.primary_caps.positions == 4 and network.primary_caps.capsules == 12
    dependencies = find_capsule_groups(network, 11)
    (types,) = dependencies.derived
    assert types.channels == 3 and dependencies.groups[types.source].name == "primary_caps"
    assert dependencies.groups[types.source] == ChannelGroup("primary_caps", 12, 2, "capsules")
    order = random_order(dependencies, 0)
    # Type 1 goes wholly; of type 0 position 2 stays, of type 2 positions 0 and 3.
    order[types.source] = torch.tensor([11, 2, 8, 4, 0, 1, 3, 5, 6, 7, 9, 10])
    assert types.counts(order[types.source].numpy()).tolist() == [0, 1, 2, 2, *[3] * 9]
    kept = dependencies.channels
    kept[types.source] = 3
    slim = prune_channels(network, dependencies, order, kept)
    assert slim.primary_caps.places.tolist() == [2, 4, 7]
    assert slim.primary_caps.types == 2
    whole = network.primary_caps.conv.weight
    assert torch.equal(slim.primary_caps.conv.weight, torch.cat((whole[0:2], whole[4:6])))
    # A slim network is pruned like any.
    check(slim, 11, 0, most=0.7)


def test_sabours_capsnet_is_pruned_to_58_of_its_1152_capsules():
    torch.manual_seed(0)
    network = capsule_network(
        trunk_of("capsnet", build_backbone("capsnet", 10)), 28, primary="spatial", classes=10
    )
    assert count_parameters(network) == 6_804_384
    dependencies = find_capsule_groups(network, 28)
    assert dependencies.groups == (
        ChannelGroup("trunk.conv1", 256),
        ChannelGroup("primary_caps", 1152, 8, "capsules"),
        ChannelGroup("output_caps.iterations", 3, 0, "iterations"),
    )
    order = random_order(dependencies, 0)
    # The first types are kept whole: 36 positions of one, 22 of another.
    order[1] = torch.arange(1152)
    cost = CostModel.build(network, dependencies, 28, order)
    kept = np.array([100, 58, 1])
    slim = prune_channels(network, dependencies, order, kept)
    assert (slim.primary_caps.types, slim.primary_caps.capsules) == (2, 58)
    filters = 100 * 81 + 100 + 2 * 8 * (100 * 81 + 1)
    assert count_parameters(slim) == cost.parameters(kept) == filters + 10 * 58 * 8 * 16 + 10 * 16
    macs = 20 * 20 * 100 * 81 + 6 * 6 * 16 * 100 * 81 + 10 * 58 * 8 * 16
    assert cost.macs(kept) == sum(count_macs(slim, 28).values()) == macs
    with torch.no_grad():
        assert slim(torch.randn(2, 1, 28, 28)).poses.shape == (2, 10, 16)


def test_costs_of_derived_groups_need_rankings():
    network = capsule_network(JoinedTrunk(4, 4), 11, primary="spatial", types=3)
    with pytest.raises(ValueError, match="rankings"):
        CostModel.build(network, find_capsule_groups(network, 11), 11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slim_network_is_pruned_again(kind):
    torch.manual_seed(0)
    network = capsule_network(JoinedTrunk(16, 16), 12, primary=kind, d1=4)
    _, _, slim = check(network, 12, 5)
    check(slim, 12, 6)


def test_a_trunk_without_groups_leaves_the_capsules():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3)

        def forward(self, images):
            return self.conv(images).repeat(1, 8, 1, 1)

    network = capsule_network(Fixed(), 6, d1=4)
    assert find_capsule_groups(network, 6).names == ("primary_caps.conv", "output_caps.iterations")
    check(network, 6, 0)


def test_compensation_sees_the_slim_network_and_what_stayed():
    torch.manual_seed(0)
    network = capsule_network(JoinedTrunk(8, 8), 4, d1=4)
    dependencies = find_capsule_groups(network, 4)
    order = random_order(dependencies, 0)
    kept = np.maximum(1, dependencies.channels // 2)
    seen = []

    def compensate(slim, selected):
        capsules = dependencies.names.index("primary_caps.conv")
        stayed = sorted(order[capsules][: kept[capsules]].tolist())
        assert selected["output_caps"]["in"].tolist() == stayed
        assert len(selected["output_caps"]["iterations"]) == slim.output_caps.iterations
        slim.output_caps.bias.data.fill_(7.0)
        seen.append(slim)

    slim = prune_channels(network, dependencies, order, kept, compensate)
    assert seen == [slim] and float(slim.output_caps.bias.detach().max()) == 7.0
    assert float(network.output_caps.bias.detach().max()) != 7.0


def test_a_kind_without_an_adapter_is_refused_and_one_with_is_pruned():
    class Doubled(DepthwisePrimaryCaps):
        """Twice the poses of depthwise capsules."""

        kind = "doubled"

        def poses(self, features):
            return 2 * super().poses(features)

    class Unknown(PrimaryCaps):
        kind = "unknown"

    with restored(PRIMARIES):
        PRIMARIES.register("doubled", "a toy")(Doubled)

        @adapts(Doubled)
        class DoubledCapsules(DepthwisePrimaryCapsules):
            pass

        torch.manual_seed(0)
        network = capsule_network(JoinedTrunk(8, 8), 4, primary="doubled", d1=4)
        check(network, 4, 0)
    network.primary_caps = Unknown(4, 2, 4)
    with pytest.raises(ModelError, match="kind unknown has no adapter"):
        find_capsule_groups(network, 4)


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v1"])
def network(request):
    torch.manual_seed(0)
    model = build_backbone(request.param, 4, **backbone_arguments(request.param, 32))
    return capsule_network(trunk_of(request.param, model), 32)


def test_costs_agree_with_those_of_the_head(network):
    macs = count_macs(network, 32)
    conv, weight = network.primary_caps.conv, network.output_caps.weight
    assert macs["primary_caps.conv"] == conv.weight.numel()  # its kernel is applied once
    assert macs["output_caps"] == routing_macs(weight.shape[1], 3, 8, 16, 3)


def test_tracing_leaves_the_network_as_it_was(network):
    copied = copy.deepcopy(network)
    copied.freeze_trunk()
    copied.train()
    flags = [parameter.requires_grad for parameter in copied.parameters()]
    modes = [module.training for module in copied.modules()]
    names = [name for name, _ in copied.named_modules()]
    find_capsule_groups(copied, 32)
    assert flags == [parameter.requires_grad for parameter in copied.parameters()]
    assert modes == [module.training for module in copied.modules()]
    assert names == [name for name, _ in copied.named_modules()]
    assert isinstance(copied, CapsuleNetwork)


def test_a_slim_network_is_rebuilt_from_its_tensors(network):
    dependencies = find_capsule_groups(network, 32)
    kept = np.maximum(1, dependencies.channels // 3)
    kept[-1] = dependencies.channels[-1]  # iterations leave no trace in tensors
    order = [torch.arange(count) for count in dependencies.channels]
    slim = prune_channels(network, dependencies, order, kept)
    images = torch.randn(2, 3, 32, 32)
    by_tensors = copy.deepcopy(network)
    found = rebuild(by_tensors, dependencies, slim.state_dict(), name="slim", source="a file")
    assert found.tolist() == kept.tolist()
    with torch.no_grad():
        assert torch.equal(by_tensors(images).poses, slim(images).poses)
