"""Training and scoring a network on a run's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capsprune.capsules.head import head_of
from capsprune.checkpoint import Architecture
from capsprune.data.images import ImageSet
from capsprune.data.loaders import data_loader
from capsprune.data.names import data_set
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.sources import DataSplits
from capsprune.data.transforms import EvaluationTransform, TrainingTransform
from capsprune.errors import RunError
from capsprune.pipeline.session import EVALUATION_BATCH, Session
from capsprune.runtime.meters import TrainingMeter
from capsprune.schedule import Schedule
from capsprune.training.device import gpu_of
from capsprune.training.evaluate import Evaluation, evaluate
from capsprune.training.fit import Batches, Epoch, History, Listener, Training, fit

#: Classes that a summary names, of however many.
WORST_CLASSES = 5


def fit_network(
    session: Session,
    network: nn.Module,
    splits: DataSplits,
    preprocessing: Preprocessing,
    schedule: Schedule,
    work: Path,
    title: str,
) -> tuple[History, dict[str, Any]]:
    """Train a network, showing a bar; goes on from what an interrupted attempt left in `work`.

    Returns:
        The training's history, and what a stage's summary says of it: how long and how fast it
        was, and what `capsprune.runtime.meters.TrainingMeter` measured.
    """
    progress = session.progress
    seed = session.run.seed
    fabric = session.fabric
    train = Batches(
        data_loader(
            splits.train,
            batch_size=schedule.batch_size,
            shuffle=True,
            seed=seed,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        ),
        TrainingTransform(data_set(splits.name).augmentation, preprocessing),
    )
    validation = Batches(
        data_loader(splits.validation, batch_size=EVALUATION_BATCH),
        EvaluationTransform(preprocessing),
    )
    note = ""
    meter = TrainingMeter(gpu=gpu_of(fabric.device))
    with progress.bar(title) as bar:

        def show_step(done: int, total: int) -> None:
            meter.tick()
            bar(done, total, note)

        def show_epoch(epoch: Epoch) -> None:
            nonlocal note
            note = f"validation {epoch.validation_accuracy:.2%}"
            progress.detail(
                f"{title}, epoch {epoch.epoch + 1}: loss {epoch.train_loss:.4f}, validation loss "
                f"{epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.2%}, "
                f"{epoch.seconds:.1f} s"
            )

        history = fit(
            fabric,
            network,
            Training(head_of(network).objective, train, validation, schedule, seed),
            state_file=work / "training.pt",
            listener=Listener(show_step, show_epoch, progress.say),
        )
    if history.stopped_early:
        progress.say(f"{title} stopped after {len(history.epochs)} epochs without improvement")
    return history, {**_training_summary(history, schedule), **meter.summary()}


def load_classes(
    session: Session, source: Path, described: Architecture, data_root: Path | None
) -> DataSplits:
    """Load the data that a checkpoint was made for.

    Args:
        session: of the command.
        source: the checkpoint.
        described: its description.
        data_root: where data sets lie; None for where the run found them.

    Raises:
        RunError: if they have other classes now.
    """
    splits = session.data_of(source, described, data_root)
    if splits.class_names != described.data.class_names:
        raise RunError(
            f"{source} was made for other classes than data set '{splits.name}' has now; make it "
            "anew."
        )
    return splits


def score_network(
    session: Session,
    network: nn.Module,
    images: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int = EVALUATION_BATCH,
) -> Evaluation:
    """Score a network on images without augmentation."""
    network.to(session.fabric.device)
    batches = session.batches(images, preprocessing, batch_size)
    return evaluate(network, batches, head_of(network).objective)


def score_summary(score: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """Say what a stage's summary says of a score.

    Returns:
        `accuracy`, `loss`, `images`, `majority_rate`, and `worst_classes`: of those that have
        images, the ones that are recognised least, each as `Evaluation.by_class` gives it.
    """
    known = [row for row in score.by_class(class_names) if row["images"]]
    worst = sorted(known, key=lambda row: row["accuracy"])[:WORST_CLASSES]
    return {**score.to_dict(), "majority_rate": score.majority_rate, "worst_classes": worst}


def _training_summary(history: History, schedule: Schedule) -> dict[str, Any]:
    """Say how long and how fast a network was trained."""
    return {
        "epochs": len(history.epochs),
        "kept_epoch": history.kept + 1,
        "batch_size": schedule.batch_size,
        "lr": schedule.lr,
        "threads": torch.get_num_threads(),
        "epoch_seconds": history.seconds / max(1, len(history.epochs)),
    }
