import importlib.util

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from safetensors.torch import save_file

from capsprune.backbones import timm_models
from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.backbones.weights import initialise
from capsprune.capsules import CapsuleNetwork
from capsprune.checkpoint import (
    Blueprint,
    DataDescription,
    describe,
    load_checkpoint,
    save_checkpoint,
)
from capsprune.data.preprocessing import IMAGENET_MEAN, Preprocessing
from capsprune.errors import CheckpointError, ModelError
from capsprune.export.onnx_file import write_onnx
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_parameters
from capsprune.pruning.groups import find_groups
from capsprune.pruning.masking import masked

SIZE, CLASSES = 32, 3
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)
QUICK = ["timm:test_resnet", "timm:mobilenetv3_small_100"]
SLOW = [
    "timm:resnet18",
    "timm:resnet26d",
    "timm:efficientnet_lite0",
    "timm:regnetx_002",
    "timm:mobilenetv2_050",
    "timm:densenet121",
    "timm:convnext_atto",
]


def built(name):
    torch.manual_seed(0)
    model = build_backbone(name, CLASSES, **backbone_arguments(name, SIZE)).eval()
    with torch.no_grad():  # channels that can be told apart
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape) * 0.4 + 0.5)
    return model


def shrunk_unevenly(model, name):
    dependencies = find_groups(model, classifier=backbone(name).classifier, image_size=SIZE)
    generator = np.random.default_rng(0)
    orders = [torch.from_numpy(generator.permutation(g.channels)) for g in dependencies.groups]
    rates = generator.uniform(0, 0.7, len(orders))
    kept = dependencies.channels - np.floor(rates * dependencies.channels).astype(np.int64)
    return dependencies, orders, kept, prune_channels(model, dependencies, orders, kept)


@needs_timm
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_network_of_timm_is_pruned_exactly(name):
    model, images = built(name), torch.randn(2, 3, SIZE, SIZE)
    dependencies, orders, kept, small = shrunk_unevenly(model, name)
    masks = [torch.zeros(len(order), dtype=torch.bool) for order in orders]
    for mask, order, count in zip(masks, orders, kept, strict=True):
        mask[order[:count]] = True
    with torch.no_grad():
        whole = model(images)
        with masked(model, dependencies, masks):
            expected = model(images)
        torch.testing.assert_close(small(images), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(expected, whole, rtol=1e-2)
    cost = CostModel.build(model, dependencies, SIZE)
    analysis = FlopCountAnalysis(small, torch.zeros(1, 3, SIZE, SIZE))
    counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert cost.macs(kept) == counts["conv"] + counts["linear"]
    assert cost.parameters(kept) == count_parameters(small)


@needs_timm
@pytest.mark.parametrize("name", QUICK)
def test_the_trunk_is_what_timm_calls_features(name):
    model, images = built(name), torch.randn(2, 3, SIZE, SIZE)
    trunk = trunk_of(name, model)
    assert torch.equal(trunk(images), model.forward_features(images))
    assert set(trunk.state_dict()) < set(model.state_dict())
    assert next(trunk.parameters()) is next(model.parameters())
    assert not trunk.training
    model.conv_of_another = torch.nn.Identity()  # the copy has its own list of children
    assert "conv_of_another" not in dict(trunk.named_children())


@needs_timm
@pytest.mark.parametrize("capsules", [False, True])
def test_a_pruned_network_of_timm_is_saved_and_exported(capsules, tmp_path):
    name, images = "timm:test_resnet", torch.randn(4, 3, SIZE, SIZE)
    *_, network = shrunk_unevenly(built(name), name)
    if capsules:
        trunk = trunk_of(name, network)
        channels, size = trunk_output(trunk, SIZE)
        network = CapsuleNetwork(trunk, channels=channels, feature_size=size, classes=CLASSES)
    network.eval()
    shown = backbone(name).preprocessing(SIZE)
    data = DataDescription(
        name="digits", class_names=("a", "b", "c"), image_size=SIZE, mean=shown.mean, std=shown.std
    )
    described = describe(network, Blueprint(name, {}, data), parent=None, metrics={})
    save_checkpoint(tmp_path / "saved", network, described)
    loaded = load_checkpoint(tmp_path / "saved")
    assert loaded.architecture.data.preprocessing.mean == (0.5, 0.5, 0.5)
    with torch.no_grad():
        expected, actual = network(images), loaded.network(images)
    if capsules:
        expected, actual = expected.class_probabilities, actual.class_probabilities
    torch.testing.assert_close(actual, expected)
    report = write_onnx(
        loaded.network,
        tmp_path / "model.onnx",
        image_size=SIZE,
        class_names=data.class_names,
        images=images,
        metadata={},
    )
    assert report.to_dict()["max_abs_difference"] < 1e-4


@needs_timm
def test_a_network_says_how_its_images_are_shown():
    assert backbone("timm:resnet18").preprocessing(48) == Preprocessing(48, interpolation="bicubic")
    assert backbone("timm:xception41").mean == (0.5, 0.5, 0.5) != IMAGENET_MEAN
    assert backbone("timm:hrnet_w18").preprocessing(48).interpolation == "bilinear"
    with pytest.raises(ModelError, match=r"too small for timm:inception_v3.*--image-size 96"):
        backbone_arguments("timm:inception_v3", 64)


@needs_timm
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:resnet18x", "Unknown model 'timm:resnet18x'; did you mean timm:resnet18 or"),
        ("timm:resnet18.a1", r"Unknown model 'timm:resnet18\.a1'; did you mean timm:resnet18\.a"),
        ("timm:hf_hub:some/one", "Unknown model 'timm:hf_hub:some/one'"),
        ("timm:vit_tiny_patch16_224", "cannot be used: it is a transformer"),
        ("timm:swin_tiny_patch4_window7_224", "cannot be used: it is a transformer"),
        ("timm:mixer_b16_224", "cannot be used: it makes no feature map"),
        ("timm:resnetblur50", r"its state dict lacks 'maxpool\.1\.filt'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(name, reason):
    for _ in range(2):
        with pytest.raises(ModelError, match=reason):
            backbone(name)


def test_without_timm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(timm_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs timm.*pip install 'capsprune\[timm\]'"):
        backbone("timm:lcnet_035")


@needs_timm
def test_weights_from_a_file(tmp_path):
    name = "timm:test_resnet"
    weights = built(name).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "own.pth")
    model = build_backbone(name, CLASSES)
    assert initialise(model, name, str(tmp_path / "own.pth")).startswith("weights from")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    foreign = build_backbone("timm:mobilenetv3_small_100", 2).state_dict()
    torch.save(foreign, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"so it is no timm:test_resnet; give the file's own"):
        initialise(model, name, str(tmp_path / "foreign.pth"))
    torchvisions = build_backbone("mobilenet_v2", 2)
    with pytest.raises(CheckpointError, match=r"timm's networks.*or give --model timm:NAME"):
        initialise(torchvisions, "mobilenet_v2", str(tmp_path / "foreign.pth"))


@needs_timm
def test_pretrained_weights_come_from_timm_s_hub(monkeypatch, tmp_path):
    import huggingface_hub

    name = "timm:test_resnet"
    published = build_backbone(name, 1000).state_dict()
    file = tmp_path / "model.safetensors"
    asked = []

    def offline(repository, filename, local_files_only=False):
        asked.append((repository, filename))
        assert local_files_only  # it is not tried again where there is no network
        raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")

    def unreachable(url):
        raise OSError("no route to host")

    def cached(repository, filename, local_files_only=False):
        return str(file)

    save_file(published, file)
    model = build_backbone(name, CLASSES)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    said = initialise(model, name, "auto")
    assert said.startswith("from scratch") and "no route to host" in said
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    with pytest.raises(ModelError, match=r"neither cached nor within reach .*--weights none"):
        initialise(model, name, "imagenet")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    said = initialise(model, name, "imagenet")
    assert said.startswith("timm's ImageNet weights, classifier drawn anew")
    assert torch.equal(model.conv1[0].weight, published["conv1.0.weight"])
