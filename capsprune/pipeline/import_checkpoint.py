"""The stage `import-checkpoint`: a backbone that was pruned elsewhere becomes the pruned one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.weights import read_weights
from capsprune.backbones.weights_file import digest
from capsprune.checkpoint import Blueprint, Checkpoint, DataDescription, describe
from capsprune.data.names import data_set
from capsprune.data.sources import DataSplits
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
from capsprune.records import StageRecord
from capsprune.training.fit import History


def import_checkpoint(options: ImportOptions, session: Session) -> StageRecord:
    """Make the run's pruned backbone out of a state dict.

    Raises:
        CapspruneError: if the file cannot be read or fits no pruned backbone of this name, the data
            cannot be used, or the run has another baseline, or a pruned backbone already.
    """
    run = session.run
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
    imported = _read(options, arguments, splits, session)
    network = imported.network

    stage.begin(splits)
    # What a classifier scores that knows nothing of the classes says nothing of the backbone.
    metrics: dict[str, Any] = {}
    scored: dict[str, Any] = {}
    if imported.has_classifier:
        score = score_network(session, network, splits.test, shown)
        metrics, scored = score.to_dict(), score_summary(score, splits.class_names)
    architecture = describe(
        network,
        Blueprint(options.model, arguments, DataDescription.of(splits, shown)),
        parent=baseline,
        metrics=metrics,
    )
    return stage.commit_checkpoint(
        network,
        architecture,
        History(),
        {
            "model": options.model,
            "data": options.data,
            "imported": str(options.checkpoint),
            "classifier": imported.classifier,
            "flops_ratio": imported.strategy.flops,
            **scored,
            **checkpoint_costs(Checkpoint(network, architecture)),
        },
        {"strategy.json": dump_json(imported.strategy.to_dict(), indent=1) + "\n"},
    )


@dataclass(frozen=True)
class _Imported:
    """A backbone that a file made."""

    network: nn.Module
    #: What was removed of the unpruned backbone.
    strategy: Strategy
    has_classifier: bool
    #: What is said of its classifier.
    classifier: str


def _read(
    options: ImportOptions, arguments: dict[str, Any], splits: DataSplits, session: Session
) -> _Imported:
    """Make the backbone out of the state dict.

    Raises:
        CapspruneError: if the file cannot be read or fits no pruned backbone of this name.
    """
    torch.manual_seed(session.run.seed)  # a classifier may be drawn anew
    name, source = options.model, options.checkpoint
    network = build_backbone(name, splits.num_classes, **arguments).eval()
    found = read_weights(source, network, name, average=options.ema)
    image_size = options.image_size or data_set(options.data).image_size
    unpruned = Prunable.of(name, network, image_size)
    kept = rebuild(network, unpruned.dependencies, found.tensors, name=name, source=str(source))
    ratio = float(unpruned.cost.flops_ratio(kept))
    said = "with its classifier" if found.has_classifier else "classifier drawn anew, untrained"
    notes = found.notes
    if found.has_classifier:
        notes = (*notes, f"{said} ({splits.num_classes} classes)")
    session.progress.say(f"{source} is a {name} with {ratio:.1%} of its FLOPs, " + ", ".join(notes))
    strategy = Strategy.keeping(kept, name, unpruned.dependencies, ratio)
    return _Imported(network, strategy, found.has_classifier, said)
