"""What runs came to, as the tables, figures and claims of a report take it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Literal, TypeVar

Item = TypeVar("Item")
Trunk = Literal["frozen", "finetuned"]
#: Of networks with a head: `slim` are the pruned capsule networks.
Kind = Literal["capsules", "slim", "linear"]
#: In the order of tables and legends.
TRUNKS: tuple[Trunk, ...] = ("finetuned", "frozen")
#: Those that are compared on distorted images.
COMPARED = ("capsules", "linear")


@dataclass(frozen=True, kw_only=True)
class Result:
    """Something on one backbone and one data set."""

    data: str
    backbone: str
    #: Per cent of the backbone's FLOPs that were removed: as the sweep asked, or rounded.
    pruned: int
    #: Size that the capsule network was pruned to, in a word; empty where it was not.
    slim: str = ""
    #: Name of the sweep, or of the run where a report has several of the same configuration: what
    #: was trained differently is not averaged. Empty for the runs of their own that may be.
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class OfRun(Result):
    """A result of one run, which has one seed."""

    #: Name of the run.
    run: str
    seed: int
    #: A figure that was not measured is absent, never 0.
    values: Mapping[str, float] = field(default_factory=dict)
    #: Epochs of its training: the rows of its checkpoint's metrics.jsonl.
    epochs: Sequence[Mapping[str, float]] = ()

    @property
    def configuration(self) -> tuple[Any, ...]:
        """What it has in common with those that may be averaged with it; in the order of tables."""
        told = ("head", "data", "backbone", "source", "trunk", "stage", "pruned", "slim")
        return tuple(getattr(self, name, "") for name in told)


@dataclass(frozen=True, kw_only=True)
class Headed(Result):
    """What is told of a network with a head."""

    trunk: Trunk
    #: "linear", "capsules", or the name of another head.
    head: str
    #: What the capsules were ranked by before they were removed, and which sizes were asked for.
    criterion: str = ""
    asked: str = ""

    @property
    def kind(self) -> Kind:
        """Which table it is in."""
        return "linear" if self.head == "linear" else "slim" if self.slim else "capsules"

    @property
    def label(self) -> str:
        """What it is, e.g. "mobilenet_v1, 50 % pruned, capsules"."""
        return _label(self, self.head)


@dataclass(frozen=True, kw_only=True)
class Cell(OfRun, Headed):
    """One trained network with its head: a run's `caps`, `linear` or `slim` stage, and its figures.

    Its `values`: `accuracy`, `images` (of the test), `training_flops`, `forward_macs`,
    `trunk_macs`, `parameters`, `file_bytes`, `epoch_seconds`, `peak_memory_mb`, `energy_joules`,
    `bottleneck_channels`, `primary_capsules`, `latency_ms_batch_1` and `_32` where its network was
    profiled, and what the analysis found: `bottleneck_entropy` and the like; `trunk_bytes` and the
    like of its layers. Of a slim one also `accuracy_before_finetuning`, and `accuracy_whole` and
    `primary_capsules_whole` of the network that it was made from.
    """

    #: What measured memory and energy: "resident set", "NVML", "RAPL", or None.
    memory_meter: str | None = None
    energy_meter: str | None = None
    #: The summary of the `analysis` stage, where it is of this network.
    analysis: Mapping[str, Any] | None = None

    @property
    def network(self) -> tuple[str, Kind, str]:
        """What tells it from all others."""
        return self.run, self.kind, self.slim


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    mean: float
    #: Sample standard deviation; None with one seed.
    deviation: float | None
    count: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Return the spread of a figure's values, of which there is one at least."""
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
        return cls(statistics.fmean(numbers), deviation, len(numbers))

    def times(self, factor: float) -> Spread:
        """Return the spread in another unit."""
        deviation = None if self.deviation is None else self.deviation * factor
        return Spread(self.mean * factor, deviation, self.count)


def spread_of(results: Iterable[OfRun], value: str) -> Spread | None:
    """Give a figure over the results that have it, or None if none has."""
    found = [result.values[value] for result in results if value in result.values]
    return Spread.of(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Row(Headed):
    """A configuration over its seeds: one line of the table, one point of the figure."""

    cells: Sequence[Cell]

    def spread(self, value: str) -> Spread | None:
        """Give a figure over the seeds that have it, or None if none has."""
        return spread_of(self.cells, value)


@dataclass(frozen=True, kw_only=True)
class BackboneResult(OfRun):
    """A backbone with its own linear classifier: a run's `baseline` or `pruned` stage.

    Its `values`: `accuracy`, `accuracy_before_finetuning`, `flops_ratio`, `forward_macs`,
    `parameters` and the like, as of a cell.
    """

    stage: Literal["baseline", "pruned"]


@dataclass(frozen=True, kw_only=True)
class Search(OfRun):
    """The candidates of one search: `candidates.jsonl` of the stage `pruned` or `slim`."""

    #: Each has `flops_ratio`, `score`, `loss`, `index`, `rung` as `Candidate.to_dict` writes them.
    candidates: Sequence[Mapping[str, Any]]
    #: Index of the one that was chosen.
    best: int | None

    @property
    def scored(self) -> list[Mapping[str, Any]]:
        """The candidates that have a score, each once.

        One that came further was scored again, on more images: that score counts.
        """
        last: dict[int, Mapping[str, Any]] = {}
        for one in sorted(self.candidates, key=lambda one: one.get("rung", 0)):
            if "score" in one and "flops_ratio" in one:
                last[one["index"]] = one
        return list(last.values())


@dataclass(frozen=True, kw_only=True)
class Latency(Result):
    """One network at one batch size in ONNX Runtime: a row of a profile's `measurements`.

    Its data set is the one whose class count and image size it has, its source what was profiled.
    """

    head: str
    batch: int
    provider: str
    latency_ms: float
    latency_ms_p25: float
    latency_ms_p75: float
    #: Part of the time spent in the routing, 0 to 1; None where it cannot be told.
    routing_share: float | None
    #: "native", "portable", or None for a network without routing.
    routing_kernel: str | None = None

    @property
    def label(self) -> str:
        """What was measured, e.g. "mobilenet_v1, 50 % pruned, capsules"."""
        return _label(self, self.head)


def _label(result: Result, head: str) -> str:
    size = f" ({result.slim})" if result.slim else ""
    return f"{result.backbone}, {result.pruned} % pruned, {head}{size}"


def grouped(items: Iterable[Item], by: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Sort items into lists by what `by` gives, in the order in which they first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups


#: What a row has of its cells.
_IDENTITY = [field.name for field in fields(Row) if field.name != "cells"]
#: Figures that runs share where they were trained alike.
_TRAINED = ("epochs", "image_size", "classes", "images")
Told = TypeVar("Told", bound=OfRun)


def rows_of(cells: Iterable[Cell]) -> tuple[Row, ...]:
    """Put cells that differ by their seeds alone together, capsules before linear heads.

    Those of different sweeps stay apart. Runs of their own are together where they have different
    seeds and were trained as long.
    """
    groups = grouped(told_apart(cells), lambda cell: cell.configuration)
    return tuple(
        Row(
            **{name: getattr(group[0], name) for name in _IDENTITY},
            cells=tuple(sorted(group, key=lambda cell: cell.seed)),
        )
        for _, group in sorted(groups.items(), key=lambda item: (item[0][:-1], _size(item[1][0])))
    )


def _size(cell: Cell) -> tuple[Any, ...]:
    """Return by what slim networks are put in order: most capsules first, then most rank."""
    rank, capsules = (cell.values.get(size, 0) for size in ("primary_rank", "primary_capsules"))
    return (rank > 0, -capsules, -rank, cell.slim) if cell.slim else ()


def told_apart(found: Iterable[Told]) -> tuple[Told, ...]:
    """Make each run of its own a source where such runs are not the seeds of one configuration.

    They are where their seeds differ, and they were trained alike.
    """
    found = list(found)
    groups = grouped((item for item in found if not item.source), lambda item: item.configuration)
    alike = {
        key: len({item.seed for item in group}) == len(group)
        and len({tuple(map(item.values.get, _TRAINED)) for item in group}) == 1
        for key, group in groups.items()
    }
    return tuple(
        item if item.source or alike[item.configuration] else replace(item, source=item.run)
        for item in found
    )


@dataclass(frozen=True)
class Results:
    """Everything a report is made from."""

    title: str
    rows: Sequence[Row]
    #: What the heads were put on.
    backbones: Sequence[BackboneResult] = ()
    searches: Sequence[Search] = ()
    latencies: Sequence[Latency] = ()
    #: Cells of a sweep, or stages of a run, that are not done, with the reason where it is known.
    missing: Mapping[str, str] = field(default_factory=dict)
    #: What is wrong with the runs and sweeps among them, and the files of runs, that are left out.
    damaged: Mapping[str, str] = field(default_factory=dict)
    #: What a reader must know of how it was measured, one sentence each.
    notes: Sequence[str] = ()

    def source_of(self, result: Result) -> str:
        """Name the source of a result, where there are several of its kind on data and backbone.

        Empty where there is one, or where it is a run of its own.
        """
        everything = chain(self.rows, self.backbones, self.searches, self.latencies)
        about = (type(result), result.data, result.backbone)
        sources = {r.source for r in everything if (type(r), r.data, r.backbone) == about}
        return result.source if len(sources) > 1 else ""

    def rows_of(self, *kinds: Kind) -> list[Row]:
        """Return the rows of some kinds, in their order."""
        return [row for row in self.rows if row.kind in kinds]

    def where(self, result: Result) -> str:
        """Say what a result is about: backbone and data set, and `source_of` it.

        Those of which this is the same may be compared, and drawn on one line.
        """
        source = self.source_of(result)
        return f"{result.backbone} on {result.data}" + (f" ({source})" if source else "")
