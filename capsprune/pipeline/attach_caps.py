"""The stage `attach-caps`: a capsule head on the pruned trunk, trained."""

from __future__ import annotations

import torch

from capsprune.backbones.trunk import trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.checkpoint import load_checkpoint
from capsprune.options import DEFAULT_D1, AttachCapsOptions
from capsprune.pipeline.heads import load_classes, train_head, trunk_source
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.run import StageRecord


def attach_caps(options: AttachCapsOptions, session: Session) -> StageRecord:
    """Put a capsule head on the pruned trunk and train it.

    Raises:
        CapspruneError: if there is no pruned backbone, its trunk is too narrow, or the stage is
            finished with other options.
    """
    source, described = trunk_source(options, session, "attach-caps")
    d1 = options.d1 or _counted_d1(options, session)
    stage = Stage.of(session, "caps", options, described.id, d1=d1)
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
        d1=d1,
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


def _counted_d1(options: AttachCapsOptions, session: Session) -> int:
    """The values of a primary capsule with which `prune` counted them, where none are asked for."""
    pruned = session.run.stages.get("pruned") if options.checkpoint is None else None
    d1 = DEFAULT_D1 if pruned is None else int(pruned.options.get("d1", DEFAULT_D1))
    if d1 != DEFAULT_D1:
        session.progress.say(f"Primary capsules have {d1} values, as --d1 of prune said")
    return d1
