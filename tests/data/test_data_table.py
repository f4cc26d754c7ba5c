"""A data set that is added from outside of the package."""

import json

import numpy as np
import pytest
import torch
from open_tables import restored

from capsprune import doctor
from capsprune.data.augmentation import Augmentation
from capsprune.data.images import TensorImages
from capsprune.data.names import DATA_SETS, data_set, known_data_set
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.source import DataSet, Request, Source
from capsprune.data.sources import load_data
from capsprune.data.transforms import TrainingTransform
from capsprune.errors import DataError
from capsprune.options import TrainOptions, parse_options
from capsprune.pipeline.session import Session
from capsprune.pipeline.train import train
from capsprune.run import open_run
from capsprune.schedule import LONG, Schedule


def read_noise(request: Request) -> Source:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (60, 3, 12, 12), dtype=np.uint8)
    pool = TensorImages(torch.from_numpy(pixels), torch.arange(60) % 3)
    return Source(
        class_names=("a", "b", "c"),
        native_size=12,
        fingerprint="0" * 64,
        pool=pool,
        validation=None,
        test=None,
        validation_share=0.1,
    )


@pytest.fixture
def noise(monkeypatch, tmp_path):
    """A toy data set, in the table for the time of a test."""
    monkeypatch.setenv("CAPSPRUNE_DATA", str(tmp_path))
    toy = DataSet(
        read_noise,
        image_size=16,
        augmentation=Augmentation(flip=True),
        schedules={**LONG, "baseline": Schedule(epochs=2, batch_size=7, lr=0.5)},
        places=("noise.bin",),
        remedy="make some noise",
    )
    with restored(DATA_SETS):
        yield DATA_SETS.register("noise", "random images")(toy)


@pytest.mark.usefixtures("noise")
def test_a_data_set_from_outside_is_loaded_and_shown():
    assert known_data_set("noise") == "noise"
    data = load_data("noise", image_size=16)
    assert data.num_classes == 3 and data.split.counts == {"train": 43, "validation": 5, "test": 12}
    transform = TrainingTransform(data_set("noise").augmentation, Preprocessing(16))
    assert transform(data.train.storage).shape == (60, 3, 16, 16)
    assert "noise (random images)" in DATA_SETS.help()
    with pytest.raises(DataError, match="Unknown data set 'noize'; did you mean noise"):
        known_data_set("noize")


@pytest.mark.usefixtures("noise")
def test_the_doctor_looks_for_it(tmp_path):
    def found():
        return next(finding for finding in doctor.examine() if finding.name == "noise")

    assert (found().found, found().remedy) == ("not found", "make some noise")
    (tmp_path / "noise.bin").touch()
    assert (found().found, found().remedy) == (str(tmp_path / "noise.bin"), "")


@pytest.mark.usefixtures("noise")
def test_a_stage_trains_on_it(tmp_path):
    options = parse_options(TrainOptions, {"model": "mobilenet_v1", "data": "noise", "epochs": 0})
    with open_run(tmp_path / "runs", "toy", create=True) as run:
        record = train(options, Session(run, device="cpu"))
    assert (record.summary.data, record.summary.batch_size) == ("noise", 7)
    described = json.loads((run.path("baseline") / "architecture.json").read_text())
    assert described["data"]["image_size"] == 16
    assert described["data"]["class_names"] == ["a", "b", "c"]
