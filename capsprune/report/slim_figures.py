"""The figures of slim networks: what is lost by pruning capsules, and what is saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from capsprune.report import charts
from capsprune.report.charts import DOTTED, SOLID, Figure, Panel, Record
from capsprune.report.columns import written
from capsprune.report.results import Kind, OfRun, Results, Row, grouped, spread_of

#: Key of an accuracy, and what it is of.
_SCORED = {"accuracy": "after fine-tuning", "accuracy_before_finetuning": "before it"}
_WHOLE = "whole network"
_TUNED = "whole network, fine-tuned alike"
#: Key of a size, what it is called, and the same size of the whole network, where it has it.
_SIZES = (
    ("primary_capsules", "primary capsules kept", "primary_capsules_whole"),
    ("primary_rank", "rank of PrimaryCaps", ""),
)
#: Key of a cost, what it is called, and what it is multiplied by.
_COSTS = (("parameters", "parameters (M)", 1e-6), ("file_bytes", "ONNX file (MB)", 1e-6))
#: What has weights, from the image to the classes.
_PARTS = {
    "trunk": "trunk",
    "primary_caps": "PrimaryCaps",
    "output_caps": "OutputCaps",
    "head": "head",
    "classifier": "classifier",
}
_KINDS: dict[Kind, str] = {
    "slim": "slim capsule network",
    "capsules": "capsule network",
    "linear": "linear baseline",
}


def accuracy_against_capsules(results: Results) -> Figure:
    """Accuracy against the capsules that are kept, or the rank, by criterion."""
    rows = [row for row in results.rows_of("slim") if row.spread("accuracy")]
    rows.sort(key=lambda row: row.asked != "capsules")
    labels = [*dict.fromkeys(map(_series, rows)), _WHOLE]
    encodings = charts.looks("series", "Capsules ranked by", labels)
    styles = dict(zip(_SCORED.values(), (SOLID, DOTTED), strict=True))
    encodings["strokeDash"] = charts.dashes("scored", "Accuracy", styles)
    panels: list[Panel] = []
    for heading, group in grouped(rows, lambda row: _made_from(results, row)).items():
        for key, name, whole in _SIZES:
            # Along one size, with the other as it was.
            chosen = [r for r in group if (r.spread("primary_rank") is None) == bool(whole)]
            records = [record for row in chosen for record in _scored(row, key)]
            records += [_whole(chosen, whole)] if records and whole else []
            x = _log_axis(name, format="d", tickCount=5)
            if records:
                title = charts.title(heading, "test accuracy (%)")
                panels.append(charts.curves(records, x, title, encodings, height=240))
    return Figure(
        "capsules-kept",
        "Accuracy against the capsules that are kept",
        "Solid: after fine-tuning. Dotted and hollow: before it, as the criterion left the "
        "network. Means over the seeds, with the standard deviation as bars. The whole network is "
        "the one that all of them were made from; fine-tuned alike, it shows what further epochs "
        "alone give.",
        panels,
        [*labels, *_SCORED.values()],
        columns=2,
        width=420,
    )


def _scored(row: Row, key: str) -> list[Record]:
    """Return a row's points: one of each accuracy that it has."""
    size, series = row.spread(key), _series(row)
    return [
        charts.point(f"{series} {scored}", series, size.mean, accuracy.times(100))
        | {"scored": scored, "hollow": value != "accuracy", "title": f"{row.slim}, {series}"}
        | {"Accuracy": f"{written(accuracy.times(100), 2)} % {scored}", "Kept": written(size)}
        for value, scored in _SCORED.items()
        if size is not None and (accuracy := row.spread(value)) is not None
    ]


def _whole(rows: Iterable[Row], key: str) -> Record:
    """Return the point of the network that rows were made from."""
    cells = {cell.seed: cell for row in rows for cell in row.cells}.values()
    size, accuracy = spread_of(cells, key), spread_of(cells, "accuracy_whole")
    assert size is not None and accuracy is not None
    return charts.point(_WHOLE, _WHOLE, size.mean, accuracy.times(100)) | {
        "scored": _SCORED["accuracy"],
        "hollow": False,
        "title": _WHOLE,
        "Accuracy": f"{written(accuracy.times(100), 2)} %",
        "Kept": written(size),
    }


def where_the_bytes_are(results: Results) -> Figure:
    """The bytes of trunk and layers of the head, from the baseline to the slim networks."""
    found: dict[str, tuple[int, list[Record]]] = {}
    for heading, slim in grouped(
        results.rows_of("slim"), lambda row: _made_from(results, row)
    ).items():
        networks = [*_before(results, slim[0]), *((row.slim, row.cells) for row in slim)]
        records = [
            record
            for place, (label, of_bar) in enumerate(networks)
            for record in _stacked(label, of_bar, place)
        ]
        if records:
            found[heading] = len(networks), records
    seen = {record["series"] for _, records in found.values() for record in records}
    parts = [part for part in _PARTS.values() if part in seen]
    looking = charts.looks("series", "Part", parts, markers=False)
    panels = [
        charts.bars(records, count, charts.title(name, ""), "weights (MB)", looking)
        for name, (count, records) in found.items()
    ]
    return Figure(
        "bytes",
        "Where the bytes are",
        "Weights and statistics as a checkpoint stores them, mean over the seeds: of the unpruned "
        "baseline, the pruned backbone, the capsule network on it, and the slim networks made from "
        "that.",
        panels,
        parts,
        columns=2,
        width=360,
    )


def _before(results: Results, row: Row) -> list[tuple[str, Sequence[OfRun]]]:
    """Return the networks from the baseline to the one that a slim one was made from."""
    about = (row.data, row.backbone, row.source)
    alike = [b for b in results.backbones if (b.data, b.backbone, b.source) == about]
    capsules = [
        cell
        for other in results.rows_of("capsules")
        if (other.data, other.backbone, other.source) == about
        and (other.pruned, other.trunk) == (row.pruned, row.trunk)
        for cell in other.cells
    ]
    found: list[tuple[str, Sequence[OfRun]]] = [
        ("baseline", [b for b in alike if b.stage == "baseline"]),
        ("pruned", [b for b in alike if b.stage == "pruned" and b.pruned == row.pruned]),
        ("capsules", capsules),
    ]
    return [(label, networks) for label, networks in found if networks]


def _stacked(label: str, networks: Sequence[OfRun], place: int) -> list[Record]:
    """Return the parts of a bar."""
    found = {
        name: spread.mean / 1e6
        for part, name in _PARTS.items()
        if (spread := spread_of(networks, f"{part}_bytes")) is not None
    }
    total = sum(found.values())
    records, start = [], 0.0
    for name, size in found.items():
        records.append(
            {"place": place, "label": label, "value": f"{total:.3g} MB", "end": total}
            | {"series": name, "from": start, "to": start + size, "title": label}
            | {"Part": f"{name}: {size:.3g} MB of {total:.3g} MB", "Share": f"{size / total:.1%}"}
        )
        start += size
    return records


def accuracy_against_size(results: Results) -> Figure:
    """Accuracy against parameters and the bytes of the file, of all kinds of networks."""
    slim = {(row.data, row.backbone, row.source) for row in results.rows_of("slim")}
    rows = [
        row
        for row in results.rows
        if (row.data, row.backbone, row.source) in slim and row.spread("accuracy")
    ]
    labels = list(
        dict.fromkeys(name for kind, name in _KINDS.items() for r in rows if r.kind == kind)
    )
    encodings = charts.looks("series", "Network", labels)
    panels = []
    for where, group in grouped(rows, results.where).items():
        for key, name, factor in _COSTS:
            records = [
                charts.point(str(place), _KINDS[row.kind], cost.mean * factor, accuracy.times(100))
                | {"hollow": row.kind == "linear", "title": f"{row.label}, {row.trunk}"}
                | {"Accuracy": f"{written(accuracy.times(100), 2)} %", "Seeds": accuracy.count}
                | {name: written(cost.times(factor))}
                for place, row in enumerate(group)
                if (cost := row.spread(key)) and (accuracy := row.spread("accuracy"))
            ]
            x = _log_axis(name, format="~g", tickCount=6)
            if records:
                heading = charts.title(where, "test accuracy (%)")
                panels.append(charts.curves(records, x, heading, encodings, height=240))
    return Figure(
        "size",
        "Accuracy against size",
        "Every network of these results: mean over its seeds, with the standard deviation as bars. "
        "Further up and further left is better.",
        panels,
        labels,
        columns=2,
        width=420,
    )


def _made_from(results: Results, row: Row) -> str:
    """Return the heading of all slim networks that were made from one network."""
    return f"{results.where(row)}, {row.pruned} % pruned, {row.trunk}"


def _log_axis(name: str, **ticks: Any) -> alt.X:
    return alt.X(
        "x:Q",
        title=name,
        scale=alt.Scale(type="log", padding=14, nice=False),
        axis=alt.Axis(**ticks),
    )


def _series(row: Row) -> str:
    """Return which line a row is on: its criterion, and what was asked for beside capsules."""
    if row.asked == "nothing":
        return _TUNED
    if row.asked == "primary_rank":
        return "rank, by energy"
    criterion = row.criterion or "not told"
    return criterion if row.asked in ("", "capsules") else f"{criterion} ({row.asked})"


#: In the order of the report.
FIGURES = (accuracy_against_capsules, accuracy_against_size, where_the_bytes_are)
