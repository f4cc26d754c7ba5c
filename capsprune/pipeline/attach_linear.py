"""The stage `attach-linear`: a linear classifier on the same trunk, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capsprune.backbones.trunk import trunk_of
from capsprune.checkpoint import load_checkpoint
from capsprune.pipeline.heads import load_classes, train_head, trunk_source
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.recipe import AttachLinearOptions
from capsprune.run import StageRecord


class LinearNetwork(nn.Module):
    """A backbone whose classifier is trained, on a trunk that may be frozen."""

    def __init__(self, model: str, backbone: nn.Module, frozen: bool) -> None:
        """Draw the classifier anew, as a capsule head begins anew too.

        Args:
            model: name of the backbone.
            backbone: of any pruned shape, changed in place.
            frozen: train the classifier alone; the trunk stays bit for bit.
        """
        super().__init__()
        self.backbone = backbone
        self._trunk = (trunk_of(model, backbone),)  # in a tuple, so as not to be a submodule too
        in_trunk = set(self._trunk[0].modules())
        for module in backbone.modules():
            if module not in in_trunk and isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
        self.trunk_frozen = frozen
        if frozen:
            self._trunk[0].requires_grad_(False)
            self._trunk[0].eval()

    def train(self, mode: bool = True) -> LinearNetwork:
        """Switch to training mode; a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.trunk_frozen:
            self._trunk[0].eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, H, W] to logits [batch, J]."""
        return self.backbone(images)


def attach_linear(options: AttachLinearOptions, session: Session) -> StageRecord:
    """Train a linear classifier on the pruned trunk with the budget of the capsule head.

    Raises:
        CapspruneError: if there is no pruned backbone, or the stage is finished with other options.
    """
    source, described = trunk_source(options, session, "attach-linear")
    stage = Stage.of(session, "linear", options, described.id)
    if record := stage.done():
        return record

    backbone = load_checkpoint(source).network
    torch.manual_seed(session.run.seed)
    network = LinearNetwork(described.model, backbone, options.freeze)
    splits = load_classes(options, session, source, described)
    session.progress.say(
        "A linear classifier to compare with; the trunk is "
        f"{'frozen' if options.freeze else 'finetuned'}"
    )
    return train_head(
        options,
        stage,
        network,
        result=backbone,
        described=described,
        splits=splits,
        title="Training the linear classifier",
        details={},
    )
