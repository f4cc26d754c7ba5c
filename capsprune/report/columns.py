"""The columns of the report's tables, once for Markdown, CSV and HTML.

They begin with those of Table 1 of Renzulli and Grangetto (ICIP 2022), in its order and counted as
it counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from capsprune.report.results import Cell, Row, Spread

NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Column:
    """One column: how a row's figure is found, and how it is written.

    A column of words has `words` in place of `value`.
    """

    #: Unique among the columns; safe as an HTML id.
    key: str
    title: str
    #: Empty where the figure has none.
    unit: str = ""
    #: Which of a cell's `values` it shows.
    value: str = ""
    #: A value is multiplied by this to be in `unit`.
    scale: float = 1
    #: Digits behind the point; None for three digits in all, or as many as stand before the point.
    digits: int | None = 0
    words: Callable[[Row], str | int] | None = None

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def number(self, row: Row) -> float | None:
        """The figure to sort by: the mean over the seeds that have it, in the column's unit."""
        if self.words is not None:
            word = self.words(row)
            return float(word) if isinstance(word, int) else None
        found = row.spread(self.value)
        return None if found is None else found.mean * self.scale

    def text(self, row: Row) -> str:
        """What stands in the table: "78.20 ± 0.31", without the unit, or "not available".

        The second number is the standard deviation over the seeds. It is left out where it is 0 to
        the last digit shown, as for sizes that all seeds share.
        """
        if self.words is not None:
            return str(self.words(row))
        return self.write(row.spread(self.value))

    def write(self, spread: Spread | None) -> str:
        """Write a figure in the column's unit, as `text` does."""
        if spread is None:
            return NOT_AVAILABLE
        return written(spread.times(self.scale), self.digits)


def written(spread: Spread, digits: int | None = None) -> str:
    """Write a figure over seeds: mean ± standard deviation.

    Args:
        spread: the figure.
        digits: behind the point; None for three digits of the mean, or as many as stand before its
            point.
    """
    if digits is None:
        size = math.floor(math.log10(abs(spread.mean))) if spread.mean else 0
        digits = max(0, 2 - size)
    mean = f"{spread.mean:.{digits}f}"
    if spread.deviation is None or float(f"{spread.deviation:.{digits}f}") == 0:
        return mean
    return f"{mean} ± {spread.deviation:.{digits}f}"


#: Which configuration a row is.
IDENTITY = (
    Column("source", "Source", words=lambda row: row.source or "a run"),
    Column("data", "Data set", words=lambda row: row.data),
    Column("backbone", "Backbone", words=lambda row: row.backbone),
    Column("trunk", "Trunk", words=lambda row: row.trunk),
    Column("head", "Head", words=lambda row: row.head),
)

#: What a slim network was pruned to, and by which criterion.
PRUNED_TO = (
    Column("slim", "Pruned to", words=lambda row: row.slim),
    Column("criterion", "Criterion", words=lambda row: row.criterion or NOT_AVAILABLE),
)

_MEMORY = Column("memory", "Memory while training", "MB", "peak_memory_mb")
_ENERGY = Column("energy", "Energy of training", "J", "energy_joules", digits=None)

#: Table 1 of the paper. Training FLOPs are the multiply-accumulates of the convolutions of trunk
#: and primary capsules for one image, times 3 where the trunk is finetuned and 2 where it is not.
PAPER = (
    Column("pruned", "Backbone pruned FLOPs", "%", words=lambda row: row.pruned),
    Column("bottleneck", "Bottleneck size S", value="bottleneck_channels"),
    Column("capsules", "Primary caps I", value="primary_capsules"),
    Column("training_flops", "Total training FLOPs", "B", "training_flops", 1e-9, None),
    _MEMORY,
    Column("epoch", "Training time of an epoch", "s", "epoch_seconds", digits=None),
    Column("accuracy", "Accuracy", "%", "accuracy", 100, 2),
)

#: What the paper does not have.
FURTHER = (
    Column("forward_macs", "MACs of a forward pass", "M", "forward_macs", 1e-6, None),
    Column("parameters", "Parameters", "M", "parameters", 1e-6, None),
    Column("file", "ONNX file", "MB", "file_bytes", 1e-6, None),
    Column("latency_1", "Latency, batch 1", "ms", "latency_ms_batch_1", digits=None),
    Column("latency_32", "Latency, batch 32", "ms", "latency_ms_batch_32", digits=None),
    _ENERGY,
    Column("seeds", "Seeds", words=lambda row: len({cell.seed for cell in row.cells})),
)


#: Of slim networks: what was left of the head, and what it came to.
SLIM = (
    PAPER[0],
    Column("capsules_whole", "Primary caps before", value="primary_capsules_whole"),
    Column("capsules", "Primary caps kept", value="primary_capsules"),
    Column("rank", "Rank of PrimaryCaps", value="primary_rank"),
    Column("iterations", "Routing iterations", value="iterations"),
    Column("accuracy_whole", "Accuracy of the whole network", "%", "accuracy_whole", 100, 2),
    Column("before", "Accuracy before fine-tuning", "%", "accuracy_before_finetuning", 100, 2),
    PAPER[-1],
    Column("trunk_parameters", "Parameters of the trunk", "M", "trunk_parameters", 1e-6, None),
    Column("head_parameters", "Parameters of the head", "M", "head_parameters", 1e-6, None),
    *(column for column in FURTHER if column.key != _ENERGY.key),
)


def table_columns(rows: Sequence[Row], *, further: bool = True) -> list[Column]:
    """Give the columns for some rows, their meters named in the headings.

    Those of the paper are all there, empty or not, but for the sizes of a capsule head where no row
    has one; of the others, those that a row has a figure for, and energy, whose absence is told.
    A table of slim networks has columns of its own.

    Args:
        rows: the table's.
        further: have those that the paper does not have.
    """
    alike = {(row.data, row.backbone) for row in rows}
    several = len({(row.data, row.backbone, row.source) for row in rows}) > len(alike)
    kinds = {row.kind for row in rows}
    chosen = [column for column in IDENTITY if several or column.key != "source"]
    if kinds == {"slim"}:
        chosen += PRUNED_TO
        chosen += [column for column in SLIM if further or column not in FURTHER]
    else:
        whole = kinds != {"linear"}
        chosen += [c for c in PAPER if whole or c.key not in ("bottleneck", "capsules")]
        chosen += FURTHER if further else ()
    optional = {column.key for column in (*SLIM[1:], *FURTHER)} - {c.key for c in (*PAPER, _ENERGY)}
    chosen = [
        column
        for column in chosen
        if column.key not in optional
        or column.words is not None
        or any(column.number(row) is not None for row in rows)
    ]
    cells = [cell for row in rows for cell in row.cells]
    return [_metered(column, cells) for column in chosen]


def _metered(column: Column, cells: Iterable[Cell]) -> Column:
    """Name in the unit what measured memory or energy: they cannot be told apart otherwise."""
    if column.key not in (_MEMORY.key, _ENERGY.key):
        return column
    meters = {
        cell.memory_meter if column.key == _MEMORY.key else cell.energy_meter
        for cell in cells
        if column.value in cell.values
    }
    named = " or ".join(sorted(meter for meter in meters if meter))
    return replace(column, unit=f"{column.unit}, {named}") if named else column
