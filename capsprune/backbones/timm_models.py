"""timm's convolutional networks, which users name "timm:NAME"."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsprune.data.preprocessing import COLOURS
from capsprune.errors import ModelError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from capsprune.backbones.registry import Backbone

PREFIX = "timm:"
#: Pixels a side, the smallest image being the first of which a feature map is left.
_SIZES = (32, 48, 64, 96, 128, 224, 256)


def is_timm(name: str) -> bool:
    """Return whether a backbone is one of timm's."""
    return name.startswith(PREFIX)


@functools.cache
def timm_backbone(name: str) -> Backbone:
    """Return what is known of one of timm's networks.

    All of it is read off timm's description of its weights, and off a network without values.

    Args:
        name: "timm:NAME", where NAME may have a tag, as in "timm:resnet18.a1_in1k".

    Raises:
        ModelError: if timm is not installed, has no such network, or one that cannot be pruned.
    """
    from capsprune.backbones.registry import Backbone

    described = pretrained_config(name)
    model = _without_values(name, described)
    size, trunk_children = _trunk_of(name, model)
    classifier = _classifier_of(name, model, described)
    return Backbone(
        trunk_children=trunk_children,
        classifier=classifier,
        build=functools.partial(build_timm, name),
        smallest_image=size,
        has_features_method=True,
        publisher="timm" if described.get("hf_hub_id") else None,
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        interpolation="bicubic" if described["interpolation"] == "bicubic" else "bilinear",
    )


def build_timm(name: str, num_classes: int) -> nn.Module:
    """Build one of timm's networks with freshly drawn weights, on the default device.

    Args:
        name: "timm:NAME".
        num_classes: outputs of the classifier.
    """
    import timm
    import torch

    device = torch.get_default_device()
    # Some compute their layers' sizes with tensors, and so cannot be built without values.
    with torch.device("cpu"):
        model: nn.Module = timm.create_model(
            name.removeprefix(PREFIX), pretrained=False, num_classes=num_classes
        )
    return model.to(device)


def pretrained_config(name: str) -> dict[str, Any]:
    """Return timm's description of the weights of one of its networks.

    Raises:
        ModelError: if timm is not installed, or has no such network.
    """
    if importlib.util.find_spec("timm") is None:
        raise ModelError(
            f"The model {name} needs timm, which is not installed: pip install 'capsprune[timm]'."
        )
    import timm
    from timm.models import get_pretrained_cfg

    own = name.removeprefix(PREFIX)
    if not timm.is_model(own):
        every = [PREFIX + known for known in timm.list_models()]
        raise ModelError(unknown_name("model", name, every))
    try:
        described = get_pretrained_cfg(own)
    except RuntimeError as error:  # another tag than the network's
        tags = [PREFIX + known for known in timm.list_pretrained(f"{own.split('.')[0]}.*")]
        raise ModelError(unknown_name("model", name, tags)) from error
    return {} if described is None else described.to_dict()


def timm_weights(name: str) -> Path:
    """Return the file of timm's pretrained weights of a network, fetched if it is not cached.

    Raises:
        ModelError: if they are neither cached nor within reach.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = pretrained_config(name)["hf_hub_id"]
    place = (repository, "model.safetensors")
    try:
        return Path(hf_hub_download(*place, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        # Asked once: to download tries again for half a minute where there is no network.
        get_hf_file_metadata(hf_hub_url(*place))
        return Path(hf_hub_download(*place))
    except Exception as error:  # Whatever the hub's client, and its own, may raise.
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ModelError(
            f"The ImageNet weights of {name} are neither cached nor within reach ({reason}); give "
            f"--weights none, or the file {place[1]} of {repository}."
        ) from error


def _without_values(name: str, described: Mapping[str, Any]) -> nn.Module:
    """Build a network on no device, and refuse what capsprune cannot prune."""
    import torch

    channels = described.get("input_size", (0,))[0]
    if channels != COLOURS:
        raise _refused(name, f"it is for images of {channels} channels, where it must be {COLOURS}")
    with torch.device("meta"):
        model = build_timm(name, num_classes=2).eval()
    for module in model.modules():
        if "Attention" in type(module).__name__:
            raise _refused(
                name, "it is a transformer, and capsprune prunes the channels of convolutions"
            )
    stored = model.state_dict()
    if missing := [key for key, _ in model.named_buffers() if key not in stored]:
        raise _refused(name, f"its state dict lacks '{missing[0]}', without which none can load it")
    return model


def _trunk_of(name: str, model: Any) -> tuple[int, tuple[str, ...]]:
    """Find the smallest image and the children of which `forward_features` makes use."""
    import torch

    used: set[str] = set()

    def use(child: str) -> Callable[..., None]:
        return lambda *_: used.add(child)

    handles = [
        module.register_forward_hook(use(path.split(".")[0]))
        for path, module in model.named_modules()
        if path
    ]
    for size in _SIZES:
        used.clear()
        try:
            features = model.forward_features(torch.zeros(1, COLOURS, size, size, device="meta"))
        except (RuntimeError, AssertionError, ValueError):
            continue  # it is too small, or of another size than the network is made for
        if not isinstance(features, torch.Tensor) or features.dim() != 4:
            raise _refused(name, "it makes no feature map of height and width")
        for handle in handles:
            handle.remove()
        return size, tuple(child for child, _ in model.named_children() if child in used)
    raise _refused(name, "it takes no images of one of the usual sizes")


def _classifier_of(name: str, model: nn.Module, described: Mapping[str, Any]) -> str:
    """Return the name of the last layer, of which there must be one."""
    from torch import nn

    classifier = described.get("classifier")
    if isinstance(classifier, str):
        layer = model.get_submodule(classifier)
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] == 2:
            return classifier
    raise _refused(name, "it has no single linear classifier")


def _refused(name: str, reason: str) -> ModelError:
    return ModelError(
        f"{name} cannot be used: {reason}; choose another backbone, such as timm:resnet18."
    )
