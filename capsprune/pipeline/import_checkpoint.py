"""The stage `import-checkpoint`: a backbone that was pruned elsewhere becomes the pruned one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.weights import read_state_dict
from capsprune.checkpoint import Checkpoint, DataDescription, describe, read_architecture
from capsprune.data.names import default_image_size
from capsprune.data.transforms import NORMALISATION
from capsprune.errors import CheckpointError, RunError
from capsprune.inspection import checkpoint_costs
from capsprune.pipeline.fitting import score_network
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.pruning.cost import CostModel
from capsprune.pruning.groups import find_groups
from capsprune.pruning.rebuild import rebuild
from capsprune.pruning.strategy import Strategy
from capsprune.recipe import ImportOptions
from capsprune.run import StageRecord
from capsprune.training.fit import History


def import_checkpoint(options: ImportOptions, session: Session) -> StageRecord:
    """Make the run's pruned backbone out of a state dict.

    Raises:
        CapspruneError: if the file cannot be read or fits no pruned backbone of this name, the data
            cannot be used, or the run has another baseline, or a pruned backbone already.
    """
    run, progress = session.run, session.progress
    image_size = options.image_size or default_image_size(options.data)
    arguments = backbone_arguments(options.model, image_size)
    if not options.checkpoint.is_file():
        raise CheckpointError(f"There is no file {options.checkpoint}; check the path.")
    baseline = _baseline(options, image_size, session)
    digest = hashlib.sha256(options.checkpoint.read_bytes()).hexdigest()
    stage = Stage.of(session, "pruned", options, baseline, image_size=image_size, sha256=digest)
    if record := stage.done():
        return record

    state = read_state_dict(options.checkpoint)
    classifier = backbone(options.model).classifier
    splits = session.data(options.data, options.data_root, image_size)
    torch.manual_seed(run.seed)  # a classifier may be drawn anew
    network = build_backbone(options.model, splits.num_classes, **arguments).eval()
    dependencies = find_groups(network, classifier=classifier, image_size=image_size)
    cost = CostModel.build(network, dependencies, image_size)
    kept, own_classifier = rebuild(
        network,
        dependencies,
        state,
        classifier=classifier,
        name=options.model,
        source=str(options.checkpoint),
    )
    ratio = float(cost.flops_ratio(kept))
    said = "with its classifier" if own_classifier else "classifier drawn anew, untrained"
    progress.say(
        f"{options.checkpoint} is a {options.model} with {ratio:.1%} of its FLOPs, {said} "
        f"({splits.num_classes} classes)"
    )

    stage.begin(splits)
    # What a classifier scores that knows nothing of the classes says nothing of the backbone.
    metrics: dict[str, Any] = {}
    if own_classifier:
        metrics = score_network(session, network, splits.test, image_size).to_dict()
    architecture = describe(
        network,
        model=options.model,
        arguments=arguments,
        data=DataDescription(
            name=options.data,
            class_names=splits.class_names,
            image_size=image_size,
            mean=NORMALISATION["mean"],
            std=NORMALISATION["std"],
        ),
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
            "data_root": str(options.data_root.resolve()) if options.data_root else None,
            "imported": str(options.checkpoint),
            "classifier": said,
            "flops_ratio": ratio,
            **metrics,
            **checkpoint_costs(Checkpoint(network, architecture)),
        },
        {"strategy.json": json.dumps(strategy.to_dict(), indent=1) + "\n"},
    )


def _baseline(options: ImportOptions, image_size: int, session: Session) -> str | None:
    """Id of the run's baseline, if there is one; what is imported must be of its kind."""
    run = session.run
    if "baseline" not in run.stages:
        return None
    run.require("baseline", "import-checkpoint")
    described = read_architecture(run.path("baseline"))
    for name, asked, has in (
        ("model", options.model, described.model),
        ("data", options.data, described.data.name),
        ("image-size", image_size, described.data.image_size),
    ):
        if asked != has:
            raise RunError(
                f"The baseline of run '{run.name}' has --{name} {has}, not {asked}; give another "
                "--run."
            )
    return described.id
