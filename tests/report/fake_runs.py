"""Runs and sweeps with made-up figures: all the files that a report reads, and no training."""

import json

from capsprune.run import open_run
from capsprune.stages import STAGES
from capsprune.sweep import GridCell, SweepRecipe, open_sweep

FLOPS = 1e9
DISTORTED = (
    ("none", 0, ""),
    ("rotation", 15, "degrees"),
    ("rotation", 30, "degrees"),
    ("scale", 0.8, "times"),
    ("scale", 1.25, "times"),
)


def accuracy(cell, head):
    """Finetuned is better than frozen, which pruning hurts; capsules are better than linear."""
    value = 0.8 if cell.trunk == "finetuned" else 0.6 - 0.002 * cell.pruned
    value += 0.01 if head == "capsules" else 0
    return value + 0.002 * cell.seed


def commit(run, stage, summary, made, parent, files):
    summary = STAGES[stage].summary.of(summary)
    work = run.begin(stage, {}, parent)
    result = work / "result"
    if stage in ("profile", "analysis"):
        result.write_text(json.dumps(summary.to_dict()))
    else:
        result.mkdir()
        for name, content in files.items():
            (result / name).write_text(content)
    run.commit(
        stage,
        result,
        id=made,
        options={},
        parent=parent,
        seconds=1.0,
        summary=summary,
    )


def training(cell, kept, head, **changed):
    """What a stage that trains says, for a network that has the part `kept` of its FLOPs."""
    frozen = cell.trunk == "frozen"
    return {
        "model": cell.backbone,
        "data": "digits",
        "weights": "from scratch",
        "epochs": 2,
        "epoch_seconds": 20.0 * kept + 0.1 * cell.seed + (0 if frozen else 10 * kept),
        "peak_memory_mb": 500.0 + 400 * kept,
        "memory_meter": "resident set",
        "energy_joules": None,
        "energy_meter": None,
        "accuracy": accuracy(cell, head),
        "loss": 0.2,
        "images": 10_000,
        "trunk_macs": round(FLOPS * kept),
        "forward_macs": round(1.1 * FLOPS * kept),
        "training_flops": round(FLOPS * kept * (2 if frozen else 3)),
        "parameters": round(2e6 * kept),
    } | changed


def metrics():
    rows = (
        {"epoch": e, "train_loss": 1 / (e + 1), "validation_loss": 1.1 / (e + 1),
         "validation_accuracy": 0.5 + 0.1 * e, "lr": 1e-3, "seconds": 1.0}
        for e in range(2)
    )  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def candidates(kept):
    rows = (
        {"index": i, "flops_ratio": kept + 0.002 * i, "score": 0.1 * i, "loss": 2.0, "rung": 0}
        for i in range(4)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def architecture():
    return json.dumps({"data": {"image_size": 32, "class_names": list("0123456789")}})


def exported(size):
    return {
        "path": "model.onnx",
        "bytes": size,
        "opset": 18,
        "inline": False,
        "inputs": {"image": ["batch", 3, 32, 32]},
        "outputs": {"probabilities": ["batch", 10], "poses": ["batch", 10, 16]},
        "batches": [1, 2, 5],
        "max_abs_difference": 1e-7,
        "top1_agreement": 1.0,
    }


def analysis(cell, capsules_lose=0.1, linear_lose=0.2):
    heads = {"capsules": capsules_lose, "linear": linear_lose}
    return {
        "model": cell.backbone,
        "data": "digits",
        "images": 2000,
        "bottleneck_entropy": 0.4 + 0.002 * cell.pruned,
        "active_share": 0.5,
        "coupling_entropy": [1.0, 0.9, 0.8],
        "agreement_true": [0.1, 0.2, 0.3],
        "agreement_other": [0.01, 0.02, 0.03],
        "primary_length": 0.5,
        "never_active": 1,
        "never_active_share": 0.01,
        "primary_capsules": 100,
        "robustness": [
            {"distortion": name, "amount": amount, "unit": unit}
            | {h: accuracy(cell, h) - (0 if name == "none" else lost) for h, lost in heads.items()}
            for name, amount, unit in DISTORTED
        ],
    }


def make_run(
    runs_dir,
    name,
    cell,
    *,
    until="analysis",
    change=None,
    searched=True,
):
    """Make a run with all stages but `profile`, up to one of them.

    `change(stage, summary)` may alter what a stage says.
    """
    kept = 1 - cell.pruned / 100
    sizes = {"bottleneck_channels": round(1024 * kept), "primary_capsules": round(128 * kept)}
    flags = {"frozen": cell.trunk == "frozen"}
    stages = {
        "baseline": training(cell, 1, "linear"),
        "pruned": training(cell, kept, "linear", flops_ratio=kept, accuracy_before_finetuning=0.3),
        "caps": training(cell, kept, "capsules", **sizes, **flags),
        "linear": training(cell, kept, "linear", **flags),
        "onnx": exported(round(8e6 * kept)),
        "analysis": analysis(cell),
    }
    parents = {"pruned": "baseline", "caps": "pruned", "linear": "pruned", "onnx": "caps",
               "analysis": "caps"}  # fmt: skip
    ids = {stage: f"{name}/{stage}" for stage in stages}
    # The cells of a sweep share their backbones.
    folder = runs_dir.name
    ids |= {"baseline": f"{folder}/{cell.baseline_name}", "pruned": f"{folder}/{cell.pruned_name}"}
    with open_run(runs_dir, name, cell.seed, create=True) as run:
        for stage, summary in stages.items():
            files = {"metrics.jsonl": metrics(), "architecture.json": architecture()}
            if stage == "pruned" and cell.pruned and searched:
                files["candidates.jsonl"] = candidates(kept)
                summary["best_candidate"] = 3
            if change is not None:
                change(stage, summary)
            parent = ids[parents[stage]] if stage in parents else None
            commit(run, stage, summary, ids[stage], parent, files)
            if stage == until:
                break


def measurement(variant, batch, latency, share):
    return {
        "variant": variant,
        "provider": "cpu",
        "batch": batch,
        "latency_ms": latency,
        "latency_ms_p25": 0.9 * latency,
        "latency_ms_p75": 1.2 * latency,
        "routing_share": share,
        "routing_kernel": "native" if share else None,
    }


def make_sweep(runs_dir, *, name="grid", skip=(), failed=None, change=None, profiled=True, **grid):
    """Make a sweep: `change(cell, stage, summary)` may alter what a stage of a cell says."""
    grid = {"backbones": ("mobilenet_v1",), "pruned": (0, 50), "seeds": (0, 1, 2)} | grid
    sweep = open_sweep(runs_dir, SweepRecipe(name=name, train={"data": "digits"}, **grid))
    sweep.failed = dict(failed or {})
    sweep.write()
    variants, measurements = {}, []
    for cell in sweep.cells:
        if cell.name in skip:
            continue
        make_run(
            sweep.directory,
            cell.name,
            cell,
            change=None if change is None else lambda s, v, c=cell: change(c, s, v),
        )
        for head in ("capsules", "linear"):
            label = f"{cell.backbone}, {cell.pruned} % pruned, {head}"
            if label in variants:
                continue
            variants[label] = {
                "run": cell.name,
                "backbone": cell.backbone,
                "pruned": cell.pruned,
                "head": head,
                "seed": cell.seed,
                "file_bytes": 7_000_000,
            }
            latency = (2 if head == "capsules" else 1) * (1 - cell.pruned / 200)
            for batch in (1, 32):
                share = 0.25 if head == "capsules" else 0.0
                measurements.append(measurement(label, batch, latency * batch, share))
    if profiled:
        profile = {"variants": variants, "measurements": measurements}
        sweep.profile_path.write_text(json.dumps(profile))
    return sweep


def cell(pruned=50, trunk="finetuned", seed=0, backbone="mobilenet_v1"):
    return GridCell(backbone, pruned, trunk, seed)
