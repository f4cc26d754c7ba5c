"""Result tables on the terminal. They take plain data: the summaries that stages leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from capsprune.errors import listed

NOT_AVAILABLE = "not available"

Summary = Mapping[str, Any]


def percent(value: float | None) -> str:
    """Write a fraction as a percentage."""
    return f"{text} %" if (text := _digits(value, 2, 100)) else NOT_AVAILABLE


def count(value: float | None) -> str:
    """Write a large number with three digits and a unit: 4.09 G, 25.6 M."""
    if value is None:
        return NOT_AVAILABLE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def number(value: float | None, digits: int = 2) -> str:
    """Write a measurement, or that there is none."""
    return _digits(value, digits) or NOT_AVAILABLE


def _digits(value: float | None, digits: int, scale: float = 1) -> str:
    """Write a number; empty if none was measured, or what was computed is none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{scale * value:.{digits}f}"


def print_checkpoint(title: str, summary: Summary, path: str, seconds: float) -> None:
    """Print what a stage that trains came to.

    Args:
        title: heading.
        summary: of the stage.
        path: where its checkpoint lies.
        seconds: how long the stage took.
    """
    rows: list[tuple[str, str]] = [
        ("backbone", summary["model"]),
        ("data", summary["data"]),
    ]
    if "weights" in summary:
        rows.append(("starting weights", summary["weights"]))
    if "imported" in summary:
        rows.append(
            (
                "imported from",
                ", ".join(summary[key] for key in ("imported", "classifier") if key in summary),
            )
        )
    if "flops_ratio" in summary:
        rows.append(("FLOPs that remain", percent(summary["flops_ratio"])))
    if "candidates" in summary:
        rows.append(("candidates tried", str(summary["candidates"])))
    if "accuracy_before_finetuning" in summary:
        rows.append(("before fine-tuning", percent(summary["accuracy_before_finetuning"])))
    rows.append(("test accuracy", _accuracy(summary)))
    rows += _class_rows(summary.get("worst_classes", ()))
    if "epochs" in summary:
        kept = f" (kept number {summary['kept_epoch']})" if "kept_epoch" in summary else ""
        rows.append(("epochs", f"{summary['epochs']}{kept}"))
    rows += _cost_rows(summary)
    rows += [("time", f"{seconds:.0f} s"), ("checkpoint", path)]
    _print_pairs(title, rows)


def print_export(report: Summary) -> None:
    """Print what was exported and how it was verified."""
    routing = "standard operators" if report["inline"] else "capsprune::DynamicRouting"
    if "poses" not in report["outputs"]:
        routing = "none: a backbone without capsules"
    _print_pairs(
        "ONNX file",
        [
            ("file", report["path"]),
            ("size", f"{report['bytes'] / 1e6:.1f} MB"),
            ("operator set", str(report["opset"])),
            ("routing", routing),
            ("inputs", _shapes(report["inputs"])),
            ("outputs", _shapes(report["outputs"])),
            (
                "verified",
                f"{report.get('verified_on', 'test images')} in batches of "
                f"{', '.join(map(str, report['batches']))}: largest difference from "
                f"PyTorch {report['max_abs_difference']:.1e}, same top-1 for "
                f"{percent(report['top1_agreement'])}",
            ),
        ],
    )


def print_profile(profile: Summary) -> None:
    """Print the measurements of all variants side by side."""
    measurements = profile["measurements"]
    variants = list(profile["variants"])
    provider = measurements[0]["provider"].upper()
    table = _table(f"Profile in ONNX Runtime on {provider}, medians")
    table.add_column("")
    for variant in variants:
        table.add_column(variant, justify="right")
    costs = [profile["variants"][variant] for variant in variants]
    table.add_row("MACs", *(count(cost["forward_macs"]) for cost in costs))
    table.add_row("parameters", *(count(cost["parameters"]) for cost in costs))
    for batch in sorted({row["batch"] for row in measurements}):
        by_variant = {row["variant"]: row for row in measurements if row["batch"] == batch}
        rows = [by_variant[variant] for variant in variants]
        table.add_section()
        table.add_row(f"batch {batch}")
        for title, write in _MEASURED.items():
            table.add_row(f"  {title}", *map(write, rows))
    _print(table)


def print_analysis(analysis: Summary) -> None:
    """Print what the capsules do, and the accuracy on distorted images."""
    _print_pairs(
        f"{analysis['model']} with capsules on {analysis['images']} images of {analysis['data']}",
        [
            ("entropy of a bottleneck unit", f"{number(analysis['bottleneck_entropy'], 3)} bits"),
            ("bottleneck units that are on", percent(analysis["active_share"])),
            ("length of a primary capsule", number(analysis["primary_length"], 3)),
            (
                "primary capsules never active",
                f"{analysis['never_active']} of {analysis['primary_capsules']} "
                f"({percent(analysis['never_active_share'])})",
            ),
        ],
    )
    iterations = _table("Routing")
    iterations.add_column("iteration", justify="right")
    columns = {
        "coupling entropy": "coupling_entropy",
        "agreement, true class": "agreement_true",
        "agreement, others": "agreement_other",
    }
    for title in columns:
        iterations.add_column(title, justify="right")
    for index, row in enumerate(zip(*(analysis[key] for key in columns.values()), strict=False)):
        iterations.add_row(str(index + 1), *(number(value, 4) for value in row))
    _print(iterations)
    _print_robustness(analysis["robustness"])


def _print_robustness(rows: Sequence[Summary]) -> None:
    compared = any(row.get("linear") is not None for row in rows)
    table = _table("Accuracy on distorted images")
    table.add_column("distortion")
    for title in ("amount", "capsules", *(["linear"] if compared else [])):
        table.add_column(title, justify="right")
    before = None
    for row in rows:
        if row["distortion"] != before:
            table.add_section()
        table.add_row(
            "" if row["distortion"] == before else row["distortion"],
            f"{row['amount']:g} {row['unit']}" if row["unit"] else "",
            percent(row["capsules"]),
            *([percent(row.get("linear"))] if compared else []),
        )
        before = row["distortion"]
    _print(table)


#: The rows of a profile for each batch size.
_MEASURED: dict[str, Callable[[Summary], str]] = {
    "latency": lambda row: f"{row['latency_ms']:.2f} ms",
    "quartiles": lambda row: f"{row['latency_ms_p25']:.2f} to {row['latency_ms_p75']:.2f} ms",
    "images/s": lambda row: number(row.get("images_per_second"), 0),
    "peak memory": lambda row: _unit(row.get("peak_memory_mb"), "MB", 0),
    "in routing": lambda row: percent(row["routing_share"]),
    "kernel": lambda row: row.get("routing_kernel") or "no routing",
    # The same file with the portable function in the native kernel's place.
    "without it": lambda row: _if_native(row, _unit(row.get("portable_latency_ms"), "ms", 2)),
    "routing then": lambda row: _if_native(row, percent(row.get("portable_routing_share"))),
    "GPU memory": lambda row: _unit(row.get("gpu_memory_mb"), "MB", 0),
    "energy/image": lambda row: _unit(row.get("energy_joules_per_image"), "J", 4),
}


def _if_native(row: Summary, text: str) -> str:
    return text if row.get("routing_kernel") == "native" else ""


def _unit(value: float | None, unit: str, digits: int) -> str:
    return NOT_AVAILABLE if value is None else f"{number(value, digits)} {unit}"


def print_result(stages: Mapping[str, Summary], files: Iterable[tuple[str, str]]) -> None:
    """Print the outcome of a whole run: the result table, the profile, and where the files lie.

    Args:
        stages: the summary of each finished stage, by its name.
        files: what each file holds, and its path.
    """
    table = _table("Result")
    table.add_column("network")
    for title in ("test accuracy", "MACs", "parameters", "primary capsules", "time"):
        table.add_column(title, justify="right")
    titles = {
        "baseline": "unpruned, linear",
        "pruned": "pruned, linear",
        "caps": "pruned, capsules",
        "linear": "pruned, linear, again",
    }
    for stage, title in titles.items():
        if stage in stages:
            summary = stages[stage]
            table.add_row(
                title,
                percent(summary.get("accuracy")),
                count(summary["forward_macs"]),
                count(summary["parameters"]),
                str(summary.get("primary_capsules", "")),
                f"{summary['seconds']:.0f} s",
            )
    _print(table)
    if "profile" in stages:
        print_profile(stages["profile"])
    if "analysis" in stages:
        print_analysis(stages["analysis"])
    _print_pairs("Files", list(files))


def print_evaluation(result: Summary) -> None:
    """Print the score of a checkpoint."""
    _print_pairs(
        "Evaluation",
        [
            ("checkpoint", result["checkpoint"]),
            ("backbone", result["model"]),
            ("images", f"{result['images']} of {result['data']}, {result['split']}"),
            ("accuracy", _accuracy(result)),
            *_class_rows(result["classes"]),
            ("loss", number(result["loss"], 4)),
        ],
    )


def _accuracy(summary: Summary) -> str:
    """Write an accuracy, and beside it what the largest class alone gives, where that is much."""
    accuracy, majority = summary.get("accuracy"), summary.get("majority_rate")
    text = percent(accuracy)
    if accuracy is None or majority is None:
        return text
    if majority >= _MUCH or accuracy <= majority:
        text += f" (always naming the largest class: {percent(majority)})"
    return text


def _class_rows(classes: Iterable[Summary]) -> list[tuple[str, str]]:
    """Write the accuracy of the classes that are recognised least, and which have no images."""
    classes = list(classes)
    empty = [one["class"] for one in classes if not one["images"]]
    known = sorted((one for one in classes if one["images"]), key=lambda one: one["accuracy"])
    rows = []
    if known:
        worst = [
            f"{_short(one['class'])}: {percent(one['accuracy'])} of {one['images']}"
            for one in known[:_WORST]
        ]
        rows.append(("worst classes", ", ".join(worst)))
    if empty:
        rows.append(("without images", listed([_short(name) for name in empty], _WORST)))
    return rows


#: Share of the images in the largest class from which it is worth telling.
_MUCH = 0.6
#: Classes that a table names.
_WORST = 5


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"


def print_inspection(result: Summary, groups: bool) -> None:
    """Print sizes and costs.

    Args:
        result: of `capsprune.inspection.inspect_model`.
        groups: list the dependency groups too.
    """
    rows = [
        ("backbone", result["model"]),
        ("image size, classes", f"{result['image_size']}, {result['classes']}"),
        ("backbone MACs, unpruned", count(result["backbone_macs_unpruned"])),
        ("backbone MACs", count(result["backbone_macs"])),
        ("FLOPs that remain", percent(result["flops_ratio"])),
        *_cost_rows(result),
        ("head MACs", count(result["head_macs"])),
        ("training FLOPs, as the paper counts", count(result["training_flops"])),
    ]
    _print_pairs("Sizes and costs", rows)
    if groups and result["groups"]:
        table = _table("Groups")
        table.add_column("root layer")
        table.add_column("channels", justify="right")
        table.add_column("kept", justify="right")
        for name, group in result["groups"].items():
            table.add_row(name, str(group["channels"]), str(group["kept"]))
        _print(table)


def print_costs(run: str, costs: Mapping[str, Summary]) -> None:
    """Print what the networks of a run cost.

    Args:
        run: name of the run.
        costs: of each stage's network.
    """
    table = _table(f"Networks of run {run}")
    table.add_column("stage")
    for title in ("S", "I", "MACs of a forward pass", "of them in the head", "parameters"):
        table.add_column(title, justify="right")
    for stage, cost in costs.items():
        table.add_row(
            stage,
            str(cost.get("bottleneck_channels", "")),
            str(cost.get("primary_capsules", "")),
            count(cost["forward_macs"]),
            count(cost["head_macs"]) if "head_macs" in cost else "",
            count(cost["parameters"]),
        )
    _print(table)


def print_runs(runs: Sequence[tuple[str, Mapping[str, str]]], where: str) -> None:
    """Print what runs there are and which of their stages are done.

    Args:
        runs: names, and for each stage that is done a word on what came of it.
        where: the folder that holds them.
    """
    if not runs:
        print(f"There are no runs in {where}.")
        return
    stages = ("baseline", "pruned", "caps", "linear", "onnx", "profile", "analysis")
    table = _table(f"Runs in {where}")
    table.add_column("run")
    for stage in stages:
        table.add_column(stage)
    for name, done in runs:
        table.add_row(name, *(done.get(stage, "-") for stage in stages))
    _print(table)


def print_sweeps(sweeps: Sequence[tuple[str, Mapping[str, bool], int]]) -> None:
    """Print what sweeps there are: name, which cells are done, and how many runs failed."""
    table = _table("Sweeps")
    table.add_column("sweep")
    for title in ("cells", "done", "failed"):
        table.add_column(title, justify="right")
    for name, done, failed in sweeps:
        table.add_row(name, str(len(done)), str(sum(done.values())), str(failed))
    _print(table)


def print_sweep(
    name: str, cells: Mapping[str, Summary], failed: Mapping[str, str], where: str
) -> None:
    """Print what a sweep came to.

    Args:
        name: of the sweep.
        cells: by name, the test accuracies of their stages.
        failed: why a run is not finished, by name.
        where: the sweep's folder.
    """
    table = _table(f"Sweep {name}")
    table.add_column("cell")
    for title in ("pruned", "capsules", "linear"):
        table.add_column(title, justify="right")
    for cell, accuracies in cells.items():
        table.add_row(
            cell,
            *(percent(accuracies.get(stage)) for stage in ("pruned", "caps", "linear")),
        )
    if cells:
        _print(table)
    broken = [(run, reason) for run, reason in failed.items() if not reason.startswith("not begun")]
    if broken:
        others = len(failed) - len(broken)
        if others:
            broken.append((f"{others} more", "not begun, as they build on these"))
        _print_pairs("Not finished", broken)
    print(f"Its runs lie in {where}; 'capsprune report {name}' shows them.")


def print_report(
    tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]], int]],
    claims: Iterable[tuple[str, str]],
    missing: Mapping[str, str],
    files: Iterable[str],
) -> None:
    """Print a report: its tables, what it says of the paper's claims, and where the files lie.

    Args:
        tables: title, headings and lines of each, and how many of its columns are words.
        claims: statement and verdict of each.
        missing: what is not done.
        files: that were written.
    """
    for title, headings, lines, words in tables:
        table = _table(title)
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="left" if place < words else "right")
        for line in lines:
            table.add_row(*line)
        _print(table)
    table = _table("What holds, and what does not: the figures are in the report")
    for heading in ("verdict", "claim"):
        table.add_column(heading)
    untold = 0
    for statement, verdict in claims:
        if verdict == "cannot be told":
            untold += 1
        else:
            table.add_row(verdict, statement)
    if table.rows:
        _print(table)
    if untold:
        print(f"{untold} claims cannot be told from these results: it takes a sweep of more cells.")
    if missing:
        _print_pairs("What is missing", list(missing.items()))
    _print_pairs("Files", [(file,) for file in files])


def print_findings(findings: Sequence[tuple[str, str, str]]) -> None:
    """Print what `doctor` found: a name, what there is, and how to get what is missing."""
    table = _table("capsprune doctor")
    table.add_column("what")
    table.add_column("found")
    table.add_column("how to get it")
    for row in findings:
        table.add_row(*row)
    _print(table)


def _cost_rows(summary: Summary) -> list[tuple[str, str]]:
    rows = []
    if "primary_capsules" in summary:
        rows.append(
            (
                "bottleneck, primary capsules",
                f"S = {summary.get('bottleneck_channels', NOT_AVAILABLE)}, "
                f"I = {summary['primary_capsules']}",
            )
        )
    rows.append(("MACs of a forward pass", count(summary["forward_macs"])))
    rows.append(("parameters", count(summary["parameters"])))
    return rows


def _shapes(shapes: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold")


def _print_pairs(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    for _ in rows[0][:-1]:
        table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    _print(table)


def _print(table: Table) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # A pipe or a file has no width of its own, and a table cut short is of no use there.
        console = Console(highlight=False, markup=False, width=200)
    console.print(table)
