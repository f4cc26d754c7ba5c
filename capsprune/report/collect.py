"""Reads runs and sweeps into what a report is made from. Nothing is computed anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from capsprune.bounds import cut, cut_apart
from capsprune.errors import RunError
from capsprune.records import DamagedRun
from capsprune.report.notes import notes_on
from capsprune.report.reading import (
    Candidate,
    DamagedFileError,
    Described,
    Epoch,
    SweepProfile,
    read_rows,
)
from capsprune.report.results import (
    BackboneResult,
    Cell,
    Latency,
    OfRun,
    Results,
    Row,
    Search,
    grouped,
)
from capsprune.run import Run, read_run
from capsprune.stages import STAGES
from capsprune.summaries import (
    AnalysisSummary,
    ExportSummary,
    HeadSummary,
    MeasurementSummary,
    NetworkSummary,
    ProfileSummary,
)
from capsprune.sweep import DamagedSweep, is_sweep, read_sweep

#: Figures of a stage's summary that a cell or a backbone has too.
_FIGURES = (
    *("accuracy", "accuracy_before_finetuning", "loss", "images", "epochs", "epoch_seconds"),
    *("threads", "peak_memory_mb", "energy_joules", "bottleneck_channels", "primary_capsules"),
    *("trunk_macs", "head_macs", "forward_macs", "training_flops", "parameters", "flops_ratio"),
)

#: What `profile` measures in one run.
_RUN_VARIANTS = ("unpruned, linear", "unpruned, capsules", "pruned, capsules")
_BACKBONES = ("baseline", "pruned")
#: What the heads of stages are called in tables and legends.
_HEADS = {"caps": "capsules", "linear": "linear"}
#: What a report takes from a measurement.
_MEASURED = {field.name for field in fields(Latency)} & MeasurementSummary.model_fields.keys()
#: Stages that each cell of a sweep has.
_CELL = ("caps", "linear", "onnx", "analysis")
#: What a row has of its cells.
_IDENTITY = [field.name for field in fields(Row) if field.name != "cells"]
#: Figures that runs share where they were trained alike.
_TRAINED = ("epochs", "image_size", "classes", "images")
#: Characters of a name that a table or a legend has room for.
_LONGEST = 80
_OfRun = TypeVar("_OfRun", bound=OfRun)


def collect(sources: Sequence[tuple[Path, str]]) -> Results:
    """Read runs and sweeps.

    Args:
        sources: the folder that holds the runs, and the name of a run or a sweep in it, of each.

    Raises:
        RunError: if one of them is not there or has nothing to report yet, or all are damaged.
        SweepError: if all of them are damaged.
    """
    sources = list(dict.fromkeys(sources))
    reader = _Reader()
    for runs_dir, name in sources:
        try:
            if is_sweep(runs_dir / name):
                reader.read_sweep(runs_dir, name, f"{name}/" if len(sources) > 1 else "")
            else:
                reader.read_single(runs_dir, name)
        except (DamagedRun, DamagedSweep) as error:
            reader.damaged[name] = str(error)
            if all(source in reader.damaged for _, source in sources):
                raise
    for name, reason in reader.damaged.items():
        reader.miss(name, reason.rstrip("."))
    rows = _rows(reader.cells)
    return Results(
        title=", ".join(name for _, name in sources),
        rows=rows,
        backbones=_told_apart(reader.backbones.values()),
        searches=_told_apart(reader.searches.values()),
        latencies=tuple(reader.latencies),
        analyses=reader.analyses,
        missing=reader.missing,
        damaged={**reader.damaged, **reader.files},
        notes=notes_on(rows, reader.latencies, reader.weights, reader.parts),
    )


class _Reader:
    """Reads runs and sweeps one after another."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        #: By the id of what the stage made: the runs of a sweep share their backbones.
        self.backbones: dict[str, BackboneResult] = {}
        self.searches: dict[str, Search] = {}
        self.latencies: list[Latency] = []
        self.analyses: dict[str, Mapping[str, Any]] = {}
        self.missing: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        #: What the training started from, and the part of the images it had.
        self.weights: set[str] = set()
        self.parts: set[float] = set()
        #: What is wrong with files that were left out, by their paths.
        self.files: dict[str, str] = {}

    def miss(self, name: str, reason: str) -> None:
        """Note why something of a run is missing."""
        before = self.missing.get(name)
        reason = cut(reason, 500)
        self.missing[name] = reason if before is None else f"{before}; {reason}"

    def read_single(self, runs_dir: Path, name: str) -> None:
        """Read one run.

        Raises:
            RunError: if it is not there, or has nothing yet.
        """
        run = read_run(runs_dir, name)
        usable = run.stages.keys() - run.unusable("report")
        if not usable:
            flag = "" if name == "default" else f" --run {name}"
            raise RunError(
                f"Run '{name}' has nothing to report yet; first run 'capsprune prune{flag} --model "
                "MODEL', which trains and prunes."
            )
        self._read_run(run, name)
        if "profile" in usable and "caps" in run.stages:
            self._read_run_profile(run, name)
        absent = [STAGES[stage] for stage in STAGES if stage not in run.stages]
        if absent:
            told = (f"{stage.name} (capsprune {stage.command.words})" for stage in absent)
            self.miss(name, f"not done: {', '.join(told)}")

    def read_sweep(self, runs_dir: Path, name: str, prefix: str) -> None:
        """Read all runs of a sweep.

        Args:
            runs_dir: the folder that it is in.
            name: of the sweep.
            prefix: what the report puts before the names of its runs.

        Raises:
            RunError: if none of them has anything yet.
        """
        sweep = read_sweep(runs_dir, name)
        runs, damaged = sweep.read_runs()
        self.damaged |= {prefix + run: reason for run, reason in damaged.items()}
        cells = {cell.name for cell in sweep.cells}
        before = len(self.backbones) + len(self.cells)
        for cell in sweep.cells:
            run = runs.get(cell.name)
            if run is not None:
                self._read_run(run, prefix + cell.name, cell.pruned, name)
            absent = [stage for stage in _CELL if run is None or stage not in run.stages]
            if cell.name in damaged:
                continue  # named with the others
            if reason := sweep.failed.get(cell.name):
                self.miss(prefix + cell.name, f"failed: {reason.rstrip('.')}")
            elif run is None:
                self.miss(prefix + cell.name, "not begun")
            elif absent:
                self.miss(prefix + cell.name, f"not done: {', '.join(absent)}")
        # What the cells share is done in runs of its own, and may have failed there.
        for shared, reason in sweep.failed.items():
            if shared not in cells and shared not in damaged:
                self.miss(prefix + shared, f"failed: {reason.rstrip('.')}")
        if len(self.backbones) + len(self.cells) == before:
            for run_name, run in runs.items():
                if run_name not in cells:
                    self._read_run(run, prefix + run_name, None, name)
        if len(self.backbones) + len(self.cells) == before:
            raise RunError(
                f"Sweep '{name}' has nothing to report yet; run 'capsprune sweep' with its recipe "
                "again, which goes on from where it stopped."
            )
        self._read_sweep_profile(sweep.profile_path, runs, prefix)

    def _read_run(self, run: Run, name: str, asked: int | None = None, source: str = "") -> None:
        """Read the stages of a run.

        Args:
            run: which.
            name: what the report calls it.
            asked: per cent of the FLOPs that were to be removed; None for what the run says.
            source: the sweep that it belongs to.
        """
        unusable = run.unusable("report")
        for reason in unusable.values():
            self.miss(name, f"left out: {reason}")
        usable = run.stages.keys() - unusable
        pruned = _pruned_of(run) if asked is None else asked
        own = {"run": name, "seed": run.seed, "source": source}
        for stage in _BACKBONES:
            if stage in usable:
                level = pruned if stage == "pruned" else 0
                self._read_backbone(run, stage, own | {"pruned": level})
        if "baseline" in usable:
            record = run.stages["baseline"]
            weights = record.summary_as(NetworkSummary).weights
            self.weights.add(cut_apart(weights or "unknown", _LONGEST))
            self.parts.add(record.options.get("part") or 1.0)
        for stage, head in _HEADS.items():
            if stage in usable:
                self._read_cell(run, stage, own | {"head": head, "pruned": pruned})
        cells = {(name, "capsules")}
        if "analysis" in usable:
            analysis = run.stages["analysis"].summary_as(AnalysisSummary)
            self.analyses[name] = analysis.to_dict()
            self._add(cells, analysis.figures)
        if "onnx" in usable:
            self._add(cells, {"file_bytes": run.stages["onnx"].summary_as(ExportSummary).bytes})

    def _read_backbone(self, run: Run, stage: Any, own: Mapping[str, Any]) -> None:
        record, folder = run.stages[stage], run.path(stage)
        if record.id in self.backbones:
            return
        summary = record.summary_as(NetworkSummary)
        shared = {**own, **_about(summary)}
        epochs = self._read(folder / "metrics.jsonl", Epoch, own["run"])
        values = _figures(summary)
        self.backbones[record.id] = BackboneResult(
            **shared, stage=stage, values=values, epochs=epochs
        )
        candidates = self._read(folder / "candidates.jsonl", Candidate, own["run"])
        if candidates:
            best = summary.best_candidate
            self.searches[record.id] = Search(**shared, candidates=candidates, best=best)

    def _read_cell(self, run: Run, stage: str, own: Mapping[str, Any]) -> None:
        summary = run.stages[stage].summary_as(HeadSummary)
        values, folder = _figures(summary), run.path(stage)
        for described in self._read(folder / "architecture.json", Described, own["run"], True):
            data = described["data"]
            values |= {"image_size": data["image_size"], "classes": len(data["class_names"])}
        self.cells.append(
            Cell(
                **own,
                **_about(summary),
                trunk="frozen" if summary.frozen else "finetuned",
                values=values,
                memory_meter=summary.memory_meter,
                energy_meter=summary.energy_meter,
                epochs=self._read(folder / "metrics.jsonl", Epoch, own["run"]),
            )
        )

    def _read_run_profile(self, run: Run, name: str) -> None:
        """Read the latencies of a run's own three networks."""
        profile = run.stages["profile"].summary_as(ProfileSummary)
        caps = run.stages["caps"].summary_as(HeadSummary)
        pruned = _pruned_of(run)
        for label in _RUN_VARIANTS:
            # A run that removed nothing has its capsules under both names: the trained ones.
            if label not in profile.variants or (pruned == 0 and label == "unpruned, capsules"):
                continue
            state, head = label.split(", ")
            level = pruned if state == "pruned" else 0
            cells = {(name, head)} if level == pruned else set()
            shared = {**_about(caps), "pruned": level, "head": head, "source": name}
            size = profile.variants[label].file_bytes
            self._add_latencies(profile.measurements, label, shared, size, cells)

    def _read_sweep_profile(self, path: Path, runs: Mapping[str, Run], prefix: str) -> None:
        """Read the latencies of a sweep's networks.

        Each stands for all cells with the same head on the same pruned backbone: they differ by
        their weights alone.
        """
        source = path.parent.name
        if not path.exists():
            self.miss(source, "its networks were not profiled")
        profiles = self._read(path, SweepProfile, source, True)
        for label, variant in profiles[0]["variants"].items() if profiles else ():
            run = runs.get(variant["run"])
            if run is None or "pruned" not in run.stages:
                continue
            backbone = run.stages["pruned"]
            same = {
                (prefix + other.name, variant["head"])
                for other in runs.values()
                if "pruned" in other.stages and other.stages["pruned"].id == backbone.id
            }
            shared = {key: variant[key] for key in ("backbone", "pruned", "head")}
            data = _about(backbone.summary_as(NetworkSummary))["data"]
            shared |= {"data": data, "source": source}
            size = variant["file_bytes"]
            self._add_latencies(profiles[0]["measurements"], label, shared, size, same)

    def _add_latencies(
        self,
        measurements: Iterable[MeasurementSummary],
        label: str,
        shared: Mapping[str, Any],
        file_bytes: int,
        cells: Collection[tuple[str, str]],
    ) -> None:
        """Read the latencies of a profile's variant, which are those of some cells too."""
        measured = [
            Latency(**shared, **row.model_dump(include=_MEASURED))
            for row in measurements
            if row.variant == label
        ]
        self.latencies += measured
        by_batch = {f"latency_ms_batch_{row.batch}": row.latency_ms for row in measured}
        self._add(cells, by_batch | {"file_bytes": file_bytes})

    def _add(self, cells: Collection[tuple[str, str]], values: Mapping[str, float]) -> None:
        """Add figures to cells, of which are given run and head; what they have already stays."""
        self.cells = [
            replace(cell, values={**values, **cell.values})
            if (cell.run, cell.head) in cells
            else cell
            for cell in self.cells
        ]

    def _read(self, path: Path, kind: Any, run: str, whole: bool = False) -> tuple[Any, ...]:
        """Read a file, or note that it is damaged; then there is nothing in it."""
        try:
            return read_rows(path, kind, whole=whole)
        except DamagedFileError as error:
            self.files[str(path)] = error.reason
            self.miss(run, str(error))
            return ()


def _about(summary: NetworkSummary) -> dict[str, Any]:
    found = {"data": summary.data, "backbone": summary.model}
    return {key: cut_apart(name, _LONGEST) for key, name in found.items()}


def _figures(summary: NetworkSummary) -> dict[str, float]:
    return {key: found for key in _FIGURES if (found := getattr(summary, key)) is not None}


def _pruned_of(run: Run) -> int:
    """Return per cent of the FLOPs that a run's search removed; 0 where it has none."""
    record = run.stages.get("pruned")
    ratio = record.summary_as(NetworkSummary).flops_ratio if record is not None else None
    return 0 if ratio is None else round(100 * (1 - ratio))


def _rows(cells: Iterable[Cell]) -> tuple[Row, ...]:
    """Put cells that differ by their seeds alone together, capsules before linear heads.

    Those of different sweeps stay apart. Runs of their own are together where they have different
    seeds and were trained as long.
    """
    groups = grouped(_told_apart(cells), lambda cell: cell.configuration)
    return tuple(
        Row(
            **{name: getattr(group[0], name) for name in _IDENTITY},
            cells=tuple(sorted(group, key=lambda cell: cell.seed)),
        )
        for _, group in sorted(groups.items())
    )


def _told_apart(found: Iterable[_OfRun]) -> tuple[_OfRun, ...]:
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
