"""What another package adds to capsprune: one entry of every table, of public names alone."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.registry import BACKBONES, Backbone
from capsprune.capsules.head import Head, HeadConfig
from capsprune.capsules.heads import HEADS
from capsprune.data.augmentation import Augmentation
from capsprune.data.images import TensorImages
from capsprune.data.names import DATA_SETS
from capsprune.data.source import DataSet, Source
from capsprune.options import Options, SessionOptions
from capsprune.pipeline.stage import Stage
from capsprune.pruning.drawing import project
from capsprune.pruning.names import CRITERIA, SAMPLERS
from capsprune.schedule import Schedule
from capsprune.stages import Command, StageKind, add_stage
from capsprune.training.objective import Objective

SIZE = 12


class ToyNet(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.out = nn.Linear(16, num_classes)

    def forward(self, images):
        return self.out(self.block(self.stem(images)).mean((2, 3)))


BACKBONES.register("toynet", "two convolutions")(
    Backbone(("stem", "block"), "out", ToyNet, smallest_image=8, mean=(0.5, 0.5, 0.5))
)


def read_stripes(request):
    """Images of vertical or of horizontal stripes, with noise."""
    generator = np.random.default_rng(0)
    labels = torch.arange(80) % 2
    pixels = generator.integers(0, 80, (80, 3, SIZE, SIZE), dtype=np.uint8)
    pixels[0::2, :, :, ::2] += 150
    pixels[1::2, :, ::2, :] += 150
    return Source(
        class_names=("vertical", "horizontal"),
        native_size=SIZE,
        fingerprint="1" * 64,
        pool=TensorImages(torch.from_numpy(pixels), labels),
        validation=None,
        test=None,
        validation_share=0.1,
    )


SCHEDULE = Schedule(epochs=1, batch_size=8, lr=0.05)
DATA_SETS.register("stripes", "vertical or horizontal")(
    DataSet(
        read_stripes,
        image_size=SIZE,
        augmentation=Augmentation(),
        schedules=dict.fromkeys(
            ("baseline", "finetune", "caps-frozen", "caps-finetuned"), SCHEDULE
        ),
        places=(),
        remedy="",
    )
)


@CRITERIA.register("first", "the first channels go first")
def first(scoring):
    return [torch.arange(group.channels).double() for group in scoring.dependencies.groups]


@SAMPLERS.register("middle", "always the same")
class Middle:
    def __init__(self, space, seed):
        self.space = space

    def propose(self, index):
        middle = np.full(self.space.groups, self.space.max_rate / 2)
        return project(self.space, middle, np.random.default_rng(index))

    def observe(self, index, fractions, objective):
        pass


class VotesNetwork(HeadedNetwork):
    kind = "votes"

    def __init__(self, trunk, channels, classes):
        super().__init__(trunk)
        self.votes = nn.Conv2d(channels, classes, 1)

    def forward(self, images):
        return self.votes(self.trunk(images)).mean((2, 3))


class VotesHead(Head):
    objective = Objective(loss=nn.MultiMarginLoss(), scores=lambda outputs: outputs)

    def build(self, trunk, features, classes, config):
        return VotesNetwork(trunk, features.channels, classes)

    def describe(self, network):
        return HeadConfig(kind=network.kind)


HEADS.register("votes", "votes at each position")(VotesHead())


class WeighOptions(Options):
    """Options of `weigh`."""

    unit: int = 1


def weigh(options, session):
    caps = session.run.require("caps", "weigh")
    stage = Stage.of(session, "weight", options, caps.id)
    if record := stage.done():
        return record
    weights = session.run.path("caps") / "model.safetensors"
    result = stage.begin() / "weight.json"
    summary = {"bytes": weights.stat().st_size // options.unit}
    result.write_text(json.dumps(summary))
    return stage.commit(result, f"{caps.id}-{options.unit}", summary)


def show(outcome, verbose):
    print(outcome.to_dict()["bytes"])


add_stage(
    StageKind(
        "weight",
        Command("weigh", WeighOptions, SessionOptions, weigh, "Weigh it.", show, stage="weight"),
        follows=("caps",),
        is_file=True,
        title="Weight",
    )
)
