"""Charts of the report page: plain data in Plotly's terms, with colours by name.

A colour is the name of a custom property of the page's style sheet, such as "--series-1". The
page's script puts in what it stands for, light or dark, when it draws.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from capsprune.report.results import Results, Row

#: The paper has finetuned in blue and frozen in red.
FINETUNED, FROZEN = "--series-1", "--series-2"
SERIES = ("--series-1", "--series-2", "--series-3", "--series-4", "--series-5")
#: Sweeps prune to these; a level that is none of them takes the next colour that is free.
_LEVELS = (0, 25, 50, 75)
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross")

#: Plotly's dashes, and what they are in SVG.
DASHES = {"solid": "", "dash": "6 3", "dot": "2 3"}

Trace = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Key:
    """An entry of a legend: shows and hides the traces whose `legendgroup` is its label."""

    label: str
    color: str
    dash: str | None = "solid"
    #: "circle", "diamond", "square", "star", with "-open" if hollow, or None for no marker.
    symbol: str | None = "circle"


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    #: What goes upwards, with its unit. It stands above the chart, where it can be read upright.
    up: str
    traces: Sequence[Trace]
    #: Plotly's layout, as far as it is this panel's own.
    layout: Mapping[str, Any]
    height: int = 260


@dataclass(frozen=True)
class Figure:
    """Panels under one caption with one legend."""

    #: For links to it.
    name: str
    title: str
    caption: str
    #: The panels by group. Where there are several groups, the reader picks one.
    groups: Mapping[str, Sequence[Panel]]
    keys: Sequence[Key] = ()
    #: What the groups are, for the label of the choice.
    choice: str = "Show"
    #: Widest a panel need be before a second stands beside it, in rem.
    panel_width: int = 24


def axis(title: str, **options: Any) -> dict[str, Any]:
    """Describe an axis.

    Args:
        title: with its unit.
        options: of Plotly's axis.
    """
    # 0.0008, not 800µ.
    return {"title": {"text": escape(title)}, "exponentformat": "none", **options}


def line(
    key: Key,
    x: Sequence[float],
    y: Sequence[float],
    tooltips: Sequence[str],
    *,
    deviations: Sequence[float | None] | None = None,
    sizes: Sequence[float] | float = 8,
    width: float = 2,
    opacity: float = 1,
) -> Trace:
    """Make a line with markers, each with a tooltip.

    Args:
        key: the legend's entry that it belongs to; gives colour, dash and symbol.
        x: rightwards.
        y: upwards.
        tooltips: one a point, as `tooltip` makes them.
        deviations: half lengths of error bars, None where there is none.
        sizes: of the markers, in px.
        width: of the line, in px.
        opacity: of the whole.
    """
    parts = {"lines": key.dash, "markers": key.symbol}
    trace: Trace = {
        "type": "scatter",
        "mode": "+".join(part for part, style in parts.items() if style is not None),
        "legendgroup": key.label,
        "x": list(x),
        "y": list(y),
        "hoverinfo": "text",
        "hovertext": list(tooltips),
        "opacity": opacity,
    }
    if key.dash is not None:
        trace["line"] = {"color": key.color, "dash": key.dash, "width": width}
    if key.symbol is not None:
        size = sizes if isinstance(sizes, int | float) else list(sizes)
        trace["marker"] = {"color": key.color, "symbol": key.symbol, "size": size}
        if key.symbol.endswith("-open"):
            trace["marker"]["line"] = {"color": key.color, "width": 1.5}
        elif isinstance(size, list):
            # Those of several sizes may lie upon each other; Plotly would let them shine through.
            trace["marker"]["opacity"] = 1
            trace["marker"]["line"] = {"color": "--surface", "width": 1}
    if deviations is not None and any(deviations):
        trace["error_y"] = {
            "type": "data",
            "array": list(deviations),
            "color": key.color,
            "thickness": 1.5,
            "width": 4,
        }
    return trace


def tooltip(title: str, *lines: str | None) -> str:
    """Write the text of a tooltip: a title and its lines, those that are None left out."""
    return "<br>".join([f"<b>{escape(title)}</b>", *(escape(one) for one in lines if one)])


def escape(text: str) -> str:
    """Keep Plotly, which knows some HTML in texts, from reading markup into a name."""
    return html.escape(text, quote=False)


def grouped(items: Iterable[Item], by: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Sort items into lists by what `by` gives, in the order in which they first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups


class Networks:
    """How the networks of a backbone, a trunk, a head and a source look, in every figure alike."""

    def __init__(self, results: Results) -> None:
        """Take all networks that there are."""
        self._results = results
        self._sources = list(dict.fromkeys(row.source for row in results.rows))

    def key(self, row: Row) -> Key:
        """Give the legend's entry of the networks that a row is one of."""
        dash = "dot"
        if row.backbone.startswith("resnet"):
            dash = "dash"
        elif row.backbone == "mobilenet_v1":
            dash = "solid"
        frozen = row.trunk == "frozen"
        symbol = "circle" if frozen else "diamond"
        label = f"{row.backbone}, {row.trunk}"
        if source := self._results.source_of(row):
            # Colours tell the trunks apart already.
            symbol = _SYMBOLS[self._sources.index(source) % len(_SYMBOLS)]
            label = f"{source}: {label}"
        if row.head == "linear":
            symbol += "-open"
            label += ", linear"
        return Key(label, FROZEN if frozen else FINETUNED, dash, symbol)


class Levels:
    """Colours and markers by how much was pruned, the same in every figure."""

    def __init__(self, pruned: Iterable[int]) -> None:
        """Take all levels that there are."""
        self._order = [*_LEVELS, *sorted(set(pruned) - set(_LEVELS))]

    def key(self, pruned: int, linear: bool = False) -> Key:
        """Give the legend's entry of a level, of its capsules or of its linear control."""
        place = self._order.index(pruned) % len(SERIES)
        symbol = _SYMBOLS[place]
        if linear:
            return Key(f"{pruned} % pruned, linear", SERIES[place], "dot", f"{symbol}-open")
        return Key(f"{pruned} % pruned", SERIES[place], "solid", symbol)
