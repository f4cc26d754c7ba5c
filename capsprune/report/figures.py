"""The report's figures: the records that each draws, and by what these are told apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import altair as alt

from capsprune.report.charts import (
    DASHED,
    DOTTED,
    SOLID,
    Figure,
    Panel,
    Record,
    bars,
    curves,
    dashes,
    looks,
    points,
    title,
)
from capsprune.report.columns import FURTHER, PAPER, written
from capsprune.report.results import (
    COMPARED,
    TRUNKS,
    Head,
    Latency,
    Results,
    Row,
    Search,
    Spread,
    accuracies_by_amount,
)

Item = TypeVar("Item")

_COLUMNS = {column.key: column for column in (*PAPER, *FURTHER)}
#: Of a network, in its tooltip.
_TOLD = ("accuracy", "training_flops", "forward_macs", "parameters", "bottleneck", "capsules",
         "epoch", "memory", "energy", "seeds")  # fmt: skip
_TRUNK_DASHES = {"finetuned": SOLID, "frozen": DASHED}


def make_figures(results: Results) -> list[Figure]:
    """Return the figures that there are results for, in the order of the report."""
    return [figure for make in FIGURES if (figure := make(results)) is not None]


def accuracy_against_flops(results: Results) -> Figure | None:
    """Figure 3 of the paper: accuracy against the FLOPs of training, on a logarithmic axis."""
    rows = [row for row in results.rows if row.spread("training_flops") and row.spread("accuracy")]
    if not rows:
        return None
    # The linear ones first, so that what the figure is about lies above them.
    rows.sort(key=lambda row: (row.head != "linear", row.pruned))
    labels = _labels(_series(results, row) for row in sorted(rows, key=_order))
    levels = [_level(pruned) for pruned in sorted({row.pruned for row in rows})]
    # Areas, of which the eye takes in the width.
    sizes = [round(240 * (1 - place / len(levels)) ** 1.6) + 15 for place in range(len(levels))]
    size = alt.Size(
        "pruned:O",
        scale=alt.Scale(domain=levels, range=sizes),
        legend=alt.Legend(title="FLOPs pruned", symbolType="circle"),
    )
    backbones = {row.backbone: _backbone_dash(row.backbone) for row in rows}
    panels = []
    for where, of_data in grouped(rows, lambda row: row.data).items():
        records = [
            {
                "key": f"{_series(results, row)}, {row.backbone}",
                "x": _spread(row, "training_flops").mean / 1e9,
                **_percent(_spread(row, "accuracy")),
                "series": _series(results, row),
                "backbone": row.backbone,
                "pruned": _level(row.pruned),
                "order": row.pruned,
                "hollow": row.head == "linear",
                **_tip(results, row),
            }
            for row in of_data
        ]
        x = alt.X(
            "x:Q",
            title="total training FLOPs for one image (B)",
            scale=alt.Scale(type="log", padding=14, nice=False),
            axis=alt.Axis(format="~g", tickCount=6),
        )
        encodings = looks("series", "Head and trunk", labels, paired=True)
        encodings["strokeDash"] = dashes("backbone", "Backbone", backbones)
        heading = title(where, "test accuracy (%)")
        panels.append(
            curves(records, x, heading=heading, encodings=encodings, size=size, height=280)
        )
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


def search_scatter(results: Results) -> Figure | None:
    """The candidates of each search: how many FLOPs they keep, and how they score."""
    searches = [search for search in results.searches if search.scored]
    if not searches:
        return None
    searches.sort(key=lambda s: (s.data, s.backbone, s.source, s.pruned, s.seed))
    seeds = [f"seed {seed}" for seed in sorted({search.seed for search in searches})]
    panels = []
    for (where, pruned), group in grouped(
        searches, lambda search: (results.where(search), search.pruned)
    ).items():
        records = [record for search in group for record in _candidates(search)]
        panels.append(points(records, heading=title(f"{where}, {pruned} % pruned", "score (%)"),
                             x="FLOPs that remain (%)", encodings=looks("series", "Search", seeds))
        )  # fmt: skip
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
    """Return a search's points, the chosen one last: it lies above the others."""
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
            "Loss": _written(candidate.get("loss"), ".3f"),
            "Rung": _written(candidate.get("rung"), "d"),
            "Run": search.run,
        }
        for candidate in sorted(search.scored, key=lambda c: c["index"] == search.best)
    ]


def training_curves(results: Results) -> Figure | None:
    """Validation accuracy and loss by epoch, of heads and of the backbones that they are on."""
    trainings = [
        (results.where(row), row.pruned, f"{row.head}, {row.trunk}",
         [cell.epochs for cell in row.cells])
        for row in sorted(results.rows, key=_order)
    ] + [
        (results.where(group[0]), group[0].pruned, f"backbone, {stage}",
         [backbone.epochs for backbone in group])
        for (_, stage, _), group in grouped(
            sorted(results.backbones, key=lambda one: (one.data, one.backbone, one.pruned)),
            lambda one: (results.where(one), one.stage, one.pruned),
        ).items()
    ]  # fmt: skip
    trainings = [training for training in trainings if any(training[-1])]
    if not trainings:
        return None
    labels = _labels(label for _, _, label, _ in trainings)
    panels = []
    for (where, pruned), group in sorted(grouped(trainings, lambda t: t[:2]).items()):
        for key, factor, up in _METRICS:
            records = [
                record
                for _, _, label, epochs in group
                for record in _epochs(label, epochs, key, factor, up)
            ]
            if records:
                panels.append(
                    curves(
                        records,
                        alt.X("x:Q", title="epoch", axis=_WHOLE, scale=alt.Scale(nice=False)),
                        heading=title(f"{where}, {pruned} % pruned", up),
                        encodings=looks("series", "Network", labels, markers=False, lines=True),
                        size=14,
                        band=True,
                    )
                )
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


_METRICS = (
    ("validation_accuracy", 100.0, "validation accuracy (%)"),
    ("validation_loss", 1.0, "validation loss"),
)
#: No tick between two whole numbers.
_APART = alt.Scale(zero=False, nice=False, padding=12)
_WHOLE = alt.Axis(format="d", tickMinStep=1, tickCount=5)


def _epochs(
    label: str,
    trainings: Sequence[Sequence[Mapping[str, float]]],
    key: str,
    factor: float,
    up: str,
) -> list[Record]:
    """Return mean, lowest and highest of each epoch; those that ended earlier are left out."""
    records = []
    for number, rows in enumerate(itertools.zip_longest(*trainings), 1):
        values = [factor * row[key] for row in rows if row and row.get(key) is not None]
        if not values:
            continue
        mean = sum(values) / len(values)
        record: Record = {"key": label, "series": label, "x": number, "order": number, "y": mean}
        between = ""
        if len(values) > 1:
            record |= {"low": min(values), "high": max(values)}
            between = f" ({min(values):.4g} to {max(values):.4g}, {len(values)} seeds)"
        name = up.removesuffix(" (%)").capitalize()
        records.append(record | {"title": f"{label}, epoch {number}", name: f"{mean:.4g}{between}"})
    return records


def latency_bars(results: Results) -> Figure | None:
    """Latency in ONNX Runtime by network, at each batch size, with the routing's part."""
    if not results.latencies:
        return None
    rows = sorted(
        results.latencies,
        key=lambda r: (r.data, r.backbone, r.source, r.head == "linear", r.pruned, r.batch),
    )
    parts = _labels(record["series"] for row in rows for record in _bar(row, 0, ""))
    panels = []
    for (provider, data, batch), group in grouped(
        rows, lambda row: (row.provider, row.data, row.batch)
    ).items():
        records = [
            record
            for place, row in enumerate(group)
            for record in _bar(row, place, _after(results.source_of(row)))
        ]
        where = ", ".join(part for part in (provider.upper(), data, f"batch {batch}") if part)
        panels.append(bars(records, len(group), title(where, ""), "latency (ms)",
                           looks("series", "Head", parts, markers=False)))  # fmt: skip
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


def _routing(row: Latency) -> float:
    return row.latency_ms * (row.routing_share or 0)


def _bar(row: Latency, place: int, source: str) -> list[Record]:
    """Return the two parts of a bar: everything else, and the routing."""
    rest, routing = row.latency_ms - _routing(row), _routing(row)
    told = "not told apart" if row.routing_share is None else f"{100 * row.routing_share:.1f} %"
    shared: Record = {
        "place": place,
        "label": source + row.label,
        "value": written(Spread(row.latency_ms, None, 1)),
        "end": max(row.latency_ms, row.p75_ms),
        "low": min(row.p25_ms, row.latency_ms),
        "high": max(row.p75_ms, row.latency_ms),
        "title": source + row.label,
        "Latency": f"{row.latency_ms:.2f} ms ({row.p25_ms:.2f} to {row.p75_ms:.2f} ms)",
        "Batch": f"{row.batch}, on {row.provider.upper()}",
        "Routing": "none" if row.head == "linear" else told,
        "Kernel of the routing": row.routing_kernel or "none",
    }
    found = [shared | {"series": row.head, "from": 0, "to": rest}]
    return found + ([shared | {"series": "routing", "from": rest, "to": rest + routing}]
                    if routing else [])  # fmt: skip


def robustness_curves(results: Results) -> Figure | None:
    """Accuracy under each distortion: capsules against the linear baseline."""
    panels = []
    analysed = _analysed(results)
    levels = _levels(results)
    for (where, trunk), rows in grouped(
        analysed, lambda row: (results.where(row), row.trunk)
    ).items():
        found = [(row, _distorted(results, row)) for row in rows]
        kinds = {p["distortion"]: p["unit"] for _, points in found for p in points}
        for distortion, unit in kinds.items():
            if distortion == "none":
                continue
            records = [
                record
                for row, points in found
                for head in COMPARED
                for record in _under(row, points, distortion, unit, head)
            ]
            encodings = looks("series", "FLOPs pruned", levels)
            encodings["strokeDash"] = dashes("head", "Head", _HEAD_DASHES)
            x = alt.X("x:Q", title=f"{distortion} ({unit})", scale=alt.Scale(zero=False))
            heading = title(f"{where}, {trunk}", f"test accuracy (%), {distortion}")
            panels.append(curves(records, x, heading=heading, encodings=encodings, size=30))
    if not panels:
        return None
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


_HEAD_DASHES = {"capsules": SOLID, "linear": DOTTED}


def _distorted(results: Results, row: Row) -> list[Mapping[str, Any]]:
    return [
        point
        for cell in row.cells
        for point in results.analyses.get(cell.run, {}).get("robustness") or ()
    ]


def _under(
    row: Row, points: Iterable[Mapping[str, Any]], distortion: str, unit: str, head: Head
) -> list[Record]:
    """Return the line of one head under one distortion; empty if it was not measured."""
    points = list(points)
    if all(p["distortion"] != distortion or p.get(head) is None for p in points):
        return []
    by_amount = accuracies_by_amount(points, distortion, head)
    records = []
    for amount, accuracies in sorted(by_amount.items()):
        spread = Spread.of([100 * accuracy for accuracy in accuracies])
        records.append(
            {
                "key": f"{row.pruned} {head}",
                "series": _level(row.pruned),
                "head": head,
                "hollow": head == "linear",
                "x": amount,
                "order": amount,
                "y": spread.mean,
                "title": f"{row.pruned} % pruned, {head}",
                distortion.capitalize(): f"{amount:g} {unit}".rstrip(),
                "Accuracy": f"{written(spread, 2)} %",
                "Seeds": len(accuracies),
            }
        )
    return records


def capsule_figures(results: Results) -> Figure | None:
    """What the routing does in each iteration, and what pruning does to the bottleneck."""
    levels = _levels(results)
    panels: list[Panel] = []
    rows = _analysed(results)
    trunks: dict[str, Sequence[int]] = {
        trunk: _TRUNK_DASHES[trunk] for trunk in TRUNKS if trunk in {r.trunk for r in rows}
    }
    for where, group in grouped(rows, results.where).items():
        for key, text, up in _BY_ITERATION:
            _add(panels, [r for row in group for r in _iterations(results, row, key, up)],
                 alt.X("x:Q", title="routing iteration", axis=_WHOLE, scale=_APART),
                 f"{where}: {text}", up, levels, trunks)  # fmt: skip
        for key, factor, text, up in _BY_LEVEL:
            _add(panels, [r for row in group for r in _by_level(results, row, key, factor, up)],
                 alt.X("x:Q", title="pruned FLOPs (%)", scale=_APART,
                       axis=alt.Axis(values=sorted({row.pruned for row in group}))),
                 f"{where}: {text}", up, levels, trunks, joining=True)  # fmt: skip
    if not panels:
        return None
    return Figure(
        "capsules",
        "What the capsules do",
        "By routing iteration: how evenly a primary capsule spreads itself over the output "
        "capsules, and how well its votes agree with them (their dot product). By pruned level: "
        "entropy of a unit of the bottleneck over the images of one class, how many units are "
        "above zero, and how many primary capsules never are active. Means over the seeds, with "
        "the standard deviation as bars.",
        panels,
        levels,
        columns=3,
    )


#: Key of an analysis, what it is, and what goes upwards.
_BY_ITERATION = (
    ("coupling_entropy", "entropy of the couplings", "1 is uniform"),
    ("agreement_true", "agreement with the true class", "dot product"),
    ("agreement_other", "agreement with the other classes", "dot product"),
)
_BY_LEVEL = (
    ("bottleneck_entropy", 1.0, "entropy of the bottleneck", "bits a unit"),
    ("active_share", 100.0, "units that are on", "share (%)"),
    ("never_active_share", 100.0, "dead primary capsules", "share (%)"),
)


def _add(
    panels: list[Panel],
    records: list[Record],
    x: alt.X,
    text: str,
    up: str,
    levels: Sequence[str],
    trunks: Mapping[str, Sequence[int]],
    joining: bool = False,
) -> None:
    if records:
        encodings = looks("series", "FLOPs pruned", levels)
        encodings["strokeDash"] = dashes("trunk", "Trunk", trunks)
        heading = title(text, up)
        panels.append(curves(records, x, heading=heading, encodings=encodings, joining=joining))


def _summaries(results: Results, row: Row) -> list[Mapping[str, Any]]:
    return [results.analyses[cell.run] for cell in row.cells if cell.run in results.analyses]


def _iterations(results: Results, row: Row, key: str, up: str) -> list[Record]:
    seeds = [summary[key] for summary in _summaries(results, row) if summary.get(key)]
    return [
        _measured(results, row, f"iteration {number}", number, values, up)
        | {"key": f"{row.pruned} {row.trunk}", "series": _level(row.pruned)}
        for number, values in enumerate(zip(*seeds, strict=False), 1)
    ]


def _by_level(results: Results, row: Row, key: str, factor: float, up: str) -> list[Record]:
    found = [summary.get(key) for summary in _summaries(results, row)]
    values = [factor * value for value in found if value is not None]
    if not values:
        return []
    record = _measured(results, row, "", row.pruned, values, up)
    return [record | {"key": row.trunk, "series": _level(row.pruned)}]


def _measured(
    results: Results, row: Row, what: str, x: float, values: Sequence[float], up: str
) -> Record:
    spread = Spread.of(values)
    named = f"{_after(results.source_of(row))}{row.backbone}, {row.pruned} % pruned, {row.trunk}"
    return {
        "x": x,
        "order": x,
        **_extent(spread),
        "trunk": row.trunk,
        "title": f"{named}, {what}".removesuffix(", "),
        up.capitalize(): written(spread),
        "Seeds": spread.count,
    }


#: In the order of the report.
FIGURES: tuple[Callable[[Results], Figure | None], ...] = (
    accuracy_against_flops,
    search_scatter,
    training_curves,
    latency_bars,
    robustness_curves,
    capsule_figures,
)


def grouped(items: Iterable[Item], by: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Sort items into lists by what `by` gives, in the order in which they first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups


def _analysed(results: Results) -> list[Row]:
    rows = [row for row in results.rows if row.head != "linear" and _summaries(results, row)]
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    return (row.data, row.backbone, row.source, row.head == "linear",
            TRUNKS.index(row.trunk), row.pruned)  # fmt: skip


def _series(results: Results, row: Row) -> str:
    return f"{_after(results.source_of(row))}{row.head}, {row.trunk}"


def _labels(labels: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(labels))


def _levels(results: Results) -> list[str]:
    return [_level(pruned) for pruned in sorted({row.pruned for row in results.rows})]


def _level(pruned: int) -> str:
    return f"{pruned} %"


def _after(source: str) -> str:
    """Return what stands before the name of something of a source."""
    return f"{source}: " if source else ""


def _backbone_dash(backbone: str) -> list[int]:
    """The paper's: ResNets dashed, MobileNetV1 solid."""
    if backbone.startswith("resnet"):
        return DASHED
    return SOLID if backbone == "mobilenet_v1" else DOTTED


def _spread(row: Row, value: str) -> Spread:
    found = row.spread(value)
    assert found is not None
    return found


def _extent(spread: Spread) -> Record:
    """Return a mean and, where there are several seeds, the ends of its error bar."""
    if not spread.deviation:
        return {"y": spread.mean}
    return {
        "y": spread.mean,
        "low": spread.mean - spread.deviation,
        "high": spread.mean + spread.deviation,
    }


def _percent(spread: Spread) -> Record:
    return {name: 100 * value for name, value in _extent(spread).items()}


def _tip(results: Results, row: Row) -> Record:
    """Return what a network's tooltip says."""
    tip = {"title": f"{row.backbone}, {row.pruned} % pruned", "Network": f"{row.trunk}, {row.head}"}
    if source := results.source_of(row):
        tip["Source"] = source
    columns = [_COLUMNS[key] for key in _TOLD]
    return tip | {
        column.title: f"{column.text(row)} {column.unit}".rstrip()
        for column in columns
        if column.number(row) is not None
    }


def _written(value: float | None, form: str) -> str:
    return "not told" if value is None else f"{value:{form}}"
