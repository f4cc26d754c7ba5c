"""Networks that Torch-Pruning pruned come in from their state dicts and compute the same."""

import pytest
import torch
import torch_pruning

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.weights import read_weights
from capsprune.pruning.groups import find_groups
from capsprune.pruning.rebuild import rebuild

CLASSES = 5
FAST = ("mobilenet_v1", "mobilenet_v2", "resnet18", "mnasnet0_5")
OTHERS = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet50",
    "resnext50_32x4d",
    "squeezenet1_1",
    "vgg11_bn",
)


def pruned_elsewhere(name, size):
    torch.manual_seed(0)
    model = build_backbone(name, CLASSES, **backbone_arguments(name, size)).eval()
    images = torch.zeros(1, 3, size, size)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        images,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.3,
        round_to=None,
        ignored_layers=[model.get_submodule(backbone(name).classifier)],
    )
    pruner.step()
    return model


def imported(name, size, file):
    model = build_backbone(name, CLASSES, **backbone_arguments(name, size)).eval()
    found = read_weights(file, model, name)
    dependencies = find_groups(model, classifier=backbone(name).classifier, image_size=size)
    kept = rebuild(model, dependencies, found.tensors, name=name, source=str(file))
    return model, found, kept, dependencies


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_what_torch_pruning_pruned_computes_the_same(name, tmp_path):
    size = max(32, backbone(name).smallest_image)
    model = pruned_elsewhere(name, size)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "pruned.pth")
    network, found, kept, dependencies = imported(name, size, tmp_path / "pruned.pth")
    assert found.has_classifier and not found.notes
    assert sum(kept) < sum(group.channels for group in dependencies.groups)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images))


@pytest.mark.parametrize(
    ("name", "head"), [("mobilenet_v1", "linear."), ("mobilenet_v3_small", "classifier.")]
)
def test_layers_behind_the_trunk_that_a_file_lacks_are_drawn_anew(name, head, tmp_path):
    state = pruned_elsewhere(name, 32).state_dict()
    trunk = {key: value for key, value in state.items() if not key.startswith(head)}
    torch.save(trunk, tmp_path / "trunk.pth")
    network, found, *_ = imported(name, 32, tmp_path / "trunk.pth")
    assert not found.has_classifier
    own = network.state_dict()
    for key, value in own.items():
        if key.startswith(head):
            assert torch.isfinite(value).all() and (value.dim() == 1 or value.std() > 0)
        elif not key.endswith("num_batches_tracked"):
            assert torch.equal(value, trunk[key])
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, CLASSES)
