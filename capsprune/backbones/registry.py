"""The backbones that can be built by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capsprune.errors import ModelError, unknown_name

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Backbone:
    """What capsprune knows of a backbone beside its weights."""

    name: str
    #: Children whose sequence makes the trunk: all before pooling and classifier.
    trunk_children: tuple[str, ...]
    #: The last linear layer, whose outputs are the classes.
    classifier: str
    #: Pixels of the image for each position of the feature map.
    stride: int
    #: Whether torchvision has ImageNet weights.
    has_imagenet_weights: bool = True


_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

_BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        *(Backbone(f"resnet{depth}", _RESNET, "fc", 32) for depth in (18, 34, 50, 101)),
        Backbone("mobilenet_v2", ("features",), "classifier.1", 32),
        Backbone("vgg16_bn", ("features",), "classifier.6", 32),
        Backbone("mobilenet_v1", ("conv1", "bn1", "relu", "layers"), "linear", 32, False),
    )
}

BACKBONES: tuple[str, ...] = tuple(sorted(_BACKBONES))

#: Below this image size MobileNetV1's stem keeps the resolution (see `MobileNetV1`).
_SMALL_IMAGE = 64


def backbone(name: str) -> Backbone:
    """Look a backbone up.

    Raises:
        ModelError: if there is none of this name; the message has the nearest names.
    """
    try:
        return _BACKBONES[name]
    except KeyError:
        raise ModelError(unknown_name("model", name, BACKBONES)) from None


def backbone_arguments(name: str, image_size: int) -> dict[str, Any]:
    """Arguments, beside the number of classes, that suit images of this many pixels a side.

    Raises:
        ModelError: if the name is unknown, or the image size is too small for the backbone.
    """
    spec = backbone(name)
    arguments: dict[str, Any] = {}
    stride = spec.stride
    if name == "mobilenet_v1":
        arguments["stem_stride"] = 1 if image_size < _SMALL_IMAGE else 2
        stride = 16 * arguments["stem_stride"]
    if image_size < stride:
        raise ModelError(
            f"An image size of {image_size} is too small for {name}, whose feature map has one "
            f"position for every {stride} pixels; give --image-size {stride} or more."
        )
    return arguments


def build_backbone(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """Build a backbone with its linear classifier and freshly drawn weights.

    Args:
        name: one of `BACKBONES`.
        num_classes: outputs of the classifier.
        arguments: those of `backbone_arguments`.

    Raises:
        ModelError: if the name is unknown.
    """
    backbone(name)
    if name == "mobilenet_v1":
        from capsprune.backbones.mobilenet_v1 import MobileNetV1

        return MobileNetV1(num_classes=num_classes, **arguments)
    import torchvision

    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **arguments
    )
    return model
