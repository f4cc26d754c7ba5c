"""Weights for a backbone: torchvision's ImageNet weights, or a state dict in a file."""

from __future__ import annotations

import contextlib
import pickle
import socket
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from capsprune.backbones.registry import backbone
from capsprune.errors import CheckpointError, ModelError

#: Seconds after which a server that does not answer counts as out of reach.
_CONNECT_TIMEOUT_S = 10.0
#: What wrappers of a model put before the names of its tensors.
_PREFIXES = ("module.", "_orig_mod.", "_net.")
#: Keys under which training scripts commonly keep the weights inside a larger dictionary.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def initialise(model: nn.Module, name: str, weights: str) -> str:
    """Give a backbone its starting weights.

    Args:
        model: a backbone fresh from `build_backbone`.
        name: its name.
        weights: "auto" (ImageNet weights where they are cached or can be fetched, else those that
            the model was built with), "imagenet", "none", or the path of a state dict.

    Returns:
        One line that says what was done.

    Raises:
        ModelError: if "imagenet" is asked for and there are none, or they are out of reach.
        CheckpointError: if a file is missing, foreign, carries a pickled object, or does not fit.
    """
    if weights == "none":
        return "from scratch (as asked)"
    if weights in ("auto", "imagenet"):
        try:
            state = _imagenet_state(name)
        except (ModelError, CheckpointError) as error:
            if weights == "imagenet":
                raise
            reason = str(error).split(";")[0]
            return f"from scratch, as {reason[0].lower()}{reason[1:]}"
        return f"torchvision's ImageNet weights{_load(model, name, state, 'ImageNet weights')}"
    path = Path(weights)
    return f"weights from {path}{_load(model, name, read_state_dict(path), str(path))}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` file or a PyTorch file without running any pickle.

    Wrappers (`{"state_dict": ...}`) and the prefixes of `DataParallel`, `torch.compile` and
    EagleEye's model wrapper are taken off.

    Raises:
        CheckpointError: if the file is missing, truncated, foreign, or carries a pickled object.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no weights file {path}; check the path.")
    content: Any
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is truncated or is no safetensors file ({error}); fetch or export it anew."
            ) from error
    else:
        try:
            with warnings.catch_warnings():
                # That pickles of other protocols may fail: if they do, it is said below.
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} carries a pickled object, which could run code, or is no PyTorch file; "
                "save its state_dict() alone and give that file."
            ) from error
        # Noise makes torch's reader fail with whatever it stumbles over: IndexError, struct.error …
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = reason.split(". ")[0]  # torch adds what it takes for the cause
            raise CheckpointError(
                f"{path} is truncated or is no PyTorch file ({reason}); fetch or export it anew."
            ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict; save the model's state_dict() in it.")
    state = {_plain_name(str(key)): value for key, value in content.items()}
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} holds other things than tensors; save the model's state_dict() alone in it."
        )
    return state


def _plain_name(key: str) -> str:
    while prefix := next((p for p in _PREFIXES if key.startswith(p)), None):
        key = key.removeprefix(prefix)
    return key


def _imagenet_state(name: str) -> dict[str, Tensor]:
    if not backbone(name).has_imagenet_weights:
        raise ModelError(
            f"torchvision has no ImageNet weights for {name}; give --weights none or a file."
        )
    import torchvision

    chosen = torchvision.models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rsplit("/", 1)[-1]
    if cached.is_file():
        return read_state_dict(cached)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_TIMEOUT_S)
    try:
        # stdout is for results, and torch.hub says there that it downloads.
        with contextlib.redirect_stdout(sys.stderr):
            # check_hash: a file that is not what torchvision published is refused.
            state: dict[str, Tensor] = chosen.get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise ModelError(
            f"The ImageNet weights of {name} are neither cached nor within reach ({reason}); "
            f"give --weights none, or put {cached.name} into {cached.parent}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return state


def _load(model: nn.Module, name: str, state: dict[str, Tensor], source: str) -> str:
    """Load a state dict; a classifier for another number of classes is left as it was drawn."""
    classifier = backbone(name).classifier
    own = model.state_dict()
    kept = dict(state)
    note = ""
    weight = f"{classifier}.weight"
    if (
        weight in kept
        and kept[weight].dim() == own[weight].dim()
        and kept[weight].shape[0] != own[weight].shape[0]
    ):
        note = f", classifier drawn anew ({own[weight].shape[0]} classes)"
        for key in (weight, f"{classifier}.bias"):
            kept.pop(key, None)
            kept[key] = own[key]
    # Counters of seen batches are absent from old files and play no part here.
    kept.update(
        {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in kept}
    )
    for key, value in own.items():
        if key not in kept:
            raise CheckpointError(
                f"{source} has no tensor '{key}', so it is no {name}; give the file's own --model."
            )
        if kept[key].shape != value.shape:
            raise CheckpointError(
                f"Tensor '{key}' of {source} is {list(kept[key].shape)} where {name} has "
                f"{list(value.shape)}; give the unpruned weights of the same model."
            )
    extra = sorted(set(kept) - set(own))
    if extra:
        raise CheckpointError(
            f"{source} has a tensor '{extra[0]}' that {name} lacks; give the file's own --model."
        )
    model.load_state_dict(with_versions(model, kept))
    return note


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
