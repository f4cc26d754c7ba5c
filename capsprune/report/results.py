"""What runs came to, as the tables, figures and claims of a report take it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Item = TypeVar("Item")
Trunk = Literal["frozen", "finetuned"]
Head = Literal["capsules", "linear"]
#: In the order of tables and legends.
TRUNKS: tuple[Trunk, ...] = ("finetuned", "frozen")
#: Those that are compared on distorted images.
COMPARED: tuple[Head, ...] = ("capsules", "linear")


@dataclass(frozen=True)
class Cell:
    """One trained network with its head: a run's `caps` or `linear` stage, and what belongs to it.

    A figure that was not measured is absent from `values`, never 0.
    """

    #: Name of the run.
    run: str
    data: str
    backbone: str
    #: Per cent of the backbone's FLOPs that were removed: as the sweep asked, or rounded.
    pruned: int
    trunk: Trunk
    head: Head
    seed: int
    #: `accuracy`, `images` (of the test), `training_flops`, `forward_macs`, `trunk_macs`,
    #: `parameters`, `file_bytes`, `epoch_seconds`, `peak_memory_mb`, `energy_joules`,
    #: `bottleneck_channels`, `primary_capsules`, `latency_ms_batch_1` and `_32` where its network
    #: was profiled, and what the analysis found: `bottleneck_entropy` and the like.
    values: Mapping[str, float]
    #: What measured memory and energy: "resident set", "NVML", "RAPL", or None.
    memory_meter: str | None
    energy_meter: str | None
    #: Epochs of its training: the rows of its checkpoint's metrics.jsonl.
    epochs: Sequence[Mapping[str, float]] = ()
    #: Name of the sweep that the run belongs to; empty for a run of its own.
    source: str = ""


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


@dataclass(frozen=True)
class Row:
    """A configuration over its seeds: one line of the table, one point of the figure."""

    data: str
    backbone: str
    pruned: int
    trunk: Trunk
    head: Head
    cells: Sequence[Cell]
    #: Which sweep, or run, where a report has several of the same configuration: what was trained
    #: differently is not averaged.
    source: str = ""

    def spread(self, value: str) -> Spread | None:
        """Give a figure over the seeds that have it, or None if none has."""
        found = [cell.values[value] for cell in self.cells if value in cell.values]
        return Spread.of(found) if found else None


@dataclass(frozen=True)
class Backbone:
    """A backbone with its own linear classifier: a run's `baseline` or `pruned` stage."""

    run: str
    data: str
    backbone: str
    #: As of a cell; 0 for a baseline.
    pruned: int
    stage: Literal["baseline", "pruned"]
    seed: int
    #: `accuracy`, `accuracy_before_finetuning`, `flops_ratio`, `forward_macs`, `parameters` and the
    #: like, as of a cell.
    values: Mapping[str, float]
    #: Epochs of its training.
    epochs: Sequence[Mapping[str, float]] = ()
    #: As of a row.
    source: str = ""


@dataclass(frozen=True)
class Search:
    """The candidates of one search: `pruned/candidates.jsonl`."""

    run: str
    data: str
    backbone: str
    pruned: int
    seed: int
    #: Each has `flops_ratio`, `score`, `loss`, `index`, `rung` as `Candidate.to_dict` writes them.
    candidates: Sequence[Mapping[str, Any]]
    #: Index of the one that was chosen.
    best: int | None
    #: As of a row.
    source: str = ""

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


@dataclass(frozen=True)
class Latency:
    """One network at one batch size in ONNX Runtime: a row of a profile's `measurements`."""

    #: What was measured, e.g. "mobilenet_v1, 50 % pruned, capsules".
    label: str
    backbone: str
    pruned: int
    head: Head
    batch: int
    provider: str
    latency_ms: float
    p25_ms: float
    p75_ms: float
    #: Part of the time spent in the routing, 0 to 1; None where it cannot be told.
    routing_share: float | None
    #: Whose class count and image size it has.
    data: str = ""
    #: "native", "portable", or None for a network without routing.
    routing_kernel: str | None = None
    #: The sweep or run that was profiled.
    source: str = ""


def grouped(items: Iterable[Item], by: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Sort items into lists by what `by` gives, in the order in which they first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups


#: The amount of a distortion at which an image stays as it is, where that is not 0.
_UNDISTORTED = {"scale": 1.0}


def accuracies_by_amount(
    records: Iterable[Mapping[str, Any]], distortion: str, head: Head
) -> dict[float, list[float]]:
    """Gather a head's accuracies under one distortion, those on undistorted images among them.

    Args:
        records: of the `robustness` of analyses, one or several seeds'.
        distortion: which.
        head: which.

    Returns:
        Accuracies, from 0 to 1, by amount; those that were not measured are left out.
    """
    found: dict[float, list[float]] = {}
    for record in records:
        if record["distortion"] in (distortion, "none") and record.get(head) is not None:
            amount = record["amount"]
            if record["distortion"] == "none":
                amount = _UNDISTORTED.get(distortion, 0.0)
            found.setdefault(amount, []).append(record[head])
    return found


@dataclass(frozen=True)
class Results:
    """Everything a report is made from."""

    title: str
    rows: Sequence[Row]
    #: What the heads were put on.
    backbones: Sequence[Backbone] = ()
    searches: Sequence[Search] = ()
    latencies: Sequence[Latency] = ()
    #: The `analysis` stage's summaries by run.
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Cells of a sweep, or stages of a run, that are not done, with the reason where it is known.
    missing: Mapping[str, str] = field(default_factory=dict)
    #: What is wrong with the runs and sweeps among them, and the files of runs, that are left out.
    damaged: Mapping[str, str] = field(default_factory=dict)
    #: What a reader must know of how it was measured, one sentence each.
    notes: Sequence[str] = ()

    def source_of(self, one: Row | Backbone | Search | Latency) -> str:
        """Name the source of one thing, where there are several of such on its data and backbone.

        Empty where there is one, or where it is a run of its own.
        """
        kinds: dict[type, Sequence[Row | Backbone | Search | Latency]] = {
            Row: self.rows,
            Backbone: self.backbones,
            Search: self.searches,
            Latency: self.latencies,
        }
        sources = {
            other.source
            for other in kinds[type(one)]
            if (other.data, other.backbone) == (one.data, one.backbone)
        }
        return one.source if len(sources) > 1 else ""

    def where(self, one: Row | Backbone | Search | Latency) -> str:
        """Say what one thing is about: backbone and data set, and `source_of` it.

        Those of which this is the same may be compared, and drawn on one line.
        """
        source = self.source_of(one)
        return f"{one.backbone} on {one.data}" + (f" ({source})" if source else "")
