"""The stage `import-checkpoint`: a backbone that was pruned elsewhere becomes the pruned one."""

from __future__ import annotations

from typing import Any

import torch

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.weights import read_weights
from capsprune.backbones.weights_file import digest
from capsprune.checkpoint import Blueprint, Checkpoint, DataDescription, describe
from capsprune.data.names import data_set
from capsprune.files import dump_json
from capsprune.inspection import checkpoint_costs
from capsprune.options import ImportOptions
from capsprune.pipeline.baseline import require_baseline
from capsprune.pipeline.fitting import score_network, score_summary
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.pruning.rebuild import rebuild
from capsprune.pruning.strategy import Strategy
from capsprune.run import StageRecord
from capsprune.training.fit import History


def import_checkpoint(options: ImportOptions, session: Session) -> StageRecord:
    """Make the run's pruned backbone out of a state dict.

    Raises:
        CapspruneError: if the file cannot be read or fits no pruned backbone of this name, the data
            cannot be used, or the run has another baseline, or a pruned backbone already.
    """
    run, progress = session.run, session.progress
    image_size = options.image_size or data_set(options.data).image_size
    shown = backbone(options.model).preprocessing(image_size)
    arguments = backbone_arguments(options.model, image_size)
    sha256 = digest(options.checkpoint)
    baseline: str | None = None
    if "baseline" in run.stages:  # What is imported must be of its kind.
        baseline = require_baseline(
            session,
            "import-checkpoint",
            model=options.model,
            data=options.data,
            image_size=image_size,
        ).id
    new = session.new_split("pruned", options, options.checkpoint)
    stage = Stage.of(
        session,
        "pruned",
        options,
        baseline,
        image_size=image_size,
        sha256=sha256,
        part=new.part,
        split_seed=new.seed,
    )
    if record := stage.done():
        return record

    splits = session.new_data(options, image_size, new)
    torch.manual_seed(run.seed)  # a classifier may be drawn anew
    network = build_backbone(options.model, splits.num_classes, **arguments).eval()
    found = read_weights(options.checkpoint, network, options.model, average=options.ema)
    unpruned = Prunable.of(options.model, network, image_size)
    dependencies = unpruned.dependencies
    kept = rebuild(
        network, dependencies, found.tensors, name=options.model, source=str(options.checkpoint)
    )
    ratio = float(unpruned.cost.flops_ratio(kept))
    said = "with its classifier" if found.has_classifier else "classifier drawn anew, untrained"
    notes = found.notes
    if found.has_classifier:
        notes = (*notes, f"{said} ({splits.num_classes} classes)")
    progress.say(
        f"{options.checkpoint} is a {options.model} with {ratio:.1%} of its FLOPs, "
        + ", ".join(notes)
    )

    stage.begin(splits)
    # What a classifier scores that knows nothing of the classes says nothing of the backbone.
    metrics: dict[str, Any] = {}
    scored: dict[str, Any] = {}
    if found.has_classifier:
        score = score_network(session, network, splits.test, shown)
        metrics, scored = score.to_dict(), score_summary(score, splits.class_names)
    architecture = describe(
        network,
        Blueprint(options.model, arguments, DataDescription.of(splits, shown)),
        parent=baseline,
        metrics=metrics,
    )
    # Half a unit more than was removed, so that rounding down gives the same number again.
    fractions = {
        group.name: (group.channels - int(count) + 0.5) / group.channels
        if count < group.channels
        else 0.0
        for group, count in zip(dependencies.groups, kept, strict=True)
    }
    strategy = Strategy(options.model, ratio, fractions)
    return stage.commit_checkpoint(
        network,
        architecture,
        History(),
        {
            "model": options.model,
            "data": options.data,
            "imported": str(options.checkpoint),
            "classifier": said,
            "flops_ratio": ratio,
            **scored,
            **checkpoint_costs(Checkpoint(network, architecture)),
        },
        {"strategy.json": dump_json(strategy.to_dict(), indent=1) + "\n"},
    )
