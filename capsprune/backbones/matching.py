"""Finding a backbone's weights in what a file holds, under whatever names it keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from capsprune.backbones.registry import backbone
from capsprune.backbones.state_dicts import (
    AVERAGED_COUNT,
    TIMMS,
    Place,
    StateDict,
    library_of,
    other_namings,
    places_of,
    renamed,
    state_dicts,
)
from capsprune.backbones.stem import stem_of
from capsprune.backbones.timm_models import is_timm
from capsprune.errors import CheckpointError, listed

#: Batch norms count their batches in a tensor that old files lack and that plays no part here.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Found:
    """A backbone's weights."""

    #: By the backbone's own names, finite and of floating point; what is to be drawn anew, and
    #: perhaps counters, is absent.
    tensors: dict[str, Tensor]
    #: What was chosen, changed or left out, in words to be separated by commas.
    notes: tuple[str, ...]
    #: Whether the classifier is among them.
    has_classifier: bool


def find_weights(
    content: Any, model: nn.Module, name: str, source: str, average: bool = False
) -> Found:
    """Find a backbone's weights in what a file holds.

    They may lie in other dictionaries (`{"state_dict": ...}`) and under a prefix (`backbone.`), as
    long as there is one place where all tensors of the trunk are found. A classifier that does not
    fit is left out. Shapes are checked as far as pruning leaves them alone.

    Args:
        content: of the file, from `read_content`.
        model: the unpruned backbone; it is not changed.
        name: its name.
        source: where the content comes from, for messages.
        average: take a moving average of the weights, where both are there.

    Raises:
        CheckpointError: if there are none, or they can be told apart by nothing, or have numbers
            of another kind, or such as are not finite; the message names the cause.
    """
    spec, own = backbone(name), model.state_dict()
    trunk = {k for k in own if k.split(".")[0] in spec.trunk_children and not k.endswith(COUNTER)}
    states = list(state_dicts(content))
    if not any(state.tensors for state in states):
        raise CheckpointError(f"{source} holds no state dict; save the model's state_dict() in it.")
    places = [place for state in states for place in places_of(state, trunk)]
    whole = [place for place in places if place.count == len(trunk)]
    for naming in () if whole else other_namings(model, spec.trunk_children):
        names = {theirs for theirs, ours in naming.items() if ours in trunk}
        whole = [
            renamed(place, naming)
            for state in states
            for place in places_of(state, names)
            if place.count == len(trunk)
        ]
        if whole:
            break
    if not whole:
        best = min(places, key=lambda place: (-place.count, len(place.prefix)), default=None)
        _explain(states, best, trunk, model, name, source)
    place, notes = _choose(whole, trunk, own, name, source, average)
    return _take(place, notes, model, name, source)


def _choose(
    places: list[Place],
    trunk: set[str],
    own: Mapping[str, Tensor],
    name: str,
    source: str,
    average: bool,
) -> tuple[Place, list[str]]:
    """Choose the one place to take the weights from, and say what was chosen."""
    averages = [place for place in places if place.is_average]
    trained = [place for place in places if not place.is_average]
    if average and not averages:
        raise CheckpointError(f"{source} holds no moving average of its weights; leave --ema out.")
    chosen = averages if average or not trained else trained
    usual = [place for place in chosen if place.is_usual]
    first = usual[0] if len(usual) == 1 else chosen[0]
    rivals = [place for place in chosen if place is not first]
    rivals = [place for place in rivals if not _same_tensors(first, place, trunk, own)]
    if rivals and len(usual) != 1:
        raise CheckpointError(
            f"{source} holds weights of {name} more than once, under '{first.label}' and "
            f"'{rivals[0].label}'; save those to use alone."
        )
    notes = []
    if first.is_average:
        notes.append("the moving average of the weights")
        if first.state.path or first.prefix:
            notes[-1] += f" ('{first.label}')"
        if trained:
            notes[-1] += ", as asked"
    elif averages:
        notes.append(f"the weights as trained, not their moving average ('{averages[0].label}')")
    if rivals:
        notes.append(f"those of '{first.label}', not of '{rivals[0].label}'")
    if first.prefix and not first.is_average:
        notes.append(f"found under '{first.prefix}'")
    beside = sorted(
        key
        for key in first.state.tensors
        if not key.startswith(first.prefix) and not key.endswith(AVERAGED_COUNT)
    )
    if beside:
        names = [f"'{key}'" for key in beside]
        notes.append(f"without {listed(names, 1)}")
    return first, notes


def _same_tensors(first: Place, second: Place, trunk: set[str], own: Mapping[str, Tensor]) -> bool:
    """Return whether two places hold the same numbers, as where a network is registered twice."""
    for key in trunk:
        a, b = first.state.tensors[first.prefix + key], second.state.tensors[second.prefix + key]
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        # A tensor may claim any number of elements; what is larger than the network's is refused.
        if a.numel() > own[key].numel() or _unusable_kind(a) or _unusable_kind(b):
            return False
        if not torch.equal(a, b):
            return False
    return True


def _take(place: Place, notes: list[str], model: nn.Module, name: str, source: str) -> Found:
    """Take the weights from their place, and check them."""
    own, state = model.state_dict(), place.state
    found = {
        key.removeprefix(place.prefix): value
        for key, value in state.tensors.items()
        if key.startswith(place.prefix) and not key.endswith(AVERAGED_COUNT)
    }
    for key, value in list(found.items()):
        if key.endswith(COUNTER) and (key not in own or value.shape != own[key].shape):
            del found[key]
    foreign = sorted(set(found) - set(own))
    trunk_children = backbone(name).trunk_children
    children = {child for child, _ in model.named_children()}
    head_children = children - set(trunk_children)
    for key in foreign:
        if key.split(".")[0] not in head_children:
            _refuse_library([state], name, source)
            raise CheckpointError(
                f"{source} has a tensor '{place.prefix}{key}' that {name} lacks; give the file's "
                "own --model."
            )
    _check_stem(model, {key: found[key] for key in own if key in found}, name, source)
    reason = _drop_classifier(found, foreign, own, name)
    tensors = {key: found[key] for key in own if key in found}
    masks = {
        key: mask for key in tensors if (mask := state.masks.get(place.prefix + key)) is not None
    }
    tensors = _checked(tensors, masks, own, name, source)
    if masks:
        notes.append(f"{len(masks)} pruning masks applied")
    if reason:
        classes = len(own[f"{backbone(name).classifier}.weight"])
        notes.append(f"classifier drawn anew ({classes} classes), as the file {reason}")
    return Found(tensors, tuple(notes), has_classifier=not reason)


def _drop_classifier(
    found: dict[str, Tensor], foreign: list[str], own: Mapping[str, Tensor], name: str
) -> str:
    """Take out of `found` what cannot be used behind the trunk; say why, or "" if all can."""
    spec = backbone(name)
    weight, bias = f"{spec.classifier}.weight", f"{spec.classifier}.bias"
    head = [key for key in own if key.split(".")[0] not in spec.trunk_children]
    reason, dropped = "", [weight, bias]
    if not any(key in found for key in head) and not foreign:
        reason, dropped = "has none", head
    elif foreign or any(key not in found for key in head if key not in dropped):
        reason, dropped = "has other layers there", head
    elif weight not in found:
        reason = "has none"
    elif found[weight].dim() != own[weight].dim():
        reason, dropped = "has other layers there", head
    elif len(found[weight]) != len(own[weight]):
        reason = f"has {len(found[weight])}"
    elif bias not in found:
        reason = "has no bias for it"
    if reason:
        for key in dropped:
            found.pop(key, None)
    return reason


def _checked(
    tensors: dict[str, Tensor],
    masks: dict[str, Tensor],
    own: Mapping[str, Tensor],
    name: str,
    source: str,
) -> dict[str, Tensor]:
    """Apply masks; refuse numbers of another kind, and such as are not finite."""
    unusable: list[str] = []
    for key, value in tensors.items():
        for part in (value, masks.get(key)):
            if part is not None and (kind := _unusable_kind(part)):
                raise CheckpointError(
                    f"Tensor '{key}' of {source} is {kind} where {name} has plain numbers; save a "
                    "state dict of dense tensors."
                )
        if key.endswith(COUNTER):
            continue
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"Tensor '{key}' of {source} is of {kind} where {name} has floating-point numbers; "
                "give a state dict of such."
            )
        # A tensor may claim any number of elements; too many are refused for their shape, later.
        if value.numel() > own[key].numel():
            continue
        if key in masks:
            if masks[key].shape != value.shape:
                raise CheckpointError(
                    f"The pruning mask of '{key}' in {source} has another shape than the tensor; "
                    "call torch.nn.utils.prune.remove on each layer before saving."
                )
            tensors[key] = value = value * masks[key].to(value.dtype)
        # As the network will have it: a double may be too large for it.
        if not torch.isfinite(value.to(own[key].dtype)).all():
            unusable.append(f"'{key}'")
    if unusable:
        raise CheckpointError(
            f"{source} has numbers that are not finite (NaN or infinity) in "
            f"{listed(unusable, 3)}; give weights from before the training diverged."
        )
    return tensors


def _unusable_kind(tensor: Tensor) -> str:
    """Return what a tensor is that cannot be copied into a network, or ""."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_complex():
        return "complex"
    return ""


def _check_stem(model: nn.Module, found: Mapping[str, Tensor], name: str, source: str) -> None:
    """Name the cause where the first convolution is for other images."""
    stem = stem_of(model)
    if stem is None:
        return
    first, conv = stem
    weight = found.get(f"{first}.weight")
    if weight is None or weight.dim() != 4:
        return
    if weight.shape[1] != conv.in_channels:
        plural = "channel" if weight.shape[1] == 1 else "channels"
        grey = " (grey images)" if weight.shape[1] == 1 else ""
        remedy = "give weights of colour images"
        if conv.in_channels == 1:
            remedy = "give weights of grey images"
        elif weight.shape[1] == 1:
            remedy += ", in which grey ones are shown, too"
        raise CheckpointError(
            f"The first convolution of {source} ('{first}.weight') is for images of "
            f"{weight.shape[1]} {plural}{grey}, where {name} takes {conv.in_channels}; {remedy}."
        )
    if weight.shape[2:] != conv.weight.shape[2:]:
        theirs, ours = (
            f"{shape[0]} x {shape[1]}" for shape in (weight.shape[2:], conv.weight.shape[2:])
        )
        small = weight.shape[2] < conv.weight.shape[2]
        raise CheckpointError(
            f"The first convolution of {source} ('{first}.weight') is {theirs}"
            f"{', as in networks for small images such as CIFAR' if small else ''}, where {name} "
            f"has {ours}; give weights of a {name} whose first convolution is {ours}."
        )


def _refuse_library(states: Iterable[StateDict], name: str, source: str) -> None:
    """Refuse another library's names, saying whose they are."""
    if (found := library_of(states)) and not (is_timm(name) and found[0] == TIMMS):
        whose, key = found
        theirs = "timm's" if is_timm(name) else "torchvision's"
        other = ", or give --model timm:NAME" if whose == TIMMS else ""
        raise CheckpointError(
            f"{source} looks like {whose} ('{key}'), which name and lay out their tensors "
            f"otherwise than {name} does here; give a state dict of {theirs} network{other}."
        )


def _explain(
    states: list[StateDict],
    best: Place | None,
    trunk: set[str],
    model: nn.Module,
    name: str,
    source: str,
) -> NoReturn:
    """Say why no place has all tensors of the trunk."""
    prefix = best.prefix if best else ""
    state = best.state if best else max(states, key=lambda state: len(state.tensors))
    found = {key: state.tensors[prefix + key] for key in trunk if prefix + key in state.tensors}
    if len(found) > len(trunk) / 2:
        _check_stem(model, found, name, source)
    else:
        _refuse_library(states, name, source)
    if key := next((key for key in state.tensors if "parametrizations." in key), None):
        raise CheckpointError(
            f"{source} keeps weights in parametrised form ('{key}'); call "
            "torch.nn.utils.parametrize.remove_parametrizations on each layer before saving."
        )
    missing = [key for key in model.state_dict() if key in trunk and key not in found]
    if prefix + missing[0] in state.others:
        raise CheckpointError(
            f"{source} holds something else than a tensor under '{prefix}{missing[0]}'; save the "
            "model's state_dict() in it, with torch.save."
        )
    raise CheckpointError(
        f"{source} has no tensor '{prefix}{missing[0]}', so it is no {name}; give the file's own "
        "--model."
    )
