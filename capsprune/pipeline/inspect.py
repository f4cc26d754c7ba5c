"""The command `inspect`: sizes and costs of a backbone, or of what a run has."""

from __future__ import annotations

from typing import Any

from capsprune.inspection import inspect_model, inspect_run
from capsprune.options import InspectOptions, RunOptions
from capsprune.run import read_run


def inspect(options: InspectOptions, where: RunOptions) -> dict[str, Any]:
    """Compute sizes and costs.

    Returns:
        As `inspect_model` where a model or a strategy is named, else as `inspect_run`.

    Raises:
        CapspruneError: as these do.
    """
    if options.model is None and options.strategy is None:
        return inspect_run(read_run(where.runs_dir, where.run), options)
    return inspect_model(options)
