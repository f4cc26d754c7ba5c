"""A sweep: baselines, pruned backbones, and the cells of the grid that build on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from capsprune.checkpoint import load_checkpoint, verify_checkpoint
from capsprune.errors import CapspruneError
from capsprune.files import dump_json, read_json, scratch, write_text
from capsprune.options import ImportOptions, TrainOptions
from capsprune.pipeline.export import export_checkpoint, find_images
from capsprune.pipeline.import_checkpoint import import_checkpoint
from capsprune.pipeline.jobs import Job, run_jobs
from capsprune.pipeline.profile import say_where
from capsprune.pipeline.session import Session
from capsprune.progress import Progress
from capsprune.recipe import Recipe
from capsprune.records import StageName
from capsprune.run import Run, open_run, read_run
from capsprune.runtime.profile import Place, Timing, profile_variants
from capsprune.runtime.sessions import resolve_provider
from capsprune.stages import STAGES
from capsprune.sweep import GridCell, Sweep, SweepRecipe, open_sweep, read_sweep
from capsprune.training.device import gpu_number

#: The last job: all networks beside each other in ONNX Runtime.
_PROFILE = "profile"


@dataclass(frozen=True)
class Member:
    """One run of the sweep, as a process of its own does it."""

    directory: Path
    recipe: Recipe
    device: str
    precision: str
    cell: GridCell
    #: Name of the run whose stages it takes over.
    source: str | None = None
    #: A state dict that others published, in place of pruning.
    published: Path | None = None


def sweep(
    recipe: SweepRecipe,
    runs_dir: Path,
    *,
    jobs: int = 1,
    device: str = "auto",
    precision: str = "32-true",
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Do what is not done yet of a grid of runs, each in a process of its own.

    Cells of one backbone and seed share one baseline, those of one pruned level one pruned
    backbone, and those that prune one capsule network that network. What is finished is not done
    again; what fails is noted and stops nothing but what builds on it.

    Args:
        recipe: of the grid.
        runs_dir: the folder of all runs; the sweep's runs lie in a folder below it.
        jobs: runs at a time.
        device: as `capsprune.training.device.make_fabric` takes it; "auto" shares out all GPUs.
        precision: of training, as `make_fabric` takes it.
        checkpoints: folder with published state dicts.
        progress: where to say how it goes.

    Returns:
        The sweep; `failed` says what is not finished and why.

    Raises:
        SweepError: if the sweep was begun with other options.
        Interrupted: if the user stops it.
    """
    progress = progress or Progress()
    opened = open_sweep(runs_dir, recipe, precision)
    opened.failed = {}
    opened.write()
    todo: dict[str, Job] = {}
    runs, damaged = opened.read_runs()
    for cell in recipe.cells:
        reason = damaged.get(cell.name, unfinished(cell, runs.get(cell.name)))
        if reason is None:
            continue
        if cell.whole.name in opened.failed:
            reason = f"not begun, as {cell.whole.name} failed"
        if reason:
            opened.failed[cell.name] = reason
            progress.say(f"{cell.name} failed: {reason}")
            continue
        for job in _jobs_for(opened, cell, device, checkpoints):
            # What a cell shares is in the way of the first that needs it.
            needs = tuple(need for need in job.needs if need in todo)
            todo.setdefault(job.name, replace(job, needs=needs))
    done = len(recipe.cells) - len(opened.failed) - sum(c.name in todo for c in recipe.cells)
    if done:
        progress.say(f"{done} of {len(recipe.cells)} cells are done already")

    def note(job: Job, failed: str | None) -> None:
        if failed is not None:
            opened.failed[job.name] = failed
            opened.write()

    run_jobs(list(todo.values()), jobs, progress, f"Sweep {opened.name}", note)
    runs, _ = opened.read_runs()
    if any(unfinished(cell, runs.get(cell.name)) is None for cell in recipe.cells):
        last = Job(_PROFILE, partial(_profile, runs_dir, recipe, device))
        run_jobs([last], 1, progress, "Profiling", note)
    opened.write()
    return opened


def unfinished(cell: GridCell, run: Run | None) -> str | None:
    """Tell what the run of a cell lacks.

    Args:
        cell: which.
        run: the cell's, or None if there is none yet.

    Returns:
        None if it is finished, "" if there is something left to do, or what is damaged.
    """
    if run is None or any(
        stage not in run.stages or not run.path(stage).exists() for stage in cell.stages
    ):
        return ""
    try:
        for stage in cell.stages:
            if STAGES[stage].is_checkpoint and stage not in cell.shared:
                verify_checkpoint(run.path(stage))
    except CapspruneError as error:
        return f"{error} Remove that folder, and give the same command again."
    return None


def _published_file(recipe: SweepRecipe, cell: GridCell, checkpoints: Path | None) -> Path | None:
    """The state dict that others published for a cell's backbone, if the user has it."""
    name = recipe.published_for(cell).checkpoint
    if name is None or checkpoints is None or not (checkpoints / name).is_file():
        return None
    return checkpoints / name


def _jobs_for(
    opened: Sweep, cell: GridCell, device: str, checkpoints: Path | None
) -> Iterator[Job]:
    """The jobs that make a cell: its baseline, its pruned backbone, and itself.

    One that prunes the capsule network of a cell has that from it.
    """
    grid = opened.recipe
    recipe = grid.cell_recipe(cell)
    published = _published_file(grid, cell, checkpoints)
    siblings = (replace(cell, pruned=pruned) for pruned in grid.pruned)
    if not cell.pruned and any(_published_file(grid, sibling, checkpoints) for sibling in siblings):
        # What others published comes as it is, so the unpruned one must not be fine-tuned either.
        as_it_is = recipe.stages["pruned"].model_copy(update={"epochs": 0})
        recipe = replace(recipe, stages={**recipe.stages, "pruned": as_it_is})

    def member(name: str, **given: Any) -> Member:
        named = replace(recipe, name=name)
        return Member(opened.directory, named, device, opened.precision, cell, **given)

    if cell.slim:
        whole = cell.whole.name
        yield Job(cell.name, partial(_cell, member(cell.name, source=whole)), (whole,))
        return
    needs: tuple[str, ...] = ()
    if published is None:
        yield Job(cell.baseline_name, partial(_baseline, member(cell.baseline_name)))
        needs = (cell.baseline_name,)
    pruned = member(cell.pruned_name, source=needs[0] if needs else None, published=published)
    yield Job(cell.pruned_name, partial(_pruned, pruned), needs)
    yield Job(
        cell.name, partial(_cell, member(cell.name, source=cell.pruned_name)), (cell.pruned_name,)
    )


@contextmanager
def _session(member: Member, progress: Progress, place: int) -> Iterator[Session]:
    """Open a member's run, which takes over what its source has."""
    device = member.device
    if device == "auto" and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        device = f"cuda:{place % torch.cuda.device_count()}"
    recipe = member.recipe
    with open_run(member.directory, recipe.name, recipe.seed, create=True) as run:
        if member.source is not None:
            source = read_run(member.directory, member.source)
            for stage in member.cell.shared:
                if stage in source.stages:
                    run.adopt(stage, source)
        yield Session(run, device, member.precision, progress=progress)


def _baseline(member: Member, progress: Progress, place: int) -> None:
    with _session(member, progress, place) as session:
        _do("baseline", member, session)


def _pruned(member: Member, progress: Progress, place: int) -> None:
    with _session(member, progress, place) as session:
        training = member.recipe.stages["baseline"]
        assert isinstance(training, TrainOptions)
        if member.published is None:
            _do("pruned", member, session)
            return
        options = ImportOptions(
            checkpoint=member.published,
            model=training.model,
            data=training.data,
            data_root=training.data_root,
            image_size=training.image_size,
            part=training.part,
            value_range=training.value_range,
            background=training.background,
            split_seed=training.split_seed,
        )
        import_checkpoint(options, session)


def _cell(member: Member, progress: Progress, place: int) -> None:
    with _session(member, progress, place) as session:
        for stage in member.cell.stages:
            if stage not in member.cell.shared:
                _do(stage, member, session)


def _do(stage: StageName, member: Member, session: Session) -> None:
    STAGES[stage].function(member.recipe.stages[stage], session)


def _profile(
    runs_dir: Path, recipe: SweepRecipe, device: str, progress: Progress, place: int
) -> None:
    """Measure the networks of the grid beside each other: one of each architecture.

    Seeds and kinds of trunk differ in the weights, and the pruned channels of two seeds are about
    as many; so the first finished cell of each backbone, pruned level and size stands for all.
    """
    opened = read_sweep(runs_dir, recipe.name)
    runs, _ = opened.read_runs()
    chosen: dict[tuple[str, int, str], GridCell] = {}
    for cell in recipe.cells:
        if unfinished(cell, runs.get(cell.name)) is None:
            chosen.setdefault((cell.backbone, cell.pruned, cell.slim), cell)
    variants: dict[str, dict[str, Any]] = {}
    for cell in chosen.values():
        for head, stage in _networks(cell.slim).items():
            slim = {"slim": cell.slim} if cell.slim else {}
            label = f"{cell.backbone}, {cell.pruned} % pruned, {' '.join((*slim.values(), head))}"
            variants[label] = {
                "run": cell.name,
                "backbone": cell.backbone,
                "pruned": cell.pruned,
                "head": head,
                **slim,
                "seed": cell.seed,
                "checkpoint": runs[cell.name].stages[stage].id,
            }
    asked = {"options": recipe.profile.model_dump(mode="json"), "variants": variants}
    if _profiled(opened.profile_path, asked):
        return
    with scratch(opened.directory, "profile") as work:
        files = {}
        for position, (label, variant) in enumerate(variants.items()):
            progress.detail(f"Exporting {label}")
            files[label] = work / f"{position}.onnx"
            size = _export(opened, variant, files[label])
            variant["file_bytes"] = files[label].stat().st_size
        with progress.bar("Profiling") as bar:
            measurements = profile_variants(
                files,
                image_size=size,
                place=Place(recipe.profile.provider, gpu_number(device)),
                timing=Timing(recipe.profile.batch, recipe.profile.repeats),
                folder=work,
                progress=lambda what, done, total: bar(done, total, what),
            )
        say_where(
            resolve_provider(recipe.profile.provider, gpu_number(device)), measurements, progress
        )
    result = {**asked, "measurements": [measurement.to_dict() for measurement in measurements]}
    write_text(opened.profile_path, dump_json(result, indent=1) + "\n")


def _networks(slim: str) -> dict[str, StageName]:
    """Return the stages of a cell that hold networks of its own, by the kinds of their heads.

    Args:
        slim: the cell's.
    """
    return {"capsules": "slim"} if slim else {"capsules": "caps", "linear": "linear"}


def _profiled(path: Path, asked: Mapping[str, Any]) -> bool:
    """Whether these very networks were measured already, as asked."""
    try:
        found = read_json(path)
        for variant in found["variants"].values():
            del variant["file_bytes"]
        return all(found[key] == value for key, value in asked.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _export(opened: Sweep, variant: Mapping[str, Any], target: Path) -> int:
    """Export a cell's network; returns its image size."""
    with open_run(opened.directory, variant["run"]) as run:
        session = Session(run)
        source = run.path(_networks(variant.get("slim", ""))[variant["head"]])
        checkpoint = load_checkpoint(source)
        images = find_images(session, source, checkpoint.architecture)
        export_checkpoint(session, checkpoint, images, target)
    return checkpoint.architecture.data.image_size
