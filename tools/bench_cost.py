"""Measure how many strategies a second the cost model prices, beside pruning and counting each.

python tools/bench_cost.py [--model resnet50] [--image-size 224] [--strategies 100000] [--json]
    [--primary dense] [--classes 1000] [--images 500]

With --primary it is a whole capsule network, counted by capsprune itself, as fvcore knows no
routing. What a candidate costs besides is its pricing and its pruning, as a part of the forward
passes that it takes on so many images.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import nn
from verify_backbones import fvcore_macs

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.stem import blank_images
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_macs
from capsprune.pruning.groups import Dependencies, find_groups

#: Strategies priced in one call: as many as a sampler may draw together.
BATCH = 1000
#: Strategies that are pruned and counted by fvcore for comparison.
COUNTED = 3
#: Images in one forward pass.
FORWARD = 50


def make(name: str, size: int, classes: int, primary: str | None) -> nn.Module:
    """Make a backbone, or a capsule network on it, of random weights."""
    model = build_backbone(name, classes, **backbone_arguments(name, size)).eval()
    if primary is None:
        return model
    trunk = trunk_of(name, model)
    features = trunk_output(trunk, size)
    return CapsuleNetwork(
        trunk,
        channels=features.channels,
        feature_size=features.size,
        classes=classes,
        primary=primary,
    ).eval()


def groups_of(model: nn.Module, name: str, size: int) -> Dependencies:
    """Find the groups of either."""
    if isinstance(model, CapsuleNetwork):
        return find_capsule_groups(model, size)
    return find_groups(model, classifier=backbone(name).classifier, image_size=size)


def macs_of(model: nn.Module, size: int) -> int:
    """Count MACs by running a network."""
    if isinstance(model, CapsuleNetwork):
        return sum(count_macs(model, size).values())
    return fvcore_macs(model, size)


@torch.no_grad()
def forward_seconds(model: nn.Module, size: int, images: int) -> float:
    """Return how long the forward passes of so many images take."""
    batch = blank_images(model, size, FORWARD)
    model(batch)  # warm
    started = time.perf_counter()
    for _ in range(0, images, FORWARD):
        model(batch)
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--strategies", type=int, default=100_000)
    parser.add_argument("--primary", help="kind of PrimaryCaps, for a whole capsule network")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    name, size = arguments.model, arguments.image_size

    model = make(name, size, arguments.classes, arguments.primary)
    started = time.perf_counter()
    dependencies = groups_of(model, name, size)
    order = [torch.arange(group.channels) for group in dependencies.groups]
    cost = CostModel.build(model, dependencies, size, order)
    building = time.perf_counter() - started

    random = np.random.default_rng(0)
    fractions = random.uniform(0, 0.7, (arguments.strategies, len(dependencies.groups)))
    kept = dependencies.channels - np.floor(fractions * dependencies.channels).astype(np.int64)
    cost.macs(kept[:BATCH])  # warm
    started = time.perf_counter()
    for first in range(0, len(kept), BATCH):
        cost.macs(kept[first : first + BATCH])
    together = len(kept) / (time.perf_counter() - started)
    alone = kept[: min(len(kept), 5000)]
    started = time.perf_counter()
    for row in alone:
        cost.macs(row)
    one_by_one = len(alone) / (time.perf_counter() - started)

    exact = True
    started = time.perf_counter()
    for row in kept[:COUNTED]:
        pruned = prune_channels(model, dependencies, order, row)
        exact &= macs_of(pruned, size) == int(cost.macs(row))
    counted = COUNTED / (time.perf_counter() - started)
    started = time.perf_counter()
    for row in kept[:COUNTED]:
        cost.macs(row)
        pruned = prune_channels(model, dependencies, order, row)
    besides = (time.perf_counter() - started) / COUNTED
    share = besides / forward_seconds(pruned, size, arguments.images)

    result = {
        "model": name,
        "image_size": size,
        "groups": len(dependencies.groups),
        "building_seconds": building,
        f"strategies_per_second_in_batches_of_{BATCH}": together,
        "strategies_per_second_one_by_one": one_by_one,
        "strategies_per_second_pruned_and_counted": counted,
        "agrees_with_what_was_counted": exact,
        f"candidate_besides_its_forward_passes_on_{arguments.images}_images": share,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        text = f"{value:,.3f}" if isinstance(value, float) else str(value)
        print(f"{key.replace('_', ' '):56} {text}")


if __name__ == "__main__":
    main()
