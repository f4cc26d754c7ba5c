"""Measure how many strategies a second the cost model prices, beside pruning and counting each.

python tools/bench_cost.py [--model resnet50] [--image-size 224] [--strategies 100000] [--json]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from verify_backbones import fvcore_macs

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel
from capsprune.pruning.groups import find_groups

#: Strategies priced in one call: as many as a sampler may draw together.
BATCH = 1000
#: Strategies that are pruned and counted by fvcore for comparison.
COUNTED = 3


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--strategies", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    name, size = arguments.model, arguments.image_size

    model = build_backbone(name, 1000, **backbone_arguments(name, size)).eval()
    started = time.perf_counter()
    dependencies = find_groups(model, classifier=backbone(name).classifier, image_size=size)
    cost = CostModel.build(model, dependencies, size)
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

    order = [torch.arange(group.channels) for group in dependencies.groups]
    exact = True
    started = time.perf_counter()
    for row in kept[:COUNTED]:
        pruned = prune_channels(model, dependencies, order, row)
        exact &= fvcore_macs(pruned, size) == int(cost.macs(row))
    counted = COUNTED / (time.perf_counter() - started)

    result = {
        "model": name,
        "image_size": size,
        "groups": len(dependencies.groups),
        "building_seconds": building,
        f"strategies_per_second_in_batches_of_{BATCH}": together,
        "strategies_per_second_one_by_one": one_by_one,
        "strategies_per_second_pruned_and_counted_by_fvcore": counted,
        "agrees_with_fvcore": exact,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        text = f"{value:,.2f}" if isinstance(value, float) else str(value)
        print(f"{key.replace('_', ' '):56} {text}")


if __name__ == "__main__":
    main()
