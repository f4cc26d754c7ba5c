"""The table of the backbones: our own, torchvision's convolutional networks, and timm's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from capsprune.backbones.timm_models import is_timm, timm_backbone
from capsprune.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    Preprocessing,
)
from capsprune.errors import ModelError
from capsprune.tables import Table

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Backbone:
    """What capsprune knows of a backbone beside its weights: an entry of `BACKBONES`.

    Another package adds one by

        BACKBONES.register("mine")(Backbone(("features",), "classifier", MyNetwork))
    """

    #: Children whose sequence makes the trunk: all before pooling and classifier.
    trunk_children: tuple[str, ...]
    #: The last linear layer (a 1 x 1 convolution in SqueezeNet), whose outputs are the classes.
    classifier: str
    #: Makes the network with freshly drawn weights: called with `num_classes=` and `arguments`.
    build: Callable[..., nn.Module]
    #: The smallest image, in pixels a side, of which the trunk leaves something.
    smallest_image: int = 32
    #: Whether the trunk's children are no sequence: the network's method `forward_features` makes
    #: the feature map out of them.
    has_features_method: bool = False
    #: Whether the backbone applies a ReLU between the trunk's last child and the pooling.
    relu_behind: bool = False
    #: Who has weights of it that were trained on ImageNet.
    publisher: Literal["torchvision", "timm"] | None = None
    #: Which integers `build` takes beside the number of classes.
    arguments: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: Chooses them by the image size, in pixels a side.
    choose_arguments: Callable[[int], dict[str, int]] = lambda image_size: {}
    #: How its weights expect images to be shown, beside their size: a value for each colour channel
    #: of the images, 1 or 3, which must be the inputs of the network's first convolution.
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"

    def preprocessing(self, image_size: int) -> Preprocessing:
        """Return what becomes of images that are shown at this many pixels a side."""
        return Preprocessing(image_size, self.mean, self.std, self.interpolation)


def _torchvision(name: str, num_classes: int) -> nn.Module:
    """Build one of torchvision's networks, on the default device."""
    import torch
    import torchvision

    device = torch.get_default_device()
    # RegNet computes its widths with tensors, so that it cannot be built without values.
    with torch.device("cpu" if name.startswith("regnet_") else device):
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return model.to(device)


def _mobilenet_v1(num_classes: int, stem_stride: int = 2) -> nn.Module:
    from capsprune.backbones.mobilenet_v1 import MobileNetV1

    return MobileNetV1(num_classes=num_classes, stem_stride=stem_stride)


def _capsnet(num_classes: int) -> nn.Module:
    from capsprune.backbones.capsnet import CapsNet

    return CapsNet(num_classes=num_classes)


def _family(
    names: str, trunk_children: tuple[str, ...], classifier: str, **further: Any
) -> dict[str, Backbone]:
    return {
        name: Backbone(
            trunk_children,
            classifier,
            functools.partial(_torchvision, name),
            publisher="torchvision",
            **further,
        )
        for name in names.split()
    }


_FEATURES = ("features",)
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_SHUFFLENET = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")
_REGNET_SIZES = "400mf 800mf 1_6gf 3_2gf 8gf 16gf 32gf"

#: Below this image size MobileNetV1's stem keeps the resolution (see `MobileNetV1`).
_SMALL_IMAGE = 64

BACKBONES: Table[Backbone] = Table("model", {}, error=ModelError)
"""All backbones but timm's, which are as many as timm has."""

_OWN: dict[str, Backbone] = {
    "capsnet": Backbone(
        ("conv1", "relu"),
        "linear",
        _capsnet,
        smallest_image=9,
        mean=(0.0,),
        std=(1.0,),
    ),
    "mobilenet_v1": Backbone(
        ("conv1", "bn1", "relu", "layers"),
        "linear",
        _mobilenet_v1,
        smallest_image=16,
        arguments={"stem_stride": (1, 2)},
        choose_arguments=lambda size: {"stem_stride": 1 if size < _SMALL_IMAGE else 2},
    ),
    **_family(
        "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2 "
        "resnext50_32x4d resnext101_32x8d resnext101_64x4d",
        _RESNET,
        "fc",
    ),
    **_family("mobilenet_v2", _FEATURES, "classifier.1"),
    **_family("mobilenet_v3_small mobilenet_v3_large", _FEATURES, "classifier.3"),
    **_family(
        " ".join(f"vgg{depth} vgg{depth}_bn" for depth in (11, 13, 16, 19)),
        _FEATURES,
        "classifier.6",
    ),
    **_family(
        "densenet121 densenet161 densenet169 densenet201",
        _FEATURES,
        "classifier",
        relu_behind=True,
    ),
    **_family(
        " ".join(f"efficientnet_{size}" for size in (*(f"b{i}" for i in range(8)), "v2_s", "v2_m"))
        + " efficientnet_v2_l",
        _FEATURES,
        "classifier.1",
    ),
    **_family(
        " ".join(f"regnet_{kind}_{size}" for kind in "xy" for size in _REGNET_SIZES.split())
        + " regnet_y_128gf",
        ("stem", "trunk_output"),
        "fc",
    ),
    **_family(
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        _SHUFFLENET,
        "fc",
    ),
    **_family("mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3", ("layers",), "classifier.1"),
    **_family(
        "convnext_tiny convnext_small convnext_base convnext_large", _FEATURES, "classifier.2"
    ),
    **_family("squeezenet1_0 squeezenet1_1", _FEATURES, "classifier.1"),
    **_family("alexnet", _FEATURES, "classifier.6", smallest_image=63),
}
for _name in sorted(_OWN):
    BACKBONES.register(_name)(_OWN[_name])

_TRANSFORMER = "it is a transformer, and capsprune prunes the channels of convolutions"
_OWN_INPUTS = (
    "it normalises images in its own way and has auxiliary classifiers, which its trunk would lack"
)
#: torchvision's other classification networks, by how their names begin, and what is wrong.
_REFUSED: dict[str, str] = {
    "vit_": _TRANSFORMER,
    "swin_": _TRANSFORMER,
    "maxvit_": _TRANSFORMER,
    "googlenet": _OWN_INPUTS,
    "inception_v3": _OWN_INPUTS,
}


def backbone(name: str) -> Backbone:
    """Look a backbone up.

    Args:
        name: one of `BACKBONES`, or "timm:NAME".

    Raises:
        ModelError: if there is none of this name (the message has the nearest names), or it is one
            that cannot be pruned (the message says why), or it needs timm, which is not installed.
    """
    if is_timm(name):
        return timm_backbone(name)
    for prefix, reason in _REFUSED.items():
        if name not in BACKBONES and name.startswith(prefix):
            raise ModelError(
                f"{name} cannot be used: {reason}; choose another backbone, such as resnet50."
            )
    return BACKBONES[name]


def backbone_arguments(name: str, image_size: int) -> dict[str, Any]:
    """Return arguments, beside the number of classes, that suit images of this size.

    Args:
        name: of the backbone.
        image_size: pixels a side.

    Raises:
        ModelError: if the name is unknown, or the image size is too small for the backbone.
    """
    spec = backbone(name)
    if image_size < spec.smallest_image:
        raise ModelError(
            f"An image size of {image_size} is too small for {name}, of which nothing would reach "
            f"the feature map; give --image-size {spec.smallest_image} or more."
        )
    return dict(spec.choose_arguments(image_size))


def build_backbone(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """Build a backbone with its linear classifier and freshly drawn weights.

    Args:
        name: one of `BACKBONES`, or "timm:NAME".
        num_classes: outputs of the classifier.
        arguments: those of `backbone_arguments`.

    Raises:
        ModelError: if the name is unknown, or an argument is none of these.
    """
    spec = backbone(name)
    for key, value in arguments.items():
        if value not in spec.arguments.get(key, ()):
            raise ModelError(f"{name} takes no {key} of {value}.")
    return spec.build(num_classes=num_classes, **arguments)
