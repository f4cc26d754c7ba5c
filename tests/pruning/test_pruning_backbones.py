"""Every kind of backbone: groups, pruning against masking, costs against fvcore, checkpoints."""

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.stem import blank_images, image_channels
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.checkpoint import (
    Blueprint,
    DataDescription,
    describe,
    load_checkpoint,
    save_checkpoint,
)
from capsprune.errors import ModelError
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.channels import layer_channels, prune_channels
from capsprune.pruning.cost import CostModel, count_parameters
from capsprune.pruning.groups import find_groups
from capsprune.pruning.layers import ChannelParameter, prunable_layers
from capsprune.pruning.masking import masked
from capsprune.pruning.rebuild import rebuild

SIZE = 64
CLASSES = 5

QUICK = [
    "resnet18",
    "resnet34",
    "resnext50_32x4d",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "convnext_tiny",
    "squeezenet1_1",
    "mnasnet0_5",
    "capsnet",
]
SLOW = [
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "vgg11_bn",
    "vgg16_bn",
    "densenet121",
]
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def distinct(model):
    """Set norms, biases and layer scales to values that tell their channels apart."""
    generator = torch.Generator().manual_seed(5)
    layers = prunable_layers(model)
    scales = {name for name, layer in layers.items() if isinstance(layer, ChannelParameter)}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and (tensor.dim() == 1 or name in scales):
                positive = name.endswith(("weight", "running_var", "layer_scale"))
                values = torch.rand(tensor.shape, generator=generator) * 0.4
                tensor.copy_(values + (0.5 if positive else -0.2))
    return model.eval()


def made(name):
    torch.manual_seed(0)
    model = distinct(build_backbone(name, CLASSES, **backbone_arguments(name, SIZE)))
    dependencies = find_groups(model, classifier=backbone(name).classifier, image_size=SIZE)
    return model, dependencies


def drawn(dependencies, seed, most=0.7):
    """A random strategy: for each group the order of its units, and how many of them stay."""
    random = np.random.default_rng(seed)
    orders = [torch.from_numpy(random.permutation(g.channels)) for g in dependencies.groups]
    rates = random.uniform(0, most, len(dependencies.groups))
    kept = dependencies.channels - np.floor(rates * dependencies.channels).astype(np.int64)
    return orders, kept


def masks_of(orders, kept):
    masks = []
    for order, count in zip(orders, kept, strict=True):
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[: int(count)]] = True
        masks.append(mask)
    return masks


def difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


def check_costs(model, cost, kept):
    analysis = FlopCountAnalysis(model, blank_images(model, SIZE))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    assert cost.macs(kept) == counts["conv"] + counts["linear"]
    assert cost.parameters(kept) == count_parameters(model)


@pytest.mark.parametrize("name", ALL)
def test_a_pruned_network_is_the_masked_one(name, tmp_path):
    model, dependencies = made(name)
    cost = CostModel.build(model, dependencies, SIZE)
    shape = (2, image_channels(model), SIZE, SIZE)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        unpruned = model(images)
    orders, kept = drawn(dependencies, 0)
    pruned = prune_channels(model, dependencies, orders, kept)
    with torch.no_grad():
        with masked(model, dependencies, masks_of(orders, kept)):
            expected = model(images)
        assert difference(pruned(images), expected) < 1e-4
        # The comparison can fail: other channels of the same numbers give another output.
        others = prune_channels(model, dependencies, [o.flip(0) for o in orders], kept)
        assert difference(others(images), expected) > 1e-2
        assert difference(expected, unpruned) > 1e-2
        assert torch.equal(model(images), unpruned)  # masking leaves nothing behind
    check_costs(pruned, cost, kept)
    check_trunk(name, model, images)
    check_saving(name, pruned, images, tmp_path)
    check_rebuilding(name, dependencies, pruned, kept, images)


def check_trunk(name, model, images):
    """What is pooled before the classifier is what the trunk gives."""
    trunk = trunk_of(name, model)
    channels, size = trunk_output(trunk, SIZE)
    assert not model.training and not any(module.training for module in model.modules())
    with torch.no_grad():
        features = trunk(images)
        assert features.shape == (2, channels, size, size)
        if hasattr(model, "avgpool"):
            seen = []
            hook = model.avgpool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            model(images)
            hook.remove()
            torch.testing.assert_close(features, seen[0])
        else:  # pooled by a function
            classifier = model.get_submodule(backbone(name).classifier)
            pooled = features.mean((2, 3))
            if isinstance(classifier, nn.Linear):
                torch.testing.assert_close(classifier(pooled), model(images))


def check_saving(name, pruned, images, tmp_path):
    data = DataDescription(
        name="digits",
        class_names=tuple(map(str, range(CLASSES))),
        image_size=SIZE,
        mean=backbone(name).mean,
        std=backbone(name).std,
    )
    description = describe(
        pruned,
        Blueprint(name, backbone_arguments(name, SIZE), data),
        parent=None,
        metrics={},
    )
    save_checkpoint(tmp_path / "saved", pruned, description)
    loaded = load_checkpoint(tmp_path / "saved").network
    assert layer_channels(loaded) == layer_channels(pruned)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), pruned(images))


def check_rebuilding(name, dependencies, pruned, kept, images):
    fresh = build_backbone(name, CLASSES, **backbone_arguments(name, SIZE)).eval()
    found = rebuild(fresh, dependencies, pruned.state_dict(), name=name, source="a file")
    assert found.tolist() == kept.tolist()
    with torch.no_grad():
        torch.testing.assert_close(fresh(images), pruned(images))


def test_units_of_a_grouped_convolution_are_columns_of_it():
    _, dependencies = made("resnext50_32x4d")
    index = dependencies.names.index("layer1.0.conv1")
    group = dependencies.groups[index]
    assert (group.channels, group.width) == (4, 32)
    for key in (("layer1.0.conv1", "out"), ("layer1.0.bn1", "out"), ("layer1.0.conv2", "in")):
        owners = dependencies.owners[key]
        assert (owners.group == index).all()
        assert owners.channel.tolist() == [position % 4 for position in range(128)]
    orders, kept = drawn(dependencies, 0)
    kept[index] = 3
    model, _ = made("resnext50_32x4d")
    conv = prune_channels(model, dependencies, orders, kept).layer1[0].conv2
    assert conv.groups == 32 and conv.in_channels == 96 and conv.weight.shape[1] == 3


def test_what_is_shuffled_stays_and_the_reason_is_kept():
    model, dependencies = made("shufflenet_v2_x1_0")
    assert "stage2.0.branch2.5" in dependencies.unprunable
    assert all("shuffled" in reason for reason in dependencies.unprunable.values())
    assert {"conv1.0", "stage2.0.branch2.0", "stage4.3.branch2.0", "conv5.0"} <= set(
        dependencies.names
    )
    # Tracing leaves no barrier behind.
    assert not any("barrier" in name for name, _ in model.named_modules())
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_layer_scale_belongs_to_its_channels():
    model, dependencies = made("convnext_tiny")
    owners = dependencies.owners["features.1.0.layer_scale", "out"]
    assert dependencies.names[owners.group[0]] == "features.0.0"
    orders, kept = drawn(dependencies, 2)
    pruned = prune_channels(model, dependencies, orders, kept)
    scale = pruned.features[1][0].layer_scale
    assert scale.shape == (kept[owners.group[0]], 1, 1)
    assert pruned.features[1][0].block[2].normalized_shape == (kept[owners.group[0]],)


def test_without_batch_norms_there_is_nothing_to_recalibrate():
    model, _ = made("convnext_tiny")
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def forbidden():
        raise AssertionError("a batch was drawn")
        yield

    recalibrate(model.train(), forbidden())
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Joined(nn.Module):
    """A concatenation of two convolutions' channels, added to those of a third."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.whole = nn.Conv2d(3, 10, 1)
        self.behind = nn.Conv2d(10, 8, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = torch.cat((self.left(x), self.right(x)), 1) + self.whole(x)
        return self.fc(self.behind(x).mean((2, 3)))


def test_groups_of_a_joined_network_give_what_masking_gives():
    torch.manual_seed(0)
    model = Joined().eval()
    dependencies = find_groups(model, classifier="fc", image_size=8)
    images = torch.randn(2, 3, 8, 8)
    for seed in range(3):
        orders, kept = drawn(dependencies, seed)
        pruned = prune_channels(model, dependencies, orders, kept)
        with torch.no_grad(), masked(model, dependencies, masks_of(orders, kept)):
            expected = model(images)
        torch.testing.assert_close(pruned(images), expected)


class PositionalNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.position = nn.Parameter(torch.zeros(1, 8, 4, 4))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc((self.conv(x) + self.position).mean((2, 3)))


def test_a_parameter_of_several_dimensions_is_refused_by_name():
    with pytest.raises(ModelError, match=r"'position'.*\[1, 8, 4, 4\]"):
        find_groups(PositionalNet(), classifier="fc", image_size=4)
