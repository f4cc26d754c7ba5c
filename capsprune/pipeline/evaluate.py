"""Scoring a checkpoint on a run's images."""

from __future__ import annotations

from typing import Any

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import RunError
from capsprune.pipeline.fitting import score_network
from capsprune.pipeline.session import Session
from capsprune.recipe import EvaluateOptions
from capsprune.run import StageName

_LATEST_FIRST: tuple[StageName, ...] = ("caps", "pruned", "baseline")


def evaluate_checkpoint(options: EvaluateOptions, session: Session) -> dict[str, Any]:
    """Score a checkpoint: the one that is named, or the run's latest.

    Returns:
        The checkpoint, its model and data, and `accuracy`, `loss` and `images`.

    Raises:
        CapspruneError: if there is no checkpoint, or its data are not there.
    """
    run = session.run
    source = options.checkpoint
    if source is None:
        latest = next((stage for stage in _LATEST_FIRST if stage in run.stages), None)
        if latest is None:
            raise RunError(
                f"Run '{run.name}' has no checkpoint yet; first run 'capsprune prune --model "
                "MODEL'."
            )
        run.require(latest, "evaluate")
        source = run.path(latest)
    checkpoint = load_checkpoint(source)
    data = checkpoint.architecture.data
    splits = session.data(data.name, options.data_root, data.image_size)
    images = getattr(splits, options.split)
    result = score_network(session, checkpoint.network, images, data.image_size, options.batch_size)
    return {
        "checkpoint": str(source),
        "model": checkpoint.architecture.model,
        "data": data.name,
        "split": options.split,
        **result.to_dict(),
    }
