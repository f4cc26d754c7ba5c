"""The figures of the report page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capsprune.report.charts import (
    FINETUNED,
    FROZEN,
    SERIES,
    Figure,
    Key,
    Panel,
    Trace,
    axis,
    escape,
    grouped,
    line,
    tooltip,
)
from capsprune.report.columns import FURTHER, PAPER, Column
from capsprune.report.results import Cell, Latency, Results, Row, Search

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
#: Sweeps prune to round figures; a level that is none of these takes the next colour that is free.
_LEVELS = (0, 25, 50, 75)

#: A configuration whose seeds are averaged: data set, backbone, trunk, per cent pruned.
_Configuration = tuple[str, str, str, int]


def make_figures(results: Results) -> list[Figure]:
    """Make the figures that there are results for, in the order of the page."""
    analyses = _analyses(results)
    made = [
        _accuracy(results),
        _searches(results),
        _curves(results),
        _latencies(results),
        _robustness(results, analyses),
        _routing(results, analyses),
        _bottleneck(results, analyses),
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
    panels = []
    for data, of_data in grouped(rows, lambda row: row.data).items():
        traces = []
        for series in grouped(of_data, lambda row: (row.head, row.backbone, row.trunk)).values():
            points = sorted(series, key=lambda row: row.pruned)
            key = _network_key(points[0])
            keys[key.label] = key
            spreads = [accuracy.spread(row) for row in points]
            traces.append(
                line(
                    key,
                    [flops.number(row) or 0 for row in points],
                    [spread.mean for spread in spreads if spread],
                    [_network_tooltip(row) for row in points],
                    deviations=[spread.deviation for spread in spreads if spread],
                    sizes=[_size(row.pruned) for row in points],
                    opacity=1 if points[0].head == "capsules" else 0.65,
                )
            )
        layout = {
            "xaxis": axis("total training FLOPs for one image (B)", type="log", dtick="D2"),
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
        list(keys.values()),
        panel_width=30,
    )


def _network_key(row: Row) -> Key:
    """Say how the networks of a backbone, a trunk and a head look."""
    dash = "dot"
    if row.backbone.startswith("resnet"):
        dash = "dash"
    elif row.backbone == "mobilenet_v1":
        dash = "solid"
    frozen = row.trunk == "frozen"
    symbol = "circle" if frozen else "diamond"
    label = f"{row.backbone}, {row.trunk}"
    if row.head == "linear":
        symbol += "-open"
        label += ", linear"
    return Key(label, FROZEN if frozen else FINETUNED, dash, symbol)


def _size(pruned: int) -> float:
    # The area, not the width, goes with what is left.
    return round(18 * (max(100 - pruned, 0) / 100 + 0.12) ** 0.5, 1)


def _network_tooltip(row: Row) -> str:
    lines = [_figure(column, row) for column in _IN_TOOLTIP]
    return tooltip(f"{row.backbone}, {row.pruned} % pruned, {row.trunk}, {row.head}", *lines)


def _figure(column: Column, row: Row) -> str | None:
    if column.number(row) is None:
        return None
    return f"{column.title}: {column.text(row)} {column.unit}".rstrip()


# The searches' candidates


def _searches(results: Results) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    by_panel = grouped(results.searches, lambda one: (one.data, one.backbone, one.pruned))
    for (data, backbone, pruned), searches in by_panel.items():
        traces: list[Trace] = []
        for search in searches:
            traces += _candidates(search, keys)
        if not traces:
            continue
        layout = {
            "xaxis": axis("FLOPs left (%)", nticks=5),
            "yaxis": axis("", ticksuffix=" %"),
        }
        panel = Panel(f"{backbone}, {pruned} % pruned", "score of a candidate", traces, layout)
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
    scored = [one for one in search.candidates if "score" in one]
    color = SERIES[search.seed % len(SERIES)]
    traces = []
    for chosen in (False, True):
        points = [one for one in scored if (one.get("index") == search.best) == chosen]
        if not points:
            continue
        key = Key(f"seed {search.seed}", color, None, "star" if chosen else "circle")
        if not chosen:
            keys[key.label] = key
        state = "chosen" if chosen else "candidate"
        tooltips = [
            tooltip(
                f"{state} {one.get('index', '')}, seed {search.seed}",
                f"Score: {100 * one['score']:.2f} %",
                f"FLOPs left: {100 * one['flops_ratio']:.2f} %",
                f"Loss: {one['loss']:.3f}" if "loss" in one else None,
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


def _curves(results: Results) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    levels = _Levels([row.pruned for row in results.rows])
    by_group = grouped(results.rows, lambda row: (row.data, row.backbone, row.trunk))
    for (data, backbone, trunk), rows in by_group.items():
        panels = []
        for title, value, scale, unit in (
            ("Accuracy on validation images", "validation_accuracy", 100, " %"),
            ("Loss on training images", "train_loss", 1, ""),
        ):
            traces = [
                _curve(cell, levels, keys, value, scale, unit)
                for row in sorted(rows, key=lambda row: row.pruned)
                for cell in row.cells
                # The losses of the two heads are different functions: they do not compare.
                if any(value in epoch for epoch in cell.epochs)
                and (cell.head == "capsules" or value != "train_loss")
            ]
            if traces:
                layout = {"xaxis": axis("epoch"), "yaxis": axis("", ticksuffix=unit)}
                panels.append(Panel(title, value.replace("_", " "), traces, layout, height=300))
        if panels:
            groups[f"{backbone}, {trunk}, {data}"] = panels
    if not groups:
        return None
    return Figure(
        "curves",
        "Training curves",
        "One line for each seed. Linear heads are dotted.",
        groups,
        list(keys.values()),
        choice="Network",
    )


def _curve(
    cell: Cell, levels: _Levels, keys: dict[str, Key], value: str, scale: float, unit: str
) -> Trace:
    key = levels.key(cell.pruned, cell.head == "linear")
    keys[key.label] = key
    epochs = [epoch for epoch in cell.epochs if value in epoch]
    numbers = [int(epoch.get("epoch", index)) + 1 for index, epoch in enumerate(epochs)]
    values = [scale * epoch[value] for epoch in epochs]
    tooltips = [
        tooltip(
            f"{cell.pruned} % pruned, {cell.head}, seed {cell.seed}",
            f"Epoch: {number}",
            f"{value.replace('_', ' ').capitalize()}: {shown:.4g}{unit}",
        )
        for number, shown in zip(numbers, values, strict=True)
    ]
    return line(key, numbers, values, tooltips, sizes=4, width=1.5, opacity=0.85)


class _Levels:
    """Colours and markers by how much was pruned, the same in every figure."""

    def __init__(self, pruned: Sequence[int]) -> None:
        self._order = [*_LEVELS, *sorted(set(pruned) - set(_LEVELS))]

    def key(self, pruned: int, linear: bool = False) -> Key:
        """Give the legend's entry of a level, of its capsules or its linear control."""
        place = self._order.index(pruned) % len(SERIES)
        symbol = ("circle", "diamond", "square", "triangle-up", "cross")[place]
        if linear:
            return Key(f"{pruned} % pruned, linear", SERIES[place], "dot", f"{symbol}-open")
        return Key(f"{pruned} % pruned", SERIES[place], "solid", symbol)


# Latency


def _latencies(results: Results) -> Figure | None:
    groups: dict[str, list[Panel]] = {}
    by_panel = grouped(results.latencies, lambda one: (one.provider, one.batch))
    for (provider, batch), rows in by_panel.items():
        title = f"batch {batch}"
        groups.setdefault(provider.upper(), []).append(_latency_panel(title, rows))
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
        choice="Provider",
    )


_BAR_COLORS = {"rest": "--series-1", "routing": "--series-2", "whole": "--faint"}


def _latency_panel(title: str, rows: Sequence[Latency]) -> Panel:
    # Numbers for places, and labels beside them: two rows of one label must not become one.
    places = list(range(len(rows)))
    tooltips = [
        tooltip(
            row.label,
            f"Batch: {row.batch}, on {row.provider.upper()}",
            f"Latency: {row.latency_ms:.2f} ms ({row.p25_ms:.2f} to {row.p75_ms:.2f} ms)",
            None
            if row.routing_share is None
            else f"Routing: {100 * row.routing_share:.1f} %, "
            f"{row.latency_ms * row.routing_share:.2f} ms",
        )
        for row in rows
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
        "xaxis": axis("ms", rangemode="tozero"),
        "yaxis": axis(
            "",
            tickmode="array",
            tickvals=places,
            ticktext=[_in_two_lines(row.label) for row in rows],
            # The first on top.
            range=[len(rows) - 0.5, -0.5],
            showgrid=False,
        ),
    }
    return Panel(title, "median latency", [*traces, {**whiskers, "legendgroup": ""}], layout,
                 height=80 + 40 * len(rows))  # fmt: skip


def _in_two_lines(label: str) -> str:
    first, comma, rest = label.partition(", ")
    return escape(first) + ("<br>" if comma else "") + escape(rest)


# What the analyses found


def _analyses(results: Results) -> dict[_Configuration, list[Mapping[str, Any]]]:
    """Sort the analyses by configuration: those of its seeds stand together."""
    found: dict[_Configuration, list[Mapping[str, Any]]] = {}
    rows = sorted(results.rows, key=lambda row: row.pruned)
    for row in rows:
        configuration = (row.data, row.backbone, row.trunk, row.pruned)
        for cell in row.cells:
            summary = results.analyses.get(cell.run)
            if summary is not None and summary not in found.get(configuration, []):
                found.setdefault(configuration, []).append(summary)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _robustness(
    results: Results, analyses: Mapping[_Configuration, Sequence[Mapping[str, Any]]]
) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    levels = _Levels([row.pruned for row in results.rows])
    by_group = grouped(analyses.items(), lambda item: item[0][:3])
    for (data, backbone, trunk), items in by_group.items():
        measured = [
            (pruned, point, len(summaries))
            for (_, _, _, pruned), summaries in items
            for point in _robustness_means(summaries)
        ]
        kinds = grouped(
            [one for one in measured if one[1]["distortion"] != "none"],
            lambda one: (one[1]["distortion"], one[1]["unit"]),
        )
        panels = []
        for (distortion, unit), points in kinds.items():
            traces = []
            for (pruned, head), line_points in grouped(
                [(p, head, point, n) for p, point, n in points for head in ("capsules", "linear")],
                lambda one: (one[0], one[1]),
            ).items():
                start = [
                    (p, head, point, n)
                    for p, point, n in measured
                    if p == pruned and point["distortion"] == "none"
                ]
                shown = [one for one in [*start, *line_points] if one[2][head] is not None]
                if not any(one in line_points for one in shown):
                    continue
                key = levels.key(pruned, head == "linear")
                keys[key.label] = key
                # An undistorted image is a scale of 1, but a rotation of 0.
                zero = 1 if distortion == "scale" else 0
                xs = [zero if o[2]["distortion"] == "none" else o[2]["amount"] for o in shown]
                tooltips = [
                    tooltip(
                        f"{pruned} % pruned, {head}",
                        f"{distortion.capitalize()}: {x:g} {unit}".rstrip(),
                        f"Accuracy: {100 * one[2][head]:.2f} %",
                        f"Mean of {one[3]} seeds" if one[3] > 1 else None,
                    )
                    for x, one in zip(xs, shown, strict=True)
                ]
                order = sorted(range(len(xs)), key=lambda i: xs[i])
                traces.append(
                    line(
                        key,
                        [xs[i] for i in order],
                        [100 * shown[i][2][head] for i in order],
                        [tooltips[i] for i in order],
                    )
                )
            layout = {
                "xaxis": axis(f"{distortion} ({unit})" if unit else distortion),
                "yaxis": axis("", ticksuffix=" %"),
            }
            panels.append(Panel(distortion.capitalize(), "accuracy", traces, layout))
        if panels:
            groups[f"{backbone}, {trunk}, {data}"] = panels
    if not groups:
        return None
    return Figure(
        "robustness",
        "Accuracy on distorted images",
        "No network saw such images in training on purpose. Means over seeds; linear heads are "
        "dotted.",
        groups,
        list(keys.values()),
        choice="Network",
    )


def _robustness_means(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    points = [point for one in summaries for point in one.get("robustness") or ()]
    same = grouped(points, lambda p: (p["distortion"], p.get("amount"), p.get("unit") or ""))
    return [
        {
            "distortion": distortion,
            "amount": amount,
            "unit": unit,
            **{head: _mean([point.get(head) for point in of]) for head in ("capsules", "linear")},
        }
        for (distortion, amount, unit), of in same.items()
    ]


_PER_ITERATION = (
    ("Entropy of the couplings", "entropy", "coupling_entropy", False),
    ("Agreement with the true class", "cosine or dot product", "agreement_true", False),
    ("Agreement with the other classes", "cosine or dot product", "agreement_other", False),
)


def _routing(
    results: Results, analyses: Mapping[_Configuration, Sequence[Mapping[str, Any]]]
) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    levels = _Levels([row.pruned for row in results.rows])
    by_group = grouped(analyses.items(), lambda item: item[0][:3])
    for (data, backbone, trunk), items in by_group.items():
        panels = []
        for title, up, value, _ in _PER_ITERATION:
            traces = []
            for (_, _, _, pruned), summaries in items:
                runs = [one[value] for one in summaries if one.get(value)]
                if not runs:
                    continue
                key = levels.key(pruned)
                keys[key.label] = key
                means = [_mean(values) or 0 for values in zip(*runs, strict=False)]
                tooltips = [
                    tooltip(
                        f"{pruned} % pruned",
                        f"Iteration: {number}",
                        f"{title}: {mean:.4g}",
                        f"Mean of {len(runs)} seeds" if len(runs) > 1 else None,
                    )
                    for number, mean in enumerate(means, 1)
                ]
                traces.append(line(key, range(1, len(means) + 1), means, tooltips))
            if traces:
                layout = {"xaxis": axis("routing iteration", dtick=1), "yaxis": axis("")}
                panels.append(Panel(title, up, traces, layout))
        if panels:
            groups[f"{backbone}, {trunk}, {data}"] = panels
    if not groups:
        return None
    return Figure(
        "routing",
        "What the routing does",
        "Means over test images and seeds, for each iteration of the routing.",
        groups,
        list(keys.values()),
        choice="Network",
        panel_width=18,
    )


def _bottleneck(
    results: Results, analyses: Mapping[_Configuration, Sequence[Mapping[str, Any]]]
) -> Figure | None:
    keys: dict[str, Key] = {}
    groups: dict[str, list[Panel]] = {}
    rows = {
        (row.data, row.backbone, row.trunk, row.pruned): row
        for row in results.rows
        if row.head == "capsules"
    }
    for data, items in grouped(analyses.items(), lambda item: item[0][0]).items():
        panels = []
        for title, up, value, scale, unit in (
            ("Entropy at the bottleneck", "entropy", "bottleneck_entropy", 1, ""),
            ("Bottleneck channels that are active", "share", "active_share", 100, " %"),
            ("Primary capsules that are never active", "share", "never_active_share", 100, " %"),
        ):
            traces = []
            for series in grouped(items, lambda item: item[0][1:3]).values():
                points = [
                    (configuration, mean)
                    for configuration, summaries in series
                    if (mean := _mean([one.get(value) for one in summaries])) is not None
                ]
                if not points:
                    continue
                key = _network_key(rows[points[0][0]])
                keys[key.label] = key
                tooltips = [
                    tooltip(
                        f"{backbone}, {pruned} % pruned, {trunk}",
                        f"{title}: {scale * mean:.4g}{unit}",
                    )
                    for (_, backbone, trunk, pruned), mean in points
                ]
                xs = [configuration[3] for configuration, _ in points]
                traces.append(line(key, xs, [scale * mean for _, mean in points], tooltips))
            if traces:
                layout = {
                    "xaxis": axis("FLOPs removed from the backbone (%)", dtick=25),
                    "yaxis": axis("", ticksuffix=unit),
                }
                panels.append(Panel(title, up, traces, layout))
        if panels:
            groups[data] = panels
    if not groups:
        return None
    return Figure(
        "bottleneck",
        "What pruning does to the bottleneck",
        "Means over test images and seeds.",
        groups,
        list(keys.values()),
        choice="Data set",
        panel_width=18,
    )
