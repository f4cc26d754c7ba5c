"""Made-up results with a bit of everything that a report page shows."""

import math
import random

from capsprune.report.results import Cell, Latency, Results, Row, Search

BACKBONES = {"mobilenet_v1": (0.57, 1024, 0.884), "resnet50": (4.09, 2048, 0.912)}
LEVELS = (0, 25, 50, 75)
SEEDS = (0, 1, 2)


def make_cell(data, backbone, pruned, trunk, head, seed, rng):
    """Make one network; the pruned frozen ones have no memory measured."""
    macs, channels, best = BACKBONES[backbone]
    left = 1 - pruned / 100
    accuracy = best - 0.05 * (pruned / 100) ** 3 - 0.06 * (trunk == "frozen")
    accuracy += 0.004 * (head == "linear") + rng.gauss(0, 0.003)
    values = {
        "accuracy": accuracy,
        "images": 10000,
        "training_flops": macs * left * (3 if trunk == "finetuned" else 2) * 1e9,
        "forward_macs": macs * left * 1e9,
        "parameters": channels * 5000 * left,
        "file_bytes": channels * 20000 * left,
        "epoch_seconds": 40 * macs * left + rng.random(),
    }
    if trunk == "finetuned":
        values["peak_memory_mb"] = 900 + 3000 * left * macs / 4
    if head == "capsules":
        values["bottleneck_channels"] = round(channels * left)
        values["primary_capsules"] = round(channels * left / 8)
    epochs = [
        {
            "epoch": epoch,
            "train_loss": 0.6 * math.exp(-epoch / 5) + 0.05 + rng.gauss(0, 0.004),
            "validation_loss": 0.6 * math.exp(-epoch / 5) + 0.1,
            "validation_accuracy": accuracy * (1 - 0.7 * math.exp(-(epoch + 1) / 3)),
            "lr": 1e-3,
            "seconds": 12.0,
        }
        for epoch in range(15)
    ]
    run = f"{data}-{backbone}-{pruned}-{trunk}-{seed}"
    meter = "resident set" if "peak_memory_mb" in values else None
    return Cell(
        run=run,
        data=data,
        backbone=backbone,
        pruned=pruned,
        trunk=trunk,
        head=head,
        seed=seed,
        values=values,
        memory_meter=meter,
        epochs=epochs,
        analysis=make_analysis(pruned, trunk, rng) if head == "capsules" else None,
    )


def make_search(data, backbone, pruned, seed, rng):
    """Make a search whose candidates meet the target closely, and of which two found no network."""
    candidates = [
        {
            "index": index,
            "rung": index % 3,
            "flops_ratio": 1 - pruned / 100 + rng.uniform(-0.005, 0.005),
            "score": min(0.95, max(0.05, rng.betavariate(2, 5))),
            "loss": 2 + rng.random(),
        }
        for index in range(40)
    ]
    candidates += [{"index": 40 + i, "rung": 0, "flops_ratio": 0.9} for i in range(2)]
    best = max(candidates[:40], key=lambda candidate: candidate["score"])["index"]
    return Search(
        run=f"{backbone}-{pruned}-{seed}",
        data=data,
        backbone=backbone,
        pruned=pruned,
        seed=seed,
        candidates=candidates,
        best=best,
    )


def make_analysis(pruned, trunk, rng):
    """Make an analysis of a run."""
    left = 1 - pruned / 100
    robustness = [{"distortion": "none", "amount": 0, "unit": "", "capsules": 0.9, "linear": 0.9}]
    for distortion, unit, amounts in (
        ("rotation", "degrees", (10, 20, 30, 45)),
        ("shift", "% of the side", (5, 10, 20)),
        ("scale", "times", (0.7, 0.85, 1.15, 1.3)),
        ("shear", "degrees", (10, 20)),
    ):
        for step, amount in enumerate(amounts):
            accuracy = 0.9 - 0.08 * (step + 1) - 0.05 * pruned / 100 + rng.gauss(0, 0.01)
            linear = None if trunk == "frozen" else accuracy - 0.03
            robustness.append(
                {
                    "distortion": distortion,
                    "amount": amount,
                    "unit": unit,
                    "capsules": accuracy,
                    "linear": linear,
                }
            )
    return {
        "images": 2000,
        "bottleneck_entropy": 0.3 + 0.2 * left + rng.gauss(0, 0.01),
        "active_share": 0.4 + 0.3 * left,
        "coupling_entropy": [1.0, 0.98 - 0.05 * left, 0.9 - 0.1 * left],
        "agreement_true": [0.1, 0.2, 0.35 + 0.1 * left],
        "agreement_other": [0.05, 0.03, 0.01],
        "primary_length": 0.4,
        "never_active": 3,
        "never_active_share": 0.08 * left,
        "primary_capsules": 128,
        "robustness": robustness,
    }


def make_results(data_sets=("cifar10",)):
    """Make the results of a sweep over two backbones, four levels, both trunks and both heads."""
    rng = random.Random(0)
    rows = [
        Row(
            data=data,
            backbone=backbone,
            pruned=pruned,
            trunk=trunk,
            head=head,
            cells=[make_cell(data, backbone, pruned, trunk, head, seed, rng) for seed in SEEDS],
        )
        for data in data_sets
        for head in ("capsules", "linear")
        for backbone in BACKBONES
        for trunk in ("frozen", "finetuned")
        for pruned in LEVELS
    ]
    latencies = [
        Latency(
            data="",
            backbone=backbone,
            pruned=pruned,
            head=head,
            batch=batch,
            provider="cpu",
            latency_ms=(ms := (2 + 20 * macs * (1 - pruned / 100)) * batch**0.9),
            latency_ms_p25=ms * 0.97,
            latency_ms_p75=ms * 1.08,
            routing_share=(0.1 + pruned / 400) if head == "capsules" else None,
        )
        for backbone, (macs, _, _) in BACKBONES.items()
        for pruned in (0, 50)
        for head in ("capsules", "linear")
        for batch in (1, 32)
    ]
    return Results(
        "Towards efficient capsule networks, once more",
        rows,
        searches=[
            make_search(data, backbone, pruned, seed, rng)
            for data in data_sets
            for backbone in BACKBONES
            for pruned in LEVELS[1:]
            for seed in SEEDS
        ],
        latencies=latencies,
        missing={"cifar10-resnet50-75-frozen-3": "not started", "tiny-0": "out of memory"},
        notes=["Times were taken on 2 cores.", "Images are 32 x 32 pixels."],
    )
