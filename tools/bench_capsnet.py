"""Put PrunedCaps to the test on Sabour's own network: criterion against capsules kept.

    python tools/bench_capsnet.py [--out runs/bench-capsnet] [--seeds 0 1 2]

The trunk of CapsNet with its 1,152 primary capsules (32 types, 6 x 6 positions) is trained whole on
a part of Fashion-MNIST, without a decoder, once for each seed. Each capsule criterion then ranks
the capsules on calibration images, and as many as a number says stay. The accuracy is that on test
images at once, and after one epoch of OutputCaps alone, in which the unpruned network gets the same
epoch. Nothing else has statistics to recompute: this network has no batch norm. At the end the
unpruned network and the smallest that was asked for are exported and timed in ONNX Runtime in
turns, whole and by parts.

It takes 25 minutes on one core of a server, most of it training. What is finished is kept in the
folder, in `results.jsonl`: given again, the command goes on where it stopped. At the end the
folder has `results.md`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capsprune.backbones.registry import backbone, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork, OutputCaps
from capsprune.capsules.head import onnx_operators
from capsprune.capsules.heads import DYNAMIC, HEADS
from capsprune.capsules.loss import margin_loss
from capsprune.data.images import ImageSet
from capsprune.data.loaders import data_loader
from capsprune.data.names import data_set
from capsprune.data.sources import load_data
from capsprune.data.transforms import EvaluationTransform, TrainingTransform
from capsprune.export import write_onnx
from capsprune.files import replacing, write_text
from capsprune.progress import TerminalProgress
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_macs, count_parameters
from capsprune.pruning.criteria import rank_channels
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.names import CAPSULE_CRITERIA, DEFAULT_CAPSULE_CRITERION
from capsprune.runtime.profile import Place, Timing, profile_variants
from capsprune.runtime.sessions import input_shape, session
from capsprune.schedule import Schedule
from capsprune.training.device import make_fabric
from capsprune.training.fit import Batches, History, Training, fit

MODEL, DATA, SIZE, CLASSES = "capsnet", "fashion-mnist", 28, 10
TRAINING_IMAGES, VALIDATION_IMAGES, TEST_IMAGES, CALIBRATION_IMAGES = 3_000, 200, 2_000, 512
SCHEDULE = Schedule(epochs=4, batch_size=32, lr=1e-3)
#: Of OutputCaps alone, on capsules that stay as they are.
FINETUNE = replace(SCHEDULE, epochs=1)
COUNTS = (1152, 576, 288, 115, 58, 23, 12)
SMALLEST = 58
BATCHES, REPEATS, WARM_UP = (1, 32), 30, 5
HEAD = HEADS[DYNAMIC]


@dataclass(frozen=True)
class Capsules:
    """Primary capsules of some images, which pruning leaves as they are."""

    #: [N, I, D1].
    u: Tensor
    #: [N].
    labels: Tensor

    def of(self, places: Tensor) -> Capsules:
        """Return those at some places, which are the only ones left in a pruned network."""
        return Capsules(self.u[:, places], self.labels)


class Results:
    """What was measured, a line for each step, kept as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        # A line that was being written when the process died is measured again.
        self.rows: list[dict[str, Any]] = [json.loads(x) for x in lines if x.endswith("}")]

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """Return the row with these values, if it is there."""
        return next(
            (row for row in self.rows if all(row.get(k) == v for k, v in wanted.items())), None
        )

    def add(self, **row: Any) -> None:
        """Keep a row."""
        self.rows.append(row)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))


class Bench:
    """The data, and the networks of all seeds."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.progress = TerminalProgress()
        self.fabric = make_fabric("cpu", "32-true")
        splits = load_data(DATA, image_size=SIZE, seed=0)
        self.shown = backbone(MODEL).preprocessing(SIZE)
        self.train = splits.train.select(range(TRAINING_IMAGES))
        self.calibration = self.train.select(range(CALIBRATION_IMAGES))
        self.validation = splits.validation.select(range(VALIDATION_IMAGES))
        self.test = splits.test.select(range(TEST_IMAGES))
        self.results = Results(out / "results.jsonl")

    def network(self, seed: int) -> CapsuleNetwork:
        """Return the network of a seed, trained now or before."""
        torch.manual_seed(seed)
        trunk = trunk_of(MODEL, build_backbone(MODEL, CLASSES))
        features = trunk_output(trunk, SIZE)
        config = HEAD.configure(DYNAMIC, features, {"primary": "spatial"})
        network = HEAD.build(trunk, features, CLASSES, config)
        assert isinstance(network, CapsuleNetwork)
        weights = self.out / f"seed{seed}.pt"
        if not weights.is_file():
            started = time.process_time()
            history = self._train(network, seed)
            with replacing(weights) as partial:
                torch.save(network.state_dict(), partial)
            self.results.add(
                step="train",
                seed=seed,
                **history.epochs[-1].to_dict(),
                cpu_seconds=time.process_time() - started,
            )
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.eval()

    def _train(self, network: CapsuleNetwork, seed: int) -> History:
        loader = data_loader(self.train, batch_size=SCHEDULE.batch_size, shuffle=True, seed=seed)
        train = Batches(loader, TrainingTransform(data_set(DATA).augmentation, self.shown))
        validation = Batches(
            data_loader(self.validation, batch_size=100), EvaluationTransform(self.shown)
        )
        training = Training(HEAD.objective, train, validation, SCHEDULE, seed)
        state_file = self.out / f"seed{seed}.state"
        history = fit(self.fabric, network, training, state_file=state_file)
        state_file.unlink(missing_ok=True)
        return history

    def images(self, images: ImageSet) -> list[tuple[Tensor, Tensor]]:
        """Return images as networks take them, in batches."""
        transform = EvaluationTransform(self.shown)
        return [(transform(x), labels) for x, labels in data_loader(images, batch_size=128)]

    @torch.no_grad()
    def capsules(self, network: CapsuleNetwork, images: ImageSet) -> Capsules:
        """Run trunk and PrimaryCaps once, since removing capsules leaves those that stay alone."""
        made = [
            (network.primary_caps(network.trunk(x)), labels) for x, labels in self.images(images)
        ]
        return Capsules(torch.cat([u for u, _ in made]), torch.cat([y for _, y in made]))


@torch.no_grad()
def accuracy(output: OutputCaps, capsules: Capsules) -> float:
    """Top-1 accuracy of OutputCaps on primary capsules."""
    lengths = [torch.linalg.vector_norm(output(u), dim=-1) for u in capsules.u.split(256)]
    return float((torch.cat(lengths).argmax(dim=1) == capsules.labels).double().mean())


def finetune(output: OutputCaps, capsules: Capsules, seed: int) -> OutputCaps:
    """Train a copy of OutputCaps for one epoch on primary capsules that stay as they are."""
    output = copy.deepcopy(output).train().requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(capsules.labels), generator=generator).split(FINETUNE.batch_size)
    optimizer = FINETUNE.optimizer(output)
    scheduler = FINETUNE.lr_scheduler(optimizer, len(order))
    for chosen in order:
        lengths = torch.linalg.vector_norm(output(capsules.u[chosen]), dim=-1)
        loss = margin_loss(lengths, capsules.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return output.eval()


# ---- pruning


@dataclass(frozen=True)
class Pruner:
    """Removes capsules of one network, ranked by one criterion."""

    network: CapsuleNetwork
    dependencies: Dependencies
    rankings: list[Tensor]

    @classmethod
    def of(cls, bench: Bench, network: CapsuleNetwork, criterion: str, seed: int) -> Pruner:
        """Rank the capsules of a network."""
        dependencies = find_capsule_groups(network, SIZE)
        rankings = rank_channels(
            network,
            dependencies,
            batches=bench.images(bench.calibration),
            seed=seed,
            objective=HEAD.objective,
            capsule_criterion=criterion,
        )
        return cls(network, dependencies, rankings)

    @property
    def group(self) -> int:
        """Index of the group of the capsules."""
        return [group.kind for group in self.dependencies.groups].index("capsules")

    def kept(self, count: int) -> NDArray[np.int64]:
        """Return the units that stay of each group where all but capsules stay whole, [G]."""
        kept = self.dependencies.channels.copy()
        kept[self.group] = count
        return kept

    def places(self, count: int) -> Tensor:
        """Return which capsules stay, ascending."""
        return self.rankings[self.group][:count].sort().values

    def pruned(self, count: int) -> CapsuleNetwork:
        """Return the network with as many capsules."""
        network = prune_channels(self.network, self.dependencies, self.rankings, self.kept(count))
        assert isinstance(network, CapsuleNetwork)
        return network.eval()

    def check(self, pruned: CapsuleNetwork, count: int, images: Tensor) -> None:
        """Check what this bench builds on: what stays is as it was, and costs what is counted.

        Raises:
            AssertionError: if it is not so.
        """
        with torch.no_grad():
            u = self.network.primary_caps(self.network.trunk(images))[:, self.places(count)]
            torch.testing.assert_close(
                pruned(images).poses, pruned.output_caps(u), atol=1e-5, rtol=1e-4
            )
        cost = CostModel.build(self.network, self.dependencies, SIZE, self.rankings)
        kept = self.kept(count)
        assert int(cost.parameters(kept)) == count_parameters(pruned)
        assert int(cost.macs(kept)) == sum(count_macs(pruned, SIZE).values())


def measure_criteria(bench: Bench, seed: int) -> None:
    """Score every criterion at every number of capsules."""
    network = bench.network(seed)
    missing = [
        (criterion, count)
        for count in COUNTS
        for criterion in (["whole"] if count == COUNTS[0] else CAPSULE_CRITERIA)
        if not bench.results.find(step="prune", seed=seed, criterion=criterion, kept=count)
    ]
    if not missing:
        return
    train, test = (bench.capsules(network, images) for images in (bench.train, bench.test))
    pruners: dict[str, Pruner] = {}
    for done, (criterion, count) in enumerate(missing):
        started = time.process_time()
        if criterion not in pruners:
            ranked_by = "random" if criterion == "whole" else criterion
            pruners[criterion] = Pruner.of(bench, network, ranked_by, seed)
            first = next(iter(bench.images(bench.test)))[0][:16]
            pruners[criterion].check(pruners[criterion].pruned(SMALLEST), SMALLEST, first)
        pruner = pruners[criterion]
        pruned, places = pruner.pruned(count), pruner.places(count)
        tuned = finetune(pruned.output_caps, train.of(places), seed)
        macs = count_macs(pruned, SIZE)
        parts = HEAD.costs(pruned, {k: v for k, v in macs.items() if not k.startswith("trunk.")})
        bench.results.add(
            step="prune",
            seed=seed,
            criterion=criterion,
            kept=count,
            types=pruned.primary_caps.stored()["types"],
            accuracy=accuracy(pruned.output_caps, test.of(places)),
            tuned=accuracy(tuned, test.of(places)),
            parameters=count_parameters(pruned),
            macs=sum(macs.values()),
            parts=dict(parts.part_macs),
            cpu_seconds=time.process_time() - started,
        )
        bench.progress.say(f"Seed {seed}: {done + 1} of {len(missing)} prunings")


# ---- latency


def measure_latency(bench: Bench, seed: int, criterion: str) -> None:
    """Time the unpruned network and a pruned one in ONNX Runtime, in turns, with one thread."""
    if bench.results.find(step="latency", seed=seed, criterion=criterion):
        return
    network = bench.network(seed)
    pruner = Pruner.of(bench, network, criterion, seed)
    variants = {"unpruned": network, "pruned": pruner.pruned(SMALLEST)}
    images = bench.images(bench.test)[0][0][:16]
    files = {}
    for name, variant in variants.items():
        files[name] = bench.out / f"{name}.onnx"
        write_onnx(
            variant,
            files[name],
            image_size=SIZE,
            class_names=[str(number) for number in range(CLASSES)],
            images=images,
            metadata={},
        )
    measured = profile_variants(
        files,
        image_size=SIZE,
        place=Place("cpu", threads=1),
        timing=Timing(BATCHES, REPEATS),
        folder=bench.out,
    )
    bench.results.add(
        step="latency",
        seed=seed,
        criterion=criterion,
        repeats=REPEATS,
        measured=[row.to_dict() for row in measured],
        file_bytes={name: path.stat().st_size for name, path in files.items()},
        routing={
            f"{kernel}, batch {batch}": time_routing(
                files, batch, bench.out, native=kernel == "native"
            )
            for batch in BATCHES
            for kernel in ("native", "portable")
        },
    )


def time_routing(
    files: Mapping[str, Path], batch: int, folder: Path, *, native: bool
) -> dict[str, float]:
    """Time the nodes of the routing, votes included, in networks that run in turns.

    Returns:
        Milliseconds by network, the median of the runs.
    """
    place: dict[str, Any] = {"provider": "cpu", "threads": 1, "native": native}
    sessions = {
        name: session(path, **place, profile_prefix=folder / f"nodes-{name}")
        for name, path in files.items()
    }
    for _ in range(WARM_UP + REPEATS):
        for opened in sessions.values():
            shape = input_shape(opened, batch, SIZE)
            images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            opened.run(None, {"image": images})
    spent = {}
    for name, opened in sessions.items():
        record = Path(opened.end_profiling())
        events = json.loads(record.read_text(encoding="utf-8"))
        spent[name] = statistics.median(_routing_of_runs(events)[WARM_UP:])
        record.unlink()
    return spent


def _routing_of_runs(events: list[dict[str, Any]]) -> list[float]:
    """Return the milliseconds of the routing's nodes in each run of an ONNX Runtime profile."""
    marks = list(onnx_operators())
    nodes = [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and any(m in event["name"] or m == event["args"].get("op_name") for m in marks)
    ]
    runs = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run"]
    return [
        sum(node["dur"] for node in nodes if start <= node["ts"] <= end) / 1000
        for start, end in sorted(runs)
    ]


# ---- what is written


def table(bench: Bench, column: str) -> list[str]:
    """Return criterion against capsules kept: accuracy in %, means of seeds, and what is lost."""
    rows = [row for row in bench.results.rows if row["step"] == "prune"]

    def mean(criterion: str, count: int) -> float:
        found = [r[column] for r in rows if (r["criterion"], r["kept"]) == (criterion, count)]
        return 100 * statistics.mean(found) if found else float("nan")

    whole, fewer = mean("whole", COUNTS[0]), COUNTS[1:]
    lines = [
        "| criterion | " + " | ".join(f"{count}" for count in fewer) + " |",
        "|---" * (len(fewer) + 1) + "|",
    ]
    for name in CAPSULE_CRITERIA:
        cells = [f"{mean(name, n):.1f} ({mean(name, n) - whole:+.1f})" for n in fewer]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [f"Whole network, {COUNTS[0]} capsules: {whole:.2f} %.", "", *lines, ""]


def report(bench: Bench) -> str:
    """Return what was measured, as Markdown."""
    pruned = [row for row in bench.results.rows if row["step"] == "prune"]
    seeds = len({row["seed"] for row in pruned})
    lines = [
        f"CapsNet on {DATA}, {TRAINING_IMAGES:,} training images, {SCHEDULE.epochs} epochs, no "
        f"decoder: accuracy in % on {TEST_IMAGES:,} test images and points from that of the whole "
        f"network, means of {seeds} seeds.",
        "",
        "Capsules kept, nothing trained:",
        "",
        *table(bench, "accuracy"),
        "After one epoch of OutputCaps alone, the whole network's too:",
        "",
        *table(bench, "tuned"),
        "| capsules | types left | parameters | MACs | of votes and routing |",
        "|---|---|---|---|---|",
    ]
    for count in COUNTS:
        rows = [row for row in pruned if row["kept"] == count]
        types = sorted(row["types"] for row in rows)
        routed = [row["parts"]["output_caps"] + row["parts"]["routing"] for row in rows]
        lines.append(
            f"| {count} | {types[0]} to {types[-1]} "
            f"| {statistics.mean(row['parameters'] for row in rows) / 1e6:.2f} M "
            f"| {statistics.mean(row['macs'] for row in rows) / 1e6:.1f} M "
            f"| {statistics.mean(routed) / 1e3:,.0f} k |"
        )
    lines.append("")
    for row in bench.results.rows:
        if row["step"] == "latency":
            lines += _latency_lines(row)
    seconds = sum(row.get("cpu_seconds", 0) for row in bench.results.rows)
    lines.append(f"{seconds / 60:.0f} minutes of one core.")
    return "\n".join(lines) + "\n"


def _latency_lines(row: dict[str, Any]) -> list[str]:
    """Return the table of one latency measurement."""
    lines = [
        f"ONNX Runtime, one thread, medians of {row['repeats']} repeats in turns, "
        f"{SMALLEST} capsules by {row['criterion']}, ms:",
        "",
        "| what | unpruned | pruned | times faster |",
        "|---|---|---|---|",
    ]
    for batch in BATCHES:
        measured = {m["variant"]: m for m in row["measured"] if m["batch"] == batch}
        timed = {"whole, native routing": {n: m["latency_ms"] for n, m in measured.items()}}
        if all(m["portable_latency_ms"] is not None for m in measured.values()):
            timed["whole, portable routing"] = {
                name: m["portable_latency_ms"] for name, m in measured.items()
            }
        for kernel in ("native", "portable"):
            timed[f"routing, {kernel}"] = row["routing"][f"{kernel}, batch {batch}"]
        for what, ms in timed.items():
            lines.append(
                f"| {what}, batch {batch} | {ms['unpruned']:.3f} | {ms['pruned']:.3f} "
                f"| {ms['unpruned'] / ms['pruned']:.1f} |"
            )
    sizes = {name: size / 1e6 for name, size in row["file_bytes"].items()}
    lines.append(
        f"| file, MB | {sizes['unpruned']:.1f} | {sizes['pruned']:.1f} "
        f"| {sizes['unpruned'] / sizes['pruned']:.1f} |"
    )
    return [*lines, ""]


def main() -> None:
    """Run the bench, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-capsnet"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.out)
    for seed in arguments.seeds:
        measure_criteria(bench, seed)
    measure_latency(bench, arguments.seeds[0], DEFAULT_CAPSULE_CRITERION)
    text = report(bench)
    write_text(arguments.out / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
