"""What a report is about, and where it goes: names on the command line to folders."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from capsprune.errors import RunError
from capsprune.records import DamagedRun
from capsprune.run import list_runs, read_run
from capsprune.run_folder import is_run
from capsprune.sweep import is_sweep, list_sweeps


def find_sources(runs_dir: Path, names: Sequence[str]) -> list[tuple[Path, str]]:
    """Check that there are runs or sweeps of these names.

    Args:
        runs_dir: the folder of all runs.
        names: of runs and sweeps in it.

    Returns:
        What `collect` takes.

    Raises:
        RunError: if one is not there, naming those that are spelt almost like it, or if there is
            one alone and it is damaged.
    """
    for name in names:
        if is_sweep(runs_dir / name):
            continue
        try:
            read_run(runs_dir, name)
        except DamagedRun:
            if len(names) == 1:
                raise
        except RunError:
            near = _near(runs_dir, name)
            if is_run(runs_dir / name) or not near:
                raise
            raise RunError(
                f"There is no run or sweep '{name}' in {runs_dir}; did you mean "
                f"{' or '.join(near)}?"
            ) from None
    return [(runs_dir, name) for name in dict.fromkeys(names)]


def report_directory(sources: Sequence[tuple[Path, str]], output: Path | None) -> Path:
    """Say where a report goes: where it was asked for, or to the one run or sweep it is about.

    Raises:
        RunError: if it is about several and no place was named, or that place is a file.
    """
    if output is not None:
        if output.exists() and not output.is_dir():
            raise RunError(f"{output} is a file; give --output a folder.")
        return output
    if len(sources) > 1:
        raise RunError(
            "A report of several runs or sweeps belongs to none of them; give --output a folder."
        )
    runs_dir, name = sources[0]
    return runs_dir / name


def _near(runs_dir: Path, name: str) -> list[str]:
    (runs, damaged), (sweeps, damaged_sweeps) = list_runs(runs_dir), list_sweeps(runs_dir)
    known = [*(run.name for run in runs), *(sweep.name for sweep in sweeps)]
    known += [*damaged, *damaged_sweeps]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)
