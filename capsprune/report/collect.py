"""Reads runs and sweeps into what a report is made from. Nothing is computed anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from capsprune.bounds import cut, cut_apart
from capsprune.capsules.heads import DYNAMIC
from capsprune.errors import RunError
from capsprune.records import DamagedRun, StageRecord
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
    Kind,
    Latency,
    Results,
    Search,
    rows_of,
    told_apart,
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
    SlimSummary,
)
from capsprune.sweep import DamagedSweep, is_sweep, read_sweep

#: Figures of a stage's summary that a cell or a backbone has too.
_FIGURES = (
    *("accuracy", "accuracy_before_finetuning", "loss", "images", "epochs", "epoch_seconds"),
    *("threads", "peak_memory_mb", "energy_joules", "bottleneck_channels", "primary_capsules"),
    *("trunk_macs", "head_macs", "forward_macs", "training_flops", "parameters", "flops_ratio"),
)

#: What `profile` measures in one run: which networks these are.
_RUN_VARIANTS: dict[str, tuple[str, Kind]] = {
    "unpruned, linear": ("unpruned", "linear"),
    "unpruned, capsules": ("unpruned", "capsules"),
    "pruned, capsules": ("pruned", "capsules"),
    "slim, capsules": ("pruned", "slim"),
}
_BACKBONES = ("baseline", "pruned")
#: Stages whose networks have heads.
_HEADED = {"caps": "capsules", "linear": "linear", "slim": "capsules"}
#: What a report takes from a measurement.
_MEASURED = {field.name for field in fields(Latency)} & MeasurementSummary.model_fields.keys()
#: Characters of a name that a table or a legend has room for.
_LONGEST = 80
#: Figures of a slim network, and of the one that it was made from: where its summary has them.
_SLIM = {
    "primary_capsules": "capsules",
    "primary_capsules_whole": "capsules_of",
    "primary_rank": "primary_rank",
    "iterations": "iterations",
    "accuracy_whole": "accuracy_of_caps",
}
#: What a part of a network costs, and under which names a report has it.
_COSTS = {"macs": "macs", "parameters": "parameters", "weight_bytes": "bytes"}
#: What sizes a capsule head says that it has, and under which names a report has them.
_SIZES = {"iterations": "iterations", "rank": "primary_rank"}
_Values = dict[str, float]
#: `Cell.network`.
_Network = tuple[str, Kind, str]


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
    rows = rows_of(reader.cells)
    return Results(
        title=", ".join(name for _, name in sources),
        rows=rows,
        backbones=told_apart(reader.backbones.values()),
        searches=told_apart(reader.searches.values()),
        latencies=tuple(reader.latencies),
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
                self._read_run(run, prefix + cell.name, cell.pruned, name, cell.slim)
            own = [stage for stage in cell.stages if stage not in cell.shared]
            absent = [stage for stage in own if run is None or stage not in run.stages]
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

    def _read_run(
        self, run: Run, name: str, asked: int | None = None, source: str = "", size: str = ""
    ) -> None:
        """Read the stages of a run.

        Args:
            run: which.
            name: what the report calls it.
            asked: per cent of the FLOPs that were to be removed; None for what the run says.
            source: the sweep that it belongs to.
            size: name of the size of its slim network, where it shares all else with others.
        """
        unusable = run.unusable("report")
        for reason in unusable.values():
            self.miss(name, f"left out: {reason}")
        usable = run.stages.keys() - unusable
        pruned = _pruned_of(run) if asked is None else asked
        own = {"run": name, "seed": run.seed, "source": source, "pruned": pruned}
        for stage in _BACKBONES:
            if stage in usable:
                level = {} if stage == "pruned" else {"pruned": 0}
                self._read_backbone(run, stage, own | level)
        if "baseline" in usable:
            record = run.stages["baseline"]
            weights = record.summary_as(NetworkSummary).weights
            self.weights.add(cut_apart(weights or "unknown", _LONGEST))
            self.parts.add(record.options.get("part") or 1.0)
        cells: dict[str | None, Cell] = {}
        for stage in _HEADED:
            if stage in usable and (stage == "slim" or not size):
                cell = self._read_cell(run, stage, own, size)
                cells[run.stages[stage].id] = cell
                self.cells.append(cell)
        for stage in ("analysis", "onnx"):
            if stage in usable and (of_it := cells.get(run.stages[stage].parent)):
                self._add({of_it.network}, *_found(run.stages[stage]))

    def _read_backbone(self, run: Run, stage: Any, own: Mapping[str, Any]) -> None:
        record, folder = run.stages[stage], run.path(stage)
        if record.id in self.backbones:
            return
        summary = record.summary_as(NetworkSummary)
        shared = {**own, **_about(summary)}
        epochs = self._read(folder / "metrics.jsonl", Epoch, own["run"])
        self.backbones[record.id] = BackboneResult(
            **shared, stage=stage, values=_figures(summary), epochs=epochs
        )
        self._read_search(record, folder, shared)

    def _read_search(self, record: StageRecord, folder: Path, about: Mapping[str, Any]) -> None:
        candidates = self._read(folder / "candidates.jsonl", Candidate, about["run"])
        if candidates:
            best = record.summary_as(NetworkSummary).best_candidate
            self.searches[record.id] = Search(**about, candidates=candidates, best=best)

    def _read_cell(self, run: Run, stage: str, own: Mapping[str, Any], size: str) -> Cell:
        record, folder = run.stages[stage], run.path(stage)
        summary = record.summary_as(NetworkSummary)
        values, head = _figures(summary), _HEADED[stage]
        for described in self._read(folder / "architecture.json", Described, own["run"], True):
            data, config = described["data"], described.get("head") or {}
            values |= {"image_size": data["image_size"], "classes": len(data["class_names"])}
            values |= {name: config[key] for key, name in _SIZES.items() if config.get(key)}
            if head != "linear" and config.get("kind", DYNAMIC) != DYNAMIC:
                head = cut_apart(config["kind"], _LONGEST)
        about = {**own, **_about(summary)}
        frozen = summary.to_dict().get("frozen", False)
        if isinstance(summary, SlimSummary):
            values |= {
                name: value
                for name, key in _SLIM.items()
                if (value := getattr(summary, key)) is not None
            }
            if "caps" in run.stages:
                whole = run.stages["caps"].summary_as(HeadSummary)
                frozen, values["parameters_whole"] = whole.frozen, whole.parameters
            about["slim"], pruning = _pruned_to(record, size)
            self._read_search(record, folder, about)
            about |= pruning
        return Cell(
            **about,
            head=head,
            trunk="frozen" if frozen else "finetuned",
            values=values,
            memory_meter=summary.memory_meter,
            energy_meter=summary.energy_meter,
            epochs=self._read(folder / "metrics.jsonl", Epoch, own["run"]),
        )

    def _read_run_profile(self, run: Run, name: str) -> None:
        """Read the latencies of a run's own networks."""
        profile = run.stages["profile"].summary_as(ProfileSummary)
        caps = run.stages["caps"].summary_as(HeadSummary)
        pruned = _pruned_of(run)
        cells = {cell.kind: cell for cell in self.cells if cell.run == name}
        for label in profile.variants:
            # A run that removed nothing has its capsules under both names: the trained ones.
            if label not in _RUN_VARIANTS or (pruned == 0 and label == "unpruned, capsules"):
                continue
            state, kind = _RUN_VARIANTS[label]
            level = 0 if state == "unpruned" else pruned
            cell = cells.get(kind) if level == pruned else None
            shared = {**_about(caps), "pruned": level, "source": name}
            shared |= {"head": "linear" if kind == "linear" else "capsules"}
            if cell is not None:
                shared |= {"head": cell.head, "slim": cell.slim}
            size = profile.variants[label].file_bytes
            networks = set() if cell is None else {cell.network}
            self._add_latencies(profile.measurements, label, shared, size, networks)

    def _read_sweep_profile(self, path: Path, runs: Mapping[str, Run], prefix: str) -> None:
        """Read the latencies of a sweep's networks.

        Each stands for all cells with the same head on the same pruned backbone: they differ by
        their weights alone. A slim one stands for itself.
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
            keys = ("backbone", "pruned", "head", "slim")
            shared = {key: variant[key] for key in keys if key in variant}
            is_slim = "slim" in variant
            kind = "slim" if is_slim else variant["head"]
            alike = {
                prefix + other.name
                for other in ([run] if is_slim else runs.values())
                if "pruned" in other.stages and other.stages["pruned"].id == backbone.id
            }
            networks = {
                cell.network for cell in self.cells if cell.run in alike and cell.kind == kind
            }
            data = _about(backbone.summary_as(NetworkSummary))["data"]
            shared |= {"data": data, "source": source}
            size = variant["file_bytes"]
            self._add_latencies(profiles[0]["measurements"], label, shared, size, networks)

    def _add_latencies(
        self,
        measurements: Iterable[MeasurementSummary],
        label: str,
        shared: Mapping[str, Any],
        file_bytes: int,
        networks: Collection[_Network],
    ) -> None:
        """Read the latencies of a profile's variant, which are those of some cells too."""
        measured = [
            Latency(**shared, **row.model_dump(include=_MEASURED))
            for row in measurements
            if row.variant == label
        ]
        self.latencies += measured
        by_batch = {f"latency_ms_batch_{row.batch}": row.latency_ms for row in measured}
        by_batch |= {
            f"routing_ms_batch_{row.batch}": row.latency_ms * row.routing_share
            for row in measured
            if row.routing_share
        }
        self._add(networks, by_batch | {"file_bytes": file_bytes})

    def _add(
        self,
        networks: Collection[_Network],
        values: Mapping[str, float],
        analysis: Mapping[str, Any] | None = None,
    ) -> None:
        """Add figures, and an analysis, to some cells; what they have already stays."""
        self.cells = [
            replace(cell, values={**values, **cell.values}, analysis=analysis or cell.analysis)
            if cell.network in networks
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


def _found(record: StageRecord) -> tuple[_Values, dict[str, Any] | None]:
    """Return what `analysis` or `onnx` found of a network, and the whole analysis."""
    if isinstance(record.summary, AnalysisSummary):
        return record.summary.figures, record.summary.to_dict()
    return {"file_bytes": record.summary_as(ExportSummary).bytes}, None


def _pruned_to(record: StageRecord, name: str) -> tuple[str, dict[str, str]]:
    """Return to which size a capsule network was pruned; which were asked for, and the criterion.

    Args:
        record: of the stage `slim`.
        name: of the size, where it has one.
    """
    from capsprune.pruning.target import Target  # which takes torch to import

    sizes = {field.name: record.options.get(field.name) for field in fields(Target)}
    asked = ["nothing"] if sizes["flops"] == 1 else [key for key, size in sizes.items() if size]
    if record.options.get("strategy"):
        asked = ["strategy"]
    words = ", ".join(f"{key.replace('_', '-')} {sizes.get(key) or ''}".rstrip() for key in asked)
    criterion = record.summary_as(SlimSummary).capsule_criterion or ""
    return cut_apart(name or words or "as small as can be", _LONGEST), {
        "criterion": cut_apart(criterion, _LONGEST),
        "asked": ", ".join([key for key in asked if key != "iterations"] or asked),
    }


def _about(summary: NetworkSummary) -> dict[str, Any]:
    found = {"data": summary.data, "backbone": summary.model}
    return {key: cut_apart(name, _LONGEST) for key, name in found.items()}


def _figures(summary: NetworkSummary) -> dict[str, float]:
    """Return the figures of a network, and what each of its parts takes."""
    figures = {key: found for key in _FIGURES if (found := getattr(summary, key)) is not None}
    for part, costs in summary.parts.items():
        figures |= {f"{part}_{name}": getattr(costs, key) for key, name in _COSTS.items()}
    if "trunk_parameters" in figures:
        figures["head_parameters"] = figures["parameters"] - figures["trunk_parameters"]
    return figures


def _pruned_of(run: Run) -> int:
    """Return per cent of the FLOPs that a run's search removed; 0 where it has none."""
    record = run.stages.get("pruned")
    ratio = record.summary_as(NetworkSummary).flops_ratio if record is not None else None
    return 0 if ratio is None else round(100 * (1 - ratio))
