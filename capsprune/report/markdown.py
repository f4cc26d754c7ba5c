"""The report as Markdown, and its rows as CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from capsprune.report.claims import RULE, Claim
from capsprune.report.columns import IDENTITY, NOT_AVAILABLE, Column, table_columns, written
from capsprune.report.results import Backbone, Cell, Results, Row, Spread

if TYPE_CHECKING:
    from capsprune.report.charts import Figure

#: What a line of the CSV begins with, before a cell's `values` by name.
_CELL = ("source", "run", "data", "backbone", "pruned", "trunk", "head", "seed")
_METERS = ("memory_meter", "energy_meter")
_FORMULA = ("=", "+", "-", "@")


def markdown(
    results: Results, claims: Sequence[Claim], figures: Sequence[Figure], folder: str
) -> str:
    """Write the report.

    Args:
        results: what to report.
        claims: what they say of the paper's claims.
        figures: that were drawn.
        folder: where their pictures are, from the report.
    """
    parts = [f"# {_line_of(results.title)}"]
    for title, rows in tables(results):
        parts += [f"## {title}", _table(rows)]
    if results.backbones:
        parts += ["## Backbones with their own linear classifier", _backbones(results)]
    if claims:
        parts += ["## What holds, and what does not", RULE, _claims(claims)]
    for figure in figures:
        title, caption = _line_of(figure.title), _line_of(figure.caption)
        parts += [f"## {title}", f"![{title}]({folder}/{figure.name}.png)", caption]
    if results.missing:
        parts += ["## What is missing", _list(f"{k}: {v}" for k, v in results.missing.items())]
    if results.notes:
        parts += ["## How it was measured", _list(results.notes)]
    return "\n\n".join(parts) + "\n"


def tables(results: Results) -> list[tuple[str, list[Row]]]:
    """Give the report's tables: those of capsule networks, and those of their linear controls.

    Returns:
        Their titles and rows; none that is empty.
    """
    capsules = [row for row in results.rows if row.head == "capsules"]
    controls = [row for row in results.rows if row.head == "linear"]
    both = [
        ("Capsule networks, as in Table 1 of the paper", capsules),
        ("Linear controls: the same trunks without capsules", controls),
    ]
    return [(title, rows) for title, rows in both if rows]


def results_csv(results: Results) -> str:
    """Write one line a cell: what it is, and all its figures in the units of the library.

    A figure that was not measured is empty. A name that a spreadsheet would compute is quoted.
    """
    cells = [cell for row in results.rows for cell in row.cells]
    names = sorted({name for cell in cells for name in cell.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CELL, *names, *_METERS])
    for cell in cells:
        writer.writerow([*_line(cell, names)])
    return text.getvalue()


def plain_rows(results: Results) -> list[dict[str, Any]]:
    """Give each row's configuration, and its figures over the seeds, as JSON can hold them."""
    return [
        {
            "data": row.data,
            "backbone": row.backbone,
            "pruned": row.pruned,
            "trunk": row.trunk,
            "head": row.head,
            "source": row.source,
            "seeds": [cell.seed for cell in row.cells],
            "figures": {
                name: asdict(spread)
                for name in sorted({name for cell in row.cells for name in cell.values})
                if (spread := row.spread(name)) is not None
            },
        }
        for row in results.rows
    ]


def plain_tables(results: Results) -> list[tuple[str, list[str], list[list[str]], int]]:
    """Give the columns of Table 1 as text, for capsule networks and for linear controls.

    Returns:
        Title, headings and lines of each, and how many of its columns are words.
    """
    plain = []
    for title, rows in tables(results):
        columns = _without_head(table_columns(rows, further=False))
        lines = [[column.text(row) for column in columns] for row in rows]
        words = sum(column in IDENTITY for column in columns)
        plain.append((title, [column.heading for column in columns], lines, words))
    return plain


def _without_head(columns: Iterable[Column]) -> list[Column]:
    """Leave out what a table's title says."""
    return [column for column in columns if column.key != "head"]


def _line(cell: Cell, names: Iterable[str]) -> list[object]:
    values = [cell.values.get(name, "") for name in names]
    meters = [getattr(cell, name) or "" for name in _METERS]
    return [*map(_no_formula, (getattr(cell, name) for name in _CELL)), *values, *meters]


def _no_formula(value: object) -> object:
    """Keep a spreadsheet from taking a text for a formula, or for several lines."""
    if not isinstance(value, str):
        return value
    text = _BLANKS.sub(" ", value).strip()
    return f"'{text}" if text.startswith(_FORMULA) else text


def _table(rows: Sequence[Row]) -> str:
    columns = _without_head(table_columns(rows))
    return _grid(
        [column.heading for column in columns],
        [[column.text(row) for column in columns] for row in rows],
        words=sum(column in IDENTITY for column in columns),
    )


def _backbones(results: Results) -> str:
    """The unpruned and pruned backbones, over their seeds."""
    groups: dict[tuple[str, str, str, str, int], list[Backbone]] = {}
    for one in results.backbones:
        key = (one.data, one.backbone, results.source_of(one), one.stage, one.pruned)
        groups.setdefault(key, []).append(one)
    several = any(source for _, _, source, _, _ in groups)
    lines = []
    for (data, name, source, stage, pruned), of_group in sorted(groups.items()):
        what = "baseline" if stage == "baseline" else f"{pruned} % pruned"
        lines.append(
            [
                *([source or "a run"] if several else []),
                data,
                name,
                what,
                _figure(of_group, "forward_macs", 1e-6),
                _figure(of_group, "parameters", 1e-6),
                _figure(of_group, "accuracy_before_finetuning", 100, 2),
                _figure(of_group, "accuracy", 100, 2),
            ]
        )
    heading = ["Source"] if several else []
    heading += ["Data set", "Backbone", "", "MACs of a forward pass (M)", "Parameters (M)"]
    heading += ["Accuracy before fine-tuning (%)", "Accuracy (%)"]
    return _grid(heading, lines, words=3 + several)


def _figure(
    backbones: Iterable[Backbone], value: str, scale: float, digits: int | None = None
) -> str:
    found = [scale * one.values[value] for one in backbones if value in one.values]
    return written(Spread.of(found), digits) if found else NOT_AVAILABLE


def _claims(claims: Sequence[Claim]) -> str:
    return _grid(
        ["Claim", "Verdict", "Evidence"],
        [[claim.statement, claim.verdict, claim.evidence] for claim in claims],
        words=3,
        strong=1,
    )


def _grid(
    heading: Sequence[str], lines: Iterable[Sequence[str]], words: int, strong: int | None = None
) -> str:
    """Write a table whose first columns are words, and the others figures.

    Args:
        heading: of the columns.
        lines: of the table.
        words: how many columns are words.
        strong: which column is in bold type.
    """
    rule = ["---" if place < words else "--:" for place in range(len(heading))]
    cells = [
        [f"**{escaped(cell)}**" if place == strong else escaped(cell) for place, cell in line]
        for line in map(enumerate, lines)
    ]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in ([escaped(one) for one in heading], rule, *cells)
    )


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {_line_of(item)}" for item in items)


#: What means something in Markdown wherever it stands; "_" does not within a word.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
#: What makes something of a line that begins with it: a heading, a list, a rule.
_LEADING = re.compile(r"([#+=-])|(\d+)([.)])")
_BLANKS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")


def escaped(text: str) -> str:
    """Give a text as Markdown that shows it as it is, in one line: a name may hold anything."""
    text = html.escape(_BLANKS.sub(" ", text).strip(), quote=False)
    return _MARKUP.sub(r"\\\g<0>", text)


def _line_of(text: str) -> str:
    """As `escaped`, where a line, a heading or an item of a list begins with it."""
    text = escaped(text)
    leading = _LEADING.match(text)
    return text if leading is None else f"{leading[2] or ''}\\{text[len(leading[2] or '') :]}"
