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


#: Of the capsules, what a size keeps; and what this costs in accuracy.
SLIM = {
    "half": ({"capsules": 0.5}, 0.5, 0.0),
    "few": ({"capsules": 0.05}, 0.05, 0.002),
    "hardly": ({"capsules": 0.02}, 0.02, 0.05),
    "rank": ({"primary-rank": 8}, 1, 0.001),
    "whole": ({"flops": 1}, 1, -0.001),
}


def accuracy(cell, head):
    """Finetuned is better than frozen, which pruning hurts; capsules are better than linear."""
    value = 0.8 if cell.trunk == "finetuned" else 0.6 - 0.002 * cell.pruned
    value += 0.01 if head == "capsules" else 0
    return value + 0.002 * cell.seed


def commit(run, stage, summary, made, parent, files, options=None):
    options = options or {}
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
        options=options,
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


def architecture(head=None):
    data = {"image_size": 32, "class_names": list("0123456789")}
    return json.dumps({"data": data, "head": head})


def parts(**parameters):
    return {
        name: {"macs": 100 * count, "parameters": count, "weight_bytes": 4 * count}
        for name, count in parameters.items()
    }


def pruned_capsules(cell, kept, criterion="coupling"):
    """What `prune-caps` says, and with which options it was given."""
    asked, left, lost = SLIM[cell.slim]
    network = training(
        cell,
        kept,
        "capsules",
        frozen=False,
        capsules=max(1, round(128 * kept * left)),
        capsules_of=round(128 * kept),
        iterations=3,
        iterations_of=3,
        accuracy_of_caps=accuracy(cell, "capsules"),
        capsule_criterion=criterion,
        accuracy=accuracy(cell, "capsules") - lost,
        accuracy_before_finetuning=accuracy(cell, "capsules") - 2 * lost - 0.01,
        parameters=round(1e6 * kept * (0.5 + left / 2)),
        parts=parts(
            trunk=round(5e5 * kept),
            primary_caps=round(4e5 * kept * left),
            output_caps=round(1e5 * kept * left),
        ),
    )
    if "primary-rank" in asked:
        network |= {"primary_rank": asked["primary-rank"], "primary_rank_of": 256}
    return network, {key.replace("-", "_"): value for key, value in asked.items()}


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
        "accuracy_by_iteration": [0.78, 0.79, 0.8],
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
    without=(),
):
    """Make a run with all stages but `profile`, up to one of them; with `slim` if its cell has it.

    `change(stage, summary)` may alter what a stage says.
    """
    kept = 1 - cell.pruned / 100
    sizes = {"bottleneck_channels": round(1024 * kept), "primary_capsules": round(128 * kept)}
    flags = {"frozen": cell.trunk == "frozen"}
    trunk = round(5e5 * kept)
    head = {"primary_caps": round(4e5 * kept), "output_caps": round(1e5 * kept)}
    stages = {
        "baseline": training(cell, 1, "linear", parts=parts(trunk=500_000, classifier=10_000)),
        "pruned": training(cell, kept, "linear", flops_ratio=kept, accuracy_before_finetuning=0.3,
                           parts=parts(trunk=trunk, classifier=5_000)),
        "caps": training(cell, kept, "capsules", **sizes, **flags,
                         parts=parts(trunk=trunk, **head)),
        "linear": training(cell, kept, "linear", **flags),
        "onnx": exported(round(8e6 * kept)),
        "analysis": analysis(cell),
    }  # fmt: skip
    options = {}
    if cell.slim:
        network, options["slim"] = pruned_capsules(cell, kept)
        onnx = exported(round(1e6 * kept))
        stages = {**stages, "slim": network, "onnx": onnx, "analysis": stages["analysis"]}
    order = [stage for stage in STAGES if stage in stages and stage not in without]
    last = "slim" if cell.slim else "caps"
    parents = {"pruned": "baseline", "caps": "pruned", "linear": "pruned", "slim": "caps",
               "onnx": last, "analysis": last}  # fmt: skip
    # The cells of a sweep share their backbones, and slim ones their capsule networks.
    folder = runs_dir.name
    ids = {stage: f"{name}/{stage}" for stage in stages}
    ids |= {"baseline": f"{folder}/{cell.baseline_name}", "pruned": f"{folder}/{cell.pruned_name}"}
    if name == cell.name:
        ids["caps"] = f"{cell.whole.name}/caps"
    with open_run(runs_dir, name, cell.seed, create=True) as run:
        for stage in order:
            summary = stages[stage]
            head = {"kind": "dynamic", "iterations": 3}
            files = {"metrics.jsonl": metrics(), "architecture.json": architecture()}
            if stage in ("caps", "slim"):
                files["architecture.json"] = architecture(head)
            if stage == "pruned" and cell.pruned and searched:
                files["candidates.jsonl"] = candidates(kept)
                summary["best_candidate"] = 3
            if change is not None:
                change(stage, summary)
            parent = ids[parents[stage]] if stage in parents else None
            commit(run, stage, summary, ids[stage], parent, files, options.get(stage))
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
    grid["slim"] = {size: SLIM[size][0] for size in grid.get("slim", ())}
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
            without=("linear", "analysis") if cell.slim else (),
        )
        for head in ("capsules",) if cell.slim else ("capsules", "linear"):
            label = f"{cell.backbone}, {cell.pruned} % pruned, {cell.slim} {head}"
            if label in variants:
                continue
            variants[label] = {
                "run": cell.name,
                "backbone": cell.backbone,
                "pruned": cell.pruned,
                "head": head,
                **({"slim": cell.slim} if cell.slim else {}),
                "seed": cell.seed,
                "file_bytes": 900_000 if cell.slim else 7_000_000,
            }
            latency = (2 if head == "capsules" else 1) * (1 - cell.pruned / 200)
            for batch in (1, 32):
                share = 0.25 if head == "capsules" else 0.0
                share = share * SLIM[cell.slim][1] if cell.slim else share
                measurements.append(measurement(label, batch, latency * batch, share))
    if profiled:
        profile = {"variants": variants, "measurements": measurements}
        sweep.profile_path.write_text(json.dumps(profile))
    return sweep


def cell(pruned=50, trunk="finetuned", seed=0, backbone="mobilenet_v1", slim=""):
    return GridCell(backbone, pruned, trunk, seed, slim)
