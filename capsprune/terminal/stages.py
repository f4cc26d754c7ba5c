"""What the stages of a run and `evaluate` and `inspect` came to, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from capsprune.errors import listed
from capsprune.records import StageRecord
from capsprune.stages import STAGES
from capsprune.summaries import (
    AnalysisSummary,
    ClassScore,
    DistortedSummary,
    ExportSummary,
    MeasurementSummary,
    NetworkSummary,
    ProfileSummary,
    SlimSummary,
)
from capsprune.terminal.layout import (
    NOT_AVAILABLE,
    count,
    new_table,
    number,
    percent,
    show_pairs,
    show_table,
    with_unit,
)

Summary = Mapping[str, Any]


def print_checkpoint(title: str, summary: NetworkSummary, path: str, seconds: float) -> None:
    """Print what a stage that trains came to.

    Args:
        title: heading.
        summary: of the stage.
        path: where its checkpoint lies.
        seconds: how long the stage took.
    """
    rows: list[tuple[str, str]] = [("backbone", summary.model), ("data", summary.data)]
    if summary.weights is not None:
        rows.append(("starting weights", summary.weights))
    if summary.imported is not None:
        told = filter(None, (summary.imported, summary.classifier))
        rows.append(("imported from", ", ".join(told)))
    if summary.flops_ratio is not None:
        rows.append(("FLOPs that remain", percent(summary.flops_ratio)))
    if isinstance(summary, SlimSummary) and summary.params_ratio is not None:
        rows.append(("parameters that remain", percent(summary.params_ratio)))
    if summary.candidates is not None:
        rows.append(("candidates tried", str(summary.candidates)))
    if isinstance(summary, SlimSummary) and summary.accuracy_of_caps is not None:
        rows.append(("before pruning", percent(summary.accuracy_of_caps)))
    if summary.accuracy_before_finetuning is not None:
        rows.append(("before fine-tuning", percent(summary.accuracy_before_finetuning)))
    rows.append(("test accuracy", _accuracy(summary.accuracy, summary.majority_rate)))
    rows += _class_rows(summary.worst_classes)
    if summary.epochs is not None:
        best = "" if summary.kept_epoch is None else f" (best epoch {summary.kept_epoch})"
        rows.append(("epochs", f"{summary.epochs}{best}"))
    rows += _cost_rows(summary.to_dict())
    rows += [("time", f"{seconds:.0f} s"), ("checkpoint", path)]
    show_pairs(title, rows)


def print_export(report: ExportSummary) -> None:
    """Print what was exported and how it was verified."""
    if "poses" not in report.outputs:
        routing = "none: a backbone without capsules"
    elif report.operators == []:
        routing = "one iteration: matrix products, standard operators"
    elif report.inline:
        routing = "standard operators"
    else:
        routing = ", ".join(f"capsprune::{name}" for name in report.operators or ["DynamicRouting"])
    show_pairs(
        "ONNX file",
        [
            ("file", report.path),
            ("size", f"{report.bytes / 1e6:.1f} MB"),
            ("operator set", str(report.opset)),
            ("routing", routing),
            ("inputs", _shapes(report.inputs)),
            ("outputs", _shapes(report.outputs)),
            (
                "verified",
                f"{report.verified_on} in batches of "
                f"{', '.join(map(str, report.batches))}: largest difference from "
                f"PyTorch {report.max_abs_difference:.1e}, same top-1 for "
                f"{percent(report.top1_agreement)}",
            ),
        ],
    )


def print_profile(profile: ProfileSummary) -> None:
    """Print the measurements of all variants side by side.

    Where capsules were pruned too, a last column says what that network takes of what the first
    one does, the unpruned one with its linear classifier.
    """
    measurements = profile.measurements
    variants = list(profile.variants)
    provider = measurements[0].provider.upper()
    table = new_table(f"Profile in ONNX Runtime on {provider}, medians")
    table.add_column("")
    slim = STAGES["slim"].network
    compared = slim in variants and slim != variants[0]
    for variant in variants:
        table.add_column(variant.replace(", ", ",\n") if compared else variant, justify="right")
    if compared:
        table.add_column(f"slim of\n{variants[0]}", justify="right")

    def add(title: str, values: Sequence[float], write: Callable[[float], str]) -> None:
        ratio = [percent(values[variants.index(slim)] / values[0])] if compared else []
        table.add_row(title, *map(write, values), *ratio)

    costs = [profile.variants[variant] for variant in variants]
    add("MACs", [cost.forward_macs for cost in costs], count)
    add("parameters", [cost.parameters for cost in costs], count)
    add("file", [cost.file_bytes for cost in costs], lambda size: f"{count(size)}B")
    for batch in sorted({row.batch for row in measurements}):
        by_variant = {row.variant: row for row in measurements if row.batch == batch}
        rows = [by_variant[variant] for variant in variants]
        table.add_section()
        table.add_row(f"batch {batch}")
        add("  latency", [row.latency_ms for row in rows], lambda time: f"{time:.2f} ms")
        for title, write in _MEASURED.items():
            table.add_row(f"  {title}", *map(write, rows))
    show_table(table)


def print_analysis(analysis: AnalysisSummary) -> None:
    """Print what the capsules do, and the accuracy on distorted images."""
    show_pairs(
        f"{analysis.model} with capsules on {analysis.images} images of {analysis.data}",
        [
            ("entropy of a bottleneck unit", f"{number(analysis.bottleneck_entropy, 3)} bits"),
            ("bottleneck units that are on", percent(analysis.active_share)),
            ("length of a primary capsule", number(analysis.primary_length, 3)),
            (
                "dead primary capsules",
                f"{analysis.never_active} of {analysis.primary_capsules} "
                f"({percent(analysis.never_active_share)})",
            ),
        ],
    )
    iterations = new_table("Routing")
    iterations.add_column("iteration", justify="right")
    columns = {
        "coupling entropy": "coupling_entropy",
        "agreement, true class": "agreement_true",
        "agreement, others": "agreement_other",
    }
    for title in columns:
        iterations.add_column(title, justify="right")
    for index, row in enumerate(
        zip(*(getattr(analysis, key) for key in columns.values()), strict=False)
    ):
        iterations.add_row(str(index + 1), *(number(value, 4) for value in row))
    show_table(iterations)
    _print_robustness(analysis.robustness)


def _print_robustness(rows: Sequence[DistortedSummary]) -> None:
    compared = any(row.linear is not None for row in rows)
    table = new_table("Accuracy on distorted images")
    table.add_column("distortion")
    for title in ("amount", "capsules", *(["linear"] if compared else [])):
        table.add_column(title, justify="right")
    before = None
    for row in rows:
        if row.distortion != before:
            table.add_section()
        table.add_row(
            "" if row.distortion == before else row.distortion,
            f"{row.amount:g} {row.unit}" if row.unit else "",
            percent(row.capsules),
            *([percent(row.linear)] if compared else []),
        )
        before = row.distortion
    show_table(table)


#: The rows of a profile for each batch size.
_MEASURED: dict[str, Callable[[MeasurementSummary], str]] = {
    "quartiles": lambda row: f"{row.latency_ms_p25:.2f}-{row.latency_ms_p75:.2f} ms",
    "images/s": lambda row: number(row.images_per_second, 0),
    "peak memory": lambda row: with_unit(row.peak_memory_mb, "MB", 0),
    "in routing": lambda row: percent(row.routing_share),
    "kernel": lambda row: row.routing_kernel or "no routing",
    # The same file with the portable kernel in the native one's place.
    "portable kernel": lambda row: _if_native(row, with_unit(row.portable_latency_ms, "ms", 2)),
    "its routing": lambda row: _if_native(row, percent(row.portable_routing_share)),
    "GPU memory": lambda row: with_unit(row.gpu_memory_mb, "MB", 0),
    "energy/image": lambda row: with_unit(row.energy_joules_per_image, "J", 4),
}


def _if_native(row: MeasurementSummary, text: str) -> str:
    return text if row.routing_kernel == "native" else ""


def print_result(stages: Mapping[str, StageRecord], files: Iterable[tuple[str, str]]) -> None:
    """Print the outcome of a whole run: the result table, the profile, and where the files lie.

    Args:
        stages: the record of each finished stage, by its name.
        files: what each file holds, and its path.
    """
    table = new_table("Result")
    table.add_column("network")
    for title in ("test accuracy", "MACs", "parameters", "primary capsules", "time"):
        table.add_column(title, justify="right")
    for stage in STAGES:
        if stage in stages and STAGES[stage].network:
            summary = stages[stage].summary_as(NetworkSummary)
            capsules = summary.primary_capsules
            table.add_row(
                STAGES[stage].network,
                percent(summary.accuracy),
                count(summary.forward_macs),
                count(summary.parameters),
                "" if capsules is None else str(capsules),
                f"{stages[stage].seconds:.0f} s",
            )
    show_table(table)
    if "profile" in stages:
        print_profile(stages["profile"].summary_as(ProfileSummary))
    if "analysis" in stages:
        print_analysis(stages["analysis"].summary_as(AnalysisSummary))
    show_pairs("Files", list(files))


def print_evaluation(result: Summary) -> None:
    """Print the score of a checkpoint."""
    show_pairs(
        "Evaluation",
        [
            ("checkpoint", result["checkpoint"]),
            ("backbone", result["model"]),
            ("images", f"{result['images']} of {result['data']}, {result['split']}"),
            ("accuracy", _accuracy(result["accuracy"], result["majority_rate"])),
            *_class_rows(result["classes"]),
            ("loss", number(result["loss"], 4)),
        ],
    )


def _accuracy(accuracy: float | None, majority: float | None) -> str:
    """Write an accuracy, and beside it what the largest class alone gives, where that is much."""
    text = percent(accuracy)
    if accuracy is None or majority is None:
        return text
    if majority >= _MUCH or accuracy <= majority:
        text += f" (always naming the largest class: {percent(majority)})"
    return text


def _class_rows(classes: Iterable[ClassScore]) -> list[tuple[str, str]]:
    """Write the accuracy of the classes that are recognised least, and which have no images."""
    classes = list(classes)
    empty = [score["class"] for score in classes if not score["images"]]
    known = sorted((s for s in classes if s["images"]), key=lambda s: s["accuracy"] or 0.0)
    rows = []
    if known:
        worst = [
            f"{_short(score['class'])}: {percent(score['accuracy'])} of {score['images']}"
            for score in known[:_WORST]
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
    show_pairs("Sizes and costs", rows)
    table = new_table("What its parts cost")
    table.add_column("")
    table.add_column("with the head", justify="right")
    _add_parts(table, {"": result})
    show_table(table)
    if groups and result["groups"]:
        table = new_table("Groups")
        table.add_column("root layer")
        table.add_column("channels", justify="right")
        table.add_column("kept", justify="right")
        for name, group in result["groups"].items():
            table.add_row(name, str(group["channels"]), str(group["kept"]))
        show_table(table)


def print_costs(run: str, costs: Mapping[str, Summary]) -> None:
    """Print what the networks of a run cost, side by side, and which part of them costs it.

    Args:
        run: name of the run.
        costs: of each stage's network.
    """
    table = new_table(f"Networks of run {run}")
    table.add_column("")
    for stage in costs:
        table.add_column(stage, justify="right")
    for title, key in (("bottleneck, S", "bottleneck_channels"), ("capsules, I", _CAPSULES)):
        table.add_row(title, *(str(cost.get(key, "")) for cost in costs.values()))
    _add_parts(table, costs)
    parts = _parts(costs)
    measured = [cost.get("milliseconds", {}) for cost in costs.values()]
    for batch in sorted({batch for by_batch in measured for batch in by_batch}, key=int):
        times = [by_batch.get(batch, {}) for by_batch in measured]
        _add_section(table, f"ms, batch {batch}", parts, times, number)
    show_table(table)
    if any("routing" in times for by_batch in measured for times in by_batch.values()):
        print("The time of the routing includes the votes, which one node computes with it.")


def _parts(costs: Mapping[str, Summary]) -> list[str]:
    return list(dict.fromkeys(part for cost in costs.values() for part in cost["parts"]))


def _add_parts(table: Table, costs: Mapping[str, Summary]) -> None:
    """Add what the parts of networks cost: a column each."""
    for title, key in _BY_PART.items():
        by_part = [{p: values[key] for p, values in c["parts"].items()} for c in costs.values()]
        sums = [{**values, "all": sum(values.values())} for values in by_part]
        _add_section(table, title, _parts(costs), sums, count)


def _add_section(
    table: Table,
    title: str,
    parts: Sequence[str],
    columns: Sequence[Mapping[str, float]],
    write: Callable[[float], str],
) -> None:
    """Add a line for all of a network, and one for each part; what there is none of stays empty."""
    table.add_section()
    for part in ("all", *parts):
        if any(column.get(part) for column in columns):
            label = title if part == "all" else f"  {part.replace('_', ' ')}"
            table.add_row(
                label, *(write(column[part]) if part in column else "" for column in columns)
            )


#: Sections of the table of costs, and what they are of a part.
_BY_PART = {"parameters": "parameters", "MACs": "macs", "bytes of weights": "weight_bytes"}
_CAPSULES = "primary_capsules"


def _cost_rows(summary: Summary) -> list[tuple[str, str]]:
    rows = []
    if "primary_capsules" in summary:
        rows.append(
            (
                "bottleneck, primary capsules",
                f"S = {summary.get('bottleneck_channels', NOT_AVAILABLE)}, "
                f"I = {_left(summary, 'primary_capsules', 'capsules_of')}",
            )
        )
    kind = [summary[key] for key in ("primary",) if key in summary]
    if "primary_types" in summary:
        kind.append(f"types {summary['primary_types']}")
    if "primary_rank" in summary:
        kind.append(f"rank {_left(summary, 'primary_rank', 'primary_rank_of')}")
    if kind:
        rows.append(("PrimaryCaps", ", ".join(kind)))
    if "routing_iterations" in summary:
        left = _left(summary, "routing_iterations", "iterations_of")
        rows.append(("routing iterations", left))
    rows.append(("MACs of a forward pass", count(summary["forward_macs"])))
    rows.append(("parameters", count(summary["parameters"])))
    return rows


def _left(summary: Summary, key: str, before: str) -> str:
    """Write a size, and what it was before it was pruned, where it was."""
    return f"{summary[key]} of {summary[before]}" if before in summary else str(summary[key])


def _shapes(shapes: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
