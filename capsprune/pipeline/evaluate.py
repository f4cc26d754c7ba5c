"""Scoring a checkpoint on the images that it was not trained on, or on those that it was."""

from __future__ import annotations

from typing import Any

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import RunError
from capsprune.options import EvaluateOptions
from capsprune.pipeline.fitting import score_network
from capsprune.pipeline.session import Session
from capsprune.stages import checkpoint_stages


def evaluate_checkpoint(options: EvaluateOptions, session: Session) -> dict[str, Any]:
    """Score a checkpoint: the one that is named, or the one that the run finished last.

    Returns:
        The checkpoint, its model and data, `accuracy`, `loss`, `images` and `majority_rate`, and
        by class in `classes` its name, number of images and accuracy.

    Raises:
        CapspruneError: if there is no checkpoint, or its data are not there.
    """
    run = session.run
    source = options.checkpoint
    if source is None:
        done = [stage for stage in checkpoint_stages() if stage in run.stages]
        if not done:
            raise RunError(
                f"Run '{run.name}' has no checkpoint yet; first run 'capsprune prune --model "
                "MODEL'."
            )
        # Of those finished in the same second, the one that is done later.
        latest = max(done, key=lambda stage: (run.stages[stage].finished, done.index(stage)))
        run.require(latest, "evaluate")
        source = run.path(latest)
    checkpoint = load_checkpoint(source)
    data = checkpoint.architecture.data
    splits = session.data_of(source, checkpoint.architecture, options.data_root, compared=False)
    images = getattr(splits, options.split)
    with session.fabric.autocast():
        result = score_network(
            session, checkpoint.network, images, data.preprocessing, options.batch_size
        )
    return {
        "checkpoint": str(source),
        "model": checkpoint.architecture.model,
        "data": data.name,
        "split": options.split,
        "precision": session.precision,
        **result.to_dict(),
        "majority_rate": result.majority_rate,
        "classes": result.by_class(data.class_names),
    }
