"""The command line: parse, call one stage, print.

There is no logic here, and no heavy import before a command needs it. The commands that work in one
run are the rows of `capsprune.stages.COMMANDS`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
import typer.core

from capsprune import interrupts
from capsprune.errors import Interrupted
from capsprune.files import dump_json
from capsprune.option_types import Precision, help_of
from capsprune.options import ComputingOptions
from capsprune.recipe import read_recipe
from capsprune.stages import COMMANDS, Command
from capsprune.version import __version__

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class _Commands(typer.core.TyperGroup):
    """The commands of the table and those below; tells of an interruption in one sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in COMMANDS:
            command = _click_command(COMMANDS[cmd_name])
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            with interrupts.working():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    name="capsprune",
    cls=_Commands,
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


def _click_command(row: Command) -> Any:
    """Make a command of a row of the table: its options are the fields of the row's models."""

    def command(json: bool, verbose: bool, debug: bool, **values: Any) -> None:
        options, shared = row.parse(values)
        from capsprune.pipeline.commands import perform
        from capsprune.progress import TerminalProgress

        outcome = perform(row, options, shared, TerminalProgress(verbose))
        if json:
            _print_json(outcome.to_dict())
        else:
            row.show(outcome, verbose)

    parameters = [
        inspect.Parameter(
            field_name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else _default(field),
            annotation=Annotated[_plain_type(field.annotation), _declare(field_name, field)],
        )
        for model in (row.options, row.shared)
        for field_name, field in model.model_fields.items()
    ]
    for flag, kind in (("json", Json), ("verbose", Verbose), ("debug", Debug)):
        parameters.append(
            inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = row.help
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(row.name)(command)
    return typer.main.get_command(alone)


def _declare(name: str, field: FieldInfo) -> Any:
    """Say how the command line takes a field."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if extra.get("positional"):
        return typer.Argument(help=help_of(field), show_default=False)
    flags = str(extra.get("flags", f"--{name.replace('_', '-')}"))
    return typer.Option(flags, help=help_of(field), show_default=field.default is not None)


def _default(field: FieldInfo) -> Any:
    default = field.default
    return ",".join(map(str, default)) if isinstance(default, tuple) else default


def _plain_type(annotation: Any) -> Any:
    """The type that the command line parses: the model itself checks ranges and names."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_type(get_args(annotation)[0])
    if origin in (Union, UnionType):
        inner = [_plain_type(part) for part in get_args(annotation) if part is not NoneType]
        plain = inner[0] if len(inner) == 1 else str  # the model itself tells them apart
        return plain | None if NoneType in get_args(annotation) else plain
    if origin is tuple:
        return str
    if origin is Literal or annotation in (bool, int, float, str, Path):
        return annotation
    raise TypeError(f"The command line knows no options of type {annotation}.")


def _print_json(value: dict[str, Any]) -> None:
    print(dump_json(value, indent=1))


def _warn_of(damaged: Mapping[str, str]) -> None:
    """Name what could not be read, and is left out."""
    for name, reason in damaged.items():
        print(f"Warning: {name} is left out: {reason}", file=sys.stderr)


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
    from capsprune.pipeline.commands import session_of
    from capsprune.pipeline.recipes import run_recipe
    from capsprune.progress import TerminalProgress

    shared = ComputingOptions(
        run=parsed.name,
        runs_dir=runs_dir,
        seed=parsed.seed,
        device=device,
        precision=precision,
        overwrite=overwrite,
    )
    with session_of(shared, TerminalProgress(verbose), create=True) as session:
        run_recipe(parsed, session)
        if json:
            stages = {name: done.summary.to_dict() for name, done in session.run.stages.items()}
            _print_json({"run": session.run.name, "path": str(session.run.directory), **stages})
        else:
            from capsprune.terminal.stages import print_result

            run = session.run
            print_result(run.stages, [(name, str(run.path(name))) for name in run.stages])


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
    from capsprune.summaries import NetworkSummary
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
            stage: done.summary.accuracy
            for stage, done in run.stages.items()
            if stage in cell.stages and isinstance(done.summary, NetworkSummary)
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
        from capsprune.terminal.listings import print_sweep

        print_sweep(done.name, cells, done.failed, str(done.directory))
    if done.failed:
        first, reason = next(iter(done.failed.items()))
        more = len(done.failed) - 1
        and_others = f", and {more} more did not finish" if more else ""
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
    from capsprune.terminal.sources import find_sources, report_directory

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
        from capsprune.terminal.listings import print_report

        shown = [(claim.statement, claim.verdict) for claim in judged]
        print_report(plain_tables(results), shown, results.missing, files)


@app.command("runs")
def runs_command(
    runs_dir: RunsDir = Path("runs"), json: Json = False, debug: Debug = False
) -> None:
    """List the runs and sweeps: what is there, what is done."""
    from capsprune.run import list_runs
    from capsprune.sweep import list_sweeps
    from capsprune.terminal.listings import print_runs, print_sweeps

    (runs, damaged_runs), (sweeps, damaged_sweeps) = list_runs(runs_dir), list_sweeps(runs_dir)
    damaged = {**damaged_runs, **damaged_sweeps}
    _warn_of(damaged)
    cells, damaged_cells = {}, {}
    for sweep in sweeps:
        inside, damaged_cells[sweep.name] = sweep.read_runs()
        cells[sweep.name] = sweep.done(inside)
        _warn_of({f"{sweep.name}/{name}": why for name, why in damaged_cells[sweep.name].items()})
    if json:
        found: dict[str, Any] = {run.name: sorted(run.stages) for run in runs}
        found |= {
            name: {"cells": of_sweep, "damaged": damaged_cells[name]}
            for name, of_sweep in cells.items()
        }
        _print_json({**found, **{name: {"damaged": reason} for name, reason in damaged.items()}})
    else:
        if sweeps:
            print_sweeps([(sweep.name, cells[sweep.name], len(sweep.failed)) for sweep in sweeps])
        if not runs and (sweeps or damaged):
            return
        print_runs(
            [
                (run.name, {name: done.summary.headline for name, done in run.stages.items()})
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
    from capsprune.terminal.listings import print_findings

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
