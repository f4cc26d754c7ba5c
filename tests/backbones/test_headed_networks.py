import pytest
import torch
from torch import nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.linear_head import LinearNetwork

#: One of each family, those with a classifier of several layers among them.
FAMILIES = """mobilenet_v1 mobilenet_v2 mobilenet_v3_small resnet18 vgg11_bn densenet121
    efficientnet_b0 regnet_y_400mf shufflenet_v2_x0_5 mnasnet0_5 convnext_tiny squeezenet1_1
    alexnet"""


def linear_network(name, classes=5):
    model = build_backbone(name, classes, **backbone_arguments(name, 64))
    trunk = trunk_of(name, model)
    return LinearNetwork(trunk, channels=trunk_output(trunk, 64)[0], classes=classes)


@pytest.mark.parametrize("name", FAMILIES.split())
def test_the_linear_baseline_is_one_layer_on_the_pooled_trunk_of_every_backbone(name):
    with torch.device("meta"):
        network = linear_network(name)
        channels, _ = trunk_output(network.trunk, 64)
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    own = dict(network.named_parameters())
    head = {key: tuple(value.shape) for key, value in own.items() if not key.startswith("trunk.")}
    assert head == {"classifier.weight": (5, channels), "classifier.bias": (5,)}


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "densenet121"])
def test_it_is_the_classifier_of_a_backbone_that_has_one_layer(name):
    torch.manual_seed(0)
    model = build_backbone(name, 5, **backbone_arguments(name, 32)).eval()
    trunk = trunk_of(name, model)
    network = LinearNetwork(trunk, channels=trunk_output(trunk, 32)[0], classes=5).eval()
    own = model.get_submodule(backbone(name).classifier)
    network.classifier.load_state_dict(own.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images))


def test_a_frozen_trunk_stays_bit_for_bit_while_the_layer_learns():
    torch.manual_seed(0)
    network = linear_network("mobilenet_v1")
    network.freeze_trunk()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    nn.functional.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not value.equal(before[key])}
    assert changed == {"classifier.weight", "classifier.bias"}
