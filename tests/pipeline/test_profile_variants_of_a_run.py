import pytest
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.checkpoint import Blueprint, Checkpoint, DataDescription, describe
from capsprune.inspection import checkpoint_costs
from capsprune.pipeline.profile import with_one_linear_layer

DATA = DataDescription(
    name="digits",
    class_names=("a", "b", "c"),
    image_size=64,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def unpruned(name):
    arguments = backbone_arguments(name, 64)
    model = build_backbone(name, 3, **arguments).eval()
    metrics = {"accuracy": 0.9}
    return Checkpoint(
        model,
        describe(model, Blueprint(name, arguments, DATA), parent=None, metrics=metrics),
    )


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet18", "squeezenet1_1"])
def test_a_backbone_with_one_linear_layer_is_profiled_as_it_is(name):
    checkpoint = unpruned(name)
    said = []
    assert with_one_linear_layer(checkpoint, said.append) is checkpoint
    assert said == []


def test_a_classifier_of_several_layers_gives_way_to_one():
    checkpoint = unpruned("mobilenet_v3_small")
    said = []
    linear = with_one_linear_layer(checkpoint, said.append)
    costs = checkpoint_costs(linear)
    channels = linear.network.classifier.in_features
    assert isinstance(linear.network.classifier, nn.Linear)
    assert costs["forward_macs"] - costs["trunk_macs"] == 3 * channels
    assert costs["trunk_macs"] == checkpoint_costs(checkpoint)["trunk_macs"]
    # It is untrained, so that it has no accuracy.
    assert linear.architecture.metrics == {}
    assert linear.architecture.parent == checkpoint.architecture.id
    assert "2 layers" in said[0]
