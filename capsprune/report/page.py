"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from capsprune.files import write_text
from capsprune.report.charts import DASHES, Figure, Key, Panel
from capsprune.report.claims import RULE, Claim, Verdict, claims
from capsprune.report.columns import Column, table_columns
from capsprune.report.page_figures import make_figures
from capsprune.report.results import Results, Row

#: What stands before a verdict, so that colour does not tell it alone.
_SIGNS: dict[Verdict, str] = {
    "holds": "✓",
    "holds in part": "~",
    "does not hold": "✗",
    "undecided": "≈",
    "cannot be told": "?",
}


def write_page(results: Results, path: Path, judged: Sequence[Claim] | None = None) -> None:
    """Write a report as one HTML file; it loads nothing, so it works offline.

    Args:
        results: what there is to report.
        path: of the file, replaced if it is there.
        judged: what `claims` gave, where it was asked before.

    Raises:
        OSError: if it cannot be written.
    """
    figures = make_figures(results)
    if judged is None:
        judged = claims(results)
    page = Template(_asset("page.html")).substitute(
        title=escape(results.title),
        summary=escape(_summary(results)),
        style=_asset("page.css"),
        contents=_contents(results, judged, figures),
        sections="\n".join(
            [
                _claims(judged),
                _table(
                    "networks",
                    "Networks with capsules",
                    "Figures are means ± standard deviations over seeds. Press a heading to sort.",
                    [row for row in results.rows if row.head == "capsules"],
                ),
                _table(
                    "controls",
                    "Controls: a linear head on the same pruned backbones",
                    "Trained like the networks with capsules, with a linear classifier instead.",
                    [row for row in results.rows if row.head == "linear"],
                ),
                *map(_figure, figures),
                _notes(results),
                _missing(results),
            ]
        ),
        panels=_script_safe(
            json.dumps(
                {figure.name: [_drawn(p) for p in _panels(figure)] for figure in figures},
                # NaN is no JSON.
                allow_nan=False,
            )
        ),
        plotly=get_plotlyjs(),
        script=_asset("page.js"),
    )
    write_text(path, page)


def _asset(name: str) -> str:
    return resources.files("capsprune.report").joinpath("assets", name).read_text(encoding="utf-8")


def _script_safe(text: str) -> str:
    """Keep a text from ending, or changing the reading of, the script element it stands in."""
    return text.replace("<", "\\u003c")


def _prose(text: str) -> str:
    """Escape a text, and keep its percentages on one line."""
    return escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def _summary(results: Results) -> str:
    cells = [cell for row in results.rows for cell in row.cells]
    if not cells:
        return "No network is trained yet."
    parts = [
        _count(len(cells), "trained network"),
        _list("backbone", (cell.backbone for cell in cells)),
        _list("data set", (cell.data for cell in cells)),
        _count(len({cell.seed for cell in cells}), "seed"),
    ]
    if results.missing:
        parts.append(f"{len(results.missing)} still missing")
    return " · ".join(parts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _list(thing: str, names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    if len(distinct) > 3:
        return _count(len(distinct), thing)
    return " and ".join(distinct) if len(distinct) < 3 else ", ".join(distinct)


def _contents(results: Results, judged: Sequence[Claim], figures: Sequence[Figure]) -> str:
    heads = {row.head for row in results.rows}
    links = [
        *([("claims", "Claims")] if judged else []),
        *([("networks", "Networks")] if "capsules" in heads else []),
        *([("controls", "Controls")] if "linear" in heads else []),
        *((figure.name, figure.name.capitalize()) for figure in figures),
        *([("notes", "Notes")] if results.notes else []),
        *([("missing", "Missing")] if results.missing else []),
    ]
    return "\n".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in links)


def _section(name: str, title: str, body: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{escape(title)}</h2>\n{body}\n</section>'
    )


def _claims(judged: Sequence[Claim]) -> str:
    if not judged:
        return ""
    told = [claim for claim in judged if claim.verdict != "cannot be told"]
    untold = [claim for claim in judged if claim.verdict == "cannot be told"]
    parts = []
    if told:
        tally = Counter(claim.verdict for claim in judged)
        counts = ", ".join(f"{verdict} {tally[verdict]}" for verdict in _SIGNS if tally[verdict])
        parts += [
            f'<p class="about">Of {len(judged)} claims: {counts}. Unfold one for its figures.</p>',
            _claim_list(told),
        ]
    if untold:
        # Folded: a single run can tell of none, and there is more to see below.
        parts.append(
            f"<details><summary>{_count(len(untold), 'claim')} cannot be told from these results: "
            f"it takes a sweep of more cells.</summary>\n{_claim_list(untold)}</details>"
        )
    if told:
        parts.append(f'<p class="about">{_prose(RULE)}</p>')
    return _section("claims", "What the paper says, and what was found", "\n".join(parts))


def _claim_list(judged: Sequence[Claim]) -> str:
    items = "\n".join(
        f'<li><span class="verdict" data-verdict="{escape(claim.verdict)}">'
        f'<span aria-hidden="true">{_SIGNS[claim.verdict]}</span> {escape(claim.verdict)}</span>'
        f"<details><summary>{_prose(claim.statement)}</summary>"
        f"<p>{_prose(claim.evidence)}</p></details></li>"
        for claim in judged
    )
    return f'<ul class="claims">\n{items}\n</ul>'


# Tables


def _table(name: str, title: str, caption: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    data = {row.data for row in rows}
    # The first column says which backbone and trunk it is, and the table which head.
    left_out = {"backbone", "trunk", "head"} | ({"data"} if len(data) == 1 else set())
    columns = [column for column in table_columns(rows) if column.key not in left_out]
    if len(data) == 1:
        caption = f"Data set: {data.pop()}. {caption}"
    head = "\n".join(
        [_heading("Network"), *(_heading(c.heading, words=_is_words(c, rows)) for c in columns)]
    )
    body = "\n".join(
        f"<tr>{_row_heading(row)}{''.join(_cell(column, row, rows) for column in columns)}</tr>"
        for row in rows
    )
    return _section(
        name,
        title,
        f'<p class="about" id="{name}-about">{_prose(caption)}</p>\n'
        f'<div class="scroll" role="region" aria-labelledby="{name}-title" tabindex="0">\n'
        f'<table class="sortable" aria-labelledby="{name}-title" aria-describedby="{name}-about">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>",
    )


def _heading(text: str, words: bool = True) -> str:
    side = "words" if words else "number"
    return (
        f'<th scope="col" class="{side}"><button type="button">{escape(text)}'
        '<span class="arrow" aria-hidden="true"></span></button></th>'
    )


def _row_heading(row: Row) -> str:
    order = escape(f"{row.backbone} {row.source} {row.trunk} {row.pruned:03d} {row.data}")
    return (
        f'<th scope="row" data-order="{order}">{escape(row.backbone)}'
        f"<small>{row.pruned} % pruned, {escape(row.trunk)}</small></th>"
    )


def _is_words(column: Column, rows: Sequence[Row]) -> bool:
    return column.words is not None and all(column.number(row) is None for row in rows)


def _cell(column: Column, row: Row, rows: Sequence[Row]) -> str:
    text = column.text(row)
    if _is_words(column, rows):
        return f'<td class="words" data-order="{escape(text)}">{escape(text)}</td>'
    number = column.number(row)
    if number is None:
        # No order: it goes last, whichever way the column is sorted.
        return f'<td class="number none">{escape(text)}</td>'
    return f'<td class="number" data-order="{number!r}">{escape(text)}</td>'


# Figures


def _panels(figure: Figure) -> list[Panel]:
    return [panel for panels in figure.groups.values() for panel in panels]


def _drawn(panel: Panel) -> dict[str, Any]:
    """Give what the page's script draws of a panel."""
    return {"traces": panel.traces, "layout": panel.layout}


def _figure(figure: Figure) -> str:
    choice = ""
    if len(figure.groups) > 1:
        options = "".join(f"<option>{escape(group)}</option>" for group in figure.groups)
        choice = f'<label class="choice">{escape(figure.choice)} <select>{options}</select></label>'
    groups: list[str] = []
    number = 0
    for group, panels in figure.groups.items():
        divisions = []
        for panel in panels:
            label = escape(f"Chart: {figure.title}. {panel.title}, {panel.up}")
            divisions.append(
                f'<div class="panel"><p><strong>{escape(panel.title)}</strong> '
                f"<span>{escape(panel.up)}</span></p>"
                f'<div class="chart" data-panel="{number}" role="img" aria-label="{label}"'
                f' style="height: {panel.height}px"></div></div>'
            )
            number += 1
        hidden = " hidden" if groups else ""
        groups.append(
            f'<div class="panels" data-group="{escape(group)}"'
            f' style="--panel: {figure.panel_width}rem"{hidden}>{"".join(divisions)}</div>'
        )
    keys = "".join(map(_key, figure.keys))
    legend = f'<div class="legend" role="group" aria-label="Legend">{keys}</div>' if keys else ""
    return _section(
        figure.name,
        figure.title,
        f'<figure data-figure="{figure.name}">{choice}{"".join(groups)}{legend}'
        f"<figcaption>{_prose(figure.caption)}</figcaption></figure>",
    )


#: Markers of a legend, in a box of 28 by 14.
_MARKERS = {
    "circle": '<circle cx="14" cy="7" r="4.5"/>',
    "diamond": '<path d="M14 1.5 19.5 7 14 12.5 8.5 7z"/>',
    "square": '<path d="M9.5 2.5h9v9h-9z"/>',
    "triangle-up": '<path d="M14 2 19.5 11.5h-11z"/>',
    "cross": '<path d="M12 2h4v3h3v4h-3v3h-4V9H9V5h3z"/>',
}


def _key(key: Key) -> str:
    drawn = ""
    if key.dash is not None:
        drawn += f'<path class="line" d="M1 7h26" stroke-dasharray="{DASHES[key.dash]}"/>'
    if key.symbol is not None:
        kind = "open" if key.symbol.endswith("-open") else "full"
        drawn += f'<g class="{kind}">{_MARKERS[key.symbol.removesuffix("-open")]}</g>'
    return (
        f'<button type="button" aria-pressed="true" data-key="{escape(key.label)}">'
        f'<svg width="28" height="14" aria-hidden="true" style="color: var({key.color})">{drawn}'
        f"</svg>{escape(key.label)}</button>"
    )


# The end


def _notes(results: Results) -> str:
    if not results.notes:
        return ""
    items = "".join(f"<li>{_prose(note)}</li>" for note in results.notes)
    return _section("notes", "How it was measured", f"<ul>{items}</ul>")


def _missing(results: Results) -> str:
    if not results.missing:
        return ""
    items = "".join(
        f"<div><dt>{escape(run)}</dt><dd>{_prose(reason)}</dd></div>"
        for run, reason in results.missing.items()
    )
    return _section("missing", "What is missing", f'<dl class="missing">{items}</dl>')
