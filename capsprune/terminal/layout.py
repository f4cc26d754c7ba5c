"""Figures and tables as the terminal shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

NOT_AVAILABLE = "not available"


def percent(value: float | None) -> str:
    """Write a fraction as a percentage."""
    return f"{text} %" if (text := _digits(value, 2, 100)) else NOT_AVAILABLE


def count(value: float | None) -> str:
    """Write a large number with three digits and a unit: 4.09 G, 25.6 M."""
    if value is None:
        return NOT_AVAILABLE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def number(value: float | None, digits: int = 2) -> str:
    """Write a measurement, or that there is none."""
    return _digits(value, digits) or NOT_AVAILABLE


def _digits(value: float | None, digits: int, scale: float = 1) -> str:
    """Write a number; empty if none was measured, or what was computed is none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{scale * value:.{digits}f}"


def with_unit(value: float | None, unit: str, digits: int) -> str:
    """Write a measurement with its unit, or that there is none."""
    return NOT_AVAILABLE if value is None else f"{number(value, digits)} {unit}"


def new_table(title: str) -> Table:
    """Return an empty table."""
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold")


def show_pairs(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of one or two values."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    for _ in rows[0][:-1]:
        table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    show_table(table)


def show_table(table: Table) -> None:
    """Print a table, in full width where the output is no terminal."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # A pipe or a file has no width of its own, and a table cut short is of no use there.
        console = Console(highlight=False, markup=False, width=200)
    console.print(table)
