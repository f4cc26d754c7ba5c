"""The look of the report's charts, and the marks that their panels are made of.

A chart is described once, in Vega-Lite, for the page as for its PNG and SVG. A description has no
colours: they are in the theme, light or dark. What a colour says, a dash or a marker says too.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal

import altair as alt
import vl_convert
from PIL import Image

from capsprune.report.results import Spread

Mode = Literal["light", "dark"]
Record = dict[str, Any]
Panel = alt.LayerChart

_THEME = (resources.files("capsprune.report") / "assets/theme.json").read_text(encoding="utf-8")
#: For light and for dark. The series begin with the paper's blue for finetuned and red for frozen,
#: after Okabe and Ito, darkened or lightened where they would not stand out from the surface.
COLOURS: dict[str, tuple[str, str]] = json.loads(_THEME)["colours"]
SOLID, DASHED, DOTTED = [1, 0], [6, 3], [2, 3]
DASHES = (SOLID, DASHED, DOTTED, [8, 3, 2, 3], [12, 4], [4, 2, 1, 2])

#: Px of the screen for one of a picture.
SCALE = 2
#: What a panel needs beside its width for the labels of its axis, in px.
_BESIDE = 48

#: What goes upwards, which the heading says.
_UP = alt.Y("y:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
#: A click on a legend leaves what it is about in full colour, one beside it all.
_SHOWN = alt.selection_point(name="shown", fields=["series"], bind="legend")


@dataclass(frozen=True)
class Figure:
    """Panels under one title with one legend."""

    #: Name of its files, without their endings, and of its place on the page.
    name: str
    title: str
    #: What it shows and how it is to be read.
    caption: str
    panels: Sequence[Panel]
    #: Of its legends.
    labels: Sequence[str]
    #: The most panels side by side; where there is less room, as many as divide this.
    columns: int = 3
    #: Of a panel in a picture, in px; on the page as much as there is room for.
    width: int = 270

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The figure in Vega-Lite, with what the page needs to fit it to a screen."""
        columns = min(self.columns, len(self.panels))
        with warnings.catch_warnings():
            # That the panels share what is shown is meant.
            warnings.filterwarnings("ignore", "Automatically deduplicated")
            chart = alt.concat(*self.panels, columns=columns, spacing=26)
            spec: dict[str, Any] = _drawable(chart.to_dict(validate=False))
        # Vega-Lite measures nothing before it draws: a guess at a label of eleven px.
        label = 6 * max(map(len, self.labels), default=0) + 44
        spec["usermeta"] = {"beside": _BESIDE, "panel": self.width, "label": label}
        for panel in spec["concat"]:
            panel["width"] = self.width
        room = columns * (self.width + _BESIDE)
        spec["config"] = {"legend": {"columns": max(1, room // label)}}
        return spec


#: What XML cannot hold: vl-convert would end the process, not raise.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")


def _drawable(value: Any) -> Any:
    """Return a description with blanks in place of the characters that no picture can hold."""
    if isinstance(value, dict):
        return {key: _drawable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_drawable(item) for item in value]
    return _CONTROLS.sub(" ", value) if isinstance(value, str) else value


def pictures(figure: Figure) -> dict[str, bytes]:
    """Draw a figure as a PNG and as an SVG, without asking anything of a network.

    Returns:
        Their contents by the endings of their names. The SVG has its words as text, to be searched
        and read aloud.
    """
    spec = figure.spec
    config = theme("light")
    config["legend"] |= spec["config"]["legend"]
    spec = spec | {"config": config, "padding": 10}
    svg = str(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
    # Packed again, it has less than half of the bytes.
    png = io.BytesIO()
    drawn = Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=SCALE)))
    drawn.convert("RGB").save(png, "PNG")
    return {"png": png.getvalue(), "svg": svg.encode()}


@cache
def library() -> str:
    """Return the script that draws charts on a page, for a page that loads nothing."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def theme(mode: Mode) -> dict[str, Any]:
    """Return Vega-Lite's configuration: the colours of one mode, sizes and distances."""

    def colour(name: re.Match[str]) -> str:
        return f'"{COLOURS[name[1]][mode == "dark"]}"'

    config: dict[str, Any] = json.loads(re.sub('"--([^"]+)"', colour, _THEME))["config"]
    return config


def title(text: str, up: str) -> alt.TitleParams:
    """Write what a panel shows, and what goes upwards, above it, where both are read upright."""
    lines = textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), 36)
    return alt.TitleParams(lines or "", subtitle=up)


def looks(
    field: str,
    heading: str,
    labels: Sequence[str],
    *,
    markers: bool = True,
    lines: bool = False,
    paired: bool = False,
) -> dict[str, Any]:
    """Tell apart by colour, and by marker or dash, what has different labels.

    Args:
        field: that has the label.
        heading: of the legend.
        labels: all of them, in their order: each looks alike in every panel.
        markers: use markers too.
        lines: use dashes too.
        paired: they are networks, of which every third and fourth is paler.
    """
    scale, legend = alt.Scale(domain=list(labels)), alt.Legend(title=heading)
    colours = alt.Scale(domain=list(labels), range="ordinal" if paired else "category")
    found: dict[str, Any] = {"color": alt.Color(f"{field}:N", scale=colours, legend=legend)}
    if markers:
        found["shape"] = alt.Shape(f"{field}:N", scale=scale, legend=legend)
    if lines:
        styles = dict(zip(labels, itertools.cycle(DASHES), strict=False))
        found["strokeDash"] = dashes(field, heading, styles)
        found["color"].legend = alt.Legend(title=heading, symbolType="stroke", symbolSize=300)
    return found


def dashes(field: str, heading: str, styles: Mapping[str, Sequence[int]]) -> alt.StrokeDash:
    """Give each label its dashes; a legend says so where there are several."""
    scale = alt.Scale(domain=list(styles), range=[list(style) for style in styles.values()])
    legend = alt.Legend(title=heading, symbolType="stroke", symbolSize=300)
    return alt.StrokeDash(f"{field}:N", scale=scale, legend=legend if len(styles) > 1 else None)


def point(key: str, series: str, x: float, spread: Spread) -> Record:
    """Return a point of a line and, where there are several seeds, the ends of its error bar.

    Args:
        key: of the line.
        series: that a legend tells it by.
        x: what goes rightwards.
        spread: what goes upwards.
    """
    found: Record = {"key": key, "series": series, "x": x, "order": x, "y": spread.mean}
    if spread.deviation:
        found |= {"low": spread.mean - spread.deviation, "high": spread.mean + spread.deviation}
    return found


def curves(
    records: Sequence[Record],
    x: alt.X,
    heading: alt.TitleParams,
    encodings: Mapping[str, Any],
    *,
    size: alt.Size | int = 60,
    band: bool = False,
    joining: bool = False,
    height: int = 200,
) -> Panel:
    """Draw lines with a marker at each point.

    Args:
        records: of the points: `x`, `y`, which line they belong to, `key`, and their place on it,
            `order`; `low` and `high` where there is a spread, and `hollow` for a hollow marker.
        x: what goes rightwards.
        heading: of the panel.
        encodings: colours, markers and dashes.
        size: of the markers: an encoding, or px².
        band: draw the spread as a band, in place of bars.
        joining: lines join markers of different colours, and have none.
        height: of the panel, in px.
    """
    colour = {"color": encodings["color"]}
    layers: list[Any] = []
    if any("low" in record for record in records):
        chart = alt.Chart().transform_filter("isValid(datum.low)")
        mark = chart.mark_errorband() if band else chart.mark_errorbar(ticks=True)
        faded = _faded(0.15 if band else 1)
        low, high = alt.Y("low:Q", title=None, scale=alt.Scale(zero=False)), alt.Y2("high:Q")
        layers.append(mark.encode(x=x, y=low, y2=high, detail="key:N", opacity=faded, **colour))
    left_out = {"shape", "color"} if joining else {"shape"}
    lines = {name: value for name, value in encodings.items() if name not in left_out}
    layers.append(
        alt.Chart()
        .mark_line(strokeWidth=1.7, style="joining" if joining else alt.Undefined)
        .encode(x=x, y=_UP, detail="key:N", order="order:Q", opacity=_faded(1), **lines)
    )
    markers = {name: value for name, value in encodings.items() if name != "strokeDash"}
    for style, chosen in (("hollow", "datum.hollow"), ("solid", "!datum.hollow")):
        if style == "solid" or any(record.get("hollow") for record in records):
            layers.append(_points(records, style, chosen, x, size, markers))
    return _panel(layers, heading, height, records)


def points(
    records: Sequence[Record], heading: alt.TitleParams, x: str, encodings: Mapping[str, Any]
) -> Panel:
    """Draw points without lines, and those that were `chosen` larger and with an edge."""
    right = alt.X(
        "x:Q", title=x, scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(tickCount=5)
    )
    layers = [
        _points(records, "solid", "!datum.chosen", right, 45, encodings, 0.7),
        _points(records, "chosen", "datum.chosen", right, 170, encodings),
    ]
    return _panel(layers, heading, 200, records)


def _points(
    records: Sequence[Record],
    style: str,
    chosen: str,
    x: alt.X,
    size: alt.Size | int,
    encodings: Mapping[str, Any],
    opacity: float = 1,
) -> alt.Chart:
    mark: dict[str, Any] = {"filled": style != "hollow", "style": style}
    own: dict[str, Any] = {"tooltip": _tooltip(records), "opacity": _faded(opacity), **encodings}
    (mark if isinstance(size, int) else own)["size"] = size
    return (
        alt.Chart()
        .add_params(_SHOWN)
        .transform_filter(chosen)
        .mark_point(**mark)
        .encode(x=x, y=_UP, **own)
    )


def bars(
    records: Sequence[Record],
    count: int,
    heading: alt.TitleParams,
    x: str,
    encodings: Mapping[str, Any],
) -> Panel:
    """Draw bars that go rightwards, with their names above them and their values behind them.

    Args:
        records: of the parts of the bars: `place` of the bar, `from` and `to` of the part, and of
            the bar `label`, `value`, `end`, and `low` and `high` where it has whiskers.
        count: how many bars there are.
        heading: of the panel.
        x: what goes rightwards.
        encodings: colours.
    """
    right = alt.X("from:Q", title=x, axis=alt.Axis(tickCount=5))
    up = alt.Y("place:O", axis=None, scale=alt.Scale(paddingInner=0.62, paddingOuter=0.5))
    whole = alt.Chart().transform_filter("datum.from === 0")
    parts = alt.Chart().mark_bar(style="solid")
    whiskers = [
        whole.mark_rule(style="ink").encode(x="low:Q", x2="high:Q", y=up),
        whole.mark_tick(style="ink", size=7, thickness=1).encode(x="low:Q", y=up),
        whole.mark_tick(style="ink", size=7, thickness=1).encode(x="high:Q", y=up),
    ]
    layers = [
        parts.encode(x=right, x2="to:Q", y=up, tooltip=_tooltip(records), **encodings),
        *(whiskers if any("low" in record for record in records) else ()),
        whole.mark_text(style="words", align="left", dx=5).encode(x="end:Q", y=up, text="value:N"),
        whole.mark_text(style="words", align="left", dy=-16).encode(
            x=alt.value(2), y=up, text="label:N"
        ),
    ]
    return _panel(layers, heading, 36 * count + 10, records)


def _panel(
    layers: Sequence[alt.Chart], heading: alt.TitleParams, height: int, records: Sequence[Record]
) -> Panel:
    """Lay marks over one another, with the records as their data, to six digits."""
    json.dumps(records, allow_nan=False)  # NaN, which is no JSON, is refused
    values = [
        {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}
        for record in records
    ]
    data = alt.InlineData(values=values)
    panel: Any = alt.layer(*layers, title=heading, height=height, data=data)
    return panel


def _faded(opacity: float) -> Any:
    return alt.condition(_SHOWN, alt.value(opacity), alt.value(0.07 * opacity))


def _tooltip(records: Sequence[Record]) -> list[alt.Tooltip]:
    """Show what the records have under names with a capital, and their `title` above it."""
    names = dict.fromkeys(name for record in records for name in record if name[:1].isupper())
    for record in records:
        for name in names:
            record.setdefault(name, "not available")
    return [alt.Tooltip(f"{name}:N", title=name) for name in ("title", *names)]
