"""Channel pruning against torch-pruning's own, group by group."""

import copy

import numpy as np
import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capsprune.errors import CheckpointError, ModelError
from capsprune.pruning.channels import layer_channels, prune_channels, resize_layers
from capsprune.pruning.cost import count_macs
from capsprune.pruning.criteria import l1_ranking


def pruned_by(prunable, kept):
    return prune_channels(
        prunable.model, prunable.dependencies, prunable.rankings, np.asarray(kept)
    )


def smallest_filters(model, root, count):
    """The channels with the smallest L1 norms, told from the weights themselves."""
    norms = [
        float(filter_.abs().double().sum()) for filter_ in model.get_submodule(root).weight.detach()
    ]
    return sorted(range(len(norms)), key=norms.__getitem__)[:count]


def pruned_slowly(prunable, kept):
    """Let torch-pruning remove the same channels, one group after the other."""
    model = copy.deepcopy(prunable.model)
    removed = [
        smallest_filters(model, group.name, group.channels - int(count))
        for group, count in zip(prunable.dependencies.groups, kept, strict=True)
    ]
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, example_inputs=prunable.images(1)
    )
    for group, channels in zip(prunable.dependencies.groups, removed, strict=True):
        layer = model.get_submodule(group.name)
        prune = (
            torch_pruning.prune_linear_out_channels
            if isinstance(layer, nn.Linear)
            else torch_pruning.prune_conv_out_channels
        )
        if channels:
            graph.get_pruning_group(layer, prune, channels).prune()
    return model.eval()


def compare(prunable, kept):
    ours, slow = pruned_by(prunable, kept), pruned_slowly(prunable, kept)
    images = prunable.images()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), slow(images), rtol=1e-5, atol=1e-5)
    theirs = slow.state_dict()
    assert list(theirs) == list(ours.state_dict())
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    assert layer_channels(ours) == layer_channels(slow)
    assert not ours.training and type(ours) is type(prunable.model)


@pytest.mark.parametrize(
    ("name", "max_rate"), [("resnet18", 0.3), ("mobilenet_v1", 0.999), ("mobilenet_v2", 0.8)]
)
def test_channel_pruning_is_torch_pruning(make_prunable, name, max_rate):
    prunable = make_prunable(name)
    compare(prunable, prunable.drawn(7, max_rate))


@pytest.mark.parametrize("kept", [(5, 7, 9), (1, 1, 1), (12, 3, 20)])
def test_channel_pruning_is_torch_pruning_behind_a_flatten(make_flat, kept):
    prunable = make_flat()
    compare(prunable, kept)


@settings(max_examples=10)
@given(kept=st.tuples(st.integers(1, 16), st.integers(1, 24)))
def test_channel_pruning_a_tiny_network_is_torch_pruning(shared_tiny, kept):
    compare(shared_tiny, kept)


def test_the_smallest_filters_go_and_the_others_keep_their_order(tiny):
    # Batch norm's shifts serve as the channels' names.
    tiny.model.bn2.bias.data = torch.arange(24.0)
    norms = tiny.model.inner.weight.detach().abs().sum((1, 2, 3))
    expected = torch.sort(norms.argsort(descending=True)[:9]).values
    smaller = pruned_by(tiny, (16, 9))
    assert smaller.bn2.bias.tolist() == expected.float().tolist()
    assert torch.equal(smaller.inner.weight, tiny.model.inner.weight[expected])
    assert torch.equal(smaller.outer.weight, tiny.model.outer.weight[:, expected])
    assert torch.equal(smaller.stem.weight, tiny.model.stem.weight)


def test_removing_channels_of_zeros_changes_nothing(tiny):
    with torch.no_grad():
        for channel in (3, 8, 20):
            tiny.model.inner.weight[channel] = 0
            for values in (tiny.model.bn2.bias, tiny.model.bn2.running_mean):
                values[channel] = 0
    smaller = pruned_by(tiny, (16, 21))
    images = tiny.images()
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), tiny.model(images))


def test_the_original_stays_as_it_is(tiny):
    tiny.model.bn1.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    shape = layer_channels(tiny.model)
    smaller = pruned_by(tiny, (7, 24))
    own = {tensor.untyped_storage().data_ptr() for tensor in tiny.model.state_dict().values()}
    with torch.no_grad():
        for tensor in [*smaller.parameters(), *smaller.buffers()]:
            assert tensor.untyped_storage().data_ptr() not in own
            tensor.fill_(77)
    assert layer_channels(tiny.model) == shape
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
    assert not smaller.bn1.weight.requires_grad and smaller.bn2.weight.requires_grad
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in smaller.parameters())


def test_a_pruned_network_trains(tiny):
    smaller = pruned_by(tiny, (5, 6)).train()
    before = {name: p.detach().clone() for name, p in smaller.named_parameters()}
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    nn.functional.cross_entropy(smaller(tiny.images(6)), torch.arange(6) % 4).backward()
    optimizer.step()
    for name, parameter in smaller.named_parameters():
        if name != "stem.bias":  # the batch norm behind it takes it away again
            assert not torch.equal(parameter, before[name]), name


def test_channels_last_stays(tiny):
    tiny.model.to(memory_format=torch.channels_last)
    smaller = pruned_by(tiny, (5, 6))
    assert smaller.inner.weight.is_contiguous(memory_format=torch.channels_last)
    assert not smaller.inner.weight.is_contiguous()


def test_a_group_never_loses_all(tiny):
    with pytest.raises(ModelError, match="'inner' would lose all"):
        pruned_by(tiny, (5, 0))
    smaller = pruned_by(tiny, (1, 1))
    assert smaller(tiny.images(3)).shape == (3, 4)


def test_keeping_all_is_a_copy(tiny):
    copied = pruned_by(tiny, tiny.dependencies.channels)
    images = tiny.images()
    with torch.no_grad():
        assert torch.equal(copied(images), tiny.model(images))


def test_equal_norms_keep_the_first(tiny):
    tiny.model.inner.weight.data.fill_(0.5)
    assert l1_ranking(tiny.model, tiny.dependencies)[1].tolist() == list(range(24))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1", "mobilenet_v2", "vgg16_bn"])
def test_a_fresh_network_takes_a_pruned_one_s_shape(make_prunable, name):
    prunable = make_prunable(name, 32, "meta")
    kept = prunable.drawn(2, 0.999)
    order = [torch.arange(group.channels) for group in prunable.dependencies.groups]
    pruned = prune_channels(prunable.model, prunable.dependencies, order, kept)
    fresh = copy.deepcopy(prunable.model)
    resize_layers(fresh, layer_channels(pruned))
    assert layer_channels(fresh) == layer_channels(pruned)
    shapes = {key: value.shape for key, value in pruned.state_dict().items()}
    assert {key: value.shape for key, value in fresh.state_dict().items()} == shapes
    with torch.device("meta"):
        assert count_macs(fresh, 32) == count_macs(pruned, 32)


def test_counts_of_another_network_are_refused(tiny):
    counts = layer_channels(tiny.model)
    with pytest.raises(CheckpointError, match="'head'"):
        resize_layers(tiny.model, counts | {"head": {"in": 1, "out": 1}})
    with pytest.raises(CheckpointError, match="'inner'"):
        resize_layers(tiny.model, {k: v for k, v in counts.items() if k != "inner"})
    for wrong in ({"in": 16, "out": 0}, {"in": -1, "out": 3}):
        with pytest.raises(CheckpointError, match="'inner'"):
            resize_layers(tiny.model, counts | {"inner": wrong})
