"""Check what a sweep of the digits and its report left behind: `.ci/run` calls this.

    python tools/check_sweep.py runs/digits --seconds 600

Fails where a cell or a part of the report is missing, or the figures are not those of networks that
learnt. How long it took is only said: another job on the machine is no fault of the code.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from statistics import mean

from capsprune.sweep import read_sweep

#: The issue's limit for the digits.
LIMIT_SECONDS = 15 * 60
#: Finetuned capsule networks of at most half of the FLOPs pruned do better than this.
ACCURACY = 0.90
REPORT = ("report.md", "report.html", "results.csv", "figures/figure3.png", "figures/figure3.svg")


def problems(directory: Path) -> list[str]:
    """List what is wrong with a sweep and its report."""
    sweep = read_sweep(directory.parent, directory.name)
    runs, damaged = sweep.read_runs()
    found = [f"{name} failed: {reason}" for name, reason in sweep.failed.items()]
    found += [f"{name} is damaged: {reason}" for name, reason in damaged.items()]
    found += [f"{name} is not finished" for name, done in sweep.done(runs).items() if not done]
    found += [f"{name} is missing" for name in REPORT if not (directory / name).is_file()]
    if found:
        return found
    with (directory / "results.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["head"] == "capsules"]
    if len(rows) != len(sweep.cells):
        found.append(f"results.csv has {len(rows)} capsule networks, not {len(sweep.cells)}")

    def accuracy(trunk: str, pruned: int) -> float:
        return mean(
            float(row["accuracy"])
            for row in rows
            if row["trunk"] == trunk and int(row["pruned"]) == pruned
        )

    for pruned in (0, 25, 50):
        if accuracy("finetuned", pruned) < ACCURACY:
            found.append(
                f"finetuned and {pruned} % pruned: {accuracy('finetuned', pruned):.1%} on average, "
                f"below {ACCURACY:.0%}"
            )
    if accuracy("finetuned", 75) < accuracy("frozen", 75):
        found.append("75 % pruned: finetuned is below frozen")
    return found


def main() -> None:
    """Check, and exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("--seconds", type=float, help="how long it took")
    options = parser.parse_args()
    found = problems(options.sweep)
    if options.seconds is not None and options.seconds > LIMIT_SECONDS:
        print(f"SLOW: {options.seconds:.0f} s, where {LIMIT_SECONDS} s are the limit.")
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"{options.sweep}: all cells and the report are there.")


if __name__ == "__main__":
    main()
