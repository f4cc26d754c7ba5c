"""PrimaryCaps in two factors: equal to the dense one, and the best of every rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capsprune.capsules import CapsuleNetwork
from capsprune.pruning.factoring import factor


def network(channels=8, size=2, d1=2, seed=0):
    torch.manual_seed(seed)
    trunk = nn.Conv2d(3, channels, 3, padding=1)
    return CapsuleNetwork(
        trunk, channels=channels, feature_size=size, classes=3, d1=d1, d2=4
    ).eval()


@settings(max_examples=15, deadline=None)
@given(
    channels=st.integers(2, 12),
    size=st.integers(1, 3),
    d1=st.integers(1, 2),
    images=st.integers(2, 30),
    seed=st.integers(0, 100),
)
def test_two_factors_compute_the_same(channels, size, d1, images, seed):
    dense = network(channels, size, d1, seed)
    calibration = [torch.randn(images, 3, size, size)]
    factored = factor(dense, calibration)
    assert factored.primary_caps.kind == "factored"
    shown = torch.randn(5, 3, size, size)
    with torch.no_grad():
        for ours, theirs in zip(factored(shown), dense(shown), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert dense.primary_caps.kind == "dense"


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_first_components_are_the_best_approximation(rank):
    dense = network()
    calibration = [torch.randn(20, 3, 2, 2) + 1, torch.randn(13, 3, 2, 2)]
    factored = factor(dense, calibration)
    layer = factored.primary_caps
    with torch.no_grad():
        layer.conv.weight[:, rank:] = 0  # as if the others had been removed
        features = dense.trunk(torch.cat(calibration))
        outputs = dense.primary_caps.poses(features).flatten(1).double()
        found = layer.poses(features).flatten(1).double()
        mean = outputs.mean(dim=0)
        u, s, v = torch.linalg.svd(outputs - mean, full_matrices=False)
        best = u[:, :rank] * s[:rank] @ v[:rank] + mean
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)


def test_both_factors_are_as_large():
    layer = factor(network(), [torch.randn(40, 3, 2, 2)]).primary_caps
    first = layer.basis.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(first, layer.conv.weight.flatten(1).norm(dim=0))


def test_what_has_no_factors():
    factored = factor(network(), [torch.randn(4, 3, 2, 2)])
    with pytest.raises(ValueError, match="kind factored"):
        factor(factored, [torch.randn(4, 3, 2, 2)])
    with pytest.raises(ValueError, match="images"):
        factor(network(), [])
