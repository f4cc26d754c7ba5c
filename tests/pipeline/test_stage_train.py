"""The baseline, on a small network and made-up images."""

import pytest
import torch
from toy_pipeline import MADE

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import CapspruneError, Interrupted, RunError


def test_it_learns_and_says_what_it_did(place):
    summary = place.do("train", **MADE["train"]).to_dict()
    assert "toy on colours (86 training, 10 validation, 24 test images) on cpu" in place.said
    assert "from scratch" in summary["weights"]
    assert (summary["model"], summary["data"], summary["epochs"]) == ("toy", "colours", 2)
    assert (summary["batch_size"], summary["lr"], summary["images"]) == (16, 0.02, 24)
    assert summary["accuracy"] > 0.9 and summary["majority_rate"] == pytest.approx(1 / 3)
    assert {one["class"] for one in summary["worst_classes"]} == {"red", "green", "blue"}
    checkpoint = load_checkpoint(place.path("baseline"))
    assert checkpoint.architecture.data.class_names == ("red", "green", "blue")
    assert checkpoint.architecture.parent is None


def test_it_is_done_once_and_again_where_it_is_to_be(finished):
    first = finished.stages()["baseline"]
    finished.do("train", **MADE["train"])
    assert "baseline is done already; --overwrite does it again" in finished.said
    assert finished.stages()["baseline"] == first
    finished.do("train", **MADE["train"], overwrite=True)
    assert finished.stages()["baseline"] != first


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epochs": 3}, "epochs"),
        ({"lr": 0.5}, "lr"),
        ({"part": 0.5}, "part"),
        ({"precision": "bf16-mixed"}, "precision"),
    ],
)
def test_another_request_is_refused_and_nothing_lost(finished, changed, words):
    before = finished.stages()
    with pytest.raises(RunError, match=words):
        finished.do("train", **MADE["train"], **changed)
    assert finished.stages() == before


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(place):
    whole = place.do("train", run="whole", **MADE["train"])
    place.progress.stop_at = ("Training", 9)  # in the second epoch
    with pytest.raises(Interrupted):
        place.do("train", **MADE["train"])
    assert place.stages() == {}
    assert "training.pt" in {file.name for file in place.path().rglob("*")}
    again = place.do("train", **MADE["train"])
    assert again.to_dict()["loss"] == whole.to_dict()["loss"]
    networks = [
        load_checkpoint(place.folder / run / "baseline").network for run in ("whole", "toy")
    ]
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "toi"}, "did you mean toy"),
        ({"data": "colors"}, "did you mean colours"),
        ({"image_size": 4}, "image size"),
        ({"weights": "missing.pt"}, "missing.pt"),
        ({"device": "cuda:77"}, "cuda"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_begins(place, values, words):
    with pytest.raises(CapspruneError, match=words):
        place.do("train", **{**MADE["train"], **values})
    assert not place.path("baseline").exists()


def test_no_epochs_keep_the_starting_weights(place):
    summary = place.do("train", **MADE["train"], epochs=0).to_dict()
    assert summary["epochs"] == 0
    place.do(
        "train",
        run="copy",
        **{**MADE["train"], "epochs": 0, "seed": 1},
        weights=str(place.path("baseline", "model.safetensors")),
    )
    networks = [load_checkpoint(place.folder / run / "baseline").network for run in ("toy", "copy")]
    assert torch.equal(networks[0].features[0].weight, networks[1].features[0].weight)
