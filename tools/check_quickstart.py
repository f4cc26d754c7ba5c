"""Check that a finished quickstart run has the figures that the README promises.

    python tools/check_quickstart.py runs/quickstart --seconds 240

Exits with 1 and says what is amiss if not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

LEAST_BASELINE_ACCURACY = 0.97
#: The pruned capsule network may be this far below the baseline.
MOST_ACCURACY_LOST = 0.01
#: On two cores that nothing else uses. A busy machine is no fault of the code, so a longer time is
#: reported and fails nothing.
MOST_SECONDS = 360.0
FLOPS, FLOPS_TOLERANCE = 0.5, 0.005
#: Of the slim network, whose parameters are fewer than half of the unpruned linear one's.
MOST_PARAMETERS = 1_350_000
MOST_DIFFERENCE = 1e-4


def main() -> None:
    """Check the run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, help="how long the demo took")
    arguments = parser.parse_args()
    stages = json.loads((arguments.run / "run.json").read_text(encoding="utf-8"))["stages"]
    summary = {name: stage["summary"] for name, stage in stages.items()}
    baseline, capsules = summary["baseline"]["accuracy"], summary["caps"]["accuracy"]
    slim, linear = summary["slim"], summary["baseline"]
    ratio, difference = summary["pruned"]["flops_ratio"], summary["onnx"]["max_abs_difference"]
    checks = {
        f"baseline accuracy {baseline:.2%}": baseline >= LEAST_BASELINE_ACCURACY,
        f"capsule accuracy {capsules:.2%}": capsules >= baseline - MOST_ACCURACY_LOST,
        f"slim accuracy {slim['accuracy']:.2%}": slim["accuracy"] >= capsules - MOST_ACCURACY_LOST,
        f"slim parameters {slim['parameters']:,}": slim["parameters"] <= MOST_PARAMETERS,
        f"slim MACs {slim['forward_macs']:,}": slim["forward_macs"] < linear["forward_macs"],
        f"FLOPs ratio {ratio:.4f}": abs(ratio - FLOPS) <= FLOPS_TOLERANCE,
        f"ONNX differs by {difference:.1e}": difference <= MOST_DIFFERENCE,
        f"{len(summary['profile']['variants'])} variants": len(summary["profile"]["variants"]) == 4,
    }
    for text, holds in checks.items():
        print(f"{'ok ' if holds else 'BAD'} {text}")
    if arguments.seconds is not None:
        verdict = "ok " if arguments.seconds <= MOST_SECONDS else "SLOW"
        print(f"{verdict} {arguments.seconds:.0f} s")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
