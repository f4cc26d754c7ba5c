"""What it takes to measure the latency of a candidate: a full export each, or one graph for all.

    python tools/bench_latency.py --model resnet50 --image-size 224

prunes an untrained network (its latency does not depend on its weights) by random strategies to
half of its FLOPs, and measures each with a capsule head in both ways, in turns. It prints a table
in Markdown: seconds a candidate, the share of them that are runs of the network, and the median
latency, which both ways must agree on. The exports that the one graph is learnt from are counted
apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import mean, median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.capsules.heads import DYNAMIC, HEADS
from capsprune.pipeline.latency import PrunedLatency
from capsprune.pipeline.prunable import Prunable, UntrainedHead
from capsprune.progress import Progress
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.drawing import propose
from capsprune.pruning.target import Target
from capsprune.runtime.latency import REPEATS, WARM_UP, network_latency

EXPORT, TEMPLATE = "a full export each", "one graph for all"


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--head", default=DYNAMIC, help=HEADS.help())
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--candidates", type=int, default=4)
    options = parser.parse_args()

    size = options.image_size
    torch.manual_seed(0)
    model = build_backbone(
        options.model, options.classes, **backbone_arguments(options.model, size)
    ).eval()
    head = UntrainedHead(HEADS.check(options.head), 8)
    network = Prunable.of(options.model, model, size, measured_with=head)
    rankings = l1_ranking(model, network.dependencies)
    space = Target(flops=options.flops).search_space(network.cost, round_to=8)
    generator = np.random.default_rng(0)

    def propose_kept() -> NDArray[np.int64]:
        return space.kept(propose(space, generator))

    counts = [space.least(), *(propose_kept() for _ in range(options.candidates))]
    pruned = [prune_channels(model, network.dependencies, rankings, kept) for kept in counts]
    template = PrunedLatency(network, Progress())

    def export(backbone: nn.Module) -> float:
        return network_latency(network.as_measured(backbone), size)

    # The smallest network and the unpruned one are what graphs are made from.
    spent, _ = _timed(template, pruned[0])
    ways: dict[str, Callable[[nn.Module], float]] = {EXPORT: export, TEMPLATE: template}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    latencies: dict[str, list[float]] = {way: [] for way in ways}
    learnt = 0.0
    for number, candidate in enumerate(pruned[1:]):
        for way, measure in ways.items():
            took, milliseconds = _timed(measure, candidate)
            if way == TEMPLATE and number == 0:
                learnt = took
                took, milliseconds = _timed(measure, candidate)
            seconds[way].append(took)
            latencies[way].append(milliseconds)
    print("| way | seconds a candidate | of them runs | latency (ms) |\n|---|---:|---:|---:|")
    for way in ways:
        runs = mean(latencies[way]) / 1000 * (REPEATS + WARM_UP)
        print(
            f"| {way} | {mean(seconds[way]):.2f} ({min(seconds[way]):.2f} to "
            f"{max(seconds[way]):.2f}) | {runs / mean(seconds[way]):.0%} | "
            f"{median(latencies[way]):.1f} |"
        )
    print(
        f"\nThe one graph was learnt from two exports: {spent:.1f} s, which measured the "
        f"smallest network too, and {learnt - seconds[TEMPLATE][0]:.1f} s."
    )


def _timed(measure: Callable[[nn.Module], float], network: nn.Module) -> tuple[float, float]:
    """Return the seconds that measuring took, and the milliseconds measured."""
    started = time.perf_counter()
    milliseconds = measure(network)
    return time.perf_counter() - started, milliseconds


if __name__ == "__main__":
    main()
