"""The command line: parse, call one stage, print.

There is no logic here, and no heavy import before a command needs it. The options of a command are
the fields of its model in `capsprune.options`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
import typer.core

from capsprune import __version__, interrupts
from capsprune.errors import Interrupted
from capsprune.files import dump_json
from capsprune.options import (
    AnalyseOptions,
    AttachCapsOptions,
    AttachLinearOptions,
    ComputingOptions,
    EvaluateOptions,
    ExportOptions,
    ImportOptions,
    InspectOptions,
    Options,
    Precision,
    ProfileOptions,
    PruneOptions,
    RunOptions,
    SessionOptions,
    TrainOptions,
    parse_options,
)
from capsprune.recipe import read_recipe

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from capsprune.pipeline.session import Session
    from capsprune.run import StageName


class _Interruptible(typer.core.TyperGroup):
    """Tells of an interruption as of everything else that a user can fix."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with interrupts.working():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    name="capsprune",
    cls=_Interruptible,
    help="Prune a convolutional backbone, put a capsule head on what is left, export the whole to "
    "ONNX, and profile it. Each command takes what the one before it left in the run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing what draws boxes takes longer than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
RunName = Annotated[str, typer.Option("--run", help="Name of the run.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder that holds the runs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N.")]
PrecisionFlag = Annotated[Precision, typer.Option("--precision", help="Precision of training.")]
RecipeFile = Annotated[Path, typer.Argument(help="YAML file with the options of all stages.")]


def _stage_command(
    name: str, *models: type[Options]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command whose options are the fields of the models.

    The decorated function is called with one instance of each model, and `json` and `verbose`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(json: bool, verbose: bool, debug: bool, **values: Any) -> None:
            parsed = [
                parse_options(model, {k: v for k, v in values.items() if k in model.model_fields})
                for model in models
            ]
            function(*parsed, json=json, verbose=verbose)

        parameters = [
            inspect.Parameter(
                field_name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else _default(field),
                annotation=Annotated[_plain_type(field.annotation), _declare(field_name, field)],
            )
            for model in models
            for field_name, field in model.model_fields.items()
        ]
        for flag, kind in (("json", Json), ("verbose", Verbose), ("debug", Debug)):
            parameters.append(
                inspect.Parameter(
                    flag, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind
                )
            )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        app.command(name)(command)
        return function

    return decorate


def _declare(name: str, field: FieldInfo) -> Any:
    """Say how the command line takes a field."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if extra.get("positional"):
        return typer.Argument(help=field.description, show_default=False)
    flags = str(extra.get("flags", f"--{name.replace('_', '-')}"))
    return typer.Option(flags, help=field.description, show_default=field.default is not None)


def _default(field: FieldInfo) -> Any:
    default = field.default
    return ",".join(map(str, default)) if isinstance(default, tuple) else default


def _plain_type(annotation: Any) -> Any:
    """The type that the command line parses: the model itself checks ranges and names."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_type(get_args(annotation)[0])
    if origin in (Union, UnionType):
        (inner,) = (part for part in get_args(annotation) if part is not NoneType)
        return _plain_type(inner) | None
    if origin is tuple:
        return str
    if origin is Literal or annotation in (bool, int, float, str, Path):
        return annotation
    raise TypeError(f"The command line knows no options of type {annotation}.")


@contextmanager
def _session(options: SessionOptions, verbose: bool, create: bool = False) -> Iterator[Session]:
    from capsprune.pipeline.session import Session
    from capsprune.progress import TerminalProgress
    from capsprune.run import open_run

    precision = options.precision if isinstance(options, ComputingOptions) else "32-true"
    with open_run(options.runs_dir, options.run, options.seed, create=create) as run:
        yield Session(run, options.device, precision, options.overwrite, TerminalProgress(verbose))


_TITLES = {
    "baseline": "Baseline",
    "pruned": "Pruned backbone",
    "caps": "Pruned capsule network",
    "linear": "Pruned backbone with a new linear classifier",
}


def _print_stage(session: Session, stage: StageName, json: bool) -> None:
    record = session.run.stages[stage]
    if json:
        where = {"run": session.run.name, "path": str(session.run.path(stage))}
        _print_json({**where, "seconds": record.seconds, **record.summary})
    else:
        from capsprune.report import tables

        if stage == "profile":
            tables.print_profile(record.summary)
        elif stage == "analysis":
            tables.print_analysis(record.summary)
        else:
            title = _TITLES[stage]
            tables.print_checkpoint(
                title, record.summary, str(session.run.path(stage)), record.seconds
            )


def _print_json(value: dict[str, Any]) -> None:
    print(dump_json(value, indent=1))


def _warn_of(damaged: Mapping[str, str]) -> None:
    """Name what could not be read, and is left out."""
    for name, reason in damaged.items():
        print(f"Warning: {name} is left out: {reason}", file=sys.stderr)


@_stage_command("train", TrainOptions, ComputingOptions)
def train(options: TrainOptions, shared: ComputingOptions, json: bool, verbose: bool) -> None:
    """Train the baseline: the unpruned backbone."""
    from capsprune.pipeline.train import train as stage

    with _session(shared, verbose, create=True) as session:
        stage(options, session)
        _print_stage(session, "baseline", json)


@_stage_command("prune", PruneOptions, ComputingOptions)
def prune(options: PruneOptions, shared: ComputingOptions, json: bool, verbose: bool) -> None:
    """Prune the baseline to a part of its FLOPs and fine-tune it.

    Where the run has no baseline, one is trained first.
    """
    from capsprune.pipeline.prune import prune as stage

    with _session(shared, verbose, create=True) as session:
        stage(options, session)
        _print_stage(session, "pruned", json)


@_stage_command("import-checkpoint", ImportOptions, SessionOptions)
def import_checkpoint(
    options: ImportOptions, shared: SessionOptions, json: bool, verbose: bool
) -> None:
    """Take a backbone that was pruned elsewhere into the run.

    The channel counts are read off the tensors of its state dict. A classifier for another number
    of classes than the data set has is drawn anew.
    """
    from capsprune.pipeline.import_checkpoint import import_checkpoint as stage

    with _session(shared, verbose, create=True) as session:
        stage(options, session)
        _print_stage(session, "pruned", json)


@_stage_command("attach-caps", AttachCapsOptions, ComputingOptions)
def attach_caps(
    options: AttachCapsOptions, shared: ComputingOptions, json: bool, verbose: bool
) -> None:
    """Put a capsule head on the pruned trunk and train it."""
    from capsprune.pipeline.attach_caps import attach_caps as stage

    with _session(shared, verbose, create=options.checkpoint is not None) as session:
        stage(options, session)
        _print_stage(session, "caps", json)


@_stage_command("attach-linear", AttachLinearOptions, ComputingOptions)
def attach_linear(
    options: AttachLinearOptions, shared: ComputingOptions, json: bool, verbose: bool
) -> None:
    """Train a linear classifier to compare with.

    It is one linear layer on the pooled trunk that the capsule layers get, trained on the same
    schedule.
    """
    from capsprune.pipeline.attach_linear import attach_linear as stage

    with _session(shared, verbose, create=options.checkpoint is not None) as session:
        stage(options, session)
        _print_stage(session, "linear", json)


@_stage_command("export", ExportOptions, SessionOptions)
def export(options: ExportOptions, shared: SessionOptions, json: bool, verbose: bool) -> None:
    """Export the capsule network to one ONNX file, and verify it."""
    from capsprune.pipeline.export import export as stage

    with _session(shared, verbose, create=options.checkpoint is not None) as session:
        report = stage(options, session)
    if json:
        _print_json(report)
    else:
        from capsprune.report.tables import print_export

        print_export(report)


@_stage_command("profile", ProfileOptions, SessionOptions)
def profile(options: ProfileOptions, shared: SessionOptions, json: bool, verbose: bool) -> None:
    """Measure the exported network beside the unpruned one.

    All of them run in ONNX Runtime, interleaved, after warm-up.
    """
    from capsprune.pipeline.profile import profile as stage

    with _session(shared, verbose) as session:
        stage(options, session)
        _print_stage(session, "profile", json)


@_stage_command("analyse", AnalyseOptions, ComputingOptions)
def analyse(options: AnalyseOptions, shared: ComputingOptions, json: bool, verbose: bool) -> None:
    """Look into the capsules, and distort the images.

    That is: entropy of the bottleneck, what routing does in each iteration, capsules that are never
    active, and accuracy under rotation, shift, scale and shear, beside the linear control's.
    """
    from capsprune.pipeline.analyse import analyse as stage

    with _session(shared, verbose) as session:
        stage(options, session)
        _print_stage(session, "analysis", json)


@_stage_command("evaluate", EvaluateOptions, ComputingOptions)
def evaluate(options: EvaluateOptions, shared: ComputingOptions, json: bool, verbose: bool) -> None:
    """Score a checkpoint on images of the run's split."""
    from capsprune.pipeline.evaluate import evaluate_checkpoint

    with _session(shared, verbose, create=options.checkpoint is not None) as session:
        result = evaluate_checkpoint(options, session)
    if json:
        _print_json(result)
    else:
        from capsprune.report.tables import print_evaluation

        print_evaluation(result)


@_stage_command("inspect", InspectOptions, RunOptions)
def inspect_command(options: InspectOptions, shared: RunOptions, json: bool, verbose: bool) -> None:
    """Show sizes and costs, without data or training.

    They are those of a backbone with a capsule head, or, without --model and --strategy, of the
    checkpoints of a run.
    """
    from capsprune.inspection import inspect_model, inspect_run
    from capsprune.report import tables

    if options.model is None and options.strategy is None:
        from capsprune.run import read_run

        costs = inspect_run(read_run(shared.runs_dir, shared.run), options)
        if json:
            _print_json(costs)
        else:
            tables.print_costs(shared.run, costs)
        return
    result = inspect_model(options)
    if json:
        _print_json(result)
    else:
        tables.print_inspection(result, verbose)


@app.command("run")
def run_command(
    recipe: RecipeFile,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    precision: PrecisionFlag = "32-true",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do finished stages again.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run all stages of a recipe.

    Those that are finished are not done again.
    """
    parsed = read_recipe(recipe)
    from capsprune.pipeline.recipes import run_recipe

    shared = ComputingOptions(
        run=parsed.name,
        runs_dir=runs_dir,
        seed=parsed.seed,
        device=device,
        precision=precision,
        overwrite=overwrite,
    )
    with _session(shared, verbose, create=True) as session:
        run_recipe(parsed, session)
        if json:
            stages = {str(name): record.summary for name, record in session.run.stages.items()}
            _print_json({"run": session.run.name, "path": str(session.run.directory), **stages})
        else:
            from capsprune.report.tables import print_result

            stages = {
                str(name): {**record.summary, "seconds": record.seconds}
                for name, record in session.run.stages.items()
            }
            print_result(
                stages, [(name, str(session.run.path(name))) for name in session.run.stages]
            )


@app.command("sweep")
def sweep_command(
    recipe: Annotated[Path, typer.Argument(help="YAML file with a grid of runs.")],
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Folder with the published state dicts that the recipe names."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    precision: PrecisionFlag = "32-true",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run a grid of runs, as in the paper.

    It is backbones x pruned FLOPs x frozen or finetuned trunks x seeds. Cells that are finished are
    not done again; one that fails does not stop the others.
    """
    from capsprune.sweep import SweepError, read_sweep_recipe

    parsed = read_sweep_recipe(recipe)
    if checkpoints is not None and not checkpoints.is_dir():
        raise SweepError(f"There is no folder {checkpoints}; check --checkpoints.")
    from capsprune.pipeline.sweeping import sweep
    from capsprune.progress import TerminalProgress

    done = sweep(
        parsed,
        runs_dir,
        jobs=jobs,
        device=device,
        precision=precision,
        checkpoints=checkpoints,
        progress=TerminalProgress(verbose),
    )
    runs, _ = done.read_runs()
    cells = {
        cell.name: {
            str(stage): run.stages[stage].summary.get("accuracy")
            for stage in ("pruned", "caps", "linear")
            if stage in run.stages
        }
        for cell in done.cells
        if (run := runs.get(cell.name)) is not None
    }
    if json:
        _print_json(
            {
                "sweep": done.name,
                "path": str(done.directory),
                "cells": cells,
                "failed": done.failed,
            }
        )
    else:
        from capsprune.report.tables import print_sweep

        print_sweep(done.name, cells, done.failed, str(done.directory))
    if done.failed:
        first, reason = next(iter(done.failed.items()))
        others = len(done.failed) - 1
        and_others = f", and {others} more did not finish" if others else ""
        raise SweepError(f"{first} failed{and_others}: {reason}")


@app.command("report")
def report_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Runs and sweeps. [default: default]"),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the report. [default: that of the run or sweep]"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Report what runs and sweeps gave.

    There are the paper's Table 1 and Figure 3, and more, as Markdown, CSV, pictures and one HTML
    page that works offline. It says too which of the paper's claims hold on these results.
    """
    from capsprune.report.sources import find_sources, report_directory

    sources = find_sources(runs_dir, names or ["default"])
    directory = report_directory(sources, output)
    from capsprune.report.claims import claims
    from capsprune.report.collect import collect
    from capsprune.report.markdown import plain_rows, plain_tables
    from capsprune.report.write import write_report

    results = collect(sources)
    _warn_of(results.damaged)
    judged = claims(results)
    files = [str(path) for path in write_report(results, directory, judged)]
    if json:
        _print_json(
            {
                "report": results.title,
                "path": str(directory),
                "files": files,
                "rows": plain_rows(results),
                "claims": [claim.to_dict() for claim in judged],
                "missing": dict(results.missing),
                "damaged": dict(results.damaged),
                "notes": list(results.notes),
            }
        )
    else:
        from capsprune.report.tables import print_report

        shown = [(claim.statement, claim.verdict) for claim in judged]
        print_report(plain_tables(results), shown, results.missing, files)


@app.command("runs")
def runs_command(
    runs_dir: RunsDir = Path("runs"), json: Json = False, debug: Debug = False
) -> None:
    """List the runs and sweeps: what is there, what is done."""
    from capsprune.report.tables import print_runs, print_sweeps
    from capsprune.run import list_runs
    from capsprune.sweep import list_sweeps

    (runs, damaged_runs), (sweeps, damaged_sweeps) = list_runs(runs_dir), list_sweeps(runs_dir)
    damaged = {**damaged_runs, **damaged_sweeps}
    _warn_of(damaged)
    cells, damaged_cells = {}, {}
    for one in sweeps:
        inside, damaged_cells[one.name] = one.read_runs()
        cells[one.name] = one.done(inside)
        _warn_of({f"{one.name}/{name}": why for name, why in damaged_cells[one.name].items()})
    if json:
        found: dict[str, Any] = {run.name: sorted(run.stages) for run in runs}
        found |= {
            name: {"cells": of_sweep, "damaged": damaged_cells[name]}
            for name, of_sweep in cells.items()
        }
        _print_json({**found, **{name: {"damaged": reason} for name, reason in damaged.items()}})
    else:
        if sweeps:
            print_sweeps([(one.name, cells[one.name], len(one.failed)) for one in sweeps])
        if not runs and (sweeps or damaged):
            return
        print_runs(
            [
                (
                    run.name,
                    {
                        name: f"{record.summary['accuracy']:.2%}"
                        if "accuracy" in record.summary
                        else "done"
                        for name, record in run.stages.items()
                    },
                )
                for run in runs
            ],
            str(runs_dir),
        )


@app.command("doctor")
def doctor_command(json: Json = False, debug: Debug = False) -> None:
    """Say what is installed and found, and what is missing.

    That is: versions, devices, meters and data, with how to get each.
    """
    from capsprune.doctor import examine
    from capsprune.report.tables import print_findings

    findings = examine()
    if json:
        _print_json({finding.name: finding.to_dict() for finding in findings})
    else:
        print_findings([(f.name, f.found, f.remedy) for f in findings])


def _version(show: bool) -> None:
    if show:
        print(f"capsprune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take options that stand before the command."""
