"""A small network on a small data set, both added from outside, and commands given on them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from capsprune.backbones.registry import Backbone
from capsprune.data.augmentation import Augmentation
from capsprune.data.images import TensorImages
from capsprune.data.source import DataSet, Request, Source
from capsprune.errors import Interrupted
from capsprune.pipeline.commands import Outcome, run_command
from capsprune.progress import Progress
from capsprune.run import read_run
from capsprune.schedule import Schedule

SIZE, CLASSES, IMAGES = 8, 3, 120
#: Options of the stages that the run of `finished` has.
MADE = {
    "train": {"model": "toy", "data": "colours"},
    "prune": {"candidates": 4, "round_to": 1, "epochs": 1},
    "attach-caps": {"epochs": 1, "d2": 4},
    "attach-linear": {"epochs": 1},
    "export": {},
    "analyse": {"images": 20},
    "profile": {"batch": (1,), "repeats": 1, "provider": "cpu"},
}


class Toy(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        )
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


def read_colours(request: Request) -> Source:
    """Make images of noise, each with a colour that its class has more of."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 128, (IMAGES, 3, SIZE, SIZE), dtype=np.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[label] += 100
    return Source(
        class_names=("red", "green", "blue"),
        native_size=SIZE,
        fingerprint="0" * 64,
        pool=TensorImages(torch.from_numpy(pixels), labels),
        validation=None,
        test=None,
        validation_share=0.1,
    )


SCHEDULE = Schedule(epochs=2, batch_size=16, lr=0.02)
COLOURS = DataSet(
    read_colours,
    image_size=SIZE,
    augmentation=Augmentation(flip=True),
    schedules=dict.fromkeys(("baseline", "finetune", "caps-finetuned", "caps-frozen"), SCHEDULE),
)
TOY = Backbone(("features",), "classifier", Toy, smallest_image=SIZE)


class Listener(Progress):
    """Notes what is said, and stops where it is told to, as Ctrl-C does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.titles: list[str] = []
        #: Title of a bar, and the step at which to stop.
        self.stop_at: tuple[str, int] | None = None

    def say(self, text: str) -> None:
        self.lines.append(text)

    def detail(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def bar(self, title: str):
        self.titles.append(title)

        def update(done: int, total: int, note: str = "") -> None:
            if self.stop_at is not None and (title, done) == self.stop_at:
                self.stop_at = None
                raise Interrupted

        yield update


class Place:
    """A folder of runs, in which commands are given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress = Listener()

    def do(self, command: str, run: str = "toy", **values: object) -> Outcome:
        """Give a command; what is said stands in `lines`."""
        self.progress.lines.clear()
        self.progress.titles.clear()
        given = {"run": run, "runs_dir": self.folder, **values}
        if command != "inspect":
            given.setdefault("device", "cpu")
        return run_command(command, given, self.progress)

    @property
    def said(self) -> str:
        """All that was said since the last command."""
        return "\n".join(self.progress.lines)

    def stages(self, run: str = "toy") -> dict[str, str]:
        """Ids of the stages that a run has."""
        return {name: record.id for name, record in read_run(self.folder, run).stages.items()}

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath("toy", *parts)
