"""The figures of the report page that show what the analyses found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capsprune.report.charts import (
    Figure,
    Key,
    Levels,
    Networks,
    Panel,
    Trace,
    axis,
    grouped,
    line,
    tooltip,
)
from capsprune.report.results import Head, Results, Row, accuracies_by_amount

Summary = Mapping[str, Any]

#: That are compared on distorted images.
_HEADS: tuple[Head, ...] = ("capsules", "linear")
#: Of each iteration of the routing: title, what goes upwards, and its key in an analysis.
_PER_ITERATION = (
    ("Couplings", "entropy, 1 is uniform", "coupling_entropy"),
    ("The true class", "agreement", "agreement_true"),
    ("The other classes", "agreement", "agreement_other"),
)
#: Title, what goes upwards, its key in an analysis, what it is multiplied by, and its unit.
_BY_LEVEL = (
    ("Entropy of a unit", "bits", "bottleneck_entropy", 1, " bits"),
    ("Units that are on", "share", "active_share", 100, " %"),
    ("Primary capsules never active", "share", "never_active_share", 100, " %"),
)


@dataclass(frozen=True)
class _Analysed:
    """A row with capsules, and the analyses of its seeds."""

    row: Row
    summaries: Sequence[Summary]
    #: The row's, where there are several.
    source: str

    @property
    def network(self) -> str:
        """What the reader picks by; levels of one network stand in one chart."""
        source = f"{self.source}: " if self.source else ""
        return f"{source}{self.row.backbone}, {self.row.trunk}, {self.row.data}"


def make_analysis_figures(results: Results) -> list[Figure | None]:
    """Make the figures on robustness, routing and bottleneck; None for what was not analysed."""
    analysed = []
    for row in sorted(results.rows, key=lambda row: row.pruned):
        runs = [cell.run for cell in row.cells if cell.run in results.analyses]
        if row.head == "capsules" and runs:
            summaries = [results.analyses[run] for run in runs]
            analysed.append(_Analysed(row, summaries, results.source_of(row)))
    levels = Levels(row.pruned for row in results.rows)
    return [
        _robustness(analysed, levels),
        _routing(analysed, levels),
        _bottleneck(analysed, Networks(results)),
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _over(count: int) -> str | None:
    return f"Mean of {count} seeds" if count > 1 else None


# Distorted images


def _robustness(analysed: Sequence[_Analysed], levels: Levels) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    for network, of_network in grouped(analysed, lambda one: one.network).items():
        kinds = dict.fromkeys(
            (point["distortion"], point["unit"])
            for one in of_network
            for point in _points(one)
            if point["distortion"] != "none"
        )
        panels = []
        for distortion, unit in kinds:
            traces = []
            for one in of_network:
                for head in _HEADS:
                    key = levels.key(one.row.pruned, head == "linear")
                    trace = _robustness_line(one, distortion, unit, head, key)
                    if trace is not None:
                        keys[key.label] = key
                        traces.append(trace)
            layout = {"xaxis": axis(unit), "yaxis": axis("", ticksuffix=" %")}
            panels.append(Panel(distortion.capitalize(), "accuracy", traces, layout))
        if panels:
            groups[network] = panels
    if not groups:
        return None
    return Figure(
        "robustness",
        "Accuracy on distorted images",
        "Test images, distorted more and more; at 0, or at a scale of 1, they are as they were. "
        "Means over seeds. Linear heads are dotted.",
        groups,
        list(keys.values()),
        choice="Network",
    )


def _points(one: _Analysed) -> list[Summary]:
    return [point for summary in one.summaries for point in summary.get("robustness") or ()]


def _robustness_line(
    one: _Analysed, distortion: str, unit: str, head: Head, key: Key
) -> Trace | None:
    """Make the line of one head under one distortion, None if it was not measured."""
    points = _points(one)
    if all(point["distortion"] != distortion or point.get(head) is None for point in points):
        return None
    accuracies = accuracies_by_amount(points, distortion, head)
    amounts = sorted(accuracies)
    percents = [100 * (_mean(accuracies[amount]) or 0) for amount in amounts]
    tooltips = [
        tooltip(
            f"{one.row.pruned} % pruned, {head}",
            f"{distortion.capitalize()}: {amount:g} {unit}".rstrip(),
            f"Accuracy: {percent:.2f} %",
            _over(len(accuracies[amount])),
        )
        for amount, percent in zip(amounts, percents, strict=True)
    ]
    return line(key, amounts, percents, tooltips)


# Routing


def _routing(analysed: Sequence[_Analysed], levels: Levels) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    for network, of_network in grouped(analysed, lambda one: one.network).items():
        panels = []
        for title, up, value in _PER_ITERATION:
            traces = []
            for one in of_network:
                seeds = [summary[value] for summary in one.summaries if summary.get(value)]
                if not seeds:
                    continue
                key = levels.key(one.row.pruned)
                keys[key.label] = key
                means = [_mean(values) or 0 for values in zip(*seeds, strict=False)]
                tooltips = [
                    tooltip(
                        f"{one.row.pruned} % pruned",
                        f"Iteration: {number}",
                        f"{title}: {up.partition(',')[0]} {mean:.4g}",
                        _over(len(seeds)),
                    )
                    for number, mean in enumerate(means, 1)
                ]
                traces.append(line(key, range(1, len(means) + 1), means, tooltips))
            if traces:
                layout = {"xaxis": axis("iteration", dtick=1), "yaxis": axis("")}
                panels.append(Panel(title, up, traces, layout))
        if panels:
            groups[network] = panels
    if not groups:
        return None
    return Figure(
        "routing",
        "What the routing does",
        "How evenly a primary capsule is shared out among the classes, and how far its votes agree "
        "with the output capsules (their dot product). Means over capsules, test images and seeds.",
        groups,
        list(keys.values()),
        choice="Network",
        panel_width=18,
    )


# Bottleneck


def _bottleneck(analysed: Sequence[_Analysed], networks: Networks) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    for data, of_data in grouped(analysed, lambda one: one.row.data).items():
        panels = []
        for title, up, value, scale, unit in _BY_LEVEL:
            traces = []
            for of_network in grouped(of_data, lambda one: one.network).values():
                key = networks.key(of_network[0].row)
                trace = _level_line(of_network, key, title, value, scale, unit)
                if trace is not None:
                    keys[key.label] = key
                    traces.append(trace)
            if traces:
                # Around nothing but zeros an axis would go below them.
                zeros = not any(any(trace["y"]) for trace in traces)
                layout = {
                    "xaxis": axis("FLOPs removed (%)", dtick=25),
                    "yaxis": axis(
                        "",
                        ticksuffix=unit if scale == 100 else "",
                        **({"range": [-0.05, 1]} if zeros else {}),
                    ),
                }
                panels.append(Panel(title, up, traces, layout))
        if panels:
            groups[data] = panels
    if not groups:
        return None
    return Figure(
        "bottleneck",
        "What pruning does to the bottleneck",
        "A unit of the bottleneck is on where its activation is above zero; its entropy is over "
        "the images of one class. Means over units, classes and seeds.",
        groups,
        list(keys.values()),
        choice="Data set",
        panel_width=18,
    )


def _level_line(
    analysed: Sequence[_Analysed], key: Key, title: str, value: str, scale: float, unit: str
) -> Trace | None:
    """Make the line of one network over its levels, None if it was not measured."""
    levels, means, tooltips = [], [], []
    for one in analysed:
        seeds = [summary[value] for summary in one.summaries if summary.get(value) is not None]
        mean = _mean(seeds)
        if mean is not None:
            levels.append(one.row.pruned)
            means.append(scale * mean)
            tooltips.append(
                tooltip(
                    f"{one.row.backbone}, {one.row.pruned} % pruned, {one.row.trunk}",
                    f"{title}: {scale * mean:.4g}{unit}",
                    _over(len(seeds)),
                )
            )
    if not levels:
        return None
    return line(key, levels, means, tooltips)
