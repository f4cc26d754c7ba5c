"""Sizes and costs of a network, without data or training: what `inspect` prints."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.cost import primary_macs, routing_macs
from capsprune.checkpoint import Checkpoint, load_checkpoint
from capsprune.errors import RunError
from capsprune.options import DEFAULT_D1, DEFAULT_D2, DEFAULT_ITERATIONS, InspectOptions
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import count_macs, count_parameters
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import find_groups
from capsprune.pruning.strategy import read_strategy
from capsprune.run import Run
from capsprune.stages import checkpoint_stages

#: Passes of the trunk in a training step, as the paper counts: forward, and twice that backward.
_PASSES_FINETUNED = 3
#: A frozen trunk counts twice in the paper.
_PASSES_FROZEN = 2


def inspect_model(options: InspectOptions) -> dict[str, Any]:
    """Compute what a backbone, pruned by a strategy, and a capsule head on it cost.

    Args:
        options: with a model, or a strategy, which names its own.

    Returns:
        `backbone_macs` and `backbone_macs_unpruned` (with the linear classifier), `flops_ratio`,
        `bottleneck_channels` (S), `feature_size` (K), `primary_capsules` (I), `trunk_macs`,
        `head_macs`, `forward_macs` (trunk and capsule head), `training_flops` (as the paper
        counts), `parameters` (of the capsule network), `groups`.

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
    trunk = trunk_of(name, model)
    channels, feature_size = trunk_output(trunk, size)
    with torch.device("meta"):  # a head of these sizes is only counted, never used
        network = CapsuleNetwork(
            trunk,
            channels=channels,
            feature_size=feature_size,
            classes=classes,
            d1=_or(options.d1, DEFAULT_D1),
            d2=_or(options.d2, DEFAULT_D2),
            iterations=_or(options.iterations, DEFAULT_ITERATIONS),
        )
    return {
        "model": name,
        "image_size": size,
        "classes": classes,
        "backbone_macs": macs,
        "backbone_macs_unpruned": unpruned_macs,
        "flops_ratio": macs / unpruned_macs,
        **_capsule_costs(network, size, _or(options.freeze, False)),
        "groups": groups,
    }


def inspect_run(run: Run, options: InspectOptions) -> dict[str, dict[str, Any]]:
    """Compute what the networks of a run cost: `checkpoint_costs` by stage.

    Args:
        run: which.
        options: without a model and a strategy.

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
    return {
        stage: checkpoint_costs(
            load_checkpoint(run.path(stage)), frozen=bool(run.stages[stage].summary.get("frozen"))
        )
        for stage in done
    }


T = TypeVar("T")


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def checkpoint_costs(checkpoint: Checkpoint, frozen: bool = False) -> dict[str, Any]:
    """Compute what a checkpoint's network costs.

    Args:
        checkpoint: any.
        frozen: count the training of a frozen trunk.

    Returns:
        `trunk_macs`, `forward_macs`, `training_flops` (as the paper counts), `parameters`, and for
        a capsule network what else `inspect_model` gives of it.
    """
    size = checkpoint.architecture.data.image_size
    if checkpoint.capsules is not None:
        return _capsule_costs(checkpoint.capsules, size, frozen)
    trunk_macs = sum(count_macs(checkpoint.trunk, size).values())
    return {
        "trunk_macs": trunk_macs,
        "forward_macs": sum(count_macs(checkpoint.network, size).values()),
        "training_flops": (_PASSES_FROZEN if frozen else _PASSES_FINETUNED) * trunk_macs,
        "parameters": count_parameters(checkpoint.network),
    }


def _capsule_costs(network: CapsuleNetwork, image_size: int, frozen: bool) -> dict[str, Any]:
    trunk_macs = sum(count_macs(network.trunk, image_size).values())
    conv = network.primary_caps.conv
    classes, capsules, d1, d2 = network.output_caps.weight.shape
    primary = primary_macs(conv.in_channels, conv.kernel_size[0], d1)
    head = primary + routing_macs(capsules, classes, d1, d2, network.output_caps.iterations)
    passes = _PASSES_FROZEN if frozen else _PASSES_FINETUNED
    return {
        "bottleneck_channels": conv.in_channels,
        "feature_size": conv.kernel_size[0],
        "primary_capsules": capsules,
        "trunk_macs": trunk_macs,
        "head_macs": head,
        "forward_macs": trunk_macs + head,
        # The paper counts convolutions only: the trunk's and PrimaryCaps'.
        "training_flops": passes * (trunk_macs + primary),
        "parameters": count_parameters(network),
    }
