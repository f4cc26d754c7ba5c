"""Weights that people have, under the names and in the forms in which they have them."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from capsprune.backbones.matching import find_weights
from capsprune.backbones.registry import build_backbone
from capsprune.backbones.weights import initialise
from capsprune.errors import CheckpointError, ModelError

NAME, CLASSES = "shufflenet_v2_x0_5", 5


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return build_backbone(NAME, CLASSES).state_dict()


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):  # its names and shapes are enough
        return build_backbone(NAME, CLASSES)


@pytest.fixture(scope="module")
def average(state):
    """What a moving average might be: the same names, other numbers."""
    return {key: value * 2 for key, value in state.items()}


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def same(found, state):
    return found.keys() == state.keys() and all(
        torch.equal(value.float(), state[key].float()) for key, value in found.items()
    )


def without(state, *beginnings):
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


LOSS = {"loss.weight": torch.ones(3), "loss.centre": torch.ones(2)}
FORMS = {
    "plain": (lambda state: state, ()),
    "double": (lambda state: {key: value.double() for key, value in state.items()}, ()),
    "channels-last": (
        lambda state: {
            key: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
            for key, value in state.items()
        },
        (),
    ),
    "parameters": (lambda state: {k: nn.Parameter(v, False) for k, v in state.items()}, ()),
    "nested": (lambda state: {"checkpoint": {"model": under("module.", state)}, "epoch": 3}, ()),
    "backbone": (lambda state: under("backbone.", state), ("found under 'backbone.'",)),
    "model": (lambda state: under("model.", state), ("found under 'model.'",)),
    "compiled inside": (lambda state: under("model._orig_mod.", state), ("found under 'model.'",)),
    "lightning": (
        lambda state: {
            "state_dict": {**under("model.", state), **LOSS},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
            "hyper_parameters": {"lr": 0.1},
        },
        ("found under 'model.'", "without 'loss.centre' and 1 more"),
    ),
    "optimizer beside": (
        lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        (),
    ),
    "registered twice": (
        lambda state: {**under("net.", state), **under("loss.net.", state)},
        ("found under 'net.'", "without"),
    ),
    "ema": (
        lambda state: {"ema": state, "epoch": 3},
        ("the moving average of the weights ('ema')",),
    ),
    "state_dict_ema": (
        lambda state: {"state_dict_ema": under("module.", state)},
        ("the moving average of the weights ('state_dict_ema')",),
    ),
    "model_ema": (
        lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **under("module.", state)}},
        ("the moving average of the weights ('model_ema')",),
    ),
    "averaged model": (
        lambda state: {"n_averaged": torch.tensor(3), **under("module.", state)},
        ("the moving average of the weights",),
    ),
    "children in a sequence": (
        lambda state: nn.Sequential(*loaded(state).children()).state_dict(),
        (),
    ),
}


def loaded(state):
    network = build_backbone(NAME, CLASSES)
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_the_forms_that_people_have(model, state, form):
    change, told = FORMS[form]
    found = find_weights(change(state), model, NAME, "w.pth")
    assert same(found.tensors, state) and found.has_classifier
    assert len(found.notes) == len(told)
    for note, words in zip(found.notes, told, strict=True):
        assert words in note


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_less_precision_load(model, state, kind):
    lower = {k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}
    assert same(find_weights(lower, model, NAME, "w.pth").tensors, lower)


BOTH = {
    "timm": lambda state, average: {"state_dict": state, "state_dict_ema": average},
    "torchvision": lambda state, average: {
        "model": state,
        "model_ema": {"n_averaged": torch.tensor(1), **under("module.", average)},
    },
    "one dictionary": lambda state, average: {
        "state_dict": {**under("net.", state), **under("ema_net.module.", average)}
    },
}


@pytest.mark.parametrize("layout", BOTH)
def test_the_option_chooses_between_weights_and_their_moving_average(model, state, average, layout):
    content = BOTH[layout](state, average)
    found = find_weights(content, model, NAME, "w.pth")
    assert same(found.tensors, state)
    assert re.match(
        r"the weights as trained, not their moving average \('.*ema.*'\)", found.notes[0]
    )
    found = find_weights(content, model, NAME, "w.pth", average=True)
    assert same(found.tensors, average)
    assert re.match(r"the moving average of the weights \('.*ema.*'\), as asked", found.notes[0])


def test_a_moving_average_that_is_not_there_is_not_made_up(model, state):
    with pytest.raises(CheckpointError, match=r"no moving average.*leave --ema out"):
        find_weights({"state_dict": state}, model, NAME, "w.pth", average=True)
    for weights in ("auto", "imagenet", "none"):
        with pytest.raises(ModelError, match="--ema is for a file"):
            initialise(model, NAME, weights, average=True)


def test_of_several_weights_the_usual_ones_are_taken_or_none(model, state, average):
    found = find_weights({"state_dict": state, "best": average}, model, NAME, "w.pth")
    assert same(found.tensors, state)
    assert found.notes == ("those of 'state_dict', not of 'best'",)
    for content in (
        {**under("student.", state), **under("teacher.", average)},
        {"model": state, "net": average},
    ):
        with pytest.raises(CheckpointError, match=r"more than once, under '.*' and '.*'; save"):
            find_weights(content, model, NAME, "w.pth")


HEADS = {
    "none": (lambda state: without(state, "fc."), "as the file has none"),
    "no bias": (lambda state: without(state, "fc.bias"), "as the file has no bias for it"),
    "a sequence": (
        lambda state: {
            **without(state, "fc."),
            "fc.0.weight": torch.ones(8, 1024),
            "fc.2.weight": torch.ones(CLASSES, 8),
        },
        "as the file has other layers there",
    ),
    "other classes": (
        lambda state: {**state, "fc.weight": torch.ones(9, 1024), "fc.bias": torch.ones(9)},
        "as the file has 9",
    ),
    "elsewhere": (
        lambda state: {**under("backbone.", without(state, "fc.")), "head.weight": torch.ones(3)},
        "as the file has none",
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_that_does_not_fit_is_drawn_anew_and_said(model, state, head):
    change, told = HEADS[head]
    found = find_weights(change(state), model, NAME, "w.pth")
    assert same(found.tensors, without(state, "fc.")) and not found.has_classifier
    assert found.notes[-1] == f"classifier drawn anew (5 classes), {told}"


@pytest.mark.parametrize(
    "name", ["alexnet", "mobilenet_v3_small", "convnext_tiny", "squeezenet1_1"]
)
def test_a_trunk_saved_alone_loads_into_networks_whose_trunk_is_one_part(name):
    with torch.device("meta"):
        model = build_backbone(name, CLASSES)
    state = zeros(model)
    trunk = {key: value for key, value in state.items() if key.startswith("features.")}
    alone = {key.removeprefix("features."): value for key, value in trunk.items()}
    assert same(find_weights(alone, model, name, "w.pth").tensors, trunk)
    assert same(find_weights(trunk, model, name, "w.pth").tensors, trunk)


def test_several_layers_behind_the_trunk_are_taken_or_left_together():
    with torch.device("meta"):
        model = build_backbone("vgg11", CLASSES)
    state = zeros(model)
    other = {**state, "classifier.6.weight": torch.zeros(1).expand(1000, 4096)}
    found = find_weights(other, model, "vgg11", "w.pth").tensors
    assert state.keys() - found.keys() == {"classifier.6.weight", "classifier.6.bias"}
    short = {**without(state, "classifier."), "classifier.weight": torch.zeros(CLASSES, 512)}
    found = find_weights(short, model, "vgg11", "w.pth").tensors
    assert all(key.startswith("features.") for key in found)


def zeros(model):
    """A state dict of this shape that takes no room in memory or in a file."""
    return {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in model.state_dict().items()
    }


def resnet():
    with torch.device("meta"):
        return build_backbone("resnet18", CLASSES)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((64, 1, 7, 7), r"'conv1\.weight'\) is for images of 1 channel \(grey images\), where"),
        ((64, 4, 7, 7), "is for images of 4 channels, where resnet18 takes 3"),
        ((64, 3, 3, 3), "is 3 x 3, as in networks for small images such as CIFAR.* has 7 x 7"),
    ],
)
def test_a_first_convolution_for_other_images_is_named_as_the_cause(shape, said):
    model = resnet()
    state = {**zeros(model), "conv1.weight": torch.zeros(shape)}
    for content in (state, under("model.", state), without(state, "layer2.0.downsample")):
        with pytest.raises(CheckpointError, match=said):
            find_weights(content, model, "resnet18", "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(model, state, value):
    state = {key: tensor.double() for key, tensor in state.items()}
    state["conv1.0.weight"][3, 0, 0, 0] = value
    with pytest.raises(CheckpointError, match=r"not finite .* in 'conv1\.0\.weight'; give"):
        find_weights(state, model, NAME, "w.pth")
    for key in state:
        state[key] = torch.full_like(state[key], value)
    with pytest.raises(CheckpointError, match=r"in '\S+', '\S+', '\S+' and \d+ more"):
        find_weights(state, model, NAME, "w.pth")


KINDS = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "without values": lambda tensor: tensor.to("meta"),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "of int64": lambda tensor: tensor.long(),
    "of bool": lambda tensor: tensor.bool(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused_by_name(model, state, tmp_path, kind):
    content = {**state, "conv1.0.weight": KINDS[kind](state["conv1.0.weight"])}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"'conv1\.0\.weight' of .*w\.pth is {kind}"):
        initialise(model, NAME, str(tmp_path / "w.pth"))


def test_a_tensor_that_claims_more_than_there_is_memory_for_is_refused(model, state):
    huge = torch.ones(1).expand(2**50)
    for key in ("conv1.0.weight", "conv1.1.bias"):
        content = {**state, key: huge}
        with pytest.raises(CheckpointError, match=re.escape(f"'{key}' of w.pth is [")):
            find_and_load(content, copy.deepcopy(model))


def find_and_load(content, model):
    from capsprune.backbones.weights import _load

    _load(model, NAME, find_weights(content, model, NAME, "w.pth"), "w.pth")


def test_pruning_masks_are_applied_and_told(model, state):
    network = loaded(state)
    prune.l1_unstructured(network.conv1[0], "weight", amount=0.5)
    prune.ln_structured(network.stage2[0].branch1[2], "weight", amount=0.3, n=2, dim=0)
    found = find_weights(network.state_dict(), model, NAME, "w.pth")
    assert "2 pruning masks applied" in found.notes
    for module in (network.conv1[0], network.stage2[0].branch1[2]):
        prune.remove(module, "weight")
    assert same(found.tensors, network.state_dict())
    assert (found.tensors["conv1.0.weight"] == 0).float().mean() == 0.5


def test_parametrised_weights_are_said_to_be_so(model, state):
    network = loaded(state)
    parametrize.register_parametrization(network.conv1[0], "weight", nn.Identity())
    with pytest.raises(CheckpointError, match=r"parametrised form.*remove_parametrizations"):
        find_weights(network.state_dict(), model, NAME, "w.pth")


OTHERS = {
    "timm's networks": {
        "efficientnet_b0": ("conv_stem.weight", "bn1.weight", "blocks.0.0.conv_dw.weight"),
        "regnet_y_400mf": ("stem.conv.weight", "s1.b1.conv1.conv.weight", "head.fc.weight"),
        "convnext_tiny": ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.fc.weight"),
        "mobilenet_v3_small": ("conv_stem.weight", "blocks.1.0.conv_pw.weight"),
    },
    "the package efficientnet_pytorch": {"efficientnet_b0": ("_conv_stem.weight", "_fc.weight")},
    "Hugging Face's transformers": {
        "resnet18": ("resnet.embedder.embedder.convolution.weight",),
        "convnext_tiny": ("convnext.embeddings.patch_embeddings.weight",),
    },
    "the code of ConvNeXt's authors": {"convnext_tiny": ("downsample_layers.0.0.weight",)},
}


@pytest.mark.parametrize(("whose", "name"), [(w, n) for w, names in OTHERS.items() for n in names])
def test_names_of_other_libraries_are_recognised(whose, name):
    with torch.device("meta"):
        model = build_backbone(name, CLASSES)
    content = {"model": {key: torch.zeros(2) for key in OTHERS[whose][name]}}
    with pytest.raises(CheckpointError, match=f"w.pth looks like {whose} .*torchvision's network"):
        find_weights(content, model, name, "w.pth")


def test_timm_s_vgg_whose_trunk_has_the_same_names_is_recognised():
    with torch.device("meta"):
        model = build_backbone("vgg11", CLASSES)
    state = without(zeros(model), "classifier.")
    state |= {"pre_logits.fc1.weight": torch.ones(2), "head.fc.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match="looks like timm's networks"):
        find_weights(state, model, "vgg11", "w.pth")
