"""The cost model against fvcore, on networks that were pruned physically."""

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import count_macs, count_parameters, count_positions


def counted_by_fvcore(model, size):
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, size, size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    assert counts["conv"] > 0 and counts["linear"] > 0
    return counts["conv"] + counts["linear"]


def check(prunable, kept):
    order = [torch.arange(group.channels) for group in prunable.dependencies.groups]
    pruned = prune_channels(prunable.model, prunable.dependencies, order, kept)
    pruned.to_empty(device="cpu")  # values play no part; fvcore cannot trace without any
    macs = counted_by_fvcore(pruned, prunable.size)
    assert sum(count_macs(pruned, prunable.size).values()) == macs
    assert prunable.cost.macs(kept) == macs
    assert prunable.cost.parameters(kept) == count_parameters(pruned)


@settings(max_examples=2)
@given(seed=st.integers(0, 10_000), max_rate=st.sampled_from([0.3, 0.999]))
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1", "mobilenet_v2"])
def test_costs_are_exact(make_prunable, name, seed, max_rate):
    prunable = make_prunable(name, 32, "meta")
    check(prunable, prunable.drawn(seed, max_rate))


@pytest.mark.parametrize(
    "name",
    ["resnet34", "resnet50", "vgg16_bn", pytest.param("resnet101", marks=pytest.mark.slow)],
)
def test_costs_of_large_backbones_are_exact(make_prunable, name):
    prunable = make_prunable(name, 32, "meta")
    check(prunable, prunable.drawn(1))


@settings(max_examples=20)
@given(kept=st.tuples(st.integers(1, 16), st.integers(1, 24)))
def test_costs_of_a_tiny_network_by_hand(shared_tiny, kept):
    s, i = kept
    macs = 36 * (3 * 9 * s + 9 * s * i + i * s) + 4 * s
    parameters = 3 * 9 * s + s + 2 * s + 9 * s * i + 2 * i + i * s + 2 * s + 4 * s + 4
    assert shared_tiny.cost.macs(np.array(kept)) == macs
    assert shared_tiny.cost.parameters(np.array(kept)) == parameters


def test_no_pruning_costs_all(make_prunable):
    cost = make_prunable("resnet18", 32, "meta").cost
    model = make_prunable("resnet18", 32, "meta").model
    assert cost.unpruned_macs == sum(count_macs(model, 32).values())
    assert cost.parameters(cost.channels) == count_parameters(model)
    assert cost.flops_ratio(cost.channels) == 1.0


def test_many_strategies_at_once(tiny):
    kept = np.random.default_rng(0).integers(1, 16, (50, 2))
    alone = [(int(tiny.cost.macs(row)), int(tiny.cost.parameters(row))) for row in kept]
    together = zip(tiny.cost.macs(kept).tolist(), tiny.cost.parameters(kept).tolist(), strict=True)
    assert list(together) == alone


def test_counting_leaves_mode_and_statistics(tiny):
    model = tiny.model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert count_positions(model, 12) == {"stem": 36, "inner": 36, "outer": 36, "fc": 1}
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_layer_applied_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    assert count_macs(Twice(), 4) == {"conv": 2 * 16 * 9}
