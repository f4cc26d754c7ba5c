import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capsprune.capsules import CapsuleNetwork, OutputCaps, margin_loss, squash
from capsprune.capsules.primary import DensePrimaryCaps
from capsprune.errors import ModelError


@settings(max_examples=30)
@given(length=st.floats(1e-6, 1e3), dimension=st.integers(1, 16), seed=st.integers(0, 1000))
def test_squash_shortens_and_keeps_the_direction(length, dimension, seed):
    direction = torch.randn(dimension, generator=torch.Generator().manual_seed(seed)) + 0.01
    direction = direction / direction.norm()
    squashed = squash(direction * length)
    assert squashed.norm() < 1
    expected = length**2 / (1 + length**2) * length / (length**2 + 1e-6) ** 0.5
    assert float(squashed.norm()) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(squashed / squashed.norm(), direction, rtol=1e-4, atol=1e-4)


def test_squash_leaves_zero_with_a_finite_gradient():
    s = torch.zeros(3, 4, requires_grad=True)
    squashed = squash(s)
    squashed.sum().backward()
    assert torch.equal(squashed, torch.zeros(3, 4))
    assert torch.isfinite(s.grad).all()


def test_squash_of_the_longest_vectors_is_no_longer_than_one():
    assert squash(torch.full((4,), 1e18)).norm() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [0.0, 1e-4, 1.0, 200.0, 256.0, 6e4])
def test_squash_in_half_precision_is_that_of_single_precision(dtype, length):
    s = torch.tensor([[0.6, 0.0, 0.8]]).mul(length).to(dtype).requires_grad_()
    squashed = squash(s)
    squashed.sum().backward()
    assert squashed.dtype == dtype
    torch.testing.assert_close(squashed, squash(s.float()).to(dtype))
    assert torch.isfinite(s.grad).all()


def test_long_capsules_stay_finite_under_autocast():
    torch.manual_seed(0)
    layers = nn.Sequential(DensePrimaryCaps(16, 2, d1=8), OutputCaps(2, 3, d1=8, d2=4))
    with torch.no_grad():
        layers[0].conv.weight.fill_(1.0)
    features = torch.full((2, 16, 2, 2), 100.0)
    single = layers(features)
    with torch.autocast("cpu", dtype=torch.float16):
        half = layers(features)
        margin_loss(half.norm(dim=-1), torch.tensor([0, 1])).backward()
    torch.testing.assert_close(half.float(), single, rtol=1e-2, atol=1e-3)
    assert all(torch.isfinite(parameter.grad).all() for parameter in layers.parameters())


def test_channel_c_belongs_to_capsule_c_div_d1():
    layer = DensePrimaryCaps(channels=11, kernel_size=2, d1=3)  # 3 capsules, 2 channels left over
    assert layer.capsules == 3 and layer.conv.out_channels == 9
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.bias.copy_(torch.arange(9.0))
    poses = layer(torch.randn(2, 11, 2, 2))
    assert poses.shape == (2, 3, 3)
    torch.testing.assert_close(poses[0], squash(torch.arange(9.0).view(3, 3)))


def test_primary_caps_sum_over_the_whole_feature_map():
    layer = DensePrimaryCaps(channels=4, kernel_size=3, d1=4)
    features = torch.randn(2, 4, 3, 3)
    sums = torch.einsum("bchw,ochw->bo", features, layer.conv.weight) + layer.conv.bias
    torch.testing.assert_close(layer(features), squash(sums.view(2, 1, 4)), rtol=1e-4, atol=1e-5)


def test_fewer_channels_than_values_make_no_capsule():
    with pytest.raises(ModelError, match=r"7 channels.*8 values.*--d1"):
        DensePrimaryCaps(channels=7, kernel_size=2, d1=8)
    assert DensePrimaryCaps(channels=8, kernel_size=2, d1=8).capsules == 1


def test_output_caps_begin_as_published():
    torch.manual_seed(0)
    layer = OutputCaps(64, 10)
    assert layer.weight.shape == (10, 64, 8, 16) and layer.iterations == 3
    weight = layer.weight.detach()
    assert float(weight.mean()) == pytest.approx(0.0, abs=2e-3)
    assert float(weight.std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(layer.bias, torch.full((10, 16), 0.1))


def test_the_paper_s_margin_loss_by_hand():
    lengths = torch.tensor([[0.95, 0.05, 0.3], [0.2, 0.8, 0.6]])
    # Label 0: nothing for 0.95 and 0.05, half of 0.2^2 for 0.3.
    # Label 2: 0.3^2 for 0.6, half of 0.1^2 for 0.2, half of 0.7^2 for 0.8.
    by_hand = (0.02 + 0.09 + 0.005 + 0.245) / 2
    assert float(margin_loss(lengths, torch.tensor([0, 2]))) == pytest.approx(by_hand)
    assert float(margin_loss(lengths[:1], torch.tensor([0]))) == pytest.approx(0.02)


def test_margin_loss_pulls_the_right_way():
    lengths = torch.tensor([[0.5, 0.5]], requires_grad=True)
    margin_loss(lengths, torch.tensor([1])).backward()
    assert lengths.grad[0, 0] > 0 > lengths.grad[0, 1]


def network(**sizes):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    sizes = {"channels": 8, "feature_size": 3, "classes": 5, "d1": 4, "d2": 6} | sizes
    return CapsuleNetwork(trunk, **sizes)


def test_probabilities_are_the_lengths_of_the_poses():
    capsules = network().eval()
    probabilities, poses = capsules(torch.randn(4, 3, 7, 7))
    assert poses.shape == (4, 5, 6) and probabilities.shape == (4, 5)
    torch.testing.assert_close(probabilities, poses.square().sum(-1).sqrt())
    assert (probabilities < 1).all()
    with pytest.raises(ModelError):
        network(d1=16)


def test_nan_passes_through_the_network():
    images = torch.randn(2, 3, 7, 7)
    images[1, 0, 3, 3] = torch.nan
    probabilities = network().eval()(images).class_probabilities
    assert torch.isfinite(probabilities[0]).all() and probabilities[1].isnan().all()


def trained(capsules, steps=4):
    optimizer = torch.optim.Adam([p for p in capsules.parameters() if p.requires_grad], lr=0.01)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        capsules.train()
        images = torch.randn(8, 3, 7, 7, generator=generator) * 3 + 1
        labels = torch.randint(0, 5, (8,), generator=generator)
        loss = margin_loss(capsules(images).class_probabilities, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def changed(before, module):
    return {
        key for key, value in module.state_dict().items() if not torch.equal(value, before[key])
    }


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_trunk_stays_bit_for_bit(frozen):
    capsules = network()
    if frozen:
        capsules.freeze_trunk()
    before = {key: value.clone() for key, value in capsules.state_dict().items()}
    trained(capsules)
    moved = changed(before, capsules)
    assert {
        "primary_caps.conv.weight",
        "primary_caps.conv.bias",
        "output_caps.weight",
        "output_caps.bias",
    } <= moved
    in_trunk = {key for key in moved if key.startswith("trunk.")}
    assert in_trunk == (set() if frozen else {key for key in before if key.startswith("trunk.")})
    assert capsules.training and capsules.trunk.training is not frozen
