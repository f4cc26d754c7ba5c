"""The stage `attach-linear`: one linear layer on the same trunk, to compare with."""

from __future__ import annotations

import torch

from capsprune.backbones.headed import LinearNetwork
from capsprune.backbones.trunk import trunk_output
from capsprune.checkpoint import load_checkpoint
from capsprune.options import AttachLinearOptions
from capsprune.pipeline.heads import load_classes, train_head, trunk_source
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.run import StageRecord


def attach_linear(options: AttachLinearOptions, session: Session) -> StageRecord:
    """Train one linear layer on the pooled pruned trunk with the budget of the capsule head.

    It takes the place of the backbone's own classifier, which has several large layers in some
    backbones, so that all heads are compared with the same one.

    Raises:
        CapspruneError: if there is no pruned backbone, or the stage is finished with other options.
    """
    source, described = trunk_source(options, session, "attach-linear")
    stage = Stage.of(session, "linear", options, described.id)
    if record := stage.done():
        return record

    trunk = load_checkpoint(source).trunk
    channels, _ = trunk_output(trunk, described.data.image_size)
    torch.manual_seed(session.run.seed)
    network = LinearNetwork(trunk, channels=channels, classes=len(described.data.class_names))
    if options.freeze:
        network.freeze_trunk()
    splits = load_classes(options, session, source, described)
    session.progress.say(
        f"One linear layer on {channels} channels to compare with; the trunk is "
        f"{'frozen' if options.freeze else 'finetuned'}"
    )
    return train_head(
        options,
        stage,
        network,
        described=described,
        splits=splits,
        title="Training the linear classifier",
        details={},
    )
