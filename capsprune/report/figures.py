"""The report's figures, as PNG and SVG. Nothing here touches what other users of matplotlib set.

Colours are those of Okabe and Ito, which people who see colours differently can tell apart; what a
colour says, a line style or a marker says too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from capsprune.files import make_folder, replacing
from capsprune.report.columns import written
from capsprune.report.results import (
    Head,
    Latency,
    Results,
    Row,
    Search,
    Spread,
    Trunk,
    accuracies_by_amount,
)

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
#: The paper has finetuned in blue and frozen in red.
TRUNK_COLOURS: dict[Trunk, str] = {"finetuned": BLUE, "frozen": VERMILLION}
HEAD_COLOURS: dict[Head, str] = {"capsules": BLUE, "linear": GREY}
#: By pruned level, in order; a level's colour hangs on its place among those of the figure.
LEVEL_COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
PNG_DPI = 150

_STYLE: Any = {
    "text.parse_math": False,  # names may hold dollars
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    # Words stay words in the SVG: to be searched, and read aloud.
    "svg.fonttype": "none",
    "svg.hashsalt": "capsprune",
}
#: Width and height of one panel, in inches.
_PANEL = (4.0, 3.1)


@dataclass(frozen=True)
class Drawn:
    """A figure that was written."""

    #: Name of its files, without their endings.
    name: str
    title: str
    #: What it shows and how it is to be read.
    caption: str
    png: Path
    svg: Path


@dataclass(frozen=True)
class _Drawing:
    name: str
    title: str
    caption: str
    figure: Figure


def draw_figures(results: Results, directory: Path) -> list[Drawn]:
    """Draw each figure that there are data for.

    Args:
        results: what to show.
        directory: where the files go; made if it is not there.

    Returns:
        Those drawn, in the order of the report.
    """
    drawn = []
    for draw in FIGURES:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            drawing = draw(results)
            if drawing is None:
                continue
            make_folder(directory)
            png, svg = (directory / f"{drawing.name}.{kind}" for kind in ("png", "svg"))
            FigureCanvasAgg(drawing.figure)
            # Without its date, the same results give the same file.
            for path, metadata in ((png, None), (svg, {"Date": None})):
                with replacing(path) as partial:
                    drawing.figure.savefig(
                        partial,
                        format=path.suffix[1:],
                        dpi=PNG_DPI,
                        metadata=metadata,
                        bbox_inches="tight",
                    )
            drawn.append(Drawn(drawing.name, drawing.title, drawing.caption, png, svg))
    return drawn


def accuracy_against_flops(results: Results) -> _Drawing | None:
    """Figure 3 of the paper: accuracy against the FLOPs of training, on a logarithmic axis."""
    rows = [row for row in results.rows if row.spread("training_flops") and row.spread("accuracy")]
    if not rows:
        return None
    data_sets = list(dict.fromkeys(row.data for row in rows))
    figure, axes = _panels(len(data_sets), size=(4.6, 3.9))
    sizes = _marker_sizes(rows)
    shapes = _shapes(results, rows)
    for axis, data in zip(axes, data_sets, strict=True):
        of_data = [row for row in rows if row.data == data]
        # The controls first, so that what the figure is about lies above them.
        for head in ("linear", "capsules"):
            groups: dict[tuple[str, Trunk, str], list[Row]] = {}
            for row in of_data:
                if row.head == head:
                    source = results.source_of(row)
                    groups.setdefault((row.backbone, row.trunk, source), []).append(row)
            for (backbone, trunk, source), line in groups.items():
                hollow = head == "linear"
                _draw_line(axis, line, backbone, trunk, sizes, shapes[source], hollow)
        axis.set_xscale("log")
        axis.set_title(data, loc="left")
        axis.set_xlabel("total training FLOPs for one image (B)")
        axis.set_ylabel("test accuracy (%)")
        axis.margins(0.08)
        _log_ticks(axis)
    _legend_below(figure, _figure_3_legend(rows, sizes, shapes))
    return _Drawing(
        "figure3",
        "Accuracy against training FLOPs (Figure 3 of the paper)",
        "Each marker is a configuration: mean over its seeds, with the standard deviation as bars. "
        "Lines join the pruned levels of one backbone. Hollow markers are the linear controls.",
        figure,
    )


def _draw_line(
    axis: Axes,
    rows: Sequence[Row],
    backbone: str,
    trunk: Trunk,
    sizes: Mapping[int, float],
    shape: str,
    hollow: bool,
) -> None:
    rows = sorted(rows, key=lambda row: row.pruned)
    points = [(_known(row, "training_flops"), _known(row, "accuracy")) for row in rows]
    x = [flops.mean / 1e9 for flops, _ in points]
    y = [100 * accuracy.mean for _, accuracy in points]
    colour = _lighter(TRUNK_COLOURS[trunk]) if hollow else TRUNK_COLOURS[trunk]
    axis.plot(
        x, y, color=colour, linestyle=_line_style(backbone), linewidth=0.9 if hollow else 1.5,
        zorder=1 if hollow else 3,
    )  # fmt: skip
    for left, up, row, (_, accuracy) in zip(x, y, rows, points, strict=True):
        axis.errorbar(
            left, up, yerr=100 * (accuracy.deviation or 0) or None, color=colour,
            marker=shape, markersize=sizes[row.pruned],
            markerfacecolor="white" if hollow else colour,
            markeredgecolor=colour if hollow else "white", markeredgewidth=1.1 if hollow else 0.7,
            elinewidth=1, capsize=2, zorder=2 if hollow else 4,
        )  # fmt: skip


def _shapes(results: Results, rows: Iterable[Row]) -> dict[str, str]:
    """Give each source that is told apart a marker; the empty one has the circle."""
    sources = dict.fromkeys(results.source_of(row) for row in rows)
    named = zip((source for source in sources if source), itertools.cycle("Dsv^P"), strict=False)
    return {"": "o", **dict(named)}


def _figure_3_legend(
    rows: Sequence[Row], sizes: Mapping[int, float], shapes: Mapping[str, str]
) -> list[Line2D]:
    handles = []
    for trunk, colour in TRUNK_COLOURS.items():
        if any(row.trunk == trunk for row in rows):
            handles.append(Line2D([], [], color=colour, marker="o", linestyle="", label=trunk))
    for backbone in dict.fromkeys(row.backbone for row in rows):
        style = _line_style(backbone)
        handles.append(Line2D([], [], color="black", linestyle=style, label=backbone))
    if any(row.head == "linear" for row in rows):
        handles.append(
            Line2D(
                [], [], color=GREY, marker="o", markerfacecolor="white", linestyle="",
                label="linear control",
            )
        )  # fmt: skip
    for source, shape in shapes.items():
        if source:
            handles.append(Line2D([], [], color=GREY, marker=shape, linestyle="", label=source))
    for pruned, size in sizes.items():
        handles.append(
            Line2D(
                [], [], color=GREY, marker="o", markersize=size, linestyle="",
                markeredgecolor="white", label=f"{pruned} % pruned",
            )
        )  # fmt: skip
    return handles


def search_scatter(results: Results) -> _Drawing | None:
    """The candidates of each search: how many FLOPs they keep, and how they score."""
    searches = [s for s in results.searches if any("score" in c for c in s.candidates)]
    if not searches:
        return None
    panels: dict[tuple[str, int], list[Search]] = {}
    for one in sorted(searches, key=lambda s: (s.data, s.backbone, s.source, s.pruned, s.seed)):
        panels.setdefault((results.where(one), one.pruned), []).append(one)
    figure, axes = _panels(len(panels))
    for axis, ((where, pruned), of_panel) in zip(axes, panels.items(), strict=True):
        for one in of_panel:
            _draw_search(axis, one)
        axis.set_title(f"{_wrapped(where)}, {pruned} % pruned", loc="left")
        axis.set_xlabel("FLOPs that remain (%)")
        axis.set_ylabel("score: accuracy (%)")
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.margins(0.1)
    handles = [
        Line2D([], [], color=BLUE, marker="o", alpha=0.55, linestyle="", label="candidate"),
        Line2D(
            [], [], color=VERMILLION, marker="D", markersize=8, markeredgecolor="black",
            linestyle="", label="chosen",
        ),
    ]  # fmt: skip
    seeds = {one.seed for one in searches}
    several = f" The searches of {len(seeds)} seeds lie together." if len(seeds) > 1 else ""
    _legend_below(figure, handles)
    return _Drawing(
        "search",
        "What the searches tried",
        "Each point is a candidate strategy: the part of the FLOPs that it leaves, and the "
        "accuracy on held-out training images with recomputed batch norm statistics, before any "
        f"fine-tuning.{several}",
        figure,
    )


def _draw_search(axis: Axes, search: Search) -> None:
    scored = search.scored
    others = [c for c in scored if c["index"] != search.best]
    axis.plot(
        [100 * c["flops_ratio"] for c in others], [100 * c["score"] for c in others],
        marker="o", markersize=5, color=BLUE, alpha=0.55, linestyle="", markeredgewidth=0,
    )  # fmt: skip
    for best in (c for c in scored if c["index"] == search.best):
        axis.plot(
            100 * best["flops_ratio"], 100 * best["score"], marker="D", markersize=8,
            color=VERMILLION, markeredgecolor="black", markeredgewidth=0.8, linestyle="", zorder=5,
        )  # fmt: skip


def training_curves(results: Results) -> _Drawing | None:
    """Loss and validation accuracy by epoch: one column of panels for each pruned level."""
    rows = [row for row in results.rows if any(cell.epochs for cell in row.cells)]
    if not rows:
        return _backbone_curves(results)
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r.data, r.backbone, r.source, r.pruned)):
        groups.setdefault((results.where(row), row.pruned), []).append(row)
    columns = min(len(groups), 4)
    blocks = -(-len(groups) // columns)
    figure, grid = _grid(2 * blocks, columns)
    for axis in itertools.chain.from_iterable(grid):
        axis.set_visible(False)
    for position, ((where, pruned), of_panel) in enumerate(groups.items()):
        block, column = divmod(position, columns)
        pair = (grid[2 * block][column], grid[2 * block + 1][column])
        for axis, (key, scale, label) in zip(pair, _CURVES, strict=True):
            axis.set_visible(True)
            for row in of_panel:
                colour = TRUNK_COLOURS[row.trunk]
                linear = row.head == "linear"
                _band(
                    axis, [cell.epochs for cell in row.cells], key, scale,
                    _lighter(colour) if linear else colour, "--" if linear else "-",
                )  # fmt: skip
            axis.set_ylabel(label)
            _epoch_axis(axis)
        pair[0].set_title(f"{_wrapped(where)}\n{pruned} % pruned", loc="left")
        pair[1].set_xlabel("epoch")
    handles = [
        Line2D(
            [], [], color=_lighter(TRUNK_COLOURS[trunk]) if head == "linear" else
            TRUNK_COLOURS[trunk], linestyle="--" if head == "linear" else "-",
            label=f"{head}, {trunk}",
        )
        for head, trunk in dict.fromkeys((row.head, row.trunk) for row in rows)
    ]  # fmt: skip
    _legend_below(figure, handles)
    return _Drawing(
        "training",
        "Training of the heads",
        "Means over the seeds, with a band from the lowest to the highest. The losses of the two "
        "heads are not the same function: capsules have the margin loss, linear ones cross "
        "entropy, so compare their accuracies alone.",
        figure,
    )


_CURVES = (
    ("validation_loss", 1.0, "validation loss"),
    ("validation_accuracy", 100.0, "validation accuracy (%)"),
)


def _backbone_curves(results: Results) -> _Drawing | None:
    """The curves of backbones, where no head was trained yet."""
    backbones = [one for one in results.backbones if one.epochs]
    if not backbones:
        return None
    panels: dict[str, list[Any]] = {}
    for one in backbones:
        panels.setdefault(results.where(one), []).append(one)
    levels = _levels(one.pruned for one in backbones)
    figure, grid = _grid(2, len(panels))
    for column, (where, of_panel) in enumerate(panels.items()):
        for line, (key, scale, label) in zip(grid, _CURVES, strict=True):
            axis = line[column]
            for stage, style in (("baseline", "--"), ("pruned", "-")):
                for pruned, colour in levels.items():
                    epochs = [o.epochs for o in of_panel if (o.stage, o.pruned) == (stage, pruned)]
                    if epochs:
                        _band(axis, epochs, key, scale, colour, style)
            axis.set_ylabel(label)
            _epoch_axis(axis)
        grid[0][column].set_title(_wrapped(where), loc="left")
        grid[1][column].set_xlabel("epoch")
    found = dict.fromkeys((one.stage, one.pruned) for one in backbones)
    handles = [
        Line2D(
            [], [], color=levels[pruned], linestyle="--" if stage == "baseline" else "-",
            label="baseline" if stage == "baseline" else f"{pruned} % pruned",
        )
        for stage, pruned in found
    ]  # fmt: skip
    _legend_below(figure, handles)
    return _Drawing(
        "training",
        "Training of the backbones",
        "Means over the seeds, with a band from the lowest to the highest.",
        figure,
    )


def _band(
    axis: Axes,
    trainings: Sequence[Sequence[Mapping[str, float]]],
    key: str,
    scale: float,
    colour: str,
    style: str,
) -> None:
    """Draw the mean over trainings, and from the lowest to the highest of them."""
    # Where one ended earlier, the others go on without it.
    by_epoch: list[list[float]] = [
        [scale * row[key] for row in rows if row is not None and row.get(key) is not None]
        for rows in itertools.zip_longest(*trainings)
    ]
    kept = [(number + 1, values) for number, values in enumerate(by_epoch) if values]
    if not kept:
        return
    x = [number for number, _ in kept]
    mark = "o" if len(kept) == 1 else ""
    axis.plot(
        x, [sum(v) / len(v) for _, v in kept], color=colour, linestyle=style, linewidth=1.6,
        marker=mark, markersize=5,
    )  # fmt: skip
    if any(len(values) > 1 for _, values in kept):
        low, high = [min(v) for _, v in kept], [max(v) for _, v in kept]
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def latency_bars(results: Results) -> _Drawing | None:
    """Latency in ONNX Runtime by network, at each batch size, with the routing's part."""
    if not results.latencies:
        return None
    batches = sorted({row.batch for row in results.latencies})
    name_of = _latency_names(results)
    names = list(dict.fromkeys(name_of(row) for row in sorted(results.latencies, key=_latency_key)))
    height = 0.9 + 0.36 * len(names)
    figure, axes = _panels(len(batches), size=(4.4, height), columns=2, sharey=True)
    for axis, batch in zip(axes, batches, strict=True):
        end = 0.0
        for row in results.latencies:
            if row.batch != batch:
                continue
            end = max(end, _draw_bar(axis, names.index(name_of(row)), row))
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.45, -0.55)
        axis.set_xlim(0, 1.2 * end)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.set_title(f"batch {batch}", loc="left")
        axis.set_xlabel("latency (ms)")
    handles: list[Any] = [
        Patch(facecolor=BLUE, label="capsule network"),
        Patch(facecolor=GREY, label="linear"),
    ]
    if any(row.routing_share for row in results.latencies):
        routing = Patch(facecolor=VERMILLION, hatch="////", edgecolor="white", label="routing")
        handles.insert(1, routing)
    _legend_below(figure, handles)
    providers = " and ".join(sorted({row.provider.upper() for row in results.latencies}))
    return _Drawing(
        "latency",
        "Latency in ONNX Runtime",
        f"Medians on {providers}; whiskers are the quartiles of the repeats. The hatched part is "
        "the share of the time that the routing takes.",
        figure,
    )


def _draw_bar(axis: Axes, position: int, row: Latency) -> float:
    """Draw one bar; returns where it ends, whisker and all."""
    share = row.routing_share or 0
    colour = HEAD_COLOURS[row.head]
    routing = share * row.latency_ms
    axis.barh(position, row.latency_ms - routing, height=0.66, color=colour)
    if routing:
        axis.barh(
            position, routing, left=row.latency_ms - routing, height=0.66,
            color=VERMILLION, hatch="////", edgecolor="white", linewidth=0,
        )  # fmt: skip
    axis.errorbar(
        row.latency_ms, position, capsize=2.5, color="black", linewidth=1,
        xerr=[
            [max(row.latency_ms - row.p25_ms, 0)],
            [max(row.p75_ms - row.latency_ms, 0)],
        ],
    )  # fmt: skip
    end = max(row.latency_ms, row.p75_ms)
    axis.annotate(
        written(Spread(row.latency_ms, None, 1)), (end, position), xytext=(5, 0),
        textcoords="offset points", va="center", fontsize=9,
    )  # fmt: skip
    return end


def _latency_names(results: Results) -> Callable[[Latency], str]:
    """Give what tells each network from the others, and no more than that."""
    several_data = len({row.data for row in results.latencies}) > 1

    def name(row: Latency) -> str:
        data = f"{row.data}, " if several_data else ""
        source = f"{found}, " if (found := results.source_of(row)) else ""
        return f"{source}{data}{row.backbone} {row.pruned} %, {row.head}"

    return name


def _latency_key(row: Latency) -> tuple[Any, ...]:
    return row.data, row.backbone, row.source, row.head == "linear", row.pruned


def robustness_curves(results: Results) -> _Drawing | None:
    """Accuracy under each distortion: capsules against the linear control."""
    curves = _robustness(results)
    if not curves:
        return None
    names = list(dict.fromkeys(name for name, *_ in curves))
    of_rows = list(dict.fromkeys(key for _, _, key, _ in curves))
    figure, grid = _grid(len(of_rows), len(names), size=(3.3, 2.7), sharey="row")
    for line, key in zip(grid, of_rows, strict=True):
        for axis, name in zip(line, names, strict=True):
            _draw_robustness(axis, curves, name, key)
        line[0].set_ylabel(f"{_wrapped(key[0])}\n{key[1]}\ntest accuracy (%)")
    for axis, name in zip(grid[0], names, strict=True):
        axis.set_title(name, loc="left")
    levels = _levels(level for _, _, _, level in curves)
    handles = [
        Line2D([], [], color="black", linestyle="-", label="capsules"),
        Line2D([], [], color="black", linestyle=":", label="linear"),
        *(
            Line2D([], [], color=colour, marker="o", linestyle="", label=f"{level} % pruned")
            for level, colour in levels.items()
        ),
    ]
    _legend_below(figure, handles)
    return _Drawing(
        "robustness",
        "Accuracy on distorted images",
        "Capsule heads (solid) and linear controls (dotted) on the same trunks see the same "
        "distorted test images; no training image was distorted so. Means over the seeds.",
        figure,
    )


#: Name of the distortion, its unit, (where, trunk), per cent pruned.
_RobustnessKey = tuple[str, str, tuple[str, str], int]


def _robustness(results: Results) -> dict[_RobustnessKey, dict[str, dict[float, list[float]]]]:
    """Gather the accuracies of all seeds, by head and amount."""
    curves: dict[_RobustnessKey, dict[str, dict[float, list[float]]]] = {}
    for row in results.rows:
        if row.head != "capsules":
            continue
        for cell in row.cells:
            records = results.analyses.get(cell.run, {}).get("robustness", ())
            kinds = {r["distortion"]: r["unit"] for r in records if r["distortion"] != "none"}
            for name, unit in kinds.items():
                key = (name, unit, (results.where(row), row.trunk), row.pruned)
                heads = curves.setdefault(key, {})
                for head in HEAD_COLOURS:
                    for amount, found in accuracies_by_amount(records, name, head).items():
                        by_amount = heads.setdefault(head, {})
                        by_amount.setdefault(amount, []).extend(100 * one for one in found)
    return curves


def _draw_robustness(
    axis: Axes,
    curves: Mapping[_RobustnessKey, Mapping[str, Mapping[float, Sequence[float]]]],
    name: str,
    key: tuple[str, str],
) -> None:
    levels = _levels(level for _, _, _, level in curves)
    for (curve_name, unit, curve_key, level), heads in curves.items():
        if (curve_name, curve_key) != (name, key):
            continue
        axis.set_xlabel(f"{name} ({unit})")
        for head, by_amount in heads.items():
            amounts = sorted(by_amount)
            linear = head == "linear"
            axis.plot(
                amounts, [sum(by_amount[a]) / len(by_amount[a]) for a in amounts],
                color=levels[level], linestyle=":" if linear else "-",
                linewidth=1.3 if linear else 1.6, marker="o", markersize=3,
                markerfacecolor="white" if linear else levels[level],
            )  # fmt: skip


def capsule_figures(results: Results) -> _Drawing | None:
    """What the routing does in each iteration, and the bottleneck's entropy by pruned level."""
    rows = [
        row
        for row in results.rows
        if row.head == "capsules" and any(cell.run in results.analyses for cell in row.cells)
    ]
    if not rows:
        return None
    groups = list(dict.fromkeys(results.where(row) for row in rows))
    figure, grid = _grid(len(groups), 3, size=(3.9, 3.0))
    levels = _levels(row.pruned for row in rows)
    for line, where in zip(grid, groups, strict=True):
        of_group = [row for row in rows if results.where(row) == where]
        _draw_routing(line[0], of_group, results, "coupling_entropy", levels, "-")
        _draw_routing(line[1], of_group, results, "agreement_true", levels, "-")
        _draw_routing(line[1], of_group, results, "agreement_other", levels, ":")
        _draw_entropy(line[2], of_group)
        line[0].set_title(f"{_wrapped(where)}\nentropy of the couplings", loc="left")
        line[1].set_title("\nagreement with the true class\n(dotted: with the others)", loc="left")
        line[2].set_title("\nentropy of the bottleneck", loc="left")
        line[2].set_ylabel("bits a unit")
        line[2].set_xlabel("pruned FLOPs (%)")
    handles: list[Any] = [
        *(
            Line2D([], [], color=colour, marker="o", linestyle="", label=f"{level} % pruned")
            for level, colour in levels.items()
        ),
        *(
            Line2D(
                [],
                [],
                color=GREY,
                marker=_TRUNK_MARKERS[trunk],
                markerfacecolor="white",
                linestyle="",
                label=trunk,
            )
            for trunk in TRUNK_COLOURS
            if any(row.trunk == trunk for row in rows)
        ),
    ]
    _legend_below(figure, handles)
    return _Drawing(
        "capsules",
        "What the capsules do",
        "Left: how evenly a primary capsule spreads itself over the output capsules, by routing "
        "iteration. Middle: how well its votes agree with the output capsule of the true class, "
        "and with the others (dotted). Right: entropy of the bottleneck's units given the class, "
        "with the standard deviation over the seeds.",
        figure,
    )


_TRUNK_MARKERS: dict[Trunk, str] = {"finetuned": "o", "frozen": "s"}


def _draw_routing(
    axis: Axes,
    rows: Sequence[Row],
    results: Results,
    key: str,
    levels: Mapping[int, str],
    style: str,
) -> None:
    for row in rows:
        found = [results.analyses.get(cell.run, {}).get(key) for cell in row.cells]
        series = [values for values in found if values]
        if not series:
            continue
        means = [sum(values) / len(values) for values in zip(*series, strict=False)]
        axis.plot(
            range(1, len(means) + 1), means, color=levels[row.pruned], linestyle=style,
            marker=_TRUNK_MARKERS[row.trunk], markersize=5, linewidth=1.4,
        )  # fmt: skip
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("routing iteration")


def _draw_entropy(axis: Axes, rows: Sequence[Row]) -> None:
    for trunk in TRUNK_COLOURS:
        line = sorted((row for row in rows if row.trunk == trunk), key=lambda row: row.pruned)
        points = [(row.pruned, s) for row in line if (s := row.spread("bottleneck_entropy"))]
        if points:
            axis.errorbar(
                [pruned for pruned, _ in points], [s.mean for _, s in points],
                yerr=[s.deviation or 0 for _, s in points], color=GREY, capsize=2.5,
                marker=_TRUNK_MARKERS[trunk], markersize=6, markerfacecolor="white", linewidth=1.4,
            )  # fmt: skip
    axis.margins(0.12)


#: In the order of the report.
FIGURES: tuple[Callable[[Results], _Drawing | None], ...] = (
    accuracy_against_flops,
    search_scatter,
    training_curves,
    latency_bars,
    robustness_curves,
    capsule_figures,
)


def _panels(
    count: int, size: tuple[float, float] = _PANEL, columns: int = 3, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make panels side by side, going on below; a place left over stays empty."""
    columns = min(count, columns)
    figure, grid = _grid(-(-count // columns), columns, size, "row" if sharey else False)
    axes = list(itertools.chain.from_iterable(grid))
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _grid(
    rows: int, columns: int, size: tuple[float, float] = _PANEL, sharey: Any = False
) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    return figure, [list(line) for line in axes]


def _legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    width = figure.get_figwidth()
    columns = max(2, min(len(handles), int(width / 1.55)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _wrapped(where: str) -> str:
    """Put the source, where there is one, on a line of its own."""
    return where.replace(" (", "\n(")


def _marker_sizes(rows: Iterable[Row]) -> dict[int, float]:
    """The more is pruned, the smaller the marker, as in the paper's figure."""
    levels = sorted({row.pruned for row in rows})
    return {level: 11.5 - 7.5 * level / 100 for level in levels}


def _levels(levels: Iterable[int]) -> dict[int, str]:
    return dict(zip(sorted(set(levels)), itertools.cycle(LEVEL_COLOURS), strict=False))


def _line_style(backbone: str) -> Literal["--", "-", ":"]:
    """The paper's: ResNets dashed, MobileNetV1 solid."""
    if backbone.startswith("resnet"):
        return "--"
    return "-" if backbone == "mobilenet_v1" else ":"


def _lighter(colour: str) -> str:
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.5 * (255 - part)):02x}" for part in parts)


def _log_ticks(axis: Axes) -> None:
    """Write plain numbers on a logarithmic axis, enough of them where it spans little."""
    low, high = axis.get_xlim()
    steps: tuple[float, ...] = (1,)
    if high / low < 12:
        steps = (1, 1.5, 2, 3, 5, 7)
    elif high / low < 150:
        steps = (1, 2, 5)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(low, high)


def _epoch_axis(axis: Axes) -> None:
    """Have whole epochs on the axis, and room beside a lone one."""
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    low, high = axis.get_xlim()
    if high - low < 1:
        axis.set_xlim(0.5, 1.5)
        axis.set_xticks([1])


def _known(row: Row, value: str) -> Spread:
    found = row.spread(value)
    assert found is not None
    return found
