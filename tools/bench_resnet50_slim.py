"""Size and speed of a slim capsule network on ResNet-50: 224 pixels, 200 classes, no training.

    python tools/bench_resnet50_slim.py

prunes an untrained ResNet-50 by the published strategy for half of its FLOPs, puts a capsule head
of each kind on it, prunes its capsules to the most that fit a number of parameters, exports it with
verification, and measures the file in ONNX Runtime beside the unpruned network with its linear
classifier. Sizes and times do not depend on the weights. Each network is made in a process of its
own, whose peak memory is told. It prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.heads import DYNAMIC, HEADS
from capsprune.capsules.network import CapsuleNetwork
from capsprune.export import write_onnx
from capsprune.inspection import network_costs, with_capsules
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import find_groups
from capsprune.pruning.strategy import read_strategy
from capsprune.runtime import Place, Timing, profile_variants

MODEL, SIZE, CLASSES = "resnet50", 224, 200
STRATEGY = Path(__file__).resolve().parents[1] / "recipes" / "strategies" / "resnet50-50.json"
#: Heads by what the table calls them: the options of `attach-caps`.
HEADS_TRIED: dict[str, dict[str, Any]] = {
    "depthwise": {"primary": "depthwise"},
    "factored, rank 8": {"primary": "factored", "primary_rank": 8},
}
BASELINE = "unpruned, linear"


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=14e6, help="at most, trunk included")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        files = {BASELINE: Path(folder) / "linear.onnx"}
        rows = {BASELINE: _alone(export_linear, files[BASELINE])}
        for name, head in HEADS_TRIED.items():
            files[name] = Path(folder) / f"{head['primary']}.onnx"
            given = {**head, "iterations": options.iterations}
            rows[name] = _alone(export_slim, given, int(options.parameters), files[name])
        measured = profile_variants(
            files,
            image_size=SIZE,
            place=Place("cpu"),
            timing=Timing(options.batch, repeats=options.repeats, warmup=2),
            folder=Path(folder),
        )
    print(
        "| network | S | capsules | parameters | trunk | PrimaryCaps | OutputCaps | MACs "
        "| file (MB) | largest difference | peak memory of the export (GB) | seconds |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, row in rows.items():
        parts = {part: cost["parameters"] for part, cost in row["parts"].items()}
        print(
            f"| {name} | {row.get('bottleneck_channels', '')} | {row.get('primary_capsules', '')} "
            f"| {row['parameters']:,} | {parts['trunk']:,} | {parts.get('primary_caps', 0):,} "
            f"| {parts.get('output_caps', 0):,} | {row['forward_macs'] / 1e9:.2f} G "
            f"| {row['bytes'] / 1e6:.1f} | {row['max_abs_difference']:.1e} "
            f"| {row['peak_gb']:.1f} | {row['seconds']:.0f} |"
        )
    print("\n| network | batch | latency (ms) | of the first | memory in ONNX Runtime (MB) |")
    print("|---|---:|---:|---:|---:|")
    first = {timed.batch: timed.latency_ms for timed in measured if timed.variant == BASELINE}
    for timed in measured:
        memory = "" if timed.peak_memory_mb is None else f"{timed.peak_memory_mb:.0f}"
        print(
            f"| {timed.variant} | {timed.batch} | {timed.latency_ms:.1f} "
            f"| {timed.latency_ms / first[timed.batch]:.0%} | {memory} |"
        )


def _alone(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """Do something in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def export_linear(path: Path) -> dict[str, Any]:
    """Export the unpruned network with its linear classifier; returns what it came to."""
    started = time.perf_counter()
    network = build_backbone(MODEL, CLASSES, **backbone_arguments(MODEL, SIZE)).eval()
    return _export(network, trunk_of(MODEL, network), path, started)


def export_slim(head: dict[str, Any], parameters: int, path: Path) -> dict[str, Any]:
    """Export the pruned network with the most capsules that fit.

    Args:
        head: options of the head.
        parameters: at most, trunk included.
        path: the file.

    Returns:
        What it came to.
    """
    started = time.perf_counter()
    torch.manual_seed(0)
    model = build_backbone(MODEL, CLASSES, **backbone_arguments(MODEL, SIZE)).eval()
    dependencies = find_groups(model, classifier=backbone(MODEL).classifier, image_size=SIZE)
    kept = read_strategy(STRATEGY, MODEL).kept(dependencies)
    model = prune_channels(model, dependencies, l1_ranking(model, dependencies), kept)
    trunk = trunk_of(MODEL, model)
    features = trunk_output(trunk, SIZE)
    dynamic = HEADS[DYNAMIC]
    whole = dynamic.build(trunk, features, CLASSES, dynamic.configure(DYNAMIC, features, head))
    assert isinstance(whole, CapsuleNetwork)
    low, high = 1, whole.primary_caps.capsules
    while low < high:  # the parameters grow with the capsules
        middle = (low + high + 1) // 2
        fits = _parameters(with_capsules(whole, SIZE, middle)) <= parameters
        low, high = (middle, high) if fits else (low, middle - 1)
    slim = with_capsules(whole, SIZE, low)
    return _export(slim, slim.trunk, path, started)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _export(network: nn.Module, trunk: nn.Module, path: Path, started: float) -> dict[str, Any]:
    torch.manual_seed(1)
    report = write_onnx(
        network,
        path,
        image_size=SIZE,
        class_names=[str(number) for number in range(CLASSES)],
        images=torch.randn(8, 3, SIZE, SIZE),
        metadata={},
    )
    return {
        **network_costs(network, trunk, SIZE, frozen=False),
        "bytes": report.bytes,
        "max_abs_difference": report.max_abs_difference,
        "seconds": time.perf_counter() - started,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


if __name__ == "__main__":
    main()
