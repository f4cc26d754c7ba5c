"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from capsprune.files import write_text
from capsprune.report.charts import COLOURS, Figure, library, theme
from capsprune.report.columns import Column, table_columns
from capsprune.report.judging import RULE, PaperClaim, Verdict
from capsprune.report.results import Kind, Results, Row

#: What stands before a verdict, so that colour does not tell it alone.
_SIGNS: dict[Verdict, str] = {
    "holds": "✓",
    "holds in part": "~",
    "does not hold": "✗",
    "undecided": "≈",
    "cannot be told": "?",
}
#: Name, title, kind of its networks, and what it says.
_TABLES: tuple[tuple[str, str, Kind, str], ...] = (
    ("networks", "Networks with capsules", "capsules",
     "Figures are means ± standard deviations over seeds. Press a heading to sort."),
    ("slim-networks", "Slim capsule networks: head and trunk pruned together", "slim",
     "Each was made from the network with capsules of the same backbone, trunk and seed."),
    ("baselines", "Linear baselines on the same pruned backbones", "linear",
     "Trained like the networks with capsules, with a linear classifier instead."),
)  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """A table of networks."""

    name: str
    title: str
    caption: str
    rows: Sequence[Row]

    @property
    def columns(self) -> list[Column]:
        """All but what its first column says (backbone and trunk), and its title where it does."""
        alike = len({row.data for row in self.rows}) == 1
        left_out = {"backbone", "trunk"} | ({"data"} if alike else set())
        left_out |= {"head"} if len({row.head for row in self.rows}) == 1 else set()
        return [column for column in table_columns(self.rows) if column.key not in left_out]

    def is_words(self, column: Column) -> bool:
        """Tell whether a column has no figures to sort by."""
        return column.words is not None and all(column.number(row) is None for row in self.rows)


def write_page(
    results: Results, path: Path, claims: Sequence[PaperClaim], figures: Sequence[Figure]
) -> None:
    """Write a report as one HTML file; it loads nothing, so it works offline.

    Args:
        results: what there is to report.
        path: of the file, replaced if it is there.
        claims: what the results say of the paper's.
        figures: what to draw.

    Raises:
        OSError: if it cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.loader = PackageLoader("capsprune.report", "assets")
    environment.filters["prose"] = _prose
    tally = Counter(claim.verdict for claim in claims)
    tables = _tables(results)
    charts = {figure.name: figure.spec for figure in figures}
    themes = {mode: theme(mode) for mode in ("light", "dark")}
    text = environment.get_template("page.html").render(
        title=results.title,
        summary=_summary(results),
        colours=COLOURS,
        style=Markup(_asset("page.css")),
        contents=[
            name
            for name, content in (
                *(("claims", claims), *((table.name, table.rows) for table in tables)),
                *((figure.name, figure.panels) for figure in figures),
                *(("notes", results.notes), ("missing", results.missing)),
            )
            if content
        ],
        claims=claims,
        told=[claim for claim in claims if claim.verdict != "cannot be told"],
        untold=[claim for claim in claims if claim.verdict == "cannot be told"],
        tally=", ".join(f"{verdict} {tally[verdict]}" for verdict in _SIGNS if tally[verdict]),
        signs=_SIGNS,
        rule=RULE,
        tables=tables,
        figures=figures,
        results=results,
        charts=_script_safe(json.dumps({"figures": charts, "themes": themes}, allow_nan=False)),
        library=Markup(library().replace("</script", "<\\/script")),
        script=Markup(_asset("page.js")),
    )
    write_text(path, text)


def _asset(name: str) -> str:
    return resources.files("capsprune.report").joinpath("assets", name).read_text(encoding="utf-8")


def _script_safe(text: str) -> Markup:
    """Keep a text from ending, or changing the reading of, the script element it stands in."""
    return Markup(text.replace("<", "\\u003c"))


def _prose(text: str) -> Markup:
    """Escape a text, and keep its percentages on one line."""
    return Markup(str(escape(text)).replace(" %", "\N{NO-BREAK SPACE}%"))


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


def _tables(results: Results) -> list[_Table]:
    """Return the tables of capsule networks, slim ones and linear baselines, if they have rows."""
    found = []
    for name, title, kind, caption in _TABLES:
        chosen = results.rows_of(kind)
        data = {row.data for row in chosen}
        about = f"Data set: {data.pop()}. {caption}" if len(data) == 1 else caption
        found.append(_Table(name, title, about, chosen))
    return [table for table in found if table.rows]
