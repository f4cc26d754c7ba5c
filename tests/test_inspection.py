import pytest
import torch
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.errors import ModelError
from capsprune.inspection import inspect_model
from capsprune.options import InspectOptions


def counted(network, size):
    """Count by hooks the products of convolutions and linear layers, and the parameters."""
    macs = 0

    def count(layer, inputs, output):
        nonlocal macs
        macs += output[0].numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    return macs, sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet18"])
@pytest.mark.parametrize("size", [32, 64])
def test_figures_are_those_of_the_network_itself(name, size):
    options = InspectOptions(model=name, image_size=size, classes=7, d1=4, d2=6, iterations=2)
    result = inspect_model(options)
    model = build_backbone(name, 7, **backbone_arguments(name, size))
    assert result["backbone_macs"] == result["backbone_macs_unpruned"] == counted(model, size)[0]
    assert result["flops_ratio"] == 1.0
    trunk = trunk_of(name, model)
    channels, feature_size = trunk_output(trunk, size)
    network = CapsuleNetwork(
        trunk, channels=channels, feature_size=feature_size, classes=7, d1=4, d2=6, iterations=2
    )
    convolutions, parameters = counted(network, size)
    assert result["parameters"] == parameters
    assert result["bottleneck_channels"] == channels
    assert result["primary_capsules"] == channels // 4
    assert result["feature_size"] == feature_size
    # The trunk's passes in training, as the paper counts: its convolutions and PrimaryCaps'.
    assert result["training_flops"] == 3 * convolutions
    assert result["forward_macs"] == result["trunk_macs"] + result["head_macs"] > convolutions


def test_parts_add_up_to_the_network():
    options = InspectOptions(model="mobilenet_v1", image_size=32, classes=7, d2=6, iterations=2)
    result = inspect_model(options)
    parts = result["parts"]
    assert list(parts) == ["trunk", "primary_caps", "output_caps", "routing"]
    for key, total in (("macs", "forward_macs"), ("parameters", "parameters")):
        assert sum(part[key] for part in parts.values()) == result[total]
    capsules = result["primary_capsules"]
    assert parts["output_caps"]["macs"] == 7 * capsules * 8 * 6  # the votes
    assert parts["output_caps"]["parameters"] == 7 * capsules * 8 * 6 + 7 * 6
    assert parts["routing"] == {"macs": 3 * 7 * capsules * 6, "parameters": 0, "weight_bytes": 0}
    assert parts["primary_caps"]["weight_bytes"] == 4 * parts["primary_caps"]["parameters"]
    # Statistics of norms are stored too.
    assert parts["trunk"]["weight_bytes"] > 4 * parts["trunk"]["parameters"]


@pytest.mark.parametrize(
    ("given", "bottleneck"),
    [
        ({}, 512),
        ({"primary": "factored", "primary_rank": 3}, 512),
        ({"primary": "depthwise"}, 56),
        ({"primary": "pointwise", "types": 9}, 512),
    ],
)
def test_costs_with_fewer_capsules_are_those_of_the_pruned_network(given, bottleneck):
    options = {"model": "resnet18", "image_size": 32, "classes": 5, "iterations": 1, **given}
    whole, slim = (
        inspect_model(InspectOptions(**options, capsules=capsules)) for capsules in (None, 7)
    )
    assert (slim["primary_capsules"], slim["bottleneck_channels"]) == (7, bottleneck)
    assert slim["parameters"] < whole["parameters"]
    assert slim["parts"]["output_caps"]["parameters"] == 7 * 5 * 8 * 16 + 5 * 16
    if bottleneck == 512:
        assert slim["parts"]["trunk"] == whole["parts"]["trunk"]
    if "primary_rank" in given:
        # 3 filters that see all, and 8 numbers for each of 7 capsules from them.
        assert slim["parts"]["primary_caps"]["parameters"] == 3 * 512 + 3 + 7 * 8 * 4


@pytest.mark.parametrize(
    ("capsules", "given", "words"),
    [
        (65, {}, "1 to 64 primary capsules, not 65"),
        (97, {"model": "densenet121"}, "primary capsules, not 97"),
    ],
)
def test_capsules_that_cannot_remain_are_refused(capsules, given, words):
    options = {"model": "resnet18", "image_size": 32, "classes": 5, **given}
    if given:
        options |= {"primary": "depthwise", "d1": 16}
    with pytest.raises(ModelError, match=words):
        inspect_model(InspectOptions(**options, capsules=capsules))


def test_a_frozen_trunk_trains_for_less():
    finetuned, frozen = (
        inspect_model(InspectOptions(model="resnet18", image_size=32, classes=5, freeze=freeze))
        for freeze in (False, True)
    )
    assert frozen["training_flops"] * 3 == finetuned["training_flops"] * 2
    assert frozen["forward_macs"] == finetuned["forward_macs"]


def test_capsules_larger_than_the_trunk_are_refused():
    with pytest.raises(ModelError, match=r"512 channels.*--d1"):
        inspect_model(InspectOptions(model="resnet18", image_size=32, classes=5, d1=513))
