"""What the stages that put a head on a trunk share: the trunk's source, and the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from capsprune.checkpoint import (
    Architecture,
    CapsuleHead,
    Checkpoint,
    describe_like,
    read_architecture,
)
from capsprune.data.names import data_set
from capsprune.data.sources import DataSplits
from capsprune.errors import RunError
from capsprune.inspection import checkpoint_costs
from capsprune.options import AnalyseOptions, HeadOptions
from capsprune.pipeline.fitting import fit_network, score_network, score_summary
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.run import StageRecord


def trunk_source(options: HeadOptions, session: Session, command: str) -> tuple[Path, Architecture]:
    """Find the backbone whose trunk gets a head: what was named, or the run's pruned one.

    Returns:
        Its checkpoint, and the description of it.

    Raises:
        CapspruneError: if there is none, or it has a capsule head already.
    """
    source = options.checkpoint
    if source is None:
        session.run.require("pruned", command)
        source = session.run.path("pruned")
    described = read_architecture(source)
    if isinstance(described.head, CapsuleHead):
        raise RunError(f"{source} has a capsule head already; give a checkpoint of a backbone.")
    return source, described


def load_classes(
    options: HeadOptions | AnalyseOptions,
    session: Session,
    source: Path,
    described: Architecture,
) -> DataSplits:
    """Load the data that a checkpoint was made for.

    Raises:
        RunError: if they have other classes now.
    """
    splits = session.data_of(source, described, options.data_root)
    if splits.class_names != described.data.class_names:
        raise RunError(
            f"{source} was made for other classes than data set '{splits.name}' has now; make it "
            "anew."
        )
    return splits


def train_head(
    options: HeadOptions,
    stage: Stage,
    network: nn.Module,
    *,
    described: Architecture,
    splits: DataSplits,
    title: str,
    details: dict[str, Any],
) -> StageRecord:
    """Train a network with a new head, score it, and commit it.

    Both kinds of head get the same schedule, so that they can be compared.

    Args:
        options: of the stage.
        stage: that is worked on.
        network: to train.
        described: the backbone that it was made from.
        splits: images.
        title: what is trained, for the progress bar.
        details: further figures for the stage's summary.
    """
    session, shown = stage.session, described.data.preprocessing
    work = stage.begin(splits)
    schedules = data_set(splits.name).schedules
    schedule = schedules["caps-frozen" if options.freeze else "caps-finetuned"].changed(
        options.epochs, options.batch_size, options.lr
    )
    history, training = fit_network(session, network, splits, shown, schedule, work, title)
    score = score_network(session, network, splits.test, shown)
    architecture = describe_like(network, described, parent=described.id, metrics=score.to_dict())
    return stage.commit_checkpoint(
        network,
        architecture,
        history,
        {
            "model": described.model,
            "data": described.data.name,
            "frozen": options.freeze,
            **details,
            **training,
            **score_summary(score, splits.class_names),
            **checkpoint_costs(Checkpoint(network, architecture), frozen=options.freeze),
        },
    )
