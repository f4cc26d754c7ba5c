"""Tables of runs, sweeps, reports and findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capsprune.stages import STAGES
from capsprune.terminal.layout import new_table, percent, show_pairs, show_table


def print_runs(runs: Sequence[tuple[str, Mapping[str, str]]], where: str) -> None:
    """Print what runs there are and which of their stages are done.

    Args:
        runs: names, and for each stage that is done a word on what came of it.
        where: the folder that holds them.
    """
    if not runs:
        print(f"There are no runs in {where}.")
        return
    stages = list(dict.fromkeys([*STAGES, *(stage for _, done in runs for stage in done)]))
    table = new_table(f"Runs in {where}")
    table.add_column("run")
    for stage in stages:
        table.add_column(stage)
    for name, done in runs:
        table.add_row(name, *(done.get(stage, "-") for stage in stages))
    show_table(table)


def print_sweeps(sweeps: Sequence[tuple[str, Mapping[str, bool], int]]) -> None:
    """Print what sweeps there are: name, which cells are done, and how many runs failed."""
    table = new_table("Sweeps")
    table.add_column("sweep")
    for title in ("cells", "done", "failed"):
        table.add_column(title, justify="right")
    for name, done, failed in sweeps:
        table.add_row(name, str(len(done)), str(sum(done.values())), str(failed))
    show_table(table)


def print_sweep(
    name: str, cells: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], where: str
) -> None:
    """Print what a sweep came to.

    Args:
        name: of the sweep.
        cells: by name, the test accuracies of their stages.
        failed: why a run is not finished, by name.
        where: the sweep's folder.
    """
    table = new_table(f"Sweep {name}")
    table.add_column("cell")
    titles = {"pruned": "pruned", "caps": "capsules", "linear": "linear", "slim": "slim"}
    if not any("slim" in accuracies for accuracies in cells.values()):
        del titles["slim"]
    for title in titles.values():
        table.add_column(title, justify="right")
    for cell, accuracies in cells.items():
        table.add_row(cell, *(percent(accuracies.get(stage)) for stage in titles))
    if cells:
        show_table(table)
    broken = [(run, reason) for run, reason in failed.items() if not reason.startswith("not begun")]
    if broken:
        more = len(failed) - len(broken)
        if more:
            broken.append((f"{more} more", "not begun, as they build on these"))
        show_pairs("Not finished", broken)
    print(f"Its runs lie in {where}; 'capsprune report {name}' shows them.")


def print_report(
    tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]], int]],
    claims: Iterable[tuple[str, str]],
    missing: Mapping[str, str],
    files: Iterable[str],
) -> None:
    """Print a report: its tables, what it says of the paper's claims, and where the files lie.

    Args:
        tables: title, headings and lines of each, and how many of its columns are words.
        claims: statement and verdict of each.
        missing: what is not done.
        files: that were written.
    """
    for title, headings, lines, words in tables:
        table = new_table(title)
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="left" if place < words else "right")
        for line in lines:
            table.add_row(*line)
        show_table(table)
    table = new_table("What holds, and what does not: the figures are in the report")
    for heading in ("verdict", "claim"):
        table.add_column(heading)
    untold = 0
    for statement, verdict in claims:
        if verdict == "cannot be told":
            untold += 1
        else:
            table.add_row(verdict, statement)
    if table.rows:
        show_table(table)
    if untold:
        print(f"{untold} claims cannot be told from these results: it takes a sweep of more cells.")
    if missing:
        show_pairs("What is missing", list(missing.items()))
    show_pairs("Files", [(file,) for file in files])


def print_findings(findings: Sequence[tuple[str, str, str]]) -> None:
    """Print what `doctor` found: a name, what there is, and how to get what is missing."""
    table = new_table("capsprune doctor")
    table.add_column("what")
    table.add_column("found")
    table.add_column("how to get it")
    for row in findings:
        table.add_row(*row)
    show_table(table)
