"""The kinds of PrimaryCaps: each against a plain one, its counts, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_tables import restored
from torch.nn import functional

from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules import CapsuleNetwork, squash
from capsprune.capsules.head import HEADS
from capsprune.capsules.primary import (
    DensePrimaryCaps,
    DepthwisePrimaryCaps,
    FactoredPrimaryCaps,
    PointwisePrimaryCaps,
    SpatialPrimaryCaps,
)
from capsprune.capsules.primary.names import PRIMARIES
from capsprune.errors import ModelError


def parameters(layer):
    return sum(p.numel() for p in layer.parameters())


@settings(max_examples=20)
@given(
    kind=st.sampled_from(list(PRIMARIES)),
    channels=st.integers(4, 20),
    size=st.integers(1, 4),
    d1=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_every_kind_gives_short_capsules(kind, channels, size, d1, batch):
    size += 8 if kind == "spatial" else 0
    layer = PRIMARIES[kind].make(FeatureMap(channels, size), d1)
    u = layer(torch.randn(batch, channels, size, size))
    assert u.shape == (batch, layer.capsules, d1)
    assert (u.norm(dim=-1) < 1).all()
    assert layer.feature_size == size


def test_sabour_s_primary_capsules():
    layer = SpatialPrimaryCaps.make(FeatureMap(256, 20), 8)
    assert (layer.types, layer.positions, layer.capsules) == (32, 36, 1152)
    assert parameters(layer) == 5_308_672


def test_efficient_capsnet_s_primary_capsules():
    layer = DepthwisePrimaryCaps.make(FeatureMap(128, 9), 8)
    assert layer.capsules == 16
    assert parameters(layer) == 128 * 81 + 128


@pytest.mark.parametrize("kind", [SpatialPrimaryCaps, PointwisePrimaryCaps])
def test_a_capsule_is_one_position_of_one_type(kind):
    torch.manual_seed(0)
    layer = kind.make(FeatureMap(6, 11), 2, types=3)
    features = torch.randn(2, 6, 11, 11)
    maps = layer.conv(features)
    u = layer(features)
    side = maps.shape[2]
    assert u.shape[1] == 3 * side * side == layer.capsules
    for capsule in (0, 1, side, side * side, 3 * side * side - 1):
        kind_of, position = divmod(capsule, side * side)
        row, column = divmod(position, side)
        expected = squash(maps[:, 2 * kind_of : 2 * kind_of + 2, row, column])
        torch.testing.assert_close(u[:, capsule], expected)


def test_places_say_which_positions_are_left():
    layer = PointwisePrimaryCaps.make(FeatureMap(4, 3), 2)
    features = torch.randn(2, 4, 3, 3)
    whole = layer(features)
    layer.places, layer.capsules = torch.tensor([1, 8, 10]), 3
    torch.testing.assert_close(layer(features), whole[:, [1, 8, 10]])


@pytest.mark.parametrize("places", [[0, 99], [-1, 2], [3, 3], [5, 1]])
def test_places_of_no_position_are_refused(places):
    layer = PointwisePrimaryCaps.make(FeatureMap(4, 3), 2)
    state = layer.state_dict()
    state["places"] = torch.tensor(places)
    with pytest.raises(RuntimeError, match=r"places are not ascending places of 2 types of 9"):
        layer.load_state_dict(state)


def test_channels_left_over_are_not_looked_at():
    layer = DepthwisePrimaryCaps.make(FeatureMap(7, 2), 3)
    features = torch.randn(2, 7, 2, 2)
    u = layer(features)
    features[:, 6:] = 1e9
    assert torch.equal(layer(features), u)
    expected = functional.conv2d(features[:, :6], layer.conv.weight, layer.conv.bias, groups=6)
    torch.testing.assert_close(u, squash(expected.view(2, 2, 3)))


def test_two_factors_are_one_dense_layer():
    torch.manual_seed(0)
    factored = FactoredPrimaryCaps.make(FeatureMap(8, 3), 4, rank=3)
    dense = DensePrimaryCaps(8, 3, 4)
    with torch.no_grad():
        second = factored.conv.weight.flatten(1)
        dense.conv.weight.copy_(torch.einsum("on,nchw->ochw", second, factored.basis.weight))
        dense.conv.bias.copy_(second @ factored.basis.bias + factored.conv.bias)
    features = torch.randn(5, 8, 3, 3)
    torch.testing.assert_close(factored(features), dense(features))
    assert parameters(factored) == 8 * 9 * 3 + 3 + 3 * 8 + 8


@pytest.mark.parametrize("kind", list(PRIMARIES))
def test_a_head_is_rebuilt_from_its_config(kind):
    options = {"pointwise": {"types": 3}, "spatial": {"types": 5}, "factored": {"rank": 6}}
    trunk = torch.nn.Conv2d(3, 18, 1)
    network = CapsuleNetwork(
        trunk,
        channels=18,
        feature_size=9,
        classes=4,
        d1=4,
        primary=kind,
        **options.get(kind, {}),
    )
    head = HEADS["dynamic"]
    config = head.config.model_validate(head.describe(network).model_dump())
    again = head.build(trunk, FeatureMap(18, 9), 4, config)
    again.load_state_dict(network.state_dict())
    assert config.primary == kind


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dense", {"types": 2}, r"kind dense has no --types"),
        ("depthwise", {"rank": 2}, r"kind depthwise has no --primary-rank"),
        ("pointwise", {"capsules": 2}, r"kind pointwise has no --capsules"),
        ("spatial", {}, r"feature map is 4 x 4, too small for the 9 x 9"),
    ],
)
def test_what_a_kind_cannot_have(kind, options, message):
    with pytest.raises(ModelError, match=message):
        PRIMARIES[kind].make(FeatureMap(16, 4), 8, **options)


@pytest.mark.parametrize("kind", ["dense", "factored", "depthwise", "pointwise"])
def test_a_trunk_too_narrow_for_a_capsule(kind):
    with pytest.raises(ModelError, match=r"7 channels.*8 values"):
        PRIMARIES[kind].make(FeatureMap(7, 2), 8)


def test_a_kind_from_outside():
    with restored(PRIMARIES):

        @PRIMARIES.register("half", "half of the capsules")
        class Half(DensePrimaryCaps):
            kind = "half"

            @classmethod
            def make(cls, features, d1, *, types=None, rank=None, capsules=None):
                return cls(features.channels, features.size, d1, features.channels // d1 // 2)

        network = CapsuleNetwork(
            torch.nn.Conv2d(3, 16, 1), channels=16, feature_size=2, classes=3, d1=2, primary="half"
        )
        assert network(torch.randn(2, 3, 2, 2)).class_probabilities.shape == (2, 3)
        assert network.output_caps.weight.shape[1] == 4
