"""OutputCaps is solved anew for the capsules kept: exactly where the others were redundant."""

import pickle

import numpy as np
import pytest
import torch
from prunables import JoinedTrunk, capsule_network

from capsprune.pruning import compensation
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.compensation import LeastSquares

D1 = 2


def drawn(seed, count=60):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def redundant(iterations=1, copies=4, **head):
    """Make a network whose last capsules are copies of its first, with weights of their own."""
    torch.manual_seed(0)
    network = capsule_network(
        JoinedTrunk(8, 8), 4, d1=D1, d2=3, iterations=iterations, **head
    ).eval()
    conv = network.primary_caps.conv
    with torch.no_grad():
        for tensor in (conv.weight, conv.bias):
            tensor[-copies * D1 :] = tensor[: copies * D1]
        network.output_caps.weight *= 6
    return network


def keep(network, count, compensate, iterations=None):
    """Keep the first capsules."""
    dependencies = find_capsule_groups(network, 4)
    kept = dependencies.channels
    for index, group in enumerate(dependencies.groups):
        if group.kind == "capsules":
            kept[index] = count
        if group.kind == "iterations" and iterations:
            kept[index] = iterations
    order = [torch.arange(units) for units in dependencies.channels]
    return prune_channels(network, dependencies, order, kept, compensate)


def compensation_of(network, ridge=1e-9):
    images = drawn(1)
    labels = torch.zeros(len(images), dtype=torch.int64)
    return LeastSquares.of(network, [(images[:25], labels[:25]), (images[25:], labels[25:])], ridge)


def off(network, pruned, seed=2):
    """Return how far the poses of new images are from what they were, relative to these."""
    images = drawn(seed)
    with torch.no_grad():
        before, after = network(images).poses, pruned(images).poses
    return float((after - before).norm() / before.norm())


def test_nothing_is_lost_with_capsules_that_are_copies():
    network = redundant()
    capsules = network.primary_caps.capsules
    assert off(network, keep(network, capsules - 4, None)) > 0.1
    assert off(network, keep(network, capsules - 4, compensation_of(network))) < 1e-3


@pytest.mark.parametrize("iterations", [2, 3])
def test_little_is_lost_where_couplings_are_not_even(iterations):
    network = redundant(iterations)
    capsules = network.primary_caps.capsules
    plain = off(network, keep(network, capsules - 4, None))
    assert off(network, keep(network, capsules - 4, compensation_of(network))) < plain / 3


def test_iterations_that_are_gone_are_made_up_for():
    network = redundant(3)
    capsules = network.primary_caps.capsules
    plain = off(network, keep(network, capsules, None, iterations=1))
    solved = off(network, keep(network, capsules, compensation_of(network), iterations=1))
    assert solved < plain / 2


def test_the_mean_of_what_is_gone_goes_to_the_bias():
    network = redundant()
    with torch.no_grad():  # A capsule that always says the same.
        network.primary_caps.conv.weight[-D1:] = 0
        network.primary_caps.conv.bias[-D1:] = 2
    capsules = network.primary_caps.capsules
    pruned = keep(network, capsules - 1, compensation_of(network))
    assert off(network, pruned) < 1e-3
    assert not torch.equal(pruned.output_caps.bias, network.output_caps.bias)


def test_what_stays_is_solved_as_numpy_solves_it():
    network = redundant(copies=1)
    images = drawn(1, 80)
    count = network.primary_caps.capsules // 2
    solver = LeastSquares.of(network, [(images, torch.zeros(80, dtype=torch.int64))], 1e-9)
    pruned = keep(network, count, solver)
    with torch.no_grad():
        u = network.primary_caps(network.trunk(images)).double()
    weight = network.output_caps.weight.detach().double()
    classes = len(weight)
    s = torch.einsum("bid,jide->bje", u, weight).flatten(1) / classes
    design = np.column_stack([u[:, :count].flatten(1).numpy(), np.ones(80)])
    expected, *_ = np.linalg.lstsq(design, s.numpy(), rcond=None)
    found = pruned.output_caps.weight.detach().permute(1, 2, 0, 3).reshape(count * D1, -1)
    np.testing.assert_allclose(found / classes, expected[:-1], rtol=1e-3, atol=1e-4)
    bias = pruned.output_caps.bias - network.output_caps.bias
    np.testing.assert_allclose(bias.detach().flatten(), expected[-1], rtol=1e-3, atol=1e-4)


def test_where_nothing_or_too_little_is_gone_all_stays(monkeypatch):
    network = redundant(2)
    capsules = network.primary_caps.capsules
    solver = compensation_of(network)
    whole = keep(network, capsules, solver)
    assert torch.equal(whole.output_caps.weight, network.output_caps.weight)
    assert torch.equal(whole.output_caps.bias, network.output_caps.bias)
    monkeypatch.setattr(compensation, "MOST_VALUES", 3)
    few = compensation_of(network)
    plain, solved = keep(network, 2, None), keep(network, 2, few)
    assert torch.equal(solved.output_caps.weight, plain.output_caps.weight)
    plain, solved = keep(network, 1, None), keep(network, 1, few)
    assert not torch.equal(solved.output_caps.weight, plain.output_caps.weight)


def test_the_unpruned_network_stays_as_it_is():
    network = redundant()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    keep(network, 2, compensation_of(network))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_other_processes_get_it_as_it_is():
    network = redundant(3)
    solver = compensation_of(network)
    first = keep(network, 3, solver)
    again = keep(network, 3, pickle.loads(pickle.dumps(solver)))
    assert torch.equal(first.output_caps.weight, again.output_caps.weight)


@pytest.mark.parametrize("kind", ["factored", "depthwise", "pointwise"])
def test_every_kind_of_primary_caps(kind):
    torch.manual_seed(0)
    options = {"rank": 4} if kind == "factored" else {}
    network = capsule_network(
        JoinedTrunk(8, 8), 4, primary=kind, d1=D1, d2=3, iterations=3, **options
    ).eval()
    dependencies = find_capsule_groups(network, 4)
    kept = dependencies.channels
    kept[[group.kind == "capsules" for group in dependencies.groups]] //= 2
    order = [torch.arange(units).flip(0) for units in dependencies.channels]
    plain = prune_channels(network, dependencies, order, kept)
    solved = prune_channels(network, dependencies, order, kept, compensation_of(network, 1e-3))
    assert off(network, solved) < off(network, plain)
