"""The stage `train`: the baseline, an unpruned backbone with its linear classifier."""

from __future__ import annotations

from pathlib import Path

import torch

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.weights import NO_FILES, initialise
from capsprune.checkpoint import Blueprint, Checkpoint, DataDescription, describe
from capsprune.data.names import data_set
from capsprune.inspection import checkpoint_costs
from capsprune.options import TrainOptions
from capsprune.pipeline.fitting import fit_network, score_network, score_summary
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage, content_of
from capsprune.records import StageRecord


def train(options: TrainOptions, session: Session) -> StageRecord:
    """Train the baseline.

    Raises:
        CapspruneError: if the model, the data or the weights cannot be used, or the stage is
            finished with other options.
    """
    image_size = options.image_size or data_set(options.data).image_size
    shown = backbone(options.model).preprocessing(image_size)
    arguments = backbone_arguments(options.model, image_size)
    weights_file = None if options.weights in NO_FILES else Path(options.weights)
    new = session.new_split("baseline", options, weights_file)
    stage = Stage.of(
        session,
        "baseline",
        options,
        None,
        image_size=image_size,
        part=new.part,
        split_seed=new.seed,
        weights_sha256=content_of(weights_file),
    )
    if record := stage.done():
        return record
    device = session.fabric.device
    splits = session.new_data(options, image_size, new)
    torch.manual_seed(session.run.seed)
    network = build_backbone(options.model, splits.num_classes, **arguments)
    weights = initialise(network, options.model, options.weights, average=options.ema)
    session.progress.say(
        f"{options.model} on {options.data} ({len(splits.train)} training, "
        f"{len(splits.validation)} validation, {len(splits.test)} test images"
        f"{', shown in grey' if shown.channels == 1 else ''}) on {device}: "
        f"{weights}"
    )

    work = stage.begin(splits)
    schedule = (
        data_set(options.data)
        .schedules["baseline"]
        .changed(options.epochs, options.batch_size, options.lr)
    )
    history, training = fit_network(session, network, splits, shown, schedule, work, "Training")
    result = score_network(session, network, splits.test, shown)
    architecture = describe(
        network,
        Blueprint(options.model, arguments, DataDescription.of(splits, shown)),
        parent=None,
        metrics=result.to_dict(),
    )
    return stage.commit_checkpoint(
        network,
        architecture,
        history,
        {
            "model": options.model,
            "data": options.data,
            "weights": weights,
            **training,
            **score_summary(result, splits.class_names),
            **checkpoint_costs(Checkpoint(network, architecture)),
        },
    )
