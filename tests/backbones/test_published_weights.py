"""Weights under the names that torchvision's published files have."""

import re

import pytest
import torch
import torchvision

from capsprune.backbones.matching import find_weights
from capsprune.backbones.registry import build_backbone
from capsprune.backbones.weights import initialise, read_weights

CLASSES = 5


def old_densenet_name(key):
    """The name that torchvision's published file has: norm.1 where the module is norm1."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key)


PUBLISHED = {
    "densenet121": old_densenet_name,
    "densenet161": old_densenet_name,
    "densenet169": old_densenet_name,
    "densenet201": old_densenet_name,
    **dict.fromkeys(
        (
            "alexnet",
            "convnext_tiny",
            "efficientnet_b0",
            "mnasnet0_5",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "regnet_x_400mf",
            "regnet_y_400mf",
            "resnet18",
            "resnext50_32x4d",
            "shufflenet_v2_x0_5",
            "squeezenet1_1",
            "vgg11_bn",
            "wide_resnet50_2",
        ),
        str,
    ),
}


#: Large ones.
SLOW = {"densenet161", "densenet169", "densenet201", "vgg11_bn", "wide_resnet50_2"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in PUBLISHED],
)
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_published_weights_of_every_family_load_from_the_cache_and_from_a_file(
    name, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.device("meta"):
        published, model = build_backbone(name, 1000), build_backbone(name, CLASSES)
    # Old files have no counters.
    state = {
        PUBLISHED[name](key): torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in published.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    file = folder / url.rsplit("/", 1)[-1]
    torch.save(state, file)
    told = "classifier drawn anew (5 classes), as the file has 1000"
    assert initialise(model, name, "auto") == f"torchvision's ImageNet weights, {told}"
    found = read_weights(file, published, name)
    assert len(found.tensors) == len(state) and found.has_classifier and not found.notes


def test_old_densenet_names_load_the_same_numbers():
    torch.manual_seed(0)
    published = build_backbone("densenet121", CLASSES).state_dict()
    old = {old_densenet_name(key): value for key, value in published.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    with torch.device("meta"):
        model = build_backbone("densenet121", CLASSES)
    found = find_weights(old, model, "densenet121", "w.pth").tensors
    assert found.keys() == published.keys()
    assert all(torch.equal(value, published[key]) for key, value in found.items())
