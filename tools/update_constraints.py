"""Resolve the dependencies for every supported Python and write constraints.txt.

    python tools/update_constraints.py

Asks the package index, so it needs a network; it installs nothing. Pins that differ between Python
versions get an environment marker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    sys.exit("This tool needs Python 3.11 or newer.")

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12")
#: The pair that the tests run with.
FIXED = {"torch": "2.14.1", "torchvision": "0.29.1"}
#: Published as source only: a dry run for another Python cannot look inside them.
SOURCE_ONLY = {"fvcore": "0.1.5.post20221221", "iopath": "0.1.10"}
NEEDED_BY_SOURCE_ONLY = ["yacs", "tabulate", "termcolor", "portalocker", "tqdm"]


def requirements() -> list[str]:
    """List what the package and its development extra ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    kept = [line for line in asked if line.split(">")[0].strip() not in SOURCE_ONLY]
    return [*kept, *NEEDED_BY_SOURCE_ONLY, *(f"{k}=={v}" for k, v in FIXED.items())]


def resolve(python: str) -> dict[str, str]:
    """Resolve for one Python version; give versions by package name.

    Not every index says which Python a file needs, and pip then takes for another Python what does
    not run there: such versions are excluded, and it resolves again.
    """
    excluded: list[str] = []
    while True:
        found = _dry_run(python, excluded)
        unfit = [
            f"{item['name']}!={item['version']}"
            for item in found
            if python not in SpecifierSet(item.get("requires_python", ""))
        ]
        if not unfit:
            return {item["name"].lower().replace("_", "-"): item["version"] for item in found}
        excluded += unfit


def _dry_run(python: str, excluded: list[str]) -> list[dict[str, str]]:
    """Give the metadata of what pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"),
                *("--quiet", "--report", str(report), "--python-version", python),
                *("--only-binary=:all:", "--target", folder, *requirements(), *excluded),
            ],
            check=True,
        )
        return [
            item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]
        ]


def main() -> None:
    """Write constraints.txt."""
    pythons_by_pin: dict[tuple[str, str], list[str]] = defaultdict(list)
    for python in PYTHONS:
        for name, version in {**resolve(python), **SOURCE_ONLY}.items():
            pythons_by_pin[(name, version)].append(python)
    lines = ["# Written by tools/update_constraints.py."]
    for (name, version), pythons in sorted(pythons_by_pin.items()):
        pin = f"{name}=={version}"
        if len(pythons) < len(PYTHONS):
            pin += "; " + " or ".join(f"python_version == '{python}'" for python in pythons)
        lines.append(pin)
    (ROOT / "constraints.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"Wrote {len(lines) - 1} pins.")


if __name__ == "__main__":
    main()
