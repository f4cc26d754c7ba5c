"""The report as Markdown, and its rows as CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from capsprune.report.columns import FURTHER, IDENTITY, PAPER, PRUNED_TO, Column, table_columns
from capsprune.report.judging import RULE, PaperClaim
from capsprune.report.results import Cell, Kind, Results, grouped, spread_of

if TYPE_CHECKING:
    from capsprune.report.charts import Figure

#: What a line of the CSV begins with, before a cell's `values` by name.
_CELL = (
    "source",
    "run",
    "data",
    "backbone",
    "pruned",
    "trunk",
    "head",
    "slim",
    "criterion",
    "seed",
)
_ROW = ("data", "backbone", "pruned", "trunk", "head", "slim", "source")
_METERS = ("memory_meter", "energy_meter")
_FORMULA = ("=", "+", "-", "@")
#: Of the tables, by the kind of their networks.
_TITLES: dict[Kind, str] = {
    "capsules": "Capsule networks, as in Table 1 of the paper",
    "slim": "Slim capsule networks: head and trunk pruned together",
    "linear": "Linear baselines: the same trunks without capsules",
}
#: Of backbones.
_OF_BACKBONES = (
    *(column for column in FURTHER if column.key in ("forward_macs", "parameters")),
    Column("before", "Accuracy before fine-tuning", "%", "accuracy_before_finetuning", 100, 2),
    *(column for column in PAPER if column.key == "accuracy"),
)
#: Title, headings, lines, and how many of the columns are words.
TextTable = tuple[str, list[str], list[list[str]], int]


def markdown(
    results: Results, claims: Sequence[PaperClaim], figures: Sequence[Figure], folder: str
) -> str:
    """Write the report.

    Args:
        results: what to report.
        claims: what they say of the paper's claims.
        figures: that were drawn.
        folder: where their pictures are, from the report.
    """
    # Markdown is escaped by these filters; HTML in it too.
    environment = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True)
    environment.loader = PackageLoader("capsprune.report", "assets")
    environment.filters |= {"inline": escaped, "line": _line_of}
    text = environment.get_template("report.md").render(
        title=results.title,
        tables=[*plain_tables(results, further=True), *_backbones(results)],
        rule=RULE,
        claims=[(claim.statement, claim.verdict, claim.evidence) for claim in claims],
        figures=figures,
        folder=folder,
        missing=results.missing,
        notes=results.notes,
    )
    return re.sub("\n{3,}", "\n\n", text).rstrip("\n") + "\n"


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
            **{name: getattr(row, name) for name in _ROW},
            "seeds": [cell.seed for cell in row.cells],
            "figures": {
                name: asdict(spread)
                for name in sorted({name for cell in row.cells for name in cell.values})
                if (spread := row.spread(name)) is not None
            },
        }
        for row in results.rows
    ]


def plain_tables(results: Results, further: bool = False) -> list[TextTable]:
    """Give the tables as text: of capsule networks, of slim ones, and of linear baselines.

    Args:
        results: what to report.
        further: have the columns too that Table 1 of the paper does not have.
    """
    found = []
    for kind, title in _TITLES.items():
        rows = results.rows_of(kind)
        # What a table's title says is left out.
        heads = len({row.head for row in rows}) > 1
        columns = [c for c in table_columns(rows, further=further) if heads or c.key != "head"]
        if rows:
            lines = [[column.text(row) for column in columns] for row in rows]
            words = sum(column in (*IDENTITY, *PRUNED_TO) for column in columns)
            found.append((title, [column.heading for column in columns], lines, words))
    return found


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


def _backbones(results: Results) -> list[TextTable]:
    """Return the table of the unpruned and pruned backbones, over their seeds."""
    groups = grouped(
        results.backbones, lambda b: (b.data, b.backbone, results.source_of(b), b.stage, b.pruned)
    )
    several = any(source for _, _, source, _, _ in groups)
    lines = [
        [
            *([source or "a run"] if several else []),
            *(data, name, "baseline" if stage == "baseline" else f"{pruned} % pruned"),
            *(column.write(spread_of(group, column.value)) for column in _OF_BACKBONES),
        ]
        for (data, name, source, stage, pruned), group in sorted(groups.items())
    ]
    words = [*(["Source"] if several else []), "Data set", "Backbone", ""]
    title = "Backbones with their own linear classifier"
    headings = [*words, *(column.heading for column in _OF_BACKBONES)]
    return [(title, headings, lines, len(words))] if lines else []


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
