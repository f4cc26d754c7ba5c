"""What channel counts in multiples of 8 or 16 are worth at equal FLOPs, in ONNX Runtime.

    python tools/bench_rounding.py --model resnet18 --image-size 32

prunes an untrained network (its latency does not depend on its weights) to half of its FLOPs by
random strategies, rounded to 1, 8 and 16 channels, and measures them and the unpruned network in
turns. It prints a table in Markdown: the median over strategies of the median latency, and the
lowest and the highest of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.export import write_onnx
from capsprune.export.ort import onnxruntime
from capsprune.pipeline.prunable import Prunable
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.drawing import propose
from capsprune.pruning.target import Target
from capsprune.runtime.sessions import session

CLASSES = 10
#: Turns that are not timed.
_WARM_UP = 3
#: What is kept, and the seed of the strategy.
_Key = tuple[str, int]


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--strategies", type=int, default=4, help="of each rounding")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()

    size = options.image_size
    torch.manual_seed(0)
    arguments = backbone_arguments(options.model, size)
    network = Prunable.of(
        options.model, build_backbone(options.model, CLASSES, **arguments).eval(), size
    )
    rankings = l1_ranking(network.model, network.dependencies)
    ratios: dict[str, list[float]] = {"unpruned": [1.0]}
    with tempfile.TemporaryDirectory() as folder:
        files = {("unpruned", 0): _export(network.model, Path(folder) / "unpruned.onnx", size)}
        for round_to in options.round_to:
            name = f"multiples of {round_to}" if round_to > 1 else "any count"
            space = Target(flops=options.flops).search_space(network.cost, round_to=round_to)
            for seed in range(options.strategies):
                kept = space.kept(propose(space, np.random.default_rng(seed)))
                ratios.setdefault(name, []).append(float(network.cost.flops_ratio(kept)))
                pruned = prune_channels(network.model, network.dependencies, rankings, kept)
                file = Path(folder) / f"{round_to}-{seed}.onnx"
                files[name, seed] = _export(pruned, file, size)
        sessions = {
            key: session(file, provider="cpu", threads=options.threads)
            for key, file in files.items()
        }
    print("| channels | FLOPs | " + " | ".join(f"batch {b}, ms" for b in options.batches) + " |")
    print("|---|--:|" + "--:|" * len(options.batches))
    by_batch = [_measure(sessions, size, batch, options.repeats) for batch in options.batches]
    for name, found in ratios.items():
        cells = [f"{100 * median(found):.1f} %"]
        for seconds in by_batch:
            medians = [1000 * value for (strategy, _), value in seconds.items() if strategy == name]
            spread = f" ({min(medians):.2f} to {max(medians):.2f})" if len(medians) > 1 else ""
            cells.append(f"{median(medians):.2f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")


def _export(network: torch.nn.Module, file: Path, size: int) -> Path:
    write_onnx(
        network,
        file,
        image_size=size,
        class_names=[str(n) for n in range(CLASSES)],
        images=torch.randn(2, 3, size, size),
        metadata={},
    )
    return file


def _measure(
    sessions: dict[_Key, onnxruntime.InferenceSession], size: int, batch: int, repeats: int
) -> dict[_Key, float]:
    """Run all in turns, again and again; give the median seconds of each."""
    image = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    taken: dict[_Key, list[float]] = {key: [] for key in sessions}
    for turn in range(_WARM_UP + repeats):
        for key, opened in sessions.items():
            started = time.perf_counter()
            opened.run(["class_probabilities"], {"image": image})
            if turn >= _WARM_UP:
                taken[key].append(time.perf_counter() - started)
    return {key: median(seconds) for key, seconds in taken.items()}


if __name__ == "__main__":
    main()
