"""Compare ways to prune to half the FLOPs: MobileNetV1 on Fashion-MNIST, in under an hour.

    python tools/bench_search.py [--out runs/bench-search]

Every method starts from the same baseline, prunes it to the same FLOPs ratio, and gets the same
images and the same fine-tuning. EagleEye's own argument is put to the test beside it: of random
sub-nets, does the accuracy with recomputed batch norm statistics tell the accuracy after
fine-tuning better than the accuracy with stale ones?

What is finished is kept in the folder: given again, the command goes on where it stopped. At the
end the folder has `results.md`, `methods.png` and `correlation.png`.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_steps import kept
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.data.images import ImageSet
from capsprune.data.loaders import data_loader
from capsprune.data.names import data_set
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.sources import load_data
from capsprune.data.transforms import EvaluationTransform, TrainingTransform
from capsprune.files import replacing, write_bytes, write_text
from capsprune.progress import TerminalProgress
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_macs
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.drawing import propose
from capsprune.pruning.evaluation import Evaluator
from capsprune.pruning.groups import find_groups
from capsprune.pruning.names import SAMPLERS
from capsprune.pruning.search import SearchResult, SearchSettings, search
from capsprune.pruning.study import Study
from capsprune.pruning.target import Target
from capsprune.report.charts import theme
from capsprune.schedule import Schedule
from capsprune.training.device import make_fabric
from capsprune.training.evaluate import evaluate
from capsprune.training.fit import Batches, Training, fit
from capsprune.training.objective import CROSS_ENTROPY

MODEL, DATA, SIZE, CLASSES = "mobilenet_v1", "fashion-mnist", 32, 10
FLOPS = 0.5
SEED = 0
TRAINING_IMAGES, SCORING_IMAGES = 10_000, 2_000
CALIBRATION_BATCHES, BATCH = 10, 64
BASELINE = Schedule(epochs=6, batch_size=BATCH, lr=3e-3, weight_decay=0.02)
FINETUNE = Schedule(epochs=1, batch_size=BATCH, lr=1e-3, weight_decay=0.02)


#: With successive halving, this many times the candidates are tried, for about the same cost.
HALVING_CANDIDATES, REDUCTION_FACTOR = 10, 4
FINETUNE_SEEDS = (0, 1)
SUBNETS = 20


@dataclass(frozen=True)
class Pruned:
    """What a method made of the baseline."""

    network: nn.Module
    #: Seconds that it took to find, training left out.
    seconds: float
    #: Strategies that were scored, if any.
    candidates: int = 0
    #: Seconds of those by part.
    parts: dict[str, float] | None = None


class Bench:
    """Data, baseline and search space that all methods share."""

    def __init__(self, out: Path, candidates: int) -> None:
        self.out = out
        self.candidates = candidates
        self.progress = TerminalProgress()
        self.fabric = make_fabric("cpu", "32-true")
        splits = load_data(DATA, image_size=SIZE, seed=SEED)
        self.train = splits.train.select(range(TRAINING_IMAGES))
        self.validation = splits.validation.select(range(SCORING_IMAGES))
        self.calibration = [b for b, _ in self._batches(self.train, BATCH, CALIBRATION_BATCHES)]
        self.scoring = self._batches(self.validation)
        self.test = self._batches(splits.test)
        self.baseline = self._baseline()
        self.dependencies = find_groups(
            self.baseline, classifier=backbone(MODEL).classifier, image_size=SIZE
        )
        self.cost = CostModel.build(self.baseline, self.dependencies, SIZE)
        self.space = Target(flops=FLOPS).search_space(self.cost)
        self.rankings = l1_ranking(self.baseline, self.dependencies)

    def kept_network(self, kept: NDArray[np.int64]) -> nn.Module:
        """Prune the baseline to these channel counts, [G], lowest L1 norms first."""
        return prune_channels(self.baseline, self.dependencies, self.rankings, kept)

    def finetune(self, network: nn.Module, seed: int) -> float:
        """Fine-tune in place and give the accuracy on test images."""
        self._fit(network, FINETUNE, seed)
        return self.accuracy(network, self.test)

    def accuracy(self, network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Top-1 accuracy."""
        return evaluate(network, batches, CROSS_ENTROPY).accuracy

    def macs(self, network: nn.Module) -> int:
        """MACs for one image, counted on the network itself."""
        return sum(count_macs(network, SIZE).values())

    def search(
        self, sampler: str, candidates: int, factor: int = 1, name: str | None = None
    ) -> tuple[SearchResult, float]:
        """Search, or go on with the search of that name, and give its result and its seconds.

        Its own clock counts, not this process's: the search may have been interrupted.
        """
        name = name or f"{sampler}-{candidates}"
        with (
            Study.local(self.out / f"{name}.db") as study,
            self.progress.bar(f"Candidates, {name}") as bar,
        ):
            found = search(
                Evaluator(
                    self.baseline,
                    self.dependencies,
                    self.rankings,
                    self.calibration,
                    self.scoring,
                    CROSS_ENTROPY,
                ),
                self.space,
                SearchSettings(candidates, SEED, sampler, factor),
                study=study,
                on_candidate=lambda _, done, total: bar(done, total),
            )
        return found, sum(found.seconds().values())

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Give a step's result: the stored one if there is one."""
        return kept(self.out / f"{name}.json", name, self.progress, make)

    def _baseline(self) -> nn.Module:
        torch.manual_seed(SEED)
        network = build_backbone(MODEL, CLASSES, **backbone_arguments(MODEL, SIZE))
        weights = self.out / "baseline.pt"
        if not weights.is_file():
            self.progress.say(f"{time.strftime('%H:%M:%S')} baseline")
            self._fit(network, BASELINE, SEED)
            with replacing(weights) as partial:
                torch.save(network.state_dict(), partial)
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.to(memory_format=torch.channels_last).eval()

    def _fit(self, network: nn.Module, schedule: Schedule, seed: int) -> None:
        loader = data_loader(self.train, batch_size=schedule.batch_size, shuffle=True, seed=seed)
        shown = Preprocessing(SIZE)
        train = Batches(loader, TrainingTransform(data_set(DATA).augmentation, shown))
        validation = Batches(
            data_loader(self.validation, batch_size=128), EvaluationTransform(shown)
        )
        fit(self.fabric, network, Training(CROSS_ENTROPY, train, validation, schedule, seed))

    def _batches(
        self, images: ImageSet, size: int = 128, count: int | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        transform = EvaluationTransform(Preprocessing(SIZE))
        chosen = images if count is None else images.select(range(size * count))
        return [
            (transform(batch).contiguous(memory_format=torch.channels_last), labels)
            for batch, labels in data_loader(chosen, batch_size=size)
        ]


# ---- the methods

Method = Callable[[Bench], Pruned]


def uniform_l1(bench: Bench) -> Pruned:
    """Remove the same fraction of each group: the simplest thing that meets the target."""
    started = time.perf_counter()
    low, high = 0.0, 1.0
    ones = np.ones(bench.space.groups)
    for _ in range(40):
        middle = (low + high) / 2
        ratio = float(bench.cost.flops_ratio(bench.space.kept(middle * ones)))
        low, high = (middle, high) if ratio > FLOPS else (low, middle)
    network = bench.kept_network(bench.space.kept(high * ones))
    return Pruned(network, time.perf_counter() - started)


def global_magnitude(bench: Bench) -> Pruned:
    """Remove the channels of least magnitude anywhere: torch-pruning's global group pruning."""
    import torch_pruning

    started = time.perf_counter()
    network = copy.deepcopy(bench.baseline)
    image = torch.zeros(1, 3, SIZE, SIZE)
    pruner = torch_pruning.pruner.BasePruner(
        network,
        image,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
        global_pruning=True,
        pruning_ratio=0.9,
        iterative_steps=200,
        ignored_layers=[network.get_submodule(backbone(MODEL).classifier)],
    )
    while bench.macs(network) > FLOPS * bench.cost.unpruned_macs:
        pruner.step()
    return Pruned(network, time.perf_counter() - started)


def searched(sampler: str, times: int = 1, factor: int = 1) -> Method:
    """Search with a sampler; with `factor`, by successive halving among `times` as many."""

    def make(bench: Bench) -> Pruned:
        found, seconds = bench.search(sampler, times * bench.candidates, factor)
        kept = bench.space.kept(np.array(found.best.fractions))
        return Pruned(
            bench.kept_network(kept), seconds, times * bench.candidates, dict(found.seconds())
        )

    return make


METHODS: dict[str, tuple[str, Method]] = {
    "uniform-l1": ("uniform, L1", uniform_l1),
    "global-magnitude": ("torch-pruning, global magnitude", global_magnitude),
    **{name: (f"search, {name}", searched(name)) for name in SAMPLERS},
    "random-halving": (
        f"search, random, halving by {REDUCTION_FACTOR}",
        searched("random", HALVING_CANDIDATES, REDUCTION_FACTOR),
    ),
}


def run_method(bench: Bench, make: Method) -> dict[str, Any]:
    """Prune, calibrate, fine-tune; measure after each."""
    pruned = make(bench)
    network = pruned.network
    stale = bench.accuracy(network, bench.test)
    recalibrate(network, bench.calibration)
    calibrated = bench.accuracy(network, bench.test)
    finetuned, seconds = [], []
    for seed in FINETUNE_SEEDS:
        copied = copy.deepcopy(network)
        started = time.perf_counter()
        finetuned.append(bench.finetune(copied, seed))
        seconds.append(time.perf_counter() - started)
    return {
        "flops_ratio": bench.macs(network) / bench.cost.unpruned_macs,
        "candidates": pruned.candidates,
        "search_seconds": pruned.seconds,
        "parts": pruned.parts,
        "stale_accuracy": stale,
        "calibrated_accuracy": calibrated,
        "finetuned_accuracy": finetuned,
        "finetune_seconds": statistics.mean(seconds),
    }


# ---- EagleEye's argument, and what a candidate costs


def run_subnet(bench: Bench, index: int) -> dict[str, Any]:
    """Score one random sub-net as a search would with stale and with new statistics; fine-tune."""
    fractions = propose(bench.space, np.random.default_rng((SEED, index)))
    network = bench.kept_network(bench.space.kept(fractions))
    stale = evaluate(network, bench.scoring, CROSS_ENTROPY)
    recalibrate(network, bench.calibration)
    calibrated = evaluate(network, bench.scoring, CROSS_ENTROPY)
    return {
        "stale": stale.accuracy,
        "stale_loss": stale.loss,
        "calibrated": calibrated.accuracy,
        "calibrated_loss": calibrated.loss,
        "finetuned": bench.finetune(network, SEED),
    }


def measure_bound(bench: Bench) -> dict[str, float]:
    """Candidates a minute, and what pure forward passes of the same networks would allow."""
    count = 8
    found, _ = bench.search("random", count, name="bound")
    seconds = found.seconds()
    passes = 0.0
    for candidate in found.candidates:
        network = bench.kept_network(bench.space.kept(np.array(candidate.fractions)))
        network.train()
        started = time.perf_counter()
        with torch.no_grad():
            for images in bench.calibration:
                network(images)
            network.eval()
            for images, _ in bench.scoring:
                network(images)
        passes += time.perf_counter() - started
    total = sum(seconds.values())
    return {
        **{part: value / total for part, value in seconds.items()},
        "candidates_a_minute": 60 * count / total,
        "bound_a_minute": 60 * count / passes,
        "over_bound": total / passes,
    }


def correlations(subnets: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Pearson's, Spearman's and Kendall's coefficients with the accuracy after fine-tuning."""
    from scipy import stats

    after = [subnet["finetuned"] for subnet in subnets]

    def coefficients(before: list[float]) -> dict[str, float]:
        # Where all sub-nets score alike, as they do where none is better than chance, no
        # coefficient is defined.
        if len(set(before)) == 1:
            return dict.fromkeys(("pearson", "spearman", "kendall"), math.nan)
        return {
            "pearson": float(stats.pearsonr(before, after).statistic),
            "spearman": float(stats.spearmanr(before, after).statistic),
            "kendall": float(stats.kendalltau(before, after).statistic),
        }

    return {
        kind: coefficients([subnet[kind] for subnet in subnets]) for kind in ("stale", "calibrated")
    }


# ---- what comes out


def markdown(
    results: dict[str, dict[str, Any]],
    subnets: Sequence[dict[str, float]],
    bound: dict[str, float],
    baseline: float,
) -> str:
    """Write the tables."""
    lines = [
        "| method | candidates | FLOPs | stale BN | recalibrated | fine-tuned | search |",
        "|---|--:|--:|--:|--:|--:|--:|",
        f"| unpruned | | 100 % | | | {baseline:.2%} | |",
    ]
    for name, result in results.items():
        after = result["finetuned_accuracy"]
        spread = (max(after) - min(after)) / 2
        lines.append(
            f"| {METHODS[name][0]} | {result['candidates'] or ''} | {result['flops_ratio']:.1%} "
            f"| {result['stale_accuracy']:.2%} | {result['calibrated_accuracy']:.2%} "
            f"| {statistics.mean(after):.2%} ± {100 * spread:.2f} "
            f"| {result['search_seconds']:.1f} s |"
        )
    lines += ["", "| score of a sub-net | Pearson | Spearman | Kendall |", "|---|--:|--:|--:|"]
    titles = {"stale": "stale BN statistics", "calibrated": "recomputed BN statistics"}
    for kind, values in correlations(subnets).items():
        numbers = " | ".join(_shown(value) for value in values.values())
        lines.append(f"| {titles[kind]} | {numbers} |")
    parts = ", ".join(
        f"{part} {bound[part]:.1%}" for part in ("pruning", "calibration", "scoring", "other")
    )
    lines += [
        "",
        f"A candidate's time: {parts}. {bound['candidates_a_minute']:.1f} candidates a minute; "
        f"pure forward passes of the same networks allow {bound['bound_a_minute']:.1f} "
        f"({bound['over_bound']:.2f} times that lower bound).",
    ]
    return "\n".join(lines) + "\n"


def _shown(coefficient: float) -> str:
    return "undefined" if math.isnan(coefficient) else f"{coefficient:.2f}"


def draw_correlation(subnets: Sequence[dict[str, float]], path: Path) -> None:
    """Draw accuracy before fine-tuning against accuracy after it, one panel for each score."""
    import altair

    found = correlations(subnets)
    panels = []
    for kind, name in (
        ("stale", "stale BN statistics"),
        ("calibrated", "recomputed BN statistics"),
    ):
        points = [{"x": 100 * s[kind], "y": 100 * s["finetuned"]} for s in subnets]
        values = ", ".join(
            f"{coefficient.capitalize()} {_shown(found[kind][coefficient])}"
            for coefficient in ("pearson", "spearman", "kendall")
        )
        x = altair.X("x:Q", title="accuracy on held-out images before fine-tuning (%)")
        y = altair.Y("y:Q", title="test accuracy after fine-tuning (%)")
        panels.append(
            altair.Chart(altair.InlineData(values=points), title=[name, values])
            .mark_point(filled=True, size=50)
            .encode(x.scale(zero=False), y.scale(zero=False))
        )
    title = f"{len(subnets)} random sub-nets of MobileNetV1, 50 % FLOPs, Fashion-MNIST"
    _draw(altair.hconcat(*panels, title=title), path)


def draw_methods(results: dict[str, dict[str, Any]], baseline: float, path: Path) -> None:
    """Draw each method's accuracy after calibration and after fine-tuning."""
    import altair

    points = [
        {"method": METHODS[name][0], "accuracy": 100 * accuracy, "what": what}
        for name, result in results.items()
        for what, accuracies in (
            ("recalibrated", [result["calibrated_accuracy"]]),
            ("fine-tuned (one dot a seed)", result["finetuned_accuracy"]),
        )
        for accuracy in accuracies
    ]
    unpruned = [{"accuracy": 100 * baseline, "what": "unpruned"}]
    x = altair.X("accuracy:Q", title="test accuracy (%)").scale(zero=False)
    colour = altair.Color("what:N", title=None).legend(orient="bottom")
    dots = altair.Chart(altair.InlineData(values=points)).mark_point(filled=True, size=50)
    line = altair.Chart(altair.InlineData(values=unpruned)).mark_rule(strokeDash=[6, 3])
    order = [METHODS[name][0] for name in results]
    chart = altair.layer(
        line.encode(x=x, color=colour),
        dots.encode(x=x, color=colour, y=altair.Y("method:N", title=None, sort=order)),
        title="Half the FLOPs of MobileNetV1, Fashion-MNIST",
        width=420,
    )
    _draw(chart, path)


def _draw(chart: Any, path: Path) -> None:
    import vl_convert

    spec = chart.to_dict() | {"config": theme("light"), "padding": 10}
    write_bytes(path, vl_convert.vegalite_to_png(spec, scale=2, allowed_base_urls=[]))


def main() -> None:
    """Run what is not done yet, and write the tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--candidates", type=int, default=50, help="of each search")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.out, arguments.candidates)
    baseline = bench.kept(
        "baseline", lambda: {"accuracy": bench.accuracy(bench.baseline, bench.test)}
    )["accuracy"]
    bound = bench.kept("bound", lambda: measure_bound(bench))
    results = {
        name: bench.kept(name, lambda make=make: run_method(bench, make))  # type: ignore[misc]
        for name, (_, make) in METHODS.items()
    }
    subnets = [
        bench.kept(f"subnet-{index:02d}", lambda index=index: run_subnet(bench, index))  # type: ignore[misc]
        for index in range(SUBNETS)
    ]
    text = markdown(results, subnets, bound, baseline)
    write_text(arguments.out / "results.md", text)
    draw_methods(results, baseline, arguments.out / "methods.png")
    draw_correlation(subnets, arguments.out / "correlation.png")
    print(text)
    print(f"Tables and pictures are in {arguments.out}.")


if __name__ == "__main__":
    main()
