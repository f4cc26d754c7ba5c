"""Weights for a backbone: ImageNet weights that are published, or those in a file."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from capsprune.backbones.matching import Found, find_weights
from capsprune.backbones.registry import backbone
from capsprune.backbones.timm_models import timm_weights
from capsprune.backbones.weights_file import read_content
from capsprune.errors import CheckpointError, ModelError

#: Starting weights that are no file.
NO_FILES = ("auto", "imagenet", "none")
#: Seconds after which a server that does not answer counts as out of reach.
_CONNECT_TIMEOUT_S = 10.0


def initialise(model: nn.Module, name: str, weights: str, *, average: bool = False) -> str:
    """Give a backbone its starting weights.

    Args:
        model: a backbone fresh from `build_backbone`.
        name: its name.
        weights: "auto" (ImageNet weights where they are cached or can be fetched, else those that
            the model was built with), "imagenet", "none", or the path of a state dict.
        average: of a file that holds both weights and a moving average of them, take the average.

    Returns:
        One line that says what was done.

    Raises:
        ModelError: if "imagenet" is asked for and there are none, or they are out of reach.
        CheckpointError: if a file is missing, foreign, carries a pickled object, or does not fit.
    """
    if weights in NO_FILES:
        if average:
            raise ModelError(
                f"--ema is for a file of weights, which '{weights}' is not; leave it out or give "
                "--weights a file."
            )
        if weights == "none":
            return "from scratch (as asked)"
        try:
            content, source = _imagenet_content(name)
        except (ModelError, CheckpointError) as error:
            if weights == "imagenet":
                raise
            reason = str(error).split(";")[0]
            return f"from scratch, as {reason[0].lower()}{reason[1:]}"
        found = find_weights(content, model, name, source)
        _load(model, name, found, source)
        return ", ".join((f"{backbone(name).publisher}'s ImageNet weights", *found.notes))
    found = read_weights(Path(weights), model, name, average=average)
    _load(model, name, found, weights)
    return ", ".join((f"weights from {weights}", *found.notes))


def read_weights(path: Path, model: nn.Module, name: str, *, average: bool = False) -> Found:
    """Read the weights of a backbone, pruned or not, from a file that somebody has.

    Args:
        path: a `.safetensors` or PyTorch file, recognised by its content.
        model: the unpruned backbone; it is not changed.
        name: its name.
        average: of a file that holds both weights and a moving average of them, take the average.

    Raises:
        CheckpointError: as `read_content` and `find_weights` do.
    """
    return find_weights(read_content(path), model, name, str(path), average)


def _imagenet_content(name: str) -> tuple[Any, str]:
    """Read published ImageNet weights from the cache or fetch them, and say where they are."""
    publisher = backbone(name).publisher
    if publisher is None:
        raise ModelError(
            f"There are no ImageNet weights for {name}; give --weights none or a file."
        )
    return _PUBLISHED[publisher](name)


def _torchvision_content(name: str) -> tuple[Any, str]:
    import torchvision

    chosen = torchvision.models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rsplit("/", 1)[-1]
    if cached.is_file():
        return read_content(cached), str(cached)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_TIMEOUT_S)
    try:
        # stdout is for results, and torch.hub says there that it downloads.
        with contextlib.redirect_stdout(sys.stderr):
            # check_hash: a file that is not what torchvision published is refused.
            content = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise ModelError(
            f"The ImageNet weights of {name} are neither cached nor within reach ({reason}); "
            f"give --weights none, or put {cached.name} into {cached.parent}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return content, str(cached)


def _timm_content(name: str) -> tuple[Any, str]:
    """Read what timm publishes, which its hub keeps as safetensors."""
    path = timm_weights(name)
    return read_content(path), str(path)


_PUBLISHED: dict[str, Callable[[str], tuple[Any, str]]] = {
    "torchvision": _torchvision_content,
    "timm": _timm_content,
}


def _load(model: nn.Module, name: str, found: Found, source: str) -> None:
    """Load weights into an unpruned backbone; what they lack stays as it was drawn."""
    own = model.state_dict()
    for key, value in found.tensors.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"Tensor '{key}' of {source} is {list(value.shape)} where {name} has "
                f"{list(own[key].shape)}; give the unpruned weights of the same model, or import "
                "what was pruned with import-checkpoint."
            )
    model.load_state_dict(with_versions(model, own | found.tensors))


def with_versions(model: nn.Module, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Add the versions that modules give their state dicts, which files of tensors do not keep.

    MNASNet refuses to load without.

    Args:
        model: what will load the state dict.
        state: its tensors by name.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned
