"""The report's figures: the records that each draws, and by what these are told apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from capsprune.report import charts, slim_figures
from capsprune.report.charts import DASHED, DOTTED, SOLID, Figure, Panel, Record
from capsprune.report.columns import FURTHER, PAPER, written
from capsprune.report.results import TRUNKS, Latency, Results, Row, Search, Spread, grouped

#: Of a network, in its tooltip.
_TOLD = {"accuracy", "training_flops", "forward_macs", "parameters", "bottleneck", "capsules",
         "epoch", "memory", "energy", "seeds"}  # fmt: skip
_COLUMNS = [column for column in (*PAPER, *FURTHER) if column.key in _TOLD]
_TRUNK_DASHES = {"finetuned": SOLID, "frozen": DASHED}
_HEAD_DASHES = {"capsules": SOLID, "linear": DOTTED}
#: Key of an epoch, what it is multiplied by, and what goes upwards.
_METRICS = (
    ("validation_accuracy", 100, "validation accuracy (%)"),
    ("validation_loss", 1, "validation loss"),
)
#: Key of an analysis, what it is multiplied by, what it is, and what goes upwards: by iteration of
#: the routing, and by pruned level.
_BY_ITERATION = (
    ("coupling_entropy", 1, "entropy of the couplings", "1 is uniform"),
    ("agreement_true", 1, "agreement with the true class", "dot product"),
    ("agreement_other", 1, "agreement with the other classes", "dot product"),
    ("accuracy_by_iteration", 100, "accuracy with so many iterations", "images that are right (%)"),
)
_BY_LEVEL = (
    ("bottleneck_entropy", 1, "entropy of the bottleneck", "bits a unit"),
    ("active_share", 100, "units that are on", "share (%)"),
    ("never_active_share", 100, "dead primary capsules", "share (%)"),
)
#: The amount of a distortion at which an image stays as it is, where that is not 0.
_UNDISTORTED = {"scale": 1.0}
#: No tick between two whole numbers.
_WHOLE = alt.Axis(format="d", tickMinStep=1, tickCount=5)
_APART = alt.Scale(zero=False, nice=False, padding=12)


def make_figures(results: Results) -> list[Figure]:
    """Return the figures that there are results for, in the order of the report."""
    made = (make(results) for make in FIGURES)
    return [figure for figure in made if figure.panels]


def accuracy_against_flops(results: Results) -> Figure:
    """Figure 3 of the paper: accuracy against the FLOPs of training, on a logarithmic axis."""
    rows = results.rows_of("capsules", "linear")
    rows = [row for row in rows if row.spread("training_flops") and row.spread("accuracy")]
    labels = list(dict.fromkeys(_series(results, row) for row in sorted(rows, key=_order)))
    levels = [_level(pruned) for pruned in sorted({row.pruned for row in rows})]
    # Areas, of which the eye takes in the width.
    sizes = [round(240 * (1 - place / len(levels)) ** 1.6) + 15 for place in range(len(levels))]
    size = alt.Size(
        "pruned:O",
        scale=alt.Scale(domain=levels, range=sizes),
        legend=alt.Legend(title="FLOPs pruned", symbolType="circle"),
    )
    x = alt.X(
        "x:Q",
        title="total training FLOPs for one image (B)",
        scale=alt.Scale(type="log", padding=14, nice=False),
        axis=alt.Axis(format="~g", tickCount=6),
    )
    backbones = {row.backbone: _backbone_dash(row.backbone) for row in rows}
    encodings = charts.looks("series", "Head and trunk", labels, paired=True)
    encodings["strokeDash"] = charts.dashes("backbone", "Backbone", backbones)
    panels = []
    for where, group in grouped(rows, lambda row: row.data).items():
        # The linear ones first, so that what the figure is about lies above them.
        group.sort(key=lambda row: (row.head != "linear", row.pruned))
        records = [record for row in group for record in _configuration(results, row)]
        heading = charts.title(where, "test accuracy (%)")
        panels.append(charts.curves(records, x, heading, encodings, size=size, height=280))
    return Figure(
        "figure3",
        "Accuracy against training FLOPs (Figure 3 of the paper)",
        "Each marker is a configuration: mean over its seeds, with the standard deviation as bars; "
        "the larger, the more of the backbone is left. Lines join the pruned levels of one "
        "backbone. Hollow markers are linear heads on the same pruned backbones.",
        panels,
        [*labels, *backbones],
        columns=2,
        width=420,
    )


def _configuration(results: Results, row: Row) -> list[Record]:
    flops, accuracy = row.spread("training_flops"), row.spread("accuracy")
    if flops is None or accuracy is None:
        return []
    series, source = _series(results, row), results.source_of(row)
    return [
        charts.point(f"{series}, {row.backbone}", series, flops.mean / 1e9, accuracy.times(100))
        | {"backbone": row.backbone, "pruned": _level(row.pruned), "order": row.pruned}
        | {"hollow": row.head == "linear", "title": f"{row.backbone}, {row.pruned} % pruned"}
        | {"Network": f"{row.trunk}, {row.head}", **({"Source": source} if source else {})}
        | {
            column.title: f"{column.text(row)} {column.unit}".rstrip()
            for column in _COLUMNS
            if column.number(row) is not None
        }
    ]


def search_scatter(results: Results) -> Figure:
    """The candidates of each search: how many FLOPs they keep, and how they score."""
    searches = [search for search in results.searches if search.scored]
    searches.sort(key=lambda s: (s.data, s.backbone, s.source, s.pruned, s.slim, s.seed))
    seeds = [f"seed {seed}" for seed in sorted({search.seed for search in searches})]
    panels = [
        charts.points(
            [record for search in group for record in _candidates(search)],
            charts.title(f"{where}, {pruned} % pruned{', slim' * slim}", "score (%)"),
            "FLOPs that remain (%)",
            charts.looks("series", "Search", seeds),
        )
        for (where, pruned, slim), group in grouped(
            searches, lambda search: (results.where(search), search.pruned, bool(search.slim))
        ).items()
    ]
    return Figure(
        "search",
        "What the searches tried",
        "Each point is a candidate strategy: the part of the FLOPs that it leaves, and the "
        "accuracy on held-out training images with recomputed batch norm statistics, before any "
        "fine-tuning. Large ones with an edge were chosen.",
        panels,
        seeds,
    )


def _candidates(search: Search) -> list[Record]:
    return [
        {
            "x": 100 * candidate["flops_ratio"],
            "y": 100 * candidate["score"],
            "series": f"seed {search.seed}",
            "chosen": candidate["index"] == search.best,
            "title": f"{'chosen' if candidate['index'] == search.best else 'candidate'} "
            f"{candidate['index']}, seed {search.seed}",
            "Score": f"{100 * candidate['score']:.2f} %",
            "FLOPs left": f"{100 * candidate['flops_ratio']:.2f} %",
            "Run": search.run,
        }
        | {
            key.capitalize(): f"{candidate[key]:.4g}"
            for key in ("loss", "rung")
            if candidate.get(key) is not None
        }
        for candidate in search.scored
    ]


def training_curves(results: Results) -> Figure:
    """Validation accuracy and loss by epoch, of heads and of the backbones that they are on."""
    trainings = [
        (results.where(row), row.pruned, f"{row.head}, {row.trunk}", cell.epochs)
        for row in sorted(results.rows_of("capsules", "linear"), key=_order)
        for cell in row.cells
    ] + [
        (results.where(one), one.pruned, f"backbone, {one.stage}", one.epochs)
        for one in results.backbones
    ]
    trainings = [training for training in trainings if training[-1]]
    labels = list(dict.fromkeys(label for _, _, label, _ in trainings))
    looking = charts.looks("series", "Network", labels, markers=False, lines=True)
    x = alt.X("x:Q", title="epoch", axis=_WHOLE, scale=alt.Scale(nice=False))
    panels = []
    for (where, pruned), group in sorted(grouped(trainings, lambda t: t[:2]).items()):
        by_label = grouped(group, lambda t: t[2])
        for metric in _METRICS:
            heading = charts.title(f"{where}, {pruned} % pruned", metric[-1])
            records = [
                record
                for label, of_label in by_label.items()
                for record in _epochs(label, [training[-1] for training in of_label], *metric)
            ]
            if records:
                panels.append(charts.curves(records, x, heading, looking, size=14, band=True))
    return Figure(
        "training",
        "Training curves",
        "Means over the seeds, with a band from the lowest to the highest. The losses of the heads "
        "are not the same function: capsules have the margin loss, linear ones cross entropy, so "
        "compare their accuracies alone.",
        panels,
        labels,
        columns=4,
        width=220,
    )


def _epochs(
    label: str, trainings: Iterable[Sequence[Mapping[str, float]]], key: str, factor: float, up: str
) -> list[Record]:
    """Return mean, lowest and highest of each epoch; trainings that ended earlier are left out."""
    records = []
    for number, rows in enumerate(itertools.zip_longest(*trainings), 1):
        values = [factor * row[key] for row in rows if row and row.get(key) is not None]
        if values:
            record = charts.point(label, label, number, Spread.of(values))
            between = ""
            if len(values) > 1:
                record |= {"low": min(values), "high": max(values)}
                between = f" ({min(values):.4g} to {max(values):.4g}, {len(values)} seeds)"
            record["title"] = f"{label}, epoch {number}"
            record[up.removesuffix(" (%)").capitalize()] = f"{record['y']:.4g}{between}"
            records.append(record)
    return records


def latency_bars(results: Results) -> Figure:
    """Latency in ONNX Runtime by network, at each batch size, with the routing's part."""
    rows = sorted(
        results.latencies,
        key=lambda r: (r.data, r.backbone, r.source, r.head == "linear", r.pruned, r.slim, r.batch),
    )
    parts = list(dict.fromkeys(record["series"] for row in rows for record in _bar(row, 0, "")))
    panels = []
    for (provider, data, batch), group in grouped(
        rows, lambda row: (row.provider.upper(), row.data, row.batch)
    ).items():
        records = [
            record
            for place, row in enumerate(group)
            for record in _bar(row, place, _after(results.source_of(row)))
        ]
        heading = charts.title(", ".join(filter(None, (provider, data, f"batch {batch}"))), "")
        looking = charts.looks("series", "Part of a bar", parts, markers=False)
        panels.append(charts.bars(records, len(group), heading, "latency (ms)", looking))
    providers = " and ".join(sorted({row.provider.upper() for row in rows}))
    return Figure(
        "latency",
        "Latency in ONNX Runtime",
        f"Medians on {providers}; whiskers are the quartiles of the repeats. The end of a bar is "
        "the time that the routing takes, where it can be told.",
        panels,
        parts,
        columns=2,
        width=360,
    )


def _bar(row: Latency, place: int, source: str) -> list[Record]:
    """Return the parts of a bar: everything else, and the routing if there is any."""
    routing = row.latency_ms * (row.routing_share or 0)
    rest = row.latency_ms - routing
    told = "not told apart" if row.routing_share is None else f"{100 * row.routing_share:.1f} %"
    quartiles = f"{row.latency_ms_p25:.2f} to {row.latency_ms_p75:.2f}"
    shared: Record = {
        "place": place,
        "label": source + row.label,
        "value": written(Spread(row.latency_ms, None, 1)),
        "end": max(row.latency_ms, row.latency_ms_p75),
        "low": min(row.latency_ms_p25, row.latency_ms),
        "high": max(row.latency_ms_p75, row.latency_ms),
        "title": source + row.label,
        "Latency": f"{row.latency_ms:.2f} ms ({quartiles} ms)",
        "Batch": f"{row.batch}, on {row.provider.upper()}",
        "Routing": "none" if row.head == "linear" else told,
        "Kernel of the routing": row.routing_kernel or "none",
    }
    ends = [(row.head, 0.0, rest), *([("routing", rest, row.latency_ms)] if routing else [])]
    return [shared | {"series": series, "from": start, "to": end} for series, start, end in ends]


def robustness_curves(results: Results) -> Figure:
    """Accuracy under each distortion: capsules against the linear baseline."""
    levels = _levels(results)
    encodings = charts.looks("series", "FLOPs pruned", levels)
    encodings["strokeDash"] = charts.dashes("head", "Head", _HEAD_DASHES)
    panels = []
    for (where, trunk), rows in grouped(
        _analysed(results), lambda row: (results.where(row), row.trunk)
    ).items():
        found = [
            (row.pruned, point)
            for row in rows
            for summary in _summaries(row)
            for point in summary.get("robustness") or ()
        ]
        kinds = {p["distortion"]: p["unit"] for _, p in found if p["distortion"] != "none"}
        for distortion, unit in kinds.items():
            records = [
                record
                for pruned, group in grouped(found, lambda pair: pair[0]).items()
                for head in _HEAD_DASHES
                for record in _distorted(pruned, [p for _, p in group], distortion, unit, head)
            ]
            x = alt.X("x:Q", title=f"{distortion} ({unit})", scale=alt.Scale(zero=False))
            heading = charts.title(f"{where}, {trunk}", f"test accuracy (%), {distortion}")
            panels.append(charts.curves(records, x, heading, encodings, size=30))
    return Figure(
        "robustness",
        "Accuracy on distorted images",
        "Capsule heads (solid) and linear heads (dotted, hollow) on the same trunks see the same "
        "distorted test images; no training image was distorted so. At 0, or at a scale of 1, they "
        "are as they were. Means over the seeds.",
        panels,
        levels,
        columns=4,
        width=220,
    )


def _distorted(
    pruned: int, measured: Sequence[Mapping[str, Any]], distortion: str, unit: str, head: Any
) -> list[Record]:
    """Return the line of one head under one distortion; empty if it was not measured."""
    if all(p["distortion"] != distortion or p.get(head) is None for p in measured):
        return []
    records = []
    for amount, values in sorted(_by_amount(measured, distortion, head).items()):
        spread = Spread.of(values).times(100)
        records.append(
            {"key": f"{pruned} {head}", "series": _level(pruned), "x": amount, "order": amount}
            | {"y": spread.mean, "head": head, "hollow": head == "linear"}
            | {"title": f"{pruned} % pruned, {head}", "Accuracy": f"{written(spread, 2)} %"}
            | {distortion.capitalize(): f"{amount:g} {unit}".rstrip(), "Seeds": spread.count}
        )
    return records


def _by_amount(
    measured: Iterable[Mapping[str, Any]], distortion: str, head: str
) -> dict[float, list[float]]:
    """Gather a head's accuracies under one distortion, those on undistorted images among them."""
    found: dict[float, list[float]] = {}
    for point in measured:
        if point["distortion"] in (distortion, "none") and point.get(head) is not None:
            clean = point["distortion"] == "none"
            amount = _UNDISTORTED.get(distortion, 0.0) if clean else point["amount"]
            found.setdefault(amount, []).append(point[head])
    return found


def capsule_figures(results: Results) -> Figure:
    """What the routing does in each iteration, and what pruning does to the bottleneck."""
    levels, rows = _levels(results), _analysed(results)
    trunks = [trunk for trunk in TRUNKS if any(row.trunk == trunk for row in rows)]
    encodings = charts.looks("series", "FLOPs pruned", levels)
    encodings["strokeDash"] = charts.dashes("trunk", "Trunk", {t: _TRUNK_DASHES[t] for t in trunks})
    iterations = alt.X("x:Q", title="routing iteration", axis=_WHOLE, scale=_APART)
    panels: list[Panel] = []
    for where, group in grouped(rows, results.where).items():
        axis = alt.Axis(values=sorted({row.pruned for row in group}))
        pruned = alt.X("x:Q", title="pruned FLOPs (%)", scale=_APART, axis=axis)
        for quantity in (*_BY_ITERATION, *_BY_LEVEL):
            by_level = quantity in _BY_LEVEL
            records = [r for row in group for r in _measured(results, row, by_level, *quantity)]
            heading = charts.title(f"{where}: {quantity[2]}", quantity[3])
            x = pruned if by_level else iterations
            if records:
                panels.append(charts.curves(records, x, heading, encodings, joining=by_level))
    return Figure(
        "capsules",
        "What the capsules do",
        "By routing iteration: how evenly a primary capsule spreads itself over the output "
        "capsules, how well its votes agree with them (their dot product), and the accuracy if the "
        "routing ended there. By pruned level: "
        "entropy of a unit of the bottleneck over the images of one class, how many units are "
        "above zero, and how many primary capsules never are active. Means over the seeds, with "
        "the standard deviation as bars.",
        panels,
        [*levels, *trunks],
    )


def _measured(
    results: Results, row: Row, by_level: bool, key: str, factor: float, _: str, up: str
) -> list[Record]:
    """Return the points of a row: one of its level, or one an iteration."""
    found = [summary.get(key) for summary in _summaries(row)]
    seeds = [value for value in found if value is not None and value != []]
    series: Iterable[Any] = [seeds] if by_level and seeds else zip(*seeds, strict=False)
    name = f"{_after(results.source_of(row))}{row.backbone}, {row.pruned} % pruned, {row.trunk}"
    records = []
    for number, values in enumerate(series, 1):
        known = [value for value in values if value is not None]
        if not known:  # of no image, as a file may say
            continue
        spread = Spread.of(known).times(factor)
        line = row.trunk if by_level else f"{row.pruned} {row.trunk}"
        records.append(
            charts.point(line, _level(row.pruned), row.pruned if by_level else number, spread)
            | {"trunk": row.trunk, "Seeds": spread.count, up.capitalize(): written(spread)}
            | {"title": name if by_level else f"{name}, iteration {number}"}
        )
    return records


#: In the order of the report.
FIGURES: tuple[Callable[[Results], Figure], ...] = (
    accuracy_against_flops,
    *slim_figures.FIGURES,
    search_scatter,
    training_curves,
    latency_bars,
    robustness_curves,
    capsule_figures,
)


def _summaries(row: Row) -> list[Mapping[str, Any]]:
    return [cell.analysis for cell in row.cells if cell.analysis is not None]


def _analysed(results: Results) -> list[Row]:
    rows = [row for row in results.rows if row.head != "linear" and _summaries(row)]
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    trunk = TRUNKS.index(row.trunk)
    return (row.data, row.backbone, row.source, row.head == "linear", trunk, row.pruned)


def _series(results: Results, row: Row) -> str:
    return f"{_after(results.source_of(row))}{row.head}, {row.trunk}"


def _levels(results: Results) -> list[str]:
    return [_level(pruned) for pruned in sorted({row.pruned for row in results.rows})]


def _level(pruned: int) -> str:
    return f"{pruned} %"


def _after(source: str) -> str:
    """Return what stands before the name of something of a source."""
    return f"{source}: " if source else ""


def _backbone_dash(backbone: str) -> list[int]:
    """Return the paper's dashes: ResNets dashed, MobileNetV1 solid."""
    if backbone.startswith("resnet"):
        return DASHED
    return SOLID if backbone == "mobilenet_v1" else DOTTED
