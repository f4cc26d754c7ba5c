"""A primary capsule is a channel group: the whole capsule network is pruned by one machinery."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork, OutputCaps, margin_loss
from capsprune.capsules.cost import routing_macs
from capsprune.capsules.primary import DensePrimaryCaps
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import layer_channels, prune_channels, resize_layers
from capsprune.pruning.cost import CostModel, count_macs, count_parameters
from capsprune.pruning.criteria import rank_channels
from capsprune.pruning.groups import AxisOwners, ChannelGroup, Dependencies
from capsprune.pruning.masking import masked
from capsprune.pruning.names import CRITERIA
from capsprune.pruning.rebuild import rebuild
from capsprune.training.objective import Objective

MARGIN = Objective(
    loss=lambda outputs, labels: margin_loss(outputs.class_probabilities, labels),
    scores=lambda outputs: outputs.class_probabilities,
)


class Head(nn.Module):
    """A capsule head alone, whose features are its images."""

    def __init__(self, d1=4, d2=5, iterations=3):
        super().__init__()
        self.primary_caps = DensePrimaryCaps(3 * d1, 6, d1)
        self.primary_caps.conv = nn.Conv2d(3, 3 * d1, 6)
        self.output_caps = OutputCaps(3, 2, d1, d2, iterations)

    def forward(self, images):
        return self.output_caps(self.primary_caps(images))


def groups_of_head(d1):
    group, unit = np.zeros(3, dtype=np.int64), np.arange(3)
    return Dependencies(
        (ChannelGroup("primary_caps.conv", 3, d1),),
        {
            ("primary_caps.conv", "out"): AxisOwners(group.repeat(d1), unit.repeat(d1)),
            ("primary_caps", "out"): AxisOwners(group, unit),
            ("output_caps", "in"): AxisOwners(group, unit),
        },
    )


@settings(max_examples=15)
@given(
    kept=st.integers(1, 3),
    d1=st.integers(1, 8),
    d2=st.integers(1, 9),
    iterations=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_capsules_of_a_head_are_removed_at_exact_costs(kept, d1, d2, iterations, seed):
    torch.manual_seed(seed)
    head = Head(d1, d2, iterations).eval()
    dependencies = groups_of_head(d1)
    cost = CostModel.build(head, dependencies, 6)
    order = torch.randperm(3)
    smaller = prune_channels(head, dependencies, [order], np.array([kept]))
    macs = 3 * 36 * kept * d1 + routing_macs(kept, 2, d1, d2, iterations)
    assert cost.macs(np.array([kept])) == macs == sum(count_macs(smaller, 6).values())
    assert cost.parameters(np.array([kept])) == count_parameters(smaller)
    assert smaller.output_caps.weight.shape == (2, kept, d1, d2)
    mask = torch.zeros(3, dtype=torch.bool)
    mask[order[:kept]] = True
    images = torch.randn(4, 3, 6, 6)
    with torch.no_grad(), masked(head, dependencies, [mask]):
        expected = head(images)
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v1"])
def network(request):
    torch.manual_seed(0)
    model = build_backbone(request.param, 4, **backbone_arguments(request.param, 32))
    trunk = trunk_of(request.param, model)
    channels, size = trunk_output(trunk, 32)
    network = CapsuleNetwork(trunk, channels=channels, feature_size=size, classes=4).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.0)
    return network


def test_trunk_and_head_are_pruned_together_at_exact_costs(network):
    dependencies = find_capsule_groups(network, 32)
    capsules, d1 = network.primary_caps.capsules, network.primary_caps.d1
    assert dependencies.groups[-1] == ChannelGroup("primary_caps.conv", capsules, d1)
    assert ("primary_caps.conv", "in") in dependencies.owners
    cost = CostModel.build(network, dependencies, 32)
    assert cost.unpruned_macs == sum(count_macs(network, 32).values())
    generator = np.random.default_rng(0)
    images = torch.randn(2, 3, 32, 32)
    for seed in range(2):
        kept = generator.integers(1, dependencies.channels + 1)
        order = [
            torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            for count in dependencies.channels
        ]
        smaller = prune_channels(network, dependencies, order, kept)
        conv = smaller.primary_caps.conv
        classes, i, d1, d2 = smaller.output_caps.weight.shape
        assert i == kept[-1] == smaller.primary_caps.capsules
        macs = sum(count_macs(smaller.trunk, 32).values())
        size = conv.kernel_size[0]
        macs += size * size * conv.in_channels * i * d1 + routing_macs(i, classes, d1, d2, 3)
        assert cost.macs(kept) == macs == sum(count_macs(smaller, 32).values())
        assert cost.parameters(kept) == count_parameters(smaller)
        masks = [torch.zeros(count, dtype=torch.bool) for count in dependencies.channels]
        for mask, ranking, count in zip(masks, order, kept, strict=True):
            mask[ranking[: int(count)]] = True
        with torch.no_grad(), masked(network, dependencies, masks):
            expected = network(images).poses
        with torch.no_grad():
            torch.testing.assert_close(smaller(images).poses, expected, rtol=1e-4, atol=1e-6)


def test_costs_agree_with_those_of_the_head(network):
    macs = count_macs(network, 32)
    conv, weight = network.primary_caps.conv, network.output_caps.weight
    assert macs["primary_caps.conv"] == conv.weight.numel()  # its kernel is applied once
    assert macs["output_caps"] == routing_macs(weight.shape[1], 4, 8, 16, 3)


def test_tracing_leaves_the_network_as_it_was(network):
    copied = copy.deepcopy(network)
    copied.freeze_trunk()
    copied.train()
    flags = [parameter.requires_grad for parameter in copied.parameters()]
    modes = [module.training for module in copied.modules()]
    find_capsule_groups(copied, 32)
    assert flags == [parameter.requires_grad for parameter in copied.parameters()]
    assert modes == [module.training for module in copied.modules()]


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor"])
def test_capsules_are_ranked_by_the_criteria_of_channels(network, criterion):
    dependencies = find_capsule_groups(network, 32)
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    ranking = rank_channels(network, dependencies, criterion, batches, objective=MARGIN)[-1]
    assert sorted(ranking.tolist()) == list(range(network.primary_caps.capsules))
    if criterion == "l1":
        sums = network.primary_caps.conv.weight.detach().double().abs().sum((1, 2, 3))
        expected = sums.unflatten(0, (-1, 8)).sum(1).argsort(descending=True)
        assert ranking.tolist() == expected.tolist()
    assert criterion in CRITERIA


def test_a_slim_network_is_rebuilt_from_its_counts_and_from_its_tensors(network):
    dependencies = find_capsule_groups(network, 32)
    kept = np.maximum(1, dependencies.channels // 3)
    order = [torch.arange(count) for count in dependencies.channels]
    slim = prune_channels(network, dependencies, order, kept)
    images = torch.randn(2, 3, 32, 32)
    by_counts, by_tensors = copy.deepcopy(network), copy.deepcopy(network)
    resize_layers(by_counts, layer_channels(slim))
    by_counts.load_state_dict(slim.state_dict())
    found = rebuild(by_tensors, dependencies, slim.state_dict(), name="slim", source="a file")
    assert found.tolist() == kept.tolist()
    with torch.no_grad():
        expected = slim(images).poses
        assert torch.equal(by_counts(images).poses, expected)
        assert torch.equal(by_tensors(images).poses, expected)
