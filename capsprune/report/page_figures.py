"""The figures of the report page: accuracy, searches, training, latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capsprune.report.charts import (
    SERIES,
    Figure,
    Key,
    Levels,
    Networks,
    Panel,
    Trace,
    axis,
    escape,
    grouped,
    line,
    tooltip,
)
from capsprune.report.columns import FURTHER, PAPER, Column
from capsprune.report.page_analysis import make_analysis_figures
from capsprune.report.results import Latency, Results, Row, Search

#: What stands in the tooltip of a network, beside its name.
_COLUMNS = {column.key: column for column in (*PAPER, *FURTHER)}
_IN_TOOLTIP = [
    _COLUMNS[key]
    for key in (
        "accuracy",
        "training_flops",
        "forward_macs",
        "parameters",
        "bottleneck",
        "capsules",
        "epoch",
        "memory",
        "energy",
        "seeds",
    )
]


def make_figures(results: Results) -> list[Figure]:
    """Make the figures that there are results for, in the order of the page."""
    made = [
        _accuracy(results),
        _searches(results),
        _curves(results),
        _latencies(results),
        *make_analysis_figures(results),
    ]
    return [figure for figure in made if figure is not None]


# Accuracy against training FLOPs: the paper's figure 3


def _accuracy(results: Results) -> Figure | None:
    flops, accuracy = _COLUMNS["training_flops"], _COLUMNS["accuracy"]
    rows = [
        row
        for row in results.rows
        if flops.number(row) is not None and accuracy.number(row) is not None
    ]
    keys: dict[str, Key] = {}
    networks = Networks(results)
    panels = []
    for data, of_data in grouped(rows, lambda row: row.data).items():
        traces = []
        # The controls first, so that what the figure is about lies above them.
        of_data.sort(key=lambda row: row.head, reverse=True)
        for series in grouped(
            of_data, lambda row: (row.head, row.backbone, row.trunk, row.source)
        ).values():
            points = sorted(series, key=lambda row: row.pruned)
            key = networks.key(points[0])
            keys[key.label] = key
            spreads = [accuracy.spread(row) for row in points]
            traces.append(
                line(
                    key,
                    [flops.number(row) or 0 for row in points],
                    [spread.mean for spread in spreads if spread],
                    [_network_tooltip(row, results.source_of(row)) for row in points],
                    deviations=[spread.deviation for spread in spreads if spread],
                    sizes=[_size(row.pruned) for row in points],
                    opacity=1 if points[0].head == "capsules" else 0.65,
                )
            )
        layout = {
            "xaxis": axis("total training FLOPs for one image (B)", type="log", **_LOG_TICKS),
            "yaxis": axis("", ticksuffix=" %"),
        }
        panels.append(Panel(data, "accuracy", traces, layout, height=440))
    if not panels:
        return None
    return Figure(
        "accuracy",
        "Accuracy against training FLOPs",
        "The paper's figure 3, from these results. The larger a point, the more of the backbone is "
        "left. Error bars are standard deviations over seeds; hollow points are linear heads on "
        "the same pruned backbones.",
        {"": panels},
        sorted(keys.values(), key=lambda key: key.label.endswith("linear")),
        panel_width=30,
    )


#: Plotly labels the steps within a decade in small type and without their power of ten.
_LOG_TICKS: dict[str, Any] = {
    "tickmode": "array",
    "tickvals": (ticks := [step * 10.0**power for power in range(-6, 6) for step in (1, 2, 5)]),
    "ticktext": [f"{tick:g}" for tick in ticks],
}


def _size(pruned: int) -> float:
    # The area, not the width, goes with what is left.
    return round(18 * (max(100 - pruned, 0) / 100 + 0.12) ** 0.5, 1)


def _network_tooltip(row: Row, source: str) -> str:
    lines = [_figure(column, row) for column in _IN_TOOLTIP]
    # In two lines, for a phone.
    title = f"{row.backbone}, {row.pruned} % pruned"
    return tooltip(title, f"{row.trunk}, {row.head}", _told(source), *lines)


def _told(source: str) -> str | None:
    return f"Source: {source}" if source else None


def _figure(column: Column, row: Row) -> str | None:
    if column.number(row) is None:
        return None
    return f"{column.title}: {column.text(row)} {column.unit}".rstrip()


# The searches' candidates


def _searches(results: Results) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    by_panel = grouped(
        results.searches, lambda one: (one.data, one.backbone, results.source_of(one), one.pruned)
    )
    for (data, backbone, source, pruned), searches in by_panel.items():
        traces: list[Trace] = []
        for search in searches:
            traces += _candidates(search, keys)
        if not traces:
            continue
        layout = {
            "xaxis": axis("FLOPs left (%)", nticks=4),
            "yaxis": axis("", ticksuffix=" %"),
        }
        title = f"{_after(source)}{backbone}, {pruned} % pruned"
        panel = Panel(title, "score of a candidate", traces, layout)
        groups.setdefault(data, []).append(panel)
    if not groups:
        return None
    return Figure(
        "searches",
        "What the searches found",
        "Each point is a way to prune the backbone to its target, scored by its accuracy on held-"
        "out training images after its batch norm statistics were adapted. Stars were chosen.",
        groups,
        list(keys.values()),
        choice="Data set",
    )


def _candidates(search: Search, keys: dict[str, Key]) -> list[Trace]:
    """Make the points of one search: those that were not chosen, and the one that was."""
    scored = search.scored
    color = SERIES[search.seed % len(SERIES)]
    traces = []
    for chosen in (False, True):
        points = [one for one in scored if (one["index"] == search.best) == chosen]
        if not points:
            continue
        key = Key(f"seed {search.seed}", color, None, "star" if chosen else "circle")
        if not chosen:
            keys[key.label] = key
        state = "chosen" if chosen else "candidate"
        tooltips = [
            tooltip(
                f"{state} {one['index']}, seed {search.seed}",
                f"Score: {100 * one['score']:.2f} %",
                f"FLOPs left: {100 * one['flops_ratio']:.2f} %",
                None if one.get("loss") is None else f"Loss: {one['loss']:.3f}",
                f"Rung: {one['rung']}" if "rung" in one else None,
                f"Run: {search.run}",
            )
            for one in points
        ]
        traces.append(
            line(
                key,
                [100 * one["flops_ratio"] for one in points],
                [100 * one["score"] for one in points],
                tooltips,
                sizes=17 if chosen else 7,
                opacity=1 if chosen else 0.6,
            )
        )
    return traces


# Training curves


@dataclass(frozen=True)
class _Training:
    """One curve."""

    #: The reader picks one of these.
    group: str
    name: str
    key: Key
    epochs: Sequence[Mapping[str, float]]


#: Title, what goes upwards, its key in an epoch, what it is multiplied by, and its unit.
_CURVES = (
    ("Accuracy", "validation images", "validation_accuracy", 100, " %"),
    ("Loss", "validation images", "validation_loss", 1, ""),
)


def _curves(results: Results) -> Figure | None:
    trainings = [one for one in _trainings(results) if one.epochs]
    if not trainings:
        return None
    groups = {
        group: [
            Panel(
                title,
                up,
                [_curve(training, title, value, scale, unit) for training in of_group],
                {"xaxis": axis("epoch"), "yaxis": axis("", ticksuffix=unit)},
                height=300,
            )
            for title, up, value, scale, unit in _CURVES
        ]
        for group, of_group in grouped(trainings, lambda one: one.group).items()
    }
    return Figure(
        "training",
        "Training curves",
        "One line for each seed. Linear heads are dotted; their loss is not that of capsules, so "
        "compare accuracies alone.",
        groups,
        list({training.key.label: training.key for training in trainings}.values()),
        choice="Network",
    )


def _trainings(results: Results) -> list[_Training]:
    levels = Levels(
        [*(row.pruned for row in results.rows), *(one.pruned for one in results.backbones)]
    )
    heads = [
        _Training(
            f"{_after(results.source_of(row))}{row.backbone}, {row.trunk}, {row.data}",
            f"{row.pruned} % pruned, {row.head}, seed {cell.seed}",
            levels.key(row.pruned, row.head == "linear"),
            cell.epochs,
        )
        for row in sorted(results.rows, key=lambda row: row.pruned)
        for cell in row.cells
    ]
    backbones = [
        _Training(
            f"{_after(results.source_of(one))}{one.backbone} before its head, {one.data}",
            f"{one.stage}, {one.pruned} % pruned, seed {one.seed}",
            levels.key(one.pruned),
            one.epochs,
        )
        for one in sorted(results.backbones, key=lambda one: one.pruned)
    ]
    return heads + backbones


def _curve(training: _Training, title: str, value: str, scale: float, unit: str) -> Trace:
    epochs = [epoch for epoch in training.epochs if epoch.get(value) is not None]
    numbers = [int(epoch.get("epoch", index)) + 1 for index, epoch in enumerate(epochs)]
    values = [scale * epoch[value] for epoch in epochs]
    tooltips = [
        tooltip(training.name, f"Epoch: {number}", f"{title}: {shown:.4g}{unit}")
        for number, shown in zip(numbers, values, strict=True)
    ]
    return line(training.key, numbers, values, tooltips, sizes=4, width=1.5, opacity=0.85)


# Latency


def _latencies(results: Results) -> Figure | None:
    groups: dict[str, list[Panel]] = {}
    by_panel = grouped(results.latencies, lambda one: (one.provider, one.data, one.batch))
    for (provider, data, batch), rows in by_panel.items():
        title = f"batch {batch}"
        group = f"{provider.upper()}, {data}" if data else provider.upper()
        labels = [_after(results.source_of(row)) + row.label for row in rows]
        groups.setdefault(group, []).append(_latency_panel(title, rows, labels))
    if not groups:
        return None
    bars = {"rest": "everything else", "routing": "routing", "whole": "routing not told apart"}
    keys = [Key(bars[part], color, None, "square") for part, color in _BAR_COLORS.items()]
    used = {
        trace["legendgroup"] for panels in groups.values() for p in panels for trace in p.traces
    }
    return Figure(
        "latency",
        "Latency in ONNX Runtime",
        "Medians, the part of the routing at the end of each bar; whiskers are quartiles.",
        groups,
        [key for key in keys if key.label in used],
        choice="On",
    )


_BAR_COLORS = {"rest": "--series-1", "routing": "--series-2", "whole": "--faint"}


def _after(source: str) -> str:
    """Give what stands before the name of something of a source."""
    return f"{source}: " if source else ""


def _latency_panel(title: str, rows: Sequence[Latency], labels: Sequence[str]) -> Panel:
    # Numbers for places, and labels beside them: two rows of one label must not become one.
    places = list(range(len(rows)))
    tooltips = [
        tooltip(
            label,
            f"Batch: {row.batch}, on {row.provider.upper()}",
            f"Latency: {row.latency_ms:.2f} ms ({row.p25_ms:.2f} to {row.p75_ms:.2f} ms)",
            None
            if row.routing_share is None
            else f"Routing: {100 * row.routing_share:.1f} %, "
            f"{row.latency_ms * row.routing_share:.2f} ms",
            f"Kernel of the routing: {row.routing_kernel}" if row.routing_kernel else None,
        )
        for row, label in zip(rows, labels, strict=True)
    ]

    def bars(part: str, label: str, length: Callable[[Latency], float]) -> Trace:
        lengths = [length(row) for row in rows]
        return {
            "type": "bar",
            "orientation": "h",
            "legendgroup": label,
            "x": lengths,
            "y": places,
            "hoverinfo": "text",
            "hovertext": tooltips,
            "marker": {"color": _BAR_COLORS[part], "line": {"color": "--surface", "width": 1}},
        }

    def told(row: Latency) -> bool:
        return row.routing_share is not None or row.head == "linear"

    def routing(row: Latency) -> float:
        return row.latency_ms * (row.routing_share or 0)

    whole = bars("whole", "routing not told apart", lambda r: 0 if told(r) else r.latency_ms)
    rest = bars("rest", "everything else", lambda r: r.latency_ms - routing(r) if told(r) else 0)
    whiskers: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [row.latency_ms for row in rows],
        "y": places,
        "hoverinfo": "skip",
        "marker": {"color": "--ink", "size": 1},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(row.p75_ms - row.latency_ms, 0) for row in rows],
            "arrayminus": [max(row.latency_ms - row.p25_ms, 0) for row in rows],
            "color": "--ink",
            "thickness": 1.5,
            "width": 4,
        },
    }
    traces = [
        trace for trace in (whole, rest, bars("routing", "routing", routing)) if any(trace["x"])
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": axis("ms", rangemode="tozero", nticks=4),
        "yaxis": axis(
            "",
            tickmode="array",
            tickvals=places,
            ticktext=[_in_two_lines(label) for label in labels],
            # The first on top.
            range=[len(rows) - 0.5, -0.5],
            showgrid=False,
            zeroline=False,
        ),
    }
    return Panel(title, "median latency", [*traces, {**whiskers, "legendgroup": ""}], layout,
                 height=80 + 40 * len(rows))  # fmt: skip


def _in_two_lines(label: str) -> str:
    first, comma, rest = label.partition(", ")
    return escape(first) + ("<br>" if comma else "") + escape(rest)
