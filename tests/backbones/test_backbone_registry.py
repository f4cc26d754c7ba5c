import pytest
import torch
import torchvision
from torch import nn

from capsprune.backbones.registry import (
    BACKBONES,
    backbone,
    backbone_arguments,
    build_backbone,
)
from capsprune.backbones.stem import blank_images, image_channels
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.errors import ModelError

CHANNELS = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "mobilenet_v1": 1024,
    "mobilenet_v2": 1280,
    "vgg16_bn": 512,
}


def test_torchvision_s_classification_networks_are_known_or_refused_with_a_reason():
    refused = set()
    for name in torchvision.models.list_models(module=torchvision.models):
        if name not in BACKBONES:
            with pytest.raises(ModelError, match=rf"^{name} cannot be used: it .*; choose"):
                backbone(name)
            refused.add(name.split("_")[0])
    assert refused == {"vit", "swin", "maxvit", "googlenet", "inception"}
    assert set(CHANNELS) < set(BACKBONES)
    assert set(BACKBONES) - {"mobilenet_v1", "capsnet"} < set(torchvision.models.list_models())


@pytest.mark.parametrize("name", BACKBONES)
def test_the_smallest_image_leaves_a_feature_map(name):
    if name == "regnet_y_128gf":
        pytest.skip("its 640 million weights are drawn before they can be dropped")
    least = backbone(name).smallest_image
    with torch.device("meta"):  # shapes alone
        model = build_backbone(name, 3, **backbone_arguments(name, least))
        trunk = trunk_of(name, model.eval())
        channels, size = trunk_output(trunk, least)
        assert channels >= 8 and size >= 1
        assert image_channels(model) == backbone(name).preprocessing(least).channels
        assert model(blank_images(model, least, 2)).shape == (2, 3)
    assert isinstance(model.get_submodule(backbone(name).classifier), nn.Linear | nn.Conv2d)


@pytest.mark.parametrize("name", sorted(CHANNELS))
@pytest.mark.parametrize("size", [32, 48, 64, 96])
def test_trunk_output(name, size):
    with torch.device("meta"):  # shapes alone
        model = build_backbone(name, 7, **backbone_arguments(name, size))
        channels, feature_size = trunk_output(trunk_of(name, model), size)
        assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert channels == CHANNELS[name]
    stride = 16 if name == "mobilenet_v1" and size < 64 else 32
    # VGG's poolings leave a part of a position out; the others' padded strides keep it.
    assert feature_size == (size // stride if name == "vgg16_bn" else -(-size // stride))
    assert model.get_submodule(backbone(name).classifier).out_features == 7


HEADS = {
    "resnet18": lambda model, x: model.fc(x.mean((2, 3))),
    "mobilenet_v1": lambda model, x: model.linear(x.mean((2, 3))),
    "mobilenet_v2": lambda model, x: model.classifier(x.mean((2, 3))),
}


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_trunk_is_the_backbone_without_pooling_and_classifier(name):
    torch.manual_seed(0)
    model = build_backbone(name, 5, **backbone_arguments(name, 64)).eval()
    images = torch.randn(2, 3, 64, 64)
    trunk = trunk_of(name, model)
    torch.testing.assert_close(HEADS[name](model, trunk(images)), model(images))
    assert set(trunk.state_dict()) < set(model.state_dict())
    assert next(trunk.parameters()) is next(model.parameters())


def test_trunk_output_leaves_mode_and_statistics():
    model = build_backbone("mobilenet_v1", 5, stem_stride=1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trunk = trunk_of("mobilenet_v1", model)
    assert trunk_output(trunk, 32) == (1024, 2)
    assert all(module.training for module in trunk.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "least"),
    [
        ("resnet50", 31, 32),
        ("vgg16_bn", 16, 32),
        ("mobilenet_v2", 1, 32),
        ("mobilenet_v1", 15, 16),
    ],
)
def test_an_image_too_small_is_refused_with_the_least_size(name, size, least):
    with pytest.raises(ModelError, match=rf"image size of {size} .*--image-size {least} or more"):
        backbone_arguments(name, size)
    backbone_arguments(name, least)


def test_an_image_of_which_the_trunk_leaves_nothing():
    with torch.device("meta"):
        trunk = trunk_of("vgg16_bn", build_backbone("vgg16_bn", 2))
        with pytest.raises(ModelError, match="16 is too small"):
            trunk_output(trunk, 16)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("resnet05", "resnet50"), ("ResNet18", "resnet18"), ("mobilenetv1", "mobilenet_v1")],
)
def test_an_unknown_name_gives_the_nearest(given, nearest):
    for refuse in (backbone, lambda name: build_backbone(name, 10)):
        with pytest.raises(ModelError, match=f"'{given}'; did you mean .*{nearest}"):
            refuse(given)


def test_a_name_like_no_other_gives_all():
    with pytest.raises(ModelError) as error:
        backbone("zzz")
    assert all(name in str(error.value) for name in BACKBONES)


def published_names():
    """Names in the state dicts that EagleEye's authors published for MobileNetV1."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{key}" for key in norm}
    for layer in range(13):
        for part in (1, 2):
            names.add(f"layers.{layer}.conv{part}.weight")
            names |= {f"layers.{layer}.bn{part}.{key}" for key in norm}
    return names


def test_mobilenet_v1_is_the_published_one():
    model = build_backbone("mobilenet_v1", 1000)
    assert set(model.state_dict()) == published_names()
    assert sum(p.numel() for p in model.parameters()) == 4_231_976
    strides = [block.conv1.stride[0] for block in model.layers]
    assert strides == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert [block.conv2.out_channels for block in model.layers] == [
        *(64, 128, 128, 256, 256),
        *[512] * 6,
        *(1024, 1024),
    ]
    assert all(block.conv1.groups == block.conv1.in_channels for block in model.layers)


def test_mobilenet_v1_forward_is_conv_norm_relu():
    torch.manual_seed(0)
    block = build_backbone("mobilenet_v1", 3).layers[1].eval()
    x = torch.randn(2, 64, 8, 8)
    by_hand = nn.functional.relu(block.bn1(block.conv1(x)))
    by_hand = nn.functional.relu(block.bn2(block.conv2(by_hand)))
    torch.testing.assert_close(block(x), by_hand)
    assert block(x).shape == (2, 128, 4, 4)


def test_the_stem_keeps_the_resolution_of_small_images():
    assert backbone_arguments("mobilenet_v1", 63) == {"stem_stride": 1}
    assert backbone_arguments("mobilenet_v1", 64) == {"stem_stride": 2}
    assert backbone_arguments("resnet18", 32) == {}
