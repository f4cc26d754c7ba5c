"""The stage `attach-caps`: a capsule head on the pruned trunk, trained."""

from __future__ import annotations

import torch

from capsprune.backbones.trunk import trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.checkpoint import load_checkpoint
from capsprune.pipeline.heads import load_classes, train_head, trunk_source
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.recipe import AttachCapsOptions
from capsprune.run import StageRecord


def attach_caps(options: AttachCapsOptions, session: Session) -> StageRecord:
    """Put a capsule head on the pruned trunk and train it.

    Raises:
        CapspruneError: if there is no pruned backbone, its trunk is too narrow, or the stage is
            finished with other options.
    """
    source, described = trunk_source(options, session, "attach-caps")
    stage = Stage.of(session, "caps", options, described.id)
    if record := stage.done():
        return record

    trunk = load_checkpoint(source).trunk
    channels, feature_size = trunk_output(trunk, described.data.image_size)
    torch.manual_seed(session.run.seed)
    network = CapsuleNetwork(
        trunk,
        channels=channels,
        feature_size=feature_size,
        classes=len(described.data.class_names),
        d1=options.d1,
        d2=options.d2,
        iterations=options.iterations,
    )
    if options.freeze:
        network.freeze_trunk()
    splits = load_classes(options, session, source, described)
    session.progress.say(
        f"{channels} channels make {network.primary_caps.capsules} primary capsules, routed to "
        f"{splits.num_classes} output capsules; the trunk is "
        f"{'frozen' if options.freeze else 'finetuned'}"
    )
    return train_head(
        options,
        stage,
        network,
        described=described,
        splits=splits,
        title="Training capsules",
        details={"routing_iterations": options.iterations},
    )
