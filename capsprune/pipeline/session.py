"""What the stages of one command share: the run, the device, the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capsprune.data.images import ImageSet
from capsprune.data.loaders import data_loader
from capsprune.data.names import (
    FOLDER,
    data_set_folder,
    data_set_kind,
    native_path,
    written_path,
)
from capsprune.data.sources import DataSplits, load_data
from capsprune.data.splits import Split
from capsprune.data.transforms import evaluation_transform
from capsprune.progress import Progress
from capsprune.run import Run
from capsprune.training.device import make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Images a forward pass where nothing is trained.
EVALUATION_BATCH = 128


@dataclass
class Session:
    """What the stages of one command share."""

    run: Run
    #: As `capsprune.training.device.make_fabric` takes them.
    device: str = "auto"
    precision: str = "32-true"
    #: Do a finished stage again.
    overwrite: bool = False
    progress: Progress = field(default_factory=Progress)
    #: Where this command was told that data sets lie.
    root: Path | None = None
    _data: dict[tuple[str, Path | None, int], DataSplits] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _fabric: Fabric | None = None

    @property
    def fabric(self) -> Fabric:
        """Lightning Fabric on the chosen device.

        Raises:
            DeviceError: if the device is not there.
        """
        if self._fabric is None:
            self._fabric = make_fabric(self.device, self.precision)
        return self._fabric

    def data(
        self,
        name: str,
        root: Path | None,
        image_size: int,
        part: float = 1.0,
        value_range: tuple[float, float] | None = None,
        background: str | None = None,
    ) -> DataSplits:
        """Load a data set, split as this run splits it, and say what is to be known of it.

        Args:
            name: of the data set.
            root: where data sets lie; None for where the run's stages found them. Of a folder that
                was moved: that folder.
            image_size: pixels a side shown to the network.
            part: of the training images, to use, where the run has no split yet.
            value_range: as `load_data` takes it; None for the run's.
            background: likewise.

        Raises:
            DataError: if the data are missing or unusable, are not those that the run split, or
                are to be read otherwise than the run reads them.
        """
        if root is not None:
            self.root = native_path(written_path(root))
        root = self.root or self._known_root(name)
        key = (name, root, image_size)
        if key not in self._data:
            stored = self.run.read_split()
            split = Split.from_json(stored) if stored is not None else None
            with self.progress.bar("Loading images") as bar:
                self._data[key] = load_data(
                    name,
                    root=root,
                    image_size=image_size,
                    seed=self.run.seed,
                    split=split,
                    part=part,
                    value_range=value_range,
                    background=background,
                    progress=lambda what, done, total: bar(done, total, what),
                )
            self._note(self._data[key], split)
        loaded = self._data[key]
        loaded.split.require_decoding(value_range, background)
        return loaded

    def _note(self, loaded: DataSplits, stored: Split | None) -> None:
        """Say what is to be known of the data, and keep what was found out about its files."""
        for note in loaded.notes:
            if note not in self._said:
                self._said.add(note)
                self.progress.say(note)
        if stored is not None and loaded.split != stored:
            self.run.write_split(loaded.split.to_json())

    def batches(
        self, images: ImageSet, image_size: int, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give images in order, without augmentation, on the device.

        Yields:
            Normalised images [batch, 3, S, S], channels last, and labels [batch].
        """
        device = self.fabric.device
        transform = evaluation_transform(image_size).to(device)
        for batch, labels in data_loader(images, batch_size=batch_size):
            prepared = transform(batch.to(device)).contiguous(memory_format=torch.channels_last)
            yield prepared, labels.to(device)

    def _known_root(self, name: str) -> Path | None:
        """Where the latest stage found the data, if it was told; of a folder, if it was moved."""
        if data_set_kind(name) == FOLDER and data_set_folder(name).exists():
            return None
        latest_first = sorted(self.run.stages.values(), key=lambda one: one.finished, reverse=True)
        roots = (record.summary.get("data_root") for record in latest_first)
        return next((native_path(root) for root in roots if isinstance(root, str)), None)
