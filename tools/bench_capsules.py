"""Compare ways to prune primary capsules: MobileNetV1 on Fashion-MNIST at 16 pixels.

    python tools/bench_capsules.py [--out runs/bench-capsules] [PART ...]

Three capsule networks are trained, of three seeds, as the README's are. The part `criteria` ranks
their primary capsules by each criterion, keeps fewer and fewer, and scores what is left on all test
images, without any training: as it is, and with OutputCaps solved anew for the capsules kept.

What is finished is kept in the folder: given again, the command goes on where it stopped. At the
end the folder has `results.md`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_steps import kept
from torch import Tensor, nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.head import head_of
from capsprune.capsules.network import CapsuleNetwork
from capsprune.data.images import ImageSet
from capsprune.data.loaders import data_loader
from capsprune.data.names import data_set
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.sources import load_data
from capsprune.data.transforms import EvaluationTransform, TrainingTransform
from capsprune.files import replacing, write_text
from capsprune.progress import TerminalProgress
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import Compensation, prune_channels
from capsprune.pruning.compensation import LeastSquares
from capsprune.pruning.criteria import rank_channels
from capsprune.pruning.names import CAPSULE_CRITERIA
from capsprune.schedule import Schedule
from capsprune.training.device import make_fabric
from capsprune.training.evaluate import evaluate
from capsprune.training.fit import Batches, Training, fit
from capsprune.training.objective import CROSS_ENTROPY, Objective

MODEL, DATA, SIZE, CLASSES = "mobilenet_v1", "fashion-mnist", 16, 10
SEEDS = (0, 1, 2)
TRAINING_IMAGES, VALIDATION_IMAGES = 6_000, 1_000
CALIBRATION_BATCHES, BATCH = 20, 64
BASELINE = Schedule(epochs=8, batch_size=BATCH, lr=3e-3, weight_decay=0.02)
HEAD = Schedule(epochs=5, batch_size=BATCH, lr=1e-3)
#: Capsules kept of 128: a half, 75, 90, 95, 98 % removed.
KEPT = (64, 32, 13, 6, 3)


class Bench:
    """Data, and the capsule network of one seed."""

    def __init__(self, out: Path, seed: int, progress: TerminalProgress) -> None:
        """Train the network, or load it where it was trained before."""
        self.out, self.seed, self.progress = out, seed, progress
        self.fabric = make_fabric("cpu", "32-true")
        splits = load_data(DATA, image_size=SIZE, seed=seed)
        self.train = splits.train.select(range(TRAINING_IMAGES))
        self.validation = splits.validation.select(range(VALIDATION_IMAGES))
        self.calibration = self.batches(self.train.select(range(BATCH * CALIBRATION_BATCHES)))
        self.network = self._network()
        #: What the trunk, of which nothing is pruned here, makes of the test images.
        self.test = self._features(self.batches(splits.test))
        self.objective = head_of(self.network).objective
        self.dependencies = find_capsule_groups(self.network, SIZE)

    def rankings(self, capsule_criterion: str) -> list[Tensor]:
        """Rank channels and capsules."""
        return rank_channels(
            self.network,
            self.dependencies,
            batches=self.calibration,
            seed=self.seed,
            objective=self.objective,
            capsule_criterion=capsule_criterion,
        )

    def with_capsules(
        self, rankings: list[Tensor], capsules: int, compensate: Compensation | None
    ) -> CapsuleNetwork:
        """Return the network with so many of its capsules, and all else that it has."""
        kept = self.dependencies.channels  # a new array
        for index, group in enumerate(self.dependencies.groups):
            if group.kind == "capsules":
                kept[index] = capsules
        network = prune_channels(self.network, self.dependencies, rankings, kept, compensate)
        assert isinstance(network, CapsuleNetwork)
        return network

    def accuracy(self, network: CapsuleNetwork) -> float:
        """Top-1 accuracy on test images of a network that has this trunk."""
        head = copy.copy(network)
        head._modules = {**network._modules, "trunk": nn.Identity()}
        return evaluate(head, self.test, self.objective).accuracy

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Give a step's result: the stored one if there is one."""
        path = self.out / f"{name}-{self.seed}.json"
        return kept(path, f"{name}, seed {self.seed}", self.progress, make)

    def batches(self, images: ImageSet) -> list[tuple[Tensor, Tensor]]:
        """Return prepared images and labels."""
        transform = EvaluationTransform(Preprocessing(SIZE))
        return [
            (transform(batch).contiguous(memory_format=torch.channels_last), labels)
            for batch, labels in data_loader(images, batch_size=BATCH)
        ]

    def fit(self, network: nn.Module, objective: Objective, schedule: Schedule) -> None:
        """Train in place."""
        loader = data_loader(
            self.train, batch_size=schedule.batch_size, shuffle=True, seed=self.seed
        )
        shown = Preprocessing(SIZE)
        train = Batches(loader, TrainingTransform(data_set(DATA).augmentation, shown))
        validation = Batches(
            data_loader(self.validation, batch_size=128), EvaluationTransform(shown)
        )
        fit(self.fabric, network, Training(objective, train, validation, schedule, self.seed))

    @torch.no_grad()
    def _features(self, batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [(self.network.trunk(images), labels) for images, labels in batches]

    def _network(self) -> CapsuleNetwork:
        torch.manual_seed(self.seed)
        backbone = build_backbone(MODEL, CLASSES, **backbone_arguments(MODEL, SIZE))
        weights = self.out / f"network-{self.seed}.pt"
        trained = weights.is_file()
        if not trained:
            self.progress.say(f"{time.strftime('%H:%M:%S')} training, seed {self.seed}")
            self.fit(backbone, CROSS_ENTROPY, BASELINE)
        trunk = trunk_of(MODEL, backbone)
        features = trunk_output(trunk, SIZE)
        network = CapsuleNetwork(
            trunk, channels=features.channels, feature_size=features.size, classes=CLASSES
        )
        if not trained:
            self.fit(network, head_of(network).objective, HEAD)
            with replacing(weights) as partial:
                torch.save(network.state_dict(), partial)
        network.load_state_dict(torch.load(weights, weights_only=True))
        network.to(memory_format=torch.channels_last)
        return network.eval()


# ---- criteria


def run_criteria(bench: Bench) -> dict[str, Any]:
    """Score what each criterion keeps, as it is and with OutputCaps solved anew.

    Returns:
        Accuracies of the whole network and, by criterion, for each number of capsules kept; and the
        seconds that each ranking took.
    """
    compensation = LeastSquares.of(bench.network, bench.calibration)
    found: dict[str, Any] = {"whole": bench.accuracy(bench.network)}
    for name in CAPSULE_CRITERIA:
        started = time.perf_counter()
        rankings = bench.rankings(name)
        entry: dict[str, Any] = {"seconds": time.perf_counter() - started}
        for kind, compensate in (("plain", None), ("solved", compensation)):
            entry[kind] = [
                bench.accuracy(bench.with_capsules(rankings, count, compensate)) for count in KEPT
            ]
        found[name] = entry
    return found


def criteria_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Write the means over seeds."""

    def shown(values: Sequence[float]) -> str:
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * statistics.mean(values):.2f}{spread}"

    whole = shown([result["whole"] for result in results])
    lines = []
    for kind, title in (
        ("plain", "Removed, and nothing else"),
        ("solved", "Removed, and OutputCaps solved anew for the capsules kept"),
    ):
        lines += [
            f"{title} (the whole network: {whole} %):",
            "",
            "| criterion | " + " | ".join(f"{count} of 128" for count in KEPT) + " |",
            "|---|" + "--:|" * len(KEPT),
        ]
        for name in CAPSULE_CRITERIA:
            cells = [
                shown([result[name][kind][place] for result in results])
                for place in range(len(KEPT))
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    seconds = ", ".join(
        f"{name} {statistics.mean(result[name]['seconds'] for result in results):.1f} s"
        for name in CAPSULE_CRITERIA
    )
    return "\n".join([*lines, f"A ranking of 128 capsules took: {seconds}.", ""])


#: By name: what is run for each seed, what is said of it, and the heading.
PARTS: dict[
    str,
    tuple[Callable[[Bench], dict[str, Any]], Callable[[Sequence[Mapping[str, Any]]], str], str],
] = {
    "criteria": (run_criteria, criteria_table, "Criteria of capsules, without any training"),
}


def main() -> None:
    """Run the parts for all seeds, and write what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-capsules"))
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    parts = arguments.parts or [*PARTS]
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"there is no part '{unknown[0]}'; there are {', '.join(PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = TerminalProgress()
    results: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for seed in SEEDS:
        bench = Bench(arguments.out, seed, progress)
        for part in parts:
            results[part].append(bench.kept(part, functools.partial(PARTS[part][0], bench)))
    pages = [f"## {PARTS[part][2]}\n\n{PARTS[part][1](found)}" for part, found in results.items()]
    text = "\n".join(pages)
    write_text(arguments.out / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
