"""Reads runs and sweeps into what a report is made from. Nothing is computed anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from capsprune.bounds import cut
from capsprune.errors import RunError
from capsprune.report.notes import notes_on
from capsprune.report.reading import (
    Candidate,
    DamagedFileError,
    Described,
    Epoch,
    SweepProfile,
    read_object,
    read_rows,
)
from capsprune.report.results import Backbone, Cell, Head, Latency, Results, Row, Search
from capsprune.run import DamagedRun, Run, StageName, read_run
from capsprune.stages import STAGES
from capsprune.sweep import DamagedSweep, is_sweep, read_sweep

#: Figures of a stage's summary that a cell or a backbone has too.
_FIGURES = (
    "accuracy",
    "loss",
    "images",
    "epochs",
    "epoch_seconds",
    "threads",
    "peak_memory_mb",
    "energy_joules",
    "bottleneck_channels",
    "primary_capsules",
    "trunk_macs",
    "head_macs",
    "forward_macs",
    "training_flops",
    "parameters",
    "flops_ratio",
    "accuracy_before_finetuning",
)

#: Figures of an analysis that a cell has too; of those by routing iteration, the last.
_ANALYSED = (
    "bottleneck_entropy",
    "active_share",
    "coupling_entropy",
    "agreement_true",
    "agreement_other",
    "primary_length",
    "never_active_share",
)

#: What `profile` measures in one run: name of the variant, whether it is pruned, its head.
_RUN_VARIANTS: dict[str, tuple[bool, Head]] = {
    "unpruned, linear": (False, "linear"),
    "unpruned, capsules": (False, "capsules"),
    "pruned, capsules": (True, "capsules"),
}

_BACKBONES: tuple[Literal["baseline"], Literal["pruned"]] = ("baseline", "pruned")
_HEADS: dict[Literal["caps", "linear"], Head] = {"caps": "capsules", "linear": "linear"}
#: Figures that runs share where they were trained alike.
_TRAINED = ("epochs", "image_size", "classes", "images")
#: Characters of a name that a table or a legend has room for.
_LONGEST = 80
_TRUNK_ORDER = {"finetuned": 0, "frozen": 1}
_Sourced = TypeVar("_Sourced", Cell, Backbone, Search)


@dataclass
class _Found:
    """What was read so far."""

    cells: list[Cell] = field(default_factory=list)
    #: By the id of what the stage made: the runs of a sweep share their backbones.
    backbones: dict[str, Backbone] = field(default_factory=dict)
    searches: dict[str, Search] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    analyses: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    #: What the training started from, and the part of the images it had.
    weights: set[str] = field(default_factory=set)
    parts: set[float] = field(default_factory=set)
    #: What is wrong with files that were left out, by their paths.
    files: dict[str, str] = field(default_factory=dict)

    def read(self, read: Callable[[Path, Any], Any], path: Path, kind: Any, run: str) -> Any:
        """Read a file, or note that it is damaged; then there is nothing in it."""
        try:
            return read(path, kind)
        except DamagedFileError as error:
            self.files[str(path)] = error.reason
            _miss(self, run, str(error))
            return ()


def collect(sources: Sequence[tuple[Path, str]]) -> Results:
    """Read runs and sweeps.

    Args:
        sources: the folder that holds the runs, and the name of a run or a sweep in it, of each.

    Raises:
        RunError: if one of them is not there or has nothing to report yet, or all are damaged.
        SweepError: if all of them are damaged.
    """
    sources = list(dict.fromkeys(sources))
    found = _Found()
    for runs_dir, name in sources:
        prefix = f"{name}/" if len(sources) > 1 else ""
        try:
            if is_sweep(runs_dir / name):
                _read_sweep(runs_dir, name, prefix, found)
            else:
                _read_single(runs_dir, name, found)
        except (DamagedRun, DamagedSweep) as error:
            found.damaged[name] = str(error)
            if all(source in found.damaged for _, source in sources):
                raise
    for name, reason in found.damaged.items():
        _miss(found, name, reason.rstrip("."))
    rows = _rows(found.cells)
    return Results(
        title=", ".join(name for _, name in sources),
        rows=rows,
        backbones=_told_apart(
            found.backbones.values(),
            lambda one: (one.data, one.backbone, one.stage, one.pruned),
            lambda one: _trained(one.values),
        ),
        searches=_told_apart(
            found.searches.values(),
            lambda one: (one.data, one.backbone, one.pruned),
            lambda one: (),
        ),
        latencies=tuple(found.latencies),
        analyses=found.analyses,
        missing=found.missing,
        damaged={**found.damaged, **found.files},
        notes=notes_on(rows, found.latencies, found.weights, found.parts),
    )


def _read_single(runs_dir: Path, name: str, found: _Found) -> None:
    """Read one run.

    Raises:
        RunError: if it is not there, or has nothing yet.
    """
    run = read_run(runs_dir, name)
    usable = _usable(run)
    if not usable:
        flag = "" if name == "default" else f" --run {name}"
        raise RunError(
            f"Run '{name}' has nothing to report yet; first run 'capsprune prune{flag} --model "
            "MODEL', which trains and prunes."
        )
    _read_run(run, name, None, found)
    _read_run_profile(run, name, found)
    absent = [
        f"{stage} (capsprune {STAGES[stage].command.words})"
        for stage in STAGES
        if stage not in usable and stage not in run.stages
    ]
    if absent:
        _miss(found, name, f"not done: {', '.join(absent)}")


def _read_sweep(runs_dir: Path, name: str, prefix: str, found: _Found) -> None:
    """Read all runs of a sweep.

    Raises:
        RunError: if none of them has anything yet.
    """
    sweep = read_sweep(runs_dir, name)
    runs, damaged = sweep.read_runs()
    found.damaged |= {prefix + run: reason for run, reason in damaged.items()}
    cells = {cell.name for cell in sweep.cells}
    before = len(found.backbones) + len(found.cells)
    for cell in sweep.cells:
        run = runs.get(cell.name)
        if run is not None:
            _read_run(run, prefix + cell.name, cell.pruned, found, name)
        absent = [
            stage
            for stage in ("caps", "linear", "onnx", "analysis")
            if run is None or stage not in run.stages
        ]
        if cell.name in damaged:
            continue  # named with the others
        if reason := sweep.failed.get(cell.name):
            _miss(found, prefix + cell.name, f"failed: {reason.rstrip('.')}")
        elif run is None:
            _miss(found, prefix + cell.name, "not begun")
        elif absent:
            _miss(found, prefix + cell.name, f"not done: {', '.join(absent)}")
    # What the cells share is done in runs of its own, and may have failed there.
    for shared, reason in sweep.failed.items():
        if shared not in cells and shared not in damaged:
            _miss(found, prefix + shared, f"failed: {reason.rstrip('.')}")
    if len(found.backbones) + len(found.cells) == before:
        for run_name, run in runs.items():
            if run_name not in cells:
                _read_run(run, prefix + run_name, None, found, name)
    if len(found.backbones) + len(found.cells) == before:
        raise RunError(
            f"Sweep '{name}' has nothing to report yet; run 'capsprune sweep' with its recipe "
            "again, which goes on from where it stopped."
        )
    _read_sweep_profile(sweep.profile_path, runs, prefix, found)


def _read_run(run: Run, name: str, asked: int | None, found: _Found, source: str = "") -> None:
    """Read the stages of a run.

    Args:
        run: which.
        name: what the report calls it.
        asked: per cent of the FLOPs that were to be removed; None for what the run says.
        found: takes what there is.
        source: the sweep that it belongs to.
    """
    usable = _usable(run)
    for stage in run.stages:
        if stage not in usable:
            _miss(found, name, f"left out: {usable.reasons[stage]}")
    pruned = _pruned_of(run) if asked is None else asked
    for backbone in _BACKBONES:
        if backbone in usable:
            _read_backbone(run, name, backbone, pruned, found, source)
    if "baseline" in usable:
        record = run.stages["baseline"]
        found.weights.add(_name(record.summary.get("weights", "unknown")))
        found.parts.add(record.options.get("part") or 1.0)
    for head in _HEADS:
        if head in usable:
            found.cells.append(_cell(run, name, head, pruned, found, source))
    if "analysis" in usable:
        analysis = run.stages["analysis"].summary
        found.analyses[name] = analysis
        _add(found, _of(name, "capsules"), _analysed(analysis))
    if "onnx" in usable:
        _add(found, _of(name, "capsules"), {"file_bytes": run.stages["onnx"].summary["bytes"]})


class _Usable(set[StageName]):
    """The stages whose results are there and up to date, and why the others are not."""

    reasons: dict[StageName, str]


def _usable(run: Run) -> _Usable:
    usable = _Usable()
    usable.reasons = {}
    for stage in run.stages:
        try:
            run.require(stage, "report")
        except RunError as error:
            usable.reasons[stage] = str(error)
        else:
            usable.add(stage)
    return usable


def _read_backbone(
    run: Run,
    name: str,
    stage: Literal["baseline", "pruned"],
    pruned: int,
    found: _Found,
    source: str,
) -> None:
    record = run.stages[stage]
    if record.id in found.backbones:
        return
    summary = record.summary
    level = pruned if stage == "pruned" else 0
    found.backbones[record.id] = Backbone(
        run=name,
        data=_name(summary["data"]),
        backbone=_name(summary["model"]),
        pruned=level,
        stage=stage,
        seed=run.seed,
        values=_figures(summary),
        epochs=found.read(read_rows, run.path(stage) / "metrics.jsonl", Epoch, name),
        source=source,
    )
    file = run.path(stage) / "candidates.jsonl"
    candidates = found.read(read_rows, file, Candidate, name)
    if candidates:
        found.searches[record.id] = Search(
            run=name,
            data=_name(summary["data"]),
            backbone=_name(summary["model"]),
            pruned=level,
            seed=run.seed,
            candidates=candidates,
            best=summary.get("best_candidate"),
            source=source,
        )


def _cell(
    run: Run,
    name: str,
    stage: Literal["caps", "linear"],
    pruned: int,
    found: _Found,
    source: str,
) -> Cell:
    summary = run.stages[stage].summary
    described = found.read(read_object, run.path(stage) / "architecture.json", Described, name)
    return Cell(
        run=name,
        data=_name(summary["data"]),
        backbone=_name(summary["model"]),
        pruned=pruned,
        trunk="frozen" if summary["frozen"] else "finetuned",
        head=_HEADS[stage],
        seed=run.seed,
        values=_figures(summary) | _shape(described),
        memory_meter=summary.get("memory_meter"),
        energy_meter=summary.get("energy_meter"),
        epochs=found.read(read_rows, run.path(stage) / "metrics.jsonl", Epoch, name),
        source=source,
    )


def _read_run_profile(run: Run, name: str, found: _Found) -> None:
    """Read the latencies of a run's own three networks."""
    if "profile" not in _usable(run) or "caps" not in run.stages:
        return
    profile, caps = run.stages["profile"].summary, run.stages["caps"].summary
    pruned = _pruned_of(run)
    for label, (is_pruned, head) in _RUN_VARIANTS.items():
        # A run that removed nothing has its capsule network under both names: the trained one.
        if label not in profile["variants"] or (pruned == 0 and label == "unpruned, capsules"):
            continue
        level = pruned if is_pruned else 0
        measured = _latencies(
            profile, label, _name(caps["model"]), level, head, _name(caps["data"]), name
        )
        found.latencies += measured
        if level == pruned:
            values = _by_batch(measured)
            values["file_bytes"] = profile["variants"][label]["file_bytes"]
            _add(found, _of(name, head), values)


def _read_sweep_profile(path: Path, runs: Mapping[str, Run], prefix: str, found: _Found) -> None:
    """Read the latencies of a sweep's networks.

    Each stands for all cells with the same head on the same pruned backbone: they differ by their
    weights alone.
    """
    profile = found.read(read_object, path, SweepProfile, path.parent.name)
    if not profile:
        if profile is None:
            _miss(found, path.parent.name, "its networks were not profiled")
        return
    for label, variant in profile["variants"].items():
        run = runs.get(variant["run"])
        if run is None or "pruned" not in run.stages:
            continue
        backbone = run.stages["pruned"]
        same = {
            prefix + other.name
            for other in runs.values()
            if "pruned" in other.stages and other.stages["pruned"].id == backbone.id
        }
        head: Head = variant["head"]
        measured = _latencies(
            profile,
            label,
            variant["backbone"],
            variant["pruned"],
            head,
            _name(backbone.summary["data"]),
            path.parent.name,
        )
        found.latencies += measured
        values = {**_by_batch(measured), "file_bytes": variant["file_bytes"]}
        _add(found, lambda cell, s=same, h=head: cell.run in s and cell.head == h, values)


def _latencies(
    profile: Mapping[str, Any],
    variant: str,
    backbone: str,
    pruned: int,
    head: Head,
    data: str,
    source: str,
) -> list[Latency]:
    return [
        Latency(
            label=f"{backbone}, {pruned} % pruned, {head}",
            backbone=backbone,
            pruned=pruned,
            head=head,
            batch=row["batch"],
            provider=row["provider"],
            latency_ms=row["latency_ms"],
            p25_ms=row["latency_ms_p25"],
            p75_ms=row["latency_ms_p75"],
            routing_share=row["routing_share"],
            data=data,
            routing_kernel=row.get("routing_kernel"),
            source=source,
        )
        for row in profile["measurements"]
        if row["variant"] == variant
    ]


def _by_batch(latencies: Iterable[Latency]) -> dict[str, float]:
    return {f"latency_ms_batch_{row.batch}": row.latency_ms for row in latencies}


def _of(run: str, head: Head) -> Any:
    return lambda cell: cell.run == run and cell.head == head


def _add(found: _Found, chosen: Any, values: Mapping[str, float]) -> None:
    """Add figures to the cells chosen; what they have already stays."""
    found.cells = [
        replace(cell, values={**values, **cell.values}) if chosen(cell) else cell
        for cell in found.cells
    ]


def _analysed(analysis: Mapping[str, Any]) -> dict[str, float]:
    values = {}
    for key in _ANALYSED:
        value = analysis.get(key)
        if isinstance(value, list):
            value = value[-1] if value else None
        if value is not None:
            values[key] = float(value)
    return values


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    return {key: summary[key] for key in _FIGURES if summary.get(key) is not None}


def _pruned_of(run: Run) -> int:
    """Per cent of the FLOPs that a run's search removed; 0 where it has none."""
    record = run.stages.get("pruned")
    ratio = record.summary.get("flops_ratio") if record is not None else None
    return 0 if ratio is None else round(100 * (1 - ratio))


def _rows(cells: Iterable[Cell]) -> tuple[Row, ...]:
    """Put cells that differ by their seeds alone together, capsules before their controls.

    Those of different sweeps stay apart. Runs of their own are together where they have different
    seeds and were trained as long.
    """
    apart = _told_apart(
        cells,
        lambda cell: (cell.head, cell.data, cell.backbone, cell.trunk, cell.pruned),
        lambda cell: _trained(cell.values),
    )
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in apart:
        key = (
            cell.head,
            cell.data,
            cell.backbone,
            cell.source,
            _TRUNK_ORDER[cell.trunk],
            cell.pruned,
        )
        groups.setdefault(key, []).append(cell)
    return tuple(
        Row(
            data=of[0].data,
            backbone=of[0].backbone,
            pruned=of[0].pruned,
            trunk=of[0].trunk,
            head=of[0].head,
            cells=tuple(sorted(of, key=lambda cell: cell.seed)),
            source=key[3],
        )
        for key, of in sorted(groups.items())
    )


def _told_apart(
    found: Iterable[_Sourced],
    configuration: Callable[[_Sourced], tuple[Any, ...]],
    trained: Callable[[_Sourced], tuple[Any, ...]],
) -> tuple[_Sourced, ...]:
    """Make each run of its own a source where such runs are not the seeds of one configuration.

    Args:
        found: of sweeps and of runs of their own, which have no source yet.
        configuration: what those have in common that may be averaged.
        trained: what they must have in common too, if they were trained alike.
    """
    found = list(found)
    groups: dict[tuple[Any, ...], list[_Sourced]] = {}
    for one in found:
        if not one.source:
            groups.setdefault(configuration(one), []).append(one)

    def are_seeds(of: Sequence[_Sourced]) -> bool:
        return len({one.seed for one in of}) == len(of) and len({trained(one) for one in of}) == 1

    seeds = {key: are_seeds(of) for key, of in groups.items()}
    return tuple(
        one if one.source or seeds[configuration(one)] else replace(one, source=one.run)
        for one in found
    )


def _trained(values: Mapping[str, float]) -> tuple[float | None, ...]:
    return tuple(values.get(key) for key in _TRAINED)


def _shape(described: Described | None) -> dict[str, float]:
    """Pixels a side and number of classes, where a checkpoint's description is there and whole."""
    if not described:
        return {}
    data = described["data"]
    return {"image_size": data["image_size"], "classes": len(data["class_names"])}


def _name(text: str) -> str:
    """Cut a name for display; it stays another than every other."""
    if len(text) <= _LONGEST:
        return text
    return f"{cut(text, _LONGEST)} ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _miss(found: _Found, name: str, reason: str) -> None:
    reason = cut(reason, 500)
    before = found.missing.get(name)
    found.missing[name] = reason if before is None else f"{before}; {reason}"
