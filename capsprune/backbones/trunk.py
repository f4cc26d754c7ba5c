"""A backbone's trunk: the backbone without pooling and classifier."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn

from capsprune.backbones.registry import backbone
from capsprune.backbones.stem import blank_images
from capsprune.errors import ModelError


class FeatureMap(NamedTuple):
    """What a trunk gives to a head: features [batch, S, K, K]."""

    #: S.
    channels: int
    #: K.
    size: int


def trunk_of(name: str, model: nn.Module) -> nn.Module:
    """Take the trunk of a backbone; it shares the backbone's modules and keeps their names.

    Args:
        name: the backbone's name.
        model: the backbone, of any pruned shape.

    Returns:
        A module that maps images [batch, C, H, W] to features [batch, S, K, K].
    """
    spec = backbone(name)
    parts = OrderedDict((child, model.get_submodule(child)) for child in spec.trunk_children)
    if spec.has_features_method:
        return _features_of(model, parts)
    if spec.relu_behind:
        parts["relu_behind"] = nn.ReLU()
    trunk = nn.Sequential(parts)
    trunk.training = model.training  # a new module would claim to be in training mode
    return trunk


def _features_of(model: nn.Module, parts: OrderedDict[str, nn.Module]) -> nn.Module:
    """Return a copy of a network that has these children alone and gives its feature map."""
    trunk = copy.copy(model)
    # The copy shares its dictionaries with the network until it gets its own.
    for name in [name for name, value in vars(model).items() if isinstance(value, dict)]:
        setattr(trunk, name, copy.copy(getattr(model, name)))
    vars(trunk)["_modules"] = dict(parts)
    trunk.forward = trunk.forward_features  # type: ignore[assignment]
    return trunk


@torch.no_grad()
def trunk_output(trunk: nn.Module, image_size: int) -> FeatureMap:
    """Find the channels S and the size K of the trunk's feature map by one forward pass.

    Raises:
        ModelError: if nothing is left of an image of this size.
    """
    was_training = trunk.training
    trunk.eval()
    try:
        features = trunk(blank_images(trunk, image_size))
    except RuntimeError as error:
        raise ModelError(
            f"An image size of {image_size} is too small for this trunk ({error}); give a larger "
            "--image-size."
        ) from error
    finally:
        trunk.train(was_training)
    return FeatureMap(features.shape[1], features.shape[2])
