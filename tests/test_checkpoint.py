import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from capsprune.backbones.headed import LinearNetwork
from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.checkpoint import (
    DataDescription,
    describe,
    load_checkpoint,
    read_architecture,
    save_checkpoint,
)
from capsprune.errors import CheckpointError
from capsprune.files import parse_json
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import find_groups
from capsprune.pruning.shrink import shrink

DATA = DataDescription(
    name="digits",
    class_names=("a", "b", "c"),
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def network_of(name, fraction, head, iterations=2):
    """A network of random weights that is pruned unevenly."""
    torch.manual_seed(0)
    arguments = backbone_arguments(name, 32)
    model = build_backbone(name, 3, **arguments).eval()
    groups = find_groups(model, classifier=backbone(name).classifier, image_size=32)
    generator = np.random.default_rng(0)
    channels = np.array([group.channels for group in groups.groups])
    removed = (channels * generator.uniform(0, fraction, len(channels))).astype(int)
    model = shrink(model, groups, l1_ranking(model, groups), np.maximum(channels - removed, 1))
    trunk = trunk_of(name, model)
    width, size = trunk_output(trunk, 32)
    if head == "linear":
        model = LinearNetwork(trunk, channels=width, classes=3)
    elif head == "capsules":
        model = CapsuleNetwork(
            trunk, channels=width, feature_size=size, classes=3, d1=8, d2=4, iterations=iterations
        )
    architecture = describe(
        model, model=name, arguments=arguments, data=DATA, parent="p", metrics={"accuracy": 0.5}
    )
    return model.eval(), architecture


def outputs(network, images):
    with torch.no_grad():
        result = network(images)
    return [result] if isinstance(result, torch.Tensor) else list(result)


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50"]),
    fraction=st.floats(0.05, 0.8),
    head=st.sampled_from([None, "capsules", "linear"]),
)
def test_any_pruned_shape_comes_back(tmp_path_factory, name, fraction, head):
    network, architecture = network_of(name, fraction, head)
    directory = tmp_path_factory.mktemp("c") / "checkpoint"
    save_checkpoint(directory, network, architecture, [{"epoch": 0}, {"epoch": 1}])
    loaded = load_checkpoint(directory)
    assert loaded.architecture == architecture
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(outputs(network, images), outputs(loaded.network, images), strict=True):
        assert torch.equal(ours, theirs)
    assert (loaded.capsules is not None) == (head == "capsules")
    assert getattr(loaded.architecture.head, "kind", None) == head
    with torch.no_grad():
        assert loaded.trunk(images).dim() == 4
    assert not loaded.network.training
    rows = (directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [0, 1]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    network, architecture = network_of("mobilenet_v1", 0.8, "capsules")
    directory = tmp_path_factory.mktemp("good") / "checkpoint"
    save_checkpoint(directory, network, architecture)
    return directory


@pytest.fixture
def damaged(good, tmp_path):
    return shutil.copytree(good, tmp_path / "checkpoint")


def test_a_capsule_head_of_before_there_were_several_kinds_is_read(damaged):
    file = damaged / "architecture.json"
    content = json.loads(file.read_text())
    assert content["head"].pop("kind") == "capsules"
    file.write_text(json.dumps(content))
    assert load_checkpoint(damaged).capsules is not None


def test_a_linear_layer_that_is_missing_is_named(tmp_path):
    network, architecture = network_of("mobilenet_v1", 0.8, "linear")
    save_checkpoint(tmp_path / "checkpoint", network, architecture)
    weights = tmp_path / "checkpoint" / "model.safetensors"
    state = load_file(weights)
    del state["classifier.weight"]
    save_file(state, weights)
    with pytest.raises(CheckpointError, match="lacks its linear layer"):
        load_checkpoint(tmp_path / "checkpoint")


def test_what_is_loaded_can_be_trained(good):
    network = load_checkpoint(good).network
    before = network.output_caps.weight.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    network(torch.randn(4, 3, 32, 32)).class_probabilities.sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not torch.equal(network.output_caps.weight, before)


def test_nothing_is_left_of_a_checkpoint_that_could_not_be_written(tmp_path, monkeypatch):
    network, architecture = network_of("mobilenet_v1", 0.8, None)

    def rows():
        yield {"epoch": 0}
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "checkpoint", network, architecture, rows())
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_a_checkpoint_holds_what_json_does_not_know(tmp_path):
    network, architecture = network_of("mobilenet_v1", 0.8, None)
    nan = float("nan")
    architecture = architecture.model_copy(update={"metrics": {"accuracy": 0.5, "loss": nan}})
    rows = [{"epoch": 0, "train_loss": nan}, {"epoch": 1, "train_loss": float("inf")}]
    save_checkpoint(tmp_path / "checkpoint", network, architecture, rows)
    assert read_architecture(tmp_path / "checkpoint").metrics == {"accuracy": 0.5, "loss": None}
    lines = (tmp_path / "checkpoint" / "metrics.jsonl").read_text().splitlines()
    assert [parse_json(line)["train_loss"] for line in lines] == [None, None]


@pytest.mark.parametrize("size", [0, 7, 100, 5000, -1])
def test_cut_weights_are_refused(damaged, size):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"truncated.*make the checkpoint anew"):
        load_checkpoint(damaged)


def test_a_tensor_too_few_too_many_or_of_another_shape(damaged):
    state = load_file(damaged / "model.safetensors")
    key = "output_caps.weight"
    for changed in (
        {k: v for k, v in state.items() if k != key},
        state | {"extra": torch.zeros(1)},
        state | {key: state[key][:2].clone()},
    ):
        save_file(changed, damaged / "model.safetensors")
        with pytest.raises(CheckpointError, match="does not fit its architecture"):
            load_checkpoint(damaged)


def test_capsule_layers_that_are_missing_are_named(damaged):
    state = load_file(damaged / "model.safetensors")
    del state["primary_caps.conv.weight"]
    save_file(state, damaged / "model.safetensors")
    with pytest.raises(CheckpointError, match="lacks its capsule layers"):
        load_checkpoint(damaged)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), "resnet5"),
        (("format",), 2),
        (("head", "kind"), "quadratic"),
        (("head", "kind"), "linear"),
        (("head",), []),
        (("head", "d1"), "eight"),
        (("head", "d1"), 0),
        (("head", "d2"), 5),
        (("head", "iterations"), -1),
        (("head", "feature_size"), 3),
        (("arguments",), {"depth": 3}),
        (("channels", "conv1"), {}),
        (("channels",), {"no.such.layer": {"out": 3}}),
        (("channels", "bn1", "out"), 10**12),
        (("channels", "bn1", "out"), -1),
        (("data", "image_size"), "big"),
        (("data", "class_names"), []),
    ],
)
def test_a_description_that_does_not_fit_is_refused(damaged, path, value):
    file = damaged / "architecture.json"
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(damaged)
    assert str(damaged) in str(error.value)


def test_places_where_there_is_no_checkpoint(tmp_path, damaged):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("nowhere", "check the path"),
        ("file", "is a file"),
        ("empty", "no architecture.json"),
    ):
        with pytest.raises(CheckpointError, match=said):
            read_architecture(tmp_path / place)
    (damaged / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_checkpoint(damaged)
