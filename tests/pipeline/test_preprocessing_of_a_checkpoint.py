"""A backbone says how images are shown when a run begins; afterwards its checkpoint does."""

import dataclasses
import json

import onnx
import pytest

from capsprune.backbones.registry import BACKBONES
from capsprune.checkpoint import read_architecture
from capsprune.data.preprocessing import IMAGENET_MEAN, Preprocessing
from capsprune.options import EvaluateOptions, ExportOptions, TrainOptions, parse_options
from capsprune.pipeline.evaluate import evaluate_checkpoint
from capsprune.pipeline.export import export
from capsprune.pipeline.session import Session
from capsprune.pipeline.train import train
from capsprune.run import open_run

MEAN, STD = (0.9, 0.1, 0.5), (0.5, 2.0, 1.0)


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A session on a run whose baseline was made while its backbone wanted images otherwise."""
    record = dataclasses.replace(
        BACKBONES["squeezenet1_1"], mean=MEAN, std=STD, interpolation="bicubic"
    )
    options = {"model": "squeezenet1_1", "data": "digits", "image_size": 32, "weights": "none"}
    options |= {"epochs": 0}
    with open_run(tmp_path / "runs", "run", create=True) as run:
        session = Session(run, device="cpu")
        with monkeypatch.context() as before:
            before.setitem(BACKBONES._entries, "squeezenet1_1", record)
            train(parse_options(TrainOptions, options), session)
        yield session


def test_what_comes_later_shows_images_as_the_checkpoint_says(trained, tmp_path):
    baseline = trained.run.path("baseline")
    shown = read_architecture(baseline).data.preprocessing
    assert shown == Preprocessing(32, MEAN, STD, "bicubic")
    assert BACKBONES["squeezenet1_1"].preprocessing(32).mean == IMAGENET_MEAN

    summary = trained.run.stages["baseline"].summary.to_dict()
    again = evaluate_checkpoint(parse_options(EvaluateOptions, {}), trained)
    assert again["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    # It can fail: shown otherwise, the same images give another loss.
    architecture = baseline / "architecture.json"
    content = json.loads(architecture.read_text())
    content["data"]["mean"] = IMAGENET_MEAN
    architecture.write_text(json.dumps(content))
    other = evaluate_checkpoint(parse_options(EvaluateOptions, {}), trained)
    assert abs(other["loss"] - summary["loss"]) > 1e-4

    content["data"]["mean"] = MEAN
    architecture.write_text(json.dumps(content))
    file = tmp_path / "model.onnx"
    export(parse_options(ExportOptions, {"checkpoint": baseline, "output": file}), trained)
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(metadata["normalisation"]) == {"mean": list(MEAN), "std": list(STD)}
    assert metadata["interpolation"] == "bicubic"
