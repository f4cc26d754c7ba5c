"""A head that is added from outside of the package, in one file and one line."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest
import torch
from open_tables import restored
from pydantic import Field
from torch import nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.trunk import trunk_output
from capsprune.capsules.head import Head, HeadConfig
from capsprune.capsules.heads import HEADS
from capsprune.checkpoint import load_checkpoint
from capsprune.errors import ModelError, RunError
from capsprune.export.ort import onnxruntime
from capsprune.inspection import inspect_model, inspect_run
from capsprune.options import (
    AnalyseOptions,
    AttachCapsOptions,
    EvaluateOptions,
    ExportOptions,
    InspectOptions,
    RecipeError,
    TrainOptions,
    parse_options,
)
from capsprune.pipeline.analyse import analyse
from capsprune.pipeline.attach import attach_caps
from capsprune.pipeline.evaluate import evaluate_checkpoint
from capsprune.pipeline.export import export
from capsprune.pipeline.session import Session
from capsprune.pipeline.train import train
from capsprune.run import open_run
from capsprune.training.objective import Objective


class VotesConfig(HeadConfig):
    """How sharp the votes are."""

    iterations: Annotated[int, Field(ge=1)] = 2


class VotesNetwork(HeadedNetwork):
    """A convolution of 1 x 1 votes for classes at each position; the votes are averaged."""

    kind = "votes"

    def __init__(self, trunk, channels, classes, iterations):
        super().__init__(trunk)
        self.votes = nn.Conv2d(channels, classes, 1)
        self.iterations = iterations

    def forward(self, images):
        return self.iterations * self.votes(self.trunk(images)).mean((2, 3))


class VotesHead(Head):
    config = VotesConfig
    objective = Objective(
        loss=lambda outputs, labels: nn.functional.multi_margin_loss(outputs, labels),
        scores=lambda outputs: outputs,
    )
    outputs = ("votes",)

    def build(self, trunk, features, classes, config):
        return VotesNetwork(trunk, features.channels, classes, config.iterations)

    def describe(self, network):
        return VotesConfig(kind=network.kind, iterations=network.iterations)

    def exported(self, outputs):
        return torch.softmax(outputs, dim=1), outputs


@pytest.fixture(autouse=True)
def votes():
    with restored(HEADS):
        yield HEADS.register("votes", "votes at each position")(VotesHead())


@pytest.mark.slow
def test_it_goes_through_all_stages(tmp_path):
    with open_run(tmp_path, "own", None, create=True) as run:
        session = Session(run, "cpu")
        train(
            TrainOptions(model="mobilenet_v1", image_size=16, part=0.1, weights="none", epochs=0),
            session,
        )
        options = AttachCapsOptions(
            checkpoint=run.path("baseline"), head="votes", freeze=True, epochs=1
        )
        record = attach_caps(options, session)
        assert record.options["iterations"] == 2 and record.options["d1"] is None
        assert attach_caps(options, session) == record  # it is known as finished

        checkpoint = load_checkpoint(run.path("caps"))
        network = checkpoint.network
        assert isinstance(network, VotesNetwork) and network.iterations == 2
        assert checkpoint.architecture.head == VotesConfig(kind="votes", iterations=2)
        assert set(dict(network.named_parameters())) >= {"votes.weight", "votes.bias"}

        scored = evaluate_checkpoint(EvaluateOptions(), session)
        assert scored["accuracy"] == record.summary.accuracy

        report = export(ExportOptions(), session)
        assert report.outputs == {"class_probabilities": ["batch", 10], "votes": ["batch", 10]}
        opened = onnxruntime.InferenceSession(
            str(run.path("onnx") / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        images = torch.randn(3, 3, 16, 16)
        probabilities, votes = opened.run(None, {"image": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(votes, network(images), atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)

        costs = inspect_run(run, InspectOptions())["caps"]
        channels, size = trunk_output(network.trunk, 16)
        assert costs["head_macs"] == channels * 10 * size**2
        assert costs["forward_macs"] == costs["trunk_macs"] + costs["head_macs"]
        # Of a frozen trunk, as the paper counts; the head is a convolution.
        assert costs["training_flops"] == 2 * costs["forward_macs"]
        assert "primary_capsules" not in costs


def test_it_is_offered_and_inspected():
    assert "votes (votes at each position)" in HEADS.help()
    result = inspect_model(InspectOptions(model="mobilenet_v1", image_size=32, head="votes"))
    assert result["head_macs"] > 0 and "primary_capsules" not in result


def test_an_option_that_it_does_not_have_is_refused():
    for option, given in (
        ("d2", 4),
        ("primary", "depthwise"),
        ("primary-rank", 4),
        ("capsules", 2),
    ):
        options = parse_options(
            InspectOptions,
            {"model": "mobilenet_v1", "image_size": 32, "head": "votes", option: given},
        )
        with pytest.raises(ModelError, match=f"Head 'votes' has no --{option}; leave it out"):
            inspect_model(options)


@pytest.mark.parametrize(
    ("name", "said"),
    [("dinamic", "did you mean dynamic"), ("linear", "run 'capsprune attach-linear'")],
)
def test_heads_that_attach_caps_does_not_know_are_refused(name, said):
    with pytest.raises((ModelError, RecipeError), match=said):
        parse_options(AttachCapsOptions, {"head": name})


def test_a_head_on_a_head_and_an_analysis_of_nothing_are_refused(tmp_path):
    with open_run(tmp_path, "own", None, create=True) as run:
        session = Session(run, "cpu")
        train(
            TrainOptions(model="mobilenet_v1", image_size=16, part=0.05, weights="none", epochs=0),
            session,
        )
        first = AttachCapsOptions(checkpoint=run.path("baseline"), head="votes", epochs=1)
        attach_caps(first, session)
        with pytest.raises(RunError, match="a head that 'analyse' cannot look into"):
            analyse(AnalyseOptions(), session)
        assert "analysis" not in run.stages
        again = AttachCapsOptions(checkpoint=run.path("caps"), head="votes", epochs=1)
        with pytest.raises(RunError, match="has a capsule head already"):
            attach_caps(again, session)
