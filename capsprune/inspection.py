"""Sizes and costs of a network, without data or training: what `inspect` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.head import OWN_CLASSIFIER, TRUNK, head_of
from capsprune.capsules.heads import DYNAMIC, HEADS
from capsprune.capsules.network import CapsuleNetwork
from capsprune.checkpoint import Checkpoint, load_checkpoint
from capsprune.errors import ModelError, RunError
from capsprune.options import InspectOptions
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import count_macs, count_parameters
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import find_groups
from capsprune.pruning.strategy import read_strategy
from capsprune.run import Run
from capsprune.stages import STAGES, checkpoint_stages
from capsprune.summaries import NetworkSummary, ProfileSummary

#: Passes of the trunk in a training step, as the paper counts: forward, and twice that backward.
_PASSES_FINETUNED = 3
#: A frozen trunk counts twice in the paper.
_PASSES_FROZEN = 2


def inspect_model(options: InspectOptions) -> dict[str, Any]:
    """Compute what a backbone, pruned by a strategy, and a head on it cost.

    Args:
        options: with a model, or a strategy, which names its own.

    Returns:
        `backbone_macs` and `backbone_macs_unpruned` (with the linear classifier), `flops_ratio`,
        `groups`, and `network_costs` of the trunk with the head: of capsules also
        `bottleneck_channels` (S), `feature_size` (K), `primary_capsules` (I).

    Raises:
        CapspruneError: if the model, the strategy or the image size cannot be used, or the trunk
            has fewer channels than a capsule has values.
    """
    strategy = None
    if options.strategy is not None:
        strategy = read_strategy(options.strategy, options.model)
    name = options.model if strategy is None else strategy.model
    assert name is not None
    size, classes = _or(options.image_size, 224), _or(options.classes, 1000)
    model = build_backbone(name, classes, **backbone_arguments(name, size)).eval()
    unpruned_macs = sum(count_macs(model, size).values())
    groups: dict[str, dict[str, int]] = {}
    if strategy is not None:
        dependencies = find_groups(model, classifier=backbone(name).classifier, image_size=size)
        kept = strategy.kept(dependencies)
        groups = {
            group.name: {
                "channels": group.channels * group.width,
                "kept": int(count) * group.width,
            }
            for group, count in zip(dependencies.groups, kept, strict=True)
        }
        model = prune_channels(model, dependencies, l1_ranking(model, dependencies), kept)
    macs = sum(count_macs(model, size).values())
    kind = _or(options.head, DYNAMIC)
    asked = ("d1", "d2", "iterations", "primary", "types", "primary_rank")
    given = {key: getattr(options, key) for key in asked}
    head = HEADS[kind]
    head.resolve(kind, {**given, "capsules": options.capsules})
    trunk = trunk_of(name, model)
    if options.capsules is None:
        trunk = trunk.to("meta")  # what is only counted needs no values
    with next(trunk.parameters()).device:
        features = trunk_output(trunk, size)
        config = head.configure(kind, features, given)
        network = head.build(trunk, features, classes, config)
    if options.capsules is not None:
        network = with_capsules(network, size, options.capsules)
    costs = network_costs(network, network.trunk, size, frozen=_or(options.freeze, False))
    return {
        "model": name,
        "image_size": size,
        "classes": classes,
        "backbone_macs": macs,
        "backbone_macs_unpruned": unpruned_macs,
        "flops_ratio": macs / unpruned_macs,
        **costs,
        "groups": groups,
    }


def with_capsules(network: nn.Module, image_size: int, capsules: int) -> CapsuleNetwork:
    """Prune the primary capsules of an untrained network, at random, as all are alike.

    Args:
        network: with capsules, on a device that holds values; it is left as it is.
        image_size: pixels a side.
        capsules: how many remain.

    Raises:
        ModelError: if the network has fewer, or cannot be left with so few.
    """
    assert isinstance(network, CapsuleNetwork)
    dependencies = find_capsule_groups(network.eval(), image_size)
    ours = np.array([group.kind == "capsules" for group in dependencies.groups])
    there, least = int(dependencies.channels[ours].sum()), int(ours.sum())
    if not least <= capsules <= there:
        raise ModelError(
            f"The network can have {least} to {there} primary capsules, not {capsules}; give "
            "another --capsules."
        )
    kept = dependencies.channels.copy()
    # Where the trunk's channels fall into several groups, each loses the same part.
    kept[ours] = 1 + (kept[ours] - 1) * (capsules - least) // max(there - least, 1)
    missing = capsules - int(kept[ours].sum())
    roomy = np.flatnonzero(ours & (kept < dependencies.channels))
    kept[roomy[:missing]] += 1
    generator = torch.Generator().manual_seed(0)
    rankings = [torch.randperm(g.channels, generator=generator) for g in dependencies.groups]
    slim = prune_channels(network, dependencies, rankings, kept)
    assert isinstance(slim, CapsuleNetwork)
    return slim


def inspect_run(run: Run, options: InspectOptions) -> dict[str, dict[str, Any]]:
    """Compute what the networks of a run cost: `checkpoint_costs` by stage.

    Args:
        run: which.
        options: without a model and a strategy.

    Returns:
        By stage its costs. `milliseconds`, of networks that the run's profile has: by batch size
        the median of a run as `all`, and the shares in it of the parts that the file tells apart.

    Raises:
        RunError: if the run has no checkpoint yet, or an option asks for other networks than the
            run's.
        CheckpointError: if one is damaged.
    """
    given = [name for name, value in options if value is not None]
    if given:
        raise RunError(
            f"The checkpoints of run '{run.name}' are what they are, whatever "
            f"--{given[0].replace('_', '-')} says; leave it out, or give --model."
        )
    done = [stage for stage in checkpoint_stages() if stage in run.stages]
    if not done:
        raise RunError(
            f"Run '{run.name}' has no checkpoint yet; first run 'capsprune prune --model MODEL', "
            "or give --model."
        )
    measured = _milliseconds(run)
    return {
        stage: {
            **checkpoint_costs(
                load_checkpoint(run.path(stage)),
                frozen=run.stages[stage].summary_as(NetworkSummary).is_frozen,
            ),
            **({"milliseconds": measured[stage]} if stage in measured else {}),
        }
        for stage in done
    }


def _milliseconds(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    """Return what the run's profile, if it is of these networks, measured: by stage and batch."""
    if "profile" not in run.stages or "profile" in run.unusable("inspect"):
        return {}
    stages = {STAGES[stage].network: stage for stage in checkpoint_stages()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in run.stages["profile"].summary_as(ProfileSummary).measurements:
        if row.variant in stages and stages[row.variant] in run.stages:
            shares = row.part_shares or {}
            found.setdefault(stages[row.variant], {})[str(row.batch)] = {
                "all": row.latency_ms,
                **{part: row.latency_ms * share for part, share in shares.items()},
            }
    return found


T = TypeVar("T")


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def checkpoint_costs(checkpoint: Checkpoint, frozen: bool = False) -> dict[str, Any]:
    """Compute what a checkpoint's network costs; `network_costs` says what is returned.

    Args:
        checkpoint: any.
        frozen: count the training of a frozen trunk.
    """
    size = checkpoint.architecture.data.image_size
    return network_costs(checkpoint.network, checkpoint.trunk, size, frozen=frozen)


def network_costs(
    network: nn.Module, trunk: nn.Module, image_size: int, *, frozen: bool
) -> dict[str, Any]:
    """Compute what a network costs.

    Args:
        network: with a head, or with its own classifier.
        trunk: its trunk, whose modules it shares.
        image_size: pixels a side.
        frozen: count the training of a frozen trunk.

    Returns:
        `trunk_macs`, `forward_macs`, `training_flops` (as the paper counts), `parameters`, with a
        head `head_macs`, what it is, and what sizes it has. `parts`: the `macs`, `parameters` and
        `weight_bytes` (of parameters and statistics, as a checkpoint stores them) of the trunk, and
        of each part of what stands on it.
    """
    in_trunk = set(trunk.modules())
    trunk_macs, layer_macs = 0, {}
    for layer, macs in count_macs(network, image_size).items():
        if network.get_submodule(layer) in in_trunk:
            trunk_macs += macs
        else:
            layer_macs[layer] = macs
    head = head_of(network)
    costs, config = head.costs(network, layer_macs), head.describe(network)
    passes = _PASSES_FROZEN if frozen else _PASSES_FINETUNED
    return {
        **({} if config is None else head.details(config)),
        **costs.sizes,
        "trunk_macs": trunk_macs,
        **({} if head is OWN_CLASSIFIER else {"head_macs": costs.macs}),
        "forward_macs": trunk_macs + costs.macs,
        # The paper counts convolutions only: the trunk's and the head's.
        "training_flops": passes * (trunk_macs + costs.convolution_macs),
        "parameters": count_parameters(network),
        "parts": _parts(network, trunk, {TRUNK: trunk_macs, **costs.part_macs}),
    }


def _parts(
    network: nn.Module, trunk: nn.Module, part_macs: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Return what each part of a network costs, the trunk first.

    Args:
        network: as a whole.
        trunk: its trunk.
        part_macs: multiply-accumulates by part.
    """
    head = head_of(network)
    parts = {
        part: {"macs": macs, "parameters": 0, "weight_bytes": 0} for part, macs in part_macs.items()
    }
    in_trunk = {*map(id, trunk.parameters()), *map(id, trunk.buffers())}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        name_of_part = TRUNK if id(tensor) in in_trunk else head.part_of(name)
        part = parts.setdefault(name_of_part, {"macs": 0, "parameters": 0, "weight_bytes": 0})
        part["parameters"] += tensor.numel() if isinstance(tensor, nn.Parameter) else 0
        part["weight_bytes"] += tensor.numel() * tensor.element_size()
    return parts
