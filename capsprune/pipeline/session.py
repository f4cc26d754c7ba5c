"""What the stages of one command share: the run, the device, the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capsprune.checkpoint import Architecture
from capsprune.data.images import ImageSet
from capsprune.data.loaders import data_loader
from capsprune.data.names import (
    FOLDER,
    data_set_folder,
    data_set_kind,
    native_path,
    written_path,
)
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.sources import DataSplits, load_data
from capsprune.data.splits import Split
from capsprune.data.transforms import EvaluationTransform
from capsprune.errors import RunError
from capsprune.options import ImportOptions, TrainOptions
from capsprune.progress import Progress
from capsprune.provenance import provenance_of_weights, read_provenance
from capsprune.records import StageName
from capsprune.run import Run
from capsprune.training.device import make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Images a forward pass where nothing is trained.
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class NewSplit:
    """How the images are split for a stage that begins a run."""

    #: To apply; None to draw one.
    split: Split | None
    #: What the stage's options come to: part of the training images, None for all of them, and
    #: seed of the test images, None for those that a data set always has.
    part: float | None
    seed: int | None


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
    _data: dict[tuple[Any, ...], DataSplits] = field(default_factory=dict)
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

    @property
    def split(self) -> Split | None:
        """The run's split of its data set, if it has one.

        Raises:
            DataError: if it is damaged.
        """
        stored = self.run.read_split()
        return None if stored is None else Split.from_json(stored)

    def data_of(
        self,
        checkpoint: Path,
        described: Architecture,
        root: Path | None,
        *,
        value_range: tuple[float, float] | None = None,
        background: str | None = None,
        compared: bool = True,
    ) -> DataSplits:
        """Load the data of a checkpoint, split as they were when it was trained.

        So no image that trained it tests it, whichever run it comes from. What is to be known of
        the data is said.

        Args:
            checkpoint: its directory.
            described: its description.
            root: where data sets lie; None for where the run's stages found them. Of a folder that
                was moved: that folder.
            value_range: as `load_data` takes it; None for the split's.
            background: likewise.
            compared: whether what is made of it stands beside the run's other results, which then
                must have the same split.

        Raises:
            RunError: if they have another.
            CheckpointError: if the checkpoint's split is damaged.
            DataError: if the data are missing or unusable, are not those that were split, or are to
                be read otherwise than they were.
        """
        split, stored = read_provenance(checkpoint, described), self.split
        if split is None:
            split = stored
            if self.run.directory.resolve() not in checkpoint.resolve().parents:
                self.progress.say(
                    f"{checkpoint} does not say which images trained it: if the test images here "
                    "are among them, accuracies are too high"
                )
        elif stored is not None and stored.digest != split.digest:
            if compared:
                raise _other_split(checkpoint, self.run)
            self.progress.say(
                f"{checkpoint} was trained with another split of its images than run "
                f"'{self.run.name}' has; its own is used"
            )
        else:
            split = stored or split  # the run's says more of the files
        data = described.data
        return self._load(
            data.name,
            root,
            data.image_size,
            split,
            value_range=value_range,
            background=background,
        )

    def new_split(
        self, stage: StageName, options: TrainOptions | ImportOptions, weights: Path | None
    ) -> NewSplit:
        """Return how the images are split for a stage that begins a run.

        They are split as asked, unless stages that stay, or the checkpoint that weights are taken
        from, were made with a split already.

        Args:
            stage: that is to be made, perhaps anew.
            options: of it.
            weights: a file that the network's weights are taken from.

        Raises:
            RunError: if there is a split already, and another is asked for.
        """
        stays = self.run.kept_beside(stage)
        split = self.split if stays else None
        whose = f"the {stays[0]} of run '{self.run.name}'" if stays else str(weights)
        trained = None if weights is None else provenance_of_weights(weights)
        if trained is not None:
            assert weights is not None
            if split is not None and split.digest != trained.digest:
                raise _other_split(weights, self.run)
            split = split or trained
        if split is None:
            return NewSplit(None, options.part, options.split_seed)
        part, seed = split.used_part, split.used_test_seed
        # The part that an older split was drawn with is known to half a per cent.
        same_part = abs((options.part or part) - part) <= (0 if split.part is not None else 0.005)
        same_seed = options.split_seed in (None, seed)
        for name, asked, has, same in (
            ("part", options.part, part, same_part),
            ("split-seed", options.split_seed, seed, same_seed),
        ):
            if not same:
                made = f"without --{name}" if has is None else f"with --{name} {has}"
                raise RunError(
                    f"{whose} was made {made}, not {asked}; leave that option out, or give "
                    "another --run."
                )
        return NewSplit(split, None if part == 1 else part, split.test_seed or None)

    def new_data(
        self, options: TrainOptions | ImportOptions, image_size: int, new: NewSplit
    ) -> DataSplits:
        """Load the data set of a stage that begins a run.

        Args:
            options: of the stage.
            image_size: pixels a side shown to the network.
            new: how to split it.

        Raises:
            DataError: if the data are missing or unusable, are not those that were split, or are to
                be read otherwise than they were.
        """
        return self._load(
            options.data,
            options.data_root,
            image_size,
            new.split,
            part=new.part or 1.0,
            test_seed=new.seed,
            value_range=options.value_range,
            background=options.background,
        )

    def _load(
        self,
        name: str,
        root: Path | None,
        image_size: int,
        split: Split | None,
        *,
        value_range: tuple[float, float] | None,
        background: str | None,
        **drawing: Any,
    ) -> DataSplits:
        if root is not None:
            self.root = native_path(written_path(root))
        root = self.root or self._known_root(name)
        data = (name, root, image_size)
        how = (tuple(drawing.values()), value_range, background)
        key = (*data, how if split is None else split.digest)
        if key not in self._data:
            with self.progress.bar("Loading images") as bar:
                loaded = load_data(
                    name,
                    root=root,
                    image_size=image_size,
                    seed=self.run.seed,
                    split=split,
                    value_range=value_range,
                    background=background,
                    progress=lambda what, done, total: bar(done, total, what),
                    **drawing,
                )
            self._note(loaded)
            self._data[key] = loaded
            self._data[(*data, loaded.split.digest)] = loaded
        loaded = self._data[key]
        loaded.split.require_decoding(value_range, background)
        return loaded

    def _note(self, loaded: DataSplits) -> None:
        """Say what is to be known of the data, and keep what was found out about its files."""
        for note in loaded.notes:
            if note not in self._said:
                self._said.add(note)
                self.progress.say(note)
        stored = self.split
        if stored not in (None, loaded.split) and stored.digest == loaded.split.digest:
            self.run.write_split(loaded.split.to_json())

    def batches(
        self, images: ImageSet, preprocessing: Preprocessing, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images in order, without augmentation, on the device.

        Args:
            images: of any size.
            preprocessing: what becomes of them; its image size is S.
            batch_size: images a batch.

        Yields:
            Normalised images [batch, C, S, S], channels last, and labels [batch].
        """
        device = self.fabric.device
        transform = EvaluationTransform(preprocessing).to(device)
        for batch, labels in data_loader(images, batch_size=batch_size):
            prepared = transform(batch.to(device)).contiguous(memory_format=torch.channels_last)
            yield prepared, labels.to(device)

    def _known_root(self, name: str) -> Path | None:
        """Return where the latest stage was told to find the data; of a folder, if it was moved."""
        if data_set_kind(name) == FOLDER and data_set_folder(name).exists():
            return None
        records = self.run.stages.values()
        latest_first = sorted(records, key=lambda record: record.finished, reverse=True)
        roots = (record.summary.data_root for record in latest_first)
        return next((native_path(root) for root in roots if root is not None), None)


def _other_split(checkpoint: Path, run: Run) -> RunError:
    return RunError(
        f"{checkpoint} was trained with another split of its images than run '{run.name}' has, so "
        "that images which trained it would test it; give another --run."
    )
