"""Each kind of layer's adapter against the layer itself."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from capsprune.capsules import OutputCaps
from capsprune.capsules.cost import routing_macs
from capsprune.capsules.primary import DensePrimaryCaps
from capsprune.errors import CheckpointError, ModelError
from capsprune.pruning.channels import layer_channels, prune_channels, resize_layers
from capsprune.pruning.cost import CostModel, count_macs, count_parameters
from capsprune.pruning.groups import find_groups
from capsprune.pruning.layers import PassingLayer, PrunableLayer, adapter, adapts, prunable_layers
from capsprune.pruning.masking import masked

LAYERS = {
    "conv": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 8, (1, 3), groups=2, bias=False), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5)),
    "linear": (lambda: nn.Linear(6, 8), (2, 6)),
    "batch norm": (lambda: nn.BatchNorm2d(6), (2, 6, 5, 5)),
    "plain batch norm": (lambda: nn.BatchNorm2d(6, affine=False), (2, 6, 5, 5)),
    "layer norm": (lambda: nn.LayerNorm(6), (2, 5, 6)),
    "layer norm of images": (lambda: LayerNorm2d(6), (2, 6, 5, 5)),
    "output capsules": (lambda: OutputCaps(6, 3, d1=4, d2=5), (2, 6, 4)),
}


def made(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make().eval()
    with torch.no_grad():
        for tensor in [*layer.parameters(), *layer.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1.0)
    return layer, torch.randn(shape)


@pytest.mark.parametrize("kind", LAYERS)
def test_costs_are_the_layers_own(kind):
    layer, _ = made(kind)
    wrapped = adapter(layer)
    assert wrapped.parameters == count_parameters(layer)
    weight = wrapped.weights_per_pair * wrapped.pairs
    assert weight == (layer.weight.numel() if wrapped.weights_per_pair else 0)
    if kind == "output capsules":
        assert wrapped.macs(1) == routing_macs(6, 3, 4, 5, 3)
    else:
        assert wrapped.macs(7) == 7 * weight


@pytest.mark.parametrize("kind", LAYERS)
def test_selecting_outputs_is_what_is_left_of_the_outputs(kind):
    layer, x = made(kind)
    before = copy.deepcopy(layer.state_dict())
    smaller = copy.deepcopy(layer)
    wrapped = adapter(smaller)
    chosen = torch.tensor([0, 2, 4, 6] if wrapped.size("out") == 8 else [0, 2])
    wrapped.select({"out": chosen})
    assert wrapped.size("out") == len(chosen) and adapter(layer).size("out") != len(chosen)
    assert wrapped.parameters == count_parameters(smaller)
    if wrapped.tied:  # What comes in goes out.
        x = x.index_select(adapter(layer).channel_dim(x), chosen)
    with torch.no_grad():
        actual, whole = smaller(x), layer(x) if not wrapped.tied else None
    # What stays passes on what it did, unless routing shares it out among the classes.
    if whole is not None and kind != "output capsules":
        dim = wrapped.channel_dim(whole)
        torch.testing.assert_close(actual, whole.index_select(dim, chosen))
    assert actual.shape[adapter(smaller).channel_dim(actual)] == len(chosen)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("kind", ["conv", "grouped", "linear", "output capsules"])
def test_selecting_inputs_is_silencing_the_rest(kind):
    layer, x = made(kind)
    # The same offsets in each group of the grouped one.
    chosen = torch.tensor([0, 2, 3, 5])
    smaller = copy.deepcopy(layer)
    adapter(smaller).select({"in": chosen})
    dim = 1
    silenced = torch.zeros_like(x).index_copy(dim, chosen, x.index_select(dim, chosen))
    with torch.no_grad():
        torch.testing.assert_close(smaller(x.index_select(dim, chosen)), layer(silenced))
    assert adapter(smaller).size("in") == 4 and adapter(layer).size("in") == 6


@pytest.mark.parametrize("kind", ["depthwise", "batch norm", "layer norm", "layer norm of images"])
def test_what_passes_channels_on_gives_what_it_gave_silenced(kind):
    layer, x = made(kind)
    dim = adapter(layer).channel_dim(x)
    keep = torch.tensor([1.0, 0, 1, 1, 0, 1])
    shape = [1] * x.dim()
    shape[dim] = 6
    chosen = keep.nonzero().flatten()
    smaller = copy.deepcopy(layer)
    adapter(smaller).select({"out": chosen})
    with torch.no_grad():
        silenced = adapter(layer).silence(x, layer(x), keep.reshape(shape))
        actual = smaller(x.index_select(dim, chosen))
    torch.testing.assert_close(actual, silenced.index_select(dim, chosen))
    rest = silenced.index_select(dim, torch.tensor([1, 4]))
    assert torch.equal(rest, torch.zeros_like(rest))


@settings(max_examples=25)
@given(
    kind=st.sampled_from(sorted(LAYERS)),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
)
def test_resizing_gives_the_shapes_of_selecting(kind, inputs, outputs):
    layer, _ = made(kind)
    wrapped = adapter(layer)
    sizes = {"in": inputs * wrapped.groups, "out": outputs * wrapped.groups}
    if wrapped.tied:
        sizes["in"] = sizes["out"]
    sizes = {axis: min(sizes[axis], wrapped.size(axis)) for axis in wrapped.axes}
    places = {  # the same offsets in each group
        axis: torch.arange(wrapped.size(axis))
        .reshape(wrapped.groups, -1)[:, : size // wrapped.groups]
        .flatten()
        for axis, size in sizes.items()
    }
    selected, resized = copy.deepcopy(layer), copy.deepcopy(layer)
    adapter(selected).select(places)
    adapter(resized).resize(sizes)
    shapes = [
        {key: tensor.shape for key, tensor in each.state_dict().items()}
        for each in (selected, resized)
    ]
    assert shapes[0] == shapes[1]
    assert adapter(resized).parameters == count_parameters(selected)
    assert {axis: adapter(resized).size(axis) for axis in wrapped.axes} == sizes
    assert [p.requires_grad for p in resized.parameters()] == [
        p.requires_grad for p in layer.parameters()
    ]


def test_sizes_that_no_layer_has_are_refused():
    grouped, depthwise = adapter(made("grouped")[0]), adapter(made("depthwise")[0])
    with pytest.raises(CheckpointError, match="3 inputs and 8 outputs, which its 2 groups"):
        grouped.resize({"in": 3, "out": 8})
    with pytest.raises(CheckpointError, match="2 inputs and 4 outputs"):
        depthwise.resize({"in": 2, "out": 4})
    with pytest.raises(CheckpointError, match="no channels"):
        grouped.resize({"in": 0, "out": 8})


def test_channels_last_and_frozen_stay():
    layer = made("conv")[0].to(memory_format=torch.channels_last).requires_grad_(False)
    adapter(layer).select({"out": torch.tensor([0, 1, 5]), "in": torch.tensor([1, 2])})
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert not layer.weight.is_contiguous() and not layer.weight.requires_grad
    assert layer.weight.shape == (3, 2, 3, 3) and layer.bias.shape == (3,)


def test_primary_capsules_are_counted_in_capsules():
    layer = DensePrimaryCaps(24, 2, d1=4)
    wrapped = adapter(layer)
    assert wrapped.size("out") == 6 and not wrapped.produces and wrapped.parameters == 0
    adapter(layer.conv).select({"out": torch.tensor([0, 1, 2, 3, 16, 17, 18, 19])})
    wrapped.select({"out": torch.tensor([0, 4])})
    assert layer(torch.randn(2, 24, 2, 2)).shape == (2, 2, 4)


def test_parameters_outside_of_layers_have_an_adapter():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.arange(5.0).reshape(1, 5, 1))

    model = nn.Sequential(nn.Conv2d(3, 5, 1), Scaled())
    layers = prunable_layers(model)
    assert list(layers) == ["0", "1.scale"]
    assert layers["1.scale"].size("out") == layers["1.scale"].parameters == 5
    layers["1.scale"].select({"out": torch.tensor([1, 3])})
    assert model[1].scale.flatten().tolist() == [1, 3]
    assert isinstance(model[1].scale, nn.Parameter)
    model[1].scale = nn.Parameter(torch.ones(5, 5))
    with pytest.raises(ModelError, match=r"'1.scale' of shape \[5, 5\] has not one value"):
        prunable_layers(model)["1.scale"].dims("scale", model[1].scale)


def test_what_has_no_adapter_has_none():
    assert adapter(nn.ReLU()) is None and adapter(nn.Sequential()) is None
    with pytest.raises(ModelError, match="Conv2d have an adapter already"):
        adapts(nn.Conv2d)(PassingLayer)


class Shift(nn.Module):
    """A kind of layer that capsprune does not know: one number, or two, for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.offsets = nn.Parameter(torch.rand(channels))
        self.slopes = nn.Parameter(torch.rand(channels) + 0.5)
        self.channels = channels

    def forward(self, x):
        assert x.shape[1] == self.channels
        return x * self.slopes[:, None, None] + self.offsets[:, None, None]


@adapts(Shift)
class ShiftAdapter(PassingLayer):
    def size(self, axis):
        return self.layer.channels

    def set_sizes(self, sizes):
        self.layer.channels = sizes["out"]


class Mix(nn.Module):
    """A kind that makes channels: a matrix applied at each position."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return torch.einsum("oi,bihw->bohw", self.weight, x)


@adapts(Mix)
class MixAdapter(PrunableLayer):
    produces = True

    def size(self, axis):
        return self.layer.weight.shape[1 if axis == "in" else 0]

    def set_sizes(self, sizes):
        pass

    @property
    def weights_per_pair(self):
        return 1


def test_layers_of_new_kinds_are_pruned_like_any():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 12, 3), Shift(12), nn.ReLU(), Mix(12, 8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    ).eval()
    dependencies = find_groups(model, classifier="7", image_size=8)
    assert dependencies.names == ("0", "3") and ("1", "out") in dependencies.owners
    cost = CostModel.build(model, dependencies, 8)
    kept = cost.channels // 2
    order = [torch.randperm(count) for count in dependencies.channels]
    smaller = prune_channels(model, dependencies, order, kept)
    assert smaller[1].channels == 6 and smaller[1].offsets.shape == (6,)
    assert cost.macs(kept) == sum(count_macs(smaller, 8).values())
    assert cost.parameters(kept) == count_parameters(smaller)
    masks = [torch.zeros(count, dtype=torch.bool) for count in dependencies.channels]
    for mask, ranking, count in zip(masks, order, kept, strict=True):
        mask[ranking[:count]] = True
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), masked(model, dependencies, masks):
        expected = model(images)
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), expected)
    fresh = copy.deepcopy(model)
    resize_layers(fresh, layer_channels(smaller))
    fresh.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh(images), expected)
